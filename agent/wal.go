package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Where CoCo's programs look for the log of events, and where its agent keeps what
// it is about to add to it. Both are in memory.
// guest-components, attestation-agent/src/eventlog.
const (
	eventLogPath = "/run/attestation-agent/eventlog"
	walPath      = "/run/attestation-agent/.wal_event_entry"
)

// values are what a register holds, by bank.
type values map[string][]byte

func (v values) equal(w values) bool {
	for bank, b := range v {
		if !bytes.Equal(b, w[bank]) {
			return false
		}
	}
	return len(v) == len(w)
}

// An intent is an extend that was begun: what will be in the log once the register
// has it.
type intent struct {
	Register string `json:"register"` // "PCR 14"
	Before   values `json:"before"`
	After    values `json:"after"`
	Offset   int64  `json:"offset"`           // of Record in the log of events
	Record   []byte `json:"record,omitempty"` // nil: not in that log

	logged func() // it happened
}

// A wal makes extends one after the other, each written down before it is made. An
// error of a register says nothing about whether the register was extended: that is
// read. While it is not known, nothing is extended and nothing is attested.
type wal struct {
	root string // of the guest's file system
	read func(register string) (values, error)

	mu    sync.Mutex
	begun bool // an entry of an agent that ended early was looked for
	open  *intent
	count uint64 // extends that were begun since the guest started
}

// extend makes one by do. What e.After is to be, after tells of what the register
// holds.
func (w *wal) extend(e *intent, after func(values) values, do func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.settle(); err != nil {
		return err
	}
	var err error
	if e.Before, err = w.read(e.Register); err != nil {
		return err
	}
	e.After = after(e.Before)
	if err := w.begin(e); err != nil {
		return err
	}
	w.count++ // now: nobody may rely on the registers of before while it is not known whether they are those still
	if failed := do(); failed != nil {
		happened, err := w.resolve()
		if err != nil || !happened {
			return errors.Join(failed, err)
		}
		return nil // only the answer was lost
	}
	return w.finish()
}

// hold runs f while nothing is extended and no extend is in doubt.
func (w *wal) hold(f func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.settle(); err != nil {
		return err
	}
	return f()
}

// generation changes with every extend, before a register does.
func (w *wal) generation() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// settle ends the entry that is open, if there is one.
func (w *wal) settle() error {
	if !w.begun {
		if err := w.recover(); err != nil {
			return err
		}
		w.begun = true
	}
	_, err := w.resolve()
	return err
}

// recover takes up the entry of an agent that ended within an extend.
func (w *wal) recover() error {
	b, err := os.ReadFile(w.path(walPath))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var e intent
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("%s: %w", walPath, err)
	}
	w.open = &e
	return nil
}

// resolve ends the open entry by what its register holds, and tells whether the
// extend happened. A register that holds neither value was extended by somebody
// else, or in some banks alone: no log explains it, and the entry stays.
func (w *wal) resolve() (happened bool, err error) {
	e := w.open
	if e == nil {
		return false, nil
	}
	now, err := w.read(e.Register)
	switch {
	case err != nil:
		return false, fmt.Errorf("%s: whether it was extended is not known: %w", e.Register, err)
	case now.equal(e.After):
		return true, w.finish()
	case now.equal(e.Before):
		return false, w.drop()
	}
	return false, fmt.Errorf("%s: it holds %x, want %x or, extended, %x", e.Register, now, e.Before, e.After)
}

// begin writes the entry down, whole or not at all.
func (w *wal) begin(e *intent) error {
	if err := os.MkdirAll(filepath.Dir(w.path(walPath)), 0o755); err != nil {
		return err
	}
	if e.Record != nil {
		fi, err := os.Stat(w.path(eventLogPath))
		switch {
		case err == nil:
			e.Offset = fi.Size()
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	part := w.path(walPath + ".part")
	if err := os.WriteFile(part, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(part, w.path(walPath)); err != nil {
		return err
	}
	w.open = e
	return nil
}

// finish logs what happened. After an error it can be done again.
func (w *wal) finish() error {
	e := w.open
	if e.logged != nil {
		e.logged()
		e.logged = nil
	}
	if err := w.log(e); err != nil {
		return err
	}
	return w.drop()
}

// log writes the record where it belongs, whatever came of that before.
func (w *wal) log(e *intent) error {
	if e.Record == nil {
		return nil
	}
	f, err := os.OpenFile(w.path(eventLogPath), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(e.Record, e.Offset)
	return errors.Join(err, f.Close())
}

func (w *wal) drop() error {
	if err := os.Remove(w.path(walPath)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w.open = nil
	return nil
}

func (w *wal) path(name string) string { return filepath.Join(w.root, name) }
