package runner

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/workload"
)

const (
	denied  = "operation not permitted"
	missing = "no such file or directory"
	noRight = "permission denied"
)

// wantReport is what a container of the image "base" finds, to the last entry.
func wantReport() report {
	nofile := "65536 65536"
	if !place.guest { // root of a machine may be without CAP_SYS_RESOURCE
		var l unix.Rlimit
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
		nofile = fmt.Sprintf("%d %[1]d", min(l.Max, 65536))
	}
	return report{
		Args: []string{"/bin/probe", "report"}, Dir: "/", Hostname: "probe",
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		UIDMap: "0 65536 65536", GIDMap: "0 65536 65536", OOMScore: "500", Cgroup: "0::/",
		Status: map[string]string{
			// Bits of linux/capability.h: 0 chown, 1 dac_override, 3 fowner, 4 fsetid, 5 kill,
			// 6 setgid, 7 setuid, 10 net_bind_service, 18 sys_chroot.
			"CapInh": caps(), "CapPrm": caps(0, 1, 3, 4, 5, 6, 7, 10, 18), "CapEff": caps(0, 1, 3, 4, 5, 6, 7, 10, 18), "CapBnd": caps(0, 1, 3, 4, 5, 6, 7, 10, 18), "CapAmb": caps(),
			"NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
		},
		Limits: map[string]string{"Max core file size": "0 0", "Max open files": nofile},
		Mounts: wantMounts(),
		Devices: []string{
			"/dev drwxr-xr-x", "/dev/core -> /proc/kcore", "/dev/fd -> /proc/self/fd", "/dev/full Dcrw-rw-rw- 1:7", "/dev/mqueue dtrwxrwxrwx", "/dev/null Dcrw-rw-rw- 1:3",
			"/dev/ptmx -> pts/ptmx", "/dev/pts drwxr-xr-x", "/dev/pts/ptmx Dcrw-rw-rw- 5:2", "/dev/random Dcrw-rw-rw- 1:8", "/dev/shm dtrwxrwxrwx",
			"/dev/stderr -> /proc/self/fd/2", "/dev/stdin -> /proc/self/fd/0", "/dev/stdout -> /proc/self/fd/1",
			"/dev/tty Dcrw-rw-rw- 5:0", "/dev/urandom Dcrw-rw-rw- 1:9", "/dev/zero Dcrw-rw-rw- 1:5",
		},
		Open: map[string]string{
			"/proc/kcore": "0 bytes EOF", "/proc/keys": "0 bytes EOF", "/proc/timer_list": "0 bytes EOF", "/proc/kmsg": noRight,
			"/sys/firmware": "0 entries", "/sys/kernel/debug": "0 entries", "/sys/kernel/security": "0 entries", "/sys/kernel/config/tsm": missing,
			"/dev/mem": missing, "/dev/kmsg": missing, "/dev/tpm0": missing, "/dev/tpmrm0": missing, "/dev/sev-guest": missing, "/dev/tdx_guest": missing, "/dev/vsock": missing,
			"/node": noRight, "/blocknode": noRight, // devices of the image
			"/rootonly": "7 bytes", "/beyond": noRight, // of a user that the container has not
		},
		Write: map[string]string{
			"/proc/sys/kernel/core_pattern": noRight, "/proc/sys/vm/drop_caches": noRight, "/proc/sysrq-trigger": noRight,
			"/sys/fs/cgroup/cgroup.procs": "read-only file system", "/sys/power/state": noRight,
			"/etc/resolv.conf": noRight, "/etc/hosts": noRight, "/new": "open", "/given/new": missing,
		},
		Calls:      wantCalls(),
		Sockets:    map[string]string{"unix": "", "inet": "", "inet6": "", "netlink": "", "raw": denied, "packet": denied, "alg": denied, "vsock": denied, "alg+1<<32": denied, "vsock+1<<32": denied},
		Listening:  []string{},
		Interfaces: []string{"lo"},
		Files: map[string]string{
			"/etc/resolv.conf": "nameserver 192.0.2.53\n", "/etc/hostname": "probe\n",
			"/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		},
		Programs: []string{"1"},
	}
}

func caps(bits ...int) string {
	n := uint64(0)
	for _, b := range bits {
		n |= 1 << b
	}
	return fmt.Sprintf("%016x", n)
}

// wantMounts are all mounts with their options; of what crun lays over /proc and
// /sys, where the kernel has it, only that it is read-only.
func wantMounts() []string {
	const dev, etc = " devtmpfs rw,nosuid,noexec,relatime", " tmpfs ro,nosuid,nodev,noexec,relatime"
	out := []string{
		"/ overlay rw,nosuid,nodev,relatime",
		"/dev tmpfs rw,nosuid,noexec,relatime", "/dev/full" + dev, "/dev/mqueue mqueue rw,nosuid,nodev,noexec,relatime", "/dev/null" + dev, "/dev/pts devpts rw,nosuid,noexec,relatime",
		"/dev/random" + dev, "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime", "/dev/tty" + dev, "/dev/urandom" + dev, "/dev/zero" + dev,
		"/etc/hostname" + etc, "/etc/hosts" + etc, "/etc/resolv.conf" + etc,
		"/proc proc rw,nosuid,nodev,noexec,relatime", "/sys sysfs ro,nosuid,nodev,noexec,relatime", "/sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime",
	}
	for _, p := range []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/misc/tdx_guest", "/sys/devices/virtual/powercap", "/sys/firmware"} {
		if fi, err := os.Stat(p); err == nil && fi.IsDir() {
			out = append(out, p+" tmpfs ro")
		} else if err == nil {
			out = append(out, p+" devtmpfs ro")
		}
	}
	for _, p := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"} {
		if _, err := os.Stat(p); err == nil {
			out = append(out, p+" proc ro")
		}
	}
	slices.Sort(out)
	return out
}

