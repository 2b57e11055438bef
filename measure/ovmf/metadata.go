package ovmf

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Metadata is what a firmware tells the VMM of itself: the GUIDed table at its
// end and what that points at. Layout: edk2, OvmfPkg/ResetVector.
type Metadata struct {
	Size int // bytes of the file; it ends at 4 GiB in guest memory

	// Whole is the size in bytes of the flash that the file is the end of. It is
	// Size, but for a code flash without the variables below it: the TDX metadata
	// counts its offsets from the start of both.
	Whole int

	Table  []TableEntry  // in the order of the walk, from the end backwards; nil: no table
	SEV    []SEVSection  // in file order; nil: no SEV metadata
	TDX    []TDXSection  // in file order; nil: no TDVF metadata
	IGVM   []IGVMSection // in file order; nil: no IGVM metadata
	Reset  *uint32       // SEV-ES reset block: where application processors begin
	Hashes *Area         // SEV hash table; nil also for an entry that names no area, as the generic builds have
	Secret *Area         // SEV launch secret; nil as Hashes
	SVSM   *uint32       // SVSM info: launch offset, bytes from where the VMM puts the file
}

// TableEntry is an entry of the table at the firmware's end.
type TableEntry struct {
	GUID   GUID
	Name   string // "" for one we do not know
	Offset int    // of Data in the file
	Data   []byte
}

// Area is a range of guest memory.
type Area struct{ Base, Size uint32 } // guest physical, bytes

// The entries of the table. tableGUID is that of the last, which says how long
// the table is.
var (
	tableGUID      = mustGUID("96b582de-1fb2-45f7-baea-a366c55a082d")
	resetBlockGUID = mustGUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
	hashTableGUID  = mustGUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
	secretGUID     = mustGUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
	sevGUID        = mustGUID("dc886566-984a-4798-a75e-5585a7bf67cc")
	tdxGUID        = mustGUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
	svsmGUID       = mustGUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")
	igvmGUID       = mustGUID("784fa70e-3176-4677-8a20-04b68699e374")
)

// Sizes in the table, in bytes.
const (
	tailSize  = 32      // reset vector behind the table
	entryTail = 2 + 16  // u16 length with the data and this tail, GUID
	fourGiB   = 1 << 32 // where the file ends in guest memory
	pageSize  = 4096    // what a VMM adds and measures at a time
)

// maxSections bounds a list of sections. The longest known has eight.
const maxSections = 1024

// entryKinds says for each entry how it is called, how many bytes its data has,
// and what reads it.
var entryKinds = map[GUID]struct {
	name string
	size int
	read func(m *Metadata, file []byte, e TableEntry) error
}{
	resetBlockGUID: {"SEV-ES reset block", 4, func(m *Metadata, _ []byte, e TableEntry) error {
		m.Reset = e.word()
		return nil
	}},
	hashTableGUID: {"SEV hash table", 8, func(m *Metadata, _ []byte, e TableEntry) (err error) {
		m.Hashes, err = e.area()
		return err
	}},
	secretGUID: {"SEV launch secret", 8, func(m *Metadata, _ []byte, e TableEntry) (err error) {
		m.Secret, err = e.area()
		return err
	}},
	sevGUID:  {"SEV metadata", 4, (*Metadata).readSEV},
	tdxGUID:  {"TDX metadata", 4, (*Metadata).readTDX},
	igvmGUID: {"IGVM metadata", 4, (*Metadata).readIGVM},
	svsmGUID: {"SVSM info", 4, func(m *Metadata, _ []byte, e TableEntry) error {
		m.SVSM = e.word()
		return nil
	}},
}

