package erofs

import (
	"fmt"
	"io"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// A Node is one inode of a tree for WriteNodes: a file with several names is one
// Node under all of them.
type Node struct {
	Mode         uint32 // st_mode, type bits included
	UID, GID     uint32
	Major, Minor uint32 // of a device node
	Time         Time
	Target       string            // of a symbolic link
	Xattrs       map[string][]byte // by full name
	Size         int64             // of a file
	Chunks       Chunks            // of a file: where its content is
	Kids         []Name            // of a directory, in any order

	laid *node // while the image is laid out
}

// A Name is an entry of a directory.
type Name struct {
	Name string
	Node *Node
}

// WriteNodes writes the image of the tree below root, all of whose content is on
// p.Devices. What p says by paths has no meaning. Names are in order, directories
// before what they hold; memory is some 300 bytes for each inode. It is for trees
// that are large or have times of their own; nodes are written once.
func WriteNodes(w io.Writer, root *Node, p Params) error {
	if err := p.check(); err != nil {
		return err
	}
	if root.Mode&tree.TypeMask != tree.TypeDir {
		return fmt.Errorf("erofs: root: mode is %#o, want a directory", root.Mode)
	}
	im := &image{Params: p, inodes: newArea()}
	n, err := im.add(".", root, nil)
	if err == nil {
		err = im.addKids(root, n, n)
	}
	if err != nil {
		return err
	}
	return im.finish(w)
}

// addKids makes the inodes below a directory, whose own is n.
func (im *image) addKids(x *Node, n, parent *node) error {
	x.laid = n
	children := make([]dirent, 0, len(x.Kids)+2)
	for _, k := range x.Kids {
		if err := im.addKid(n, k); err != nil {
			return err
		}
		if k.Node.laid.kind() == tree.TypeDir {
			n.nlink++
		}
		children = append(children, k.Node.laid.dirent(k.Name))
	}
	n.hold(children, parent)
	last := ""
	for _, b := range n.blocks {
		for _, e := range b {
			if e.name == last {
				return fmt.Errorf("erofs: %s: %q: named twice", n.path, last)
			}
			last = e.name
		}
	}
	return nil
}

func (im *image) addKid(dir *node, k Name) error {
	if k.Name == "" || len(k.Name) > 255 || k.Name == "." || k.Name == ".." || strings.ContainsAny(k.Name, "/\x00") {
		return fmt.Errorf("erofs: %s: %q is no name of 1 to 255 bytes", dir.path, k.Name)
	}
	if old := k.Node.laid; old != nil {
		if old.kind() == tree.TypeDir {
			return fmt.Errorf("erofs: %s: %q: a directory with two names", dir.path, k.Name)
		}
		old.nlink++
		return nil
	}
	if fileTypes[k.Node.Mode&tree.TypeMask] == 0 || k.Node.Mode&^(tree.TypeMask|0o7777) != 0 {
		return fmt.Errorf("erofs: %s: mode %#o has no known file type", k.Name, k.Node.Mode)
	}
	n, err := im.add(k.Name, k.Node, nil)
	if err != nil {
		return err
	}
	k.Node.laid = n
	if n.kind() == tree.TypeDir {
		return im.addKids(k.Node, n, dir)
	}
	return nil
}
