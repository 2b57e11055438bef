package tree

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"time"
)

// FS gives entries as a read-only file system, for code that walks or reads a
// tree. Missing parents are made up, as Normalize does; links are not followed.
func FS(entries []Entry) fs.FS {
	t := treeFS{nodes: map[string]*node{".": {Entry: Dir(".", 0o755)}}}
	for _, e := range entries {
		t.add(e)
	}
	for _, n := range t.nodes {
		sort.Slice(n.children, func(i, j int) bool { return n.children[i].Path < n.children[j].Path })
	}
	return t
}

type treeFS struct{ nodes map[string]*node }

type node struct {
	Entry
	children []*node
}

func (t treeFS) add(e Entry) *node {
	if n, ok := t.nodes[e.Path]; ok {
		n.Entry = e
		return n
	}
	n := &node{Entry: e}
	t.nodes[e.Path] = n
	dir := path.Dir(e.Path)
	parent, ok := t.nodes[dir]
	if !ok {
		parent = t.add(Dir(dir, 0o755))
	}
	parent.children = append(parent.children, n)
	return n
}

func (t treeFS) Open(name string) (fs.File, error) {
	n, ok := t.nodes[name]
	if !ok || !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	f := &treeFile{node: n}
	if n.Type() == TypeFile && n.Link == "" {
		r, err := n.Content.Open()
		if err != nil {
			return nil, fmt.Errorf("tree: %s: %w", name, err)
		}
		f.r = r
	}
	return f, nil
}

// ReadDir saves opening a directory only to list it.
func (t treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, ok := t.nodes[name]
	if !ok || n.Type() != TypeDir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	return n.list(), nil
}

func (n *node) list() []fs.DirEntry {
	out := make([]fs.DirEntry, len(n.children))
	for i, c := range n.children {
		out[i] = fs.FileInfoToDirEntry(info{c})
	}
	return out
}

type treeFile struct {
	*node
	r    io.ReadCloser
	next int
}

func (f *treeFile) Stat() (fs.FileInfo, error) { return info{f.node}, nil }

func (f *treeFile) Read(p []byte) (int, error) {
	if f.r == nil {
		return 0, &fs.PathError{Op: "read", Path: f.Path, Err: fs.ErrInvalid}
	}
	return f.r.Read(p)
}

func (f *treeFile) ReadDir(n int) ([]fs.DirEntry, error) {
	rest := f.list()[f.next:]
	if n <= 0 {
		f.next += len(rest)
		return rest, nil
	}
	if len(rest) == 0 {
		return nil, io.EOF
	}
	rest = rest[:min(n, len(rest))]
	f.next += len(rest)
	return rest, nil
}

func (f *treeFile) Close() error {
	if f.r == nil {
		return nil
	}
	return f.r.Close()
}

type info struct{ n *node }

func (i info) Name() string       { return path.Base(i.n.Path) }
func (i info) Size() int64        { return i.n.Content.Size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.n.Type() == TypeDir }
func (i info) Sys() any           { return &i.n.Entry }

func (i info) Mode() fs.FileMode {
	m := fs.FileMode(i.n.Entry.Mode & 0o777)
	switch i.n.Type() {
	case TypeDir:
		m |= fs.ModeDir
	case TypeSymlink:
		m |= fs.ModeSymlink
	case TypeFile:
	case TypeFIFO:
		m |= fs.ModeNamedPipe
	case TypeSocket:
		m |= fs.ModeSocket
	case TypeCharDev:
		m |= fs.ModeDevice | fs.ModeCharDevice
	default:
		m |= fs.ModeDevice
	}
	return m
}
