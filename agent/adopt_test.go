package agent

import (
	"context"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/runner"
	"golang.org/x/sys/unix"
)

// command runs this program as a service does.
func command(t *testing.T, s *State, how string, args ...string) runner.Command {
	t.Helper()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	return runner.Command{
		Path: s.path("svc"), Args: append([]string{"svc"}, args...), Env: []string{asService + "=" + how},
		Files: [3]*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
	}
}

func TestRunCommand(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		status, err := s.processes.Run(t.Context(), command(t, s, "nothing", "x"))
		if err != nil || !status.Exited() || status.ExitStatus() != 0 {
			t.Errorf("got %v, %v", status, err)
		}
		c := command(t, s, "nothing", "x")
		c.Path = "/nosuch"
		_, err = s.processes.Run(t.Context(), c)
		wantError(t, err, "/nosuch: no such file")

		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		status, err = s.processes.Run(ctx, command(t, s, "stubborn", s.path("out")))
		wantError(t, err, "deadline")
		if !status.Signaled() || status.Signal() != syscall.SIGKILL {
			t.Errorf("got %v", status)
		}
		_, err = s.processes.Run(ctx, command(t, s, "nothing", "x"))
		wantError(t, err, "deadline")
		if n := len(s.processes.awaited); n != 0 {
			t.Errorf("%d are waited for still", n)
		}
	})
}

// The first process of a container becomes a child when crun ends, and may have
// ended before anybody asks for it.
func TestAdopt(t *testing.T) {
	pid1(t, func(t *testing.T, s *State, _ *fakeMachine) {
		adopt := func(out string) int {
			b, err := os.ReadFile(out + ".pid")
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(string(b))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		out := s.path("lives")
		if _, err := s.processes.Run(t.Context(), command(t, s, "parent", out, "sleep")); err != nil {
			t.Fatal(err)
		}
		pid := adopt(out)
		ended, err := s.processes.Adopt(pid)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.processes.Adopt(pid)
		wantError(t, err, "somebody waits for it already")
		select {
		case status := <-ended:
			t.Errorf("it ended with %v", status)
		case <-time.After(50 * time.Millisecond):
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if status := <-ended; !status.Signaled() || status.Signal() != unix.SIGTERM {
			t.Errorf("it ended with %v", status)
		}
		_, err = s.processes.Adopt(pid)
		wantError(t, err, "not a child")

		out = s.path("ended")
		if _, err := s.processes.Run(t.Context(), command(t, s, "parent", out, "fail")); err != nil {
			t.Fatal(err)
		}
		pid = adopt(out)
		eventually(t, "it is reaped", func() bool {
			s.processes.mu.Lock()
			defer s.processes.mu.Unlock()
			return len(s.processes.strays) > 0
		})
		ended, err = s.processes.Adopt(pid)
		if err != nil {
			t.Fatal(err)
		}
		if status := <-ended; status.ExitStatus() != 7 {
			t.Errorf("it ended with %v", status)
		}
		_, err = s.processes.Adopt(pid)
		wantError(t, err, "not a child")
	})
}

// What is remembered of children that nobody asks for is bounded.
func TestStrays(t *testing.T) {
	v := &supervisor{}
	for i := range maxStrays + 10 {
		v.strayed(i, 0)
	}
	if len(v.strays) != maxStrays || v.strays[0].pid != 10 {
		t.Errorf("%d are remembered, the first is %d", len(v.strays), v.strays[0].pid)
	}
}
