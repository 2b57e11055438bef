// Command dminit is an initrd that does what a kernel with DM_INIT does itself before
// any program runs: it makes the device that dm-mod.create describes, mounts it by
// root, rootflags and rootfstype, and starts /sbin/init of it as PID 1. Linux,
// Documentation, admin-guide/device-mapper/dm-init.rst. Kernels with it do without
// modules; here they are loaded first, in the order of their names.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/dm"
	"golang.org/x/sys/unix"
)

func main() {
	err := run()
	fmt.Println("dminit:", err)
	for {
		time.Sleep(time.Hour)
	}
}

func run() error {
	for _, m := range []struct{ fstype, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := errors.Join(os.MkdirAll(m.at, 0o755), unix.Mount(m.fstype, m.at, m.fstype, 0, "")); err != nil {
			return fmt.Errorf("%s: %w", m.at, err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	args := arguments(string(b))
	if err := create(args["dm-mod.create"]); err != nil {
		return fmt.Errorf("%s: %w", args["dm-mod.create"], err)
	}
	if args["root"] != "/dev/dm-0" || args["rootflags"] != "ro" {
		return fmt.Errorf("root=%s rootflags=%s", args["root"], args["rootflags"])
	}
	const root = "/sysroot"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(args["root"], root, args["rootfstype"], unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := errors.Join(unix.Chroot(root), unix.Chdir("/")); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, nil)
}

// arguments are those of a kernel command line, with values in quotes.
func arguments(line string) map[string]string {
	out, quoted := map[string]string{}, false
	words := strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return (r == ' ' || r == '\n') && !quoted
	})
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		out[k] = strings.Trim(v, `"`)
	}
	return out
}

// create makes a device: NAME,UUID,MINOR,FLAGS,TABLE with one line in the table.
func create(device string) error {
	parts := strings.SplitN(device, ",", 5)
	if len(parts) != 5 || parts[3] != "ro" {
		return errors.New("want NAME,,,ro,TABLE")
	}
	words := strings.SplitN(parts[4], " ", 4)
	if len(words) != 4 {
		return errors.New("want START LENGTH TARGET PARAMS")
	}
	start, err1 := strconv.ParseUint(words[0], 10, 64)
	length, err2 := strconv.ParseUint(words[1], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for range 500 { // the disk's driver was just loaded
		if _, err := os.Stat(strings.Fields(words[3])[2]); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	c, err := dm.Open("/dev/mapper/control")
	if err != nil {
		return err
	}
	_, err = c.Create(parts[0], "", []dm.Target{{Start: start, Length: length, Type: words[2], Params: words[3]}})
	return errors.Join(err, c.Close())
}

func loadModules() error {
	modules, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, m := range modules { // sorted
		f, err := os.Open(m)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) { // for hardware that is not there, and what needs it
			return fmt.Errorf("%s: %w", m, err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
