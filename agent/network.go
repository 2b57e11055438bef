package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/agent/config"
)

// raiseLoopback lets programs of the guest reach each other. No other interface is
// touched. A kernel without networks does without.
func raiseLoopback(_ context.Context, s *State) error {
	err := s.machine.raise("lo")
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

// raiseNetwork brings the guest's interface up, where the image says how.
func raiseNetwork(ctx context.Context, s *State) (err error) {
	if err := os.MkdirAll(s.path("/run/plinth"), 0o755); err != nil {
		return err
	}
	if s.Config.Network == nil {
		return nil
	}
	if s.work.uplink, err = s.work.site.up(ctx, s.Config.Network, s.logf); err != nil {
		return err
	}
	for _, a := range s.work.uplink.Addresses {
		s.Report.Addresses = append(s.Report.Addresses, a.String())
	}
	return os.WriteFile(s.path(config.ResolvConf), s.work.uplink.ResolvConf(), 0o644)
}
