package agent

import (
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/plinth-os/plinth/evidence"
)

const (
	stopGrace = 10 * time.Second       // between asking a process to end and ending it
	waitPoll  = 100 * time.Millisecond // between looks for what a process waits for
)

// A process is a program that runs under the supervisor.
type process struct {
	name     string
	service  bool   // part of the report
	after    string // path that must be there before it is started; "": none
	terminal bool   // has the console as its controlling terminal
	retry    bool   // start it again when it failed
	restart  bool   // start it again when it ends
	argv     []string
	env      []string

	pid   int
	state string // as in evidence.Service
}

// supervisor starts programs and reaps every process whose parent is gone.
type supervisor struct {
	s     *State
	delay time.Duration // before a restart

	mu       sync.Mutex // held while a child is made, so that it is known before it is reaped
	all      []*process // in start order
	running  map[int]*process
	awaited  map[int]chan syscall.WaitStatus // children of whom somebody else wants the status
	strays   []stray                         // reaped lately, and nobody's: the newest last
	stopping bool
}

func newSupervisor(s *State) *supervisor {
	return &supervisor{s: s, delay: time.Second, running: map[int]*process{}, awaited: map[int]chan syscall.WaitStatus{}}
}

// start runs p. A program that cannot be started has failed, and is tried again
// like one that ended.
func (v *supervisor) start(p *process) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stopping {
		return
	}
	if !slices.Contains(v.all, p) {
		v.all = append(v.all, p)
	}
	if p.after != "" && !v.s.there(p.after) {
		p.state = evidence.Waiting
		v.in(waitPoll, p)
		return
	}
	pid, err := v.spawn(p)
	if err != nil {
		p.pid, p.state = 0, evidence.Failed
		v.s.logf("%s: %s: %v", p.name, p.argv[0], err)
		v.again(p)
		return
	}
	p.pid, p.state = pid, evidence.Running
	v.running[pid] = p
	v.s.logf("%s: process %d", p.name, pid)
}

// spawn makes the process, in a session of its own and with nothing inherited.
// It is not os.StartProcess: the supervisor waits for every child itself.
func (v *supervisor) spawn(p *process) (int, error) {
	// In a debug build programs talk to the console. Never to /dev/kmsg, which
	// refuses long lines and drops many.
	name := "/dev/null"
	if v.s.debug() {
		name = "/dev/console"
	}
	f, err := os.OpenFile(v.s.path(name), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close() // the child has its own
	fd := f.Fd()
	return syscall.ForkExec(v.s.path(p.argv[0]), p.argv, &syscall.ProcAttr{
		Dir:   v.s.Root,
		Env:   p.env,
		Files: []uintptr{fd, fd, fd},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: p.terminal},
	})
}

// again starts p once more after a while, if it shall run on.
func (v *supervisor) again(p *process) {
	if p.restart || p.retry && p.state == evidence.Failed {
		v.in(v.delay, p)
	}
}

// in starts p after a while.
func (v *supervisor) in(delay time.Duration, p *process) {
	time.AfterFunc(delay, func() {
		defer v.s.recoverPanic()
		v.start(p)
	})
}

// reap takes the status of every child that has ended.
func (v *supervisor) reap() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reapAll()
}

func (v *supervisor) reapAll() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		v.dispatch(pid, status)
	}
}

// dispatch gives the status of a child that was reaped to whom it is for.
func (v *supervisor) dispatch(pid int, status syscall.WaitStatus) {
	if p := v.running[pid]; p != nil {
		delete(v.running, pid)
		v.ended(p, status)
		return
	}
	if ch := v.awaited[pid]; ch != nil {
		delete(v.awaited, pid)
		ch <- status // it has room for it
		return
	}
	v.strayed(pid, status)
}

func (v *supervisor) ended(p *process, status syscall.WaitStatus) {
	p.state = evidence.Failed
	if status.Exited() && status.ExitStatus() == 0 {
		p.state = evidence.Exited
	}
	if status.Signaled() {
		v.s.logf("%s: process %d ended by signal %d (%v)", p.name, p.pid, status.Signal(), status.Signal())
	} else {
		v.s.logf("%s: process %d ended with status %d", p.name, p.pid, status.ExitStatus())
	}
	v.again(p)
}

// stop asks every program to end, and ends those that have not after the grace.
func (v *supervisor) stop(grace time.Duration) {
	v.mu.Lock()
	v.stopping = true
	v.mu.Unlock()
	v.signal(syscall.SIGTERM)
	for deadline := time.Now().Add(grace); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		v.reap()
		if v.count() == 0 {
			return
		}
	}
	v.signal(syscall.SIGKILL)
}

func (v *supervisor) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.running)
}

// signal reaches a program and what it started in its session's first group.
func (v *supervisor) signal(sig syscall.Signal) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for pid := range v.running {
		_ = syscall.Kill(-pid, sig) // it may just have ended
	}
}

// services returns the state of what the configuration names, in its order.
func (v *supervisor) services() []evidence.Service {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := []evidence.Service{}
	for _, p := range v.all {
		if p.service {
			out = append(out, evidence.Service{Name: p.name, PID: p.pid, State: p.state})
		}
	}
	return out
}
