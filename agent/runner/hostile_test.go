package runner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/workload"
)

// TestHostile runs images that were made to get at the guest. What is contained
// works as if nothing were strange; what is refused says why.
func TestHostile(t *testing.T) {
	const canary = "untouched\n"
	for _, tt := range []struct {
		name, image string
		process     workload.Process
		want        string // contained: the output
		refused     string // refused: in the error
	}{
		{name: "links as places of mounts", image: "links", process: args("cat", "/etc/hosts"), want: "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n<nil>\n"},
		{name: "what the link leads to", image: "links", process: args("cat", "/elsewhere/hosts-target"), want: "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n<nil>\n"},
		{name: "a link out of the root", image: "links", process: args("cat", "/media/canary"), want: "hostile\n<nil>\n"},
		{name: "accounts behind a link", image: "links", process: with(args("cat", "/etc/hostname"), func(p *workload.Process) { p.User = "web" }), want: "hostile\n<nil>\n"},
		{name: "a working directory behind a link", image: "links", process: with(args("open", "/elsewhere/work/deep", "0"), func(p *workload.Process) { p.Dir = "/work/deep" }), want: "\n"},
		{name: "a working directory above the root", image: "links", process: with(args("open", "/deep", "0"), func(p *workload.Process) { p.Dir = "/data/deep" }), want: "\n"},
		{name: "a mount above the root", image: "links", process: with(args("open", "/deep", "0"), func(p *workload.Process) {
			p.Mounts = []workload.Mount{{Path: "/data/deep", TmpfsMiB: 1}}
		}), want: "\n"},
		{name: "a file as /dev", image: "devfile", process: args("sleep"), refused: "crun create"},
		{name: "accounts from a FIFO", image: "fifo", process: with(args("sleep"), func(p *workload.Process) { p.User = "web" }), refused: "/etc/passwd of the image: p---------, 0 bytes: want a file"},
		{name: "accounts from a device", image: "device", process: with(args("sleep"), func(p *workload.Process) { p.User = "web" }), refused: "/etc/passwd of the image: permission denied"},
		{name: "endless accounts", image: "huge", process: args("sleep"), refused: "/etc/passwd of the image: ----------, 1048584 bytes: want a file of at most 1048576"},
		{name: "a directory as accounts", image: "directory", process: args("sleep"), refused: "/etc/group of the image: d---------"},
		{name: "a link to itself", image: "loop", process: args("sleep"), refused: "too many levels of symbolic links"},
		{name: "out of a chroot", image: "base", process: args("escape"), want: "beyond\nbin\nblocknode\ndev\netc\njail\nnode\nproc\nrootonly\nsrv\nsuid\nsys\ntmp\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRunner(t)
			watched := filepath.Join(place.run, "canary")
			if err := os.WriteFile(watched, []byte(canary), 0o644); err != nil {
				t.Fatal(err)
			}
			before := names(t, "/", "/etc", place.run)
			s := spec(t, "hostile", tt.image, tt.process)
			if tt.refused != "" {
				c, err := r.Create(patience(t), s)
				if err == nil {
					_ = c.Delete(patience(t))
				}
				if err == nil || !strings.Contains(err.Error(), tt.refused) || strings.Contains(err.Error(), "delete:") {
					t.Errorf("got %v, want %q", err, tt.refused)
				}
			} else if out, _ := run(t, r, s); out != tt.want {
				t.Errorf("got %q, want %q", out, tt.want)
			}
			if b, err := os.ReadFile(watched); err != nil || string(b) != canary {
				t.Errorf("the guest's file has %q (%v)", b, err)
			}
			if after := names(t, "/", "/etc", place.run); after != before {
				t.Errorf("the guest has\n%s\nand had\n%s", after, before)
			}
		})
	}
}

func with(p workload.Process, f func(*workload.Process)) workload.Process {
	f(&p)
	return p
}

func names(t *testing.T, dirs ...string) string {
	t.Helper()
	var out []string
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, filepath.Join(d, e.Name()))
		}
	}
	return strings.Join(out, " ")
}

// /proc as a link: crun either refuses it or mounts inside; never a procfs that is
// not the container's own.
func TestProcLink(t *testing.T) {
	r := newRunner(t)
	c, err := r.Create(patience(t), spec(t, "link", "proclink", args("list", "/elsewhere")))
	if err != nil {
		if !strings.Contains(err.Error(), "crun create") {
			t.Error(err)
		}
		return
	}
	if err := c.Delete(patience(t)); err != nil {
		t.Error(err)
	}
}

// The image's owners are the container's, and a user beyond its range is nobody.
func TestOwners(t *testing.T) {
	r := newRunner(t)
	out, _ := run(t, r, spec(t, "owners", "base", args("list", "/")))
	for _, want := range []string{"beyond -rw------- 65534 65534\n", "rootonly -rw------- 0 0\n", "suid urwxr-xr-x 0 0\n", "srv drwxr-xr-x 0 0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if out, _ := run(t, r, spec(t, "owners", "base", args("list", "/srv"))); out != "web drwxr-xr-x 101 101\n\n" {
		t.Errorf("got %q", out)
	}
}

