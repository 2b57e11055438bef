// Package verity makes and checks dm-verity hash trees: a root hash that stands
// for every block of a file system, and the digests that let a kernel check each
// block when it is read. The bytes are those of veritysetup.
//
// Documents: Linux, Documentation/admin-guide/device-mapper/verity.rst;
// cryptsetup wiki, DMVerity.
package verity

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"math/bits"
)

// Algorithm is a hash algorithm by the kernel's name.
type Algorithm string

// The algorithms.
const (
	SHA256 Algorithm = "sha256"
	SHA512 Algorithm = "sha512"
)

func (a Algorithm) new() hash.Hash {
	if a == SHA512 {
		return sha512.New()
	}
	return sha256.New()
}

// Size is the length of a digest in bytes.
func (a Algorithm) Size() int {
	if a == SHA512 {
		return sha512.Size
	}
	return sha256.Size
}

// Limits of the format.
const (
	MaxSalt      = 256 // bytes
	MinBlockSize = 512
	MaxBlockSize = 4096
)

// Params decide a tree, together with the data. No field has a default.
type Params struct {
	Algorithm     Algorithm
	DataBlockSize int    // bytes, a power of two
	HashBlockSize int    // bytes, a power of two
	DataBlocks    uint64 // how much of the data the tree covers
	Salt          []byte // at most MaxSalt bytes, may be empty
	Format        int    // 1, salt before the block; 0, the original of Chrome OS, salt after it
}

// Check tells whether the parameters make a tree.
func (p *Params) Check() error {
	if p.Algorithm != SHA256 && p.Algorithm != SHA512 {
		return fmt.Errorf("verity: algorithm %q: want %s or %s", p.Algorithm, SHA256, SHA512)
	}
	for _, b := range []struct {
		what string
		size int
	}{{"data", p.DataBlockSize}, {"hash", p.HashBlockSize}} {
		if b.size < MinBlockSize || b.size > MaxBlockSize || bits.OnesCount(uint(b.size)) != 1 {
			return fmt.Errorf("verity: %s block size %d: want a power of two from %d to %d", b.what, b.size, MinBlockSize, MaxBlockSize)
		}
	}
	switch {
	case len(p.Salt) > MaxSalt:
		return fmt.Errorf("verity: salt of %d bytes: want at most %d", len(p.Salt), MaxSalt)
	case p.Format != 0 && p.Format != 1:
		return fmt.Errorf("verity: format %d: want 0 or 1", p.Format)
	case p.DataBlocks == 0:
		return errors.New("verity: no data")
	case p.DataBlocks > maxBytes/uint64(p.DataBlockSize):
		return fmt.Errorf("verity: %d data blocks: want at most %d", p.DataBlocks, maxBytes/uint64(p.DataBlockSize))
	}
	return nil
}

// maxBytes bounds the data, so that no offset overflows.
const maxBytes = 1 << 62

// DataSize is the length of the data that the tree covers, in bytes.
func (p *Params) DataSize() int64 { return int64(p.DataBlocks) * int64(p.DataBlockSize) }

// perBlock is how many digests a hash block holds: a power of two, so that the
// kernel finds one by shifting.
func (p *Params) perBlock() uint64 {
	return 1 << (bits.Len(uint(p.HashBlockSize/p.Algorithm.Size())) - 1)
}

// slot is the distance from one digest to the next in a hash block. Format 1
// pads a digest to a power of two; the algorithms here have such sizes anyway.
func (p *Params) slot() int { return p.HashBlockSize / int(p.perBlock()) }

// A level is one row of the tree. Level 0 has the digests of the data.
type level struct {
	blocks uint64
	start  uint64 // first block, from the beginning of the tree
}

// levels lists the rows from the lowest up. On disk the highest comes first. Data
// of a single block has no tree: the root hash is its digest.
func (p *Params) levels() []level {
	var out []level
	for n := p.DataBlocks; n > 1; {
		n = (n + p.perBlock() - 1) / p.perBlock()
		out = append(out, level{blocks: n})
	}
	var start uint64
	for i := len(out) - 1; i >= 0; i-- {
		out[i].start = start
		start += out[i].blocks
	}
	return out
}

// TreeBlocks is how many hash blocks the tree has, the superblock not counted.
func (p *Params) TreeBlocks() (n uint64) {
	for _, l := range p.levels() {
		n += l.blocks
	}
	return n
}

// TreeSize is the same in bytes.
func (p *Params) TreeSize() int64 { return int64(p.TreeBlocks()) * int64(p.HashBlockSize) }

// digester hashes blocks with the salt. It is for one goroutine.
type digester struct {
	h    hash.Hash
	salt []byte
	last bool // salt after the block
}

func (p *Params) digester() *digester {
	return &digester{h: p.Algorithm.new(), salt: p.Salt, last: p.Format == 0}
}

// sum appends the digest of block to out.
func (d *digester) sum(out, block []byte) []byte {
	d.h.Reset()
	if !d.last {
		d.h.Write(d.salt)
	}
	d.h.Write(block)
	if d.last {
		d.h.Write(d.salt)
	}
	return d.h.Sum(out)
}
