package erofs

import (
	"fmt"
	"math"
	"path"

	"github.com/plinth-os/plinth/internal/tree"
)

// A node is one inode.
type node struct {
	path string // for errors
	inodeHeader
	attrs   []byte     // extended attributes
	content *tree.Blob // of a file whose content is in the image
	chunks  Chunks     // of a file whose content is elsewhere
	blocks  [][]dirent // of a directory
	tail    []byte     // content behind the inode; of a file it comes when the file is copied
	inline  int        // length of tail
	slot    uint64     // where the inode is: nid
	same    *node      // file with the same content, whose blocks this one shares
}

// kind is the type bits of the mode.
func (n *node) kind() uint32 { return uint32(n.mode) & tree.TypeMask }

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
	nodes   []*node // in the order of the tree; the first is the root
	chunked bool    // some file has chunks
	inodes  *area
	meta    uint64 // first block of the inode area
	blocks  uint64 // of the image
}

// addEntries makes the inodes, and the entries of directories. Entries are
// normalised.
func (im *image) addEntries(entries []tree.Entry) error {
	at := map[string]*node{}
	outside, dated := 0, 0
	for i := range entries {
		e := &entries[i]
		if e.Link != "" {
			continue // it may come before the entry that it names
		}
		x := Node{
			Mode: e.Mode, UID: e.UID, GID: e.GID, Major: e.Major, Minor: e.Minor, Target: e.Target,
			Xattrs: e.Xattrs, Size: e.Content.Size, Time: Time{Sec: im.Epoch},
		}
		content := &e.Content
		if c, ok := im.Outside[e.Path]; ok && e.Type() == tree.TypeFile {
			x.Chunks, content = c, nil
			outside++
		}
		if t, ok := im.Times[e.Path]; ok {
			x.Time = t
			dated++
		}
		n, err := im.add(e.Path, &x, content)
		if err != nil {
			return err
		}
		at[e.Path] = n
	}
	if outside != len(im.Outside) {
		return fmt.Errorf("erofs: %d of the files whose content is outside are not in the tree", len(im.Outside)-outside)
	}
	if dated != len(im.Times) {
		return fmt.Errorf("erofs: %d of the files that have times are not in the tree", len(im.Times)-dated)
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
	if n.content == nil || n.content.Digest == [32]byte{} {
		return nil
	}
	k := contentKey{n.content.Digest, n.size, n.inline}
	twin := placed[k]
	if twin == nil {
		placed[k] = n
	}
	return twin
}

// add makes one inode. A regular file has content or chunks.
func (im *image) add(path string, x *Node, content *tree.Blob) (*node, error) {
	n := &node{path: path, inodeHeader: inodeHeader{
		mode: uint16(x.Mode), nlink: 1, ino: uint32(len(im.nodes) + 1), uid: x.UID, gid: x.GID,
		mtime: x.Time, dated: x.Time != Time{Sec: im.Epoch},
	}}
	err := im.describe(n, x, content)
	if err != nil {
		return nil, fmt.Errorf("erofs: %s: %w", path, err)
	}
	im.nodes = append(im.nodes, n)
	return n, nil
}

func (im *image) describe(n *node, x *Node, content *tree.Blob) (err error) {
	if x.Time.Nsec >= 1e9 {
		return fmt.Errorf("time has %d nanoseconds", x.Time.Nsec)
	}
	if n.attrs, err = xattrs(x.Xattrs); err != nil {
		return err
	}
	n.xattrs = len(n.attrs)
	switch n.kind() {
	case tree.TypeFile:
		return im.file(n, x, content)
	case tree.TypeSymlink:
		if len(x.Target) == 0 || len(x.Target) >= BlockSize {
			return fmt.Errorf("link target of %d bytes: want 1 to %d", len(x.Target), BlockSize-1)
		}
		n.size, n.tail = uint64(len(x.Target)), []byte(x.Target)
	case tree.TypeCharDev, tree.TypeBlkDev:
		if x.Major > 0xfff || x.Minor > 0xfffff {
			return fmt.Errorf("device %d:%d: want at most 4095:1048575", x.Major, x.Minor)
		}
		n.u = device(x.Major, x.Minor)
	}
	return nil
}

func (im *image) file(n *node, x *Node, content *tree.Blob) error {
	if x.Size < 0 {
		return fmt.Errorf("size %d", x.Size)
	}
	n.size = uint64(x.Size)
	if content != nil {
		n.content = content
		return nil
	}
	if x.Size == 0 && len(x.Chunks.At) == 0 {
		return nil
	}
	if err := x.Chunks.check(x.Size, im.Devices); err != nil {
		return err
	}
	n.chunks, n.layout, im.chunked = x.Chunks, chunkBased, true
	n.u = chunkIndexes
	for size := BlockSize; size < x.Chunks.Size; size *= 2 {
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
		if n.kind() == tree.TypeDir {
			dir.nlink++
		}
	}
	for _, n := range im.nodes {
		if n.kind() == tree.TypeDir {
			n.hold(children[n], at[path.Dir(n.path)])
		}
	}
	return nil
}

// hold gives a directory its entries.
func (n *node) hold(children []dirent, parent *node) {
	n.nlink++ // its own "."
	n.blocks = dirBlocks(append(children, n.dirent("."), parent.dirent("..")))
	n.size = uint64(dirSize(n.blocks))
}

func (n *node) dirent(name string) dirent { return dirent{name, n, fileTypes[n.kind()]} }

// place lays out blocks and inodes. The root comes first, as the superblock has
// only 16 bits for its nid.
func (im *image) place() error {
	next := headBlocks(len(im.Devices))
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
	switch n.kind() {
	case tree.TypeFile, tree.TypeDir, tree.TypeSymlink:
		n.layout, n.inline = flatInline, rest
	}
}
