package ovmf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
)

// Attributes of a variable: UEFI 2.10, section 8.2.1.
const (
	NonVolatile                 = 0x01
	BootServiceAccess           = 0x02
	RuntimeAccess               = 0x04
	TimeBasedAuthenticatedWrite = 0x20
)

// Variable is one UEFI variable.
type Variable struct {
	Name       string
	GUID       GUID
	Attributes uint32
	Time       [16]byte // EFI_TIME of an authenticated write, else zero
	Data       []byte

	// The older counter-based authentication; kept as found, zero for new ones.
	Count    uint64
	KeyIndex uint32
}

// VarStore is the variable store of an NVRAM flash.
type VarStore struct {
	flash      []byte // as read
	start, end int    // of the variables in flash
	vars       []Variable
}

// ErrNoStore is wrapped by ParseVars for a flash without a variable store.
var ErrNoStore = errors.New("no variable store")

var (
	nvVolumeGUID = mustGUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
	authVarsGUID = mustGUID("aaf32c78-947b-439a-a180-2e144ec37792")
)

// varHeader is edk2's AUTHENTICATED_VARIABLE_HEADER, little-endian: MdeModulePkg,
// Guid/VariableFormat.h. Name and data follow without a gap; the next header
// begins at a multiple of 4.
type varHeader []byte

const (
	varHeaderSize   = 60
	storeHeaderSize = 28
	startID         = 0x55aa
)

func (h varHeader) startID() uint16    { return binary.LittleEndian.Uint16(h[0:]) }
func (h varHeader) state() uint8       { return h[2] }
func (h varHeader) attributes() uint32 { return binary.LittleEndian.Uint32(h[4:]) }
func (h varHeader) count() uint64      { return binary.LittleEndian.Uint64(h[8:]) }
func (h varHeader) time() [16]byte     { return [16]byte(h[16:32]) }
func (h varHeader) keyIndex() uint32   { return binary.LittleEndian.Uint32(h[32:]) }
func (h varHeader) nameSize() uint32   { return binary.LittleEndian.Uint32(h[36:]) }
func (h varHeader) dataSize() uint32   { return binary.LittleEndian.Uint32(h[40:]) }
func (h varHeader) guid() GUID         { return GUID(h[44:60]) }

// A variable's life clears bits of its state: header written, then all of it,
// then about to be replaced, then deleted. Only the first two of these values
// count as being there.
const (
	stateAdded        = 0x3f
	stateInTransition = 0x3e // of use if no other of that name was added
)

// ParseVars reads an NVRAM flash, or the one at the start of a whole flash.
func ParseVars(flash []byte) (*VarStore, error) {
	if len(flash) > maxFlash {
		return nil, fmt.Errorf("ovmf: %d bytes: want at most %d", len(flash), maxFlash)
	}
	if !isVolume(flash) {
		return nil, fmt.Errorf("ovmf: %w", ErrNoStore)
	}
	v, err := parseVolume(flash, "offset 0")
	if err != nil {
		return nil, err
	}
	if v.fileSystem != nvVolumeGUID {
		return nil, fmt.Errorf("ovmf: volume of %v: %w", v.fileSystem, ErrNoStore)
	}
	s := &VarStore{flash: flash, start: v.start + storeHeaderSize}
	if s.end, err = storeEnd(v); err != nil {
		return nil, err
	}
	return s, s.parse()
}

// storeEnd checks the VARIABLE_STORE_HEADER: GUID, u32 size with this header, u8
// formatted, u8 healthy, 6 bytes reserved.
func storeEnd(v *volume) (int, error) {
	if len(v.files) < storeHeaderSize {
		return 0, fmt.Errorf("ovmf: volume of %d bytes: %w", len(v.data), ErrNoStore)
	}
	h := v.files
	if id := GUID(h[:16]); id != authVarsGUID {
		return 0, fmt.Errorf("ovmf: variable store: format %v: unsupported", id)
	}
	size := binary.LittleEndian.Uint32(h[16:])
	if size < storeHeaderSize || uint64(size) > uint64(len(h)) {
		return 0, fmt.Errorf("ovmf: variable store: %d bytes: want %d to %d", size, storeHeaderSize, len(h))
	}
	const formatted, healthy = 0x5a, 0xfe
	if h[20] != formatted || h[21] != healthy {
		return 0, fmt.Errorf("ovmf: variable store: state %#x %#x: want %#x %#x", h[20], h[21], formatted, healthy)
	}
	return v.start + int(size), nil
}

