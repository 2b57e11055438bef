package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/workload"
)

// A Container is one that Create made. Its methods may be called side by side.
type Container struct {
	r         *Runner
	id, dir   string
	effective *workload.Effective
	slot      int
	process   *specs.Process
	sources   int   // mounts below sourcesDir
	given     given // while it is made
	address   netip.Addr
	attached  bool

	pid    int
	output *output
	status syscall.WaitStatus
	done   chan struct{} // closed when the process is over and status is set

	calls atomic.Int64 // of crun

	mu    sync.Mutex
	pidfd int // -1: there is no process, or none any longer
	execs int

	deleting sync.Mutex // held by Delete as long as it takes
	created  bool       // crun knows the container
	deleted  bool
}

// PID is the container's first process, as the guest numbers it.
func (c *Container) PID() int { return c.pid }

// Address is the one that Network gave it; the zero Addr where it has none.
func (c *Container) Address() netip.Addr { return c.address }

// launch has crun make the container and takes over its process.
func (c *Container) launch(ctx context.Context, w io.Writer) error {
	if err := c.removeCgroup(ctx); err != nil { // crun stumbles over one that is there
		return err
	}
	out, err := c.newOutput(w)
	if err != nil {
		return err
	}
	c.output = out
	c.created = true
	args := []string{"create", "--bundle", c.dir, "--pid-file", c.path(pidFile)}
	if noPivot() {
		args = append(args, "--no-pivot")
	}
	_, err = c.crun(ctx, out.w, append(args, c.id)...)
	out.started()
	if err != nil {
		return err
	}
	if c.pid, err = readPID(c.path(pidFile)); err != nil {
		return err
	}
	// It waits to be started: the number is its own.
	fd, err := unix.PidfdOpen(c.pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", c.pid, err)
	}
	ended, err := c.r.Processes.Adopt(c.pid)
	if err != nil { // nobody will tell its end: Delete must not wait for that
		return errors.Join(fmt.Errorf("process %d: %w", c.pid, err), unix.Close(fd))
	}
	c.pidfd = fd
	go func() {
		c.status = <-ended
		out.wait() // what it printed last
		close(c.done)
	}()
	if c.effective.ReadOnly {
		return c.sealRoot()
	}
	return nil
}

// Start runs the program.
func (c *Container) Start(ctx context.Context) error {
	before := c.program()
	if _, err := c.crun(ctx, nil, "start", c.id); err != nil {
		return fmt.Errorf("runner: %s: %w", c.id, err)
	}
	c.begun(ctx, before)
	return nil
}

// program is what the first process runs, "" once it has ended.
func (c *Container) program() string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.pid))
	return path
}

// beginTime bounds the wait for a program that crun has let go.
const beginTime = 5 * time.Second

