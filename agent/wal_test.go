package agent

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/tests/swtpm"
	"github.com/plinth-os/plinth/workload"
)

// A faultyTPM fails where it is told to.
type faultyTPM struct {
	TPM
	extend func(next func() error) error // around an extend
	read   error
}

func (f *faultyTPM) Extend(pcr int, digests map[Bank][]byte) error {
	next := func() error { return f.TPM.Extend(pcr, digests) }
	if f.extend == nil {
		return next()
	}
	return f.extend(next)
}

func (f *faultyTPM) ReadRegister(pcr int) (values, error) {
	if f.read != nil {
		return nil, f.read
	}
	return f.TPM.ReadRegister(pcr)
}

// newFaulty is a guest with such a TPM on top of a fake.
func newFaulty(t *testing.T) (*State, *faultyTPM) {
	return newFaultyOn(t, newFakeTPM("sha1", "sha256"))
}

func newFaultyOn(t *testing.T, chip transport.TPM) (*State, *faultyTPM) {
	t.Helper()
	s, _ := newGuest(t, config.Config{Events: &config.Events{PCR: 14}})
	if err := s.useTPM(chip); err != nil {
		t.Fatal(err)
	}
	f := &faultyTPM{TPM: s.TPM}
	s.TPM, s.Extender.tpm = f, f
	s.work.registers = s.eventRegisters()
	return s, f
}

var (
	errLost = errors.New("the answer was lost")
	first   = workload.Event{Domain: "example.com", Operation: "first", Content: "{}"}
	second  = workload.Event{Domain: "example.com", Operation: "second", Content: "{}"}
)

// agree compares the register with both logs.
func agree(t *testing.T, s *State, want ...workload.Event) {
	t.Helper()
	pcrs, err := s.TPM.(*faultyTPM).TPM.Read()
	if err != nil {
		t.Fatal(err)
	}
	if got := pcrs["sha256"][14]; got != fold(want) {
		t.Errorf("PCR 14 is %s, want %s after %d events", got, fold(want), len(want))
	}
	var records []byte
	for _, e := range want {
		records = append(records, e.Record(14, hashes(s.TPM)...)...)
	}
	if log, err := s.readWorkloadLog(); err != nil || !bytes.Equal(log, records) {
		t.Errorf("the log of events has %q, %v, want %q", log, err, records)
	}
	if !bytes.Equal(s.Extender.log, records) || len(s.Extender.Done()) != len(want) {
		t.Errorf("the log for evidence has %q, want %q", s.Extender.log, records)
	}
}

