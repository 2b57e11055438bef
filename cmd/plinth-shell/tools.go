package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/core"
	"github.com/u-root/u-root/pkg/core/base64"
	"github.com/u-root/u-root/pkg/core/cat"
	"github.com/u-root/u-root/pkg/core/chmod"
	"github.com/u-root/u-root/pkg/core/cp"
	"github.com/u-root/u-root/pkg/core/find"
	"github.com/u-root/u-root/pkg/core/ls"
	"github.com/u-root/u-root/pkg/core/mkdir"
	"github.com/u-root/u-root/pkg/core/mv"
	"github.com/u-root/u-root/pkg/core/rm"
	"github.com/u-root/u-root/pkg/core/shasum"
	"github.com/u-root/u-root/pkg/core/touch"
	"golang.org/x/sys/unix"
)

type tool func(args []string) error

// tools are the commands beside the shell's own. Those that u-root has as
// packages are u-root's; the others are the least that helps.
var tools = map[string]tool{
	"base64": uroot(base64.New),
	"cat":    uroot(cat.New),
	"chmod":  uroot(chmod.New),
	"cp":     uroot(cp.New),
	"find":   uroot(find.New),
	"ls":     uroot(ls.New),
	"mkdir":  uroot(mkdir.New),
	"mv":     uroot(mv.New),
	"rm":     uroot(rm.New),
	"shasum": uroot(shasum.New),
	"touch":  uroot(touch.New),

	"dmesg":    dmesg,
	"grep":     grep,
	"hexdump":  hexdump,
	"kill":     kill,
	"mount":    mount,
	"poweroff": poweroff,
	"ps":       ps,
	"umount":   unmount,
	"uname":    uname,
}

func uroot(command func() core.Command) tool {
	return func(args []string) error { return command().Run(args...) }
}

// dmesg prints the kernel's log.
func dmesg([]string) error {
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return err
	}
	b := make([]byte, size)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b[:n])
	return err
}

// grep [-i] [-v] PATTERN [FILE ...] prints lines that match, or with -v do not.
func grep(args []string) error {
	f := flag.NewFlagSet("grep", flag.ContinueOnError)
	fold := f.Bool("i", false, "upper and lower case are the same")
	invert := f.Bool("v", false, "lines that do not match")
	if err := f.Parse(args); err != nil || f.NArg() == 0 {
		return errors.New("usage: grep [-i] [-v] PATTERN [FILE ...]")
	}
	pattern := f.Arg(0)
	if *fold {
		pattern = "(?i)" + pattern
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	return input(f.Args()[1:], func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if re.Match(lines.Bytes()) != *invert {
				fmt.Println(lines.Text())
			}
		}
		return lines.Err()
	})
}

// hexdump [FILE ...] prints bytes.
func hexdump(args []string) error {
	return input(args, func(r io.Reader) error {
		d := hex.Dumper(os.Stdout)
		if _, err := io.Copy(d, r); err != nil {
			return err
		}
		return d.Close()
	})
}

// input calls f with each file, or with standard input when there is none.
func input(files []string, f func(io.Reader) error) error {
	if len(files) == 0 {
		return f(os.Stdin)
	}
	for _, name := range files {
		r, err := os.Open(name)
		if err != nil {
			return err
		}
		err = f(r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// kill [-SIGNAL] PID... sends a signal, by number; 15 without one.
func kill(args []string) error {
	sig := unix.SIGTERM
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		n, err := strconv.Atoi(args[0][1:])
		if err != nil {
			return fmt.Errorf("signal %q: want a number", args[0][1:])
		}
		sig, args = unix.Signal(n), args[1:]
	}
	for _, a := range args {
		pid, err := strconv.Atoi(a)
		if err != nil {
			return fmt.Errorf("process %q: want a number", a)
		}
		if err := unix.Kill(pid, sig); err != nil {
			return fmt.Errorf("%d: %w", pid, err)
		}
	}
	return nil
}

// mount lists file systems; mount -t TYPE SOURCE TARGET mounts one.
func mount(args []string) error {
	if len(args) == 0 {
		return cat.New().Run("/proc/mounts")
	}
	if len(args) != 4 || args[0] != "-t" {
		return errors.New("usage: mount [-t TYPE SOURCE TARGET]")
	}
	return unix.Mount(args[2], args[3], args[1], 0, "")
}

// unmount TARGET...
func unmount(args []string) error {
	for _, target := range args {
		if err := unix.Unmount(target, 0); err != nil {
			return err
		}
	}
	return nil
}

// poweroff asks PID 1 to end the machine.
func poweroff([]string) error { return unix.Kill(1, unix.SIGTERM) }

// ps lists processes: number, parent, state, command line.
func ps([]string) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	fmt.Println("  PID  PPID S COMMAND")
	for _, d := range dirs {
		stat, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil { // it has just ended
			continue
		}
		line, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil {
			continue
		}
		fmt.Println(process(string(stat), string(line)))
	}
	return nil
}

// process formats one line of ps. The name in stat may hold anything, brackets
// and spaces included: proc_pid_stat(5).
func process(stat, cmdline string) string {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return stat
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 2 {
		return stat
	}
	name := strings.ReplaceAll(strings.TrimSuffix(cmdline, "\x00"), "\x00", " ")
	if name == "" { // a kernel thread
		name = "[" + stat[open+1:end] + "]"
	}
	return fmt.Sprintf("%5s %5s %s %s", strings.TrimSpace(stat[:open]), fields[1], fields[0], name)
}

// uname prints kernel, release and machine.
func uname([]string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Println(unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), unix.ByteSliceToString(u.Machine[:]))
	return nil
}
