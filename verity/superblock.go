package verity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// SuperblockSize is the length of the superblock, in bytes. It fills the first
// hash block; the tree begins with the next.
const SuperblockSize = 512

// Superblock is what veritysetup finds a tree's parameters by. It lies on the
// disk, unprotected: a guest never reads it.
type Superblock struct {
	UUID [16]byte
	Params
}

// ErrNoSuperblock is returned for bytes that do not begin with the signature.
var ErrNoSuperblock = errors.New("verity: no superblock")

// superblock is the wire form, little-endian: cryptsetup wiki, DMVerity.
type superblock struct {
	Signature     [8]byte // "verity\0\0"
	Version       uint32  // 1
	HashType      uint32  // Params.Format
	UUID          [16]byte
	Algorithm     [32]byte // name, filled with zeros
	DataBlockSize uint32   // bytes
	HashBlockSize uint32   // bytes
	DataBlocks    uint64
	SaltSize      uint16 // bytes, at most len(Salt)
	_             [6]byte
	Salt          [MaxSalt]byte
	_             [168]byte
}

var signature = [8]byte{'v', 'e', 'r', 'i', 't', 'y'}

// Marshal writes the superblock.
func (s *Superblock) Marshal() ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	w := superblock{
		Signature: signature, Version: 1, HashType: uint32(s.Format), UUID: s.UUID,
		DataBlockSize: uint32(s.DataBlockSize), HashBlockSize: uint32(s.HashBlockSize), DataBlocks: s.DataBlocks,
		SaltSize: uint16(len(s.Salt)),
	}
	copy(w.Algorithm[:], s.Algorithm)
	copy(w.Salt[:], s.Salt)
	return binary.Append(nil, binary.LittleEndian, &w)
}

// ParseSuperblock reads what Marshal or veritysetup wrote.
func ParseSuperblock(b []byte) (*Superblock, error) {
	if len(b) < SuperblockSize {
		return nil, fmt.Errorf("verity: superblock of %d bytes: want %d", len(b), SuperblockSize)
	}
	var w superblock
	if _, err := binary.Decode(b[:SuperblockSize], binary.LittleEndian, &w); err != nil {
		return nil, fmt.Errorf("verity: superblock: %w", err)
	}
	if w.Signature != signature {
		return nil, ErrNoSuperblock
	}
	if w.Version != 1 {
		return nil, fmt.Errorf("verity: superblock: version %d: want 1", w.Version)
	}
	if int(w.SaltSize) > len(w.Salt) {
		return nil, fmt.Errorf("verity: superblock: salt size %d: want at most %d", w.SaltSize, len(w.Salt))
	}
	if w.HashType > 1 {
		return nil, fmt.Errorf("verity: superblock: hash type %d: want 0 or 1", w.HashType)
	}
	// Compared as numbers of the file before they become int.
	if w.DataBlockSize > MaxBlockSize || w.HashBlockSize > MaxBlockSize {
		return nil, fmt.Errorf("verity: superblock: block sizes %d and %d: want at most %d", w.DataBlockSize, w.HashBlockSize, MaxBlockSize)
	}
	name, _, _ := bytes.Cut(w.Algorithm[:], []byte{0})
	s := &Superblock{UUID: w.UUID, Params: Params{
		Algorithm: Algorithm(name), DataBlockSize: int(w.DataBlockSize), HashBlockSize: int(w.HashBlockSize),
		DataBlocks: w.DataBlocks, Salt: bytes.Clone(w.Salt[:w.SaltSize]), Format: int(w.HashType),
	}}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	return s, nil
}
