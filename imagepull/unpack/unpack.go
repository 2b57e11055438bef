// Package unpack reads the layers of an image and lays them over one another,
// bottom first, in memory: no name of a layer is ever looked up in a file system.
// Read takes a layer apart: the content of its files goes to a Writer, in whole
// blocks, and what it says of them is kept. A Tree puts layers together, and comes
// out as an EROFS image whose files are on the layers' contents, or as a directory.
//
// A layer is a tar stream: PAX, GNU, ustar or V7, sparse files of every GNU
// kind. What it means is said by the OCI image specification, layer.md; where
// that leaves a choice, the tree is the one that umoci unpacks:
//
//   - Names are cleaned as text: "./a", "/a", "a//", "b/../a" and "../a" are all
//     "a". A parent that is a symbolic link is followed as if the directory
//     were the root of the system. A parent that is missing is made, mode 0755,
//     with the time 0. The last part of a name is never followed: an entry
//     replaces what stands there, a link too; only a directory that meets a
//     directory stays and gets the entry's owner, mode, times and attributes.
//   - ".wh.NAME" removes NAME, ".wh..wh..opq" what its directory holds, wherever
//     they stand in the layer: only what lower layers brought goes. Other names
//     that begin with ".wh..wh." are notes of a union file system and ignored,
//     with what is below them.
//   - Extended attributes are those of SCHILY.xattr records. A directory that
//     stays loses those that it had. security.selinux, system.nfs4_acl and
//     trusted.overlay.* are left out: they speak of the machine that packed.
//   - A directory that no layer names gets group, set-group-ID bit and access
//     lists of the one above it as the kernel would have it.
//   - Device nodes and FIFOs are made; tar has no sockets.
//   - Two blocks of zeros end a layer, as does the end of the stream behind one,
//     where a header could stand, or in the zeros before it; what follows the end
//     mark is read, counted and ignored. A stream that ends anywhere else is an
//     error.
//
// It is stricter than umoci, and refuses: an owner outside 0 to 2^32-2, a device
// number that Linux has no room for, ".wh." without a name, ".wh.." and
// ".wh...", a parent whose name begins with ".wh.", more than the kernel's 40
// links on the way to a name, an attribute that Linux or EROFS has no room for,
// and what exceeds Limits. It takes two things that umoci does not: the sparse
// files of old GNU tar, and global PAX headers that hold only a comment. And the
// time of unpacking is nowhere in the tree: umoci gives it to a directory that
// no layer names, and to the one that holds it.
package unpack

import (
	"math"
	"sync/atomic"
)

// BlockSize is the unit of a layer's content, in bytes.
const BlockSize = 4096

// Limits bound what one image may do, all layers together. A zero field is the
// default, never without limit.
type Limits struct {
	Bytes   int64 // of all files, holes included, and again of all tar streams; 64 GiB
	Entries int64 // of the layers, and directories that no layer names; 1,048,576
	PathLen int   // bytes of a name or link target, as written and as resolved; 4095, and no more
	Depth   int   // directories above one another; 256, and no more
	Ratio   int64 // bytes of tar per byte of blob, where the reader is a Compressed; 1,000
	Kept    int64 // bytes kept in memory of names, link targets, attributes and holes; 64 MiB
}

const (
	pathMax  = 4095 // bytes; PATH_MAX counts a NUL
	nameMax  = 255  // bytes; NAME_MAX
	depthMax = 256
)

func (l Limits) defaults() Limits {
	set(&l.Bytes, 64<<30)
	set(&l.Entries, 1<<20)
	set(&l.PathLen, pathMax)
	set(&l.Depth, depthMax)
	set(&l.Ratio, 1000)
	set(&l.Kept, 64<<20)
	l.PathLen, l.Depth = min(l.PathLen, pathMax), min(l.Depth, depthMax)
	return l
}

func set[T int | int64](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// A Budget is what is left of the Limits of one image. Its layers share it, and
// may be read side by side.
type Budget struct {
	limits                       Limits
	bytes, stream, entries, kept atomic.Int64 // taken so far
}

// NewBudget returns a budget of which nothing is taken.
func NewBudget(l Limits) *Budget { return &Budget{limits: l.defaults()} }

// take takes n of what may be most.
func take(taken *atomic.Int64, n, most int64, what string) error {
	for {
		old := taken.Load()
		if n < 0 || n > most-old {
			return &LimitError{what, sum(old, n), most}
		}
		if taken.CompareAndSwap(old, old+n) {
			return nil
		}
	}
}

// sum is for messages: it does not overflow.
func sum(a, b int64) int64 {
	if b < 0 || a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

const (
	limitBytes   = "bytes of the files"
	limitStream  = "bytes of the layers"
	limitEntries = "entries"
	limitKept    = "bytes of names, links, attributes and holes"
)

func (b *Budget) takeBytes(n int64) error  { return take(&b.bytes, n, b.limits.Bytes, limitBytes) }
func (b *Budget) takeStream(n int64) error { return take(&b.stream, n, b.limits.Bytes, limitStream) }
func (b *Budget) takeEntry() error         { return take(&b.entries, 1, b.limits.Entries, limitEntries) }
func (b *Budget) takeKept(n int64) error   { return take(&b.kept, n, b.limits.Kept, limitKept) }

// Stats counts what one layer brought.
type Stats struct {
	Entries   int64 // tar entries
	Bytes     int64 // of files, holes included
	Whiteouts int64 // opaque ones, too
	Dropped   int64 // attributes left out
	Stream    int64 // bytes read from the layer
	Trailing  int64 // of these, behind the end mark and not zero
}
