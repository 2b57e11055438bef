package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/agent/runner"
)

// A stray is a child that ended before anybody asked for it.
type stray struct {
	pid    int
	status syscall.WaitStatus
}

// maxStrays bounds what is remembered of them. A container's first process is asked
// for a moment after it became a child of this one.
const maxStrays = 256

func (v *supervisor) strayed(pid int, status syscall.WaitStatus) {
	if len(v.strays) == maxStrays {
		v.strays = slices.Delete(v.strays, 0, 1)
	}
	v.strays = append(v.strays, stray{pid, status})
}

// Run starts a program, waits for its end and returns its status. When ctx ends,
// the program and its process group are ended.
func (v *supervisor) Run(ctx context.Context, c runner.Command) (syscall.WaitStatus, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	pid, ended, err := v.fork(c)
	if err != nil {
		if ended != nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
			<-ended
		}
		return 0, fmt.Errorf("%s: %w", c.Path, err)
	}
	select {
	case status := <-ended:
		return status, nil
	case <-ctx.Done():
		_ = syscall.Kill(-pid, syscall.SIGKILL) // the same
		return <-ended, ctx.Err()
	}
}

// fork makes a process whose status comes by the channel, which is nil where there
// is no process.
func (v *supervisor) fork(c runner.Command) (int, <-chan syscall.WaitStatus, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	pid, err := c.Start()
	if pid == 0 {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	v.awaited[pid] = ended
	return pid, ended, err
}

// Adopt returns where the status of a process comes that became a child of this one
// because its parent ended. It may have ended itself by now.
func (v *supervisor) Adopt(pid int) (<-chan syscall.WaitStatus, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.awaited[pid] != nil || v.running[pid] != nil {
		return nil, fmt.Errorf("process %d: somebody waits for it already", pid)
	}
	ended := make(chan syscall.WaitStatus, 1)
	// A child that is there, ended or not, was not reaped: what is remembered under
	// its number is of another.
	err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	switch {
	case err == nil:
		v.awaited[pid] = ended
		v.reapAll()
		return ended, nil
	case !errors.Is(err, unix.ECHILD):
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	for i, s := range slices.Backward(v.strays) {
		if s.pid == pid {
			v.strays = slices.Delete(v.strays, i, i+1)
			ended <- s.status
			return ended, nil
		}
	}
	return nil, fmt.Errorf("process %d: not a child", pid)
}
