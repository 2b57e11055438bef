package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// ErrNotFAT is returned for a volume whose first sector is no FAT boot sector.
var ErrNotFAT = errors.New("no FAT boot sector")

// Open reads the directories of the volume of size bytes in r; file contents are
// read when asked for. It refuses volumes whose structures point outside, chains
// that loop, directories that share clusters, and names that no path can hold or
// that a directory has twice. FSInfo and all FATs but the first are not looked at.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, 512)
	if err := readFull(r, b, 0); err != nil {
		return nil, fmt.Errorf("fat: boot sector: %w", err)
	}
	g, rootCluster, end, err := parseBoot(b, size)
	if err != nil {
		return nil, fmt.Errorf("fat: boot sector: %w", err)
	}
	f := &FS{Bits: g.bits, r: r, g: g}
	if end.BootSignature == extBootSignature {
		f.VolumeID = end.VolumeID
	}
	if err := f.load(rootCluster); err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	return f, nil
}

// parseBoot checks the boot sector against itself and the size of the volume.
func parseBoot(b []byte, size int64) (g *geometry, rootCluster uint32, end bootSectorEnd, err error) {
	var s bootSector
	var s32 bootSector32
	le := binary.LittleEndian
	n, _ := binary.Decode(b, le, &s) // b is long enough for all three
	if s.FATSectors16 == 0 {
		m, _ := binary.Decode(b[n:], le, &s32)
		n += m
	}
	binary.Decode(b[n:], le, &end)
	if le.Uint16(b[510:]) != bootSignature || s.FATs == 0 || s.ReservedSectors == 0 ||
		bits.OnesCount16(s.BytesPerSector) != 1 || s.BytesPerSector < 512 || s.BytesPerSector > 4096 ||
		bits.OnesCount8(s.SectorsPerCluster) != 1 {
		return nil, 0, end, ErrNotFAT
	}
	g = &geometry{
		sectorSize:  int(s.BytesPerSector),
		clusterSize: int(s.BytesPerSector) * int(s.SectorsPerCluster),
		sectors:     uint32(s.Sectors16),
		reserved:    int(s.ReservedSectors),
		fats:        int(s.FATs),
		fatSectors:  uint32(s.FATSectors16),
		rootEntries: int(s.RootEntries),
	}
	if g.sectors == 0 {
		g.sectors = s.Sectors32
	}
	if g.fatSectors == 0 {
		g.fatSectors = s32.FATSectors32
	}
	if int64(g.sectors)*int64(g.sectorSize) > size {
		return nil, 0, end, fmt.Errorf("%d sectors of %d bytes in a volume of %d bytes", g.sectors, g.sectorSize, size)
	}
	if g.overhead() >= uint64(g.sectors) {
		return nil, 0, end, fmt.Errorf("%d sectors, of which %d are not for files", g.sectors, g.overhead())
	}
	g.clusters = uint32((uint64(g.sectors) - g.overhead()) * uint64(g.sectorSize) / uint64(g.clusterSize))
	g.bits = fatBits(&s, g.clusters)
	if (uint64(g.clusters)+firstCluster)*uint64(g.bits) > uint64(g.fatSectors)*uint64(g.sectorSize)*8 {
		return nil, 0, end, fmt.Errorf("%d clusters, but a FAT of %d sectors", g.clusters, g.fatSectors)
	}
	if (g.bits == 32) != (g.rootEntries == 0) {
		return nil, 0, end, fmt.Errorf("FAT%d with a root directory of %d entries", g.bits, g.rootEntries)
	}
	return g, s32.RootCluster, end, nil
}

// fatBits tells the kinds apart. FAT32 is where the 16-bit FAT size is zero: the
// specification has only the number of clusters count, but firmware (edk2
// FatPkg) and Linux do it so, and mkfs.vfat -F 32 makes small FAT32 volumes.
func fatBits(s *bootSector, clusters uint32) int {
	switch {
	case s.FATSectors16 == 0:
		return 32
	case clusters < 4085:
		return 12
	}
	return 16
}

// A table reads one FAT, a window at a time.
type table struct {
	r      io.ReaderAt
	g      *geometry
	start  int64 // offset of the window within the FAT
	window []byte
}

const windowSize = 4096 // bytes

// next returns the cluster after c, which must be in the volume, and false at
// the end of the chain.
func (t *table) next(c uint32) (uint32, bool, error) {
	bit := int64(c) * int64(t.g.bits)
	b, err := t.bytes(bit / 8)
	if err != nil {
		return 0, false, err
	}
	v := binary.LittleEndian.Uint32(b) >> (bit % 8) & fatMask(t.g.bits)
	if v >= fatMask(t.g.bits)-7 {
		return 0, false, nil
	}
	if !t.g.valid(v) {
		return 0, false, fmt.Errorf("cluster %d is followed by %d of %d", c, v, t.g.clusters)
	}
	return v, true, nil
}

func (g *geometry) valid(c uint32) bool { return c >= firstCluster && c-firstCluster < g.clusters }

// bytes returns the four bytes from off on. Past the end of the FAT, where an
// entry of 12 bits does not reach, they are whatever follows.
func (t *table) bytes(off int64) ([]byte, error) {
	if off < t.start || off+4 > t.start+int64(len(t.window)) {
		t.start = off &^ (windowSize - 1)
		b := make([]byte, windowSize+4)
		n, err := t.r.ReadAt(b, t.g.fatOffset(0)+t.start)
		if err != nil && err != io.EOF {
			return nil, err
		}
		t.window = b[:n]
		if off+4 > t.start+int64(n) {
			return nil, io.ErrUnexpectedEOF
		}
	}
	return t.window[off-t.start:][:4], nil
}

// An extent is a run of contiguous clusters.
type extent struct {
	at    int64 // offset in the file, bytes
	first uint32
	count uint32
}

// extents follows a chain for count clusters, or with count -1 to its end but
// for at most limit clusters.
func (f *FS) extents(first uint32, count, limit int64) ([]extent, error) {
	t := &table{r: f.r, g: f.g}
	var out []extent
	c := first
	for n := int64(0); n != count; n++ {
		if n == limit {
			return nil, fmt.Errorf("chain from cluster %d: longer than %d clusters", first, limit)
		}
		if !f.g.valid(c) {
			return nil, fmt.Errorf("chain from cluster %d: %d clusters, then %d of %d", first, n, c, f.g.clusters)
		}
		if last := len(out) - 1; last >= 0 && out[last].first+out[last].count == c {
			out[last].count++
		} else {
			out = append(out, extent{n * int64(f.g.clusterSize), c, 1})
		}
		next, more, err := t.next(c)
		if err != nil {
			return nil, fmt.Errorf("chain from cluster %d: %w", first, err)
		}
		if !more {
			if count >= 0 && n+1 < count {
				return nil, fmt.Errorf("chain from cluster %d: %d clusters, want %d", first, n+1, count)
			}
			break
		}
		c = next
	}
	return out, nil
}
