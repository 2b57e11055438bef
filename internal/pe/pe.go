// Package pe reads PE32 and PE32+ images as UEFI firmware does: the headers,
// the section table, the certificate table and the byte stream that an
// Authenticode digest covers. It is made for hostile input: every offset and
// length is compared with the file before use, and reading every section of a
// parsed file costs no more than its size and 256 MiB of zeros.
//
// References: Microsoft, "PE Format"; Microsoft, "Windows Authenticode
// Portable Executable Signature Format"; UEFI 2.10, sections 2.1.1 and 32.2.
// Not supported: TE images, COFF objects, sections with names in a string
// table (such a name reads "/123").
package pe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrNotPE is wrapped by Parse's error when the file carries no PE signature;
// any other error of Parse means a PE image that is corrupt.
var ErrNotPE = errors.New("not a PE image")

// Machine types and values of other header fields that UEFI knows on amd64.
const (
	MachineAMD64 = 0x8664

	SubsystemEFIApplication = 10

	// DLLCharacteristicsNXCompat says that the image runs with
	// non-executable data pages.
	DLLCharacteristicsNXCompat = 0x0100
)

// File is an image whose headers were checked. It reads section data from the
// underlying reader when asked and keeps none.
type File struct {
	Machine            uint16
	Characteristics    uint16 // of the COFF header
	NumberOfSections   int
	SymbolTable        uint32 // file offset, 0 when there is none
	PE32Plus           bool
	Subsystem          uint16
	DLLCharacteristics uint16
	SectionAlignment   uint32
	FileAlignment      uint32
	MajorImageVersion  uint16
	SizeOfImage        uint32
	SizeOfHeaders      uint32
	CheckSum           uint32
	Sections           []Section // in the table's order

	// CertTable is data directory 4. Offset is a file offset, not an RVA.
	CertTable struct{ Offset, Size uint32 }

	// File offsets of what a writer changes. CertDir is 0 when the image has
	// fewer than five data directories.
	PEHeader, SectionTable, CheckSumField, CertDir int64

	r    io.ReaderAt
	size int64
}

// Section is one entry of the section table.
type Section struct {
	Name            string // without the NULs that pad it to 8 bytes
	VirtualAddress  uint32 // RVA
	VirtualSize     uint32 // bytes in memory
	Offset          uint32 // PointerToRawData, in the file
	RawSize         uint32 // bytes in the file
	Characteristics uint32
}

// Header sizes and limits.
const (
	dosHeaderSize     = 64
	coffHeaderSize    = 24 // with the signature
	SectionHeaderSize = 40

	maxDirectories = 16
	certDirectory  = 4 // IMAGE_DIRECTORY_ENTRY_SECURITY

	maxSize  = 1 << 32   // an image offset is 32 bits wide
	maxZeros = 256 << 20 // what sections may have in memory beyond the file; a kernel's .bss needs some 10 MiB
)

// Parse reads the headers of the image of size bytes in r. It refuses what the
// firmware's loader refuses (edk2 BasePeCoffLib), raw data outside the file,
// and sections that together are larger than the file or the loaded image.
func Parse(r io.ReaderAt, size int64) (*File, error) {
	f := &File{r: r, size: size}
	if size < dosHeaderSize {
		return nil, fmt.Errorf("pe: file: %d bytes: %w", size, ErrNotPE)
	}
	if size >= maxSize {
		return nil, fmt.Errorf("pe: file: %d bytes: want less than 4 GiB", size)
	}
	optional, err := f.parseCOFF()
	if err != nil {
		return nil, err
	}
	if err := f.parseOptional(optional); err != nil {
		return nil, err
	}
	if err := f.parseSections(); err != nil {
		return nil, err
	}
	return f, nil
}

// Size returns the length of the file in bytes.
func (f *File) Size() int64 { return f.size }

// Section returns the first section of that name.
func (f *File) Section(name string) (Section, bool) {
	for _, s := range f.Sections {
		if s.Name == name {
			return s, true
		}
	}
	return Section{}, false
}

