package launch

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

// entry is a row of the firmware's table of GUIDs.
type entry struct {
	id   string
	data []byte
}

// parts is what a synthetic firmware is made from.
type parts struct {
	code     []byte // before the last page
	sections []section
	hashes   area    // zero: no such entry
	apReset  uint32  // zero: no such entry
	further  []entry // of no meaning here
}

// metaAt is where the metadata begins in the last page.
const metaAt = 64

// firmware puts the parts together: the code, and a page with metadata, table
// and reset vector at its end.
func (p *parts) firmware(r *rand.Rand) []byte {
	last := make([]byte, pageSize)
	fill(r, last)
	meta := encode(metadataHeader{[4]byte([]byte("ASEV")), uint32(16 + 12*len(p.sections)), 1, uint32(len(p.sections))})
	meta = append(meta, encode(p.sections)...)
	copy(last[metaAt:], meta)
	entries := append(slices.Clone(p.further), entry{guidMetadata, encode(uint32(pageSize - metaAt))})
	if p.apReset != 0 {
		entries = append(entries, entry{guidReset, encode(p.apReset)})
	}
	if p.hashes != (area{}) {
		entries = append(entries, entry{guidHashes, encode(p.hashes)})
	}
	r.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	var table []byte
	for _, e := range entries {
		table = append(table, e.data...)
		table = binary.LittleEndian.AppendUint16(table, uint16(len(e.data)+18))
		table = append(table, encode(parseGUID(e.id))...)
	}
	table = binary.LittleEndian.AppendUint16(table, uint16(len(table)+18))
	table = append(table, encode(parseGUID(guidFooter))...)
	copy(last[pageSize-32-len(table):], table)
	return append(slices.Clone(p.code), last...)
}

// randomParts draws a firmware of up to 64 pages with up to ten sections, with
// and without a page for the kernel's hashes.
func randomParts(r *rand.Rand) *parts {
	p := &parts{code: make([]byte, r.IntN(64)*pageSize), apReset: r.Uint32()}
	fill(r, p.code)
	if r.IntN(16) == 0 {
		p.apReset = 0
	}
	at := uint32(0x800000)
	add := func(kind, pages uint32) {
		at += uint32(r.IntN(4)) * pageSize
		p.sections = append(p.sections, section{at, pages * pageSize, kind})
		at += pages * pageSize
	}
	for range r.IntN(6) {
		add(1, uint32(r.IntN(20)))
	}
	for _, s := range []struct{ kind, pages uint32 }{{2, 1}, {3, 1}, {4, uint32(r.IntN(2))}} {
		if r.IntN(4) > 0 {
			add(s.kind, s.pages)
		}
	}
	switch r.IntN(10) {
	case 0: // none of the two
	case 1: // SEV's area alone
		p.hashes = area{0x810000, 0x400}
	default:
		add(0x10, 1)
		offset := uint32(r.IntN((pageSize-1024)/16+1)) * 16
		p.hashes = area{p.sections[len(p.sections)-1].GPA + offset, 1024}
	}
	r.Shuffle(len(p.sections), func(i, j int) { p.sections[i], p.sections[j] = p.sections[j], p.sections[i] })
	for range r.IntN(4) {
		data := make([]byte, r.IntN(40))
		fill(r, data)
		p.further = append(p.further, entry{"0b8e2a5c-5d11-4c6e-9d5d-0f2b6a3c7e11", data})
	}
	return p
}

func fill(r *rand.Rand, b []byte) {
	for len(b) > 0 {
		b = b[copy(b, binary.LittleEndian.AppendUint64(nil, r.Uint64())):]
	}
}
