package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	// quick are limits for a fake that never answers.
	quick = limits{tpm: 300 * time.Millisecond, greeting: 300 * time.Millisecond, command: 300 * time.Millisecond}
	// brief shortens what is waited for when all else goes well.
	brief = limits{life: time.Second, quit: 300 * time.Millisecond}
)

func noKVM() error  { return errors.New("no KVM in this test") }
func hasKVM() error { return nil }

// fakeMachine is one that the test binary plays with behaviour. At the end of
// the test nothing may be left of it.
func fakeMachine(t *testing.T, behaviour string) Machine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(fakeVariable, behaviour)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // a fake dies at once under -race too
	t.Setenv("PLINTH_SWTPM", self)
	leavesNothing(t)
	return Machine{Binary: self, ReportPort: "org.plinth.report"}
}

// leavesNothing checks at the end of t that it left no process, no file, no
// descriptor and no goroutine.
func leavesNothing(t *testing.T) {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
			t.Errorf("files left: %v", left)
		}
		if left := children(t); len(left) > 0 {
			t.Errorf("processes left: %v", left)
		}
		for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			g, d := runtime.NumGoroutine(), openDescriptors(t)
			if g <= goroutines && d <= descriptors {
				return
			}
			if time.Now().After(deadline) {
				buf := make([]byte, 64<<10)
				t.Errorf("left: %d goroutines (before: %d), %d descriptors (before: %d)\n%s",
					g, goroutines, d, descriptors, buf[:runtime.Stack(buf, true)])
				return
			}
		}
	})
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	return len(list)
}

// children are the processes whose parent is this one.
func children(t *testing.T) []string {
	t.Helper()
	var pids []string
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if parent, state := processStat(path); parent == os.Getpid() {
			pids = append(pids, path+" "+state)
		}
	}
	return pids
}

// processStat reads parent and state from /proc/PID/stat: "pid (name) state ppid ...".
func processStat(path string) (parent int, state string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, "gone"
	}
	rest := string(b[bytes.LastIndexByte(b, ')')+1:])
	fmt.Sscan(rest, &state, &parent)
	return parent, state
}

func closeVM(t *testing.T, v *VM) {
	t.Helper()
	start := time.Now()
	if err := v.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("close took %v", d)
	}
	if err := v.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestReport(t *testing.T) {
	for _, behaviour := range []string{"ok", "slow report", "reports and powers off", "no sandbox", "stubborn", "tpm: ok"} {
		t.Run(behaviour, func(t *testing.T) {
			var console bytes.Buffer
			m := fakeMachine(t, behaviour)
			m.TPM = behaviour == "tpm: ok"
			v, err := Start(t.Context(), m, Options{Accel: "tcg", Console: &console, limits: brief})
			if err != nil {
				t.Fatal(err)
			}
			report, err := v.Report(t.Context())
			if err != nil || string(report) != "{}" {
				t.Errorf("report: got %q, %v, want {}", report, err)
			}
			if v.Version() != "9.8.7" || v.Accel() != "tcg" {
				t.Errorf("got version %s, acceleration %s", v.Version(), v.Accel())
			}
			if got, want := slices.Contains(v.Args(), "-sandbox"), behaviour != "no sandbox"; got != want {
				t.Errorf("sandbox: got %v, want %v", got, want)
			}
			closeVM(t, v)
			if !strings.Contains(console.String(), "\x1b[31mline") || console.String() != v.ConsoleTail() {
				t.Errorf("console: got %q, tail %q", console.String(), v.ConsoleTail())
			}
		})
	}
}

func TestPaths(t *testing.T) {
	m := fakeMachine(t, "ok")
	t.Chdir(t.TempDir())
	if err := os.WriteFile("vars:1", []byte("variables"), 0o444); err != nil {
		t.Fatal(err)
	}
	m.Vars, m.Disk = "vars:1", "disk:1"
	v, err := Start(t.Context(), m, Options{Accel: "tcg", limits: brief})
	if err != nil {
		t.Fatal(err)
	}
	defer closeVM(t, v)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	args, private := strings.Join(v.Args(), " "), v.run.dir.file("vars.fd")
	for _, want := range []string{"file.filename=" + filepath.Join(here, "disk:1"), "file=" + private} {
		if !strings.Contains(args, want+" ") {
			t.Errorf("arguments %s: want %s", args, want)
		}
	}
	if b, err := os.ReadFile(private); string(b) != "variables" || err != nil {
		t.Errorf("variables: got %q, %v", b, err)
	}
	if f, err := os.OpenFile(private, os.O_RDWR, 0); err != nil {
		t.Errorf("variables: %v, want a file that the guest can write", err)
	} else {
		f.Close()
	}
}

