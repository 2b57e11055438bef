package agent

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/workload"
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
// without a NUL at its end.
func (e *Extender) Extend(pcr int, word string) error {
	digests := map[Bank][]byte{}
	for _, b := range e.tpm.Banks() {
		h := b.Hash.New()
		h.Write([]byte(word))
		digests[b] = h.Sum(nil)
	}
	return e.extend(pcr, word, digests)
}

// ExtendEvent extends register pcr of every active bank with the digest of an event.
func (e *Extender) ExtendEvent(pcr int, event workload.Event) error {
	digests := map[Bank][]byte{}
	for _, b := range e.tpm.Banks() {
		digests[b] = event.Digest(b.Hash)
	}
	return e.extend(pcr, event.Text(), digests)
}

var errNoSHA256 = errors.New("bank sha256 is not active")

// ExtendSHA256 extends register pcr of bank sha256 alone, with a digest that exists
// in no other.
func (e *Extender) ExtendSHA256(pcr int, what string, digest []byte) error {
	banks := e.tpm.Banks()
	i := slices.IndexFunc(banks, func(b Bank) bool { return b.Name == "sha256" })
	if i < 0 {
		return fmt.Errorf("PCR %d with %q: %w", pcr, what, errNoSHA256)
	}
	return e.extend(pcr, what, map[Bank][]byte{banks[i]: digest})
}

// extend records what it does before it does it: a record without an extend is a
// register that does not match, an extend without a record would be a value that
// nobody can explain.
func (e *Extender) extend(pcr int, what string, digests map[Bank][]byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	record := evidence.Extend{PCR: pcr, What: what, Digests: map[string]string{}}
	for b, d := range digests {
		record.Digests[b.Name] = hex.EncodeToString(d)
	}
	e.done = append(e.done, record)
	if err := e.tpm.Extend(pcr, digests); err != nil {
		return fmt.Errorf("PCR %d with %q: %w", pcr, what, err)
	}
	return nil
}

// Done returns the extends so far, in order.
func (e *Extender) Done() []evidence.Extend {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]evidence.Extend{}, e.done...)
}
