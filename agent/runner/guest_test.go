package runner

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// TestGuest runs all other tests as PID 1 of a guest: with cgroups that bound
// something, all capabilities, and image and root on the file systems that a guest
// has. PLINTH_VMLINUZ names kernels and PLINTH_MODULES their module directories in
// the same order. Where tests/setup has unpacked another crun than this machine's,
// both are used.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots kernels")
	}
	if place.guest {
		return // it has begun the others here
	}
	needContainers(t)
	testenv.Need(t, "qemu-system-x86_64", "mkfs.erofs")
	kernels, modules := filepath.SplitList(os.Getenv("PLINTH_VMLINUZ")), filepath.SplitList(os.Getenv("PLINTH_MODULES"))
	if len(kernels) == 0 || len(modules) < len(kernels) {
		testenv.Missing(t, "vmlinuz", "PLINTH_VMLINUZ and PLINTH_MODULES name no kernel")
	}
	cruns := []string{"/"}
	other := filepath.Join(testenv.Root(t), ".test", "crun", "root")
	if _, err := os.Stat(other); err == nil {
		cruns = append(cruns, other)
	}
	for i, kernel := range kernels {
		for j, root := range []string{"disk", "initrd"} {
			crun := cruns[(i+j)%len(cruns)] // each with each root, and with each kernel
			t.Run(filepath.Base(kernel)+"/"+root, func(t *testing.T) {
				t.Logf("crun of %s", crun)
				g := newGuest(t, crun, modules[i])
				console := g.boot(t, kernel, root)
				if !strings.Contains(console, guestPassed) || strings.Contains(console, "--- FAIL") {
					t.Fatal(console)
				}
				t.Logf("%d tests passed, %d were skipped", strings.Count(console, "--- PASS"), strings.Count(console, "--- SKIP"))
				if os.Getenv(guestRun) != "" {
					t.Log(console)
				}
			})
		}
	}
}

const (
	guestRun    = "PLINTH_GUEST_RUN" // names tests: only these run in the guest, and its console is shown
	guestPassed = "the guest's tests passed"
	guestRoot   = "RUNNER_ROOT" // the kernel passes it on to init
)

// A guest is what one is booted with.
type guest struct {
	initrd, disk string
}

// guestModules: those of an image with containers.
var guestModules = []string{"virtio_pci", "virtio_blk", "erofs", "overlay"}

