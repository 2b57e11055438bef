package agent

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/internal/rdseed"
	"github.com/plinth-os/plinth/internal/testenv"
	"golang.org/x/sys/unix"
)

// fakePool is ready after some questions, and only when it was given enough.
type fakePool struct {
	seed      []byte
	bits      int
	questions int
	creditErr error
	readyErr  error
}

func (p *fakePool) credit(seed []byte, bits int) error {
	p.seed, p.bits = bytes.Clone(seed), bits
	return p.creditErr
}

func (p *fakePool) ready() (bool, error) {
	p.questions--
	return p.bits >= 256 && p.questions < 0, p.readyErr
}

func TestEntropy(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	p := &fakePool{questions: 3}
	err := s.seedFrom(t.Context(), p, func() (seed [rdseed.Size]byte, from string, err error) {
		copy(seed[:], "0123456789abcdef0123456789abcdef")
		return seed, "RDSEED", nil
	})
	if err != nil || string(p.seed) != "0123456789abcdef0123456789abcdef" || p.bits != 256 {
		t.Errorf("credited %q with %d bits, %v", p.seed, p.bits, err)
	}
}

func TestEntropyFails(t *testing.T) {
	seed := func() (seed [rdseed.Size]byte, from string, err error) { return seed, "RDSEED", nil }
	none := func() (seed [rdseed.Size]byte, from string, err error) { return seed, "", rdseed.ErrNone }
	disk := config.Config{Storage: &config.Storage{Disk: "images"}}
	net := config.Config{Network: &config.Network{DHCP: true}}
	for _, tt := range []struct {
		name   string
		config config.Config
		pool   fakePool
		source func() ([rdseed.Size]byte, string, error)
		want   string
	}{
		{"no instruction, a disk to encrypt", disk, fakePool{}, none, "neither RDSEED nor RDRAND"},
		{"no instruction, a network", net, fakePool{}, none, "neither RDSEED nor RDRAND"},
		{"no instruction, no keys", config.Config{}, fakePool{}, none, ""},
		{"not credited", config.Config{}, fakePool{creditErr: unix.EPERM}, seed, "RDSEED: operation not permitted"},
		{"never ready", config.Config{}, fakePool{questions: 1e9}, seed, "the kernel gives no random numbers: context deadline exceeded"},
		{"not asked", config.Config{}, fakePool{readyErr: unix.ENOSYS}, seed, "function not implemented"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := newGuest(t, config.Config{})
			s.Config = &tt.config
			wantError(t, s.seedFrom(short(t), &tt.pool, tt.source), tt.want)
			if tt.want == "" && tt.pool.seed != nil {
				t.Error("something was credited")
			}
		})
	}
}

// TestPoolInfo holds the bytes that Linux documents, on a little-endian machine.
func TestPoolInfo(t *testing.T) {
	if got, want := string(poolInfo([]byte("seed"), 256)), "\x00\x01\x00\x00\x04\x00\x00\x00seed"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestEntropyOfKernel does what the agent does in a guest: it harms no machine.
func TestEntropyOfKernel(t *testing.T) {
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "only root may credit entropy")
	}
	s, _ := newGuest(t, config.Config{})
	s.Config = &config.Config{Network: &config.Network{DHCP: true}}
	err := seedRandom(t.Context(), s)
	if err != nil && strings.Contains(err.Error(), "neither") {
		testenv.Missing(t, "rdseed", err.Error())
	}
	if err != nil {
		t.Error(err)
	}
}
