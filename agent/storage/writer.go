package storage

import (
	"fmt"
	"io"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/verity"
)

// params are those of every hash tree. There is no salt: the tree guards bytes that
// only this guest has written and can read.
var params = verity.Params{Algorithm: verity.SHA256, DataBlockSize: blockSize, HashBlockSize: blockSize, Format: 1}

// bufferSize is how much is written and hashed at a time, bytes.
const bufferSize = 256 << 10

// A writer takes one file, which its extents hold in order: the data, and behind it
// the hash tree.
type writer struct {
	pool  *Pool
	taken *uint64 // blocks that the whole pull has taken; the pool's lock guards it

	mu      sync.Mutex // guards what follows
	hash    *verity.Stream
	buf     []byte // aligned for direct writes
	n       int    // bytes of buf
	extents []extent
	used    uint64 // blocks of extents that were written
	room    uint64 // blocks of extents
	err     error  // that ended it
	done    *file
}

func newWriter(p *Pool, taken *uint64) (*writer, error) {
	hash, err := verity.NewStream(params)
	if err != nil {
		return nil, err
	}
	return &writer{pool: p, taken: taken, hash: hash, buf: aligned(bufferSize)}, nil
}

// aligned returns memory that the kernel can write from directly.
func aligned(size int) []byte {
	b := make([]byte, size+blockSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (blockSize - 1)
	return b[skip:][:size]
}

func (w *writer) Write(b []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) > 0 {
		if w.err != nil {
			return n, w.err
		}
		k := copy(w.buf[w.n:], b)
		w.n += k
		n += k
		b = b[k:]
		if w.n == len(w.buf) {
			w.err = w.flush()
		}
	}
	return n, w.err
}

// flush hashes and writes what the buffer holds: the guest's own copy. Hashing goes
// on while it is written.
func (w *writer) flush() error {
	b := w.buf[:w.n]
	w.n = 0
	if _, err := w.hash.Write(b); err != nil {
		return err
	}
	return w.store(b)
}

// store writes whole blocks behind what was stored.
func (w *writer) store(b []byte) error {
	if len(b)%blockSize != 0 {
		return fmt.Errorf("storage: %d bytes at the end: want whole blocks of %d", len(b)%blockSize, blockSize)
	}
	for len(b) > 0 {
		e, err := w.next(uint64(len(b)) / blockSize)
		if err != nil {
			return err
		}
		if _, err := w.pool.base.data.WriteAt(b[:e.size()], e.offset()); err != nil {
			return fmt.Errorf("storage: %w", err)
		}
		w.used += e.blocks
		b = b[e.size():]
	}
	return nil
}

// next returns where at most n blocks go.
func (w *writer) next(n uint64) (extent, error) {
	if w.room == w.used {
		if err := w.grow(n); err != nil {
			return extent{}, err
		}
	}
	last := w.extents[len(w.extents)-1]
	left := w.room - w.used
	return extent{last.end() - left, min(n, left)}, nil
}

// grow takes another extent, for n blocks or more.
func (w *writer) grow(n uint64) error {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	available, err := p.available()
	if err != nil {
		return err
	}
	if available < int64(n)*blockSize {
		taken := int64(*w.taken) * blockSize
		return &imagepull.SpaceError{Needed: taken + int64(n)*blockSize, Available: taken + available, Err: unix.ENOSPC}
	}
	e := p.space.take(min(max(w.room, firstExtent), mostExtent))
	w.room += e.blocks
	*w.taken += e.blocks
	if i := len(w.extents) - 1; i >= 0 && w.extents[i].end() == e.start {
		w.extents[i].blocks += e.blocks
		return nil
	}
	w.extents = append(w.extents, e)
	return nil
}

// Close ends the data and writes the hash tree.
func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done != nil {
		return nil
	}
	if w.err != nil {
		return w.err
	}
	w.err = w.finish()
	w.buf, w.hash = nil, nil
	return w.err
}

func (w *writer) finish() error {
	if err := w.flush(); err != nil {
		return err
	}
	f := &file{params: params}
	if w.used > 0 { // nothing has no tree
		if err := w.tree(f); err != nil {
			return err
		}
	}
	f.extents = w.trim()
	w.extents = nil
	w.done = f
	return nil
}

// tree writes the hash tree of a file behind its data.
func (w *writer) tree(f *file) error {
	if err := w.hash.Close(); err != nil {
		return err
	}
	f.params, f.root = w.hash.Params(), w.hash.Root()
	t := treeWriter{w: w}
	if err := w.hash.WriteTree(&t); err != nil {
		return err
	}
	return w.store(w.buf[:t.n])
}

// treeWriter gathers hash blocks in the writer's buffer: they come one by one.
type treeWriter struct {
	w *writer
	n int
}

func (t *treeWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k := copy(t.w.buf[t.n:], b)
		t.n, n, b = t.n+k, n+k, b[k:]
		if t.n < len(t.w.buf) {
			break
		}
		if err := t.w.store(t.w.buf); err != nil {
			return n, err
		}
		t.n = 0
	}
	return n, nil
}

// trim gives back what the last extent has too much, and returns the extents.
func (w *writer) trim() []extent {
	spare := w.room - w.used
	if spare == 0 {
		return w.extents
	}
	last := &w.extents[len(w.extents)-1]
	last.blocks -= spare
	w.pool.mu.Lock()
	defer w.pool.mu.Unlock()
	w.pool.space.give(extent{last.end(), spare})
	*w.taken -= spare
	if last.blocks == 0 {
		return w.extents[:len(w.extents)-1]
	}
	return w.extents
}

// file returns what was written, nil until Close was called and went well.
func (w *writer) file() *file {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}

// stop ends the writer and returns what it had taken.
func (w *writer) stop() []extent {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.extents
	if w.done != nil {
		out = w.done.extents
	}
	w.extents, w.done, w.err, w.buf, w.hash = nil, nil, errOver, nil, nil
	return out
}

var _ io.WriteCloser = (*writer)(nil)