func newGuest(t *testing.T, crun, modules string) guest {
	t.Helper()
	g := guest{initrd: filepath.Join(t.TempDir(), "initrd"), disk: filepath.Join(t.TempDir(), "disk")}
	files := programs(t, crun)
	files["etc/debian_version"] = []byte("12\n")
	g.makeDisk(t, files)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	files["init"] = self
	m, err := initrd.IndexModules(os.DirFS(modules))
	if err != nil {
		t.Fatal(err)
	}
	list, err := m.Closure(guestModules)
	if err != nil {
		t.Fatal(err)
	}
	for i, mod := range list {
		if files[fmt.Sprintf("modules/%02d", i)], err = mod.Content(); err != nil {
			t.Fatal(err)
		}
	}
	var entries []tree.Entry
	for name, b := range files {
		entries = append(entries, tree.File(name, 0o755, tree.Bytes(b)))
	}
	entries = append(entries, tree.CharDev("dev/console", 0o600, 5, 1))
	f, err := os.Create(g.initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := initrd.Write(f, nil, entries, initrd.Params{Compression: "zstd", Level: 1}); err != nil {
		t.Fatal(err)
	}
	return g
}

// makeDisk writes a root file system that holds the images, too.
func (g guest) makeDisk(t *testing.T, files map[string][]byte) {
	t.Helper()
	top := t.TempDir()
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range files {
		if err := os.MkdirAll(filepath.Join(top, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(top, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, argv := range [][]string{{"cp", "-a", place.images, filepath.Join(top, "images")}, {testenv.Tool("mkfs.erofs"), g.disk, top}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", argv[0], err, out)
		}
	}
}

// programs are crun and its libraries, by their paths in the guest.
func programs(t *testing.T, root string) map[string][]byte {
	t.Helper()
	const libraries = "lib/x86_64-linux-gnu"
	files := map[string][]byte{}
	todo := map[string]string{"usr/bin/crun": "usr/bin/crun", "lib64/ld-linux-x86-64.so.2": libraries + "/ld-linux-x86-64.so.2"}
	for len(todo) > 0 {
		name := slices.Sorted(maps.Keys(todo))[0]
		from := filepath.Join(root, todo[name])
		delete(todo, name)
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
		f, err := elf.Open(from)
		if err != nil {
			t.Fatal(err)
		}
		needed, err := f.ImportedLibraries()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, lib := range needed {
			to := path.Join(libraries, lib)
			if _, ok := files[to]; ok {
				continue
			}
			todo[to] = to
			if _, err := os.Stat(filepath.Join(root, to)); errors.Is(err, fs.ErrNotExist) {
				todo[to] = path.Join("usr", to)
			}
		}
	}
	return files
}

// boot runs the tests that this run was asked for.
func (g guest) boot(t *testing.T, kernel, root string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	pattern := os.Getenv(guestRun)
	if pattern == "" {
		pattern = "."
	}
	// Without cx16: see initrd's tests. With one processor: QEMU 7.2 emulating two dies
	// of the int3 by which the kernel patches itself when memory is first bounded.
	out, err := exec.CommandContext(ctx, testenv.Tool("qemu-system-x86_64"), "-accel", "tcg", "-cpu", "max,-cx16", "-m", "1024",
		"-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", g.initrd,
		"-drive", "file="+g.disk+",format=raw,if=virtio,readonly=on",
		"-append", "console=ttyS0 quiet panic=-1 "+guestRoot+"="+root+" -- -test.v -test.run="+pattern).CombinedOutput()
	if err != nil {
		t.Errorf("qemu: %v", err)
	}
	return string(out)
}

// guestMain is PID 1 of the guest.
func guestMain(m *testing.M) int {
	code := 1
	if err := guestPrepare(); err != nil {
		fmt.Println(err)
	} else {
		code = m.Run()
	}
	if code == 0 {
		fmt.Println(guestPassed)
	}
	time.Sleep(100 * time.Millisecond) // the console's last words
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	return code
}

func guestPrepare() error {
	for _, m := range []struct{ kind, target string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"}, {"cgroup2", "/sys/fs/cgroup"}, {"securityfs", "/sys/kernel/security"}} {
		if err := errors.Join(os.MkdirAll(m.target, 0o755), unix.Mount(m.kind, m.target, m.kind, unix.MS_NOSUID, "")); err != nil {
			return fmt.Errorf("%s: %w", m.target, err)
		}
	}
	modules, err := filepath.Glob("/modules/*")
	if err != nil {
		return err
	}
	for _, name := range modules {
		if err := loadModule(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+cpu +memory +pids"), 0); err != nil {
		return err
	}
	place.guest, place.run, place.initrd = true, "/run", os.Getenv(guestRoot) == "initrd"
	const disk = "/sysroot"
	if err := mountDisk(disk); err != nil {
		return err
	}
	place.images = disk + "/images"
	if !place.initrd {
		place.images = "/images"
		err = enterDisk(disk)
	}
	return errors.Join(err, os.Setenv("PATH", "/usr/bin"), os.Setenv("HOME", "/"))
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func mountDisk(target string) error {
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Mount("/dev/vda", target, "erofs", unix.MS_RDONLY, "")
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// enterDisk makes the disk the root, as the agent does with a verity one.
func enterDisk(disk string) error {
	for _, m := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} {
		if err := unix.Mount(m, disk+m, "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	return errors.Join(os.Chdir(disk), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/"))
}
