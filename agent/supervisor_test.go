package agent

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"golang.org/x/sys/unix"
)

// The supervisor reaps every child of its process, the test's own among them,
// so each of its tests runs in a process of its own: this program again, with
// the test's name in asPID1. Services are this program as well.
const (
	asPID1    = "PLINTH_TEST_PID1"
	asService = "PLINTH_TEST_SERVICE"
)

func TestMain(m *testing.M) {
	if how := os.Getenv(asService); how != "" {
		os.Exit(service(how))
	}
	os.Exit(m.Run())
}

// service is what a service does. It tells what it sees in the file that the
// first argument names.
func service(how string) int {
	out := os.Args[1]
	switch how {
	case "describe":
		group, _ := unix.Getpgid(0)
		session, _ := unix.Getsid(0)
		dir, _ := os.Getwd()
		text := fmt.Sprintf("args %q\nenv %q\nleader %v %v\ndir %s\nfiles %v\n", os.Args[2:], os.Environ(),
			group == os.Getpid(), session == os.Getpid(), dir, openFiles())
		if os.WriteFile(out, []byte(text), 0o600) != nil {
			return 1
		}
	case "count":
		f, err := os.OpenFile(out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return 1
		}
		fmt.Fprintln(f, os.Getpid())
		return 1
	case "orphan": // leaves a child behind
		cmd := exec.Command("/proc/self/exe", out)
		cmd.Env = []string{asService + "=describe"}
		if cmd.Start() != nil || os.WriteFile(out+".pid", []byte(strconv.Itoa(cmd.Process.Pid)), 0o600) != nil {
			return 1
		}
	case "stubborn":
		signal.Ignore(unix.SIGTERM)
		_ = os.WriteFile(out, nil, 0o600)
		time.Sleep(time.Minute)
	case "parent": // leaves a child behind that does what the second argument says
		cmd := exec.Command("/proc/self/exe", out)
		cmd.Env = []string{asService + "=" + os.Args[2]}
		if cmd.Start() != nil || os.WriteFile(out+".pid", []byte(strconv.Itoa(cmd.Process.Pid)), 0o600) != nil {
			return 1
		}
	case "fail":
		return 7
	case "sleep":
		time.Sleep(time.Minute)
	}
	return 0
}

// openFiles lists what a process has open, without what its own runtime opens:
// a poller, the CPU limits of its control group.
func openFiles() []string {
	var out []string
	names, _ := filepath.Glob("/proc/self/fd/*")
	for _, n := range names {
		if target, err := os.Readlink(n); err == nil && !strings.HasPrefix(target, "anon_inode:") && !strings.HasPrefix(target, "/sys/fs/cgroup/") {
			out = append(out, target)
		}
	}
	return out
}

// pid1 runs f in a process that adopts orphans, as PID 1 does, with a guest that
// has this program as /svc and calls f's services.
func pid1(t *testing.T, f func(t *testing.T, s *State, m *fakeMachine)) {
	t.Helper()
	if os.Getenv(asPID1) == t.Name() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		// The kernel gives PID 1 three files. What the test was given goes no further.
		if err := unix.CloseRange(3, 1<<30, unix.CLOSE_RANGE_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		s, m := newGuest(t, config.Config{})
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		symlink(t, exe, s.path("svc"))
		s.processes.delay = 10 * time.Millisecond
		s.watchSignals()
		f(t, s, m)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), asPID1+"="+t.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// run starts one service that does what how says and returns the file it writes.
func run(t *testing.T, s *State, how string, c config.Service) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	c.Name, c.Exec = how, append([]string{"/svc", out}, c.Exec...)
	if c.Env == nil {
		c.Env = map[string]string{}
	}
	c.Env[asService] = how
	s.Config.Services = []config.Service{c}
	if err := startServices(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually waits for something that another process does.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Errorf("never: %s", what)
}

func state(s *State, name string) string {
	for _, x := range s.processes.services() {
		if x.Name == name {
			return x.State
		}
	}
	return "unknown"
}

// A service sees what the configuration says and nothing of the agent's.
func TestServiceSees(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		t.Setenv("INHERITED", "1")
		out := run(t, s, "describe", config.Service{Exec: []string{"a b", ""}, Env: map[string]string{"Z": "1", "A": "=", "HOME": "/root"}})
		eventually(t, "the service ends", func() bool { return state(s, "describe") == evidence.Exited })
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("args %q\nenv %q\nleader true true\ndir %s\nfiles [/dev/null /dev/null /dev/null]\n", []string{"a b", ""},
			[]string{"A==", "HOME=/root", "PATH=" + baseEnv["PATH"], asService + "=describe", "Z=1"}, s.Root)
		if string(b) != want {
			t.Errorf("got\n%swant\n%s", b, want)
		}
	})
}

