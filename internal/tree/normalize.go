package tree

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Normalize returns the entries sorted by the bytes of their paths, the root
// first, with every missing parent added as a directory of root's with mode
// 0755. A parent therefore always precedes what it holds. A hard link takes
// mode, owner and attributes from the entry that it names, as it is the same
// file.
//
// It refuses paths that fs.ValidPath refuses, duplicates, entries without a
// known type, entries below something that is no directory, and links whose
// target is absent, is a directory or is a link itself. No entries stay none.
func Normalize(entries []Entry) ([]Entry, error) {
	at := make(map[string]Entry, len(entries)+1)
	for _, e := range entries {
		if err := check(&e); err != nil {
			return nil, err
		}
		if _, dup := at[e.Path]; dup {
			return nil, fmt.Errorf("tree: %s: named twice", e.Path)
		}
		at[e.Path] = e
	}
	if err := addParents(at, entries); err != nil {
		return nil, err
	}
	out := make([]Entry, 0, len(at))
	for _, e := range at {
		if e.Link != "" {
			var err error
			if e, err = resolveLink(at, e); err != nil {
				return nil, err
			}
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return Compare(a.Path, b.Path) })
	return out, nil
}

// Compare orders paths as Normalize does: by bytes, the root first.
func Compare(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == ".":
		return -1
	case b == ".":
		return 1
	}
	return strings.Compare(a, b)
}

func check(e *Entry) error {
	if !fs.ValidPath(e.Path) || strings.ContainsRune(e.Path, 0) {
		return fmt.Errorf("tree: path %q: want a clean path that is relative and slash-separated", e.Path)
	}
	if e.Path == "." && e.Type() != TypeDir {
		return fmt.Errorf("tree: root: mode is %#o, want a directory", e.Mode)
	}
	if e.Link != "" {
		return nil // the mode is the target's
	}
	switch e.Type() {
	case TypeFile, TypeDir, TypeCharDev, TypeBlkDev, TypeFIFO, TypeSocket:
	case TypeSymlink:
		if e.Target == "" || strings.ContainsRune(e.Target, 0) {
			return fmt.Errorf("tree: %s: symbolic link to %q", e.Path, e.Target)
		}
	default:
		return fmt.Errorf("tree: %s: mode %#o has no known file type", e.Path, e.Mode)
	}
	if e.Mode&^(TypeMask|0o7777) != 0 {
		return fmt.Errorf("tree: %s: mode %#o has unknown bits", e.Path, e.Mode)
	}
	return nil
}

func addParents(at map[string]Entry, entries []Entry) error {
	for _, e := range entries {
		for p := e.Path; p != "."; {
			p = path.Dir(p)
			dir, ok := at[p]
			if !ok {
				at[p] = Dir(p, 0o755)
				continue
			}
			if dir.Link != "" || dir.Type() != TypeDir {
				return fmt.Errorf("tree: %s: %s is no directory", e.Path, p)
			}
			break // its own parents are there already or come with its turn
		}
	}
	return nil
}

func resolveLink(at map[string]Entry, e Entry) (Entry, error) {
	target, ok := at[e.Link]
	switch {
	case !ok:
		return e, fmt.Errorf("tree: %s: hard link to %s, which is not in the tree", e.Path, e.Link)
	case target.Link != "":
		return e, fmt.Errorf("tree: %s: hard link to %s, which is a hard link itself", e.Path, e.Link)
	case target.Type() == TypeDir:
		return e, fmt.Errorf("tree: %s: hard link to directory %s", e.Path, e.Link)
	}
	target.Path, target.Link, target.Content = e.Path, e.Link, Blob{}
	return target, nil
}
