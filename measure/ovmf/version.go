package ovmf

import (
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf16"
)

// minVersion is the shortest run of text that counts as a version: machine code
// holds shorter ones by chance.
const minVersion = 4

// version returns the firmware's version string. It is a constant of the module
// that measures it, Tcg2Pei or, without a PEI phase, SecMain, which has no other
// text in UTF-16. Bytes before it may look like text; where SmbiosPlatformDxe
// holds the same string, what both end with is the version. A build without the
// string has none.
func (im *image) version() string {
	measuring := im.text("Tcg2Pei")
	if measuring == nil && im.sec != nil {
		measuring = texts(im.sec.pe.body)
	}
	best := ""
	for _, a := range measuring {
		for _, b := range im.text("SmbiosPlatformDxe") {
			if s := commonSuffix(a, b); len(s) >= minVersion && len(s) > len(best) {
				best = s
			}
		}
	}
	if best == "" && len(measuring) == 1 {
		best = measuring[0]
	}
	if best == "" && !im.has("Tcg2Pei") {
		best = im.shownVersion()
	}
	return best
}

// shownVersion returns the version that the firmware shows but does not measure:
// the TDX build has it in its setup program and in the SMBIOS tables. Of the
// strings that both have, the vendor's name has no digit.
func (im *image) shownVersion() string {
	shown := im.text("UiApp")
	for _, s := range im.text("SmbiosPlatformDxe") {
		if strings.ContainsAny(s, "0123456789") && slices.Contains(shown, s) {
			return s
		}
	}
	return ""
}

func (im *image) has(module string) bool {
	return slices.ContainsFunc(im.files, func(m modFile) bool { return m.Name == module })
}

func (im *image) text(module string) []string {
	for _, m := range im.files {
		if m.Name == module {
			return texts(m.pe.body)
		}
	}
	return nil
}

// texts returns the printable ASCII strings in UTF-16 in b that end with a zero.
func texts(b []byte) []string {
	var out []string
	for i := 0; i+1 < len(b); i += 2 {
		start := i
		for i+1 < len(b) && b[i+1] == 0 && b[i] >= 0x20 && b[i] < 0x7f {
			i += 2
		}
		if i-start >= 2*minVersion && i+1 < len(b) && b[i] == 0 && b[i+1] == 0 {
			out = append(out, firstString(b[start:]))
		}
	}
	return out
}

func commonSuffix(a, b string) string {
	n := 0
	for n < len(a) && n < len(b) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	return a[len(a)-n:]
}

// firstString decodes UTF-16 up to its terminating zero, which may be missing.
func firstString(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return strings.ToValidUTF8(string(utf16.Decode(u)), "\uFFFD")
}
