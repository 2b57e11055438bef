package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/testenv"
)

// The tests with containers run as PID 1 of namespaces of their own: of this
// machine's, or of a guest that TestGuest boots with this very program.
const innerEnv = "PLINTH_RUNNER_INNER" // where the images are

// place is what the containers of a test run need: the images, a tmpfs for the
// runner. Empty where there are none.
var place struct {
	images, run string
	missing     string // what the machine lacks
	guest       bool   // with a kernel of its own, and cgroups that bound something
	initrd      bool   // whose root is the initrd's
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		switch dir := os.Getenv(innerEnv); {
		case os.Getpid() == 1 && dir == "":
			return guestMain(m)
		case dir != "":
			return innerMain(m, dir)
		}
		if place.missing = lacking(); place.missing != "" {
			return m.Run()
		}
		code, err := outerMain()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

func lacking() string {
	for _, tool := range []string{"crun", "go"} {
		if testenv.Tool(tool) == "" {
			return tool
		}
	}
	if os.Geteuid() != 0 {
		return "root"
	}
	return ""
}

// outerMain makes the images and runs the tests again, inside.
func outerMain() (int, error) {
	dir, err := os.MkdirTemp("", "plinth-runner-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := makeImages(dir); err != nil {
		return 0, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), innerEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// innerMain mounts what a guest has. The cgroups of this machine may be those of
// version 1, which hold the controllers: nothing is bounded then.
func innerMain(m *testing.M, images string) int {
	const run = "/media" // of every Debian, and empty
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", run, "tmpfs", 0, "mode=0755"),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""),
	)
	if err != nil {
		place.missing = "namespaces"
		fmt.Fprintln(os.Stderr, err)
		return m.Run()
	}
	// A tmpfs knows idmapped mounts since 6.3, whatever file system /tmp has.
	place.run, place.images = run, filepath.Join(run, "images")
	if out, err := exec.Command("cp", "-a", images, place.images).CombinedOutput(); err != nil {
		fmt.Fprintln(os.Stderr, err, string(out))
		return 1
	}
	if err := os.Chmod(place.images, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func needContainers(t *testing.T) {
	t.Helper()
	if place.images == "" {
		what := place.missing
		if what == "" {
			what = "namespaces"
		}
		testenv.Missing(t, what, "containers need it")
	}
}

// bounded tells whether cgroups have controllers here.
func bounded() bool {
	b, _ := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	have := strings.Fields(string(b))
	for _, want := range []string{"cpu", "memory", "pids"} {
		if !strings.Contains(" "+strings.Join(have, " ")+" ", " "+want+" ") {
			return false
		}
	}
	return true
}

// An image of the tests: a directory with the probe, and what else is said here.
type entry struct {
	path    string
	content string // of a file; of a link the target
	mode    uint32 // with the type; 0: a file of 0644
	uid     int
	dev     int
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/srv/web:/bin/sh\nbig:x:70000:70000::/:/bin/sh\n"
	group  = "root:x:0:\nweb:x:102:\nlogs:x:4:web,other\nextra:x:44:web\n"
)

var images = map[string][]entry{
	"base": {
		{path: "etc/passwd", content: passwd}, {path: "etc/group", content: group},
		{path: "etc/resolv.conf", content: "nameserver 192.0.2.1\n"},
		{path: "tmp", mode: unix.S_IFDIR | 0o1777},
		{path: "srv/web", mode: unix.S_IFDIR | 0o755, uid: 101},
		{path: "srv/web/index.html", content: "hello\n", uid: 101},
		{path: "rootonly", content: "secret\n", mode: unix.S_IFREG | 0o600},
		{path: "beyond", content: "nobody's\n", mode: unix.S_IFREG | 0o600, uid: 70000},
		{path: "node", mode: unix.S_IFCHR | 0o666, dev: 1<<8 | 5},
		{path: "blocknode", mode: unix.S_IFBLK | 0o666, dev: 7 << 8},
		{path: "suid", content: "x", mode: unix.S_IFREG | 0o4755},
	},
	// No place for any mount, and no accounts.
	"bare": {},
	// Every place is a link to somewhere else.
	"links": {
		{path: "etc", content: "../../../../../../elsewhere/etc", mode: unix.S_IFLNK},
		{path: "elsewhere/etc/passwd", content: passwd},
		{path: "elsewhere/etc/hosts", content: "/elsewhere/hosts-target", mode: unix.S_IFLNK},
		{path: "elsewhere/etc/hostname", content: "../../../../../../../../media/canary", mode: unix.S_IFLNK},
		{path: "data", content: "/../../..", mode: unix.S_IFLNK},
		{path: "work", content: "/elsewhere/work", mode: unix.S_IFLNK},
		{path: "elsewhere/work", mode: unix.S_IFDIR | 0o755},
	},
	"proclink":  {{path: "proc", content: "/elsewhere", mode: unix.S_IFLNK}, {path: "elsewhere", mode: unix.S_IFDIR | 0o755}},
	"devfile":   {{path: "dev", content: "a file"}},
	"fifo":      {{path: "etc/passwd", mode: unix.S_IFIFO | 0o644}},
	"device":    {{path: "etc/passwd", mode: unix.S_IFCHR | 0o644, dev: 1<<8 | 5}},
	"huge":      {{path: "etc/passwd", content: strings.Repeat("x:x:1:1::/:\n", maxAccounts/12+1)}},
	"directory": {{path: "etc/group/x", mode: unix.S_IFDIR | 0o755}},
	"loop":      {{path: "etc", content: "etc", mode: unix.S_IFLNK}},
}

func makeImages(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	probe := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-o", probe, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	for name, entries := range images {
		top := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Join(top, "bin"), 0o755); err != nil {
			return err
		}
		if err := os.Link(probe, filepath.Join(top, "bin", "probe")); err != nil {
			return err
		}
		for _, e := range entries {
			if err := e.make(top); err != nil {
				return fmt.Errorf("%s: %s: %w", name, e.path, err)
			}
		}
	}
	return nil
}

func (e entry) make(top string) error {
	name := filepath.Join(top, e.path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if e.mode == 0 {
		e.mode = unix.S_IFREG | 0o644
	}
	var err error
	switch e.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.MkdirAll(name, 0o755)
	case unix.S_IFLNK:
		return os.Symlink(e.content, name)
	case unix.S_IFREG:
		err = os.WriteFile(name, []byte(e.content), 0o644)
	default:
		err = unix.Mknod(name, e.mode, e.dev)
	}
	return errors.Join(err, os.Chown(name, e.uid, e.uid), unix.Chmod(name, e.mode&0o7777))
}
