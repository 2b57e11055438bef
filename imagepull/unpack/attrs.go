package unpack

import (
	"archive/tar"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	xattrRecord = "SCHILY.xattr."
	aclAccess   = "system.posix_acl_access"
	aclDefault  = "system.posix_acl_default"
	capability  = "security.capability"
)

const (
	attrNameMax  = 255       // bytes; XATTR_NAME_MAX
	attrValueMax = 1<<16 - 1 // bytes; of EROFS, one less than XATTR_SIZE_MAX
	attrsMax     = 128 << 10 // bytes of names and values of one inode, within what EROFS counts
)

// dropped says whether an attribute belongs to the machine that packed the layer.
// Those of overlayfs would redirect names, if the tree became a lower directory.
func dropped(name string) bool {
	return name == "security.selinux" || name == "system.nfs4_acl" || strings.HasPrefix(name, "trusted.overlay.")
}

// attributes are those of a header, by name. A record without a value takes an
// attribute away, in PAX: there is none that is empty.
func attributes(h *tar.Header, s *Stats) map[string][]byte {
	var attrs map[string][]byte
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || value == "" {
			continue
		}
		if dropped(name) {
			s.Dropped++
			continue
		}
		if attrs == nil {
			attrs = make(map[string][]byte)
		}
		attrs[name] = []byte(value)
	}
	return attrs
}

// normalize does to attributes and mode what the kernel does where attributes are
// set, and refuses what it refuses. What it has done it does not do again.
func (r *record) normalize() error {
	size := 0
	for _, name := range slices.Sorted(maps.Keys(r.attrs)) {
		if err := r.normalizeOne(name); err != nil {
			return fmt.Errorf("set attribute %q: %w", name, err)
		}
		size += len(name) + len(r.attrs[name])
	}
	if size > attrsMax {
		return fmt.Errorf("%d bytes of attributes: want at most %d", size, attrsMax)
	}
	return nil
}

func (r *record) normalizeOne(name string) error {
	class, rest, _ := strings.Cut(name, ".")
	value := r.attrs[name]
	switch {
	case len(name) > attrNameMax:
		return unix.ERANGE
	case len(value) > attrValueMax:
		return unix.E2BIG
	case name == aclAccess, name == aclDefault:
		return r.normalizeACL(name)
	case rest == "" || strings.IndexByte(name, 0) >= 0:
		return unix.EINVAL
	case class == "user" && r.kind != kindFile && r.kind != kindDir: // xattr(7)
		return unix.EPERM
	case name == capability && !validCapability(value):
		return unix.EINVAL
	case class != "user" && class != "trusted" && class != "security":
		return unix.EOPNOTSUPP
	}
	return nil
}

// validCapability tells whether the kernel lets a value be set: revision 2 or 3
// in the top byte of a little-endian word, with all that belongs to it;
// linux/capability.h.
func validCapability(b []byte) bool {
	return len(b) == 20 && b[3] == 2 || len(b) == 24 && b[3] == 3
}

// normalizeACL has an access list say the permissions of a file, and takes away
// one that says no more than these.
func (r *record) normalizeACL(name string) error {
	switch {
	case r.kind == kindSymlink:
		return unix.EOPNOTSUPP
	case name == aclDefault && r.kind != kindDir:
		return unix.EACCES
	}
	acl, err := parseACL(r.attrs[name])
	if err != nil {
		return err
	}
	if len(acl) > 0 && name == aclAccess {
		r.mode = r.mode&^0o777 | acl.mode()
	}
	if len(acl) == 0 || name == aclAccess && !acl.extended() {
		delete(r.attrs, name)
		return nil
	}
	r.attrs[name] = acl.bytes()
	return nil
}