// ReadMetadata reads the table at the end of a firmware or SVSM file, and the
// metadata that it names. A file without a table gives a nil Table and no error.
// Sections of unknown type are kept: who uses them refuses them. It keeps parts
// of file.
func ReadMetadata(file []byte) (*Metadata, error) {
	if len(file) > maxFlash {
		return nil, fmt.Errorf("ovmf: %d bytes: want at most %d", len(file), maxFlash)
	}
	m := &Metadata{Size: len(file), Whole: len(file)}
	if err := m.walk(file); err != nil {
		return nil, err
	}
	for _, e := range m.Table {
		if kind, ok := entryKinds[e.GUID]; ok {
			if err := kind.read(m, file, e); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// Base is the guest physical address of the file's first byte.
func (m *Metadata) Base() uint64 { return fourGiB - uint64(m.Size) }

// HasTable tells whether a file that ends with these bytes seems to end with a
// table: 50 bytes are enough.
func HasTable(tail []byte) bool {
	end := len(tail) - tailSize - entryTail
	return end >= 0 && bytes.Equal(tail[end+2:][:16], tableGUID[:])
}

// walk lists the table's entries.
func (m *Metadata) walk(file []byte) error {
	if !HasTable(file) {
		return nil
	}
	end := len(file) - tailSize - entryTail // of the entries, and start of the last
	size := int(binary.LittleEndian.Uint16(file[end:]))
	if size < entryTail || size > end+entryTail {
		return fmt.Errorf("ovmf: table ending at %#x: %d bytes: want %d to %d", end+entryTail, size, entryTail, end+entryTail)
	}
	m.Table = []TableEntry{}
	seen := map[GUID]int{}
	for start := end + entryTail - size; end > start; {
		e, err := tableEntry(file, start, end)
		if err != nil {
			return err
		}
		if first, ok := seen[e.GUID]; ok && e.Name != "" {
			return fmt.Errorf("ovmf: table entry at %#x: a second %s: the first is at %#x", e.Offset, e.Name, first)
		}
		seen[e.GUID] = e.Offset
		m.Table = append(m.Table, e)
		end = e.Offset
	}
	return nil
}

// tableEntry reads the entry that ends at end in a table that begins at start.
func tableEntry(file []byte, start, end int) (e TableEntry, err error) {
	if end-start < entryTail {
		return e, fmt.Errorf("ovmf: table entry ending at %#x: %d bytes: want at least %d", end, end-start, entryTail)
	}
	tail := file[end-entryTail : end]
	size := int(binary.LittleEndian.Uint16(tail))
	if size < entryTail || size > end-start {
		return e, fmt.Errorf("ovmf: table entry ending at %#x: %d bytes: want %d to %d", end, size, entryTail, end-start)
	}
	e = TableEntry{GUID: GUID(tail[2:]), Offset: end - size, Data: file[end-size : end-entryTail : end-entryTail]}
	if kind, ok := entryKinds[e.GUID]; ok {
		e.Name = kind.name
		if len(e.Data) != kind.size {
			return e, e.errorf("%d bytes of data: want %d", len(e.Data), kind.size)
		}
	}
	return e, nil
}

func (e *TableEntry) errorf(format string, a ...any) error {
	return fmt.Errorf("ovmf: %s: entry at %#x: %w", e.Name, e.Offset, fmt.Errorf(format, a...))
}

func (e *TableEntry) word() *uint32 {
	v := binary.LittleEndian.Uint32(e.Data)
	return &v
}

// area reads base and size. Builds for which it means nothing have zeros there.
func (e *TableEntry) area() (*Area, error) {
	a := Area{binary.LittleEndian.Uint32(e.Data), binary.LittleEndian.Uint32(e.Data[4:])}
	if a.Base == 0 || a.Size == 0 {
		return nil, nil
	}
	if uint64(a.Base)+uint64(a.Size) > fourGiB {
		return nil, e.errorf("%d bytes at %#x: want them below 4 GiB", a.Size, a.Base)
	}
	return &a, nil
}

// descriptor finds the metadata that e points at: a head of signature, u32
// length with the head, u32 version and u32 number of sections, then sections of
// each bytes. at is its offset in the file.
func (e *TableEntry) descriptor(file []byte, signature string, each int) (sections []byte, at int, err error) {
	const head, version = 16, 1
	back := uint64(*e.word()) // from the end of the file
	if back < head || back > uint64(len(file)) {
		return nil, 0, e.errorf("%d bytes before the end: want %d to %d", back, head, len(file))
	}
	at = len(file) - int(back)
	b, le := file[at:], binary.LittleEndian
	if string(b[:4]) != signature {
		return nil, 0, e.errorf("signature at %#x: %q: want %q", at, b[:4], signature)
	}
	if v := le.Uint32(b[8:]); v != version {
		return nil, 0, e.errorf("version at %#x: %d: want %d", at+8, v, version)
	}
	size, count := uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[12:]))
	if count > maxSections {
		return nil, 0, e.errorf("number at %#x: %d sections: want at most %d", at+12, count, maxSections)
	}
	if want := head + count*uint64(each); size != want {
		return nil, 0, e.errorf("length at %#x: %d bytes: want %d for %d sections", at+4, size, want, count)
	}
	if size > back {
		return nil, 0, e.errorf("%d bytes at %#x: the file has %d there", size, at, back)
	}
	return b[head:size], at + head, nil
}
