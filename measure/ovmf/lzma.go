package ovmf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// maxUnpacked bounds what a compressed section may unpack to, in bytes. OVMF's
// volumes unpack to 16 MiB.
const maxUnpacked = 64 << 20

// lzmaGUID marks a GUID-defined section that is compressed with LZMA: edk2,
// LzmaCustomDecompressLib.
var lzmaGUID = mustGUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")

// unpack returns what a GUID-defined section holds: PI 1.8, volume 3, section
// 3.2.5.7. Only LZMA is known.
func (s section) unpack() ([]byte, error) {
	const header = 20 // GUID, u16 offset of the data in the section, u16 attributes
	if len(s.body) < header {
		return nil, fmt.Errorf("ovmf: %s: %d bytes: too short for a GUID", s.at, len(s.body))
	}
	if id := GUID(s.body[:16]); id != lzmaGUID {
		return nil, fmt.Errorf("ovmf: %s: packed as %v: unsupported", s.at, id)
	}
	// The offset counts from the section's own header. LZMA has nothing between.
	if off := int(binary.LittleEndian.Uint16(s.body[16:])); off != s.head+header {
		return nil, fmt.Errorf("ovmf: %s: data at %d: want %d", s.at, off, s.head+header)
	}
	return unpackLZMA(s.body[header:], s.at)
}

// unpackLZMA reads the older LZMA form: properties, u32 dictionary size, u64
// unpacked size, stream.
func unpackLZMA(b []byte, at string) ([]byte, error) {
	if len(b) < lzma.HeaderLen {
		return nil, fmt.Errorf("ovmf: %s: %d bytes: too short for LZMA", at, len(b))
	}
	size := binary.LittleEndian.Uint64(b[5:])
	if size > maxUnpacked {
		return nil, fmt.Errorf("ovmf: %s: unpacks to %d bytes: want at most %d", at, size, maxUnpacked)
	}
	// The dictionary takes no more memory than the unpacked size.
	r, err := lzma.ReaderConfig{}.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("ovmf: %s: LZMA: %w", at, err)
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, fmt.Errorf("ovmf: %s: LZMA: %w", at, err)
	}
	return out, nil
}
