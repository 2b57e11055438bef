package launch

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// guid as EFI stores it: the first three numbers little-endian.
type guid struct {
	A    uint32
	B, C uint16
	D    [8]byte
}

func parseGUID(s string) (g guid) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 {
		panic("launch: not a GUID: " + s)
	}
	g.A, g.B, g.C = binary.BigEndian.Uint32(b), binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	copy(g.D[:], b[8:])
	return g
}

// Entries of the table at the end of OVMF: QEMU, docs/specs/sev-guest-firmware.rst.
const (
	guidFooter   = "96b582de-1fb2-45f7-baea-a366c55a082d"
	guidReset    = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
	guidHashes   = "7255371f-3a3b-4b04-927b-1da6efa8d454"
	guidMetadata = "dc886566-984a-4798-a75e-5585a7bf67cc"
)

type area struct{ Base, Size uint32 }

// section is an item of OVMF's SEV metadata: OvmfSevMetadata.nasm.inc.
type section struct{ GPA, Size, Type uint32 }

type metadataHeader struct {
	Signature              [4]byte // "ASEV"
	Length, Version, Count uint32
}

// firmware is what the digests need to know of the file.
type firmware struct {
	apReset  uint32 // zero: none
	hashes   area   // zero: none
	sections []section
}

func read(file []byte) (*firmware, error) {
	if len(file) == 0 || len(file)%pageSize != 0 {
		return nil, fmt.Errorf("firmware: %d bytes", len(file))
	}
	var fw firmware
	var fromEnd uint32
	for id, v := range map[string]any{guidReset: &fw.apReset, guidHashes: &fw.hashes, guidMetadata: &fromEnd} {
		if err := lookUp(file, id, v); err != nil {
			return nil, err
		}
	}
	if fromEnd == 0 {
		return &fw, nil
	}
	if int(fromEnd) > len(file) {
		return nil, errors.New("firmware: SEV metadata out of the file")
	}
	r := bytes.NewReader(file[len(file)-int(fromEnd):])
	var h metadataHeader
	if err := binary.Read(r, binary.LittleEndian, &h); err != nil || string(h.Signature[:]) != "ASEV" || h.Version != 1 || int(h.Count) > r.Len()/12 {
		return nil, fmt.Errorf("firmware: SEV metadata %+v, %v", h, err)
	}
	fw.sections = make([]section, h.Count)
	return &fw, binary.Read(r, binary.LittleEndian, fw.sections)
}

// lookUp decodes the data of an entry into v, which stays as it is when there is
// none. It searches for the GUID's bytes within the table instead of walking it:
// an entry is its data, its length and its GUID, in this order.
func lookUp(file []byte, id string, v any) error {
	const resetVector, lengthAndGUID = 32, 18
	end := len(file) - resetVector
	if !bytes.HasSuffix(file[:end], encode(parseGUID(guidFooter))) {
		return errors.New("firmware: no table of GUIDs")
	}
	size := int(binary.LittleEndian.Uint16(file[end-lengthAndGUID:]))
	if size < lengthAndGUID || size > end {
		return fmt.Errorf("firmware: table of %d bytes", size)
	}
	table := file[end-size : end-lengthAndGUID]
	at := bytes.LastIndex(table, encode(parseGUID(id)))
	if at < 0 {
		return nil
	}
	if at < 2 {
		return errors.New("firmware: entry without a length")
	}
	length := int(binary.LittleEndian.Uint16(table[at-2:]))
	if length != binary.Size(v)+lengthAndGUID || length > at+16 {
		return fmt.Errorf("firmware: entry of %d bytes", length)
	}
	return binary.Read(bytes.NewReader(table[at+16-length:]), binary.LittleEndian, v)
}