// Whatever goes wrong with an extend: afterwards register and logs agree, or nothing
// more is extended and nothing attested.
func TestWriteAhead(t *testing.T) {
	lost := func(next func() error) error { return errors.Join(next(), errLost) }
	refused := func(func() error) error { return errLost }
	for _, tt := range []struct {
		name  string
		fault func(*State, *faultyTPM)
		mend  func(*State, *faultyTPM) // before the next extend
		want  string                   // of the extend
		then  string                   // of the next one
		after []workload.Event
	}{
		{"nothing", func(*State, *faultyTPM) {}, nil, "", "", []workload.Event{first, second}},
		{"refused", func(_ *State, f *faultyTPM) { f.extend = refused }, nil, "the answer was lost", "", []workload.Event{second}},
		{"answer lost", func(_ *State, f *faultyTPM) { f.extend = lost }, nil, "", "", []workload.Event{first, second}},
		{"not readable before", func(_ *State, f *faultyTPM) { f.read = errLost }, nil, "the answer was lost", "", []workload.Event{second}},
		{"refused, and not readable until later", func(_ *State, f *faultyTPM) {
			f.extend = func(func() error) error { f.read = errLost; return errLost }
		}, nil, "whether it was extended is not known", "", []workload.Event{second}},
		{"answer lost, and not readable until later", func(_ *State, f *faultyTPM) {
			f.extend = func(next func() error) error { f.read = errLost; return errors.Join(next(), errLost) }
		}, nil, "whether it was extended is not known", "", []workload.Event{first, second}},
		{"not readable behind a success", func(_ *State, f *faultyTPM) {
			f.extend = func(next func() error) error { f.read = errLost; return next() }
		}, func(_ *State, f *faultyTPM) { f.extend = refused; f.read = errLost }, "", "the answer was lost", []workload.Event{first}},
		{"extended by another", func(s *State, f *faultyTPM) {
			f.extend = func(func() error) error {
				return errors.Join(f.TPM.Extend(14, map[Bank][]byte{knownBanks[1]: make([]byte, 32)}), errLost)
			}
		}, nil, "it holds", "it holds", nil},
		{"extended in one bank", func(s *State, f *faultyTPM) {
			f.extend = func(func() error) error {
				return errors.Join(f.TPM.Extend(14, map[Bank][]byte{knownBanks[1]: first.Digest(knownBanks[1].Hash)}), errLost)
			}
		}, nil, "it holds", "it holds", nil},
		{"no place for the entry", func(s *State, _ *faultyTPM) { block(t, s, walPath+".part") }, func(s *State, _ *faultyTPM) { unblock(t, s, walPath+".part") },
			"is a directory", "", []workload.Event{second}},
		{"no place for the log", func(s *State, f *faultyTPM) {
			f.extend = func(next func() error) error { block(t, s, eventLogPath); return next() }
		}, func(s *State, _ *faultyTPM) { unblock(t, s, eventLogPath) }, "is a directory", "", []workload.Event{first, second}},
		{"entry cannot be taken away", func(s *State, f *faultyTPM) {
			f.extend = func(next func() error) error {
				err := next()
				unblock(t, s, walPath)
				block(t, s, walPath+"/x")
				return err
			}
		}, func(s *State, _ *faultyTPM) { unblock(t, s, walPath) }, "directory not empty", "", []workload.Event{first, second}},
	} {
		try := func(t *testing.T, chip transport.TPM) {
			s, f := newFaultyOn(t, chip)
			tt.fault(s, f)
			wantError(t, s.measure(first), tt.want)
			if pcr, err := f.TPM.ReadRegister(14); err != nil || !bytes.Equal(pcr["sha256"], make([]byte, 32)) && s.journal().generation() == 0 {
				t.Errorf("a register was extended, and what was attested before holds: %v", err)
			}
			f.extend, f.read = nil, nil
			if tt.mend != nil {
				tt.mend(s, f)
			}
			wantError(t, s.measure(second), tt.then)
			f.read = nil
			err := s.snapshot(func([]byte) error { return nil })
			if tt.after == nil {
				if err == nil {
					t.Error("a register that no log explains was attested")
				}
				return
			}
			wantError(t, err, "")
			agree(t, s, tt.after...)
			if s.there(walPath) {
				t.Error("an entry is left")
			}
		}
		t.Run(tt.name, func(t *testing.T) { try(t, newFakeTPM("sha1", "sha256")) })
		t.Run(tt.name+", swtpm", func(t *testing.T) {
			try(t, swtpm.Start(t, "").Open(t))
		})
	}
}

// block puts a directory where a file is to be.
func block(t *testing.T, s *State, name string) {
	t.Helper()
	mkdir(t, s, name)
}

func unblock(t *testing.T, s *State, name string) {
	t.Helper()
	if err := os.RemoveAll(s.path(name)); err != nil {
		t.Error(err)
	}
}

