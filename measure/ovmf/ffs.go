package ovmf

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// Types of FFS files: PI 1.8, volume 3, section 2.1.4.
const (
	fileRaw    = 0x01
	fileSEC    = 0x03 // the first code that runs
	fileVolume = 0x0b
	filePad    = 0xf0
)

// Types of sections: PI 1.8, volume 3, section 2.1.5.
const (
	sectionGUIDed = 0x02
	sectionPE     = 0x10
	sectionTE     = 0x12
	sectionUI     = 0x15
	sectionVolume = 0x17
)

// ffsFile is a file of a volume: PI 1.8, volume 3, section 3.2.3.
type ffsFile struct {
	name GUID
	kind uint8
	body []byte
	pos  int // of body in the volume
	at   string
}

// section is a part of a file: PI 1.8, volume 3, section 3.2.4.
type section struct {
	kind uint8
	body []byte
	head int // bytes of header before body
	pos  int // of body in the volume, or in the unpacked section it comes from
	at   string
}

const (
	fileHeaderSize      = 24
	largeFileHeaderSize = 32
	attribLarge         = 0x01
	attribChecksum      = 0x40
	fixedChecksum       = 0xaa // of a file without attribChecksum
)

// all yields the volume's files but padding, in order, and stops at the first
// error.
func (v *volume) all() iter.Seq2[ffsFile, error] {
	return func(yield func(ffsFile, error) bool) {
		for off := v.start; off+fileHeaderSize <= len(v.data); {
			if v.free(off) {
				return
			}
			f, size, err := v.file(off)
			if err != nil {
				yield(f, err)
				return
			}
			if f.kind != filePad && !yield(f, nil) {
				return
			}
			off = (off + size + 7) &^ 7
		}
	}
}

// free tells whether no file begins at off: the flash is erased there.
func (v *volume) free(off int) bool {
	for _, c := range v.data[off : off+fileHeaderSize] {
		if c != 0xff {
			return false
		}
	}
	return true
}

func (v *volume) file(off int) (f ffsFile, size int, err error) {
	h := v.data[off:]
	f = ffsFile{name: GUID(h[:16]), kind: h[0x12], at: fmt.Sprintf("%s: file at %#x", v.at, off)}
	n, total := fileHeaderSize, uint64(u24(h[0x14:]))
	if h[0x13]&attribLarge != 0 && len(h) >= largeFileHeaderSize {
		n, total = largeFileHeaderSize, binary.LittleEndian.Uint64(h[0x18:])
	}
	if total < uint64(n) || total > uint64(len(h)) {
		return f, 0, fmt.Errorf("ovmf: %s: %d bytes: want %d to %d", f.at, total, n, len(h))
	}
	f.body, f.pos = h[n:total], off+n
	return f, int(total), checkFile(h[:n], f)
}

// checkFile compares the two checksums of a file's header. That of the header is
// made with the file's checksum and the state as zero.
func checkFile(h []byte, f ffsFile) error {
	if sum := sum8(h) - h[0x11] - h[0x17]; sum != 0 {
		return fmt.Errorf("ovmf: %s: file header sums up to %#02x: want 0", f.at, sum)
	}
	want := uint8(fixedChecksum)
	if h[0x13]&attribChecksum != 0 {
		want = -sum8(f.body)
	}
	if h[0x11] != want {
		return fmt.Errorf("ovmf: %s: checksum %#02x: want %#02x", f.at, h[0x11], want)
	}
	return nil
}

// sections splits a file's body.
func (f ffsFile) sections() iter.Seq2[section, error] { return sections(f.body, f.pos, f.at) }

// sections yields the sections of b, which lies at pos, and stops at the first
// error.
func sections(b []byte, pos int, at string) iter.Seq2[section, error] {
	return func(yield func(section, error) bool) {
		for off := 0; off+4 <= len(b); {
			s, size, err := parseSection(b[off:], pos+off, at)
			if !yield(s, err) || err != nil {
				return
			}
			off = (off + size + 3) &^ 3
		}
	}
}

func parseSection(b []byte, pos int, at string) (section, int, error) {
	s := section{kind: b[3], at: fmt.Sprintf("%s: section at %#x", at, pos)}
	n, total := 4, u24(b)
	if total == 0xffffff && len(b) >= 8 {
		n, total = 8, binary.LittleEndian.Uint32(b[4:])
	}
	if total < uint32(n) || uint64(total) > uint64(len(b)) {
		return s, 0, fmt.Errorf("ovmf: %s: %d bytes: want %d to %d", s.at, total, n, len(b))
	}
	s.body, s.head, s.pos = b[n:total], n, pos+n
	return s, int(total), nil
}

func u24(b []byte) uint32 { return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 }
