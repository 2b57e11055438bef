// Command probe is what runs in the containers of the tests: it tells what it finds
// there, or does what its arguments say.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if len(os.Args) < 2 {
		os.Args = append(os.Args, "report")
	}
	arg := func(n int) string {
		if n+1 < len(os.Args) {
			return os.Args[n+1]
		}
		return ""
	}
	number := func(n int) int { v, _ := strconv.Atoi(arg(n)); return v }
	switch arg(0) {
	case "report":
		report()
	case "exit":
		os.Exit(number(1))
	case "wait":
		wait(number(1))
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "noise":
		noise(number(1))
	case "fork":
		fork()
	case "child":
		time.Sleep(time.Hour)
	case "eat":
		eat(number(1))
	case "spin":
		spin(time.Duration(number(1)) * time.Millisecond)
	case "write":
		write(arg(1), number(2))
	case "files":
		files(arg(1))
	case "cat":
		b, err := os.ReadFile(arg(1))
		fmt.Printf("%s%v\n", b, err)
	case "reopen":
		f, err := os.OpenFile("/dev/stdout", os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString("reopened\n")
		}
		fmt.Println(err)
	case "listen":
		listen()
	case "orphan":
		orphan()
	case "escape":
		escape()
	case "remount":
		top := arg(1)
		if top == "" {
			top = "/"
		}
		fmt.Println(failure(syscall.Mount("", top, "", syscall.MS_REMOUNT, "")))
		fmt.Println(failure(syscall.Mount("", top, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_NOSUID|syscall.MS_NODEV, "")))
		fmt.Println(touch(filepath.Join(top, "new")))
	case "open":
		f, err := os.OpenFile(arg(1), number(2), 0)
		fmt.Println(failure(err))
		if err == nil {
			f.Close()
		}
	case "list":
		entries, err := os.ReadDir(arg(1))
		for _, e := range entries {
			fi, _ := e.Info()
			st := fi.Sys().(*syscall.Stat_t)
			fmt.Println(e.Name(), fi.Mode(), st.Uid, st.Gid)
		}
		fmt.Println(failure(err))
	default:
		os.Exit(99)
	}
}

// A Report is everything that the test compares.
type Report struct {
	UID, GID   int
	Groups     []int
	Args, Env  []string
	Dir        string
	Hostname   string
	Status     map[string]string
	Namespaces map[string]string
	UIDMap     string
	GIDMap     string
	Limits     map[string]string
	OOMScore   string
	Cgroup     string
	Mounts     []string // place, type, options of the mount
	Devices    []string
	Open       map[string]string // paths that nobody should read, and what came of it
	Write      map[string]string // paths that nobody should write
	Calls      map[string]string // system calls, and their error
	Sockets    map[string]string // families, and the error
	Listening  []string          // sockets in the file system and the abstract ones
	Interfaces []string
	Files      map[string]string
	Programs   []string // processes in sight
}

