package agent

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/workload"
)

// newFleet is a guest whose containers run, with restarts that do not take long.
func newFleet(t *testing.T, restart string, delay time.Duration) (*State, *fakeSite) {
	t.Helper()
	s, _, f := newWorkloads(t, func(c *config.Config) {
		c.Phases = nil
		c.Workloads.Workloads = []workload.Process{{Name: "web", Image: image("web"), Restart: restart}}
	})
	if err := s.useTPM(s.machine.(*fakeMachine).tpm); err != nil {
		t.Fatal(err)
	}
	s.work.config = s.Config.Workloads
	for _, st := range []func() error{
		func() error { return openStorage(t.Context(), s) },
		func() error { return resolveImages(t.Context(), s) },
		func() error { return fetchImages(t.Context(), s) },
		func() error { return getSecrets(t.Context(), s) },
	} {
		if err := st(); err != nil {
			t.Fatal(err)
		}
	}
	s.work.fleet.delay = delay
	if err := runContainers(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stopContainers(0) })
	return s, f
}

func workloadState(s *State) string { return s.work.fleet.states()[0].State }

func TestContainerRestart(t *testing.T) {
	for _, tt := range []struct {
		name, restart string
		status        syscall.WaitStatus
		again         bool
		state         string
	}{
		{"never, success", "", exited0, false, evidence.Exited},
		{"never, failure", "", exited1, false, evidence.Failed},
		{"on failure, success", workload.RestartFailure, exited0, false, evidence.Exited},
		{"on failure, failure", workload.RestartFailure, exited1, true, ""},
		{"on failure, signal", workload.RestartFailure, syscall.WaitStatus(syscall.SIGSEGV), true, ""},
		{"always, success", workload.RestartAlways, exited0, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, f := newFleet(t, tt.restart, time.Millisecond)
			f.run(t, 1).ended <- tt.status
			if tt.again {
				f.run(t, 2)
				eventually(t, "it runs again", func() bool { return workloadState(s) == evidence.Running })
				f.run(t, 2).ended <- tt.status
				f.run(t, 3)
			} else {
				<-s.work.fleet.all[0].over
				if got := workloadState(s); got != tt.state {
					t.Errorf("it is %s, want %s", got, tt.state)
				}
			}
			lines := f.lines()
			if i := slices.Index(lines, "delete web"); i < 0 || tt.again && slices.Index(lines[i:], "create web") < 0 {
				t.Errorf("got %q, want each run taken away before the next is made", lines)
			}
		})
	}
}

// One that cannot be made anew is tried again, each time later.
func TestContainerBackOff(t *testing.T) {
	s, f := newFleet(t, workload.RestartAlways, time.Millisecond)
	f.mu.Lock()
	f.fail["create web"] = errors.New("boom")
	f.mu.Unlock()
	begin := time.Now()
	f.run(t, 1).ended <- exited1
	f.run(t, 6)
	if took := time.Since(begin); took < (1+2+4+8+16)*time.Millisecond {
		t.Errorf("five tries after %v", took)
	}
	if got := workloadState(s); got != evidence.Failed {
		t.Errorf("it is %s", got)
	}
	f.mu.Lock()
	delete(f.fail, "create web")
	f.mu.Unlock()
	eventually(t, "it runs", func() bool { return workloadState(s) == evidence.Running })
}

// What could not be taken away is taken away before the next run is made.
func TestContainerDropsAgain(t *testing.T) {
	s, f := newFleet(t, workload.RestartAlways, time.Millisecond)
	f.mu.Lock()
	f.fail["delete web"] = errors.New("busy")
	f.mu.Unlock()
	f.run(t, 1).ended <- exited0
	eventually(t, "it is tried again", func() bool {
		return len(slices.DeleteFunc(f.lines(), func(l string) bool { return l != "delete web" })) > 3
	})
	f.mu.Lock()
	delete(f.fail, "delete web")
	n := len(f.runs)
	f.mu.Unlock()
	if n != 1 {
		t.Errorf("%d runs are there at a time", n)
	}
	eventually(t, "it runs", func() bool { return workloadState(s) == evidence.Running })
}

