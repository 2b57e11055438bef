package tdx

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// Hand-off blocks: Platform Initialization 1.8, volume 3, section 5.
const (
	hobHandoff  = 1
	hobResource = 3

	handoffSize  = 56 // bytes
	resourceSize = 48
	endSize      = 8
	hobVersion   = 9

	systemMemory     = 0 // the VMM has added it, and the firmware may use it at once
	unacceptedMemory = 7

	present, initialized, tested = 1, 2, 4 // resource attributes
)

// q35 puts memory below 4 GiB up to lowWhole bytes, and only lowSplit bytes of it
// once there is as much as that or more: QEMU, hw/i386/pc_q35.c.
const (
	lowWhole = 0xb000_0000
	lowSplit = 0x8000_0000
	fourGiB  = 1 << 32

	maxMemoryMiB = 1 << 28 // what 48 bits of address can reach
)

// ramRange is a run of guest memory that has one state.
type ramRange struct {
	start, size uint64 // bytes
	added       bool   // before the start, as a section wants it
}

// HOB returns the bytes of the hand-off block list that QEMU leaves for the
// firmware of a q35 machine, as far as the firmware measures them: without the
// block that ends the list. They list the memory, so RTMR 0 depends on its size.
// Memory devices and max-ram-below-4g are not supported.
// Source: QEMU, hw/i386/tdvf-hob.c and target/i386/kvm/tdx.c.
func HOB(m *ovmf.Metadata, memoryMiB int) ([]byte, error) {
	if memoryMiB < 1 || memoryMiB > maxMemoryMiB {
		return nil, fmt.Errorf("tdx: hand-off blocks: %d MiB of memory: want 1 to %d", memoryMiB, maxMemoryMiB)
	}
	list, added, err := sections(m)
	if err != nil {
		return nil, fmt.Errorf("tdx: hand-off blocks: %w", err)
	}
	ranges, err := split(memory(uint64(memoryMiB)<<20), added)
	if err != nil {
		return nil, fmt.Errorf("tdx: hand-off blocks: %w", err)
	}
	size := handoffSize + resourceSize*len(ranges)
	if uint64(size+endSize) > list.MemSize {
		return nil, fmt.Errorf("tdx: hand-off blocks: %d bytes: their section has %d", size+endSize, list.MemSize)
	}
	b := appendHandoff(nil, list.GPA+uint64(size+endSize))
	for _, r := range ranges {
		b = appendResource(b, r)
	}
	return b, nil
}

// memory is a q35 machine's, of size bytes.
func memory(size uint64) []ramRange {
	if size < lowWhole {
		return []ramRange{{size: size}}
	}
	return []ramRange{{size: lowSplit}, {start: fourGiB, size: size - lowSplit}}
}

// addedSection is memory that is there before the start; number is its place in
// the metadata.
type addedSection struct {
	number int
	ovmf.TDXSection
}

func (s addedSection) errorf(format string, a ...any) error {
	return fmt.Errorf("section %d (%v): %w", s.number, s.Type, fmt.Errorf(format, a...))
}

// sections returns the one that the list goes to, and all of RAM, by address.
func sections(m *ovmf.Metadata) (list ovmf.TDXSection, added []addedSection, err error) {
	found := false
	for i, x := range m.TDX {
		s := addedSection{i, x}
		switch s.Type {
		case ovmf.TDXBFV, ovmf.TDXCFV:
			continue // in the flash
		case ovmf.TDXHOB, ovmf.TDXTempMem:
		default:
			return list, nil, s.errorf("QEMU does not load it")
		}
		if s.MemSize == 0 {
			return list, nil, s.errorf("it is empty, what QEMU makes of that is not known")
		}
		if s.Type == ovmf.TDXHOB && !found { // QEMU takes the first
			list, found = x, true
		}
		added = append(added, s)
	}
	if !found {
		return list, nil, errors.New("the firmware has no section for them")
	}
	slices.SortStableFunc(added, func(a, b addedSection) int { return cmp.Compare(a.GPA, b.GPA) })
	return list, added, nil
}

// split takes the sections out of the ranges of memory; both are by address.
func split(memory []ramRange, added []addedSection) ([]ramRange, error) {
	var out []ramRange
	for _, r := range memory {
		at, end := r.start, r.start+r.size
		for ; len(added) > 0 && added[0].GPA < end; added = added[1:] {
			s := added[0]
			switch {
			case s.GPA < r.start || s.MemSize > end-s.GPA:
				return nil, s.errorf("%#x bytes at %#x: the machine has no such memory", s.MemSize, s.GPA)
			case s.GPA < at:
				return nil, s.errorf("%#x bytes at %#x: another section has some of them", s.MemSize, s.GPA)
			case s.GPA > at:
				out = append(out, ramRange{at, s.GPA - at, false})
			}
			out = append(out, ramRange{s.GPA, s.MemSize, true})
			at = s.GPA + s.MemSize
		}
		if at < end {
			out = append(out, ramRange{at, end - at, false})
		}
	}
	if len(added) > 0 {
		return nil, added[0].errorf("%#x bytes at %#x: the machine has no such memory", added[0].MemSize, added[0].GPA)
	}
	return out, nil
}

// appendHob begins a block: type, size, reserved.
func appendHob(b []byte, kind, size int) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(kind))
	b = binary.LittleEndian.AppendUint16(b, uint16(size))
	return binary.LittleEndian.AppendUint32(b, 0)
}

// appendHandoff writes the first block. end is the guest physical address behind
// the list; the other addresses and the boot mode are zero.
func appendHandoff(b []byte, end uint64) []byte {
	b = appendHob(b, hobHandoff, handoffSize)
	b = binary.LittleEndian.AppendUint32(b, hobVersion)
	b = append(b, make([]byte, 4+4*8)...) // boot mode; memory top, bottom, free top, free bottom
	return binary.LittleEndian.AppendUint64(b, end)
}

func appendResource(b []byte, r ramRange) []byte {
	kind := uint32(unacceptedMemory)
	if r.added {
		kind = systemMemory
	}
	b = appendHob(b, hobResource, resourceSize)
	b = append(b, make([]byte, 16)...) // owner
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = binary.LittleEndian.AppendUint32(b, present|initialized|tested)
	b = binary.LittleEndian.AppendUint64(b, r.start)
	return binary.LittleEndian.AppendUint64(b, r.size)
}
