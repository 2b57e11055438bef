package runner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A crunError is how crun ended, and what it said. For "exec" a status without a
// text is the program's.
type crunError struct {
	verb   string
	status syscall.WaitStatus
	text   string
}

func (e *crunError) Error() string {
	how := fmt.Sprintf("status %d", e.status.ExitStatus())
	if e.status.Signaled() {
		how = e.status.Signal().String()
	}
	return strings.TrimSuffix(fmt.Sprintf("crun %s: %s: %s", e.verb, how, e.text), ": ")
}

// maxLog bounds what is read of crun's log, which an image's names end up in.
const maxLog = 4096

// state is where crun keeps what it knows of a container.
func (r *Runner) state(id string) string { return filepath.Join(r.crunRoot(), id) }

func (r *Runner) crunRoot() string { return filepath.Join(r.Dir, ".crun") }

// crun runs one of its commands. The container's process inherits out; crun's own
// messages go to a file.
func (c *Container) crun(ctx context.Context, out *os.File, args ...string) (syscall.WaitStatus, error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	if out == nil {
		out = null
	}
	log := fmt.Sprintf("%s.%d", c.path(logFile), c.calls.Add(1))
	defer os.Remove(log)
	global := []string{"crun", "--root", c.r.crunRoot(), "--cgroup-manager", "cgroupfs", "--log", "file:" + log}
	status, err := c.r.Processes.Run(ctx, Command{
		Path: c.r.Crun, Args: append(global, args...), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: [3]*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return status, fmt.Errorf("crun %s: %w", args[0], err)
	}
	if status.Exited() && status.ExitStatus() == 0 {
		return status, nil
	}
	return status, &crunError{verb: args[0], status: status, text: readLog(log)}
}

func readLog(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxLog))
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(b), "?")), " ")
}

func readPID(name string) (int, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s: %.20q: want a process ID", name, b)
	}
	return pid, nil
}

func (c *Container) writeConfig(conf *config) error { return writeJSON(c.path(bundleFile), conf) }

func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(name, b, 0o600)
}

const (
	cgroupRoot = "/sys/fs/cgroup" // version 2
	cgroupTop  = "/workloads"     // below it
)

// cgroup is where the container's processes are, below cgroupRoot.
func (c *Container) cgroup() string { return filepath.Join("/", cmp.Or(c.r.group, cgroupTop), c.id) }

// killAll ends every process of the container, also those of a crun that was
// interrupted before it had written down what it made. Where there is no such
// cgroup there is no process.
func (c *Container) killAll() {
	_ = os.WriteFile(filepath.Join(cgroupRoot, c.cgroup(), "cgroup.kill"), []byte("1"), 0)
}

// reportMemory says when the kernel ended the container: nothing else tells it from
// another SIGKILL. Documentation/admin-guide/cgroup-v2.rst, "memory.events".
func (c *Container) reportMemory() {
	b, err := os.ReadFile(filepath.Join(cgroupRoot, c.cgroup(), "memory.events"))
	if err != nil {
		return // no controller, or crun made no cgroup
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok && n != "0" {
			c.r.logf("%s: out of memory: the kernel ended %s processes", c.id, n)
		}
	}
}

// removeCgroup takes away what a crun leaves that failed. The kernel keeps a cgroup
// for a moment longer than its last process.
func (c *Container) removeCgroup(ctx context.Context) error {
	for tries := 0; ; tries++ {
		err := os.Remove(filepath.Join(cgroupRoot, c.cgroup()))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if tries == 500 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// userNamespace makes one that maps a container's users and has no process: mounts
// take their mapping from it.
func (r *Runner) userNamespace(ctx context.Context, base int) (*os.File, error) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: rangeSize}}
	var ns *os.File
	_, err = r.Processes.Run(ctx, Command{
		// Any program will do. Nobody waits for it before its namespace is open, and
		// /proc shows a zombie's.
		Path: r.Crun, Args: []string{"crun", "--version"}, Files: [3]*os.File{null, null, null},
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids},
		started: func(pid int) (err error) {
			ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
			return err
		},
	})
	if err != nil {
		if ns != nil {
			err = errors.Join(err, ns.Close())
		}
		return nil, err
	}
	return ns, nil
}
