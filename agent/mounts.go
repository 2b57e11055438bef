package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A mount is one row of mounts.
type mount struct {
	fstype, target string
	source         string // "": fstype
	flags          uintptr
	data           string
	optional       bool // left out where the kernel has no such file system
}

const sealed = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

var mounts = []mount{
	{fstype: "proc", target: "/proc", flags: sealed},
	{fstype: "sysfs", target: "/sys", flags: sealed},
	{fstype: "devtmpfs", target: "/dev", flags: unix.MS_NOSUID | unix.MS_NOEXEC, data: "mode=0755"},
	{fstype: "tmpfs", target: "/run", flags: sealed, data: "mode=0755"},
	{fstype: "tmpfs", target: "/tmp", flags: sealed, data: "mode=1777"},
	{fstype: "securityfs", target: "/sys/kernel/security", flags: sealed, optional: true},
	{fstype: "cgroup2", target: "/sys/fs/cgroup", flags: sealed, optional: true},
}

func mountFileSystems(_ context.Context, s *State) error {
	for _, m := range mounts {
		if err := s.mount(m); err != nil {
			return fmt.Errorf("%s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

func (s *State) mount(m mount) error {
	target := s.path(m.target)
	if m.optional {
		// sysfs holds the directory when the kernel has the file system.
		if _, err := os.Stat(target); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	} else if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	err := s.machine.mount(m, target)
	if m.optional && errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
