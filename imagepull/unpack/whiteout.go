package unpack

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of whiteouts; OCI image specification, layer.md.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// reserved says whether an entry below parent is a note of a union file system,
// and refuses one below another whiteout's name.
func reserved(parent string) (skip bool, err error) {
	if !strings.Contains(parent, whiteoutPrefix) {
		return false, nil
	}
	for part := range strings.SplitSeq(parent, "/") {
		switch {
		case strings.HasPrefix(part, whiteoutMeta):
			return true, nil
		case strings.HasPrefix(part, whiteoutPrefix):
			return false, fmt.Errorf("directory %q: the name is that of a whiteout", part)
		}
	}
	return false, nil
}

// whiteout removes what lower layers brought. Where the directory is missing it
// has nothing to do: another whiteout may have been there.
func (t *Tree) whiteout(parent, base string) error {
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return errors.New("whiteout without a name")
	}
	d, err := t.resolve(parent, false)
	if err != nil || d == nil {
		return err
	}
	if base != whiteoutOpaque && strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	t.stats.Whiteouts++
	d.pins++
	defer func() { d.pins-- }()
	if base == whiteoutOpaque {
		return t.clear(d)
	}
	return t.hide(d, name)
}

// hide removes name from d. What this layer brought stays, and of a directory
// that holds some of it, this.
func (t *Tree) hide(d *dir, name string) error {
	if !t.marked(d, name) {
		return t.remove(d, name)
	}
	kid, err := t.open(d, name)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return at2err("open directory", d.join(name), err)
	}
	return t.clear(kid)
}

// clear removes what lower layers brought into d. That is done once a layer:
// what comes later is this layer's own.
func (t *Tree) clear(d *dir) error {
	key := t.hash(d.path, "")
	if _, ok := t.cleared[key]; ok {
		return nil
	}
	t.cleared[key] = struct{}{}
	d.pins++
	defer func() { d.pins-- }()
	return eachName(d.fd, func(name string) error { return t.hide(d, name) })
}
