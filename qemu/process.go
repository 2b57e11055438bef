package qemu

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A child is a process that does not outlive this one. It is alone in its
// process group, so that a terminal's Ctrl-C is ours to handle.
type child struct {
	cmd    *exec.Cmd
	output *tail         // stdout and stderr
	done   chan struct{} // closed when the process is reaped
	err    error         // its exit; read after done
}

// startChild runs binary; files become descriptors 3, 4, ...
func startChild(binary string, args []string, files ...*os.File) (*child, error) {
	c := &child{cmd: exec.Command(binary, args...), output: &tail{limit: 16 << 10}, done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	c.cmd.ExtraFiles = files
	c.cmd.WaitDelay = time.Second // for whoever inherited its output
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends, not
		// the process: keep that thread until the child is reaped.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		if err == nil {
			// A crash, as of a KVM that does not work, leaves no core file: it
			// would be in the user's directory and hold the guest's memory.
			_ = unix.Prlimit(c.cmd.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
		}
		started <- err
		if err != nil {
			return
		}
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	return c, nil
}

// kill ends the process and waits until it is gone.
func (c *child) kill() {
	select {
	case <-c.done:
	default:
		// Fails only if the process has just ended by itself.
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		<-c.done
	}
}

// waitFor reports whether the process has ended within d.
func (c *child) waitFor(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.done:
		return true
	case <-timer.C:
		return false
	}
}

// failure is nil after an exit with status 0. Its text has the program's last
// words. Call it after done.
func (c *child) failure() error {
	if c.err == nil {
		return nil
	}
	name := filepath.Base(c.cmd.Path)
	if words := lastLines(c.output.String(), 3); len(words) > 0 {
		return fmt.Errorf("%s: %w: %s", name, c.err, strings.Join(words, " | "))
	}
	return fmt.Errorf("%s: %w", name, c.err)
}

// socketpair returns two connected ends, ours and the one that a child inherits.
func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	conn, err := net.FileConn(ours) // a duplicate
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}