// A guest that ends, or a QEMU that misbehaves, once the guest runs.
func TestNoReport(t *testing.T) {
	for behaviour, want := range map[string]struct{ state, reason string }{
		"powers off":      {"powered off", ""},
		"resets":          {"reset", ""},
		"panics":          {"panicked", ""},
		"lingers":         {"powered off", ""},
		"internal error":  {"halted: internal-error", ""},
		"crashes":         {"QEMU ended", "exit status 1: fake: crashed"},
		"garbage":         {"QMP ended", "invalid character"},
		"unasked":         {"QMP ended", "an answer to no command"},
		"tpm: dies later": {"swtpm ended", "exit status 1: fake: died later"},
		"half a report":   {"powered off", ""},
		"endless report":  {"running", "report of 4294967295 bytes: want at most 16777216"},
		"stalls":          {"stopped after 500ms", "deadline exceeded"},
		"silent":          {"stopped after 500ms", "deadline exceeded"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			options := Options{Accel: "tcg", limits: brief}
			if strings.HasPrefix(want.state, "stopped after") {
				options.Timeout = 500 * time.Millisecond
			}
			m := fakeMachine(t, behaviour)
			m.TPM = strings.HasPrefix(behaviour, "tpm:")
			v, err := Start(t.Context(), m, options)
			if err != nil {
				t.Fatal(err)
			}
			_, err = v.Report(t.Context())
			closeVM(t, v)
			var noReport *NoReportError
			if !errors.As(err, &noReport) {
				t.Fatalf("got %v, want a *NoReportError", err)
			}
			if noReport.State != want.state {
				t.Errorf("state: got %q, want %q", noReport.State, want.state)
			}
			if (noReport.Err == nil) != (want.reason == "") || !strings.Contains(err.Error(), want.reason) {
				t.Errorf("got %v, want reason %q", err, want.reason)
			}
			if lines := []string{"first line", "last line"}; behaviour != "silent" && want.state != "running" && !slices.Equal(noReport.Console, lines) {
				t.Errorf("console: got %q, want %q", noReport.Console, lines)
			}
		})
	}
}