// parse reads the variables up to the erased rest of the store.
func (s *VarStore) parse() error {
	var replaced []Variable
	for off := s.start; off+varHeaderSize <= s.end; {
		h := varHeader(s.flash[off:s.end])
		if h.startID() != startID {
			break
		}
		size := uint64(varHeaderSize) + uint64(h.nameSize()) + uint64(h.dataSize())
		if size > uint64(len(h)) {
			return fmt.Errorf("ovmf: variable at %#x: %d bytes: want at most %d", off, size, len(h))
		}
		if st := h.state(); st == stateAdded || st == stateInTransition {
			x, err := h.variable()
			if err != nil {
				return fmt.Errorf("ovmf: variable at %#x: %w", off, err)
			}
			if st == stateInTransition {
				replaced = append(replaced, x)
			} else if s.find(x.Name, x.GUID) < 0 { // firmware takes the first
				s.vars = append(s.vars, x)
			}
		}
		off = align4(off + int(size))
	}
	slices.Reverse(replaced) // and of those about to be replaced the last
	for _, x := range replaced {
		if s.find(x.Name, x.GUID) < 0 {
			s.vars = append(s.vars, x)
		}
	}
	return nil
}

func (h varHeader) variable() (Variable, error) {
	n := int(h.nameSize())
	x := Variable{GUID: h.guid(), Attributes: h.attributes(), Time: h.time(), Count: h.count(), KeyIndex: h.keyIndex()}
	x.Name = firstString(h[varHeaderSize:][:n])
	if !bytes.Equal(nameBytes(x.Name), h[varHeaderSize:][:n]) {
		return x, fmt.Errorf("name %q of %d bytes: want UTF-16 with one zero at the end", x.Name, n)
	}
	x.Data = slices.Clone([]byte(h[varHeaderSize+n:][:h.dataSize()]))
	return x, nil
}

func nameBytes(name string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(name)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, 0, 0)
}

func (s *VarStore) find(name string, guid GUID) int {
	return slices.IndexFunc(s.vars, func(x Variable) bool { return x.Name == name && x.GUID == guid })
}

// Get returns a variable's data and attributes.
func (s *VarStore) Get(name string, guid GUID) (data []byte, attrs uint32, ok bool) {
	i := s.find(name, guid)
	if i < 0 {
		return nil, 0, false
	}
	return s.vars[i].Data, s.vars[i].Attributes, true
}

// List returns the variables in the order of the store.
func (s *VarStore) List() []Variable { return slices.Clone(s.vars) }

// Set replaces a variable in its place, or adds it at the end.
func (s *VarStore) Set(x Variable) error {
	if x.Attributes&NonVolatile == 0 {
		return fmt.Errorf("ovmf: variable %q: attributes %#x: want a non-volatile one", x.Name, x.Attributes)
	}
	if x.Name == "" || firstString(nameBytes(x.Name)) != x.Name {
		return fmt.Errorf("ovmf: variable %q: want a name that UTF-16 can hold", x.Name)
	}
	x.Data = slices.Clone(x.Data)
	if i := s.find(x.Name, x.GUID); i >= 0 {
		s.vars[i] = x
	} else {
		s.vars = append(s.vars, x)
	}
	return nil
}

// Delete removes a variable; one that is not there is no error.
func (s *VarStore) Delete(name string, guid GUID) {
	if i := s.find(name, guid); i >= 0 {
		s.vars = slices.Delete(s.vars, i, i+1)
	}
}

// Bytes writes the flash anew: the variables in order, without the remains of
// deleted ones, and no write left pending. The same variables in the same flash
// give the same bytes. It fails when they do not fit.
func (s *VarStore) Bytes() ([]byte, error) {
	out := slices.Clone(s.flash)
	erase(out[s.start:s.end])
	off := s.start
	for _, x := range s.vars {
		b := x.bytes()
		if len(b) > s.end-off {
			return nil, fmt.Errorf("ovmf: variable %q: %d bytes: the store has %d left", x.Name, len(b), s.end-off)
		}
		copy(out[off:], b)
		off = min(align4(off+len(b)), s.end)
	}
	s.forgetWrites(out)
	return out, nil
}

func (x *Variable) bytes() []byte {
	le, name := binary.LittleEndian, nameBytes(x.Name)
	b := le.AppendUint16(nil, startID)
	b = append(b, stateAdded, 0)
	b = le.AppendUint32(b, x.Attributes)
	b = le.AppendUint64(b, x.Count)
	b = append(b, x.Time[:]...)
	b = le.AppendUint32(b, x.KeyIndex)
	b = le.AppendUint32(b, uint32(len(name)))
	b = le.AppendUint32(b, uint32(len(x.Data)))
	b = append(b, x.GUID[:]...)
	return append(append(b, name...), x.Data...)
}

var workingBlockGUID = mustGUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95")

// forgetWrites erases the queue of fault-tolerant writes and their spare blocks:
// a write pending there would be finished at the next boot, over the new
// variables. Layout: OvmfPkg, VarStore.fdf.inc; after the variables come one
// block of event log, one of queue, and as much again as spare.
func (s *VarStore) forgetWrites(out []byte) {
	const header = 32 // EFI_FAULT_TOLERANT_WORKING_BLOCK_HEADER
	queue := s.end + flashBlock
	spare := queue + flashBlock
	if 2*spare > len(out) || !bytes.HasPrefix(out[queue:], workingBlockGUID[:]) {
		return
	}
	erase(out[queue+header : 2*spare])
}

func erase(b []byte) {
	for i := range b {
		b[i] = 0xff
	}
}

func align4(n int) int { return (n + 3) &^ 3 }