// Data returns the file's bytes of s: its raw data, without the padding that
// exceeds VirtualSize.
func (f *File) Data(s Section) *io.SectionReader {
	return io.NewSectionReader(f.r, int64(s.Offset), int64(min(s.RawSize, s.VirtualSize)))
}

// Measured returns exactly VirtualSize bytes: the raw data, cut or extended
// with zeros. That is what lies in memory once s is loaded, and so what
// systemd-stub measures.
func (f *File) Measured(s Section) io.Reader {
	data := f.Data(s)
	return io.MultiReader(data, io.LimitReader(zeros{}, int64(s.VirtualSize)-data.Size()))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (f *File) parseCOFF() (optional []byte, err error) {
	dos, err := f.read("DOS header", 0, dosHeaderSize)
	if err != nil {
		return nil, err
	}
	if dos[0] != 'M' || dos[1] != 'Z' {
		return nil, fmt.Errorf("pe: DOS header: magic %x, want 4d5a: %w", dos[:2], ErrNotPE)
	}
	f.PEHeader = int64(binary.LittleEndian.Uint32(dos[0x3c:]))
	coff, err := f.read("COFF header", f.PEHeader, coffHeaderSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrNotPE)
	}
	if !bytes.Equal(coff[:4], []byte("PE\x00\x00")) {
		return nil, fmt.Errorf("pe: COFF header at %#x: signature %x, want 50450000: %w", f.PEHeader, coff[:4], ErrNotPE)
	}
	f.Machine = binary.LittleEndian.Uint16(coff[4:])
	f.NumberOfSections = int(binary.LittleEndian.Uint16(coff[6:]))
	f.SymbolTable = binary.LittleEndian.Uint32(coff[12:])
	f.Characteristics = binary.LittleEndian.Uint16(coff[22:])
	size := int64(binary.LittleEndian.Uint16(coff[20:]))
	f.SectionTable = f.PEHeader + coffHeaderSize + size
	return f.read("optional header", f.PEHeader+coffHeaderSize, size)
}

// parseOptional reads the optional header. PE32 and PE32+ agree on the
// offsets 32 to 71; the data directories follow at 96 and 112.
func (f *File) parseOptional(h []byte) error {
	if len(h) < 2 {
		return fmt.Errorf("pe: optional header: %d bytes", len(h))
	}
	directories := 96
	switch magic := binary.LittleEndian.Uint16(h); magic {
	case 0x10b:
	case 0x20b:
		f.PE32Plus, directories = true, 112
	default:
		return fmt.Errorf("pe: optional header: magic %#x: want 0x10b or 0x20b", magic)
	}
	if len(h) < directories {
		return fmt.Errorf("pe: optional header: %d bytes: want at least %d", len(h), directories)
	}
	f.SectionAlignment = binary.LittleEndian.Uint32(h[32:])
	f.FileAlignment = binary.LittleEndian.Uint32(h[36:])
	f.MajorImageVersion = binary.LittleEndian.Uint16(h[44:])
	f.SizeOfImage = binary.LittleEndian.Uint32(h[56:])
	f.SizeOfHeaders = binary.LittleEndian.Uint32(h[60:])
	f.CheckSum = binary.LittleEndian.Uint32(h[64:])
	f.Subsystem = binary.LittleEndian.Uint16(h[68:])
	f.DLLCharacteristics = binary.LittleEndian.Uint16(h[70:])
	f.CheckSumField = f.PEHeader + coffHeaderSize + 64

	count := binary.LittleEndian.Uint32(h[directories-4:])
	if count > maxDirectories || len(h) != directories+8*int(count) {
		return fmt.Errorf("pe: optional header: %d bytes with %d data directories", len(h), count)
	}
	if count > certDirectory {
		at := directories + 8*certDirectory
		f.CertDir = f.PEHeader + coffHeaderSize + int64(at)
		f.CertTable.Offset = binary.LittleEndian.Uint32(h[at:])
		f.CertTable.Size = binary.LittleEndian.Uint32(h[at+4:])
	}
	return f.checkHeaders()
}

