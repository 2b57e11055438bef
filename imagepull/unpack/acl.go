package unpack

import (
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"
)

// An accessList is what an attribute posix_acl holds: little-endian words,
// version 2, then tag, permissions and ID of each entry.
// Linux, include/uapi/linux/posix_acl_xattr.h.
type accessList []access

type access struct {
	tag, perm uint16
	id        uint32 // of a user or group; else undefinedID
}

const (
	aclHeader  = 4 // bytes
	aclEntry   = 8
	aclVersion = 2

	tagOwner      = 0x01
	tagUser       = 0x02
	tagOwnerGroup = 0x04
	tagGroup      = 0x08
	tagMask       = 0x10
	tagOther      = 0x20

	undefinedID = math.MaxUint32
)

// parseACL reads a list and refuses one that the kernel refuses: owner, users,
// owner's group, groups, mask and others in this order, the mask where there are
// users or groups. Linux, fs/posix_acl.c, posix_acl_valid.
func parseACL(b []byte) (accessList, error) {
	if len(b) < aclHeader || (len(b)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, unix.EINVAL
	}
	var out accessList
	last, named, masked := uint16(0), false, false
	for b = b[aclHeader:]; len(b) > 0; b = b[aclEntry:] {
		a := access{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])}
		several := a.tag == tagUser || a.tag == tagGroup
		switch {
		case a.perm > 7, a.tag < last, a.tag == last && !several, !follows(last, a.tag):
			return nil, unix.EINVAL
		case several && a.id == undefinedID:
			return nil, unix.EINVAL
		case !several:
			a.id = undefinedID
		}
		last, named, masked = a.tag, named || several, masked || a.tag == tagMask
		out = append(out, a)
	}
	if len(out) > 0 && (last != tagOther || named && !masked) {
		return nil, unix.EINVAL
	}
	return out, nil
}

// follows tells whether tag is one, and the owner and owner's group are not left
// out before it.
func follows(last, tag uint16) bool {
	switch tag {
	case tagOwner:
		return last == 0
	case tagUser:
		return last >= tagOwner
	case tagOwnerGroup:
		return last >= tagOwner
	case tagGroup, tagMask, tagOther:
		return last >= tagOwnerGroup
	}
	return false
}

// extended says whether the list says more than permissions can.
func (l accessList) extended() bool {
	for _, a := range l {
		if a.tag == tagUser || a.tag == tagGroup || a.tag == tagMask {
			return true
		}
	}
	return false
}

// slots are where the list has what stands in the permissions of a file: those of
// the group are the mask, where there is one.
func (l accessList) slots() (slots [3]*access) {
	for i := range l {
		switch a := &l[i]; a.tag {
		case tagOwner:
			slots[0] = a
		case tagOwnerGroup, tagMask: // the mask comes later
			slots[1] = a
		case tagOther:
			slots[2] = a
		}
	}
	return slots
}

// mode is the permissions of a file that has the list.
func (l accessList) mode() (mode uint32) {
	for i, a := range l.slots() {
		mode |= uint32(a.perm) << (6 - 3*i)
	}
	return mode
}

// restrict takes from the list what a new file's mode does not grant, and returns
// the mode that the file has then. acl(5), "Object creation and default ACLs".
func (l accessList) restrict(mode uint32) uint32 {
	for i, a := range l.slots() {
		a.perm &= uint16(mode>>(6-3*i)) & 7
	}
	return l.mode()
}

func (l accessList) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, a := range l {
		b = binary.LittleEndian.AppendUint16(b, a.tag)
		b = binary.LittleEndian.AppendUint16(b, a.perm)
		b = binary.LittleEndian.AppendUint32(b, a.id)
	}
	return b
}
