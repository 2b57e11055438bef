package agent

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/workload"
)

// phasePCR is where boot phases are measured.
// systemd-pcrphase.service(8): "a string into PCR 11".
const phasePCR = 11

// An Extender makes the run-time measurements in a TPM, all of them. It is safe for
// concurrent use.
type Extender struct {
	tpm TPM
	wal *wal // of all registers, those of the platform, too

	// Under wal.mu.
	done []evidence.Extend
	log  []byte // done as TCG2 records, for whoever replays the registers
}

func newExtender(t TPM, w *wal) *Extender { return &Extender{tpm: t, wal: w} }

// eventIPL is EV_IPL: TCG PC Client Platform Firmware Profile 1.06, table 27.
const eventIPL = 0xd

// Extend extends register pcr of every active bank with the digest of word,
// without a NUL at its end.
func (e *Extender) Extend(pcr int, word string) error {
	digests := map[Bank][]byte{}
	for _, b := range e.tpm.Banks() {
		h := b.Hash.New()
		h.Write([]byte(word))
		digests[b] = h.Sum(nil)
	}
	return e.extend(pcr, word, digests, e.record(pcr, digests, word), nil)
}

// ExtendEvent extends register pcr of every active bank with the digest of an event,
// which the log of events has, too.
func (e *Extender) ExtendEvent(pcr int, event workload.Event) error {
	digests := map[Bank][]byte{}
	for _, b := range e.tpm.Banks() {
		digests[b] = event.Digest(b.Hash)
	}
	record := event.Record(uint32(pcr), hashes(e.tpm)...)
	return e.extend(pcr, event.Text(), digests, record, record)
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
	digests := map[Bank][]byte{banks[i]: digest}
	return e.extend(pcr, what, digests, e.record(pcr, digests, what), nil)
}

// record is TCG_PCR_EVENT2 of a word: TCG PC Client Platform Firmware Profile 1.06,
// section 10.2.2.
func (e *Extender) record(pcr int, digests map[Bank][]byte, word string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(pcr))
	b = binary.LittleEndian.AppendUint32(b, eventIPL)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(digests)))
	for _, bank := range e.tpm.Banks() {
		if d, ok := digests[bank]; ok {
			b = append(binary.LittleEndian.AppendUint16(b, uint16(bank.Alg)), d...)
		}
	}
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(word))), word...)
}

// extend makes one. event is what the log of events has of it.
func (e *Extender) extend(pcr int, what string, digests map[Bank][]byte, record, event []byte) error {
	done := evidence.Extend{PCR: pcr, What: what, Digests: map[string]string{}}
	for b, d := range digests {
		done.Digests[b.Name] = hex.EncodeToString(d)
	}
	next := &intent{Register: pcrName(pcr), Record: event, logged: func() {
		e.done = append(e.done, done)
		e.log = append(e.log, record...)
	}}
	after := func(before values) values { return e.fold(before, digests) }
	err := e.wal.extend(next, after, func() error { return e.tpm.Extend(pcr, digests) })
	if err != nil {
		return fmt.Errorf("PCR %d with %q: %w", pcr, what, err)
	}
	return nil
}

// fold is what a register holds behind an extend. A bank without a digest stays.
func (e *Extender) fold(before values, digests map[Bank][]byte) values {
	out := values{}
	for _, b := range e.tpm.Banks() {
		out[b.Name] = before[b.Name]
		if d, ok := digests[b]; ok {
			h := b.Hash.New()
			h.Write(before[b.Name])
			h.Write(d)
			out[b.Name] = h.Sum(nil)
		}
	}
	return out
}

// Done returns the extends so far, in order.
func (e *Extender) Done() []evidence.Extend {
	e.wal.mu.Lock()
	defer e.wal.mu.Unlock()
	return append([]evidence.Extend{}, e.done...)
}

func pcrName(n int) string { return fmt.Sprintf("PCR %d", n) }