func report() {
	r := Report{UID: os.Getuid(), GID: os.Getgid(), Args: os.Args, Env: os.Environ(), Status: map[string]string{}, Namespaces: map[string]string{},
		Limits: map[string]string{}, Open: map[string]string{}, Write: map[string]string{}, Calls: map[string]string{}, Sockets: map[string]string{}, Files: map[string]string{}}
	r.Groups, _ = os.Getgroups()
	slices.Sort(r.Groups)
	r.Dir, _ = os.Getwd()
	r.Hostname, _ = os.Hostname()
	for line := range strings.Lines(read("/proc/self/status")) {
		k, v, _ := strings.Cut(line, ":")
		switch k {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters":
			r.Status[k] = strings.TrimSpace(v)
		}
	}
	for _, n := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		r.Namespaces[n], _ = os.Readlink("/proc/self/ns/" + n)
	}
	r.UIDMap, r.GIDMap = words(read("/proc/self/uid_map")), words(read("/proc/self/gid_map"))
	for line := range strings.Lines(read("/proc/self/limits")) {
		f := strings.Fields(line)
		for _, name := range []string{"Max core file size", "Max open files"} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				f = strings.Fields(rest)
				r.Limits[name] = f[0] + " " + f[1]
			}
		}
	}
	r.OOMScore = words(read("/proc/self/oom_score_adj"))
	r.Cgroup = words(read("/proc/self/cgroup"))
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		front, back, _ := strings.Cut(line, " - ")
		f := strings.Fields(front)
		r.Mounts = append(r.Mounts, f[4]+" "+strings.Fields(back)[0]+" "+f[5])
	}
	slices.Sort(r.Mounts)
	r.Devices = walk("/dev")
	for _, p := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/kmsg", "/sys/firmware", "/dev/mem", "/dev/kmsg", "/dev/tpm0", "/dev/tpmrm0",
		"/dev/sev-guest", "/dev/tdx_guest", "/dev/vsock", "/sys/kernel/config/tsm", "/sys/kernel/debug", "/sys/kernel/security", "/node", "/blocknode", "/rootonly", "/beyond"} {
		r.Open[p] = look(p)
	}
	for _, p := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/sys/fs/cgroup/cgroup.procs", "/sys/power/state", "/etc/resolv.conf", "/etc/hosts", "/new", "/given/new"} {
		r.Write[p] = touch(p)
	}
	calls(r.Calls)
	for name, a := range map[string][2]int{"unix": {1, 1}, "inet": {2, 1}, "raw": {2, 3}, "inet6": {10, 1}, "netlink": {16, 3}, "packet": {17, 3}, "alg": {38, 5}, "vsock": {40, 1}} {
		fd, err := syscall.Socket(a[0], a[1], 0)
		if name == "raw" {
			fd, err = syscall.Socket(a[0], a[1], 1) // ICMP
		}
		if err == nil {
			syscall.Close(fd)
		}
		r.Sockets[name] = failure(err)
	}
	// The kernel takes 32 bits of the family, a filter may compare 64.
	for name, family := range map[string]uintptr{"alg+1<<32": 38 | 1<<32, "vsock+1<<32": 40 | 1<<32} {
		fd, _, errno := syscall.RawSyscall(syscall.SYS_SOCKET, family, 1, 0)
		if errno == 0 {
			syscall.Close(int(fd))
		}
		r.Sockets[name] = failure(errnoError(errno))
	}
	r.Listening = listening()
	for line := range strings.Lines(read("/proc/net/dev")) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			r.Interfaces = append(r.Interfaces, strings.TrimSpace(name))
		}
	}
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/given"} {
		if b, err := os.ReadFile(f); err == nil {
			r.Files[f] = string(b)
		}
	}
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			r.Programs = append(r.Programs, e.Name())
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

func errnoError(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func read(name string) string { b, _ := os.ReadFile(name); return string(b) }
func words(s string) string   { return strings.Join(strings.Fields(s), " ") }

func walk(top string) []string {
	var out []string
	_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			out = append(out, p+" "+err.Error())
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return nil
		}
		st := fi.Sys().(*syscall.Stat_t)
		what := fi.Mode().String()
		if fi.Mode()&os.ModeDevice != 0 {
			what += fmt.Sprintf(" %d:%d", st.Rdev>>8&0xfff, st.Rdev&0xff)
		}
		if fi.Mode()&os.ModeSymlink != 0 {
			l, _ := os.Readlink(p)
			what = "-> " + l
		}
		out = append(out, p+" "+what)
		return nil
	})
	return out
}

// look tells what can be read: an error, or how much of it there is.
func look(p string) string {
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return failure(err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		names, _ := f.Readdirnames(-1)
		return fmt.Sprintf("%d entries", len(names))
	}
	b := make([]byte, 64)
	n, err := f.Read(b)
	return strings.TrimSpace(fmt.Sprintf("%d bytes %s", n, failure(err)))
}

func touch(p string) string {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return failure(err)
	}
	f.Close()
	return "open"
}

func failure(err error) string {
	if err == nil {
		return ""
	}
	for e := err; e != nil; {
		if n, ok := e.(syscall.Errno); ok {
			return n.Error()
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			return e.Error()
		}
		e = u.Unwrap()
	}
	return err.Error()
}

