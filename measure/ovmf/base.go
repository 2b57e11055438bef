package ovmf

import (
	"bytes"
	"encoding/binary"
)

// bases fills the addresses that SecMain unpacks the volumes to. No field of the
// file gives them. The modules of PEIFV run where they lie, so the build has
// linked each for its place there: the difference is the volume's base. The next
// volume follows in memory. Both are believed only if SecMain loads them as
// constants.
func (im *image) bases(volumes []Volume) {
	if im.sec == nil || len(volumes) == 0 || volumes[0].Name != "PEIFV" {
		return // the TDX build starts without PEI; its volumes are no firmware blob events
	}
	base, ok := im.linkedBase()
	for i := range volumes {
		if !ok || !loadsConstant(im.sec.pe.body, uint32(base)) {
			return
		}
		volumes[i].Base = base
		base += uint64(len(volumes[i].Data))
	}
}

// linkedBase returns the base of PEIFV if all its executables agree on it.
func (im *image) linkedBase() (base uint64, ok bool) {
	for _, m := range im.files {
		if m.Volume != "PEIFV" || m.pe.kind == 0 {
			continue
		}
		linked, fits := imageBase(m.pe)
		b := linked - uint64(m.pe.pos)
		if !fits || b>>32 != 0 || ok && b != base {
			return 0, false
		}
		base, ok = b, true
	}
	return base, ok
}

// imageBase returns the address that a PE or TE executable was linked for, as
// the address of its section's first byte. PE: optional header, ImageBase; TE:
// PI 1.8, volume 1, section 15.1.
func imageBase(s section) (uint64, bool) {
	b, le := s.body, binary.LittleEndian
	if s.kind == sectionTE {
		const size = 40 // of the header that replaces the stripped ones
		if len(b) < size {
			return 0, false
		}
		return le.Uint64(b[16:]) + uint64(le.Uint16(b[6:])) - size, true
	}
	if len(b) < 0x40 {
		return 0, false
	}
	pe := uint64(le.Uint32(b[0x3c:]))
	if pe+24+32 > uint64(len(b)) {
		return 0, false
	}
	opt := b[pe+24:]
	if le.Uint16(opt) == 0x10b { // PE32: the PEI phase of some builds is 32-bit
		return uint64(le.Uint32(opt[28:])), true
	}
	return le.Uint64(opt[24:]), true
}

// loadsConstant tells whether x86 code seems to hold "push c" or "mov reg, c".
func loadsConstant(code []byte, c uint32) bool {
	want := binary.LittleEndian.AppendUint32(nil, c)
	for at := 0; ; at++ {
		i := bytes.Index(code[at:], want)
		if i < 0 {
			return false
		}
		if at += i; at > 0 && (code[at-1] == 0x68 || code[at-1]&0xf8 == 0xb8) {
			return true
		}
	}
}
