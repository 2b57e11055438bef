package unpack

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links the kernel follows on the way to a file.
const maxLinks = 40

// A walk follows a name from the root.
type walk struct {
	t       *Tree
	at      *dir
	missing []string // parts behind at that are no directory
	links   int
	steps   int // parts looked at, those of link targets too
}

// resolve finds the directory of a clean name, following links as if the tree
// were the root. A part that is missing, or no directory, is taken as text: a
// ".." of a link takes it away again. With make, missing directories are made;
// else nil says that there is no such directory.
func (t *Tree) resolve(name string, make bool) (*dir, error) {
	w := walk{t: t, at: t.root.dir}
	if err := w.follow(name); err != nil {
		return nil, err
	}
	if len(w.missing) > 0 && !make {
		return nil, nil
	}
	for _, part := range w.missing {
		if err := w.make(part); err != nil {
			return nil, err
		}
	}
	return w.at, nil
}

func (w *walk) follow(rest string) error {
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if w.t.steps++; w.t.steps > maxSteps {
			return &LimitError{"parts of names looked up for a layer", w.t.steps, maxSteps}
		}
		if w.steps++; w.steps > 2*w.t.limits.PathLen {
			return fmt.Errorf("way to the directory: %w", unix.ELOOP)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			w.up()
			continue
		}
		target, err := w.down(part)
		if err != nil {
			return err
		}
		if target == "" {
			continue
		}
		if w.links++; w.links > maxLinks {
			return fmt.Errorf("way to the directory: %w", unix.ELOOP)
		}
		if target[0] == '/' {
			w.at, w.missing = w.t.root.dir, nil // a link is read where nothing is missing
		}
		rest = target + "/" + rest
	}
	return nil
}

func (w *walk) up() {
	switch {
	case len(w.missing) > 0:
		w.missing = w.missing[:len(w.missing)-1]
	case w.at.parent != nil:
		w.at = w.at.parent
	}
}

// down goes into part, or returns the target of the link that stands there.
func (w *walk) down(part string) (target string, err error) {
	if len(w.missing) > 0 {
		w.missing = append(w.missing, part)
		return "", nil
	}
	if len(part) > nameMax {
		return "", at("open directory", join(w.at.path(), part), unix.ENAMETOOLONG)
	}
	n := w.at.kids[part].inode
	switch {
	case n != nil && n.dir != nil:
		w.at = n.dir
	case n != nil && n.target != "":
		return n.target, nil
	default:
		w.missing = append(w.missing, part)
	}
	return "", nil
}

// make makes a directory that no entry has named.
func (w *walk) make(part string) error {
	t, d := w.t, w.at
	if strings.HasPrefix(part, whiteoutPrefix) {
		return fmt.Errorf("directory %q: the name is that of a whiteout", join(d.path(), part))
	}
	if err := t.count(); err != nil {
		return err
	}
	if err := t.checkRoom(d, part); err != nil {
		return err
	}
	if _, taken := d.kids[part]; taken {
		return at("make directory", join(d.path(), part), unix.ENOTDIR) // or the walk had gone into it
	}
	n := newDir(d, strings.Clone(part), 0o755)
	n.inherit(d.node)
	t.put(d, n.name, n)
	t.mark(d)
	w.at = n.dir
	return nil
}

// inherit gives a new directory what the kernel has it take from the one that it
// is made in: the group, and the access list that new entries get.
func (n *inode) inherit(from *inode) {
	if list, ok := from.attrs[aclDefault]; ok {
		acl, err := parseACL(list)
		if err != nil {
			panic(err) // normalize has parsed it
		}
		n.mode = unix.S_IFDIR | acl.restrict(0o777)
		n.attrs = map[string][]byte{aclDefault: list}
		if acl.extended() {
			n.attrs[aclAccess] = acl.bytes()
		}
	}
	if from.mode&unix.S_ISGID != 0 {
		n.mode |= unix.S_ISGID
		n.gid = from.gid
	}
}