// checkHeaders compares what the headers say of their own size and of the
// certificate table with the file.
func (f *File) checkHeaders() error {
	end := f.SectionTable + int64(f.NumberOfSections)*SectionHeaderSize
	switch headers := int64(f.SizeOfHeaders); {
	case headers <= f.SectionTable || headers < end:
		return fmt.Errorf("pe: SizeOfHeaders %#x: section table ends at %#x", headers, end)
	case headers > f.size:
		return fmt.Errorf("pe: SizeOfHeaders %#x: file has %#x bytes", headers, f.size)
	case headers >= int64(f.SizeOfImage):
		return fmt.Errorf("pe: SizeOfHeaders %#x: SizeOfImage is %#x", headers, f.SizeOfImage)
	}
	if c := f.CertTable; c.Size != 0 && int64(c.Offset)+int64(c.Size) > f.size {
		return fmt.Errorf("pe: certificate table: %#x bytes at %#x: file has %#x", c.Size, c.Offset, f.size)
	}
	return nil
}

func (f *File) parseSections() error {
	table, err := f.read("section table", f.SectionTable, int64(f.NumberOfSections)*SectionHeaderSize)
	if err != nil {
		return err
	}
	raw, virtual := int64(f.SizeOfHeaders), int64(0)
	for ; len(table) > 0; table = table[SectionHeaderSize:] {
		s := Section{
			Name:            string(bytes.TrimRight(table[:8], "\x00")),
			VirtualSize:     binary.LittleEndian.Uint32(table[8:]),
			VirtualAddress:  binary.LittleEndian.Uint32(table[12:]),
			RawSize:         binary.LittleEndian.Uint32(table[16:]),
			Offset:          binary.LittleEndian.Uint32(table[20:]),
			Characteristics: binary.LittleEndian.Uint32(table[36:]),
		}
		if err := f.checkSection(s); err != nil {
			return err
		}
		raw += int64(s.RawSize)
		virtual += int64(s.VirtualSize)
		f.Sections = append(f.Sections, s)
	}
	// Sections that share bytes would let a small file make a reader hash
	// its bytes, or zeros, any number of times.
	if raw > f.size {
		return fmt.Errorf("pe: section table: %#x bytes of headers and raw data: file has %#x", raw, f.size)
	}
	if limit := min(int64(f.SizeOfImage), f.size+maxZeros); virtual > limit {
		return fmt.Errorf("pe: section table: %#x bytes in memory: want at most %#x", virtual, limit)
	}
	return nil
}

func (f *File) checkSection(s Section) error {
	if s.RawSize != 0 {
		if s.Offset < f.SizeOfHeaders || s.VirtualAddress < f.SizeOfHeaders {
			return fmt.Errorf("pe: section %q: offset %#x, RVA %#x: inside the headers (%#x bytes)", s.Name, s.Offset, s.VirtualAddress, f.SizeOfHeaders)
		}
		if end := int64(s.Offset) + int64(s.RawSize); end > f.size {
			return fmt.Errorf("pe: section %q: raw data ends at %#x: file has %#x bytes", s.Name, end, f.size)
		}
	}
	if end := int64(s.VirtualAddress) + int64(s.VirtualSize); end > int64(f.SizeOfImage) {
		return fmt.Errorf("pe: section %q: ends at RVA %#x: SizeOfImage is %#x", s.Name, end, f.SizeOfImage)
	}
	return nil
}

// read returns n bytes at off, which may be any numbers a file can hold.
func (f *File) read(what string, off, n int64) ([]byte, error) {
	if off+n > f.size {
		return nil, fmt.Errorf("pe: %s: %d bytes at %#x: file has %#x bytes", what, n, off, f.size)
	}
	b := make([]byte, n)
	if got, err := f.r.ReadAt(b, off); got < len(b) {
		return nil, fmt.Errorf("pe: %s: %w", what, err)
	}
	return b, nil
}
