package rootfs

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"

	"github.com/plinth-os/plinth/internal/tree"
)

func cut(name string) (dir, base string) { return path.Dir(name), path.Base(name) }

// get returns the node at a path, with all links followed, or nil.
func (b *build) get(name string) *node {
	where, err := b.links.resolve(name)
	if err != nil {
		return nil
	}
	return b.at[where]
}

// list returns the names in a directory, sorted.
func (b *build) list(dir string) []string {
	where, err := b.links.resolve(dir)
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(b.kids[where]))
}

// isDir reports whether a path leads to a directory, one that is only the parent
// of something included.
func (b *build) isDir(name string) bool {
	where, err := b.links.resolve(name)
	if err != nil {
		return false
	}
	if n := b.at[where]; n != nil {
		return n.Type() == tree.TypeDir
	}
	return b.kids[where] != nil
}

// maxText bounds a file that is read whole to be parsed, bytes.
const maxText = 64 << 20

// read returns the content of a file, nil when the tree has none at the path.
func (b *build) read(name string) ([]byte, error) {
	n := b.get(name)
	if n == nil {
		return nil, nil
	}
	if n.Type() != tree.TypeFile {
		return nil, fmt.Errorf("rootfs: /%s: is no file", name)
	}
	text, err := n.inode.read(maxText)
	if err != nil {
		return nil, fmt.Errorf("rootfs: /%s: %w", name, err)
	}
	return text, nil
}

// read returns the content, never nil.
func (i *inode) read(limit int64) ([]byte, error) {
	if i.blob.Size > limit {
		return nil, fmt.Errorf("%d bytes, want at most %d", i.blob.Size, limit)
	}
	buf := bytes.NewBuffer(make([]byte, 0, i.blob.Size))
	err := i.blob.Copy(buf)
	return buf.Bytes(), err
}

// make adds what is generated, unless something is there already.
func (b *build) make(e tree.Entry) {
	if where, err := b.links.place(e.Path); err == nil {
		e.Path = where
	}
	if b.at[e.Path] == nil {
		b.force(e)
	}
}

// force adds what is generated in place of what is there.
func (b *build) force(e tree.Entry) {
	n := &node{Entry: e}
	if e.Type() != tree.TypeDir {
		n.inode = &inode{blob: e.Content}
	}
	if e.Type() == tree.TypeSymlink {
		b.links[e.Path] = e.Target
	}
	b.put(n)
}

// readerAt opens the content for reading here and there. What the store gives
// does so itself; anything else is read whole.
func (i *inode) readerAt() (r io.ReaderAt, done func(), err error) {
	f, err := i.blob.Open()
	if err != nil {
		return nil, nil, err
	}
	if at, ok := f.(io.ReaderAt); ok {
		return io.NewSectionReader(at, 0, i.blob.Size), func() { f.Close() }, nil // read only: nothing is lost
	}
	if err := f.Close(); err != nil {
		return nil, nil, err
	}
	content, err := i.read(maxLibrary)
	return bytes.NewReader(content), func() {}, err
}
