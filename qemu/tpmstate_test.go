package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/tests/swtpm"
)

// A TPM's state is made when it is not there, and belongs to one machine at a time.
func TestTPMDir(t *testing.T) {
	state := filepath.Join(t.TempDir(), "a", "tpm")
	newRun := func() *run {
		dir, err := newRunDir()
		if err != nil {
			t.Fatal(err)
		}
		r := &run{dir: dir}
		t.Cleanup(func() { r.close() })
		return r
	}
	first, second, third := newRun(), newRun(), newRun()
	if dir, err := first.tpmDir(state); dir != state || err != nil {
		t.Fatalf("got %s, %v, want %s", dir, err, state)
	}
	if fi, err := os.Stat(state); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
	if _, err := second.tpmDir(state); err == nil || !strings.Contains(err.Error(), "TPM state "+state+": another machine runs with it") {
		t.Errorf("a second machine: %v", err)
	}
	if dir, err := third.tpmDir(""); err != nil || filepath.Dir(dir) != third.dir.path {
		t.Errorf("no state: got %s, %v", dir, err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.tpmDir(state); err != nil {
		t.Errorf("the first is over: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := third.tpmDir(file); err == nil || !strings.Contains(err.Error(), "qemu: TPM state: ") {
		t.Errorf("a file: %v", err)
	}
}

// Two boots with one state have one attestation key; a third without has another.
func TestTPMState(t *testing.T) {
	m := hostMachine(t)
	testenv.Need(t, "swtpm")
	m.TPM, m.TPMState = true, filepath.Join(t.TempDir(), "tpm")
	var keys [][]byte
	for range 2 {
		v, err := Start(t.Context(), m, Options{Accel: "tcg", Logf: t.Logf})
		if err != nil {
			t.Fatal(err)
		}
		awaitFirmware(t, v)
		if _, err := os.Stat(v.current().dir.file("tpm")); !os.IsNotExist(err) {
			t.Errorf("the run has a state of its own: %v", err)
		}
		closeVM(t, v)
		keys = append(keys, swtpm.AK(t, m.TPMState))
	}
	if !bytes.Equal(keys[0], keys[1]) {
		t.Errorf("attestation keys of two boots: %x, %x", keys[0], keys[1])
	}
	if fresh := swtpm.AK(t, ""); bytes.Equal(fresh, keys[0]) {
		t.Error("a fresh TPM has the same key")
	}
}
