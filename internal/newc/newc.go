// Package newc reads and writes cpio archives in the "new ASCII" format, which
// is what Linux unpacks as an initramfs and what PCR 9 covers.
//
// Format: Documentation/driver-api/early-userspace/buffer-format.rst in the
// Linux source. An archive is a sequence of members, each
//
//	header | name, NUL | zeros to a multiple of 4 | data | zeros to a multiple of 4
//
// and ends with a member named TRAILER!!!.
package newc

const (
	magic      = "070701" // 070702, with checksums, is not supported
	headerSize = 110      // bytes: the magic and 13 numbers of 8 hexadecimal digits
	trailer    = "TRAILER!!!"
	maxName    = 4096 // PATH_MAX, NUL included; Linux skips a longer member without a word
)

// A header is the numbers after the magic, in the order of the format.
type header struct {
	Ino, Mode, UID, GID, NLink, MTime uint32
	FileSize                          uint32 // bytes of data
	DevMajor, DevMinor                uint32 // of the file system it came from: zero
	RDevMajor, RDevMinor              uint32 // of a device node
	NameSize                          uint32 // bytes, NUL included
	Check                             uint32 // zero with this magic
}

func (h *header) fields() [13]*uint32 {
	return [13]*uint32{&h.Ino, &h.Mode, &h.UID, &h.GID, &h.NLink, &h.MTime, &h.FileSize,
		&h.DevMajor, &h.DevMinor, &h.RDevMajor, &h.RDevMinor, &h.NameSize, &h.Check}
}

// padding returns how many bytes lead from n to the next multiple of 4.
func padding(n int64) int64 { return -n & 3 }
