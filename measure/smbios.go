package measure

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// The firmware measures the SMBIOS tables without what tells one machine from
// another of its kind: DSP0134 3.7; edk2, SmbiosMeasurementDxe.c.

const smbiosHeader = 4 // u8 type, u8 length of the formatted area, u16 handle

const (
	smbiosEnd = 127 // type of the last structure
	smbiosOEM = 128 // the first of the vendors' own types
)

// smbiosField is a field that is measured as zeros. The text of one that numbers a
// text is measured as spaces.
type smbiosField struct {
	offset, size int
	text         bool
}

// smbiosHidden lists the fields by type. Of a type without any, all but the header
// is hidden.
var smbiosHidden = map[byte][]smbiosField{
	1: {{0x07, 1, true}, {0x08, 16, false}, {0x18, 1, false}}, // serial number, UUID, wake-up type
	2: {{0x07, 1, true}, {0x0a, 1, true}},                     // serial number, location
	3: {{0x07, 1, true}, {0x08, 1, true}},                     // serial number, asset tag
	4: {
		{0x20, 1, true}, {0x21, 1, true}, {0x22, 1, true}, // serial number, asset tag, part number
		{0x23, 1, false}, {0x24, 1, false}, {0x25, 1, false}, // cores, enabled cores, threads
		{0x2a, 2, false}, {0x2c, 2, false}, {0x2e, 2, false}, // the same, wide
		{0x11, 1, false}, {0x16, 2, false}, // voltage, current speed
	},
	11: nil, 15: nil, 18: nil, 31: nil, 33: nil,
	17: {{0x18, 1, true}, {0x19, 1, true}, {0x1a, 1, true}},   // serial number, asset tag, part number
	22: {{0x07, 1, true}, {0x10, 2, false}, {0x12, 2, false}}, // serial number, the battery's own, its date
	23: {{0x05, 2, false}},                                    // reset count
	27: {{0x0c, 2, false}},                                    // nominal speed
	39: {{0x08, 1, true}, {0x09, 1, true}, {0x0a, 1, true}},   // serial number, asset tag, part number
}

// filteredSMBIOS returns the bytes that are measured of a table that ends with a
// structure of type 127.
func filteredSMBIOS(table []byte) ([]byte, error) {
	const most = 1 << 20 // bytes
	if len(table) > most {
		return nil, fmt.Errorf("measure: SMBIOS: %d bytes: want at most %d", len(table), most)
	}
	out := slices.Clone(table)
	for at := 0; ; {
		size, err := smbiosSize(out[at:])
		if err != nil {
			return nil, fmt.Errorf("measure: SMBIOS: structure at %#x: %w", at, err)
		}
		s := out[at:][:size]
		hideSMBIOS(s)
		if at += size; s[0] == smbiosEnd {
			return out[:at], nil
		}
	}
}

// smbiosSize returns the size of the first structure in b with its texts, which
// two zeros end.
func smbiosSize(b []byte) (int, error) {
	if len(b) < smbiosHeader {
		return 0, fmt.Errorf("%d bytes left: want a structure of type %d at the end", len(b), smbiosEnd)
	}
	formatted := int(b[1])
	if formatted < smbiosHeader || formatted > len(b) {
		return 0, fmt.Errorf("type %d: length %d: want %d to %d", b[0], formatted, smbiosHeader, len(b))
	}
	end := bytes.Index(b[formatted:], []byte{0, 0})
	if end < 0 {
		return 0, fmt.Errorf("type %d, handle %#x: the texts do not end", b[0], binary.LittleEndian.Uint16(b[2:]))
	}
	return formatted + end + 2, nil
}

func hideSMBIOS(s []byte) {
	fields, known := smbiosHidden[s[0]]
	switch {
	case s[0] >= smbiosOEM || known && fields == nil:
		clear(s[smbiosHeader:])
		return
	case !known:
		return
	}
	for _, f := range fields {
		if int(s[1]) < f.offset+f.size {
			continue
		}
		if f.text {
			blankText(s[s[1]:], int(s[f.offset]))
		}
		clear(s[f.offset:][:f.size])
	}
}

// blankText overwrites the n-th text, from 1, with spaces; of a number that is too
// high the last one.
func blankText(texts []byte, n int) {
	if n == 0 {
		return
	}
	for ; ; n-- {
		end := bytes.IndexByte(texts, 0)
		last := end+1 >= len(texts) || texts[end+1] == 0
		if n == 1 || last {
			for i := range end {
				texts[i] = ' '
			}
			return
		}
		texts = texts[end+1:]
	}
}
