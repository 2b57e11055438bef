package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/plinth-os/plinth/agent/guestapi"
	"github.com/plinth-os/plinth/agent/imageservice"
	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/workload"
)

// A guest does what programs inside ask for: guestapi.Guest. It answers once the boot
// is over.
type guest struct{ s *State }

var _ guestapi.Guest = guest{}

var (
	errNoAttester = errors.New("this guest is attested by nothing")
	errNoBroker   = errors.New("this guest has no broker")
)

func (g guest) Resource(ctx context.Context, uri string) ([]byte, error) {
	if err := g.s.settled(ctx); err != nil {
		return nil, err
	}
	return g.s.key(ctx, uri)
}

func (g guest) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	if err := g.s.settled(ctx); err != nil {
		return nil, err
	}
	return kbs.Unseal(ctx, g.s.key, sealed)
}

func (g guest) Evidence(ctx context.Context, runtimeData []byte) ([]byte, error) {
	a := g.s.work.attestation.attester
	if a == nil {
		return nil, errNoAttester
	}
	if err := g.s.settled(ctx); err != nil {
		return nil, err
	}
	return a.Evidence(ctx, runtimeData)
}

// AdditionalEvidence is that of devices, of which the agent attests none yet.
func (guest) AdditionalEvidence(context.Context, []byte) ([]byte, error) { return nil, nil }

// Token has the form of CoCo's attestation-agent.
func (g guest) Token(ctx context.Context, withKey bool) ([]byte, error) {
	b := g.s.work.attestation.brokers
	if b == nil {
		return nil, errNoBroker
	}
	if err := g.s.settled(ctx); err != nil {
		return nil, err
	}
	t, err := b.Token(ctx)
	if err != nil {
		return nil, err
	}
	out := struct {
		Token string `json:"token"`
		Key   string `json:"tee_keypair,omitempty"`
	}{Token: t.JWT}
	if withKey {
		pem, err := t.PEM()
		if err != nil {
			return nil, err
		}
		out.Key = string(pem)
	}
	return json.Marshal(out)
}

// Measure extends the registers of workloads, behind the separator.
func (g guest) Measure(ctx context.Context, e workload.Event) error {
	if !g.s.measured() { // nobody sees what a TPM has that no evidence is of
		return guestapi.ErrNoRegister
	}
	if err := g.s.settled(ctx); err != nil {
		return err
	}
	return g.s.measure(e)
}

func (g guest) UnwrapKey(ctx context.Context, packet []byte) ([]byte, error) {
	if err := g.s.settled(ctx); err != nil {
		return nil, err
	}
	return crypt.CoCo(g.s.key).Unwrap(ctx, packet)
}

func (g guest) TEE() string {
	if a := g.s.work.attestation.attester; a != nil {
		return a.TEE()
	}
	return ""
}

func (guest) AdditionalTEEs() []string { return nil }

// serveGuest offers the services of CoCo's attestation-agent and
// confidential-data-hub to programs of the root file system, those that the
// configuration names.
func serveGuest(_ context.Context, s *State) error {
	services := &guestapi.Services{Logf: s.logf}
	if c := s.work.config; c != nil && c.ImageService {
		services.Images = &imageservice.Server{Guest: &bundler{s: s}, Root: s.Root, Logf: s.logf}
	}
	if a := s.Config.Attestation; a != nil && a.Services {
		services.Guest = guest{s}
	}
	if s.work.failed || services.Images == nil && services.Guest == nil {
		return nil
	}
	return s.listenServices(services)
}

func (s *State) listenServices(services *guestapi.Services) error {
	cdh, err := imageservice.Listen(s.path(imageservice.Socket))
	if err != nil {
		return err
	}
	var aa net.Listener
	if services.Guest != nil {
		if aa, err = imageservice.Listen(s.path(guestapi.AttestationAgent)); err != nil {
			return errors.Join(err, cdh.Close())
		}
	}
	s.background(func() {
		if err := services.Serve(context.Background(), aa, cdh); err != nil {
			s.logf("services: %v", err)
		}
	})
	return nil
}

// openWindow listens in the container's network, before its program runs.
func (c *container) openWindow(pid int) error {
	grant := c.w.Effective.API
	if grant == nil {
		return nil
	}
	l, err := c.s.work.site.listen(pid)
	if err != nil {
		return fmt.Errorf("api: %w", err)
	}
	if c.api == nil {
		c.api = &guestapi.REST{Guest: guest{c.s}, Grant: *grant, Name: c.w.Process.Name, Version: c.s.Report.Agent, Logf: c.s.logf}
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.closeWindow()
	c.window = cancel
	c.s.background(func() {
		if err := c.api.Serve(ctx, l); err != nil {
			c.s.logf("%s: api: %v", c.w.Process.Name, err)
		}
	})
	return nil
}

// closeWindow ends what openWindow began.
func (c *container) closeWindow() {
	if c.window != nil {
		c.window()
		c.window = nil
	}
}
