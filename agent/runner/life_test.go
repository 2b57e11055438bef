package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/workload"
)

func args(words ...string) workload.Process { return workload.Process{Args: words} }

func alive(c *Container) bool { return unix.Kill(c.PID(), 0) == nil }

// TestLife goes through the whole of it, and once more under the same name.
func TestLife(t *testing.T) {
	r := newRunner(t)
	for range 2 {
		var out buffer
		s := spec(t, "life", "base", args("wait", "7"))
		s.Output = &out
		c := create(t, r, s)
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := c.Wait(short); !errors.Is(err, context.DeadlineExceeded) || !alive(c) || out.String() != "" {
			t.Fatalf("before the start: %v, %q", err, out.String())
		}
		if _, err := r.Create(t.Context(), s); err == nil || !strings.Contains(err.Error(), "of this name") {
			t.Errorf("a second one of the name: %v", err)
		}
		start(t, c)
		eventually(t, "the program", func() bool { return strings.Contains(out.String(), "waiting") })
		if err := c.Start(patience(t)); err == nil {
			t.Error("started twice")
		}
		if err := c.Kill(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for range 2 { // whoever asks, and as often as they do
			if status := wait(t, c); status.ExitStatus() != 7 || status.Signaled() {
				t.Errorf("status %#x, want exit 7", int(status))
			}
		}
		if got := out.String(); got != "waiting\ngot terminated\n" {
			t.Errorf("printed %q", got)
		}
		if err := c.Kill(t.Context(), unix.SIGTERM); !errors.Is(err, ErrEnded) {
			t.Errorf("a signal after the end: %v", err)
		}
		for range 2 {
			if err := c.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Kill(t.Context(), unix.SIGKILL); !errors.Is(err, ErrEnded) {
			t.Errorf("a signal after Delete: %v", err)
		}
	}
}

// The next container of a name has nothing of the one before.
func TestFresh(t *testing.T) {
	r := newRunner(t)
	if out, _ := run(t, r, spec(t, "fresh", "base", args("write", "/kept", "1"))); out != "1 written\n" {
		t.Errorf("got %q", out)
	}
	if out, _ := run(t, r, spec(t, "fresh", "base", args("open", "/kept", "0"))); out != missing+"\n" {
		t.Errorf("got %q", out)
	}
	if _, err := os.Stat(filepath.Join(place.images, "base", "kept")); err == nil {
		t.Error("the image was written to")
	}
}

func TestStatus(t *testing.T) {
	r := newRunner(t)
	if _, status := run(t, r, spec(t, "status", "base", args("exit", "42"))); status.ExitStatus() != 42 {
		t.Errorf("got %#x", int(status))
	}
	c := create(t, r, spec(t, "status", "base", args("sleep")))
	start(t, c)
	if err := c.Kill(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := wait(t, c); !status.Signaled() || status.Signal() != unix.SIGKILL {
		t.Errorf("got %#x", int(status))
	}
}

// A container that was never started, or that runs, is deleted all the same.
func TestDelete(t *testing.T) {
	r := newRunner(t)
	for _, started := range []bool{false, true} {
		c := create(t, r, spec(t, "delete", "base", args("sleep")))
		if started {
			start(t, c)
		}
		pid := c.PID()
		if err := c.Delete(patience(t)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("started %v: process %d: %v", started, pid, err)
		}
	}
}

// A crun that was interrupted has written nothing down; what it made goes all the
// same.
func TestDeleteForgotten(t *testing.T) {
	r := newRunner(t)
	c := create(t, r, spec(t, "forgotten", "base", args("sleep")))
	start(t, c)
	if err := os.RemoveAll(r.state(c.id)); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(c.pidfd)
	c.pidfd = -1
	if err := c.Delete(patience(t)); err != nil {
		t.Error(err)
	}
	if alive(c) {
		t.Error("it runs on")
	}
}

// Several at a time, each with user IDs and a root of its own.
func TestSideBySide(t *testing.T) {
	r := newRunner(t)
	const n = 4
	var mu sync.Mutex
	var maps []string
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			s := spec(t, fmt.Sprintf("side-%d", i), "base", args("cat", "/proc/self/uid_map"))
			var out buffer
			s.Output = &out
			c, err := r.Create(patience(t), s)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			maps = append(maps, fmt.Sprint(c.base()))
			mu.Unlock()
			if err := c.Start(patience(t)); err != nil {
				t.Error(err)
			}
			wait(t, c)
			if got := strings.Join(strings.Fields(out.String()), " "); got != fmt.Sprintf("0 %d 65536 <nil>", c.base()) {
				t.Errorf("%s: got %q", s.ID, got)
			}
			// All are made before the first goes.
			eventually(t, "the others", func() bool { mu.Lock(); defer mu.Unlock(); return len(maps) == n || t.Failed() })
			if err := c.Delete(patience(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(maps)
	if want := []string{"131072", "196608", "262144", "65536"}; !slices.Equal(maps, want) {
		t.Errorf("user IDs from %q, want %q", maps, want)
	}
}

// What its first process leaves behind does not outlive it, and holds nobody up.
func TestOrphans(t *testing.T) {
	r := newRunner(t)
	begin := time.Now()
	out, status := run(t, r, spec(t, "orphans", "base", args("orphan")))
	if out != "left <nil>\n" || status != 0 {
		t.Errorf("got %q, status %d", out, status)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(s *Spec, r *Runner)
	}{
		{"name", `container "Upper": want at most 63`, func(s *Spec, _ *Runner) { s.ID = "Upper" }},
		{"path as a name", `container "../x": want at most 63`, func(s *Spec, _ *Runner) { s.ID = "../x" }},
		{"no program", "no program", func(s *Spec, _ *Runner) { s.Effective.Args = nil }},
		{"no image", "image /nowhere: open_tree: no such file", func(s *Spec, _ *Runner) { s.Root = "/nowhere" }},
		{"program that is not there", "executable file `/bin/nothing` not found", func(s *Spec, _ *Runner) { s.Effective.Args = []string{"/bin/nothing"} }},
		{"user that is not there", `user "nobody-here": the image's /etc/passwd has none`, func(s *Spec, _ *Runner) { s.Effective.User = "nobody-here" }},
		{"user beyond the range", `user "70000": ID "70000": want at most 65535`, func(s *Spec, _ *Runner) { s.Effective.User = "70000" }},
		{"account beyond the range", `user "big": ID "70000": want at most 65535`, func(s *Spec, _ *Runner) { s.Effective.User = "big" }},
		{"mount on the kernel's", "mount /proc/x: not a place for mounts", func(s *Spec, _ *Runner) { s.Effective.Mounts = []workload.Mount{{Path: "/proc/x", TmpfsMiB: 1}} }},
		{"mount on the root", "mount /: not a place", func(s *Spec, _ *Runner) { s.Effective.Mounts = []workload.Mount{{Path: "/", TmpfsMiB: 1}} }},
		{"device that is not there", "device a.b/c=d: no CDI", func(s *Spec, _ *Runner) { s.Effective.Devices = []string{"a.b/c=d"} }},
		{"no crun", "no such file", func(_ *Spec, r *Runner) { r.Crun = "/nowhere" }},
		{"network", "network: the reason", func(_ *Spec, r *Runner) { r.Network = &network{err: errors.New("the reason")} }},
		{"working directory in a file", "working directory /etc/passwd/x: not a directory", func(s *Spec, _ *Runner) { s.Effective.Dir = "/etc/passwd/x" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRunner(t) // also looks whether anything is left
			s := spec(t, "refused", "base", args("sleep"))
			tt.spoil(&s, r)
			c, err := r.Create(patience(t), s)
			if err == nil {
				_ = c.Delete(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "delete:") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if n, ok := r.Network.(*network); ok && len(n.attached) != 0 {
				t.Errorf("attached: %v", n.attached)
			}
			if slices.Contains(r.slots, true) || len(r.names) > 0 {
				t.Error("its user IDs are still in use")
			}
		})
	}
}

// deaf adopts nobody.
type deaf struct{ Processes }

func (deaf) Adopt(int) (<-chan syscall.WaitStatus, error) { return nil, errors.New("not a child") }

// A process whose end nobody tells is taken away all the same; newRunner looks.
func TestNotAdopted(t *testing.T) {
	r := newRunner(t)
	r.Processes = deaf{r.Processes}
	begin := time.Now()
	if _, err := r.Create(patience(t), spec(t, "deaf", "base", args("sleep"))); err == nil || !strings.Contains(err.Error(), "not a child") || strings.Contains(err.Error(), "delete:") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > undoTime/2 {
		t.Errorf("it took %v", took)
	}
}

// What could not be taken away is, when its name is wanted again.
func TestNameLeft(t *testing.T) {
	r := newRunner(t)
	n := &network{err: errors.New("the reason"), detachErr: errors.New("busy")}
	r.Network = n
	s := spec(t, "left", "base", args("sleep"))
	for _, want := range []string{"network: the reason", "busy"} {
		if _, err := r.Create(patience(t), s); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "delete: busy") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	n.err, n.detachErr = nil, nil
	c := create(t, r, s)
	if err := c.Delete(patience(t)); err != nil || len(n.attached) > 0 || len(r.left) > 0 {
		t.Errorf("%v, attached %v, left %v", err, n.attached, r.left)
	}
}

// gated is a network that takes its time.
type gated struct {
	Network
	reached, gate chan struct{}
}

func (g gated) Detach(string) error {
	close(g.reached)
	<-g.gate
	return nil
}

// A signal does not wait for Delete.
func TestKillWhileDeleting(t *testing.T) {
	g := gated{reached: make(chan struct{}), gate: make(chan struct{})}
	c := &Container{r: &Runner{Network: g, slots: []bool{true}}, dir: t.TempDir(), attached: true, pidfd: -1}
	deleted := make(chan error)
	go func() { deleted <- c.Delete(t.Context()) }()
	<-g.reached
	killed := make(chan error, 1)
	go func() { killed <- c.Kill(t.Context(), unix.SIGTERM) }()
	select {
	case err := <-killed:
		if !errors.Is(err, ErrEnded) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits")
	}
	close(g.gate)
	if err := <-deleted; err != nil {
		t.Error(err)
	}
}

// Nothing that others put into a container's directory is descended into.
func TestRemoveFiles(t *testing.T) {
	c := &Container{dir: t.TempDir()}
	other := filepath.Join(c.dir, "other", "rootfs")
	for _, d := range []string{c.path(sourcesDir) + "/1", other} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.path(logFile)+".1", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.removeFiles(t.Context()); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Dir(other)); err != nil {
		t.Fatal(err)
	}
	if err := c.removeFiles(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.dir); err == nil {
		t.Error("the directory is left")
	}
}

// With all rights inside, an initrd below the root would be in reach.
func TestAllRights(t *testing.T) {
	r := newRunner(t)
	p := workload.Process{Args: []string{"remount"}, ReadOnly: true, Capabilities: []string{"CAP_SYS_ADMIN"}}
	s := spec(t, "rights", "base", p)
	if place.initrd {
		if _, err := r.Create(patience(t), s); err == nil || !strings.Contains(err.Error(), "CAP_SYS_ADMIN: not where") {
			t.Errorf("got %v", err)
		}
		return
	}
	out, _ := run(t, r, s)
	// The mount may be made writable inside, its file system may not.
	if lines := strings.Split(out, "\n"); len(lines) < 3 || lines[0] != denied || lines[2] != "read-only file system" {
		t.Errorf("got %q", out)
	}
}

// TestInterrupted gives up at any moment; newRunner looks whether anything is left.
func TestInterrupted(t *testing.T) {
	r := newRunner(t)
	step, tries := 5*time.Millisecond, 40
	if place.guest { // an emulated processor
		step, tries = 40*time.Millisecond, 20
	}
	made := 0
	for i := range tries {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*step)
		c, err := r.Create(ctx, spec(t, "hasty", "base", args("sleep")))
		cancel()
		if err == nil {
			made++
			err = c.Delete(patience(t))
		} else if strings.Contains(err.Error(), "delete:") || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", time.Duration(i)*step, err)
			continue
		} else {
			err = nil
		}
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d of %d were made", made, tries)
}

func TestNetwork(t *testing.T) {
	r := newRunner(t)
	n := &network{}
	r.Network = n
	var out buffer
	s := spec(t, "web-1", "base", args("cat", "/etc/hosts"))
	s.Output = &out
	c := create(t, r, s)
	if n.attached["web-1"] != c.PID() || !alive(c) || c.Address().String() != "192.0.2.7" {
		t.Errorf("attached %v, process %d, address %v", n.attached, c.PID(), c.Address())
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.PID())); err != nil || its == own {
		t.Errorf("its network is %s, ours %s (%v)", its, own, err)
	}
	start(t, c)
	wait(t, c)
	if !strings.Contains(out.String(), "\n192.0.2.7\tweb-1\n") {
		t.Errorf("its hosts are %q", out.String())
	}
	if err := c.Delete(t.Context()); err != nil || len(n.attached) != 0 {
		t.Errorf("%v, still attached: %v", err, n.attached)
	}
}

func TestExec(t *testing.T) {
	r := newRunner(t)
	closed := create(t, r, spec(t, "closed", "base", args("sleep")))
	start(t, closed)
	if _, err := closed.Exec(t.Context(), []string{"/bin/probe", "exit", "0"}, nil); !errors.Is(err, ErrExec) {
		t.Errorf("without leave: %v", err)
	}
	p := args("sleep")
	p.Exec, p.User = true, "web"
	c := create(t, r, spec(t, "open", "base", p))
	start(t, c)
	var out buffer
	for _, tt := range []struct {
		want string
		argv []string
	}{
		{"exit status 0", []string{"/bin/probe", "reopen"}},
		{"exit status 5", []string{"/bin/probe", "exit", "5"}},
	} {
		status, err := c.Exec(patience(t), tt.argv, &out)
		if got := fmt.Sprintf("exit status %d", status.ExitStatus()); err != nil || got != tt.want {
			t.Errorf("%q: %s and %v, want %s", tt.argv, got, err, tt.want)
		}
	}
	if got := out.String(); got != "reopened\n<nil>\n" {
		t.Errorf("printed %q", got)
	}
	if _, err := c.Exec(patience(t), []string{"/bin/nothing"}, nil); err == nil || !strings.Contains(err.Error(), "not found") && !strings.Contains(err.Error(), "No such file") {
		t.Errorf("no program: %v", err)
	}
	if _, err := c.Exec(t.Context(), nil, nil); err == nil {
		t.Error("ran nothing")
	}
}

// A program that was let in has no other rights than the container's own.
func TestExecRights(t *testing.T) {
	r := newRunner(t)
	p := args("sleep")
	p.Exec, p.User = true, "web:logs"
	c := create(t, r, spec(t, "rights", "base", p))
	start(t, c)
	var out buffer
	if _, err := c.Exec(patience(t), []string{"/bin/probe", "cat", "/proc/self/status"}, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t101\t101", "Gid:\t4\t4", "CapEff:\t" + caps() + "\n", "CapBnd:\t00000000000404fb\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
}

func TestExecInterrupted(t *testing.T) {
	r := newRunner(t)
	p := args("sleep")
	p.Exec = true
	c := create(t, r, spec(t, "long", "base", p))
	start(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	var out buffer
	failed := make(chan error)
	go func() {
		_, err := c.Exec(ctx, []string{"/bin/probe", "sleep"}, &out)
		failed <- err
	}()
	eventually(t, "the program", func() bool { return strings.Contains(out.String(), "sleeping") })
	cancel()
	select {
	case err := <-failed:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	var list buffer
	if _, err := c.Exec(patience(t), []string{"/bin/probe", "report"}, &list); err != nil || !strings.Contains(list.String(), `"Programs":["1","`) {
		t.Errorf("%v: %s", err, list.String())
	}
	if !alive(c) {
		t.Error("the container died of it")
	}
}

func TestOutput(t *testing.T) {
	r := newRunner(t)
	mib := 48
	if place.guest {
		mib = 8
	}
	for name, w := range map[string]*slow{"nobody": nil, "a slow one": {pause: 20 * time.Millisecond}, "one that fails": {err: errors.New("full")}, "one that is stuck": {stuck: make(chan struct{})}} {
		t.Run(name, func(t *testing.T) {
			s := spec(t, "noise", "base", args("noise", fmt.Sprint(mib)))
			if w != nil {
				s.Output = w
			}
			begin := time.Now()
			c := create(t, r, s)
			start(t, c)
			if status := wait(t, c); status != 0 {
				t.Errorf("status %#x", int(status))
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			if w != nil && w.stuck != nil {
				close(w.stuck)
			}
			if err := c.Delete(patience(t)); err != nil {
				t.Error(err)
			}
			if name != "a slow one" {
				return
			}
			<-c.output.done
			if got := w.text.String(); !strings.Contains(got, " bytes dropped]\n") || !strings.HasPrefix(got, "noise noise") {
				t.Errorf("got %d bytes, and no word of what is missing", len(got))
			}
		})
	}
}

type slow struct {
	text  buffer
	pause time.Duration
	err   error
	stuck chan struct{}
}

func (w *slow) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	if w.stuck != nil {
		<-w.stuck
	}
	if w.err != nil {
		return 0, w.err
	}
	return w.text.Write(p)
}

// Images make /dev/stdout their log file, and servers are other users than root.
func TestReopenOutput(t *testing.T) {
	r := newRunner(t)
	for _, user := range []string{"", "web"} {
		p := args("reopen")
		p.User = user
		if out, _ := run(t, r, spec(t, "reopen", "base", p)); out != "reopened\n<nil>\n" {
			t.Errorf("user %q: got %q", user, out)
		}
	}
}

// The statuses that a Processes gives are not confused.
func TestManyEnd(t *testing.T) {
	r := newRunner(t)
	for i := range 5 {
		if _, status := run(t, r, spec(t, "many", "base", args("exit", fmt.Sprint(i)))); status != syscall.WaitStatus(i<<8) {
			t.Errorf("%d: got %#x", i, int(status))
		}
	}
}
