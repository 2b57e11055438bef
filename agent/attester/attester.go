// Package attester asks the platform for evidence of the guest.
package attester

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/google/go-tpm/tpm2/transport"
)

// An Attester asks one device for evidence. It is safe for concurrent use.
type Attester interface {
	TEE() string // of evidence.TEEs, or a device's

	// Evidence returns the device's statement about itself and reportData, in the form
	// that Trustee's verifier of this TEE takes. reportData is fitted to the field of
	// the platform: zeros behind it, or cut.
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
}

// A Device is an additional one, besides the guest's own.
type Device = Attester

// A Snapshot calls read with the whole event log, and the agent measures nothing until
// read has returned: log and registers are of the same moment. Its error is read's or
// its own. read keeps nothing of log.
type Snapshot func(read func(log []byte) error) error

// Shared makes t safe for concurrent use: an answer is that to one's own command.
// What opens a TPM for several users wraps it once, and all of them use what it returns.
func Shared(t transport.TPM) transport.TPM { return &shared{t: t} }

type shared struct {
	mu sync.Mutex
	t  transport.TPM
}

func (s *shared) Send(command []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t.Send(command)
}

// fit makes b n bytes long, the way verifiers do: zeros behind it, or cut.
func fit(b []byte, n int) []byte {
	out := make([]byte, n)
	copy(out, b)
	return out
}
