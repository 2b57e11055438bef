package ovmf

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// volume is a firmware volume: PI 1.8, volume 3, section 3.2.1.
type volume struct {
	fileSystem GUID
	name       GUID   // of the extended header, zero without one
	data       []byte // header included
	files      []byte // after the headers
	start      int    // of files in data
	at         string // where it lies, for errors
}

// Views of EFI_FIRMWARE_VOLUME_HEADER, little-endian.
type volumeHeader []byte

const volumeHeaderSize = 0x38 // up to the block map

func (h volumeHeader) fileSystem() []byte { return h[0x10:][:16] }
func (h volumeHeader) length() uint64     { return binary.LittleEndian.Uint64(h[0x20:]) }
func (h volumeHeader) signature() []byte  { return h[0x28:][:4] } // "_FVH"
func (h volumeHeader) headerLength() int  { return int(binary.LittleEndian.Uint16(h[0x30:])) }
func (h volumeHeader) extHeader() int     { return int(binary.LittleEndian.Uint16(h[0x34:])) }
func (h volumeHeader) revision() uint8    { return h[0x37] }

var volumeSignature = []byte("_FVH")

// isVolume tells whether a volume seems to begin at the start of b.
func isVolume(b []byte) bool {
	return len(b) >= volumeHeaderSize && bytes.Equal(volumeHeader(b).signature(), volumeSignature)
}

// parseVolume reads the volume at the start of b. at names the place.
func parseVolume(b []byte, at string) (*volume, error) {
	if !isVolume(b) {
		return nil, fmt.Errorf("ovmf: %s: no firmware volume", at)
	}
	h := volumeHeader(b)
	n, total := h.headerLength(), h.length()
	if n < volumeHeaderSize || n%2 != 0 || uint64(n) > total || total > uint64(len(b)) {
		return nil, fmt.Errorf("ovmf: %s: volume of %d bytes with a header of %d: want at most %d bytes", at, total, n, len(b))
	}
	if sum := sum16(b[:n]); sum != 0 {
		return nil, fmt.Errorf("ovmf: %s: volume header sums up to %#04x: want 0", at, sum)
	}
	if h.revision() != 2 {
		return nil, fmt.Errorf("ovmf: %s: volume revision %d: want 2", at, h.revision())
	}
	v := &volume{fileSystem: GUID(h.fileSystem()), data: b[:total], start: n, at: at}
	if err := v.extHeader(h.extHeader()); err != nil {
		return nil, err
	}
	v.files = v.data[v.start:]
	return v, nil
}

// extHeader reads EFI_FIRMWARE_VOLUME_EXT_HEADER, which gives the volume a name:
// PI 1.8, volume 3, section 3.2.1.1. Files begin after it, at a multiple of 8.
func (v *volume) extHeader(off int) error {
	const size = 20 // GUID, u32 size
	if off == 0 {
		return nil
	}
	if off < v.start || off+size > len(v.data) {
		return fmt.Errorf("ovmf: %s: extended header at %#x: want it inside the volume", v.at, off)
	}
	n := uint64(binary.LittleEndian.Uint32(v.data[off+16:]))
	if n < size || n > uint64(len(v.data)-off) {
		return fmt.Errorf("ovmf: %s: extended header of %d bytes", v.at, n)
	}
	v.name = GUID(v.data[off:][:16])
	v.start = min((off+int(n)+7)&^7, len(v.data))
	return nil
}

func sum16(b []byte) (s uint16) {
	for i := 0; i+1 < len(b); i += 2 {
		s += binary.LittleEndian.Uint16(b[i:])
	}
	return s
}

func sum8(b []byte) (s uint8) {
	for _, c := range b {
		s += c
	}
	return s
}
