package source

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/tree"
)

// DebFS is the content of a .deb as a file system. Its files are also
// io.ReaderAt and io.Seeker. Symbolic links are followed when a path ends in one
// and stay inside the package; ReadDir lists them as links.
type DebFS struct {
	u    *Unpacked
	blob *os.File
}

// Open opens the content in the store. The caller closes it.
func (u *Unpacked) Open(st *cas.Store) (*DebFS, error) {
	f, err := st.Open(u.Data)
	if err != nil {
		return nil, err
	}
	return &DebFS{u, f}, nil
}

func (d *DebFS) Close() error { return d.blob.Close() }

// Section returns the content of the regular file at name, valid until Close.
func (d *DebFS) Section(name string) (*io.SectionReader, error) {
	m, err := d.u.resolve(name)
	if err == nil && m.Mode&tree.TypeMask != tree.TypeFile {
		err = fs.ErrInvalid
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return io.NewSectionReader(d.blob, m.Offset, m.Size), nil
}

// Open implements fs.FS.
func (d *DebFS) Open(name string) (fs.File, error) {
	m, err := d.u.resolve(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	info := memberInfo{m, path.Base(name)}
	if info.IsDir() {
		return &debDir{info: info, entries: d.u.readDir(name)}, nil
	}
	return &debFSFile{io.NewSectionReader(d.blob, m.Offset, m.Size), info}, nil
}

// Lstat implements fs.ReadLinkFS.
func (d *DebFS) Lstat(name string) (fs.FileInfo, error) {
	m, err := d.u.lookup(name)
	if err == nil && m.Link != "" {
		m, err = d.u.resolve(m.Link)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	return memberInfo{m, path.Base(name)}, nil
}

// ReadLink implements fs.ReadLinkFS.
func (d *DebFS) ReadLink(name string) (string, error) {
	m, err := d.u.lookup(name)
	if err == nil && m.Mode&tree.TypeMask != tree.TypeSymlink {
		err = fs.ErrInvalid
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return m.Target, nil
}

// Member returns the member at path itself, a symbolic link included. A
// directory that exists only as the parent of another member is made up, with
// mode 0755.
func (u *Unpacked) Member(name string) (Member, bool) {
	if i, ok := u.search(name); ok {
		return u.Members[i], true
	}
	i, _ := u.search(name + "/")
	if name == "." || i < len(u.Members) && strings.HasPrefix(u.Members[i].Path, name+"/") {
		return Member{Path: name, Mode: tree.TypeDir | 0o755}, true
	}
	return Member{}, false
}

func (u *Unpacked) search(name string) (int, bool) {
	return slices.BinarySearchFunc(u.Members, name, func(m Member, p string) int { return strings.Compare(m.Path, p) })
}

// maxLinks is how many links resolve follows, as Linux's MAXSYMLINKS.
const maxLinks = 40

func (u *Unpacked) lookup(name string) (Member, error) {
	if !fs.ValidPath(name) {
		return Member{}, fs.ErrInvalid
	}
	m, ok := u.Member(name)
	if !ok {
		return Member{}, fs.ErrNotExist
	}
	return m, nil
}

// resolve follows the links that name ends in.
func (u *Unpacked) resolve(name string) (Member, error) {
	for range maxLinks {
		m, err := u.lookup(name)
		switch {
		case err != nil:
			return Member{}, err
		case m.Link != "":
			name = m.Link
		case m.Mode&tree.TypeMask == tree.TypeSymlink && path.IsAbs(m.Target):
			name = path.Join(".", m.Target)
		case m.Mode&tree.TypeMask == tree.TypeSymlink:
			name = path.Join(path.Dir(name), m.Target)
		default:
			return m, nil
		}
	}
	return Member{}, fmt.Errorf("more than %d links", maxLinks)
}

func (u *Unpacked) readDir(dir string) []fs.DirEntry {
	prefix := dir + "/"
	if dir == "." {
		prefix = ""
	}
	start, _ := u.search(prefix)
	var entries []fs.DirEntry
	seen := map[string]bool{".": true}
	for _, m := range u.Members[start:] {
		rest, ok := strings.CutPrefix(m.Path, prefix)
		if !ok {
			break
		}
		name, _, _ := strings.Cut(rest, "/")
		if seen[name] {
			continue
		}
		seen[name] = true
		child, _ := u.Member(prefix + name)
		if child.Link != "" {
			child, _ = u.resolve(child.Link)
		}
		entries = append(entries, fs.FileInfoToDirEntry(memberInfo{child, name}))
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries
}

// Entries returns the members that want accepts, as tree entries whose content
// is read from the store. A nil want accepts all.
func (u *Unpacked) Entries(st *cas.Store, want func(path string) bool) []tree.Entry {
	var entries []tree.Entry
	for _, m := range u.Members {
		if want != nil && !want(m.Path) {
			continue
		}
		e := tree.Entry{Path: m.Path, Mode: m.Mode, UID: m.UID, GID: m.GID, Target: m.Target, Link: m.Link}
		if m.Mode&tree.TypeMask == tree.TypeFile && m.Link == "" {
			e.Content = tree.Blob{Size: m.Size, Open: func() (io.ReadCloser, error) { return u.reader(st, m) }}
		}
		entries = append(entries, e)
	}
	return entries
}

func (u *Unpacked) reader(st *cas.Store, m Member) (io.ReadCloser, error) {
	f, err := st.Open(u.Data)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, m.Offset, m.Size), f}, nil
}

type memberInfo struct {
	m    Member
	name string
}

func (i memberInfo) Name() string       { return i.name }
func (i memberInfo) Size() int64        { return i.m.Size }
func (i memberInfo) ModTime() time.Time { return time.Time{} }
func (i memberInfo) IsDir() bool        { return i.Mode().IsDir() }
func (i memberInfo) Sys() any           { return nil }

func (i memberInfo) Mode() fs.FileMode {
	mode := fs.FileMode(i.m.Mode & 0o777)
	switch i.m.Mode & tree.TypeMask {
	case tree.TypeDir:
		mode |= fs.ModeDir
	case tree.TypeSymlink:
		mode |= fs.ModeSymlink
	}
	return mode
}

type debFSFile struct {
	*io.SectionReader
	info memberInfo
}

func (f *debFSFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *debFSFile) Close() error               { return nil }

type debDir struct {
	info    memberInfo
	entries []fs.DirEntry
}

func (d *debDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *debDir) Close() error               { return nil }
func (d *debDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: fs.ErrInvalid}
}

func (d *debDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.entries)
	} else if len(d.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.entries))
	out := d.entries[:n:n]
	d.entries = d.entries[n:]
	return out, nil
}
