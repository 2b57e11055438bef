package agent

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/workload"
)

// A register is one in which workloads are measured.
type register struct {
	name   string // "PCR 14"
	counts bool   // what it holds is evidence: not so of what can be reset, or of a TPM that nobody asks for
	extend func(workload.Event) error
}

// eventLog is what was extended, as a TCG2 event log.
type eventLog struct{ mu sync.Mutex }

const (
	rtmr3     = tdxMeasured + "/rtmr3:sha384"
	rtmr3Name = "RTMR 3"
)

// eventRegisters are those that this guest has, the one that counts first: RTMR 3 of
// a trust domain, the PCR that the configuration names, its copy.
func (s *State) eventRegisters() (out []register) {
	if s.there(rtmr3) {
		out = append(out, register{rtmr3Name, true, s.extendRTMR})
	}
	if s.TPM == nil || s.Config.Events == nil {
		return out
	}
	out = append(out, s.pcr(s.Config.Events.PCR, !s.tpmOptional()))
	if s.Config.Events.PCR23 {
		out = append(out, s.pcr(workload.CopyPCR, false))
	}
	return out
}

func (s *State) pcr(n int, counts bool) register {
	return register{pcrName(n), counts, func(e workload.Event) error { return s.Extender.ExtendEvent(n, e) }}
}

// hashes are those of a TPM's active banks.
func hashes(t TPM) (out []crypto.Hash) {
	for _, b := range t.Banks() {
		out = append(out, b.Hash)
	}
	return out
}

// rtmrBank is the one that RTMRs have.
const rtmrBank = "sha384"

// extendRTMR extends RTMR 3 by an event.
func (s *State) extendRTMR(e workload.Event) error {
	digest := e.Digest(crypto.SHA384)
	after := func(before values) values {
		h := crypto.SHA384.New()
		h.Write(before[rtmrBank])
		h.Write(digest)
		return values{rtmrBank: h.Sum(nil)}
	}
	record := e.Record(workload.RTMRIndex, crypto.SHA384)
	next := &intent{Register: rtmr3Name, Record: record, logged: func() { s.ccRecords = append(s.ccRecords, record...) }}
	return s.journal().extend(next, after, func() error { return s.machine.extendRTMR(s.path(rtmr3), digest) })
}

// ccLog is what a trust domain was extended by, for whoever replays its registers.
func (s *State) ccLog() (log []byte, err error) {
	err = s.journal().hold(func() error {
		log = bytes.Clone(s.ccRecords)
		return nil
	})
	return log, err
}

// journal makes the extends of all registers.
func (s *State) journal() *wal {
	s.walOnce.Do(func() { s.wal = &wal{root: s.Root, read: s.readRegister} })
	return s.wal
}

// readRegister returns what a register of the journal holds.
func (s *State) readRegister(name string) (values, error) {
	if name == rtmr3Name {
		b, err := s.readFile(rtmr3, int64(crypto.SHA384.Size()))
		if err == nil && len(b) != crypto.SHA384.Size() {
			err = fmt.Errorf("%d bytes, want %d", len(b), crypto.SHA384.Size())
		}
		return values{rtmrBank: b}, err
	}
	var n int
	if _, err := fmt.Sscanf(name, "PCR %d", &n); err != nil {
		return nil, fmt.Errorf("register %.20q: %w", name, err)
	}
	if s.TPM == nil {
		return nil, errNoTPM
	}
	return s.TPM.ReadRegister(n)
}

// measured tells whether evidence of this guest shows what is measured after launch.
func (s *State) measured() bool {
	for _, r := range s.work.registers {
		if r.counts {
			return true
		}
	}
	return false
}

// errLogFull is what a container is told that has measured too much.
var errLogFull = errors.New("the log of events is full")

// measure extends every register by an event, once each. What follows a register that
// could not be extended is not measured either: see wal.
func (s *State) measure(e workload.Event) error {
	s.work.log.mu.Lock()
	defer s.work.log.mu.Unlock()
	if err := s.logHasRoom(e); err != nil {
		return err
	}
	for _, r := range s.work.registers {
		if err := r.extend(e); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// maxRecord is what a record has besides the event: four digests of at most 64 bytes.
const maxRecord = 512

// logHasRoom bounds the log before anything is extended: what came of an event in one
// register must come in all.
func (s *State) logHasRoom(e workload.Event) error {
	fi, err := os.Stat(s.path(eventLogPath))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if need := int64(len(s.work.registers) * (len(e.Text()) + maxRecord)); fi.Size()+need > evidence.MaxWorkloadLog {
		return errLogFull
	}
	return nil
}

// readWorkloadLog returns the log, nil where nothing was measured.
func (s *State) readWorkloadLog() ([]byte, error) {
	b, err := s.readFile(eventLogPath, evidence.MaxWorkloadLog)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// measureWorkloads extends all events of the configuration, in its order, before
// anything of it runs, and before a key for any of it is asked for.
func measureWorkloads(_ context.Context, s *State) error {
	events, err := s.work.config.Events(s.work.admit)
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := s.measure(e); err != nil {
			return err
		}
	}
	return nil
}
