package ovmf

import (
	"encoding/binary"
	"fmt"
)

// TDXType is what a section of the TDVF metadata is for: Intel, TDX Virtual
// Firmware Design Guide, section 11.2.
type TDXType uint32

const (
	TDXBFV          TDXType = 0 // boot firmware volume: the code
	TDXCFV          TDXType = 1 // configuration firmware volume: the variables
	TDXHOB          TDXType = 2 // hand-off blocks of the VMM
	TDXTempMem      TDXType = 3 // memory of the first code
	TDXPermMem      TDXType = 4 // the rest is those of td-shim
	TDXPayload      TDXType = 5
	TDXPayloadParam TDXType = 6
)

var tdxTypes = map[TDXType]string{
	TDXBFV: "BFV", TDXCFV: "CFV", TDXHOB: "TD HOB", TDXTempMem: "temporary memory",
	TDXPermMem: "permanent memory", TDXPayload: "payload", TDXPayloadParam: "payload parameters",
}

func (t TDXType) known() bool { return tdxTypes[t] != "" }

func (t TDXType) String() string {
	if name, ok := tdxTypes[t]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", uint32(t))
}

// Attributes of a section.
const (
	TDXExtend = 1 // MR.EXTEND: MRTD covers the content, not only that there are pages
	TDXAug    = 2 // PAGE.AUG: the pages come after the launch
)

// TDXSection is a range of guest memory that the VMM makes before a trust domain
// runs. Sections of size 0 stand for nothing.
type TDXSection struct {
	Offset, Size uint32 // of the content in the whole flash, bytes; see Metadata.Whole
	GPA, MemSize uint64 // bytes, whole pages; beyond Size they are zero
	Type         TDXType
	Attributes   uint32
}

const tdxSectionSize = 32 // u32 offset, u32 size, u64 GPA, u64 size in memory, u32 type, u32 attributes

// tdvfGUID is before the metadata.
var tdvfGUID = mustGUID("e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae")

func (m *Metadata) readTDX(file []byte, e TableEntry) error {
	b, at, err := e.descriptor(file, "TDVF", tdxSectionSize)
	if err != nil {
		return err
	}
	if id := at - 32; id < 0 || GUID(file[id:][:16]) != tdvfGUID {
		return e.errorf("metadata at %#x: no GUID %v before it", at-16, tdvfGUID)
	}
	m.TDX = make([]TDXSection, 0, len(b)/tdxSectionSize)
	places := make([]place, 0, cap(m.TDX))
	for i := 0; i < cap(m.TDX); i++ {
		s := tdxSection(b[i*tdxSectionSize:])
		m.TDX = append(m.TDX, s)
		places = append(places, place{i, s.GPA, s.MemSize})
	}
	m.findWhole()
	for i, s := range m.TDX {
		if err := m.checkTDX(s); err != nil {
			return e.errorf("section %d (%v) at %#x: %w", i, s.Type, at+i*tdxSectionSize, err)
		}
	}
	return checkPlaces(&e, places, at, tdxSectionSize)
}

func tdxSection(b []byte) TDXSection {
	le := binary.LittleEndian
	return TDXSection{
		Offset: le.Uint32(b), Size: le.Uint32(b[4:]), GPA: le.Uint64(b[8:]), MemSize: le.Uint64(b[16:]),
		Type: TDXType(le.Uint32(b[24:])), Attributes: le.Uint32(b[28:]),
	}
}

// findWhole looks for the boot firmware volume that reaches beyond the file but,
// by its address, ends where the file ends: then the file is the end of a larger
// flash.
func (m *Metadata) findWhole() {
	for _, s := range m.TDX {
		end := uint64(s.Offset) + uint64(s.Size)
		if s.Type == TDXBFV && end > uint64(m.Size) && end <= maxFlash && s.GPA+uint64(s.Size) == fourGiB {
			m.Whole = int(end)
			return
		}
	}
}

// checkTDX holds a section against the file and against what QEMU refuses:
// hw/i386/tdvf.c.
func (m *Metadata) checkTDX(s TDXSection) error {
	if end := uint64(s.Offset) + uint64(s.Size); s.Size > 0 && end > uint64(m.Whole) {
		return fmt.Errorf("bytes %#x to %#x of the file: it has %#x", s.Offset, end, m.Whole)
	}
	if uint64(s.Size) > s.MemSize {
		return fmt.Errorf("%d bytes of content for %d of memory", s.Size, s.MemSize)
	}
	if (s.Type == TDXHOB || s.Type == TDXTempMem) && s.Size > 0 {
		return fmt.Errorf("%d bytes of content: want none", s.Size)
	}
	return nil
}

// Content returns the bytes of file, which m was read from, that s loads. They
// are missing from a code flash if s is of the variables.
func (m *Metadata) Content(file []byte, s TDXSection) ([]byte, error) {
	missing := uint64(m.Whole - m.Size)
	start, end := uint64(s.Offset), uint64(s.Offset)+uint64(s.Size)
	if s.Size == 0 {
		return nil, nil
	}
	if len(file) != m.Size || start < missing || end > uint64(m.Whole) {
		return nil, fmt.Errorf("ovmf: TDX section %v: bytes %#x to %#x of a flash of %#x: the file has the last %#x", s.Type, start, end, m.Whole, len(file))
	}
	return file[start-missing : end-missing : end-missing], nil
}