// Each is asked by the signal that its image wants, and ended after the grace.
func TestStopContainers(t *testing.T) {
	s, f := newFleet(t, workload.RestartAlways, time.Millisecond)
	s.stopContainers(time.Minute)
	<-s.work.fleet.all[0].over
	want := []string{"kill web 10", "delete web"} // SIGUSR1
	if got := f.lines(); !slices.Contains(got, want[0]) || slices.Contains(got, "kill web 9") || got[len(got)-1] != want[1] {
		t.Errorf("got %q, want %q at its end", got, want)
	}
	s.stopContainers(time.Minute) // once more does nothing

	s, f = newFleet(t, workload.RestartAlways, time.Millisecond)
	f.run(t, 1).stubborn = true
	s.stopContainers(10 * time.Millisecond)
	<-s.work.fleet.all[0].over
	if got := f.lines(); !slices.Equal(got[len(got)-3:], []string{"kill web 10", "kill web 9", "delete web"}) {
		t.Errorf("got %q", got)
	}
}

// A guest that stops starts nothing again.
func TestStopWhileWaiting(t *testing.T) {
	s, f := newFleet(t, workload.RestartAlways, time.Hour)
	c := s.work.fleet.all[0]
	f.run(t, 1).ended <- exited0
	eventually(t, "it is gone", func() bool { return slices.Contains(f.lines(), "delete web") })
	s.stopContainers(time.Minute)
	select {
	case <-c.over:
	case <-time.After(10 * time.Second):
		t.Error("it waits on")
	}
}

// One that is made or started while the guest stops does not run on.
func TestStopWhileMaking(t *testing.T) {
	for _, at := range []string{"create web", "start web"} {
		s, f := newFleet(t, workload.RestartAlways, time.Millisecond)
		reached, gate := make(chan struct{}), make(chan struct{})
		f.mu.Lock()
		f.hold = map[string]func(){at: func() { close(reached); <-gate }}
		f.mu.Unlock()
		f.run(t, 1).ended <- exited0
		<-reached
		f.mu.Lock()
		f.runs[1].stubborn = true // the signal that it is asked by has no handler yet
		f.mu.Unlock()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			s.stopContainers(time.Minute)
		}()
		eventually(t, "the guest stops", s.work.fleet.ends)
		close(gate)
		select {
		case <-stopped:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it runs on", at)
		}
		got := f.lines()
		starts := slices.DeleteFunc(slices.Clone(got), func(l string) bool { return l != "start web" })
		if got[len(got)-1] != "delete web" || at == "create web" && len(starts) != 1 {
			t.Errorf("%s: got %q", at, got)
		}
	}
}

func TestLabelled(t *testing.T) {
	var b bytes.Buffer
	l := &labelled{w: &b, label: "web"}
	for _, p := range []string{"a\nb", "c\n", "", "\n", strings.Repeat("x", maxLine+1), "\n"} {
		if n, err := l.Write([]byte(p)); err != nil || n != len(p) {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	if got, want := b.String(), "web: a\nweb: bc\nweb: \nweb: "+strings.Repeat("x", maxLine)+"\nweb: x\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The last line of a run is seen, though nothing ends it.
func TestLastLine(t *testing.T) {
	s, _, f := newWorkloads(t, func(c *config.Config) {
		c.Workloads.Workloads = []workload.Process{{Name: "web", Image: image("web"), Output: workload.OutputConsole}}
	})
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	r := f.run(t, 1)
	if _, err := r.out.Write([]byte("one\ntwo")); err != nil {
		t.Fatal(err)
	}
	r.ended <- exited0
	<-s.work.fleet.all[0].over
	if got := s.console.(*lockedBuffer).String(); !strings.Contains(got, "web: one\nweb: two\n") {
		t.Errorf("the console has %q", got)
	}
}

func TestControllers(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	wantError(t, s.enableControllers(), "cgroup.controllers: no such file")
	write(t, s, cgroupRoot+"/cgroup.controllers", "cpu hugetlb\n")
	wantError(t, s.enableControllers(), "controller cpu: ")
	write(t, s, cgroupRoot+"/cgroup.subtree_control", "")
	wantError(t, s.enableControllers(), "")
}
