package rootfs

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"github.com/plinth-os/plinth/internal/tree"
)

// merge makes one tree of what packages and profile have.
func (b *build) merge() error {
	diverted, err := b.diversions()
	if err != nil {
		return err
	}
	claims := map[string][]*node{}
	for _, n := range b.nodes { // by package, the profile's last
		if to := diverted[n.Path]; to.by != "" && n.pkg != nil && n.pkg.Name != to.by {
			n.Path = to.path
		}
		claims[n.Path] = append(claims[n.Path], n)
	}
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		n, err := b.choose(claims[name])
		if err != nil {
			return err
		}
		b.put(n)
	}
	b.links = newLinks()
	for name, n := range b.at {
		if n.Type() == tree.TypeSymlink {
			b.links[name] = n.Target
		}
	}
	return nil
}

// choose returns the one of several nodes at a path that the tree gets.
func (b *build) choose(claims []*node) (*node, error) {
	last := claims[len(claims)-1]
	if last.profile {
		if len(claims) > 1 && claims[len(claims)-2].profile {
			return nil, fmt.Errorf("rootfs: /%s: the profile has two files that come to lie there", last.Path)
		}
		return last, nil
	}
	claims = deciding(claims)
	best := claims[0]
	for _, n := range claims[1:] {
		winner, err := better(best, n)
		if err != nil {
			return nil, err
		}
		best = winner
	}
	return best, nil
}

// deciding returns the claims of those whose word counts on a directory: that of
// base-files; else those of packages, where layers have it, too.
func deciding(claims []*node) []*node {
	rank := func(n *node) int {
		switch {
		case n.pkg.Name == basePackage:
			return 0
		case n.pkg.PURL == "":
			return 1
		}
		return 2
	}
	if slices.ContainsFunc(claims, func(n *node) bool { return n.Type() != tree.TypeDir }) {
		return claims
	}
	first := rank(slices.MinFunc(claims, func(x, y *node) int { return rank(x) - rank(y) }))
	return slices.DeleteFunc(slices.Clone(claims), func(n *node) bool { return rank(n) != first })
}

// better decides between the nodes of two packages. Equal ones stay with the
// package that comes first by name.
func better(x, y *node) (*node, error) {
	switch {
	case x.Type() == tree.TypeDir && y.Type() == tree.TypeDir:
		if x.sameAttributes(y) {
			return x, nil
		}
		return nil, fmt.Errorf("rootfs: /%s: package %s has it with mode %04o and owner %d:%d, %s with %04o and %d:%d: say in the profile what it is",
			x.Path, x.pkg.Name, x.Mode&0o7777, x.UID, x.GID, y.pkg.Name, y.Mode&0o7777, y.UID, y.GID)
	case x.equal(y):
		return x, nil
	}
	xy, yx := x.pkg.replaces(y.pkg), y.pkg.replaces(x.pkg)
	switch {
	case xy && !yx:
		return x, nil
	case yx && !xy:
		return y, nil
	}
	return nil, fmt.Errorf("rootfs: /%s: packages %s and %s have different files by this name: exclude it and add the one that is meant to the profile",
		x.Path, x.pkg.Name, y.pkg.Name)
}

func (n *node) sameAttributes(o *node) bool {
	return n.Mode == o.Mode && n.UID == o.UID && n.GID == o.GID && maps.EqualFunc(n.Xattrs, o.Xattrs, bytes.Equal)
}

func (n *node) equal(o *node) bool {
	return n.sameAttributes(o) && n.Target == o.Target && n.Major == o.Major && n.Minor == o.Minor && n.inode.sameContent(o.inode)
}

func (i *inode) sameContent(o *inode) bool {
	return i != nil && o != nil && i.blob.Size == o.blob.Size && i.blob.Digest == o.blob.Digest
}

// put adds a node to the tree or replaces what it has there.
func (b *build) put(n *node) {
	b.at[n.Path] = n
	for at := n.Path; at != "."; {
		dir, name := cut(at)
		if b.kids[dir] == nil {
			b.kids[dir] = map[string]bool{}
		}
		if b.kids[dir][name] {
			return
		}
		b.kids[dir][name] = true
		at = dir
	}
}

// finish makes the tree out of the nodes: names of one inode become hard links of
// the first of them.
func (b *build) finish() (*Tree, error) {
	if err := b.digestGenerated(); err != nil {
		return nil, err
	}
	first := map[*inode]string{}
	var entries []tree.Entry
	for _, name := range slices.Sorted(maps.Keys(b.at)) {
		n := b.at[name]
		e := n.Entry
		if n.inode != nil {
			e.Content = n.inode.blob
			if to, ok := first[n.inode]; ok {
				e.Link, e.Content = to, tree.Blob{}
			} else {
				first[n.inode] = name
			}
		}
		entries = append(entries, e)
	}
	entries, err := tree.Normalize(entries)
	if err != nil {
		return nil, fmt.Errorf("rootfs: %w", err)
	}
	slices.SortFunc(b.notes, func(x, y Note) int {
		return slices.Compare([]string{x.Package, x.Text}, []string{y.Package, y.Text})
	})
	return &Tree{Entries: entries, Inventory: b.inventory(), Notes: slices.Compact(b.notes)}, nil
}
