package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/plinth-os/plinth/agent/guestapi"
	"github.com/plinth-os/plinth/agent/runner"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/workload"
)

// How long the agent waits before it starts a container again: twice as long each
// time, until one ran for as long as resetAfter.
const (
	firstDelay = time.Second
	lastDelay  = time.Minute
	resetAfter = time.Minute
)

// createTime bounds what crun may take to make a container ready.
const createTime = 2 * time.Minute

// A container is one workload and its runs.
type container struct {
	s     *State
	w     workload.Admitted
	spec  runner.Spec
	run   *runner.Runner
	delay time.Duration // before the first restart

	printed *labelled          // nil: nobody sees what it prints
	opened  *opened            // secrets of the first run, until it is made
	api     *guestapi.REST     // nil before the first run, or without a grant
	window  context.CancelFunc // ends what listens for the run that is now

	mu    sync.Mutex
	now   instance // nil between runs
	state string   // as in evidence.Workload
	pid   int
	addr  netip.Addr
	over  chan struct{} // closed when there will be no more runs
}

func (s *State) newContainer(i int, r *runner.Runner) (*container, error) {
	w, im := s.work.admit[i], s.work.images[i]
	root, err := s.showImage(im)
	if err != nil {
		return nil, err
	}
	spec := runner.Spec{ID: w.Process.Name, Root: root, Process: w.Process, Effective: w.Effective, Volumes: s.volumeDirs()}
	if s.work.uplink != nil && w.Effective.Network == workload.NetworkNAT {
		spec.ResolvConf = s.work.uplink.ResolvConf()
	}
	o := s.work.opened[i]
	s.work.opened[i] = nil // the container's to forget
	return &container{s: s, w: w, spec: spec, opened: o, run: r, delay: cmp.Or(s.work.fleet.delay, firstDelay), state: evidence.Waiting, over: make(chan struct{})}, nil
}

func (c *container) create(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, createTime)
	defer cancel()
	o := c.opened
	if c.opened = nil; o == nil {
		err := c.s.settled(ctx)
		if err == nil {
			o, err = c.s.openSecrets(ctx, &c.w)
		}
		if err != nil {
			return err
		}
	}
	spec := c.spec
	spec.Effective, spec.Secrets = o.effective, o.files
	if c.w.Effective.Output == workload.OutputConsole {
		c.printed = &labelled{w: c.s.console, label: spec.ID}
		spec.Output = c.printed
	}
	now, err := c.s.work.site.create(ctx, c.run, spec)
	o.clear()
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.now, c.pid, c.addr = now, now.PID(), now.Address()
	c.mu.Unlock()
	if err := c.openWindow(now.PID()); err != nil {
		return errors.Join(err, c.drop(evidence.Failed))
	}
	return nil
}

func (c *container) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, createTime)
	defer cancel()
	if err := c.now.Start(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.state = evidence.Running
	c.mu.Unlock()
	c.s.logf("%s: process %d", c.w.Process.Name, c.pid)
	return nil
}

// drop takes a run away. After an error it is still there, and can be dropped again.
func (c *container) drop(state string) error {
	c.mu.Lock()
	now := c.now
	c.state = state
	c.mu.Unlock()
	c.closeWindow()
	if now == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), createTime)
	defer cancel()
	if err := now.Delete(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	c.now = nil
	c.mu.Unlock()
	return nil
}

// supervise follows a container that was started, and starts it again as its
// configuration says, until the guest stops.
func (c *container) supervise() {
	defer close(c.over)
	delay := c.delay
	for {
		began := time.Now()
		failed := c.follow()
		if !c.again(failed) {
			return
		}
		if time.Since(began) > resetAfter {
			delay = c.delay
		}
		for {
			if !c.s.pause(delay) {
				return
			}
			delay = min(2*delay, lastDelay)
			if err := c.rerun(); err != nil {
				c.s.logf("%s: %v", c.w.Process.Name, err)
				continue
			}
			break
		}
	}
}

// follow waits for the end of a run and takes it away.
func (c *container) follow() (failed bool) {
	name := c.w.Process.Name
	status, err := c.now.Wait(context.Background())
	if c.printed != nil {
		c.printed.flush()
	}
	state := evidence.Failed
	switch {
	case err != nil:
		c.s.logf("%s: %v", name, err)
	case status.Signaled():
		c.s.logf("%s: process %d ended by signal %d (%v)", name, c.pid, status.Signal(), status.Signal())
	default:
		c.s.logf("%s: process %d ended with status %d", name, c.pid, status.ExitStatus())
		if status.ExitStatus() == 0 {
			state = evidence.Exited
		}
	}
	if err := c.drop(state); err != nil {
		c.s.logf("%s: %v", name, err)
	}
	return state == evidence.Failed
}

func (c *container) again(failed bool) bool {
	switch c.w.Effective.Restart {
	case workload.RestartAlways:
		return true
	case workload.RestartFailure:
		return failed
	}
	return false
}

// rerun makes and starts a run anew, with nothing of the one before it. The fleet
// may be stopping by now.
func (c *container) rerun() error {
	if err := c.drop(evidence.Failed); err != nil { // of the one before it, if that was not possible then
		return err
	}
	err := c.create(context.Background())
	if err == nil && c.s.work.fleet.ends() {
		err = errStopping
	}
	if err == nil {
		err = c.start(context.Background())
	}
	if err != nil {
		return errors.Join(err, c.drop(evidence.Failed))
	}
	if c.s.work.fleet.ends() { // it was not there yet when the others were asked to end
		return c.kill(syscall.SIGKILL)
	}
	return nil
}

var errStopping = errors.New("the guest stops")

// kill signals a run, if there is one.
func (c *container) kill(sig syscall.Signal) error {
	c.mu.Lock()
	now := c.now
	c.mu.Unlock()
	if now == nil {
		return nil
	}
	err := now.Kill(context.Background(), sig)
	if errors.Is(err, runner.ErrEnded) {
		return nil
	}
	return err
}

// labelled writes what a container prints, each line with its name before it.
type labelled struct {
	w     io.Writer
	label string

	mu   sync.Mutex
	rest []byte // of a line
}

const maxLine = 4096 // bytes; a longer line becomes several

func (l *labelled) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range p {
		if b != '\n' {
			l.rest = append(l.rest, b)
		}
		if b == '\n' || len(l.rest) == maxLine {
			if err := l.line(); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

func (l *labelled) line() error {
	_, err := fmt.Fprintf(l.w, "%s: %s\n", l.label, l.rest)
	l.rest = l.rest[:0]
	return err
}

// flush writes the last line where nothing ends it.
func (l *labelled) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rest) > 0 {
		_ = l.line() // a console that nobody reads
	}
}
