package erofs

import (
	"fmt"
	"math"
	"path"

	"github.com/plinth-os/plinth/internal/tree"
)

// A node is one inode.
type node struct {
	entry *tree.Entry
	inodeHeader
	attrs  []byte     // extended attributes
	chunks *Chunks    // of a file whose content is elsewhere
	blocks [][]dirent // of a directory
	tail   []byte     // content behind the inode; of a file it comes when the file is copied
	inline int        // length of tail
	slot   uint64     // where the inode is: nid
	same   *node      // file with the same content, whose blocks this one shares
}

// dataBlocks is how many blocks the node has outside the inode area.
func (n *node) dataBlocks() uint64 {
	if n.layout == chunkBased {
		return 0
	}
	return (n.size - uint64(n.inline) + BlockSize - 1) / BlockSize
}

// indexes is the length of a chunk table with the gap before it, and its offset
// from the inode.
func (n *node) indexes() (off, size int) {
	if n.layout != chunkBased {
		return 0, 0
	}
	off = (n.length() + n.xattrs + 7) &^ 7
	return off, 8 * len(n.chunks.At)
}

// footprint is what the inode takes in the inode area, in bytes, with all that
// lies behind it.
func (n *node) footprint() int {
	if off, size := n.indexes(); size > 0 {
		return off + size
	}
	return n.length() + n.xattrs + n.inline
}

// image is a tree with a place for everything.
type image struct {
	Params
	nodes  []*node // in the order of the tree; the first is the root
	inodes *area
	meta   uint64 // first block of the inode area
	blocks uint64 // of the image
}

// lay gives everything its place. Entries are normalised.
func lay(entries []tree.Entry, p Params) (*image, error) {
	im := &image{Params: p, inodes: newArea()}
	if err := im.addNodes(entries); err != nil {
		return nil, err
	}
	if err := im.place(); err != nil {
		return nil, err
	}
	return im, nil
}

// addNodes makes the inodes, and the entries of directories.
func (im *image) addNodes(entries []tree.Entry) error {
	at := map[string]*node{}
	used := 0
	for i := range entries {
		e := &entries[i]
		if e.Link != "" {
			continue // it may come before the entry that it names
		}
		n, err := im.node(e)
		if err != nil {
			return fmt.Errorf("erofs: %s: %w", e.Path, err)
		}
		if n.chunks != nil {
			used++
		}
		at[e.Path] = n
		im.nodes = append(im.nodes, n)
	}
	if used != len(im.Outside) {
		return fmt.Errorf("erofs: %d of the files whose content is outside are not in the tree", len(im.Outside)-used)
	}
	return im.link(entries, at)
}

// contentKey identifies equal blocks: by the digest of the content, and how much
// of it is behind the inode.
type contentKey struct {
	digest [32]byte
	size   uint64
	inline int
}

// twin returns the node, among those with places, that has the same content.
func (n *node) twin(placed map[contentKey]*node) *node {
	k := contentKey{n.entry.Content.Digest, n.size, n.inline}
	if n.entry.Type() != tree.TypeFile || n.layout == chunkBased || k.digest == [32]byte{} {
		return nil
	}
	twin := placed[k]
	if twin == nil {
		placed[k] = n
	}
	return twin
}

func (im *image) node(e *tree.Entry) (*node, error) {
	attrs, err := xattrs(e.Xattrs)
	if err != nil {
		return nil, err
	}
	n := &node{entry: e, attrs: attrs, inodeHeader: inodeHeader{
		xattrs: len(attrs), mode: uint16(e.Mode), nlink: 1,
		ino: uint32(len(im.nodes) + 1), uid: e.UID, gid: e.GID, mtime: uint64(im.Epoch),
	}}
	switch e.Type() {
	case tree.TypeFile:
		return n, im.file(n)
	case tree.TypeSymlink:
		if len(e.Target) >= BlockSize {
			return nil, fmt.Errorf("link target of %d bytes: want less than %d", len(e.Target), BlockSize)
		}
		n.size, n.tail = uint64(len(e.Target)), []byte(e.Target)
	case tree.TypeCharDev, tree.TypeBlkDev:
		if e.Major > 0xfff || e.Minor > 0xfffff {
			return nil, fmt.Errorf("device %d:%d: want at most 4095:1048575", e.Major, e.Minor)
		}
		n.u = device(e.Major, e.Minor)
	}
	return n, nil
}

func (im *image) file(n *node) error {
	if n.entry.Content.Size < 0 {
		return fmt.Errorf("size %d", n.entry.Content.Size)
	}
	n.size = uint64(n.entry.Content.Size)
	c, ok := im.Outside[n.entry.Path]
	if !ok {
		return nil
	}
	if err := c.check(int64(n.size), im.Devices); err != nil {
		return err
	}
	n.chunks, n.layout = &c, chunkBased
	n.u = chunkIndexes
	for size := BlockSize; size < c.Size; size *= 2 {
		n.u++
	}
	return nil
}

// link fills directories and counts links.
func (im *image) link(entries []tree.Entry, at map[string]*node) error {
	children := map[*node][]dirent{}
	for i := range entries {
		e := &entries[i]
		name := e.Path
		if e.Link != "" {
			name = e.Link
		}
		n := at[name]
		if n == nil {
			return fmt.Errorf("erofs: %s: hard link to %s: not in the tree", e.Path, e.Link)
		}
		if e.Link != "" {
			n.nlink++
		}
		if e.Path == "." {
			continue
		}
		base := path.Base(e.Path)
		if len(base) > 255 {
			return fmt.Errorf("erofs: %s: name of %d bytes: want at most 255", e.Path, len(base))
		}
		dir := at[path.Dir(e.Path)]
		children[dir] = append(children[dir], n.dirent(base))
		if n.entry.Type() == tree.TypeDir {
			dir.nlink++
		}
	}
	for _, n := range im.nodes {
		if n.entry.Type() != tree.TypeDir {
			continue
		}
		n.nlink++ // its own "."
		n.blocks = dirBlocks(append(children[n], n.dirent("."), at[path.Dir(n.entry.Path)].dirent("..")))
		n.size = uint64(dirSize(n.blocks))
	}
	return nil
}

func (n *node) dirent(name string) dirent {
	return dirent{name, func() uint64 { return n.slot }, fileTypes[n.entry.Type()]}
}

// place lays out blocks and inodes. The root comes first, as the superblock has
// only 16 bits for its nid.
func (im *image) place() error {
	next := uint64(1)
	placed := map[contentKey]*node{}
	for _, n := range im.nodes {
		n.setInline()
		if n.same = n.twin(placed); n.same != nil {
			n.u = n.same.u
		} else if n.dataBlocks() > 0 {
			n.u = uint32(next)
			next += n.dataBlocks()
		}
		n.slot = im.inodes.reserve(n.footprint())
		if next > math.MaxUint32 {
			return fmt.Errorf("erofs: more than %d blocks", math.MaxUint32)
		}
	}
	im.meta = next
	im.blocks = next + uint64(len(im.inodes.blocks))
	if im.blocks > math.MaxUint32 {
		return fmt.Errorf("erofs: %d blocks: want at most %d", im.blocks, math.MaxUint32)
	}
	return nil
}

// setInline decides whether the last, incomplete block goes behind the inode: it
// does when the two fit into one block.
func (n *node) setInline() {
	rest := int(n.size % BlockSize)
	if n.layout == chunkBased || rest == 0 || n.length()+n.xattrs+rest > BlockSize {
		return
	}
	switch n.entry.Type() {
	case tree.TypeFile, tree.TypeDir, tree.TypeSymlink:
		n.layout, n.inline = flatInline, rest
	}
}
