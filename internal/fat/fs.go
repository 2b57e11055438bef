package fat

import (
	"io"
	"io/fs"
	"slices"
	"sort"
	"strings"
	"time"
)

// An FS is an open volume, read-only. Names are found in any case. Files
// implement io.ReaderAt and io.Seeker. Its methods may be called at once from
// many goroutines if the reader's may.
type FS struct {
	Bits     int    // 12, 16 or 32
	VolumeID uint32 // serial number; 0 where there is none
	Label    string // of the root directory

	r    io.ReaderAt
	g    *geometry
	root *item
}

var _ fs.ReadDirFS = (*FS)(nil)

func (f *FS) find(op, name string) (*item, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	it := f.root
	if name == "." {
		return it, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if it = it.children[fold(part)]; it == nil { // a file has no children
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	return it, nil
}

// Open opens a file or directory. It fails when the chain of a file's clusters
// is too short, leaves the volume or loops.
func (f *FS) Open(name string) (fs.File, error) {
	it, err := f.find("open", name)
	if err != nil {
		return nil, err
	}
	if it.dir {
		return &openDir{item: it, rest: it.list()}, nil
	}
	size := int64(it.entry.Size)
	ext, err := f.extents(it.entry.cluster(), f.g.clustersOf(size), int64(f.g.clusters))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &openFile{io.NewSectionReader(&content{f, ext}, 0, size), it}, nil
}

// ReadDir returns the entries of a directory, sorted by name.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	it, err := f.find("readdir", name)
	if err != nil {
		return nil, err
	}
	if !it.dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrInvalid}
	}
	return it.list(), nil
}

func (it *item) list() []fs.DirEntry {
	list := make([]fs.DirEntry, 0, len(it.children))
	for _, c := range it.children {
		list = append(list, fs.FileInfoToDirEntry(info{c}))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list
}

// content reads a file along its extents.
type content struct {
	f   *FS
	ext []extent
}

func (c *content) ReadAt(b []byte, off int64) (int, error) {
	done := 0
	i := sort.Search(len(c.ext), func(i int) bool { return c.ext[i].at > off }) - 1
	for ; done < len(b) && i >= 0 && i < len(c.ext); i++ {
		e := c.ext[i]
		skip := off + int64(done) - e.at
		left := int64(e.count)*int64(c.f.g.clusterSize) - skip
		part := b[done:min(int64(len(b)), int64(done)+left)]
		n, err := c.f.r.ReadAt(part, c.f.g.clusterOffset(e.first)+skip)
		done += n
		if n < len(part) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return done, err
		}
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}

type openFile struct {
	*io.SectionReader
	item *item
}

func (f *openFile) Stat() (fs.FileInfo, error) { return info{f.item}, nil }
func (f *openFile) Close() error               { return nil }

type openDir struct {
	item *item
	rest []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return info{d.item}, nil }
func (d *openDir) Close() error               { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.item.name, Err: fs.ErrInvalid}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		n = len(d.rest)
	} else if len(d.rest) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.rest))
	list := d.rest[:n]
	d.rest = d.rest[n:]
	return list, nil
}

// info is an item as fs.FileInfo. Permissions are those of a read-only volume.
type info struct{ it *item }

func (i info) Name() string       { return i.it.name }
func (i info) Size() int64        { return int64(i.it.entry.Size) }
func (i info) IsDir() bool        { return i.it.dir }
func (i info) Sys() any           { return nil }
func (i info) ModTime() time.Time { return decodeTime(i.it.entry.WriteDate, i.it.entry.WriteTime) }

func (i info) Mode() fs.FileMode {
	if i.it.dir {
		return fs.ModeDir | 0o555
	}
	return 0o444
}
