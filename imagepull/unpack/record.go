package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The kinds of records. The letters are those that files of a layer hold.
const (
	kindFile     = 'f'
	kindDir      = 'd'
	kindSymlink  = 'l'
	kindHardLink = 'h'
	kindChar     = 'c'
	kindBlock    = 'b'
	kindFIFO     = 'p'
	kindWhiteout = 'w' // of name
	kindOpaque   = 'o' // name is the directory
	kindNote     = 'n' // a note of a union file system; name is its directory, the way to which has an end
	kindNothing  = '-' // an entry that means nothing
)

// A record is what one entry of a tar says, names cleaned.
type record struct {
	kind byte
	name string // "" is the root

	mode         uint32 // permissions
	uid, gid     uint32
	sec          int64 // of the modification, since 1970
	nsec         uint32
	attrs        map[string][]byte
	target       string // of a link
	major, minor uint32

	size  int64
	runs  []run  // where in the file there is data
	first uint32 // block of the layer's content at which it begins
}

// A run is some blocks of zeros that are nowhere, and the data behind them. The
// data of a file's runs, and of a layer's files, follow one another.
type run struct{ hole, data uint32 } // blocks

// Linux has 12 bits for a major and 20 for a minor number.
const (
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

const (
	permissions = 0o7777
	// maxFile is as much as block numbers can count, in bytes.
	maxFile = math.MaxUint32 * BlockSize
)

// newRecord is what a header says, but for the runs of a file; the name of a
// header decides alone when it is a whiteout's.
func newRecord(h *tar.Header, l *Limits, s *Stats) (*record, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return &record{kind: kindNothing}, checkGlobal(h)
	}
	name := clean(h.Name)
	if err := checkName("name", name, l); err != nil {
		return nil, err
	}
	parent, base := split(name)
	if skip, err := reserved(parent); skip || err != nil {
		return &record{kind: kindNothing}, err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return newWhiteout(parent, base, s)
	}
	return entryRecord(name, h, l, s)
}

func entryRecord(name string, h *tar.Header, l *Limits, s *Stats) (*record, error) {
	r := &record{kind: kinds[h.Typeflag], name: name}
	switch {
	case r.kind == 0 && name != "":
		return nil, fmt.Errorf("type %q is not supported", h.Typeflag)
	case r.kind == kindHardLink: // all but the name is that of the other name
		r.target = clean(h.Linkname)
		return r, r.check(l)
	}
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return nil, fmt.Errorf("owner %d:%d: want 0 to %d", h.Uid, h.Gid, uint32(math.MaxUint32-1))
	}
	r.mode, r.uid, r.gid = uint32(h.Mode&permissions), uint32(h.Uid), uint32(h.Gid)
	r.sec, r.nsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	switch r.kind {
	case kindFile:
		r.size = h.Size
	case kindSymlink:
		r.target, r.mode = h.Linkname, 0o777
	case kindChar, kindBlock:
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return nil, fmt.Errorf("device %d:%d: want at most %d:%d", h.Devmajor, h.Devminor, maxMajor, maxMinor)
		}
		r.major, r.minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	r.attrs = attributes(h, s)
	if err := r.normalize(); err != nil {
		return nil, err
	}
	return r, r.check(l)
}

var kinds = map[byte]byte{
	tar.TypeReg: kindFile, tar.TypeGNUSparse: kindFile, tar.TypeDir: kindDir, tar.TypeLink: kindHardLink, tar.TypeSymlink: kindSymlink,
	tar.TypeChar: kindChar, tar.TypeBlock: kindBlock, tar.TypeFifo: kindFIFO,
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

// check is what holds for every record, whoever made it. That its name is clean
// and that no part of it is a whiteout's, newRecord and decoder have seen to.
func (r *record) check(l *Limits) error {
	if err := checkName("name", r.name, l); err != nil {
		return err
	}
	if r.name == "" && r.kind != kindDir && r.kind != kindOpaque && r.kind != kindNote && r.kind != kindNothing {
		return errors.New("the root of the tree is a directory")
	}
	switch r.kind {
	case kindFile:
		if r.size < 0 || r.size > maxFile {
			return &LimitError{"bytes of a file", r.size, maxFile}
		}
	case kindHardLink:
		if r.target == "" {
			return errors.New("hard link to the root of the tree")
		}
		if clean(r.target) != r.target {
			return fmt.Errorf("link target %q is not clean", r.target)
		}
		return checkName("link target", r.target, l)
	case kindSymlink:
		if r.target == "" {
			return errors.New("link without a target")
		}
		return checkName("link target", r.target, l)
	}
	return nil
}

// clean is name beneath the root, "" for the root itself. ".." counts as text
// and never leads above the root.
func clean(name string) string { return path.Clean("/" + name)[1:] }

// split is a clean name's directory and last part.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// join is the name of what is in a directory; "" is the root.
func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// checkName refuses what no path may be.
func checkName(what, name string, l *Limits) error {
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%s holds a NUL", what)
	}
	return checkLen(what, len(name), l)
}

func checkLen(what string, n int, l *Limits) error {
	if n > l.PathLen {
		return &LimitError{"length of the " + what, int64(n), int64(l.PathLen)}
	}
	return nil
}

// at says what was tried, and where.
func at(what, path string, err unix.Errno) error {
	if path == "" {
		path = "."
	}
	return fmt.Errorf("%s %q: %w", what, path, err)
}
