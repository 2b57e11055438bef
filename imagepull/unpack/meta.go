package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	xattrRecord = "SCHILY.xattr."
	aclAccess   = "system.posix_acl_access"
	aclDefault  = "system.posix_acl_default"
	permissions = 0o7777
)

// dropped says whether an attribute belongs to the machine that packed the layer.
// Those of overlayfs would redirect names, if the tree became a lower directory.
func dropped(name string) bool {
	return name == "security.selinux" || name == "system.nfs4_acl" || strings.HasPrefix(name, "trusted.overlay.")
}

// attributes are those of a header, by name. A record without a value takes an
// attribute away, in PAX: there is none that is empty.
func (t *Tree) attributes(h *tar.Header) map[string]string {
	var attrs map[string]string
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || value == "" {
			continue
		}
		if dropped(name) {
			t.stats.Dropped++
			continue
		}
		if attrs == nil {
			attrs = make(map[string]string)
		}
		attrs[name] = value
	}
	return attrs
}

// owner checks the numbers: the kernel takes 2^32-1 for "leave it".
func owner(h *tar.Header) (uid, gid int, err error) {
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return 0, 0, fmt.Errorf("owner %d:%d: want 0 to %d", h.Uid, h.Gid, uint32(math.MaxUint32-1))
	}
	return h.Uid, h.Gid, nil
}

// keep says whether a new entry in d has the owner already.
func (t *Tree) keep(d *dir, uid, gid int) bool {
	return t.super && uid == 0 && gid == 0 && !d.setgid
}

func times(h *tar.Header) [2]unix.Timespec {
	m := timespec(h.ModTime)
	if h.AccessTime.IsZero() {
		return [2]unix.Timespec{m, m}
	}
	return [2]unix.Timespec{timespec(h.AccessTime), m}
}

// fileMeta finishes a new file: the owner before the mode, as a change of owner
// takes setuid away, and before the attributes, as it takes capabilities away.
func (t *Tree) fileMeta(d *dir, name string, fd int, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if !t.keep(d, uid, gid) {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
		}
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&permissions)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	if d.acl {
		if err := clearAttributes(fd); err != nil {
			return err
		}
	}
	if err := setAttributes(t.attributes(h), func(name string, value []byte) error {
		return unix.Fsetxattr(fd, name, value, 0)
	}); err != nil {
		return err
	}
	return setTimes(d, name, h)
}

func setTimes(d *dir, name string, h *tar.Header) error {
	ts := times(h)
	if err := unix.UtimesNanoAt(d.fd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// directoryMeta gives a directory what its entry says, and takes from one that
// was there the attributes that the entry does not have. Its times wait until
// nothing more is made in it.
func (t *Tree) directoryMeta(d *dir, h *tar.Header, fresh bool) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if err := unix.Fchown(d.fd, uid, gid); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
	}
	if err := unix.Fchmod(d.fd, uint32(h.Mode&permissions)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	if !fresh || d.acl {
		if err := clearAttributes(d.fd); err != nil {
			return err
		}
	}
	attrs := t.attributes(h)
	if err := setAttributes(attrs, func(name string, value []byte) error {
		return unix.Fsetxattr(d.fd, name, value, 0)
	}); err != nil {
		return err
	}
	_, d.acl = attrs[aclDefault]
	d.setgid = h.Mode&unix.S_ISGID != 0
	d.times, d.touched = times(h), true
	return nil
}

// meta finishes a link or node, which is not opened: opening a device is an act.
func (t *Tree) meta(d *dir, name string, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	if !t.keep(d, uid, gid) {
		if err := unix.Fchownat(d.fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
		}
	}
	// The kernel has no call that sets an attribute beside an open directory, but
	// it shows the directory under a path. Only the last part is the layer's, and
	// that is not followed.
	at := fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, name)
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(d.fd, name, uint32(h.Mode&permissions), 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
		if d.acl {
			if err := unix.Lremovexattr(at, aclAccess); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("remove attribute %q: %w", aclAccess, err)
			}
		}
	}
	if err := setAttributes(t.attributes(h), func(name string, value []byte) error {
		return unix.Lsetxattr(at, name, value, 0)
	}); err != nil {
		return err
	}
	return setTimes(d, name, h)
}

func setAttributes(attrs map[string]string, set func(name string, value []byte) error) error {
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		if err := set(name, []byte(attrs[name])); err != nil {
			return fmt.Errorf("set attribute %q: %w", name, err)
		}
	}
	return nil
}

// clearAttributes removes what dropped does not leave to the machine.
func clearAttributes(fd int) error {
	n, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil
	}
	list := make([]byte, max(n, 0))
	if err == nil {
		n, err = unix.Flistxattr(fd, list)
	}
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if dropped(name) {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil {
			return fmt.Errorf("remove attribute %q: %w", name, err)
		}
	}
	return nil
}
