// Package disk lays out a raw GPT disk: partitions in the given order from 1 MiB
// on, each of whole MiB. Equal arguments give equal bytes.
package disk

import (
	"fmt"
	"io"
	"unicode/utf16"

	"github.com/plinth-os/plinth/internal/gpt"
)

const (
	sectorSize = 512     // bytes
	alignment  = 1 << 20 // bytes; of where partitions start and end, and of the disk's size

	// reserved is the room for a table at either end of the disk, in sectors: the
	// header and 128 entries of 128 bytes.
	reserved      = 1 + maxPartitions*128/sectorSize
	maxPartitions = 128
	maxName       = 36 // UTF-16 units
)

// A Partition is a partition to be made.
type Partition struct {
	Type, ID   gpt.GUID // neither zero; see ident.UUID
	Name       string   // at most 36 UTF-16 units
	Attributes uint64
	Size       int64 // bytes of content; the partition is rounded up to whole MiB

	// Content writes the partition to w, which ends at Size and reads as zero
	// where nothing is written.
	Content func(w io.WriterAt) error
}

// A Disk is what Write makes.
type Disk struct {
	ID         gpt.GUID // not zero
	Partitions []Partition

	// Multiple is what the disk's size is a multiple of, in bytes: whole MiB. 0 is
	// 1 MiB.
	Multiple int64
}

// Layout returns the table of the disk: where each partition lies and, as
// Sectors times SectorSize, how large the disk is. It writes nothing.
func (d *Disk) Layout() (*gpt.Table, error) {
	if d.ID == (gpt.GUID{}) {
		return nil, fmt.Errorf("disk: GUID is zero")
	}
	if d.Multiple < 0 || d.Multiple%alignment != 0 || d.Multiple > 1<<40 {
		return nil, fmt.Errorf("disk: size is to be a multiple of %d bytes: want whole MiB, at most 1 TiB", d.Multiple)
	}
	if len(d.Partitions) > maxPartitions {
		return nil, fmt.Errorf("disk: %d partitions: want at most %d", len(d.Partitions), maxPartitions)
	}
	t := &gpt.Table{DiskID: d.ID, SectorSize: sectorSize, FirstUsable: 1 + reserved}
	seen := map[gpt.GUID]bool{d.ID: true}
	next := int64(alignment)
	for _, p := range d.Partitions {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("disk: partition %q: %w", p.Name, err)
		}
		if seen[p.ID] {
			return nil, fmt.Errorf("disk: partition %q: GUID %v is used twice", p.Name, p.ID)
		}
		seen[p.ID] = true
		end := roundUp(next+p.Size, alignment)
		t.Partitions = append(t.Partitions, gpt.Partition{
			Type: p.Type, ID: p.ID, Attributes: p.Attributes, Name: p.Name,
			First: uint64(next) / sectorSize,
			Last:  uint64(end)/sectorSize - 1,
		})
		next = end
	}
	size := roundUp(next+alignment, max(d.Multiple, alignment)) // the last MiB holds the backup
	t.Sectors = uint64(size) / sectorSize
	t.LastUsable = t.Sectors - reserved - 1
	return t, nil
}

func (p *Partition) check() error {
	switch {
	case p.Type == (gpt.GUID{}) || p.ID == (gpt.GUID{}):
		return fmt.Errorf("type is %v, GUID is %v: want neither zero", p.Type, p.ID)
	case p.Size <= 0 || p.Size > 1<<50:
		return fmt.Errorf("size is %d bytes: want 1 to 2^50", p.Size)
	case len(utf16.Encode([]rune(p.Name))) > maxName:
		return fmt.Errorf("name is longer than %d UTF-16 units", maxName)
	}
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// Write writes the disk to w, which must be empty: zeros are left out, so that
// a file gets holes. The last sector is always written, hence a file ends with
// the disk.
func Write(w io.WriterAt, d Disk) error {
	t, err := d.Layout()
	if err != nil {
		return err
	}
	w = holes{w}
	for i, p := range d.Partitions {
		part := &window{w, int64(t.Partitions[i].First) * sectorSize, p.Size}
		if err := p.Content(part); err != nil {
			return fmt.Errorf("disk: partition %q: %w", p.Name, err)
		}
	}
	return writeTable(w, t)
}
