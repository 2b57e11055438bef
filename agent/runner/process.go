package runner

import (
	"context"
	"os"
	"syscall"
)

// Processes starts programs and takes the status of every child that ends, also of
// those that it does not know: PID 1 has one place that does, and a container is not
// gone before the orphans that Exec left were waited for. The runner waits for
// nothing itself.
type Processes interface {
	// Run starts c and returns how it ended. It kills the process when ctx ends.
	Run(ctx context.Context, c Command) (syscall.WaitStatus, error)
	// Adopt tells how the process pid ends, which became a child of this one because
	// whoever started it has ended. It fails for what is no child.
	Adopt(pid int) (<-chan syscall.WaitStatus, error)
}

// A Command is one run of a program.
type Command struct {
	Path  string
	Args  []string // with the program's name
	Env   []string
	Files [3]*os.File // all set
	Sys   *syscall.SysProcAttr

	started func(pid int) error
}

// Start makes the process. Whoever calls it keeps the process from being waited for
// until it returns (holds the lock under which children are reaped). After an
// error there may still be a process: its ID is not 0 then.
func (c Command) Start() (int, error) {
	attr := &syscall.ProcAttr{Dir: "/", Env: c.Env, Sys: c.Sys}
	for _, f := range c.Files {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, err := syscall.ForkExec(c.Path, c.Args, attr)
	if err != nil {
		return 0, err
	}
	if c.started != nil {
		err = c.started(pid)
	}
	return pid, err
}
