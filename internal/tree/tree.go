// Package tree is a file tree as plain values: what goes into an initrd, an ESP
// or a root file system. An entry has no times, because an image has one.
package tree

import (
	"bytes"
	"io"
)

// File types, as in st_mode; inode(7).
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeCharDev = 0o020000
	TypeDir     = 0o040000
	TypeBlkDev  = 0o060000
	TypeFile    = 0o100000
	TypeSymlink = 0o120000
	TypeSocket  = 0o140000
)

// A Blob is the content of a file. Open may be called any number of times and
// gives Size bytes each time; the caller closes what it got.
type Blob struct {
	Size   int64 // bytes
	Open   func() (io.ReadCloser, error)
	Digest [32]byte // SHA-256 where it is known, else zero: equal ones are equal content
}

// Bytes returns a blob over b, which must not change afterwards.
func Bytes(b []byte) Blob {
	return Blob{Size: int64(len(b)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

// An Entry is one name in a tree.
type Entry struct {
	Path         string // as fs.ValidPath has it; "." is the root
	Mode         uint32 // st_mode, type bits included
	UID, GID     uint32
	Major, Minor uint32            // of a device node
	Target       string            // of a symbolic link
	Link         string            // path of the entry that this is a hard link of, "" for none
	Xattrs       map[string][]byte // by full name, "security.capability"
	Content      Blob              // of a regular file that is no hard link
}

// Type returns the type bits of the mode.
func (e *Entry) Type() uint32 { return e.Mode & TypeMask }

// File returns a regular file of root's.
func File(path string, perm uint32, b Blob) Entry {
	return Entry{Path: path, Mode: TypeFile | perm, Content: b}
}

// Dir returns a directory of root's.
func Dir(path string, perm uint32) Entry {
	return Entry{Path: path, Mode: TypeDir | perm}
}

// Symlink returns a symbolic link of root's.
func Symlink(path, target string) Entry {
	return Entry{Path: path, Mode: TypeSymlink | 0o777, Target: target}
}

// CharDev returns a character device node of root's.
func CharDev(path string, perm, major, minor uint32) Entry {
	return Entry{Path: path, Mode: TypeCharDev | perm, Major: major, Minor: minor}
}
