package qemu

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// What OVMF does to the machine before it reads the ACPI files, as far as they
// depend on it: edk2, OvmfPkg/Library/PlatformInitLib, Platform.c; MdeModulePkg,
// PciHostBridgeDxe and PciBusDxe; OvmfPkg/AcpiPlatformDxe, EnablePciDecoding.

// setUp does it.
func (q *qtest) setUp(l Layout) error {
	dir, err := q.directory()
	if err != nil {
		return err
	}
	if _, ok := dir[rootsFile]; ok {
		return fmt.Errorf("fw_cfg has %s: more than one PCI root bus is not supported", rootsFile)
	}
	files, err := q.files(e820File)
	if err != nil {
		return err
	}
	memory, err := parseE820(files[0])
	if err != nil {
		return err
	}
	if err := q.chipset(cmp.Or(l.PCIEXBAR, 0xe0000000)); err != nil {
		return err
	}
	return q.placeBARs(l.window64(memory))
}

// e820Entry is one run of addresses.
type e820Entry struct {
	start, size uint64
	kind        uint32
}

const (
	e820RAM       = 1
	e820EntrySize = 8 + 8 + 4
)

// parseE820 reads etc/e820: u64 start, u64 size, u32 kind, little-endian.
func parseE820(b []byte) (out []e820Entry, err error) {
	if len(b) == 0 || len(b)%e820EntrySize != 0 {
		return nil, fmt.Errorf("fw_cfg file %s: %d bytes: want entries of %d", e820File, len(b), e820EntrySize)
	}
	le := binary.LittleEndian
	for ; len(b) > 0; b = b[e820EntrySize:] {
		e := e820Entry{le.Uint64(b), le.Uint64(b[8:]), le.Uint32(b[16:])}
		if e.start+e.size < e.start {
			return nil, fmt.Errorf("fw_cfg file %s: %#x bytes at %#x: want less than 64 bits of address", e820File, e.size, e.start)
		}
		out = append(out, e)
	}
	return out, nil
}

// A pciFunction is a function on the root bus.
type pciFunction struct{ device, function uint32 }

func (f pciFunction) String() string {
	return fmt.Sprintf("PCI device 00:%02x.%d", f.device, f.function)
}

// PCI configuration space by ports: PCI Local Bus Specification 3.0, section
// 3.2.2.3.2; the header: section 6.1.
const (
	pciAddress = 0xcf8
	pciData    = 0xcfc

	pciID       = 0x00 // u16 vendor, u16 device
	pciCommand  = 0x04 // u16, then u16 status
	pciHeader   = 0x0c // the third byte: header type
	pciBAR0     = 0x10
	pciBARs     = 6
	pciNobody   = 0xffff // vendor
	pciIO       = 1 << 0 // of the command
	pciMemory   = 1 << 1
	barIO       = 1 << 0 // of a BAR
	barType     = 3 << 1
	barMemory64 = 2 << 1
)

func (q *qtest) config(f pciFunction, offset uint32) (uint32, error) {
	if err := q.out32(pciAddress, 1<<31|f.device<<11|f.function<<8|offset); err != nil {
		return 0, err
	}
	return q.in32(pciData)
}

func (q *qtest) setConfig(f pciFunction, offset, v uint32) error {
	if err := q.out32(pciAddress, 1<<31|f.device<<11|f.function<<8|offset); err != nil {
		return err
	}
	return q.out32(pciData, v)
}

// The chipset, q35: Intel 3 Series Express Chipset (MCH) and ICH9 datasheets.
var (
	mch = pciFunction{0x00, 0}
	lpc = pciFunction{0x1f, 0}
)

const (
	mchID       = 0x29c08086
	mchPCIEXBAR = 0x60 // u64; bit 0 enables, bits 1 and 2 are 0 for 256 buses

	lpcPMBASE   = 0x40 // u32; bit 0 is always set
	lpcACPICntl = 0x44 // u8; bit 7 is ACPI_EN
	acpiEnable  = 1 << 7
	pmBase      = 0x600 // OvmfPkg, I440FxPiix4.h and Q35MchIch9.h
)

// chipset sets PCIEXBAR, PMBASE and ACPI_EN.
func (q *qtest) chipset(pciexbar uint32) error {
	id, err := q.config(mch, pciID)
	if err != nil {
		return err
	}
	if id != mchID {
		return fmt.Errorf("host bridge %#08x: want %#08x, that of q35", id, mchID)
	}
	for _, w := range []struct {
		f         pciFunction
		offset, v uint32
	}{
		{mch, mchPCIEXBAR, 0},
		{mch, mchPCIEXBAR + 4, 0},
		{mch, mchPCIEXBAR, pciexbar | 1},
		{lpc, lpcPMBASE, pmBase | 1},
		{lpc, lpcACPICntl, acpiEnable},
	} {
		if err := q.setConfig(w.f, w.offset, w.v); err != nil {
			return err
		}
	}
	return nil
}

