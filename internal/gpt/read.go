package gpt

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"
)

// Sizes on disk, in bytes.
const (
	headerSize   = 92 // EFI_PARTITION_TABLE_HEADER without the reserved rest of the sector
	entrySize    = 128
	maxEntries   = 1 << 20 // what this package reads of one
	revision     = 0x00010000
	signature    = "EFI PART"
	mbrSignature = 0x1fe // offset of 55 aa
)

// ErrNoTable is returned when there is no GPT at LBA 1.
var ErrNoTable = errors.New("no GUID partition table")

// header is EFI_PARTITION_TABLE_HEADER; UEFI 2.10, table 5.5.
type header struct {
	Signature    [8]byte
	Revision     uint32
	HeaderSize   uint32 // bytes
	HeaderCRC32  uint32 // over HeaderSize bytes, this field zero
	_            uint32
	MyLBA        uint64
	AlternateLBA uint64
	FirstUsable  uint64 // LBA
	LastUsable   uint64 // LBA, inclusive
	DiskGUID     GUID
	EntriesLBA   uint64
	Entries      uint32
	EntrySize    uint32 // bytes, 128 * 2^n
	EntriesCRC32 uint32 // over the whole array
}

// entry is EFI_PARTITION_ENTRY; UEFI 2.10, table 5.6.
type entry struct {
	Type, ID    GUID
	First, Last uint64
	Attributes  uint64
	Name        [36]uint16 // UTF-16, filled up with zeros
}

// A side is one of the two copies of a table.
type side struct {
	header
	sector  int
	raw     []byte // headerSize bytes of the header
	entries []byte // the array
}

// Read reads the table of a disk of size bytes, whose sectors may have 512 or
// 4096 bytes. It checks the protective MBR, the checksums and bounds of both
// copies, that the two agree, and that partitions lie in the usable area without
// overlap. Without a header at LBA 1 the error is ErrNoTable.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	p, err := readPrimary(r, size)
	if err != nil {
		return nil, err
	}
	if err := checkMBR(r); err != nil {
		return nil, err
	}
	b, err := readSide(r, size, p.sector, p.AlternateLBA)
	if err != nil {
		return nil, fmt.Errorf("gpt: backup: %w", err)
	}
	if err := agree(p, b); err != nil {
		return nil, err
	}
	t := &Table{
		DiskID:      p.DiskGUID,
		SectorSize:  p.sector,
		Sectors:     uint64(size) / uint64(p.sector),
		FirstUsable: p.FirstUsable,
		LastUsable:  p.LastUsable,
	}
	if t.Partitions, err = partitions(p); err != nil {
		return nil, err
	}
	return t, nil
}

// EventData returns what firmware measures of the table in PCR 5 as
// EV_EFI_GPT_EVENT, UEFI_GPT_DATA: the primary header (92 bytes), the number of
// used entries as 64 bits, and those entries. The backup is not looked at, as
// firmware does not measure it.
// TCG PC Client Platform Firmware Profile 1.06, 10.2.6 "UEFI_GPT_DATA".
func EventData(r io.ReaderAt, size int64) ([]byte, error) {
	p, err := readPrimary(r, size)
	if err != nil {
		return nil, err
	}
	var used []byte
	n := uint64(0)
	for e := range slices.Chunk(p.entries, int(p.EntrySize)) {
		if GUID(e[:16]) != (GUID{}) {
			used = append(used, e...)
			n++
		}
	}
	return append(binary.LittleEndian.AppendUint64(bytes.Clone(p.raw), n), used...), nil
}

func readPrimary(r io.ReaderAt, size int64) (*side, error) {
	for _, sector := range []int{512, 4096} {
		p, err := readSide(r, size, sector, 1)
		if errors.Is(err, ErrNoTable) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("gpt: primary: %w", err)
		}
		return p, nil
	}
	return nil, fmt.Errorf("gpt: %w", ErrNoTable)
}

// readSide reads and checks the header at lba and the array that it names.
func readSide(r io.ReaderAt, size int64, sector int, lba uint64) (*side, error) {
	sectors := uint64(max(size, 0)) / uint64(sector)
	if lba >= sectors {
		return nil, fmt.Errorf("LBA %d of a disk of %d sectors: %w", lba, sectors, ErrNoTable)
	}
	b := make([]byte, sector)
	if err := readFull(r, b, int64(lba)*int64(sector)); err != nil {
		return nil, err
	}
	if string(b[:len(signature)]) != signature {
		return nil, fmt.Errorf("LBA %d: %w", lba, ErrNoTable)
	}
	s := &side{sector: sector, raw: b[:headerSize]}
	if _, err := binary.Decode(b, binary.LittleEndian, &s.header); err != nil {
		return nil, err
	}
	if err := s.check(b, lba, sectors); err != nil {
		return nil, err
	}
	s.entries = make([]byte, s.Entries*s.EntrySize)
	if err := readFull(r, s.entries, int64(s.EntriesLBA)*int64(sector)); err != nil {
		return nil, err
	}
	if got := crc32.ChecksumIEEE(s.entries); got != s.EntriesCRC32 {
		return nil, fmt.Errorf("entries: CRC-32 is %08x, header says %08x", got, s.EntriesCRC32)
	}
	return s, nil
}

