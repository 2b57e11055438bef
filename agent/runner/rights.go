package runner

import (
	"errors"
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultCapabilities are those of docker's containers (moby,
// daemon/pkg/oci/caps/defaults.go) without CAP_MKNOD, CAP_SETFCAP and
// CAP_AUDIT_WRITE, which do nothing in a user namespace without new privileges,
// CAP_NET_RAW, by which containers of one network pretend to be each other, and
// CAP_SETPCAP.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// capabilities of a process. Another user than root keeps what the workload names,
// and nothing else, when the program starts: capabilities(7), "Ambient".
func capabilities(uid uint32, named []string) *specs.LinuxCapabilities {
	all := slices.Compact(slices.Sorted(slices.Values(slices.Concat(defaultCapabilities, named))))
	if uid == 0 {
		return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	}
	return &specs.LinuxCapabilities{Bounding: all, Effective: named, Permitted: named, Inheritable: named, Ambient: named}
}

// maskedPaths and readonlyPaths are docker's (moby, daemon/pkg/oci/defaults.go);
// /sys/firmware has the ACPI tables and what QEMU's fw_cfg holds.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
		"/sys/devices/virtual/misc/tdx_guest", // the measured registers
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// maxFiles is how many a process may have open; crun starts with the kernel's 4,096
// for PID 1, too few for servers.
const maxFiles = 65536

// rlimits: no core is dumped, whatever the kernel does with those.
var rlimits = []specs.POSIXRlimit{
	{Type: "RLIMIT_CORE"},
	{Type: "RLIMIT_NOFILE", Soft: maxFiles, Hard: maxFiles},
}

// oomScore makes the kernel look for memory in containers before it takes the agent.
const oomScore = 500

// families are those of which a container may make sockets: not AF_VSOCK, which leads
// to the host, nor AF_ALG.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET}

// filter is moby's default profile, which depends on the capabilities, with a list of
// families in place of its rules for socket(2): those compare all 64 bits of the
// argument, of which the kernel takes 32, and let everything pass by socketcall(2).
// A filter cannot see what that one is asked for: programs of 32 bits that have no
// other way make no sockets here. It has no io_uring.
func filter(p *specs.Process) (*specs.LinuxSeccomp, error) {
	f, err := seccomp.GetDefaultProfile(&specs.Spec{Process: p})
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	if f == nil || f.DefaultAction != specs.ActErrno || len(f.Syscalls) == 0 {
		return nil, errors.New("seccomp: a profile that forbids nothing")
	}
	f.Syscalls = slices.DeleteFunc(f.Syscalls, func(s specs.LinuxSyscall) bool {
		return s.Action == specs.ActAllow && len(withoutSockets(s.Names)) == 0
	})
	for i, s := range f.Syscalls {
		f.Syscalls[i].Names = withoutSockets(s.Names)
	}
	for _, a := range families {
		f.Syscalls = append(f.Syscalls, specs.LinuxSyscall{
			Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: 1<<32 - 1, ValueTwo: a, Op: specs.OpMaskedEqual}}, // Value is the mask
		})
	}
	return f, nil
}

func withoutSockets(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "socket" || n == "socketcall" })
}