// An agent that ended within an extend left the entry: the next one has it end.
func TestWriteAheadCrash(t *testing.T) {
	crash := errors.New("crash")
	for _, tt := range []struct {
		name     string
		extended bool
		logged   int // bytes of the record that were written
		want     []workload.Event
	}{
		{"before the extend", false, 0, []workload.Event{first, second}},
		{"behind the extend", true, 0, []workload.Event{first, first, second}},
		{"within the log", true, 20, []workload.Event{first, first, second}},
		{"behind the log", true, 1 << 20, []workload.Event{first, first, second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, f := newFaulty(t)
			wantError(t, s.measure(first), "")
			f.extend = func(next func() error) error {
				if tt.extended {
					if err := next(); err != nil {
						t.Fatal(err)
					}
				}
				panic(crash)
			}
			func() {
				defer func() { _ = recover() }()
				_ = s.measure(first)
			}()
			record := first.Record(14, hashes(s.TPM)...)
			b, err := s.readWorkloadLog()
			if err != nil {
				t.Fatal(err)
			}
			write(t, s, eventLogPath, string(append(b, record[:min(tt.logged, len(record))]...)))

			f.extend = nil
			s.wal, s.walOnce = nil, sync.Once{}
			s.Extender = newExtender(f, s.journal())
			wantError(t, s.measure(second), "")
			var want []byte
			for _, e := range tt.want {
				want = append(want, e.Record(14, hashes(s.TPM)...)...)
			}
			if log, err := s.readWorkloadLog(); err != nil || !bytes.Equal(log, want) {
				t.Errorf("the log has %q, %v, want %q", log, err, want)
			}
			pcrs, err := f.TPM.Read()
			if err != nil || pcrs["sha256"][14] != fold(tt.want) {
				t.Errorf("PCR 14 is %s, %v, want %s", pcrs["sha256"][14], err, fold(tt.want))
			}
		})
	}
}

// What is in the entry's place and is none ends measuring.
func TestWriteAheadForeign(t *testing.T) {
	for content, want := range map[string]string{
		"x": walPath, `{"register":"PCR 99","before":{},"after":{}}`: "PCR 99", `{"register":"x","before":{},"after":{}}`: `register "x"`,
	} {
		s, _ := newFaulty(t)
		write(t, s, walPath, content)
		for range 2 {
			wantError(t, s.measure(first), want)
		}
	}
}

// The log for evidence has every extend, and its events replay to the registers: that
// is compared in TestAttestation. Nothing is extended while it is read.
func TestSnapshot(t *testing.T) {
	s, _ := newFaulty(t)
	write(t, s, "/sys/kernel/security/tpm0/binary_bios_measurements", "firmware")
	if err := s.Extender.Extend(11, "ready"); err != nil {
		t.Fatal(err)
	}
	extended := make(chan error, 1)
	err := s.snapshot(func(log []byte) error {
		if !strings.HasPrefix(string(log), "firmware\x0b\x00\x00\x00\x0d\x00\x00\x00\x02\x00\x00\x00") || !strings.HasSuffix(string(log), "\x05\x00\x00\x00ready") {
			t.Errorf("the log is %q", log)
		}
		go func() { extended <- s.measure(first) }()
		select {
		case err := <-extended:
			t.Errorf("extended while a quote is made: %v", err)
		case <-short(t).Done():
		}
		return nil
	})
	wantError(t, err, "")
	wantError(t, <-extended, "")
	boom := errors.New("boom")
	if err := s.snapshot(func([]byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
}

// A log that is full takes no more, and then nothing is extended.
func TestLogFull(t *testing.T) {
	s, _ := newFaulty(t)
	write(t, s, eventLogPath, strings.Repeat("x", 1<<20-100))
	if err := s.measure(first); !errors.Is(err, errLogFull) {
		t.Errorf("got %v", err)
	}
	if n := len(s.Extender.Done()); n != 0 {
		t.Errorf("%d extends", n)
	}
}

// RTMR 3 by the same journal: a write that fails is read back.
func TestRTMRFails(t *testing.T) {
	s, m := newGuest(t, config.Config{})
	write(t, s, rtmr3, string(make([]byte, 48)))
	s.work.registers = s.eventRegisters()
	m.rtmrErr = errLost
	wantError(t, s.measure(first), "RTMR 3: the answer was lost")
	m.rtmrErr = nil
	wantError(t, s.measure(second), "")
	if log, err := s.readWorkloadLog(); err != nil || strings.Count(string(log), "LEAA") != 1 {
		t.Errorf("the log has %q, %v", log, err)
	}
	write(t, s, rtmr3, "short")
	wantError(t, s.measure(second), "RTMR 3: 5 bytes, want 48")
}
