// Package petest builds small PE images for tests: stubs, kernels and broken
// ones. It shares no code with the parser and the writer that they test.
package petest

import (
	"bytes"
	"encoding/binary"
)

// Section is one section of an image.
type Section struct {
	Name        string
	Data        []byte
	VirtualSize uint32 // len(Data) when 0
}

// Image says how an image is to look; the zero value is an EFI application for
// amd64 without sections.
type Image struct {
	Machine           uint16 // 0 is amd64
	Subsystem         uint16 // 0 is EFI application
	MajorImageVersion uint16
	PE32              bool
	NXCompat          bool
	Directories       int // 0 is 16, below 0 none
	SizeOfHeaders     int // 0 is 1024
	Sections          []Section
	Symbols           []byte // the COFF symbol table, at the end
	Tail              []byte // behind everything
}

const (
	fileAlignment    = 512
	sectionAlignment = 4096
	peOffset         = 0x80
)

// Stub is an image that says it is systemd-stub of that version.
func Stub(version string) Image {
	return Image{NXCompat: true, Sections: []Section{
		{Name: ".text", Data: bytes.Repeat([]byte{0xc3}, 700)},
		{Name: ".sbat", Data: []byte("sbat,1,SBAT Version,sbat,1,https://example.org/SBAT.md\nsystemd,1,The systemd Developers,systemd,257,https://example.org/\n")},
		{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-stub " + version + " ####")},
	}}
}

// Kernel is an image that passes for a Linux kernel with an EFI stub.
func Kernel() Image {
	return Image{NXCompat: true, MajorImageVersion: 3, Sections: []Section{
		{Name: ".setup", Data: bytes.Repeat([]byte("setup"), 300)},
		{Name: ".text", Data: bytes.Repeat([]byte("kernel"), 1000)},
	}}
}

// Bytes returns the image.
func (i Image) Bytes() []byte {
	headers := or(i.SizeOfHeaders, 1024)
	b := make([]byte, headers)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], peOffset)
	copy(b[peOffset:], "PE\x00\x00")
	coff, optional := b[peOffset+4:], b[peOffset+24:]

	directories, size := or(i.Directories, 16), 112
	if i.PE32 {
		size = 96
	}
	directories = max(directories, 0)
	le.PutUint32(optional[size-4:], uint32(directories))
	size += 8 * directories

	table, address := optional[size:], uint32(align(headers+1, sectionAlignment))
	for n, s := range i.Sections {
		h := table[n*40:][:40]
		copy(h[:8], s.Name)
		virtual := uint32(or(int(s.VirtualSize), len(s.Data)))
		le.PutUint32(h[8:], virtual)
		le.PutUint32(h[12:], address)
		if len(s.Data) > 0 {
			le.PutUint32(h[16:], uint32(align(len(s.Data), fileAlignment)))
			le.PutUint32(h[20:], uint32(len(b)))
		}
		le.PutUint32(h[36:], 0x40000040)
		b = append(b, s.Data...)
		b = append(b, make([]byte, align(len(b), fileAlignment)-len(b))...)
		coff, optional = b[peOffset+4:], b[peOffset+24:]
		table = optional[size:]
		address += uint32(align(int(virtual), sectionAlignment))
	}
	le.PutUint16(coff, uint16(or(int(i.Machine), 0x8664)))
	le.PutUint16(coff[2:], uint16(len(i.Sections)))
	if len(i.Symbols) > 0 {
		le.PutUint32(coff[8:], uint32(len(b)))
		le.PutUint32(coff[12:], uint32(len(i.Symbols)/18))
	}
	le.PutUint16(coff[16:], uint16(size))
	le.PutUint16(coff[18:], 0x22e)
	i.putOptional(optional, headers, address)
	return append(append(b, i.Symbols...), i.Tail...)
}

func (i Image) putOptional(h []byte, headers int, sizeOfImage uint32) {
	magic := uint16(0x20b)
	if i.PE32 {
		magic = 0x10b
	}
	le.PutUint16(h, magic)
	le.PutUint32(h[32:], sectionAlignment)
	le.PutUint32(h[36:], fileAlignment)
	le.PutUint16(h[44:], i.MajorImageVersion)
	le.PutUint32(h[56:], sizeOfImage)
	le.PutUint32(h[60:], uint32(headers))
	le.PutUint16(h[68:], uint16(or(int(i.Subsystem), 10)))
	if i.NXCompat {
		le.PutUint16(h[70:], 0x0100)
	}
}

var le = binary.LittleEndian

func or(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

func align(n, a int) int { return (n + a - 1) / a * a }
