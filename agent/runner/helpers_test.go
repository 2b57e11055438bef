package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/workload"
)

// children reaps every child, as PID 1 has to: a container is not gone before what
// others ran in it was waited for, too.
type children struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

// reap runs until ctx ends.
func (p *children) reap(ctx context.Context) {
	for ctx.Err() == nil {
		p.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if ch := p.waiting[pid]; ch != nil && err == nil {
			delete(p.waiting, pid)
			ch <- status
		}
		p.mu.Unlock()
		if pid <= 0 {
			time.Sleep(2 * time.Millisecond)
		}
	}
}

func (p *children) expect(pid int) <-chan syscall.WaitStatus {
	p.waiting[pid] = make(chan syscall.WaitStatus, 1)
	return p.waiting[pid]
}

func (p *children) Run(ctx context.Context, c Command) (syscall.WaitStatus, error) {
	p.mu.Lock()
	pid, err := c.Start()
	if pid == 0 {
		p.mu.Unlock()
		return 0, err
	}
	ended := p.expect(pid)
	p.mu.Unlock()
	select {
	case status := <-ended:
		return status, err
	case <-ctx.Done():
		_ = unix.Kill(pid, unix.SIGKILL)
		<-ended
		return 0, ctx.Err()
	}
}

func (p *children) Adopt(pid int) (<-chan syscall.WaitStatus, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// Only a child has a status to look at.
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return nil, err
	}
	return p.expect(pid), nil
}

// buffer may be written to while it is read.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newRunner has a directory of its own, and fails the test if anything is left of
// its containers.
func newRunner(t *testing.T) *Runner {
	t.Helper()
	needContainers(t)
	// Not t.TempDir: nobody but root gets into its parents.
	dir, err := os.MkdirTemp(place.run, "run-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	processes := &children{waiting: map[int]chan syscall.WaitStatus{}}
	go processes.reap(ctx)
	r := &Runner{Crun: testenv.Tool("crun"), Dir: dir, Processes: processes, Logf: t.Logf, group: testGroup()}
	if !place.guest {
		r.adjust = unbounded
	}
	t.Cleanup(func() {
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if strings.Contains(string(mounts), dir) {
			t.Errorf("still mounted:\n%s", mounts)
		}
		left, _ := filepath.Glob(filepath.Join(dir, "[^.]*"))
		if len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		if groups, _ := filepath.Glob(filepath.Join(cgroupRoot, testGroup(), "*", "cgroup.procs")); len(groups) > 0 {
			t.Errorf("left: %q", groups)
		}
		_ = os.Remove(filepath.Join(cgroupRoot, testGroup()))
		_ = os.RemoveAll(dir)
	})
	return r
}

// testGroup is no other run's: cgroups are the machine's.
var testGroup = sync.OnceValue(func() string { return fmt.Sprintf("plinth-%d", time.Now().UnixNano()) })

// unbounded leaves out what this machine's cgroups or its root may not do.
func unbounded(conf *config) {
	if !bounded() {
		// Without resources crun loads no program for devices either, for which it would
		// raise a limit that root of this machine may not raise.
		conf.Linux.Resources = nil
	}
	var l unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
	conf.Process.Rlimits = slices.Clone(conf.Process.Rlimits)
	for i, r := range conf.Process.Rlimits {
		if r.Type == "RLIMIT_NOFILE" {
			conf.Process.Rlimits[i] = specs.POSIXRlimit{Type: r.Type, Soft: min(l.Max, r.Soft), Hard: min(l.Max, r.Hard)}
		}
	}
}

func spec(t *testing.T, id, image string, p workload.Process) Spec {
	t.Helper()
	p.Name = id
	e, err := p.Effective(&v1.ImageConfig{Entrypoint: []string{"/bin/probe"}})
	if err != nil {
		t.Fatal(err)
	}
	return Spec{ID: id, Root: filepath.Join(place.images, image), Process: &p, Effective: e}
}

func patience(t *testing.T) context.Context {
	t.Helper()
	d := 30 * time.Second
	if place.guest {
		d = 3 * time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), d) // cleanups wait, too
	t.Cleanup(cancel)
	return ctx
}

// create makes a container that is deleted in the end.
func create(t *testing.T, r *Runner, s Spec) *Container {
	t.Helper()
	c, err := r.Create(patience(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(patience(t)); err != nil {
			t.Error(err)
		}
	})
	return c
}

func start(t *testing.T, c *Container) {
	t.Helper()
	if err := c.Start(patience(t)); err != nil {
		t.Fatal(err)
	}
}

func wait(t *testing.T, c *Container) syscall.WaitStatus {
	t.Helper()
	status, err := c.Wait(patience(t))
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// run is a container's whole life; it returns what it printed.
func run(t *testing.T, r *Runner, s Spec) (string, syscall.WaitStatus) {
	t.Helper()
	var out buffer
	if s.Output == nil {
		s.Output = &out
	}
	c := create(t, r, s)
	start(t, c)
	status := wait(t, c)
	if err := c.Delete(patience(t)); err != nil {
		t.Fatal(err)
	}
	return out.String(), status
}

// report mirrors Report of the probe.
type report struct {
	UID, GID                                                       int
	Groups                                                         []int
	Args, Env, Mounts, Devices, Listening, Interfaces, Programs    []string
	Dir, Hostname, UIDMap, GIDMap, OOMScore, Cgroup                string
	Status, Namespaces, Limits, Open, Write, Calls, Sockets, Files map[string]string
}

func probe(t *testing.T, r *Runner, s Spec) report {
	t.Helper()
	out, status := run(t, r, s)
	var got report
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 {
		t.Fatalf("%v, status %d: %s", err, status, out)
	}
	return got
}

// eventually looks until f is content.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// network is a Network that only remembers.
type network struct {
	mu        sync.Mutex
	attached  map[string]int
	err       error
	detachErr error
}

func (n *network) Attach(id string, pid int, _ *workload.Process) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached == nil {
		n.attached = map[string]int{}
	}
	n.attached[id] = pid
	return netip.MustParseAddr("192.0.2.7"), n.err
}

func (n *network) Detach(id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.detachErr != nil {
		return n.detachErr
	}
	delete(n.attached, id)
	return nil
}
