package fat

import (
	"fmt"
	"math"
	"path"

	"github.com/plinth-os/plinth/internal/tree"
)

// A node is a file or directory to be written.
type node struct {
	entry    *tree.Entry
	parent   *node
	children []*node
	short    [11]byte
	long     []uint16
	slots    int    // of a directory: its entries
	first    uint32 // cluster; 0 of an empty file
	count    uint32 // clusters
}

func (n *node) isDir() bool { return n.entry.Type() == tree.TypeDir }

// size is in bytes, of a directory what its entries take.
func (n *node) size() int64 {
	if n.isDir() {
		return int64(n.slots) * entrySize
	}
	return n.entry.Content.Size
}

// plan returns the nodes of a tree, the root first, every directory before what
// it holds. Clusters are not yet given out.
func plan(entries []tree.Entry, label bool) ([]*node, error) {
	entries, err := tree.Normalize(entries)
	if err != nil {
		return nil, fmt.Errorf("fat: %w", err)
	}
	if len(entries) == 0 {
		entries = []tree.Entry{tree.Dir(".", 0o755)}
	}
	nodes := make([]*node, len(entries))
	at := make(map[string]*node, len(entries))
	for i := range entries {
		e := &entries[i]
		if err := checkEntry(e); err != nil {
			return nil, fmt.Errorf("fat: %s: %w", e.Path, err)
		}
		n := &node{entry: e, parent: at[path.Dir(e.Path)]}
		nodes[i], at[e.Path] = n, n
		if i > 0 {
			n.parent.children = append(n.parent.children, n)
		}
	}
	for _, n := range nodes {
		if !n.isDir() {
			continue
		}
		if err := n.nameChildren(); err != nil {
			return nil, fmt.Errorf("fat: %s: %w", n.entry.Path, err)
		}
		if n.parent != nil {
			n.slots += 2 // "." and ".."
		} else if label {
			n.slots++
		}
		if n.slots > maxDirEntries {
			return nil, fmt.Errorf("fat: %s: %d directory entries: want at most %d", n.entry.Path, n.slots, maxDirEntries)
		}
	}
	return nodes, nil
}

func checkEntry(e *tree.Entry) error {
	switch {
	case e.Link != "" || len(e.Xattrs) > 0 || e.Type() != tree.TypeDir && e.Type() != tree.TypeFile:
		return fmt.Errorf("FAT holds directories and regular files without hard links and extended attributes")
	case e.Content.Size < 0 || e.Content.Size > math.MaxUint32:
		return fmt.Errorf("size is %d bytes: FAT allows at most %d", e.Content.Size, uint32(math.MaxUint32))
	case e.Path == ".":
		return nil
	}
	return checkName(path.Base(e.Path))
}

func (n *node) nameChildren() error {
	if len(n.children) > maxDirEntries {
		return fmt.Errorf("%d names: want at most %d directory entries", len(n.children), maxDirEntries)
	}
	names := make([]string, len(n.children))
	seen := make(map[string]string, len(n.children))
	for i, c := range n.children {
		names[i] = path.Base(c.entry.Path)
		if other, dup := seen[fold(names[i])]; dup {
			return fmt.Errorf("names %q and %q differ only in case", other, names[i])
		}
		seen[fold(names[i])] = names[i]
	}
	shorts := shorten(names)
	for i, c := range n.children {
		c.short, c.long = shorts[i], longUnits(names[i], shorts[i])
		n.slots += 1 + (len(c.long)+unitsPerEntry-1)/unitsPerEntry
	}
	return nil
}

// allocate gives out contiguous clusters in the order of the nodes and returns
// how many that takes.
func (g *geometry) allocate(nodes []*node) (used int64) {
	for _, n := range nodes {
		want := g.clustersOf(n.size())
		if n.isDir() {
			want = max(want, 1)
		}
		if n.parent == nil && g.bits != 32 {
			want = 0 // in its own place
		}
		n.first, n.count = 0, uint32(want)
		if want > 0 {
			n.first = uint32(firstCluster + used)
		}
		used += want
	}
	return used
}

// Size returns the size in bytes of the smallest FAT32 volume of whole MiB that
// holds the entries and a label.
func Size(entries []tree.Entry) (int64, error) {
	nodes, err := plan(entries, true)
	if err != nil {
		return 0, err
	}
	for size := int64(MinFAT32); size <= maxSize; size += 1 << 20 {
		g, err := layout(size)
		if err != nil {
			return 0, err
		}
		if g.allocate(nodes) <= int64(g.clusters) {
			return size, nil
		}
	}
	return 0, fmt.Errorf("fat: no volume of up to %d bytes holds the files", int64(maxSize))
}