// What fails before the guest runs.
func TestStartFails(t *testing.T) {
	for behaviour, want := range map[string]string{
		"exit":               "exit status 1: fake: cannot open the disk",
		"hang":               "no greeting within 300ms",
		"deaf":               "qmp_capabilities: no answer within 300ms",
		"refuses cont":       "cont: GenericError: no",
		"dies at cont":       "exit status 1: fake: assertion failed",
		"garbage greeting":   "QMP: invalid character",
		"endless greeting":   "token too long",
		"tpm: exit":          "exit status 1: fake: no such state",
		"tpm: hang":          "control command 0x1: answer: ",
		"tpm: refuses":       "control command 0x2: result 0x9",
		"tpm: error":         "TPM command 0x12b: response code 0x123",
		"tpm: no allocation": "want allocationSuccess",
		"tpm: endless":       "TPM command 0x144: answer of 4294967295 bytes",
		"tpm: dies":          "exit status 1: fake: died",
	} {
		t.Run(behaviour, func(t *testing.T) {
			m := fakeMachine(t, behaviour)
			m.TPM = strings.HasPrefix(behaviour, "tpm:")
			options := Options{Accel: "tcg", limits: brief}
			if slices.Contains([]string{"hang", "deaf", "tpm: hang"}, behaviour) {
				options.limits = quick
			}
			start := time.Now()
			_, err := Start(t.Context(), m, options)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if d := time.Since(start); d > 4*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestAccel(t *testing.T) {
	for _, test := range []struct {
		behaviour, accel string
		openKVM          func() error
		want, logged     string
	}{
		{"ok/ok", "auto", hasKVM, "kvm", ""},
		{"ok/ok", "", noKVM, "tcg", "no KVM (no KVM in this test); using TCG"},
		{"exit/ok", "auto", hasKVM, "tcg", "fake: cannot open the disk"},
		{"dies at cont/ok", "auto", hasKVM, "tcg", "exit status 1: fake: assertion failed); going on with TCG"},
		{"silent/ok", "auto", hasKVM, "tcg", "(nothing on the console within 1s); going on with TCG"},
		{"silent internal error/ok", "auto", hasKVM, "tcg", "(halted: internal-error); going on with TCG"},
		{"resets/resets", "auto", hasKVM, "kvm", ""},                           // the guest's doing, after a sign of life
		{"internal error/ok", "auto", hasKVM, "tcg", "halted: internal-error"}, // after a sign of life
		{"crashes/ok", "auto", hasKVM, "tcg", "fake: crashed"},
		{"silent/ok", "tcg", hasKVM, "tcg", ""},
	} {
		t.Run(test.behaviour+" "+test.accel, func(t *testing.T) {
			var log strings.Builder
			v, err := Start(t.Context(), fakeMachine(t, test.behaviour), Options{Accel: test.accel, openKVM: test.openKVM, limits: brief,
				Logf: func(format string, args ...any) { fmt.Fprintf(&log, format+"\n", args...) }})
			if err != nil {
				t.Fatal(err)
			}
			_, err = v.Report(t.Context())
			if wantErr := strings.HasPrefix(test.behaviour, "resets"); (err != nil) != wantErr {
				t.Errorf("report: %v", err)
			}
			if v.Accel() != test.want {
				t.Errorf("acceleration: got %s, want %s", v.Accel(), test.want)
			}
			closeVM(t, v)
			if got := log.String(); !strings.Contains(got, test.logged) || (got == "") != (test.logged == "") {
				t.Errorf("log: got %q, want %q", got, test.logged)
			}
		})
	}
}

func TestAccelForced(t *testing.T) {
	m := fakeMachine(t, "internal error/ok")
	_, err := Start(t.Context(), m, Options{Accel: "kvm", openKVM: noKVM, limits: brief})
	var missing *MissingToolError
	if !errors.As(err, &missing) || missing.Tool != "/dev/kvm" {
		t.Errorf("without KVM: got %v, want a *MissingToolError for /dev/kvm", err)
	}
	if _, err := Start(t.Context(), m, Options{Accel: "hvf", limits: brief}); err == nil {
		t.Error("acceleration hvf: got no error")
	}
	v, err := Start(t.Context(), m, Options{Accel: "kvm", openKVM: hasKVM, limits: brief})
	if err != nil {
		t.Fatal(err)
	}
	defer closeVM(t, v)
	var noReport *NoReportError
	if _, err := v.Report(t.Context()); !errors.As(err, &noReport) || noReport.State != "halted: internal-error" {
		t.Errorf("got %v, want the internal error and no fall-back", err)
	}
}

// A Ctrl-C at any moment: in a wait of Start, in Report, in Wait.
func TestCancel(t *testing.T) {
	for _, behaviour := range []string{"hang", "deaf", "silent", "stalls", "tpm: hang"} {
		t.Run(behaviour, func(t *testing.T) {
			m := fakeMachine(t, behaviour)
			m.TPM = behaviour == "tpm: hang"
			ctx, cancel := context.WithCancel(t.Context())
			defer time.AfterFunc(150*time.Millisecond, cancel).Stop()
			start := time.Now()
			v, err := Start(ctx, m, Options{Accel: "tcg"})
			if err == nil {
				_, err = v.Report(t.Context())
				closeVM(t, v)
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestWaitAndPowerButton(t *testing.T) {
	v, err := Start(t.Context(), fakeMachine(t, "ok"), Options{Accel: "tcg", limits: brief})
	if err != nil {
		t.Fatal(err)
	}
	defer closeVM(t, v)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := v.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: got %v, want the deadline", err)
	}
	if status, err := v.Status(t.Context()); status != "running" || err != nil {
		t.Errorf("status: got %q, %v", status, err)
	}
	if err := v.PowerButton(t.Context()); err != nil {
		t.Error(err)
	}
	if state, err := v.Wait(t.Context()); state != "powered off" || err != nil {
		t.Errorf("wait: got %q, %v, want powered off", state, err)
	}
}

func TestType(t *testing.T) {
	v, err := Start(t.Context(), fakeMachine(t, "echo"), Options{Accel: "tcg", limits: brief})
	if err != nil {
		t.Fatal(err)
	}
	defer closeVM(t, v)
	if err := v.Type([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(v.ConsoleTail(), "typed"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("console: got %q", v.ConsoleTail())
		}
	}
}

// A terminal that was stopped takes no output; Close still ends.
func TestConsoleBlocks(t *testing.T) {
	m := fakeMachine(t, "ok")
	release := make(blocked)
	v, err := Start(t.Context(), m, Options{Accel: "tcg", Console: release, limits: brief})
	if err != nil {
		t.Fatal(err)
	}
	closeVM(t, v)
	close(release)
}

type blocked chan struct{}

func (b blocked) Write(p []byte) (int, error) {
	<-b
	return len(p), nil
}

func TestMissingTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("PLINTH_QEMU", "")
	t.Setenv("PLINTH_SWTPM", "")
	var missing *MissingToolError
	if _, err := Start(t.Context(), Machine{}, Options{}); !errors.As(err, &missing) ||
		missing.Tool != "qemu-system-x86_64" || !strings.Contains(missing.Hint, "qemu-system-x86") {
		t.Errorf("QEMU: got %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Machine{Binary: self, TPM: true}, Options{}); !errors.As(err, &missing) ||
		missing.Tool != "swtpm" || !strings.Contains(missing.Hint, "package swtpm") {
		t.Errorf("swtpm: got %v", err)
	}
}
