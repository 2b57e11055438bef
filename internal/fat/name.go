package fat

import (
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const maxLong = 255 // UTF-16 units of a long name

// fold makes equal what FAT takes for the same name.
func fold(name string) string { return strings.ToUpper(name) }

// checkName refuses what cannot be a long name; FAT spec, "Long Name Limits".
func checkName(name string) error {
	switch {
	case strings.ContainsAny(name, `"*/:<>?\|`) || strings.ContainsFunc(name, isControl):
		return fmt.Errorf("name %q: FAT allows no control characters and no \" * / : < > ? \\ |", name)
	case strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") || strings.HasPrefix(name, " "):
		return fmt.Errorf("name %q: FAT allows no space at either end and no dot at the end", name)
	case len(utf16.Encode([]rune(name))) > maxLong:
		return fmt.Errorf("name %q: FAT allows at most %d UTF-16 units", name, maxLong)
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// shortChar reports whether c may stand in a short name.
func shortChar(c byte) bool {
	return 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("$%'-_@~`!(){}^#&", c) >= 0
}

// basis returns the short form of a name and whether nothing but the case of
// letters was lost; FAT spec, "The Basis-Name Generation Algorithm".
func basis(name string) (base, ext string, exact bool) {
	exact = true
	squeeze := func(s string, n int) string {
		var b []byte
		for _, r := range strings.ToUpper(s) {
			switch {
			case r == ' ' || r == '.':
				exact = false
			case r < utf8.RuneSelf && shortChar(byte(r)):
				b = append(b, byte(r))
			default:
				exact = false
				b = append(b, '_')
			}
		}
		if len(b) > n {
			exact = false
			b = b[:n]
		}
		return string(b)
	}
	stem := name
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		stem, ext = name[:i], squeeze(name[i+1:], 3)
	}
	base = squeeze(stem, 8)
	return base, ext, exact && base != ""
}

func pack(base, ext string) [11]byte {
	return [11]byte([]byte(fmt.Sprintf("%-8s%-3s", base, ext)))
}

// shorten gives every name of a directory a short name of its own. Names that
// are short ones already, but for their case, keep them; the others get a tail,
// in their order; FAT spec, "The Numeric-Tail Generation Algorithm". A directory
// has room for so few names that tails do not run out.
func shorten(names []string) [][11]byte {
	shorts := make([][11]byte, len(names))
	taken := make(map[[11]byte]bool, len(names))
	var rest []int
	for i, name := range names {
		base, ext, exact := basis(name)
		if s := pack(base, ext); exact && !taken[s] {
			shorts[i], taken[s] = s, true
			continue
		}
		rest = append(rest, i)
	}
	next := make(map[string]int) // by basis: where the last search ended
	for _, i := range rest {
		base, ext, _ := basis(names[i])
		for n := next[base+"."+ext] + 1; ; n++ {
			tail := fmt.Sprintf("~%d", n)
			s := pack(base[:min(len(base), 8-len(tail))]+tail, ext)
			if !taken[s] {
				shorts[i], taken[s], next[base+"."+ext] = s, true, n
				break
			}
		}
	}
	return shorts
}

// longUnits returns the long name to be stored, nil when the short one says it.
func longUnits(name string, short [11]byte) []uint16 {
	if decodeShort(short, 0) == name {
		return nil
	}
	return utf16.Encode([]rune(name))
}

// decodeShort returns the name in a short-name entry. Bytes of a code page,
// which the volume does not name, are taken as Latin-1.
func decodeShort(short [11]byte, lower uint8) string {
	if short[0] == 0x05 {
		short[0] = 0xe5 // which marks free entries
	}
	part := func(b []byte, lower bool) string {
		var s strings.Builder
		for _, c := range b {
			s.WriteRune(rune(c))
		}
		name := strings.TrimRight(s.String(), " ")
		if lower {
			name = strings.ToLower(name)
		}
		return name
	}
	name := part(short[:8], lower&caseName != 0)
	if ext := part(short[8:], lower&caseExt != 0); ext != "" {
		name += "." + ext
	}
	return name
}

// checksum is what ties long-name entries to their short name; FAT spec,
// ChkSum.
func checksum(short [11]byte) uint8 {
	var sum uint8
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// longEntries returns the entries of a long name in the order on disk.
func longEntries(units []uint16, short [11]byte) []longEntry {
	n := (len(units) + unitsPerEntry - 1) / unitsPerEntry
	padded := make([]uint16, n*unitsPerEntry)
	copy(padded, units)
	for i := len(units) + 1; i < len(padded); i++ { // one zero, then ffff
		padded[i] = 0xffff
	}
	out := make([]longEntry, n)
	for i := range out {
		u := padded[i*unitsPerEntry:]
		e := longEntry{Order: uint8(i + 1), Attr: attrLong, Checksum: checksum(short)}
		copy(e.Name1[:], u)
		copy(e.Name2[:], u[5:])
		copy(e.Name3[:], u[11:])
		if i == n-1 {
			e.Order |= lastLong
		}
		out[n-1-i] = e
	}
	return out
}
