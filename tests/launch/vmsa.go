package launch

import (
	"errors"
	"slices"
)

// segment of a VMSA; Attributes are bits 8-15 and 20-23 of the descriptor.
type segment struct {
	Selector   uint16
	Attributes uint16
	Limit      uint32
	Base       uint64
}

// saveArea is the whole page, field by field: APM volume 2, table B-4. The
// comments give the offset of the field that follows.
type saveArea struct {
	ES, CS, SS, DS, FS, GS segment
	GDTR, LDTR, IDTR, TR   segment
	PLSSP                  [4]uint64 // 0xa0
	UCET                   uint64
	_                      [2]byte // 0xc8
	VMPL, CPL              uint8
	_                      [4]byte
	EFER                   uint64 // 0xd0
	_                      [104]byte
	XSS                    uint64 // 0x140
	CR4, CR3, CR0          uint64
	DR7, DR6               uint64 // 0x160
	RFLAGS, RIP            uint64
	DR                     [4]uint64 // 0x180: 0 to 3
	DRAddrMask             [4]uint64
	_                      [24]byte // 0x1c0
	RSP                    uint64   // 0x1d8
	SCET, SSP, ISST        uint64
	RAX                    uint64
	STAR, LSTAR, CSTAR     uint64 // 0x200
	SFMASK, KernelGSBase   uint64
	Sysenter               [3]uint64 // CS, ESP, EIP
	CR2                    uint64    // 0x240
	_                      [32]byte
	GPAT                   uint64 // 0x268
	DbgCtl                 uint64
	Branch, Exception      [2]uint64 // last from, to
	_                      [80]byte  // 0x298
	PKRU, TSCAux           uint32    // 0x2e8
	TSCScale, TSCOffset    uint64
	RegProtNonce           uint64 // 0x300
	RCX, RDX, RBX          uint64
	_                      uint64 // 0x320
	RBP, RSI, RDI          uint64
	R                      [8]uint64 // 0x340: 8 to 15
	_                      [16]byte
	ExitInfo               [2]uint64 // 0x390
	ExitIntInfo, NRIP      uint64
	SEVFeatures            uint64 // 0x3b0
	VIntrCtrl, ExitCode    uint64
	VirtualTOM             uint64
	TLBID, PCPUID          uint64 // 0x3d0
	EventInj               uint64
	XCR0                   uint64 // 0x3e8
	_                      [16]byte
	X87DP                  uint64 // 0x400
	MXCSR                  uint32
	FTW, FSW, FCW, FOP     uint16
	X87DS, X87CS           uint16
	X87RIP                 uint64
	X87                    [80]byte  // 0x420
	XMM, YMM               [256]byte // 0x470
	_                      [0x990]byte
}

// states returns the page of every processor. All but the first begin at the
// firmware's own entry point.
func (g *Guest) states(fw *firmware, features uint64) ([][]byte, error) {
	if g.VCPUs > 1 && fw.apReset == 0 {
		return nil, errors.New("no entry point for a second processor")
	}
	first, other := g.vmsa(reset, features), g.vmsa(fw.apReset, features)
	return append([][]byte{first}, slices.Repeat([][]byte{other}, g.VCPUs-1)...), nil
}

// vmsa is the state of a processor that begins at start: that of a reset, APM
// volume 2, table 14-1, with what KVM adds.
func (g *Guest) vmsa(start uint32, features uint64) []byte {
	data := segment{Attributes: 0x093, Limit: 0xffff}
	return encode(saveArea{
		ES: data, SS: data, DS: data, FS: data, GS: data,
		CS:          segment{Selector: 0xf000, Attributes: 0x09b, Limit: 0xffff, Base: uint64(start &^ 0xffff)},
		GDTR:        segment{Limit: 0xffff},
		IDTR:        segment{Limit: 0xffff},
		LDTR:        segment{Attributes: 0x082, Limit: 0xffff},
		TR:          segment{Attributes: 0x08b, Limit: 0xffff},
		EFER:        1 << 12, // SVME
		CR4:         1 << 6,  // MCE
		CR0:         1 << 4,  // ET
		DR7:         1 << 10,
		DR6:         0xffff0ff0,
		RFLAGS:      1 << 1,
		RIP:         uint64(start & 0xffff),
		GPAT:        0x0007040600070406,
		RDX:         uint64(g.Signature),
		SEVFeatures: features,
		XCR0:        1, // x87
		MXCSR:       g.MXCSR,
		FCW:         g.FCW,
	})
}
