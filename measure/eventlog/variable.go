package eventlog

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"github.com/plinth-os/plinth/internal/gpt"
)

// Variable is a UEFI_VARIABLE_DATA: Profile, section 10.2.6. The events of Secure
// Boot's policy are digests over all of it, EV_EFI_VARIABLE_BOOT in edk2 only
// over its Data.
type Variable struct {
	GUID gpt.GUID
	Name string
	Data []byte
}

// ParseVariable reads the data of a variable event. What follows it is ignored:
// shim has logged a few bytes more.
func ParseVariable(b []byte) (Variable, error) {
	c := &cursor{b: b}
	var v Variable
	copy(v.GUID[:], c.take(16))
	chars, size := c.u64(), c.u64()
	if chars > uint64(len(b)) {
		return v, fmt.Errorf("eventlog: variable: name of %d characters in %d bytes", chars, len(b))
	}
	name := c.take(2 * chars)
	v.Data = c.take(size)
	if c.short {
		return v, fmt.Errorf("eventlog: variable: %d bytes, with a name of %d characters and data of %d", len(b), chars, size)
	}
	v.Name = utf16Text(name)
	return v, nil
}

// Bytes writes the structure as firmware measures it. The name has no
// terminating zero.
func (v Variable) Bytes() []byte {
	le, name := binary.LittleEndian, utf16.Encode([]rune(v.Name))
	b := append([]byte(nil), v.GUID[:]...)
	b = le.AppendUint64(b, uint64(len(name)))
	b = le.AppendUint64(b, uint64(len(v.Data)))
	for _, c := range name {
		b = le.AppendUint16(b, c)
	}
	return append(b, v.Data...)
}
