package agent

import (
	"bytes"
	"testing"

	"github.com/plinth-os/plinth/internal/rdseed"
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
	p := &fakePool{questions: 3}
	err := seedFrom(t.Context(), p, func(seed *[rdseed.Size]byte) (string, error) {
		copy(seed[:], "0123456789abcdef0123456789abcdef")
		return "RDSEED", nil
	})
	if err != nil || string(p.seed) != "0123456789abcdef0123456789abcdef" || p.bits != 256 {
		t.Errorf("credited %q with %d bits, %v", p.seed, p.bits, err)
	}
}

func TestEntropyFails(t *testing.T) {
	seed := func(*[rdseed.Size]byte) (string, error) { return "RDSEED", nil }
	none := func(*[rdseed.Size]byte) (string, error) { return "", rdseed.ErrNone }
	for _, tt := range []struct {
		name   string
		pool   fakePool
		source func(*[rdseed.Size]byte) (string, error)
		want   string
	}{
		{"no instruction", fakePool{}, none, "neither RDSEED nor RDRAND"},
		{"not credited", fakePool{creditErr: unix.EPERM}, seed, "RDSEED: operation not permitted"},
		{"never ready", fakePool{questions: 1e9}, seed, "the kernel gives no random numbers: context deadline exceeded"},
		{"not asked", fakePool{readyErr: unix.ENOSYS}, seed, "function not implemented"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantError(t, seedFrom(short(t), &tt.pool, tt.source), tt.want)
		})
	}
}

// TestPoolInfo holds the bytes that Linux documents, on a little-endian machine.
func TestPoolInfo(t *testing.T) {
	if got, want := string(poolInfo([]byte("seed"), 256)), "\x00\x01\x00\x00\x04\x00\x00\x00seed"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
