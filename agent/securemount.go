package agent

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/agent/guestapi"
	"github.com/plinth-os/plinth/agent/storage"
)

// ownRun are directories of the agent's, besides those that the storage package knows:
// nothing is mounted there by others.
var ownRun = []string{"/run/plinth", "/run/attestation-agent", "/run/confidential-containers"}

// SecureMount opens an encrypted disk for a program of the root file system, until the
// guest stops.
func (g guest) SecureMount(ctx context.Context, r guestapi.MountRequest) error {
	m, err := storage.ParseSecureMount(r.VolumeType, r.Options, r.Flags, r.MountPoint)
	if err != nil {
		return err
	}
	own := func(dir string) bool { return m.Target == dir || strings.HasPrefix(m.Target, dir+"/") }
	if slices.ContainsFunc(ownRun, own) {
		return fmt.Errorf("mount point %.64q: that is the agent's", m.Target)
	}
	if err := g.s.settled(ctx); err != nil {
		return err
	}
	o := m.Volume
	if m.Key != "" {
		if o.Key, err = g.s.secret(ctx, m.Key); err != nil {
			return fmt.Errorf("key: %w", err)
		}
		defer clear(o.Key)
	}
	v, err := g.s.work.site.volume(ctx, o)
	if err != nil {
		return err
	}
	if m.AsDevice {
		err = g.link(v.Device(), m.Target)
	} else {
		err = g.mount(v, m.Target, m.ReadOnly)
	}
	if err != nil {
		return errors.Join(err, v.Close())
	}
	return g.s.keepVolume(v)
}

// link makes a symbolic link to a device, where there is nothing yet.
func (g guest) link(device, target string) error {
	dir, err := g.openDir(path.Dir(target))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return unix.Symlinkat(device, dir, path.Base(target))
}

func (g guest) mount(v volume, target string, readOnly bool) error {
	dir, err := g.openDir(target)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return v.Mount(fmt.Sprintf("/proc/self/fd/%d", dir), readOnly)
}

// openDir makes a directory and what is above it. It goes by no symbolic link: who asks
// may have the path from a host.
func (g guest) openDir(name string) (fd int, err error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	how := &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_SYMLINKS}
	if fd, err = unix.Open(g.s.Root, flags, 0); err != nil {
		return -1, err
	}
	for _, part := range strings.FieldsFunc(name, func(r rune) bool { return r == '/' }) {
		above := fd
		if err = unix.Mkdirat(above, part, 0o755); err == nil || errors.Is(err, unix.EEXIST) {
			fd, err = unix.Openat2(above, part, how)
		}
		unix.Close(above)
		if err != nil {
			return -1, fmt.Errorf("mount point: %s: %w", part, err)
		}
	}
	return fd, nil
}
