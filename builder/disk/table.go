package disk

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math"

	diskfs "github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/plinth-os/plinth/internal/gpt"
)

// writeTable writes the protective MBR and both copies of the table.
func writeTable(w io.WriterAt, t *gpt.Table) error {
	if _, err := w.WriteAt(protectiveMBR(t.Sectors), 0); err != nil {
		return fmt.Errorf("disk: MBR: %w", err)
	}
	// Every GUID is given: go-diskfs draws the missing ones.
	table := diskfs.Table{GUID: t.DiskID.String(), LogicalSectorSize: t.SectorSize, PhysicalSectorSize: t.SectorSize}
	for i, p := range t.Partitions {
		table.Partitions = append(table.Partitions, &diskfs.Partition{
			Index: i + 1,
			Start: p.First,
			End:   p.Last,
			Type:  diskfs.Type(p.Type.String()),
			GUID:  p.ID.String(),
			Name:  p.Name, Attributes: p.Attributes,
		})
	}
	if err := table.Write(writeOnly{WriterAt: w}, int64(t.Sectors)*int64(t.SectorSize)); err != nil {
		return fmt.Errorf("disk: partition table: %w", err)
	}
	return nil
}

// protectiveMBR returns the first sector; UEFI 2.10, 5.2.3. It is not left to
// go-diskfs, which writes zeros as addresses and cuts the size of a disk above
// 2 TiB instead of limiting it.
func protectiveMBR(sectors uint64) []byte {
	b := make([]byte, sectorSize)
	record := b[446:]
	copy(record[1:], "\x00\x02\x00") // first CHS address
	record[4] = 0xee                 // type: GPT protective
	last := lastCHS(sectors - 1)
	copy(record[5:], last[:])
	binary.LittleEndian.PutUint32(record[8:], 1)
	binary.LittleEndian.PutUint32(record[12:], uint32(min(sectors-1, math.MaxUint32)))
	copy(b[510:], "\x55\xaa")
	return b
}

// lastCHS returns the cylinder, head and sector of an LBA on a disk of 255 heads
// and 63 sectors a track, or ones where ten bits are too few for the cylinder.
func lastCHS(lba uint64) [3]byte {
	c, h, s := lba/(255*63), lba/63%255, lba%63+1
	if c > 1023 {
		return [3]byte{0xff, 0xff, 0xff}
	}
	return [3]byte{byte(h), byte(c>>8<<6 | s), byte(c)}
}

// writeOnly is what go-diskfs takes for a disk. Writing a table uses WriteAt
// alone; a method of the nil file would panic, which a test would see.
type writeOnly struct {
	io.WriterAt
	io.ReaderAt
	io.Seeker
	fs.File
}
