package tdx

import (
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// ErrNoMetadata is wrapped for a firmware that no VMM can start a trust domain
// with.
var ErrNoMetadata = errors.New("no TDVF metadata: it cannot start a trust domain")

const (
	pageSize  = 4096
	chunkSize = 256 // bytes that one TDH.MR.EXTEND covers

	// maxExtended bounds the memory whose content is hashed, in bytes besides the
	// size of the file: what a section has beyond its content is zeros.
	maxExtended = 16 << 20
)

// Treatment is what the VMM does with a section's pages before the start.
type Treatment string

// The treatments, by the section's attributes.
const (
	Added    Treatment = "added"    // MRTD covers where the pages are
	Extended Treatment = "extended" // and what they hold
	Later    Treatment = "later"    // PAGE.AUG: MRTD knows nothing of them
)

// PageRange is a section of the TDVF metadata as MRTD sees it.
type PageRange struct {
	Section   int // in the order of the metadata
	Type      ovmf.TDXType
	GPA       uint64
	Pages     int // of 4 KiB
	Treatment Treatment
	Digest    [48]byte // MRTD if the list ended here
}

// MRTD returns the digest that the TDX module makes of the pages that a VMM adds
// before a trust domain runs. It depends on the firmware file and on nothing else
// but the order: not on processors, memory, kernel, nor on the variables in the
// file. The code flash alone, without the variables below it, gives the same.
func MRTD(firmware []byte, o Order) ([48]byte, error) {
	ranges, err := ExplainMRTD(firmware, o)
	if err != nil {
		return [48]byte{}, err
	}
	return ranges[len(ranges)-1].Digest, nil
}

// ExplainMRTD lists the sections that make up MRTD. The last one's digest is
// MRTD.
func ExplainMRTD(firmware []byte, o Order) ([]PageRange, error) {
	if o != SinglePass && o != TwoPass {
		return nil, fmt.Errorf("tdx: MRTD: order %q: want %q or %q", o, SinglePass, TwoPass)
	}
	m, err := metadata(firmware)
	if err != nil {
		return nil, err
	}
	if err := checkSections(m); err != nil {
		return nil, err
	}
	b := builder{Hash: sha512.New384()}
	var out []PageRange
	for i, s := range m.TDX {
		content, err := m.Content(firmware, s)
		t := treatment(s)
		if err != nil && t == Extended {
			return nil, fmt.Errorf("tdx: MRTD: section %d: %w", i, err)
		}
		pages := int(s.MemSize / pageSize)
		b.section(s.GPA, pages, content, t, o)
		r := PageRange{Section: i, Type: s.Type, GPA: s.GPA, Pages: pages, Treatment: t}
		b.Sum(r.Digest[:0])
		out = append(out, r)
	}
	return out, nil
}

func treatment(s ovmf.TDXSection) Treatment {
	switch {
	case s.Attributes&ovmf.TDXAug != 0:
		return Later
	case s.Attributes&ovmf.TDXExtend != 0:
		return Extended
	}
	return Added
}

// checkSections refuses what no VMM takes: a section that nobody knows how to
// load would make a digest of something else.
func checkSections(m *ovmf.Metadata) error {
	const attributes = ovmf.TDXExtend | ovmf.TDXAug
	extended, limit := uint64(0), uint64(m.Size+maxExtended)
	for i, s := range m.TDX {
		if s.Type > ovmf.TDXPayloadParam {
			return fmt.Errorf("tdx: MRTD: section %d: %v: unsupported", i, s.Type)
		}
		if unknown := s.Attributes &^ attributes; unknown != 0 {
			return fmt.Errorf("tdx: MRTD: section %d (%v): attributes %#x: want none but %#x", i, s.Type, s.Attributes, attributes)
		}
		if treatment(s) == Extended {
			extended += s.MemSize
		}
		if extended > limit {
			return fmt.Errorf("tdx: MRTD: section %d (%v): %d bytes with measured content up to it: want at most %d", i, s.Type, extended, limit)
		}
	}
	return nil
}

// builder is MRTD while pages are added.
type builder struct{ hash.Hash }

func (b builder) section(gpa uint64, pages int, content []byte, t Treatment, o Order) {
	if t == Later {
		return
	}
	for i := range pages {
		b.add(gpa + uint64(i)*pageSize)
		if t == Extended && o == SinglePass {
			b.extend(gpa, content, i)
		}
	}
	for i := range pages {
		if t == Extended && o == TwoPass {
			b.extend(gpa, content, i)
		}
	}
}

// record is what the TDX module hashes of an operation: its name in 16 bytes, the
// guest physical address, zeros.
func (b builder) record(name string, gpa uint64) {
	var r [128]byte
	copy(r[:16], name)
	binary.LittleEndian.PutUint64(r[16:], gpa)
	b.Write(r[:])
}

func (b builder) add(gpa uint64) { b.record("MEM.PAGE.ADD", gpa) }

// extend measures page i of a section at gpa, in chunks. Where the content ends,
// memory is zero.
func (b builder) extend(gpa uint64, content []byte, i int) {
	var page [pageSize]byte
	if at := i * pageSize; at < len(content) {
		copy(page[:], content[at:])
	}
	for off := 0; off < pageSize; off += chunkSize {
		b.record("MR.EXTEND", gpa+uint64(i*pageSize+off))
		b.Write(page[off : off+chunkSize])
	}
}