// readFull fills b from r; ending early is an error also at the very end.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	_, err := io.ReadFull(io.NewSectionReader(r, off, int64(len(b))), b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// check checks a header, of which b is the sector, against itself and the disk.
func (s *side) check(b []byte, lba, sectors uint64) error {
	if s.Revision != revision {
		return fmt.Errorf("revision is %#x: want %#x", s.Revision, revision)
	}
	if s.HeaderSize < headerSize || int(s.HeaderSize) > len(b) {
		return fmt.Errorf("header size is %d: want %d to %d bytes", s.HeaderSize, headerSize, len(b))
	}
	sum := bytes.Clone(b[:s.HeaderSize])
	clear(sum[16:20]) // HeaderCRC32
	if got := crc32.ChecksumIEEE(sum); got != s.HeaderCRC32 {
		return fmt.Errorf("header: CRC-32 is %08x, it says %08x", got, s.HeaderCRC32)
	}
	if s.MyLBA != lba {
		return fmt.Errorf("header at LBA %d says %d", lba, s.MyLBA)
	}
	if s.AlternateLBA >= sectors || s.AlternateLBA == lba {
		return fmt.Errorf("other header at LBA %d of a disk of %d sectors", s.AlternateLBA, sectors)
	}
	if n := s.EntrySize / entrySize; s.EntrySize%entrySize != 0 || n == 0 || n&(n-1) != 0 {
		return fmt.Errorf("entry size is %d: want 128, 256, 512, ... bytes", s.EntrySize)
	}
	size := uint64(s.Entries) * uint64(s.EntrySize)
	if s.Entries == 0 || size > maxEntries {
		return fmt.Errorf("%d entries of %d bytes: want 1 to %d bytes", s.Entries, s.EntrySize, maxEntries)
	}
	// The array must have its place outside the usable area, beside the header.
	array := (size + uint64(s.sector) - 1) / uint64(s.sector)
	if s.EntriesLBA >= sectors || array > sectors-s.EntriesLBA || s.EntriesLBA < 2 {
		return fmt.Errorf("entries at LBA %d, %d sectors, of a disk of %d sectors", s.EntriesLBA, array, sectors)
	}
	if s.FirstUsable > s.LastUsable || s.LastUsable >= sectors {
		return fmt.Errorf("usable area is LBA %d to %d of a disk of %d sectors", s.FirstUsable, s.LastUsable, sectors)
	}
	if s.EntriesLBA <= s.LastUsable && s.EntriesLBA+array > s.FirstUsable {
		return fmt.Errorf("entries at LBA %d, %d sectors, lie in the usable area %d to %d", s.EntriesLBA, array, s.FirstUsable, s.LastUsable)
	}
	return nil
}

// checkMBR checks the first sector's protective MBR; UEFI 2.10, 5.2.3.
func checkMBR(r io.ReaderAt) error {
	var b [512]byte
	if err := readFull(r, b[:], 0); err != nil {
		return fmt.Errorf("gpt: MBR: %w", err)
	}
	p := b[446:462] // the first of four partition records
	if b[mbrSignature] != 0x55 || b[mbrSignature+1] != 0xaa || p[4] != 0xee || binary.LittleEndian.Uint32(p[8:]) != 1 {
		return errors.New("gpt: MBR: is not protective: want type ee from LBA 1")
	}
	return nil
}

// agree checks that two copies describe the same table.
func agree(p, b *side) error {
	if b.AlternateLBA != p.MyLBA {
		return fmt.Errorf("gpt: backup: names LBA %d as the other header, want %d", b.AlternateLBA, p.MyLBA)
	}
	want, got := p.header, b.header
	for _, h := range []*header{&want, &got} { // what differs by nature
		h.HeaderCRC32, h.MyLBA, h.AlternateLBA, h.EntriesLBA = 0, 0, 0, 0
	}
	if got != want {
		return fmt.Errorf("gpt: backup differs from primary: got %+v, want %+v", got, want)
	}
	return nil
}

// partitions returns the used entries and checks where they lie.
func partitions(s *side) ([]Partition, error) {
	var ps []Partition
	for raw := range slices.Chunk(s.entries, int(s.EntrySize)) {
		var e entry
		if _, err := binary.Decode(raw, binary.LittleEndian, &e); err != nil {
			return nil, err
		}
		if e.Type == (GUID{}) {
			continue
		}
		if e.First > e.Last || e.First < s.FirstUsable || e.Last > s.LastUsable {
			return nil, fmt.Errorf("gpt: partition %v: LBA %d to %d, usable are %d to %d", e.ID, e.First, e.Last, s.FirstUsable, s.LastUsable)
		}
		ps = append(ps, Partition{e.Type, e.ID, e.First, e.Last, e.Attributes, name(e.Name[:])})
	}
	byPlace := slices.SortedFunc(slices.Values(ps), func(a, b Partition) int { return cmp.Compare(a.First, b.First) })
	for i := 1; i < len(byPlace); i++ {
		if a, b := byPlace[i-1], byPlace[i]; b.First <= a.Last {
			return nil, fmt.Errorf("gpt: partitions %v and %v overlap at LBA %d", a.ID, b.ID, b.First)
		}
	}
	return ps, nil
}

func name(units []uint16) string {
	if i := slices.Index(units, 0); i >= 0 {
		units = units[:i]
	}
	return string(utf16.Decode(units))
}
