package runner

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/plinth-os/plinth/workload"
)

// config is the runtime configuration of OCI, version 1.0: what crun of Debian 12
// knows as well.
type config = specs.Spec

// config makes crun's part of the container.
func (c *Container) config(u *user) (*config, error) {
	e := c.effective
	if noPivot() && slices.Contains(e.Capabilities, "CAP_SYS_ADMIN") {
		// The initrd stays below the container's root then, and whoever may unmount
		// gets there.
		return nil, errors.New("CAP_SYS_ADMIN: not where the guest's root is the initrd")
	}
	mounts, err := c.mounts(u)
	if err != nil {
		return nil, err
	}
	conf := &config{
		Version:  "1.0.2",
		Hostname: c.id,
		Root:     &specs.Root{Path: c.path(rootDir), Readonly: e.ReadOnly},
		Mounts:   mounts,
		Process:  process(e, u),
		Linux: &specs.Linux{
			Namespaces:    namespaces,
			UIDMappings:   c.mapping(),
			GIDMappings:   c.mapping(),
			CgroupsPath:   c.cgroup(),
			Resources:     resources(e.Resources),
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			// Of the container's own network: its users other than root serve port 80, too.
			Sysctl: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
		},
	}
	if conf.Linux.Seccomp, err = filter(conf.Process); err != nil {
		return nil, err
	}
	if err := c.addDevices(conf, e.Devices); err != nil {
		return nil, err
	}
	if c.r.adjust != nil {
		c.r.adjust(conf)
	}
	return conf, nil
}

// namespaces are all but that of time.
var namespaces = []specs.LinuxNamespace{
	{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
	{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
}

func (c *Container) mapping() []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(c.base()), Size: rangeSize}}
}

func process(e *workload.Effective, u *user) *specs.Process {
	score := oomScore
	env := slices.Clone(e.Env)
	if !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "HOME=") }) {
		env = append(env, "HOME="+u.home) // crun would look for it itself
	}
	return &specs.Process{
		User:            specs.User{UID: u.uid, GID: u.gid, AdditionalGids: u.groups},
		Args:            e.Args,
		Env:             env,
		Cwd:             e.Dir,
		Capabilities:    capabilities(u.uid, e.Capabilities),
		Rlimits:         rlimits,
		NoNewPrivileges: true,
		OOMScoreAdj:     &score,
	}
}

// cpuPeriod is that of cgroup v2, in microseconds, and cpuMinimum the least that it
// takes: Documentation/admin-guide/cgroup-v2.rst, "CPU Interface Files";
// kernel/sched/core.c, min_cfs_quota_period.
const (
	cpuPeriod  = 100_000
	cpuMinimum = 1000
)

func resources(r workload.Resources) *specs.LinuxResources {
	pids := int64(cmp.Or(r.PIDs, workload.DefaultPIDs))
	out := &specs.LinuxResources{
		// crun adds the devices that every container has: null, zero, full, random,
		// urandom, tty, and its terminals.
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Pids:    &specs.LinuxPids{Limit: &pids},
	}
	if r.MemoryMiB > 0 {
		limit := int64(r.MemoryMiB) << 20
		out.Memory = &specs.LinuxMemory{Limit: &limit}
		out.Unified = map[string]string{"memory.oom.group": "1"} // half a container is of no use
	}
	if r.MilliCPU > 0 {
		period, quota := uint64(cpuPeriod), max(int64(r.MilliCPU)*cpuPeriod/1000, cpuMinimum)
		out.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	return out
}

const (
	devMiB = 1  // /dev has nothing but names
	shmMiB = 64 // as docker's
)

// baseMounts are what every container has.
func baseMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "mode=755", tmpfsSize(devMiB)}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", tmpfsSize(shmMiB), "noexec"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

func (c *Container) mounts(u *user) ([]specs.Mount, error) {
	out := baseMounts()
	own := slices.SortedStableFunc(slices.Values(c.effective.Mounts), func(a, b workload.Mount) int { return strings.Compare(a.Path, b.Path) })
	for _, m := range own { // a directory is there before what lies in it
		om, err := c.mount(m, u)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Path, err)
		}
		out = append(out, om)
	}
	for _, name := range []string{resolvFile, hostsFile, nameFile} {
		at := path.Join("/etc", name)
		if !slices.ContainsFunc(own, func(m workload.Mount) bool { return m.Path == at }) {
			out = append(out, specs.Mount{Destination: at, Type: "bind", Source: c.path(name), Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"}})
		}
	}
	return out, nil
}

// mount is one that the workload names. Memory is everybody's inside, as /tmp is.
func (c *Container) mount(m workload.Mount, u *user) (specs.Mount, error) {
	if !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path || m.Path == "/" || system(m.Path) {
		return specs.Mount{}, errors.New("not a place for mounts")
	}
	bind := specs.Mount{Destination: m.Path, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev"}}
	var err error
	switch {
	case m.Source != "":
		bind.Source, err = c.mountSource(m.Source)
	case m.Volume != "":
		bind.Options = []string{"bind", "rw", "nosuid", "nodev"}
		bind.Source, err = c.mountVolume(m.Volume)
	case m.Secret != "":
		bind.Options = append(bind.Options, "noexec")
		bind.Source, err = c.mountSecret(m.Path, u)
	default:
		return specs.Mount{Destination: m.Path, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", tmpfsSize(m.TmpfsMiB)}}, nil
	}
	return bind, err
}

// system tells whether the kernel shows itself there.
func system(p string) bool {
	return slices.ContainsFunc([]string{"/proc", "/sys", "/dev"}, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
}
