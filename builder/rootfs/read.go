package rootfs

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// readPackages takes the entries of the packages, in the order of their names.
func (b *build) readPackages(pkgs []Package) error {
	b.links = newLinks()
	sorted := slices.Clone(pkgs)
	slices.SortFunc(sorted, func(x, y Package) int { return strings.Compare(x.Name, y.Name) })
	for i, p := range sorted {
		if i > 0 && sorted[i-1].Name == p.Name {
			return fmt.Errorf("rootfs: package %s: twice, %s and %s", p.Name, sorted[i-1].Version, p.Version)
		}
		c, err := readControl(p)
		if err != nil {
			return fmt.Errorf("rootfs: package %s: %w", p.Name, err)
		}
		known := &pkg{Package: p, control: c}
		b.packages = append(b.packages, known)
		nodes, err := readEntries(p.Entries)
		if err != nil {
			return fmt.Errorf("rootfs: package %s: %w", p.Name, err)
		}
		for _, n := range nodes {
			n.pkg = known
		}
		b.nodes = append(b.nodes, nodes...)
	}
	return nil
}

// readFiles takes the profile's entries.
func (b *build) readFiles(files []tree.Entry) error {
	nodes, err := readEntries(files)
	if err != nil {
		return fmt.Errorf("rootfs: files: %w", err)
	}
	for _, n := range nodes {
		n.profile = true
	}
	b.nodes = append(b.nodes, nodes...)
	return nil
}

// readEntries makes nodes of entries, sorted by path. Hard links get the inode
// of what they name.
func readEntries(entries []tree.Entry) ([]*node, error) {
	named := make(map[string]*node, len(entries))
	nodes := make([]*node, 0, len(entries))
	for _, e := range entries {
		if !fs.ValidPath(e.Path) {
			return nil, fmt.Errorf("path %q: want a clean path that is relative and slash-separated", e.Path)
		}
		if named[e.Path] != nil {
			return nil, fmt.Errorf("%s: named twice", e.Path)
		}
		n := &node{Entry: e}
		if e.Link == "" && e.Type() != tree.TypeDir {
			n.inode = &inode{blob: e.Content}
		}
		named[e.Path] = n
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		if n.Link == "" {
			continue
		}
		target := named[n.Link]
		if target == nil || target.inode == nil {
			return nil, fmt.Errorf("%s: hard link to %s, which is no file here", n.Path, n.Link)
		}
		name := n.Path
		n.Entry, n.inode = target.Entry, target.inode
		n.Path = name
	}
	slices.SortFunc(nodes, func(x, y *node) int { return tree.Compare(x.Path, y.Path) })
	return nodes, nil
}

// exclude drops what the profile leaves out of packages. Copyright files are
// read before, as the bills of materials want them.
func (b *build) exclude() error {
	var patterns []*pattern
	for _, text := range b.params.Exclude {
		p, err := newPattern(text)
		if err != nil {
			return err
		}
		patterns = append(patterns, p)
	}
	if err := b.readCopyrights(); err != nil {
		return err
	}
	var err error
	b.nodes = slices.DeleteFunc(b.nodes, func(n *node) bool {
		if n.pkg == nil {
			return false
		}
		name, e := b.links.place(n.Path)
		if e != nil {
			err = e
		}
		return slices.ContainsFunc(patterns, func(p *pattern) bool { return p.match(name) })
	})
	for _, p := range patterns {
		if !p.used {
			b.note("", "exclude %q: no package has such a file", p.text)
		}
	}
	return err
}

// place gives every node the path that it has in the end, with the symbolic links
// in its parents followed: first those of the merged /usr, then those of the
// packages and the profile.
func (b *build) place() error {
	for _, n := range b.nodes {
		if err := b.mergeUsr(n); err != nil {
			return err
		}
	}
	b.nodes = slices.DeleteFunc(b.nodes, func(n *node) bool { return n.Path == "" })
	for changed := true; changed; {
		changed = false
		for _, n := range b.nodes {
			where, err := b.links.place(n.Path)
			if n.Type() == tree.TypeDir {
				where, err = b.links.resolve(n.Path)
			}
			if err != nil {
				return fmt.Errorf("rootfs: %s: %w", n.owner(), err)
			}
			changed = changed || where != n.Path
			n.Path = where
			if n.Type() == tree.TypeSymlink && b.links[n.Path] == "" && n.Target != "" {
				b.links[n.Path] = n.Target
				changed = true
			}
		}
	}
	return nil
}

// mergeUsr drops a package's own links for the merged /usr: they are made later.
func (b *build) mergeUsr(n *node) error {
	if !slices.Contains(mergedUsr, n.Path) || n.Type() == tree.TypeDir {
		return nil
	}
	if n.Type() != tree.TypeSymlink || path.Join("/", n.Target) != "/usr/"+n.Path {
		return fmt.Errorf("rootfs: %s: /%s: want a directory or a link to usr/%s", n.owner(), n.Path, n.Path)
	}
	n.Path = ""
	return nil
}

func (b *build) note(pkg, format string, args ...any) {
	b.notes = append(b.notes, Note{pkg, fmt.Sprintf(format, args...)})
}
