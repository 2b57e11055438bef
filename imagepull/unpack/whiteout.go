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

var errNoName = errors.New("whiteout without a name")

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

func newWhiteout(parent, base string, s *Stats) (*record, error) {
	name := strings.TrimPrefix(base, whiteoutPrefix)
	switch {
	case name == "" || name == "." || name == "..":
		return nil, errNoName
	case base == whiteoutOpaque:
		s.Whiteouts++
		return &record{kind: kindOpaque, name: parent}, nil
	case strings.HasPrefix(base, whiteoutMeta):
		return &record{kind: kindNote, name: parent}, nil
	}
	s.Whiteouts++
	return &record{kind: kindWhiteout, name: join(parent, name)}, nil
}

// whiteout removes what lower layers brought. Where the directory is missing it
// has nothing to do: another whiteout may have been there.
func (t *Tree) whiteout(r *record) error {
	dirName, base := r.name, ""
	if r.kind == kindWhiteout {
		dirName, base = split(r.name)
	}
	d, err := t.resolve(dirName, false)
	if err != nil || d == nil {
		return err
	}
	switch r.kind {
	case kindNote:
		return nil
	case kindOpaque:
		t.clear(d)
		return nil
	}
	if len(base) > nameMax {
		return at("remove", join(d.path(), base), unix.ENAMETOOLONG)
	}
	t.hide(d, base)
	return nil
}

// hide removes name from d. What this layer brought stays, and of a directory
// that holds some of it, this.
func (t *Tree) hide(d *dir, name string) {
	e, ok := d.kids[name]
	switch {
	case !ok:
	case e.layer != t.layer:
		delete(d.kids, name)
	case e.dir != nil:
		t.clear(e.dir)
	}
}

// clear removes what lower layers brought into d. That is done once a layer:
// what comes later is this layer's own.
func (t *Tree) clear(d *dir) {
	if d.cleared == t.layer {
		return
	}
	d.cleared = t.layer
	for name := range d.kids {
		t.hide(d, name)
	}
}
