package verity

import (
	"bytes"
	"fmt"
	"io"
)

// CorruptError names the first block that is not as the root hash says.
type CorruptError struct {
	Level int    // of the tree; -1 is the data
	Block uint64 // in its level, or in the data
}

func (e *CorruptError) Error() string {
	if e.Level < 0 {
		return fmt.Sprintf("verity: data block %d is corrupt", e.Block)
	}
	return fmt.Sprintf("verity: hash block %d of level %d is corrupt", e.Block, e.Level)
}

// Verify checks the tree, which begins at offset 0, against the root hash, and
// then the data against the tree, on all processors. It returns a *CorruptError
// for the first bad block, the tree from the top down and then the data.
func Verify(data, tree io.ReaderAt, p Params, root []byte) error {
	if err := p.Check(); err != nil {
		return err
	}
	if len(root) != p.Algorithm.Size() {
		return fmt.Errorf("verity: root hash of %d bytes: want %d", len(root), p.Algorithm.Size())
	}
	levels := p.levels()
	if len(levels) == 0 {
		got, err := p.single(data)
		if err == nil && !bytes.Equal(got, root) {
			err = &CorruptError{-1, 0}
		}
		return err
	}
	v := &verifier{Params: p, tree: tree, levels: levels}
	if err := v.top(root); err != nil {
		return err
	}
	for i := len(levels) - 1; i > 0; i-- {
		below := levels[i-1]
		from := io.NewSectionReader(tree, int64(below.start)*int64(p.HashBlockSize), int64(below.blocks)*int64(p.HashBlockSize))
		if err := v.row(i, from, below.blocks, p.HashBlockSize); err != nil {
			return err
		}
	}
	return v.row(0, data, p.DataBlocks, p.DataBlockSize)
}

type verifier struct {
	Params
	tree   io.ReaderAt
	levels []level
}

func (v *verifier) top(root []byte) error {
	block, err := v.block(len(v.levels)-1, 0)
	if err == nil && !bytes.Equal(v.digester().sum(nil, block), root) {
		err = &CorruptError{len(v.levels) - 1, 0}
	}
	return err
}

// block reads one block of level i. What follows the last digest must be zeros,
// as Format leaves it: the digest above covers it.
func (v *verifier) block(i int, index uint64) ([]byte, error) {
	b := make([]byte, v.HashBlockSize)
	return b, readFull(v.tree, b, int64(v.levels[i].start+index)*int64(v.HashBlockSize))
}

// row checks n blocks against the digests of level i, whose own blocks are good.
func (v *verifier) row(i int, blocks io.ReaderAt, n uint64, size int) error {
	per := v.perBlock()
	return each(work[struct{}]{
		n: v.levels[i].blocks,
		worker: func() func(uint64) (struct{}, error) {
			d := v.digester()
			buf, sum := make([]byte, int(per)*size), make([]byte, 0, v.Algorithm.Size())
			return func(index uint64) (none struct{}, err error) {
				hashes, err := v.block(i, index)
				if err != nil {
					return none, err
				}
				first := index * per
				in := buf[:int(min(per, n-first))*size]
				if err := readFull(blocks, in, int64(first)*int64(size)); err != nil {
					return none, err
				}
				for j := 0; j*size < len(in); j++ {
					sum = d.sum(sum[:0], in[j*size:][:size])
					if !bytes.Equal(sum, hashes[j*v.slot():][:len(sum)]) {
						return none, &CorruptError{i - 1, first + uint64(j)}
					}
				}
				return none, nil
			}
		},
	}, func(struct{}) error { return nil })
}
