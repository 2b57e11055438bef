package verity

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// OnCorruption is what a guest's kernel does at the first bad block.
type OnCorruption string

// What the kernel can do. Reading on with an error is left out: a program may
// not look at it.
const (
	Panic   OnCorruption = "panic"
	Restart OnCorruption = "restart"
)

// Option is the kernel's word.
func (o OnCorruption) Option() string { return string(o) + "_on_corruption" }

// Root is all that a guest knows of its root file system. It stands on the
// measured command line, so that nothing about it is read from a disk.
type Root struct {
	Params
	RootHash     []byte
	HashStart    uint64 // hash block at which the tree begins in its partition
	OnCorruption OnCorruption
}

// Argument is the kernel argument that carries a Root.
const Argument = "plinth.verity"

// String writes the value of the argument: what Kata calls
// kernel_verity_params, and what that leaves to defaults.
func (r *Root) String() string {
	return fmt.Sprintf("root_hash=%x,salt=%x,data_blocks=%d,data_block_size=%d,hash_block_size=%d,hash_start=%d,hash=%s,format=%d,on_corruption=%s",
		r.RootHash, r.Salt, r.DataBlocks, r.DataBlockSize, r.HashBlockSize, r.HashStart, r.Algorithm, r.Format, r.OnCorruption)
}

// rootKeys are in the order in which String writes them.
var rootKeys = []string{"root_hash", "salt", "data_blocks", "data_block_size", "hash_block_size", "hash_start", "hash", "format", "on_corruption"}

// ParseRoot reads what String wrote, and nothing else: every key is there, once,
// in the same order and in the same form.
func ParseRoot(s string) (*Root, error) {
	fields := strings.Split(s, ",")
	if len(fields) != len(rootKeys) {
		return nil, fmt.Errorf("verity: %s: %d fields: want %d", Argument, len(fields), len(rootKeys))
	}
	r := &Root{}
	for i, f := range fields {
		key, value, _ := strings.Cut(f, "=")
		if key != rootKeys[i] {
			return nil, fmt.Errorf("verity: %s: %q: want %s=", Argument, f, rootKeys[i])
		}
		if err := r.set(key, value); err != nil {
			return nil, fmt.Errorf("verity: %s: %s=%q: %w", Argument, key, value, err)
		}
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if back := r.String(); back != s {
		return nil, fmt.Errorf("verity: %s: %q: want %q", Argument, s, back)
	}
	return r, nil
}

func (r *Root) set(key, value string) (err error) {
	switch key {
	case "root_hash":
		r.RootHash, err = hex.DecodeString(value)
	case "salt":
		r.Salt, err = hex.DecodeString(value)
	case "data_blocks":
		r.DataBlocks, err = strconv.ParseUint(value, 10, 63)
	case "data_block_size":
		r.DataBlockSize, err = strconv.Atoi(value)
	case "hash_block_size":
		r.HashBlockSize, err = strconv.Atoi(value)
	case "hash_start":
		r.HashStart, err = strconv.ParseUint(value, 10, 48)
	case "hash":
		r.Algorithm = Algorithm(value)
	case "format":
		r.Format, err = strconv.Atoi(value)
	case "on_corruption":
		r.OnCorruption = OnCorruption(value)
	}
	return err
}

func (r *Root) check() error {
	if err := r.Check(); err != nil {
		return err
	}
	if len(r.RootHash) != r.Algorithm.Size() {
		return fmt.Errorf("verity: root hash of %d bytes: want %d", len(r.RootHash), r.Algorithm.Size())
	}
	if r.OnCorruption != Panic && r.OnCorruption != Restart {
		return fmt.Errorf("verity: on_corruption %q: want %s or %s", r.OnCorruption, Panic, Restart)
	}
	return nil
}

// PartitionIDs are the unique GUIDs of the two partitions, in the order in which
// a GUID is written: the first and the last 16 bytes of the root hash.
// Discoverable Partitions Specification, "Verity".
func (r *Root) PartitionIDs() (data, hash [16]byte) {
	n := len(r.RootHash)
	return [16]byte(r.RootHash[:16]), [16]byte(r.RootHash[n-16:])
}

// Top checks the topmost hash block, or the one block of data that has no tree,
// against the root hash. It tells a disk of this root from one that only has its
// name; the kernel checks everything else.
func (r *Root) Top(data, hash io.ReaderAt) error {
	if err := r.check(); err != nil {
		return err
	}
	levels := r.levels()
	if len(levels) == 0 {
		return Verify(data, hash, r.Params, r.RootHash)
	}
	block := make([]byte, r.HashBlockSize)
	if err := readFull(hash, block, int64(r.HashStart)*int64(r.HashBlockSize)); err != nil {
		return err
	}
	if !bytes.Equal(r.digester().sum(nil, block), r.RootHash) {
		return &CorruptError{len(levels) - 1, 0}
	}
	return nil
}

// Verify checks every block of data and tree.
func (r *Root) Verify(data, hash io.ReaderAt) error {
	if err := r.check(); err != nil {
		return err
	}
	start := int64(r.HashStart) * int64(r.HashBlockSize)
	return Verify(data, io.NewSectionReader(hash, start, r.TreeSize()), r.Params, r.RootHash)
}