// window64 is where OVMF has the window for 64-bit BARs: the upper eighth of the
// address space, below what QEMU reserves there (for the IOMMU of AMD's
// processors, if the space has 1 TiB), or the first multiple of 32 GiB after the
// memory when that does not fit. PlatformInitLib, MemDetect.c,
// PlatformGetFirstNonAddress and PlatformDynamicMmioWindow.
func (l Layout) window64(memory []e820Entry) uint64 {
	const classic = 32 << 30
	end := uint64(4 << 30)
	for _, e := range memory {
		if e.kind == e820RAM {
			end = max(end, e.start+e.size)
		}
	}
	base := (end + classic - 1) &^ (classic - 1)
	bits := l.AddressBits
	switch {
	case bits == 0 && l.TD:
		bits = 46
	case bits == 0:
		bits = 40
	case bits < 36 || bits > 52:
		return base
	}
	space, size := uint64(1)<<bits, uint64(1)<<(bits-3)
	if classic >= size || base+size >= space {
		return base
	}
	base = space - size
	if l.TD {
		return base
	}
	for _, e := range memory {
		if e.start < base+size && e.start+e.size > base {
			base = (e.start - size) &^ (size - 1)
		}
	}
	return base
}

// bar64 is a 64-bit memory BAR.
type bar64 struct {
	f      pciFunction
	offset uint32
	size   uint64
}

// placeBARs gives the 64-bit BARs their addresses, the largest first, and lets all
// functions decode. The tables name the window that they span, and nothing of other
// BARs.
func (q *qtest) placeBARs(base uint64) error {
	functions, err := q.functions()
	if err != nil {
		return err
	}
	var bars []bar64
	for _, f := range functions {
		found, err := q.bars64(f)
		if err != nil {
			return err
		}
		bars = append(bars, found...)
	}
	slices.SortStableFunc(bars, func(a, b bar64) int { return cmp.Compare(b.size, a.size) })
	for _, b := range bars {
		base = (base + b.size - 1) &^ (b.size - 1)
		if err := q.setConfig(b.f, b.offset, uint32(base)); err != nil {
			return err
		}
		if err := q.setConfig(b.f, b.offset+4, uint32(base>>32)); err != nil {
			return err
		}
		base += b.size
	}
	for _, f := range functions {
		command, err := q.config(f, pciCommand)
		if err != nil {
			return err
		}
		if err := q.setConfig(f, pciCommand, command&0xffff|pciIO|pciMemory); err != nil {
			return err
		}
	}
	return nil
}

// functions lists those of the root bus. It refuses bridges: their windows are
// more than we know to place.
func (q *qtest) functions() (out []pciFunction, err error) {
	const devices, functions = 32, 8
	for d := range uint32(devices) {
		for n := range uint32(functions) {
			f := pciFunction{d, n}
			id, err := q.config(f, pciID)
			if err != nil {
				return nil, err
			}
			if id&0xffff == pciNobody {
				if n == 0 {
					break
				}
				continue
			}
			header, err := q.config(f, pciHeader)
			if err != nil {
				return nil, err
			}
			kind := header >> 16 & 0xff
			if kind&0x7f != 0 {
				return nil, fmt.Errorf("%v, %#08x: header type %d: a bridge is not supported", f, id, kind&0x7f)
			}
			out = append(out, f)
			if n == 0 && kind&0x80 == 0 {
				break // a single function
			}
		}
	}
	return out, nil
}

// bars64 finds a function's 64-bit BARs and their sizes.
func (q *qtest) bars64(f pciFunction) (out []bar64, err error) {
	for i := uint32(0); i < pciBARs; i++ {
		offset := pciBAR0 + 4*i
		v, err := q.config(f, offset)
		if err != nil {
			return nil, err
		}
		if v&barIO != 0 || v&barType != barMemory64 {
			continue
		}
		if i++; i == pciBARs {
			return nil, fmt.Errorf("%v: the last BAR says it has 64 bits", f)
		}
		low, err := q.sizing(f, offset)
		if err != nil {
			return nil, err
		}
		high, err := q.sizing(f, offset+4)
		if err != nil {
			return nil, err
		}
		size := -(uint64(high)<<32 | uint64(low&^0xf))
		if size == 0 || size&(size-1) != 0 {
			return nil, fmt.Errorf("%v: BAR %d: size %#x: want a power of two", f, i-1, size)
		}
		out = append(out, bar64{f, offset, size})
	}
	return out, nil
}

// sizing writes ones to a BAR and returns those that it keeps.
func (q *qtest) sizing(f pciFunction, offset uint32) (uint32, error) {
	if err := q.setConfig(f, offset, 0xffffffff); err != nil {
		return 0, err
	}
	return q.config(f, offset)
}
