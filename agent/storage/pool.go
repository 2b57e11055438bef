// Package storage keeps container images in a guest, until it stops: in memory, or
// on a disk of the host's that is encrypted and authenticated with keys that nobody
// else ever has. What was published can be mounted and no longer changes: dm-verity
// holds every block to a root hash that is in the guest's memory alone.
//
// A pool is one block device that is cut into extents. The content of a layer's
// files, or the EROFS image of a tree, is some extents with its hash tree behind it;
// dm-linear puts them in a row. The hashes are taken from what is written, never
// from what was read back, so a host that gives back older blocks of its disk, which
// no key can prevent, gains nothing.
//
// Documents: Linux, Documentation/admin-guide/device-mapper: dm-integrity.rst,
// dm-crypt.rst, verity.rst, linear.rst.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/unpack"
)

// base is the device that a pool is cut from.
type base struct {
	number string // "254:0", for tables
	size   int64  // bytes
	// data writes to the device. Blocks are aligned on it and in memory, and are
	// there for those who read the device as soon as a write returns.
	data io.WriterAt
	// drop is told of blocks that nothing uses any longer; may be nil.
	drop func(off, size int64) error
	// limit is how much the device can hold besides what it does, whatever its size;
	// may be nil.
	limit func() (int64, error)
	close func() error
}

// A Pool is a store of images. Its methods may be called at the same time.
type Pool struct {
	kernel kernel
	base   base

	mu     sync.Mutex // guards what follows
	space  space
	layers map[digest.Digest]*layer // by diff ID
	trees  map[digest.Digest]*tree  // by chain ID
	mounts map[string]*tree         // by target
	stages int                      // that were neither published nor discarded
	names  int                      // devices that were named
	closed bool
}

var (
	_ imagepull.Store = (*Pool)(nil)
	_ imagepull.Stage = (*stage)(nil)
)

// A layer was published.
type layer struct {
	file *file
	meta []byte // what says which files it has, packed
}

// A tree was published.
type tree struct {
	file    *file
	layers  []digest.Digest // that it was made from
	devices []digest.Digest // of those, what its EROFS has the content from, in order
	mounts  int
}

func newPool(k kernel, b base) *Pool {
	return &Pool{
		kernel: k, base: b, space: newSpace(uint64(b.size) / blockSize),
		layers: map[digest.Digest]*layer{}, trees: map[digest.Digest]*tree{}, mounts: map[string]*tree{},
	}
}

var errClosed = errors.New("storage: closed")

// Layer returns a layer that was published, nil for one that was not.
func (p *Pool) Layer(diffID digest.Digest) (*unpack.Layer, error) {
	p.mu.Lock()
	l := p.layers[diffID]
	p.mu.Unlock()
	if l == nil {
		return nil, nil
	}
	out, err := l.unpack()
	if err != nil {
		return nil, fmt.Errorf("storage: layer %s: %w", diffID, err)
	}
	return out, nil
}

// Tree tells whether the tree of a chain was published.
func (p *Pool) Tree(chainID digest.Digest) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trees[chainID] != nil, nil
}

// Free is how much more fits, bytes, the hash trees not counted.
func (p *Pool) Free() (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := p.available()
	// A digest of 32 bytes for each block of 4,096, and of each block of digests.
	return n - n/64, err
}

// available is how many bytes of any kind can be written.
func (p *Pool) available() (int64, error) {
	n := int64(p.space.blocks()) * blockSize
	if p.base.limit == nil {
		return n, nil
	}
	limit, err := p.base.limit()
	return max(min(n, limit), 0), err
}

// Stage begins a pull. While it lasts nothing is collected. Writing waits for nobody,
// so ctx is of no use afterwards.
func (p *Pool) Stage(ctx context.Context) (imagepull.Stage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.stages++
	return &stage{pool: p, contents: map[digest.Digest]*writer{}}, nil
}

// release gives the extents of a file back.
func (p *Pool) release(extents []extent) (freed int64, err error) {
	for _, e := range extents {
		p.space.give(e)
		freed += e.size()
		if p.base.drop != nil && e.blocks > 0 {
			err = errors.Join(err, p.base.drop(e.offset(), e.size()))
		}
	}
	return freed, err
}

// Collect removes the trees whose chain IDs are not in keep and that are not
// mounted, and the layers that no tree is made from any longer. It returns how many
// bytes that freed. While a pull is under way, which may count on any layer, it
// removes nothing.
func (p *Pool) Collect(keep []digest.Digest) (freed int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stages > 0 || p.closed {
		return 0, nil
	}
	kept := map[digest.Digest]bool{}
	for _, id := range keep {
		kept[id] = true
	}
	used := map[digest.Digest]bool{}
	remove := func(f *file) bool {
		n, e := p.remove(f)
		freed, err = freed+n, errors.Join(err, e)
		return e == nil
	}
	for id, t := range p.trees {
		if !kept[id] && t.mounts == 0 && remove(t.file) {
			delete(p.trees, id)
			continue
		}
		for _, l := range t.layers {
			used[l] = true
		}
	}
	for id, l := range p.layers {
		if !used[id] && remove(l.file) {
			delete(p.layers, id)
		}
	}
	return freed, err
}

// remove gives a file up. As long as the kernel uses it, it stays.
func (p *Pool) remove(f *file) (int64, error) {
	if err := p.down(f); err != nil {
		return 0, err
	}
	n, err := p.release(f.extents)
	f.extents = nil
	return n, err
}

// Close ends the pool. What is mounted must be unmounted before.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if n := len(p.mounts); n > 0 {
		return fmt.Errorf("storage: %d images are mounted", n)
	}
	if p.stages > 0 {
		return fmt.Errorf("storage: %d pulls are under way", p.stages)
	}
	var errs []error
	for _, t := range p.trees {
		errs = append(errs, p.down(t.file))
	}
	for _, l := range p.layers {
		errs = append(errs, p.down(l.file))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the base cannot be taken away below them
	}
	p.closed = true
	return p.base.close()
}
