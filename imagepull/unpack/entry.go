package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// entry does what one header says.
func (t *Tree) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return checkGlobal(h)
	}
	name := clean(h.Name)
	if err := t.checkName("name", name); err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root of the tree is a directory")
		}
		return t.directoryMeta(t.root, h, false)
	}
	parent, base := split(name)
	if skip, err := reserved(parent); skip || err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return t.whiteout(parent, base)
	}
	d, err := t.resolve(parent, true)
	if err != nil {
		return err
	}
	d.pins++
	defer func() { d.pins-- }()
	if err := t.checkRoom(d, base); err != nil {
		return err
	}
	if err := d.touch(); err != nil {
		return at2err("stat", d.path, err)
	}
	if err := t.create(ctx, d, base, h, r); err != nil {
		return err
	}
	t.mark(d, base)
	return nil
}

// checkGlobal takes what "git archive" writes, a comment, and refuses a header
// that would change every entry behind it.
func checkGlobal(h *tar.Header) error {
	for key := range h.PAXRecords {
		if key != "comment" {
			return fmt.Errorf("global header: record %q is not supported", key)
		}
	}
	return nil
}

func (t *Tree) create(ctx context.Context, d *dir, name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.file(ctx, d, name, h, r)
	case tar.TypeDir:
		return t.directory(d, name, h)
	case tar.TypeLink:
		return t.hardLink(d, name, h)
	case tar.TypeSymlink:
		return t.symlink(d, name, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return t.node(d, name, h)
	}
	return fmt.Errorf("type %q is not supported", h.Typeflag)
}

// place makes a new entry by f. Where the name is taken, what stands there goes
// first; that is rarer than not.
func (t *Tree) place(d *dir, name, what string, f func() error) error {
	err := f()
	if errors.Is(err, unix.EEXIST) {
		if err := t.remove(d, name); err != nil {
			return err
		}
		err = f()
	}
	if err != nil {
		return at2err(what, d.join(name), err)
	}
	return nil
}

func (t *Tree) directory(d *dir, name string, h *tar.Header) error {
	kid, fresh := d.kids[name], false
	if kid == nil {
		err := unix.Mkdirat(d.fd, name, 0o700)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return at2err("make directory", d.join(name), err)
		}
		fresh = err == nil
		kid, err = t.open(d, name)
		if errors.Is(err, unix.ENOTDIR) {
			fresh = true
			if kid, err = t.replaceByDirectory(d, name); err != nil {
				return err
			}
		}
		if err != nil {
			return at2err("open directory", d.join(name), err)
		}
	}
	return t.directoryMeta(kid, h, fresh)
}

func (t *Tree) replaceByDirectory(d *dir, name string) (*dir, error) {
	if err := t.remove(d, name); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(d.fd, name, 0o700); err != nil {
		return nil, at2err("make directory", d.join(name), err)
	}
	return t.open(d, name)
}

// hardLink makes name the second name of what an earlier entry, or layer, has
// brought. A last part that is a link is linked itself. The old name goes first,
// so that a link to itself or to something inside it finds nothing.
func (t *Tree) hardLink(d *dir, name string, h *tar.Header) error {
	link := clean(h.Linkname)
	if err := t.checkName("link target", link); err != nil {
		return err
	}
	if link == "" {
		return errors.New("hard link to the root of the tree")
	}
	if err := t.remove(d, name); err != nil {
		return err
	}
	parent, base := split(link)
	ld, err := t.resolve(parent, false)
	if err == nil && ld == nil {
		err = unix.ENOENT
	}
	if err == nil {
		err = unix.Linkat(ld.fd, base, d.fd, name, 0)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", link, err)
	}
	return nil
}

func (t *Tree) symlink(d *dir, name string, h *tar.Header) error {
	if err := t.checkName("link target", h.Linkname); err != nil {
		return err
	}
	if err := t.place(d, name, "make link", func() error { return unix.Symlinkat(h.Linkname, d.fd, name) }); err != nil {
		return err
	}
	return t.meta(d, name, h)
}

// Linux has 12 bits for a major and 20 for a minor number.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

func (t *Tree) node(d *dir, name string, h *tar.Header) error {
	mode, dev := uint32(unix.S_IFIFO), uint64(0)
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return fmt.Errorf("device %d:%d: want at most %d:%d", h.Devmajor, h.Devminor, maxMajor, maxMinor)
		}
		mode, dev = unix.S_IFCHR, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if h.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
	}
	if err := t.place(d, name, "make node", func() error { return unix.Mknodat(d.fd, name, mode|0o600, int(dev)) }); err != nil {
		return err
	}
	return t.meta(d, name, h)
}

func at2err(what, path string, err error) error {
	if path == "" {
		path = "."
	}
	return fmt.Errorf("%s %q: %w", what, path, err)
}
