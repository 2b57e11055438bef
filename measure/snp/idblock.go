package snp

import (
	"encoding/binary"
	"fmt"
)

// IDBlock is what the owner of a guest signs: the processor launches only a guest
// of this digest and policy and puts the identifiers into its reports.
type IDBlock struct {
	Digest            [48]byte // launch digest
	FamilyID, ImageID [16]byte // the owner's
	SVN               uint32   // security version of the guest
	Policy            Policy
}

// IDBlockSize is that of the wire form, in bytes.
const IDBlockSize = 96

// idBlockVersion is the only one.
const idBlockVersion = 1

// wireBlock is the ID block: 56860, structure of the ID block. Little-endian.
type wireBlock struct {
	Digest            [48]byte
	FamilyID, ImageID [16]byte
	Version, SVN      uint32
	Policy            uint64
}

// Marshal returns the wire form.
func (b *IDBlock) Marshal() [IDBlockSize]byte {
	w := wireBlock{b.Digest, b.FamilyID, b.ImageID, idBlockVersion, b.SVN, uint64(b.Policy)}
	var out [IDBlockSize]byte
	if _, err := binary.Encode(out[:], binary.LittleEndian, &w); err != nil {
		panic("snp: ID block: " + err.Error()) // it has a fixed size
	}
	return out
}

// ParseIDBlock reads the wire form. A policy that no processor takes is an error.
func ParseIDBlock(block []byte) (*IDBlock, error) {
	if len(block) != IDBlockSize {
		return nil, fmt.Errorf("snp: ID block: %d bytes: want %d", len(block), IDBlockSize)
	}
	var w wireBlock
	if _, err := binary.Decode(block, binary.LittleEndian, &w); err != nil {
		return nil, fmt.Errorf("snp: ID block: %w", err)
	}
	if w.Version != idBlockVersion {
		return nil, fmt.Errorf("snp: ID block: version at 0x50: %d: want %d", w.Version, idBlockVersion)
	}
	b := &IDBlock{w.Digest, w.FamilyID, w.ImageID, w.SVN, Policy(w.Policy)}
	if err := b.Policy.Check(); err != nil {
		return nil, err
	}
	return b, nil
}
