package uki

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/plinth-os/plinth/internal/pe"
)

// header is a PE32+ header from its signature on, in views with offset and
// length: Microsoft, "PE Format", sections "COFF File Header" and "Optional
// Header". The optional header begins at 24.
type header []byte

func (h header) numberOfSections() []byte   { return h[6:][:2] }
func (h header) symbolTable() []byte        { return h[12:][:8] } // pointer and number
func (h header) initializedData() []byte    { return h[24+8:][:4] }
func (h header) sizeOfImage() []byte        { return h[24+56:][:4] }
func (h header) checkSum() []byte           { return h[24+64:][:4] }
func (h header) dllCharacteristics() []byte { return h[24+70:][:2] }

func clearBits(field []byte, bits uint16) {
	binary.LittleEndian.PutUint16(field, binary.LittleEndian.Uint16(field)&^bits)
}

// image is a PE file about to be written: its headers and, in the order of
// table and file, its sections with their bytes.
type image struct {
	headers  []byte // SizeOfHeaders bytes
	peOffset int64
	sections []placed
}

type placed struct {
	pe.Section
	content *io.SectionReader // at most RawSize bytes, padded with zeros
}

func (img *image) pe() header { return header(img.headers[img.peOffset:]) }

// layOut places the stub's sections and the added ones one behind the other,
// without gaps: Authenticode's "data after the sections" begins at a count of
// bytes, and tools differ on what that means in a file with holes. An added
// section takes the place of the stub's of that name.
func layOut(f *pe.File, stub []byte, added []Section) (*image, error) {
	img := &image{headers: bytes.Clone(stub[:f.SizeOfHeaders]), peOffset: f.PEHeader}
	replaced := map[string]bool{}
	for _, s := range added {
		replaced[s.Name] = true
	}
	offset, address := int64(f.SizeOfHeaders), int64(f.SizeOfImage)
	for _, s := range f.Sections {
		if replaced[s.Name] {
			continue
		}
		content := io.NewSectionReader(bytes.NewReader(stub), int64(s.Offset), int64(s.RawSize))
		if s.RawSize != 0 {
			s.Offset = uint32(offset)
			s.RawSize = uint32(align(int64(s.RawSize), f.FileAlignment))
		}
		offset += int64(s.RawSize)
		img.sections = append(img.sections, placed{s, content})
	}
	for _, s := range added {
		address = align(address, max(f.SectionAlignment, pageSize))
		size, raw := s.Content.Size(), align(s.Content.Size(), f.FileAlignment)
		img.sections = append(img.sections, placed{pe.Section{
			Name:            s.Name,
			VirtualAddress:  uint32(address),
			VirtualSize:     uint32(size),
			Offset:          uint32(offset),
			RawSize:         uint32(raw),
			Characteristics: dataCharacteristics,
		}, s.Content})
		offset, address = offset+raw, address+size
	}
	address = align(address, max(f.SectionAlignment, pageSize))
	if offset > math.MaxUint32 || address > math.MaxUint32 {
		return nil, fmt.Errorf("uki: image: %#x bytes, %#x in memory: want less than 4 GiB", offset, address)
	}
	binary.LittleEndian.PutUint32(img.pe().sizeOfImage(), uint32(address))
	clear(img.pe().symbolTable())
	clear(img.pe().checkSum())
	return img, img.putTable(f)
}

// align rounds n up to a multiple of a, a power of two.
func align(n int64, a uint32) int64 { return (n + int64(a) - 1) &^ (int64(a) - 1) }

// putTable writes the section table and the fields that count it.
func (img *image) putTable(f *pe.File) error {
	table := img.headers[f.SectionTable:]
	room, have := min(len(table)/pe.SectionHeaderSize, math.MaxUint16), len(img.sections)
	if have > room {
		return fmt.Errorf("uki: stub: %d sections: headers of %#x bytes hold %d: %w", have, f.SizeOfHeaders, room, ErrNoRoom)
	}
	old := table[:f.NumberOfSections*pe.SectionHeaderSize]
	free := table[len(old):]
	if grown := have - f.NumberOfSections; grown > 0 && len(bytes.Trim(free[:grown*pe.SectionHeaderSize], "\x00")) > 0 {
		return fmt.Errorf("uki: stub: data after the section table: %w", ErrNoRoom)
	}
	clear(old)
	var data uint32
	for i, s := range img.sections {
		b := table[i*pe.SectionHeaderSize:][:pe.SectionHeaderSize]
		copy(b[:8], s.Name)
		binary.LittleEndian.PutUint32(b[8:], s.VirtualSize)
		binary.LittleEndian.PutUint32(b[12:], s.VirtualAddress)
		binary.LittleEndian.PutUint32(b[16:], s.RawSize)
		binary.LittleEndian.PutUint32(b[20:], s.Offset)
		binary.LittleEndian.PutUint32(b[36:], s.Characteristics)
		if s.Characteristics&initializedData != 0 {
			data += s.RawSize
		}
	}
	binary.LittleEndian.PutUint32(img.pe().initializedData(), data)
	binary.LittleEndian.PutUint16(img.pe().numberOfSections(), uint16(have))
	return nil
}

func (img *image) write(w io.Writer) error {
	if _, err := w.Write(img.headers); err != nil {
		return fmt.Errorf("uki: headers: %w", err)
	}
	for _, s := range img.sections {
		n := s.content.Size()
		if _, err := io.CopyN(w, io.NewSectionReader(s.content, 0, n), n); err != nil {
			return fmt.Errorf("uki: section %s: %w", s.Name, err)
		}
		if _, err := w.Write(make([]byte, int64(s.RawSize)-n)); err != nil {
			return fmt.Errorf("uki: section %s: %w", s.Name, err)
		}
	}
	return nil
}