// short drops the options of what crun lays over the kernel's files: its versions
// differ there.
func short(mounts []string) []string {
	var out []string
	for _, m := range mounts {
		f := strings.Fields(m)
		own := f[0] == "/proc" || f[0] == "/sys" || f[0] == "/sys/fs/cgroup"
		if system(f[0]) && !own && !strings.HasPrefix(f[0], "/dev") {
			f[2], _, _ = strings.Cut(f[2], ",")
		}
		out = append(out, strings.Join(f, " "))
	}
	return out
}

func wantCalls() map[string]string {
	out := map[string]string{"clone3": "function not implemented", "chroot": "allowed"}
	for _, name := range []string{"unshare(user)", "unshare(net)", "mount", "umount", "bpf", "keyctl", "add_key", "io_uring_setup", "userfaultfd", "perf_event_open", "init_module",
		"finit_module", "kexec_load", "open_by_handle_at", "open_tree", "reboot", "settimeofday", "sethostname", "pivot_root", "swapon", "syslog", "iopl", "mknod(device)", "setns"} {
		out[name] = denied
	}
	return out
}

// check compares a report, except for what is the machine's: the numbers of the
// namespaces, which are checked to be others than the test's, and on a machine
// without cgroup v2 alone the list of its hierarchies.
func check(t *testing.T, got, want report) {
	t.Helper()
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || !strings.HasPrefix(got.Namespaces[kind], kind+":[") || got.Namespaces[kind] == own {
			t.Errorf("namespace %s is %q, the test's is %q (%v)", kind, got.Namespaces[kind], own, err)
		}
	}
	got.Namespaces = nil
	got.Mounts, want.Mounts = short(got.Mounts), short(want.Mounts)
	if !place.guest {
		f := strings.Fields(got.Cgroup)
		got.Cgroup = f[len(f)-1]
		for _, p := range []string{"/proc/kcore", "/proc/sysrq-trigger"} { // this machine's kernel may be without
			if _, err := os.Stat(p); err != nil {
				for _, m := range []map[string]string{got.Open, got.Write, want.Open, want.Write} {
					delete(m, p)
				}
			}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the container differs (-want +got):\n%s", d)
	}
}

// TestProbe compares everything that a container can see with the list.
func TestProbe(t *testing.T) {
	r := newRunner(t)
	s := spec(t, "probe", "base", workload.Process{Args: []string{"report"}})
	s.ResolvConf = []byte("nameserver 192.0.2.53\n")
	check(t, probe(t, r, s), wantReport())
}

// Another user has the capabilities that the workload names and no other.
func TestProbeUser(t *testing.T) {
	r := newRunner(t)
	s := spec(t, "probe", "base", workload.Process{Args: []string{"report"}, User: "web", Dir: "/srv/web/deep/er", Capabilities: []string{"CAP_NET_RAW", "CAP_SYS_NICE"}, Env: map[string]string{"A": "b"}})
	s.ResolvConf = []byte("nameserver 192.0.2.53\n")
	want := wantReport()
	want.UID, want.GID, want.Groups, want.Dir = 101, 102, []int{4, 44}, "/srv/web/deep/er"
	want.Env = []string{want.Env[0], "A=b", "HOME=/srv/web"}
	some, bound := caps(13, 23), caps(0, 1, 3, 4, 5, 6, 7, 10, 13, 18, 23)
	maps.Copy(want.Status, map[string]string{"CapInh": some, "CapPrm": some, "CapEff": some, "CapAmb": some, "CapBnd": bound})
	want.Sockets["raw"], want.Sockets["packet"] = "", ""
	want.Open["/rootonly"] = noRight
	want.Write["/new"], want.Write["/sys/fs/cgroup/cgroup.procs"] = noRight, noRight
	want.Calls["chroot"] = denied // the filter lets it pass, the kernel does not
	want.Calls["mknod(device)"] = noRight
	check(t, probe(t, r, s), want)
}

// With the root read-only nothing of it can be written, not even its mounts' places.
func TestProbeReadOnly(t *testing.T) {
	r := newRunner(t)
	s := spec(t, "probe", "base", workload.Process{Args: []string{"report"}, ReadOnly: true, Mounts: []workload.Mount{{Path: "/given", TmpfsMiB: 1}}})
	s.ResolvConf = []byte("nameserver 192.0.2.53\n")
	want := wantReport()
	const sealed = "read-only file system"
	want.Write["/new"], want.Write["/given/new"] = sealed, "open"
	want.Calls["mknod(device)"] = sealed
	want.Mounts[slices.Index(want.Mounts, "/ overlay rw,nosuid,nodev,relatime")] = "/ overlay ro,nosuid,nodev,relatime"
	want.Mounts = append(want.Mounts, "/given tmpfs rw,nosuid,nodev,relatime")
	slices.Sort(want.Mounts)
	check(t, probe(t, r, s), want)
}

// A server's own image, with nothing in it but the program.
func TestProbeBare(t *testing.T) {
	r := newRunner(t)
	s := spec(t, "probe", "bare", workload.Process{Args: []string{"report"}})
	s.ResolvConf = []byte("nameserver 192.0.2.53\n")
	want := wantReport()
	for _, p := range []string{"/node", "/blocknode", "/rootonly", "/beyond"} {
		want.Open[p] = missing
	}
	want.Env[1] = "HOME=/"
	check(t, probe(t, r, s), want)
}