// Sources are files and directories of the root file system, and read-only.
func TestSources(t *testing.T) {
	r := newRunner(t)
	content, err := os.ReadFile("/etc/debian_version")
	if err != nil {
		t.Fatal(err)
	}
	mounts := func(source string) func(*workload.Process) {
		return func(p *workload.Process) { p.Mounts = []workload.Mount{{Path: "/given", Source: source}} }
	}
	for _, tt := range []struct {
		source, want string
		args         workload.Process
	}{
		{"/etc/debian_version", string(content) + "<nil>\n", args("cat", "/given")},
		{"/etc/debian_version", "no", args("open", "/given", "1")},
		{"/etc", string(content) + "<nil>\n", args("cat", "/given/debian_version")},
		{"/etc", "no", args("open", "/given/new", "65")}, // O_WRONLY|O_CREAT
	} {
		if out, _ := run(t, r, spec(t, "source", "base", with(tt.args, mounts(tt.source)))); out != tt.want && (tt.want != "no" || out != noRight+"\n" && out != "read-only file system\n") {
			t.Errorf("%s: got %q, want %q", tt.source, out, tt.want)
		}
	}
	if err := os.WriteFile(filepath.Join(place.run, "secret"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]string{
		"/proc/version": "invalid cross-device link", "/dev/null": "invalid cross-device link", filepath.Join(place.run, "secret"): "invalid cross-device link",
		"/sys": "invalid cross-device link", "/nowhere": missing, "/proc/self/root": "invalid cross-device link",
	} {
		c, err := r.Create(patience(t), spec(t, "source", "base", with(args("sleep"), mounts(source))))
		if err == nil {
			_ = c.Delete(patience(t))
		}
		if err == nil || !strings.Contains(err.Error(), "mount /given: source "+source+": "+want) {
			t.Errorf("%s: got %v, want %q", source, err, want)
		}
	}
}

// CAP_SYS_ADMIN undoes what crun does to mounts: the files are a stranger's then.
func TestSourceSealed(t *testing.T) {
	r := newRunner(t)
	p := with(args("remount", "/given"), func(p *workload.Process) {
		p.Mounts = []workload.Mount{{Path: "/given", Source: "/etc"}}
		p.Capabilities = []string{"CAP_SYS_ADMIN"}
	})
	s := spec(t, "sealed", "base", p)
	if place.initrd {
		if _, err := r.Create(patience(t), s); err == nil || !strings.Contains(err.Error(), "CAP_SYS_ADMIN: not where") {
			t.Errorf("got %v", err)
		}
		return
	}
	out, _ := run(t, r, s)
	if lines := strings.Split(out, "\n"); len(lines) < 3 || lines[2] != noRight && lines[2] != "read-only file system" {
		t.Errorf("got %q", out)
	}
}

func TestInitrdRoot(t *testing.T) {
	const first = "1 0 0:2 / / rw - rootfs none rw\n"
	for text, want := range map[string]bool{
		"": false, first: true,
		first + "22 1 253:0 / / ro - erofs /dev/dm-0 ro\n":                                false,
		"22 1 253:0 / / ro shared:1 - ext4 /dev/vda rw\n":                                 false,
		first + "22 1 0:20 / /proc rw - proc proc rw\n":                                   true,
		first + "22 1 0:20 / /x\\040-\\040rootfs rw - erofs /dev/vda rw\nbroken - rootfs": true,
	} {
		if got := initrdRoot(text); got != want {
			t.Errorf("%q: got %v", text, got)
		}
	}
	if noPivot() != place.initrd {
		t.Errorf("noPivot is %v here", noPivot())
	}
}

func TestMakeWorkDir(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "gives files away")
	}
	c := &Container{dir: t.TempDir()}
	outside := filepath.Join(c.dir, "outside")
	for _, d := range []string{rootDir, rootDir + "/a", "outside"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"up": "../../outside", "abs": outside, "inside": "/a", "dangling": "/none", "a/back": "../a", "self": "self"} {
		if err := os.Symlink(target, filepath.Join(c.path(rootDir), link)); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]string{
		"/": "", "/a": "a", "/a/b/c": "a/b/c", "/inside/d": "a/d", "/a/back/e": "a/e", "/up/x": "error", "/dangling/x": "error", "/self": "error", "/abs/x": "error",
	} {
		err := c.makeWorkDir(dir)
		if want == "error" {
			if err == nil {
				t.Errorf("%s: no error", dir)
			}
			continue
		}
		var st unix.Stat_t
		if err != nil {
			t.Errorf("%s: %v", dir, err)
		} else if err := unix.Stat(filepath.Join(c.path(rootDir), want), &st); err != nil || want != "" && want != "a" && int(st.Uid) != c.base() {
			t.Errorf("%s: %v, owner %d", dir, err, st.Uid)
		}
	}
	if left := names(t, outside); left != "" {
		t.Errorf("outside there is %s", left)
	}
}