func calls(out map[string]string) {
	call := func(name string, nr, a, b, c uintptr) {
		_, _, errno := syscall.RawSyscall(nr, a, b, c)
		out[name] = "allowed"
		if errno != 0 {
			out[name] = errno.Error()
		}
	}
	str := func(s string) uintptr { b := append([]byte(s), 0); return uintptr(unsafe.Pointer(&b[0])) }
	call("unshare(user)", syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER, 0, 0)
	call("unshare(net)", syscall.SYS_UNSHARE, syscall.CLONE_NEWNET, 0, 0)
	call("mount", syscall.SYS_MOUNT, str("none"), str("/tmp"), str("tmpfs"))
	call("umount", syscall.SYS_UMOUNT2, str("/proc"), 2, 0)
	call("clone3", 435, 0, 0, 0)
	call("bpf", 321, 0, 0, 0)
	call("keyctl", 250, 0, 0, 0)
	call("add_key", 248, 0, 0, 0)
	call("io_uring_setup", 425, 1, 0, 0)
	call("userfaultfd", 323, 0, 0, 0)
	call("perf_event_open", 298, 0, 0, 0)
	call("init_module", 175, 0, 0, 0)
	call("finit_module", 313, ^uintptr(0), 0, 0)
	call("kexec_load", 246, 0, 0, 0)
	call("open_by_handle_at", 304, 0, 0, 0)
	call("open_tree", 428, 0, 0, 0)
	call("reboot", 169, 0, 0, 0)
	call("settimeofday", 164, 0, 0, 0)
	call("sethostname", 170, str("x"), 1, 0)
	call("pivot_root", 155, str("/"), str("/"), 0)
	call("swapon", 167, str("/"), 0, 0)
	call("syslog", 103, 3, 0, 0)
	call("iopl", 172, 3, 0, 0)
	call("mknod(device)", syscall.SYS_MKNOD, str("/tmp-null"), syscall.S_IFCHR|0o666, 1<<8|3)
	call("chroot", syscall.SYS_CHROOT, str("/"), 0, 0)
	call("setns", 308, 0, 0, 0)
}

// listening finds what somebody might answer on.
func listening() []string {
	out := []string{}
	for line := range strings.Lines(read("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) > 7 && strings.HasPrefix(f[7], "@") {
			out = append(out, f[7])
		}
	}
	_ = filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "/proc" {
			return filepath.SkipDir
		}
		if d.Type()&os.ModeSocket != 0 {
			out = append(out, p)
		}
		return nil
	})
	return out
}

func wait(status int) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGUSR1)
	fmt.Println("waiting")
	s := <-ch
	fmt.Println("got", s)
	os.Exit(status)
}

func noise(mib int) {
	b := bytes.Repeat([]byte("noise noise noise noise noise n\n"), 1<<15)
	for range mib {
		if _, err := os.Stdout.Write(b); err != nil {
			os.Exit(1)
		}
	}
}

// fork makes processes until it may not.
func fork() {
	n := 0
	for n < 5000 {
		_, err := syscall.ForkExec("/bin/probe", []string{"probe", "child"}, &syscall.ProcAttr{})
		if err != nil {
			fmt.Println(failure(err))
			break
		}
		n++
	}
	fmt.Println("made", n)
}

func eat(mib int) {
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
	fmt.Println("ate", len(keep))
}

var keep [][]byte

// spin uses the processor for a while and tells how much of it it got.
func spin(d time.Duration) {
	for start := time.Now(); time.Since(start) < d; {
	}
	var u syscall.Rusage
	_ = syscall.Getrusage(0, &u)
	fmt.Println(time.Duration(u.Utime.Nano() + u.Stime.Nano()).Milliseconds())
}

func write(name string, mib int) {
	f, err := os.Create(name)
	if err != nil {
		fmt.Println(failure(err))
		return
	}
	b := make([]byte, 1<<20)
	for i := range mib {
		if _, err := f.Write(b); err != nil {
			fmt.Println(i, failure(err))
			return
		}
	}
	fmt.Println(mib, "written")
}

// files makes empty ones until it may not.
func files(dir string) {
	for i := range 1 << 20 {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			fmt.Println(i, failure(err))
			return
		}
		f.Close()
	}
}

func listen() {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: "@probe"})
	}
	if err == nil {
		err = syscall.Listen(fd, 1)
	}
	fmt.Println("listening", err)
	time.Sleep(time.Hour)
}

// orphan leaves a child behind that holds the output open.
func orphan() {
	_, err := syscall.ForkExec("/bin/probe", []string{"probe", "child"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}})
	fmt.Println("left", err)
}

// escape climbs out of a chroot, as far as that goes.
func escape() {
	_ = os.Mkdir("/jail", 0o755)
	d, _ := os.Open("/")
	if err := syscall.Chroot("/jail"); err != nil {
		fmt.Println(err)
	}
	_ = d.Chdir()
	for range 64 {
		_ = os.Chdir("..")
	}
	if err := syscall.Chroot("."); err != nil {
		fmt.Println(err)
	}
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		fmt.Println(e.Name())
	}
}
