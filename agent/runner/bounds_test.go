package runner

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/workload"
)

func needBounds(t *testing.T) {
	t.Helper()
	needContainers(t)
	if !bounded() {
		testenv.Missing(t, "cgroup2", "its controllers are with version 1; TestGuest has them")
	}
}

// A fork bomb stays below its bound, and the runner is not disturbed.
func TestProcessesBound(t *testing.T) {
	needBounds(t)
	r := newRunner(t)
	p := args("fork")
	p.Resources.PIDs = 50
	out, _ := run(t, r, spec(t, "bomb", "base", p))
	f := strings.Fields(out)
	made, err := strconv.Atoi(f[len(f)-1])
	if !strings.HasPrefix(out, "resource temporarily unavailable\nmade ") || err != nil || made < 10 || made >= 50 {
		t.Errorf("got %q", out)
	}
}

// Without a word about it there is a bound, too.
func TestDefaultBounds(t *testing.T) {
	r := resources(workload.Resources{})
	if *r.Pids.Limit != workload.DefaultPIDs || r.Memory != nil || r.CPU != nil || len(r.Devices) != 1 || r.Devices[0].Allow {
		t.Errorf("got %+v", r)
	}
	r = resources(workload.Resources{MemoryMiB: 3, MilliCPU: 1, PIDs: 4})
	if *r.Pids.Limit != 4 || *r.Memory.Limit != 3<<20 || *r.CPU.Quota != 1000 || *r.CPU.Period != 100000 || r.Unified["memory.oom.group"] != "1" {
		t.Errorf("got %+v", r)
	}
}

// Who takes more memory than it has is ended, as a whole.
func TestMemoryBound(t *testing.T) {
	needBounds(t)
	r := newRunner(t)
	var said buffer
	r.Logf = func(format string, args ...any) { fmt.Fprintf(&said, format, args...) }
	p := args("eat", "512")
	p.Resources.MemoryMiB = 48
	out, status := run(t, r, spec(t, "eater", "base", p))
	if !status.Signaled() || status.Signal() != 9 || out != "" {
		t.Errorf("status %#x, %q", int(status), out)
	}
	if !strings.HasPrefix(said.String(), "eater: out of memory: ") {
		t.Errorf("the log has %q", said.String())
	}
	p = args("eat", "8")
	p.Resources.MemoryMiB = 48
	if out, status := run(t, r, spec(t, "eater", "base", p)); out != "ate 8\n" || status != 0 {
		t.Errorf("status %#x, %q", int(status), out)
	}
}

// What is written to the root counts as the container's memory, and has a bound of
// its own.
func TestScratchBound(t *testing.T) {
	r := newRunner(t)
	p := args("write", "/big", "64")
	p.ScratchMiB = 8
	out, _ := run(t, r, spec(t, "writer", "base", p))
	if n, rest, _ := strings.Cut(out, " "); rest != "no space left on device\n" || n != "7" && n != "8" {
		t.Errorf("got %q", out)
	}
	for _, tt := range []struct {
		dir   string
		bound int
	}{{"/tmp", 1 * 256}, {"/own", 1 * 256}, {"/dev", 1 * 256}} {
		p = args("files", tt.dir)
		p.ScratchMiB, p.Mounts = 1, []workload.Mount{{Path: "/own", TmpfsMiB: 1}}
		out, _ = run(t, r, spec(t, "writer", "base", p))
		n, rest, _ := strings.Cut(out, " ")
		if made, err := strconv.Atoi(n); rest != "no space left on device\n" || err != nil || made < tt.bound/2 || made > tt.bound {
			t.Errorf("%s: got %q", tt.dir, out)
		}
	}
}

func TestProcessorBound(t *testing.T) {
	needBounds(t)
	r := newRunner(t)
	p := args("spin", "2000")
	p.Resources.MilliCPU = 200
	out, _ := run(t, r, spec(t, "spinner", "base", p))
	if ms, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || ms < 50 || ms > 1200 {
		t.Errorf("of 2,000 ms it got %q, want about 400", out)
	}
}

// Mounts are where they are named, in the order that puts them there.
func TestTmpfs(t *testing.T) {
	r := newRunner(t)
	p := args("cat", "/proc/self/mountinfo")
	p.Mounts = []workload.Mount{{Path: "/data/deep", TmpfsMiB: 2}, {Path: "/data", TmpfsMiB: 1}}
	out, _ := run(t, r, spec(t, "tmpfs", "base", p))
	for path, mib := range map[string]int{"/data/deep": 2, "/data": 1, "/dev/shm": shmMiB} {
		line := ""
		for l := range strings.Lines(out) {
			if f := strings.Fields(l); len(f) > 4 && f[4] == path {
				line = l
			}
		}
		for _, want := range []string{" - tmpfs ", fmt.Sprintf("size=%dk", mib<<10), fmt.Sprintf("nr_inodes=%d", mib*256), "nosuid,nodev"} {
			if !strings.Contains(line, want) {
				t.Errorf("%s: no %q in %q", path, want, line)
			}
		}
	}
	p = args("write", "/data/deep/x", "1")
	p.User, p.Mounts = "web", []workload.Mount{{Path: "/data", TmpfsMiB: 2}, {Path: "/data/deep", TmpfsMiB: 2}}
	if out, _ := run(t, r, spec(t, "tmpfs", "base", p)); out != "1 written\n" {
		t.Errorf("as another user: %q", out)
	}
}
