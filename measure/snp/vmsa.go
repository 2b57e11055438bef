package snp

import "encoding/binary"

// segment is a segment register in a save area.
type segment struct {
	Selector, Attributes uint16
	Limit                uint32
	Base                 uint64
}

// saveArea is the page that holds the registers with which a vCPU begins (VMSA):
// APM volume 2, table B-4. Only what a VMM sets has a name. Little-endian.
type saveArea struct {
	ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR segment // from 0x000

	_           [0x30]byte
	EFER        uint64 // 0x0d0
	_           [0x70]byte
	CR4         uint64 // 0x148
	_           [8]byte
	CR0         uint64 // 0x158
	DR7         uint64 // 0x160
	DR6         uint64 // 0x168
	RFLAGS      uint64 // 0x170
	RIP         uint64 // 0x178
	_           [0xe8]byte
	GPAT        uint64 // 0x268
	_           [0xa0]byte
	RDX         uint64 // 0x310
	_           [0x98]byte
	SEVFeatures uint64 // 0x3b0
	_           [0x30]byte
	XCR0        uint64 // 0x3e8
	_           [0x18]byte
	MXCSR       uint32 // 0x408
	_           [4]byte
	FCW         uint16 // 0x410, x87
	_           [0xbee]byte
}

const bootEIP = 0xfffffff0 // of the boot processor: the reset vector

// vmsas returns the register pages of the boot processor and of the others.
func (l *Launch) vmsas(v VCPUs) (boot, other []byte) {
	if l.seed.svsm() {
		page := svsmArea(*l.seed.Reset, v, l.p.Era).page()
		return page, page
	}
	boot = startArea(l.p.VMM, l.p.Era, bootEIP, v).page()
	if l.seed.Reset == nil {
		return boot, nil
	}
	return boot, startArea(l.p.VMM, l.p.Era, *l.seed.Reset, v).page()
}

// startArea is how a vCPU begins that starts at eip in real mode. The era counts
// with QEMU only.
func startArea(m VMM, e Era, eip uint32, v VCPUs) *saveArea {
	a := resetArea(eip, v.Features)
	switch {
	case m == QEMU:
		a.RDX = uint64(v.Signature) // as the processor has it after a reset
		a.MXCSR, a.FCW = e.MXCSR, e.FCW
	case m == GCE:
		a.GPAT = 0x00070106
		a.RDX = 0x600
	case m.isEC2():
		if eip == bootEIP {
			a.CS.Attributes = 0x9a
		}
		a.SS.Attributes = 0x92
		a.TR.Attributes = 0x83
		if m == EC2 {
			a.RDX = 0x600
		}
	}
	return a
}

// resetArea is what the VMMs have in common.
func resetArea(eip uint32, features uint64) *saveArea {
	const limit = 0xffff
	data := segment{Attributes: 0x93, Limit: limit}
	return &saveArea{
		ES: data, SS: data, DS: data, FS: data, GS: data,
		CS:   segment{Selector: 0xf000, Attributes: 0x9b, Limit: limit, Base: uint64(eip & 0xffff0000)},
		GDTR: segment{Limit: limit}, IDTR: segment{Limit: limit},
		LDTR: segment{Attributes: 0x82, Limit: limit},
		TR:   segment{Attributes: 0x8b, Limit: limit},

		EFER: 0x1000, // KVM sets SVME
		CR4:  0x40,   // KVM sets MCE
		CR0:  0x10, DR7: 0x400, DR6: 0xffff0ff0, RFLAGS: 2, RIP: uint64(eip & 0xffff),
		GPAT: 0x0007040600070406, SEVFeatures: features, XCR0: 1,
	}
}

// svsmArea is how every vCPU begins that the SVSM takes: in flat protected mode.
// The x87 control word is 0 whatever the era: so it is in the published values
// of sev-snp-measure.
func svsmArea(eip uint32, v VCPUs, e Era) *saveArea {
	a := resetArea(0, v.Features)
	flat := segment{Selector: 0x10, Attributes: 0xc93, Limit: 0xffffffff}
	a.ES, a.SS, a.DS, a.FS = flat, flat, flat, flat
	a.CS = segment{Selector: 8, Attributes: 0xc9b, Limit: 0xffffffff}
	a.CR0, a.RIP = 0x11, uint64(eip)
	a.RDX, a.MXCSR = uint64(v.Signature), e.MXCSR
	return a
}

func (a *saveArea) page() []byte {
	b, err := binary.Append(make([]byte, 0, pageSize), binary.LittleEndian, a)
	if err != nil {
		panic("snp: save area: " + err.Error()) // it has a fixed size
	}
	return b
}
