package ovmf

import (
	"encoding/binary"
	"fmt"
)

// IGVMType is what a section of the IGVM metadata is for: edk2,
// OvmfPkg/ResetVector/X64/IgvmMetadata.asm.
type IGVMType uint32

const (
	IGVMParameters IGVMType = 0x100 // area for parameters of the VMM
	IGVMMemoryMap  IGVMType = 0x101
	IGVMProcessors IGVMType = 0x102
	IGVMHOBs       IGVMType = 0x200 // area for hand-off blocks
)

var igvmTypes = map[IGVMType]string{
	IGVMParameters: "parameter area", IGVMMemoryMap: "memory map", IGVMProcessors: "number of processors", IGVMHOBs: "hand-off blocks",
}

func (t IGVMType) String() string {
	if name, ok := igvmTypes[t]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", uint32(t))
}

// IGVMSection is a place that a tool which makes an IGVM file of the firmware
// lets the VMM fill in. Memory map and number of processors count Start from the
// parameter area, the areas themselves from 0.
type IGVMSection struct {
	Start, Size uint32 // bytes
	Type        IGVMType
}

func (m *Metadata) readIGVM(file []byte, e TableEntry) error {
	const size = 12 // u32 start, u32 size, u32 type
	b, at, err := e.descriptor(file, "IGVM", size)
	if err != nil {
		return err
	}
	m.IGVM = make([]IGVMSection, 0, len(b)/size)
	for i := 0; i < cap(m.IGVM); i++ {
		le, x := binary.LittleEndian, b[i*size:]
		s := IGVMSection{le.Uint32(x), le.Uint32(x[4:]), IGVMType(le.Uint32(x[8:]))}
		if uint64(s.Start)+uint64(s.Size) > fourGiB {
			return e.errorf("section %d at %#x: %d bytes at %#x: want them below 4 GiB", i, at+i*size, s.Size, s.Start)
		}
		m.IGVM = append(m.IGVM, s)
	}
	return nil
}
