package newc

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// Limits bounds what Read takes. A zero field stands for its default.
type Limits struct {
	Entries int   // members; default 1<<20
	Bytes   int64 // data of all members together; default 1 GiB
}

// Read reads one archive from r, up to and including the trailer and the zeros
// that fill it to a multiple of 4. It returns the members in their order with
// names made relative ("/a" and "./a" are "a"), and file data held in memory.
// Names that share an inode become hard links to the first of them. Times are
// dropped. The entries are not normalised: a foreign archive may name a path
// twice, and Linux then takes the last.
func Read(r io.Reader, lim Limits) ([]tree.Entry, error) {
	if lim.Entries == 0 {
		lim.Entries = 1 << 20
	}
	if lim.Bytes == 0 {
		lim.Bytes = 1 << 30
	}
	d := reader{r: r, left: lim.Bytes, first: map[link]int{}}
	for {
		done, err := d.member()
		if err != nil {
			return nil, fmt.Errorf("newc: offset %#x: %w", d.start, err)
		}
		if done {
			return d.entries, nil
		}
		if len(d.entries) > lim.Entries {
			return nil, fmt.Errorf("newc: offset %#x: more than %d members", d.start, lim.Entries)
		}
	}
}

// A link identifies a file that may have several names.
type link struct{ ino, major, minor uint32 }

type reader struct {
	r       io.Reader
	start   int64 // offset of the member being read
	off     int64 // bytes read
	left    int64 // data bytes that the limit leaves
	entries []tree.Entry
	first   map[link]int // index of the first name
}

// member reads one member and reports whether it was the trailer.
func (d *reader) member() (done bool, err error) {
	d.start = d.off
	b, err := d.next(headerSize)
	if err != nil {
		return false, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return false, err
	}
	if h.NameSize < 2 || h.NameSize > maxName {
		return false, fmt.Errorf("name size is %d: want 2 to %d", h.NameSize, maxName)
	}
	b, err = d.next(int64(h.NameSize))
	if err != nil {
		return false, err
	}
	name, _, _ := strings.Cut(string(b), "\x00")
	if len(name) != len(b)-1 {
		return false, fmt.Errorf("name %q: want one NUL, at its end", b)
	}
	pad := padding(headerSize + int64(h.NameSize))
	if name == trailer {
		if h.FileSize != 0 {
			return false, fmt.Errorf("trailer has %d bytes of data", h.FileSize)
		}
		if _, err = d.next(pad); err == io.ErrUnexpectedEOF {
			err = nil // some writers stop right after the name, and Linux is content
		}
		return true, err
	}
	if _, err := d.next(pad); err != nil {
		return false, err
	}
	if int64(h.FileSize) > d.left {
		return false, fmt.Errorf("%s: %d bytes of data: the limit leaves %d", name, h.FileSize, d.left)
	}
	d.left -= int64(h.FileSize)
	data, err := d.next(int64(h.FileSize))
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	if _, err := d.next(padding(int64(h.FileSize))); err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return false, d.add(name, h, data)
}

// next reads n bytes. Beyond the first MiB memory grows with what r really holds,
// not with n.
func (d *reader) next(n int64) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(int(min(n, 1<<20)))
	m, err := io.CopyN(&b, d.r, n)
	d.off += m
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b.Bytes(), err
}

func parseHeader(b []byte) (header, error) {
	var h header
	if string(b[:len(magic)]) != magic {
		return h, fmt.Errorf("magic is %q: want %q", b[:len(magic)], magic)
	}
	for i, f := range h.fields() {
		digits := string(b[len(magic)+8*i:][:8])
		v, err := strconv.ParseUint(digits, 16, 32)
		if err != nil {
			return h, fmt.Errorf("header field %d is %q: want 8 hexadecimal digits", i, digits)
		}
		*f = uint32(v)
	}
	return h, nil
}

// add appends a member as an entry.
func (d *reader) add(name string, h header, data []byte) error {
	e := tree.Entry{Path: clean(name), Mode: h.Mode, UID: h.UID, GID: h.GID}
	if !fs.ValidPath(e.Path) {
		return fmt.Errorf("name %q is no path within the archive", name)
	}
	switch e.Type() {
	case tree.TypeFile:
		e.Content = tree.Bytes(data)
	case tree.TypeSymlink:
		e.Target = string(data)
	case tree.TypeCharDev, tree.TypeBlkDev:
		e.Major, e.Minor = h.RDevMajor, h.RDevMinor
	case tree.TypeDir, tree.TypeFIFO, tree.TypeSocket:
	default:
		return fmt.Errorf("%s: mode %#o has no known file type", name, h.Mode)
	}
	if e.Type() != tree.TypeFile && e.Type() != tree.TypeSymlink && len(data) > 0 {
		return fmt.Errorf("%s: mode %#o with %d bytes of data", name, h.Mode, len(data))
	}
	if e.Type() != tree.TypeDir && h.NLink > 1 {
		d.join(&e, link{h.Ino, h.DevMajor, h.DevMinor})
	}
	d.entries = append(d.entries, e)
	return nil
}

// join makes e a hard link when its file has a name already. The data comes
// with any of the names; Linux lets the last that has some win.
func (d *reader) join(e *tree.Entry, l link) {
	i, ok := d.first[l]
	if !ok {
		d.first[l] = len(d.entries)
		return
	}
	first := &d.entries[i]
	if e.Type() != first.Type() {
		return
	}
	if e.Content.Size > 0 {
		first.Content = e.Content
	}
	e.Link, e.Content, e.Mode, e.UID, e.GID = first.Path, tree.Blob{}, first.Mode, first.UID, first.GID
	e.Major, e.Minor, e.Target = first.Major, first.Minor, first.Target
}

// clean makes the name of a member relative: Linux unpacks in its root.
func clean(name string) string {
	for {
		s := strings.TrimPrefix(strings.TrimLeft(name, "/"), "./")
		if s == name {
			break
		}
		name = s
	}
	if name = strings.TrimRight(name, "/"); name == "" {
		return "."
	}
	return name
}
