package eventlog

import (
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxText bounds what a name quotes from an event, in runes.
const maxText = 200

// printable makes foreign text safe for a terminal and of bounded length.
func printable(s string) string {
	n := 0
	return strings.Map(func(r rune) rune {
		switch n++; {
		case n == maxText+1:
			return '…'
		case n > maxText:
			return -1
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// utf16Text decodes UTF-16LE up to its terminating zero, which may be missing.
// An odd byte at the end is dropped.
func utf16Text(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// anyText decodes text whose encoding the event does not tell: UTF-16 when the
// second byte is zero, as in every ASCII text, else UTF-8. It is "" when b is
// neither, or empty.
func anyText(b []byte) string {
	if len(b) >= 2 && len(b)%2 == 0 && b[1] == 0 {
		return utf16Text(b)
	}
	s, _, _ := strings.Cut(string(b), "\x00")
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != '\n' && r != '\t' }) {
		return ""
	}
	return s
}
