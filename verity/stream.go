package verity

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// streamPiece is how much data a Stream hashes at a time on one processor, in
// bytes: so much that starting costs little beside it.
const streamPiece = 512 << 10

// A Stream hashes data while it is written, so that it need not be read back from
// where somebody else may have changed it. Tree and root hash are those of Format.
// Pieces are hashed on all processors. In memory there are two pieces for each,
// and the tree: one part in 127 of the data, where blocks of 4096 bytes are hashed
// by SHA-256. It is for one goroutine.
type Stream struct {
	p      Params
	size   int         // bytes of a piece
	buf    []byte      // the piece that is being filled
	free   chan []byte // pieces that may be filled; nil ones are still to be made
	busy   sync.WaitGroup
	total  uint64 // bytes
	pieces []*piece
	levels [][]byte // the whole tree, lowest first
	root   []byte
	err    error
}

// A piece has become some hash blocks of level 0.
type piece struct {
	blocks  []byte
	digests []byte // of the blocks
}

var errClosed = errors.New("verity: the stream is closed")

// NewStream returns a stream for a tree with the parameters. How many data blocks
// there are is what is written.
func NewStream(p Params) (*Stream, error) {
	p.DataBlocks = 1
	if err := p.Check(); err != nil {
		return nil, err
	}
	under := int(p.perBlock()) * p.DataBlockSize // one hash block
	s := &Stream{p: p, size: max(streamPiece/under, 1) * under}
	pieces := 2 * runtime.GOMAXPROCS(0)
	s.free = make(chan []byte, pieces)
	for range pieces {
		s.free <- nil
	}
	s.p.DataBlocks = 0
	return s, nil
}

// Write implements io.Writer. It keeps nothing of b.
func (s *Stream) Write(b []byte) (n int, err error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.root != nil {
		return 0, errClosed
	}
	for n < len(b) {
		if s.buf == nil {
			if s.buf = <-s.free; s.buf == nil {
				s.buf = make([]byte, 0, s.size)
			}
			s.buf = s.buf[:0]
		}
		k := copy(s.buf[len(s.buf):s.size], b[n:])
		s.buf = s.buf[:len(s.buf)+k]
		n += k
		if len(s.buf) == s.size {
			s.hash()
		}
	}
	if s.total += uint64(n); s.total > maxBytes {
		s.err = fmt.Errorf("verity: more than %d bytes of data", uint64(maxBytes))
	}
	return n, s.err
}

// hash has the piece hashed while the next one is filled.
func (s *Stream) hash() {
	p, buf := &piece{}, s.buf
	s.pieces, s.buf = append(s.pieces, p), nil
	s.busy.Go(func() {
		p.hash(&s.p, buf)
		s.free <- buf // there is room for every piece
	})
}

func (p *piece) hash(params *Params, data []byte) {
	d, size := params.digester(), params.HashBlockSize
	under := int(params.perBlock()) * params.DataBlockSize
	p.blocks = make([]byte, (len(data)+under-1)/under*size)
	for b := p.blocks; len(b) > 0; b = b[size:] {
		in := data[:min(under, len(data))]
		data = data[len(in):]
		for i := 0; i*params.DataBlockSize < len(in); i++ {
			d.sum(b[i*params.slot():i*params.slot()], in[i*params.DataBlockSize:][:params.DataBlockSize])
		}
		p.digests = d.sum(p.digests, b[:size])
	}
}

// Close says that the data is complete. It must be whole blocks, one at least. A
// second Close does nothing.
func (s *Stream) Close() error {
	if s.root != nil {
		return nil
	}
	if s.err == nil && s.total%uint64(s.p.DataBlockSize) != 0 {
		s.err = fmt.Errorf("verity: %d bytes of data: want whole blocks of %d", s.total, s.p.DataBlockSize)
	}
	if s.err == nil && len(s.buf) > 0 {
		s.hash()
	}
	s.busy.Wait()
	s.buf = nil
	if s.err != nil {
		return s.err
	}
	s.p.DataBlocks = s.total / uint64(s.p.DataBlockSize)
	if s.err = s.p.Check(); s.err != nil {
		return s.err
	}
	s.fold()
	return nil
}

// fold makes the upper levels.
func (s *Stream) fold() {
	size := s.p.Algorithm.Size()
	if s.p.DataBlocks == 1 { // has no tree
		s.root, s.pieces = s.pieces[0].blocks[:size:size], nil
		return
	}
	var digests []byte
	for _, p := range s.pieces {
		digests = append(digests, p.digests...)
	}
	d := s.p.digester()
	for len(digests) > size {
		var block, next []byte
		level := make([]byte, 0, (len(digests)/size/int(s.p.perBlock())+1)*s.p.HashBlockSize)
		for len(digests) > 0 {
			block = make([]byte, s.p.HashBlockSize)
			for i := 0; i < int(s.p.perBlock()) && len(digests) > 0; i++ {
				copy(block[i*s.p.slot():], digests[:size])
				digests = digests[size:]
			}
			level, next = append(level, block...), d.sum(next, block)
		}
		s.levels, digests = append(s.levels, level), next
	}
	s.root = digests
}

// Params are those of the tree, the number of data blocks too, after Close.
func (s *Stream) Params() Params { return s.p }

// Root is the root hash, after Close; nil before.
func (s *Stream) Root() []byte { return s.root }

// WriteTree writes the tree, after Close: TreeSize bytes, the highest level first.
func (s *Stream) WriteTree(w io.Writer) error {
	if s.err != nil {
		return s.err
	}
	if s.root == nil {
		return errors.New("verity: the stream is not closed")
	}
	for i := len(s.levels) - 1; i >= 0; i-- {
		if _, err := w.Write(s.levels[i]); err != nil {
			return fmt.Errorf("verity: hash tree: %w", err)
		}
	}
	for _, p := range s.pieces {
		if _, err := w.Write(p.blocks); err != nil {
			return fmt.Errorf("verity: hash tree: %w", err)
		}
	}
	return nil
}
