package agent

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/workload"
)

// eventLogPath is where CoCo's programs look for the log of events.
// guest-components, attestation-agent/src/eventlog.
const eventLogPath = "/run/attestation-agent/eventlog"

// A register is one in which workloads are measured.
type register struct {
	name   string // "PCR 14"
	index  uint32 // in the log
	hashes []crypto.Hash
	counts bool // what it holds is evidence: not so of what can be reset, or of a TPM that nobody asks for
	extend func(workload.Event) error
}

// eventLog is what was extended, as a TCG2 event log.
type eventLog struct{ mu sync.Mutex }

// eventRegisters are those that this guest has, the one that counts first: RTMR 3 of
// a trust domain, the PCR that the configuration names, its copy.
func (s *State) eventRegisters() (out []register) {
	const rtmr = tdxMeasured + "/rtmr3:sha384"
	if s.there(rtmr) {
		out = append(out, register{"RTMR 3", workload.RTMRIndex, []crypto.Hash{crypto.SHA384}, true, func(e workload.Event) error {
			return s.writeSetting(rtmr, string(e.Digest(crypto.SHA384)))
		}})
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
	r := register{name: fmt.Sprintf("PCR %d", n), index: uint32(n), counts: counts}
	for _, b := range s.TPM.Banks() {
		r.hashes = append(r.hashes, b.Hash)
	}
	r.extend = func(e workload.Event) error { return s.Extender.ExtendEvent(n, e) }
	return r
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

// measure extends every register by an event, once each. The log has it before: see
// Extender.
func (s *State) measure(e workload.Event) error {
	s.work.log.mu.Lock()
	defer s.work.log.mu.Unlock()
	for _, r := range s.work.registers {
		err := s.appendEvent(e.Record(r.index, r.hashes...))
		if err == nil {
			err = r.extend(e)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// appendEvent adds a record to the log. It is the agent's own file in memory: nothing
// is lost in it that the guest outlives.
func (s *State) appendEvent(record []byte) error {
	name := s.path(eventLogPath)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(record)
	return errors.Join(err, f.Close())
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
// anything of it runs.
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
