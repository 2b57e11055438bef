package verity

import (
	"fmt"
	"io"
	"runtime"
	"sync"
)

// Format hashes data and writes the tree to w, from offset 0 on. It returns the
// root hash. Blocks are read and hashed on all processors; in memory there are a
// few MiB for each processor, and one hash block for each level, whatever the
// size of the data.
func Format(w io.WriterAt, data io.ReaderAt, p Params) (root []byte, err error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	levels := p.levels()
	if len(levels) == 0 {
		return p.single(data)
	}
	b := &builder{Params: p, w: w, levels: levels, rows: make([]row, len(levels)), digester: p.digester()}
	err = each(p.leaves(data), func(l *leaves) error {
		if err := b.write(0, l.index, l.blocks); err != nil {
			return err
		}
		for _, d := range l.digests {
			if err := b.add(1, d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.finish()
}

// single is the root hash of data that is one block.
func (p *Params) single(data io.ReaderAt) ([]byte, error) {
	block := make([]byte, p.DataBlockSize)
	if err := readFull(data, block, 0); err != nil {
		return nil, err
	}
	return p.digester().sum(nil, block), nil
}

// leaves are some hash blocks of level 0, made of the data under them.
type leaves struct {
	index   uint64   // of the first
	blocks  []byte   // the digests of the data blocks, filled with zeros
	digests [][]byte // of each block
}

// together is how many hash blocks of level 0 are made at a time: so many that
// handing them over and writing them costs little beside making them.
const together = 16

// leaves returns the work that makes the hash blocks of level 0, in order.
func (p *Params) leaves(data io.ReaderAt) work[*leaves] {
	per, size := p.perBlock(), p.HashBlockSize
	blocks := p.levels()[0].blocks
	return work[*leaves]{
		n: (blocks + together - 1) / together,
		worker: func() func(i uint64) (*leaves, error) {
			d := p.digester()
			buf := make([]byte, int(per)*p.DataBlockSize)
			return func(i uint64) (*leaves, error) {
				l := &leaves{index: i * together}
				l.blocks = make([]byte, int(min(together, blocks-l.index))*size)
				for b := l.blocks; len(b) > 0; b = b[size:] {
					first := (l.index + uint64(len(l.digests))) * per
					in := buf[:int(min(per, p.DataBlocks-first))*p.DataBlockSize]
					if err := readFull(data, in, int64(first)*int64(p.DataBlockSize)); err != nil {
						return nil, err
					}
					for j := 0; j*p.DataBlockSize < len(in); j++ {
						d.sum(b[j*p.slot():j*p.slot()], in[j*p.DataBlockSize:][:p.DataBlockSize])
					}
					l.digests = append(l.digests, d.sum(nil, b[:size]))
				}
				return l, nil
			}
		},
	}
}

// builder folds the digests of one level into the blocks of the next.
type builder struct {
	Params
	*digester
	w      io.WriterAt
	levels []level
	rows   []row // by level; the first is not used
	root   []byte
}

// row is the hash block of a level that is being filled.
type row struct {
	block []byte
	n     uint64 // digests in it
	index uint64 // of the block in its level
}

// add puts the digest of a block of the level below into level i. The digest of
// the topmost block is the root hash.
func (b *builder) add(i int, digest []byte) error {
	if i == len(b.levels) {
		b.root = digest
		return nil
	}
	r := &b.rows[i]
	if r.block == nil {
		r.block = make([]byte, b.HashBlockSize)
	}
	copy(r.block[int(r.n)*b.slot():], digest)
	if r.n++; r.n < b.perBlock() {
		return nil
	}
	return b.flush(i)
}

// flush writes the block of level i and starts its next one.
func (b *builder) flush(i int) error {
	r := &b.rows[i]
	if err := b.write(i, r.index, r.block); err != nil {
		return err
	}
	digest := b.sum(nil, r.block)
	clear(r.block)
	r.n, r.index = 0, r.index+1
	return b.add(i+1, digest)
}

// finish writes the blocks that are only partly filled.
func (b *builder) finish() ([]byte, error) {
	for i := 1; i < len(b.levels); i++ {
		if b.rows[i].n > 0 {
			if err := b.flush(i); err != nil {
				return nil, err
			}
		}
	}
	return b.root, nil
}

func (b *builder) write(i int, index uint64, block []byte) error {
	off := int64(b.levels[i].start+index) * int64(b.HashBlockSize)
	if _, err := b.w.WriteAt(block, off); err != nil {
		return fmt.Errorf("verity: hash tree: offset %#x: %w", off, err)
	}
	return nil
}

// readFull reads all of b at off.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("verity: offset %#x: %d bytes, want %d: %w", off, n, len(b), err)
}

// work is n pieces of work, numbered from 0. Each goroutine calls worker once for
// a function, with buffers of its own, that does one piece.
type work[T any] struct {
	n      uint64
	worker func() func(i uint64) (T, error)
}

// each does the work on all processors and calls take with the results in the
// order of their numbers, one at a time. It stops at the first error.
func each[T any](w work[T], take func(T) error) error {
	type result struct {
		value T
		err   error
	}
	type piece struct {
		i    uint64
		done chan result
	}
	procs := runtime.GOMAXPROCS(0)
	todo, order := make(chan piece), make(chan piece, 4*procs) // order bounds what is finished and not yet taken
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait() // so that nothing reads or writes any more when this returns
	defer close(stop)
	for range procs {
		wg.Go(func() {
			do := w.worker()
			for p := range todo {
				v, err := do(p.i)
				p.done <- result{v, err}
			}
		})
	}
	wg.Go(func() {
		defer close(todo)
		defer close(order)
		for i := range w.n {
			p := piece{i, make(chan result, 1)}
			select {
			case order <- p:
			case <-stop:
				return
			}
			select {
			case todo <- p:
			case <-stop:
				return
			}
		}
	})
	for p := range order {
		r := <-p.done
		if r.err != nil {
			return r.err
		}
		if err := take(r.value); err != nil {
			return err
		}
	}
	return nil
}