func TestServiceStates(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		run(t, s, "sleep", config.Service{})
		run(t, s, "count", config.Service{}) // exits with 1
		s.processes.start(&process{name: "nosuch", service: true, argv: []string{"/nosuch"}})
		s.processes.start(&process{name: "shell", argv: []string{"/nosuch"}})
		eventually(t, "count fails", func() bool { return state(s, "count") == evidence.Failed })
		got := s.processes.services()
		var names []string
		for _, x := range got {
			names = append(names, x.Name+" "+x.State)
		}
		if want := []string{"sleep running", "count failed", "nosuch failed"}; !slices.Equal(names, want) {
			t.Errorf("got %q, want %q", names, want)
		}
		if got[0].PID <= 0 || got[1].PID <= 0 || got[2].PID != 0 {
			t.Errorf("process numbers in %+v", got)
		}
		if err := unix.Kill(got[0].PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a killed service has failed", func() bool { return state(s, "sleep") == evidence.Failed })
	})
}

func TestRestart(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		out := run(t, s, "count", config.Service{Restart: true})
		eventually(t, "the service is started three times", func() bool {
			b, _ := os.ReadFile(out)
			return strings.Count(string(b), "\n") >= 3
		})
		if got := len(s.processes.services()); got != 1 {
			t.Errorf("%d services are reported, want 1", got)
		}
		s.processes.stop(time.Second)
		b, _ := os.ReadFile(out)
		time.Sleep(100 * time.Millisecond)
		if again, _ := os.ReadFile(out); len(again) != len(b) {
			t.Error("a service was restarted after the end")
		}
	})
}

// A service that is to be tried again is, until it ends as it should.
func TestRetry(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		out := run(t, s, "count", config.Service{Retry: true}) // exits with 1
		eventually(t, "a service that failed is started three times", func() bool {
			b, _ := os.ReadFile(out)
			return strings.Count(string(b), "\n") >= 3
		})
		out = run(t, s, "describe", config.Service{Retry: true})
		eventually(t, "the service ends", func() bool { return state(s, "describe") == evidence.Exited })
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if _, err := os.Stat(out); err == nil {
			t.Error("a service was started again after it ended as it should")
		}
	})
}

// A service waits for its path, and is stopped while it waits.
func TestAfter(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		out := run(t, s, "describe", config.Service{After: "/run/socket"})
		run(t, s, "sleep", config.Service{After: "/run/never"})
		time.Sleep(2 * waitPoll)
		if got := state(s, "describe"); got != evidence.Waiting {
			t.Errorf("got %s, want %s", got, evidence.Waiting)
		}
		if _, err := os.Stat(out); err == nil {
			t.Error("a service was started before its path was there")
		}
		mkdir(t, s, "run/socket")
		eventually(t, "the service is started", func() bool { return state(s, "describe") == evidence.Exited })
		s.processes.stop(time.Second)
		mkdir(t, s, "run/never")
		time.Sleep(2 * waitPoll)
		if got := state(s, "sleep"); got != evidence.Waiting {
			t.Errorf("a service was started after the end: %s", got)
		}
	})
}

// What a service leaves behind is PID 1's, and is reaped.
func TestOrphan(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		out := run(t, s, "orphan", config.Service{})
		eventually(t, "the orphan has run", func() bool { _, err := os.Stat(out); return err == nil })
		b, err := os.ReadFile(out + ".pid")
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(string(b))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the orphan is gone, not a zombie", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	})
}

func TestStop(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		run(t, s, "sleep", config.Service{})
		out := run(t, s, "stubborn", config.Service{})
		eventually(t, "the signal is ignored", func() bool { _, err := os.Stat(out); return err == nil })
		s.processes.stop(100 * time.Millisecond)
		eventually(t, "the stubborn service is killed", func() bool { return s.processes.count() == 0 })
		s.processes.start(&process{name: "late", service: true, argv: []string{"/svc"}})
		if got := state(s, "late"); got != "unknown" {
			t.Errorf("a service was started after the end: %s", got)
		}
	})
}

// The signals that ask for an end power the machine off, and others do nothing.
func TestSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGPWR} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			pid1(t, func(t *testing.T, s *State, m *fakeMachine) {
				run(t, s, "sleep", config.Service{})
				for _, other := range []syscall.Signal{unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGABRT} {
					if err := unix.Kill(os.Getpid(), other); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(50 * time.Millisecond)
				if err := unix.Kill(os.Getpid(), sig); err != nil {
					t.Fatal(err)
				}
				if how := <-m.stopped; how != config.PowerOff {
					t.Errorf("got %s, want %s", how, config.PowerOff)
				}
				if n := s.processes.count(); n != 0 {
					t.Errorf("%d processes run on", n)
				}
			})
		})
	}
}