// begun waits until the first process is crun's no more. Until then it has rights in
// flux, and whoever would join it with Exec is refused.
func (c *Container) begun(ctx context.Context, before string) {
	ctx, cancel := context.WithTimeout(ctx, beginTime)
	defer cancel()
	for before != "" && c.program() == before {
		select {
		case <-ctx.Done():
			return
		case <-c.done:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Wait returns how the container's first process ended; the others in it have
// ended with it.
func (c *Container) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	select {
	case <-c.done:
		return c.status, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("runner: %s: %w", c.id, ctx.Err())
	}
}

// Kill sends a signal to the first process. The kernel drops those but SIGKILL for
// which that process has no handler: it is the init of its namespace.
func (c *Container) Kill(_ context.Context, sig syscall.Signal) error {
	if err := c.signal(sig); err != nil {
		return fmt.Errorf("runner: %s: signal %d: %w", c.id, sig, err)
	}
	return nil
}

func (c *Container) signal(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return ErrEnded
	}
	// By the pidfd: the number may be another process's by now.
	err := unix.PidfdSendSignal(c.pidfd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrEnded
	}
	return err
}

// Exec runs a program beside the container's own, with the same user and rights,
// where the configuration admits it. When ctx ends, it is killed.
func (c *Container) Exec(ctx context.Context, argv []string, w io.Writer) (syscall.WaitStatus, error) {
	status, err := c.exec(ctx, argv, w)
	if err != nil {
		return 0, fmt.Errorf("runner: %s: exec: %w", c.id, err)
	}
	return status, nil
}

func (c *Container) exec(ctx context.Context, argv []string, w io.Writer) (syscall.WaitStatus, error) {
	if !c.effective.Exec {
		return 0, ErrExec
	}
	if len(argv) == 0 {
		return 0, errors.New("no program")
	}
	c.mu.Lock()
	c.execs++
	n := c.execs
	c.mu.Unlock()
	files := execFiles{process: fmt.Sprintf("%s.%d", c.path(processFile), n), pid: fmt.Sprintf("%s.%d", c.path(pidFile), n)}
	defer files.remove()
	p := *c.process
	p.Args = argv
	if err := writeJSON(files.process, &p); err != nil {
		return 0, err
	}
	out, err := c.newOutput(w)
	if err != nil {
		return 0, err
	}
	defer out.close()
	stop := context.AfterFunc(ctx, func() { c.killExec(files.pid) })
	defer stop()
	// crun waits for the program, and has to outlive it to tell its status.
	status, err := c.crun(context.WithoutCancel(ctx), out.w, "exec", "--process", files.process, "--pid-file", files.pid, c.id)
	out.started()
	out.wait()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	var failed *crunError
	if errors.As(err, &failed) && failed.text == "" {
		err = nil // the program's own status
	}
	return status, err
}

type execFiles struct{ process, pid string }

func (f execFiles) remove() {
	_ = os.Remove(f.process)
	_ = os.Remove(f.pid)
}

// killExec ends what Exec runs as soon as crun has said which process it is. It
// signals nothing that is not in the container's PID namespace: the number could be
// another's by then.
func (c *Container) killExec(name string) {
	for range 100 {
		if pid, err := readPID(name); err == nil {
			c.killInside(pid)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *Container) killInside(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	own, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.pid))
	its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err1 == nil && err2 == nil && own == its {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

// Delete ends what still runs and takes everything of the container away. It may be
// called again after an error.
func (c *Container) Delete(ctx context.Context) error {
	c.deleting.Lock()
	defer c.deleting.Unlock()
	if c.deleted {
		return nil
	}
	for _, step := range []func(context.Context) error{c.end, c.detach, c.unmount, c.removeFiles} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("runner: %s: delete: %w", c.id, err)
		}
	}
	c.deleted = true
	c.r.release(c.id, c.slot)
	return nil
}

// end kills the container and waits until it is gone.
func (c *Container) end(ctx context.Context) error {
	if c.created {
		c.killAll()
	}
	if c.pidfd >= 0 { // nobody else sets it
		if err := c.signal(unix.SIGKILL); err != nil && !errors.Is(err, ErrEnded) {
			return err
		}
		select {
		case <-c.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		c.mu.Lock()
		_ = unix.Close(c.pidfd)
		c.pidfd = -1
		c.mu.Unlock()
	}
	if c.created {
		c.reportMemory()
		if _, err := c.crun(ctx, nil, "delete", "--force", c.id); err != nil && !c.unknown() {
			return err
		}
		if err := c.removeCgroup(ctx); err != nil {
			return err
		}
		c.created = false
	}
	if c.output != nil {
		c.output.close()
	}
	return nil
}

func (c *Container) detach(context.Context) error {
	if !c.attached {
		return nil
	}
	if err := c.r.Network.Detach(c.id); err != nil {
		return err
	}
	c.attached = false
	return nil
}

// unknown tells whether crun keeps nothing of the container: it fails to delete
// what it failed to make.
func (c *Container) unknown() bool {
	_, err := os.Stat(c.r.state(c.id))
	return errors.Is(err, fs.ErrNotExist)
}

// removeFiles takes away the files and empty directories that are directly there, and
// fails on anything that is mounted or that somebody else filled: it never descends.
func (c *Container) removeFiles(context.Context) error {
	for _, dir := range []string{c.path(sourcesDir), c.path(secretsDir), c.dir} {
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			if err == nil {
				err = os.Remove(filepath.Join(dir, e.Name()))
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(c.dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
