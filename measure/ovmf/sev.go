package ovmf

import (
	"encoding/binary"
	"fmt"
)

// SEVType is what a section of the SEV metadata is for: edk2,
// OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm.
type SEVType uint32

const (
	SEVMemory       SEVType = 1    // to be validated before the guest runs
	SEVSecrets      SEVType = 2    // the secrets page
	SEVCPUID        SEVType = 3    // the CPUID page
	SEVSVSMCAA      SEVType = 4    // calling area of the SVSM
	SEVKernelHashes SEVType = 0x10 // the page that holds the hash table
)

var sevTypes = map[SEVType]string{
	SEVMemory: "memory", SEVSecrets: "secrets", SEVCPUID: "CPUID", SEVSVSMCAA: "SVSM calling area", SEVKernelHashes: "kernel hashes",
}

func (t SEVType) known() bool { return sevTypes[t] != "" }

func (t SEVType) String() string {
	if name, ok := sevTypes[t]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", uint32(t))
}

// SEVSection is a range of guest memory that an SNP VMM measures at launch.
// Sections of size 0 occur and stand for nothing.
type SEVSection struct {
	GPA, Size uint32 // bytes, whole pages
	Type      SEVType
}

const sevSectionSize = 12 // u32 GPA, u32 size, u32 type

func (m *Metadata) readSEV(file []byte, e TableEntry) error {
	b, at, err := e.descriptor(file, "ASEV", sevSectionSize)
	if err != nil {
		return err
	}
	m.SEV = make([]SEVSection, 0, len(b)/sevSectionSize)
	places := make([]place, 0, cap(m.SEV)+1)
	for i := 0; i < cap(m.SEV); i++ {
		le, x := binary.LittleEndian, b[i*sevSectionSize:]
		s := SEVSection{le.Uint32(x), le.Uint32(x[4:]), SEVType(le.Uint32(x[8:]))}
		m.SEV = append(m.SEV, s)
		places = append(places, place{i, uint64(s.GPA), uint64(s.Size)})
	}
	// A page of the firmware that a section names again would be measured twice.
	places = append(places, place{theFirmware, m.Base(), uint64(m.Size)})
	return checkPlaces(&e, places, at, sevSectionSize)
}

// HasSEV tells whether the SEV metadata has a section of a type, and it is not
// empty.
func (m *Metadata) HasSEV(t SEVType) bool {
	for _, s := range m.SEV {
		if s.Type == t && s.Size > 0 {
			return true
		}
	}
	return false
}
