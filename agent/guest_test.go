package agent

import (
	"bytes"
	"context"
	"crypto/sha512"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/dm"
)

// fakeMachine stands in for what only PID 1 of a guest may do.
type fakeMachine struct {
	mu       sync.Mutex
	mounted  []string
	loaded   []string
	loadErr  error
	loadErrs map[string]error // by file name; else loadErr
	mountErr map[string]error
	tpm      transport.TPM
	stopped  chan string

	created   []dm.Target
	createErr func(dm.Target) error
	removed   int
	entered   string
	raised    []string
	raiseErr  error

	unmounted []string
	tdreport  []byte
	reports   func(provider string) ([]byte, error)
	rtmrErr   error
}

func (m *fakeMachine) mount(x mount, target string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounted = append(m.mounted, x.fstype)
	return m.mountErr[x.fstype]
}

func (m *fakeMachine) loadModule(f *os.File, params string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loaded = append(m.loaded, strings.TrimSpace(filepath.Base(f.Name())+" "+params))
	if err, ok := m.loadErrs[filepath.Base(f.Name())]; ok {
		return err
	}
	return m.loadErr
}

func (m *fakeMachine) openTPM(device string) (transport.TPM, error) {
	if m.tpm == nil {
		return nil, fs.ErrNotExist
	}
	return m.tpm, nil
}

// stop ends the goroutine, as the real one does not return either.
func (m *fakeMachine) stop(how string) error {
	m.stopped <- how
	runtime.Goexit()
	return nil
}

// lockedBuffer is a console that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newGuest returns a State whose file system is a temporary folder that looks
// like a freshly booted guest, and whose machine is a fake with a TPM.
func newGuest(t *testing.T, c config.Config) (*State, *fakeMachine) {
	t.Helper()
	c.Schema = config.Schema
	m := &fakeMachine{tpm: newFakeTPM("sha1", "sha256"), stopped: make(chan string, 1)}
	s := &State{Root: t.TempDir(), console: &lockedBuffer{}, machine: m}
	s.Report.Schema = evidence.ReportSchema
	s.processes = newSupervisor(s)
	b, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, config.Path, string(b))
	write(t, s, "proc/cmdline", c.Cmdline+"\n")
	write(t, s, "proc/sys/kernel/osrelease", "6.12.0-test\n")
	for _, l := range locks {
		write(t, s, l.file, "unset")
	}
	mkdir(t, s, "dev")
	for _, d := range []string{"null", "console"} {
		if err := os.Symlink("/dev/null", s.path("dev/"+d)); err != nil {
			t.Fatal(err)
		}
	}
	s.Config = &c
	return s, m
}

func write(t *testing.T, s *State, name, content string) {
	t.Helper()
	mkdir(t, s, filepath.Dir(name))
	if err := os.WriteFile(s.path(name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, s *State, name string) {
	t.Helper()
	if err := os.MkdirAll(s.path(name), 0o755); err != nil {
		t.Fatal(err)
	}
}

// short is a context for stages that wait for what will not come.
func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("got error %v, want none", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("got error %v, want %q", err, want)
	}
}

func (m *fakeMachine) createDevice(name string, table dm.Target) (string, error) {
	m.created = append(m.created, table)
	if m.createErr != nil {
		return "", m.createErr(table)
	}
	return "/dev/dm-0", nil
}

func (m *fakeMachine) removeDevice(string) error {
	m.removed++
	return nil
}

func (m *fakeMachine) table(string) (dm.Target, error) { return m.created[len(m.created)-1], nil }

func (m *fakeMachine) enter(root string, carried []string) error {
	m.entered = root
	return nil
}

func (m *fakeMachine) raise(link string) error {
	m.raised = append(m.raised, link)
	return m.raiseErr
}

func (m *fakeMachine) unmount(target string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unmounted = append(m.unmounted, target)
	entries, _ := os.ReadDir(target) // what the mount showed goes with it
	for _, e := range entries {
		_ = os.RemoveAll(filepath.Join(target, e.Name()))
	}
	return nil
}

func (m *fakeMachine) tdReport(string) ([]byte, error) {
	if m.tdreport == nil {
		return nil, fs.ErrNotExist
	}
	return m.tdreport, nil
}

// extendRTMR does what the kernel does with what is written.
func (m *fakeMachine) extendRTMR(file string, d []byte) error {
	if m.rtmrErr != nil {
		return m.rtmrErr
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	sum := sha512.Sum384(append(b, d...))
	return os.WriteFile(file, sum[:], 0o600)
}

func (m *fakeMachine) report(_, provider string, _ []byte) ([]byte, error) {
	if m.reports == nil {
		return nil, fs.ErrNotExist
	}
	return m.reports(provider)
}
