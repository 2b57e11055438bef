package agent

import (
	"slices"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"golang.org/x/sys/unix"
)

func TestLoopback(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{unix.ENODEV, ""},       // no such interface
		{unix.EAFNOSUPPORT, ""}, // no sockets for it
		{unix.EPERM, "lo: operation not permitted"},
	} {
		s, m := newGuest(t, config.Config{})
		m.raiseErr = tt.err
		wantError(t, raiseLoopback(t.Context(), s), tt.want)
		if !slices.Equal(m.raised, []string{"lo"}) {
			t.Errorf("raised %q", m.raised)
		}
	}
}
