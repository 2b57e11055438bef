package agent

import (
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/plinth-os/plinth/evidence"
)

// phasePCR is where boot phases are measured.
// systemd-pcrphase.service(8): "a string into PCR 11".
const phasePCR = 11

// An Extender makes the run-time measurements, all of them. It is safe for
// concurrent use.
type Extender struct {
	mu   sync.Mutex
	tpm  TPM
	done []evidence.Extend
}

// NewExtender returns an Extender of t's active banks.
func NewExtender(t TPM) *Extender { return &Extender{tpm: t} }

// Extend extends register pcr of every active bank with the digest of word,
// without a NUL at its end. It is recorded before it is done: a record without
// an extend is a register that does not match, an extend without a record would
// be a value that nobody can explain.
func (e *Extender) Extend(pcr int, word string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	digests := map[Bank][]byte{}
	record := evidence.Extend{PCR: pcr, What: word, Digests: map[string]string{}}
	for _, b := range e.tpm.Banks() {
		h := b.Hash.New()
		h.Write([]byte(word))
		digests[b] = h.Sum(nil)
		record.Digests[b.Name] = hex.EncodeToString(digests[b])
	}
	e.done = append(e.done, record)
	if err := e.tpm.Extend(pcr, digests); err != nil {
		return fmt.Errorf("PCR %d with %q: %w", pcr, word, err)
	}
	return nil
}

// Done returns the extends so far, in order.
func (e *Extender) Done() []evidence.Extend {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]evidence.Extend{}, e.done...)
}
