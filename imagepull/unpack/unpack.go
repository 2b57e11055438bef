// Package unpack applies the layers of an image to a directory, one after the
// other, bottom first.
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
//   - Device nodes and FIFOs are made; tar has no sockets.
//   - Two blocks of zeros end a layer, as does the end of the stream behind one,
//     where a header could stand, or in the zeros before it; what follows the end
//     mark is read, counted and ignored. A stream that ends anywhere else is an
//     error.
//
// It is stricter than umoci, and refuses: an owner outside 0 to 2^32-2, a device
// number that Linux has no room for, ".wh." without a name, ".wh.." and
// ".wh...", a parent whose name begins with ".wh.", more than the kernel's 40
// links on the way to a name, an attribute that the file system does not take,
// and what exceeds Limits. It takes two things that umoci does not: the sparse
// files of old GNU tar, and global PAX headers that hold only a comment. And the
// time of unpacking is nowhere in the tree: umoci gives it to a directory that
// no layer names, and to the one that holds it.
//
// Every system call names one part of a path beneath an open directory and
// follows no link, so nothing outside the directory is ever reached. It needs
// the right to change owners.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Limits bound what one image may do: all layers of a Tree together. A zero
// field is the default, never without limit.
type Limits struct {
	Bytes   int64 // of all files, holes included, and again of all tar streams; 64 GiB
	Entries int64 // of the layers, and directories that no layer names; 1,048,576
	PathLen int   // bytes of a name or link target, as written and as resolved; 4095
	Depth   int   // directories above one another; 256
	Ratio   int64 // bytes of tar per byte of blob, where the reader is a Compressed; 1,000
}

func (l Limits) defaults() Limits {
	set(&l.Bytes, 64<<30)
	set(&l.Entries, 1<<20)
	set(&l.PathLen, 4095)
	set(&l.Depth, 256)
	set(&l.Ratio, 1000)
	return l
}

func set[T int | int64](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Stats counts what one layer brought.
type Stats struct {
	Entries   int64 // tar entries
	Bytes     int64 // of files, holes included
	Whiteouts int64 // opaque ones, too
	Dropped   int64 // attributes left out
	Stream    int64 // bytes read from the layer
	Trailing  int64 // of these, behind the end mark and not zero
}

// A Tree is a directory that layers are applied to. It is used by one goroutine
// at a time, and nobody else writes below the directory meanwhile.
type Tree struct {
	limits Limits
	root   *dir
	cache  cache
	memo   memo
	super  bool // owner of new files is 0:0 without asking

	seed    maphash.Seed
	layer   int                 // number of the layer, from 1
	upper   map[uint64]struct{} // names that this layer brought, and the directories above them
	cleared map[uint64]struct{} // directories that hold nothing of lower layers any more

	entries, bytes, stream int64 // so far, all layers
	stats                  Stats
	blocks                 [][]byte // of the read-ahead
	buf                    []byte
	err                    error // why the tree is no longer of use
}

// Open takes dir, which exists, as the root of a tree. An empty one becomes
// root's, mode 0755, with the time 0; in one that holds lower layers already
// nothing changes before Apply.
func Open(dir string, l Limits) (*Tree, error) {
	fd, err := unix.Open(dir, openFlags&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("unpack: %s: %w", dir, err)
	}
	t := &Tree{limits: l.defaults(), super: os.Geteuid() == 0 && os.Getegid() == 0, seed: maphash.MakeSeed()}
	t.root = newDir(nil, "", fd)
	if err := t.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("unpack: %s: %w", dir, err), t.Close())
	}
	t.blocks = makeBlocks()
	t.buf = make([]byte, blockSize)
	return t, nil
}

func (t *Tree) prepare() error {
	if err := t.root.inspect(); err != nil {
		return err
	}
	empty := true
	if err := eachName(t.root.fd, func(string) error { empty = false; return nil }); err != nil || !empty {
		return err
	}
	if t.super {
		if err := unix.Fchown(t.root.fd, 0, 0); err != nil {
			return err
		}
	}
	t.root.touched, t.root.setgid = true, false
	return unix.Fchmod(t.root.fd, 0o755)
}

// Apply unpacks one layer, an uncompressed tar stream, above those before it. It
// reads layer to its end, so that a reader that checks a digest there has its
// say. layer is read by a goroutine that is gone when Apply returns; its Read
// must return once ctx is done. After an error the tree is half a layer: Apply
// and Finish fail from then on, and the caller removes the directory.
func (t *Tree) Apply(ctx context.Context, layer io.Reader) (Stats, error) {
	if t.err != nil {
		return Stats{}, t.err
	}
	t.layer++
	t.stats = Stats{}
	t.upper, t.cleared = make(map[uint64]struct{}), make(map[uint64]struct{})

	src := readAhead(ctx, layer, t.blocks, &meter{left: t.limits.Bytes - t.stream, limits: t.limits})
	err := t.unpack(ctx, src)
	t.upper, t.cleared = nil, nil
	t.stats.Stream = src.stop()
	t.stream += t.stats.Stream
	if err == nil {
		err = t.settle(t.root)
	}
	if err != nil {
		t.err = fmt.Errorf("unpack: layer %d: %w", t.layer, err)
	}
	return t.stats, t.err
}

func (t *Tree) unpack(ctx context.Context, src *ahead) error {
	r := tar.NewReader(src)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if err == io.EOF {
			return t.drain(src)
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // an odd name is no error: it is cleaned
			return fmt.Errorf("behind entry %d: %w", t.stats.Entries, err)
		}
		t.stats.Entries++
		if err := t.count(); err != nil {
			return err
		}
		if err := t.entry(ctx, h, r); err != nil {
			return &EntryError{Index: t.stats.Entries, Name: h.Name, Err: t.explain(err, h.Size)}
		}
	}
}

// count takes one entry, or one directory that no entry names, from the limit.
func (t *Tree) count() error {
	if t.entries++; t.entries > t.limits.Entries {
		return &LimitError{"entries", t.entries, t.limits.Entries}
	}
	return nil
}

// drain reads what follows the end mark: zeros of a tar's last record, or what
// some packers leave there.
func (t *Tree) drain(src *ahead) error {
	for {
		n, err := src.Read(t.buf)
		for _, b := range t.buf[:n] {
			if b != 0 {
				t.stats.Trailing++
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("behind the last entry: %w", err)
		}
	}
}

// Finish gives every directory its time and closes the tree. Nothing is synced:
// a tree is made again rather than found half there.
func (t *Tree) Finish() error {
	if t.err != nil {
		return t.err
	}
	if err := t.settle(t.root); err != nil {
		return errors.Join(fmt.Errorf("unpack: %w", err), t.Close())
	}
	return t.Close()
}

// Close gives up the tree where Finish is not called. It removes nothing, and
// does nothing after Finish.
func (t *Tree) Close() error {
	if t.root == nil {
		return nil
	}
	t.drop(t.root)
	t.root = nil
	if t.err == nil {
		t.err = errors.New("unpack: the tree is closed")
	}
	return nil
}
