package newc

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// Params is what else shapes an archive.
type Params struct {
	MTime int64 // seconds since 1970, of every member; 0 to 2^32-1
}

// Write writes an archive of the entries, in their order, to w. Normalised
// entries (tree.Normalize) unpack in that order; Write checks no more of the
// tree than the format needs. The archive's length is a multiple of 4, so that
// another may follow.
//
// Inode numbers run from 1. The link count is 1, for directories too; the names
// of a hard-linked file share the inode and carry their number, and the last of
// them carries the data, as GNU cpio does it. Numbers are in lower case but for
// the trailer: for a directory and a file these are the bytes that
// systemd-stub generates and measures (src/boot/cpio.c).
//
// It refuses what the format or Linux cannot store: extended attributes, files
// of 4 GiB and more, names and link targets above 4095 bytes, a blob whose
// length is not its Size.
func Write(w io.Writer, entries []tree.Entry, p Params) error {
	if p.MTime < 0 || p.MTime > math.MaxUint32 {
		return fmt.Errorf("newc: time %d: want 0 to %d seconds", p.MTime, uint32(math.MaxUint32))
	}
	inodes, err := number(entries)
	if err != nil {
		return err
	}
	bw := bufio.NewWriterSize(w, 64<<10)
	for i := range entries {
		e := &entries[i]
		node := inodes[nodeOf(e)]
		h := header{Ino: node.ino, NLink: node.names, Mode: e.Mode, UID: e.UID, GID: e.GID, MTime: uint32(p.MTime)}
		var data tree.Blob
		if node.last == i {
			data = node.data
		}
		if err := writeMember(bw, h, e, data); err != nil {
			return fmt.Errorf("newc: %s: %w", e.Path, err)
		}
	}
	// The upper-case name size is systemd-stub's.
	fmt.Fprintf(bw, "%s%032x%08x%048x%08X%08x%s\x00\x00\x00\x00", magic, 0, 1, 0, len(trailer)+1, 0, trailer)
	return bw.Flush()
}

// An inode is one file, of one or more names.
type inode struct {
	ino, names uint32
	last       int // index of the last name
	data       tree.Blob
}

// nodeOf returns the path under which the file of e is numbered.
func nodeOf(e *tree.Entry) string {
	if e.Link != "" {
		return e.Link
	}
	return e.Path
}

func number(entries []tree.Entry) (map[string]*inode, error) {
	inodes := make(map[string]*inode, len(entries))
	primary := make(map[string]bool, len(entries))
	next := uint32(1)
	for i := range entries {
		e := &entries[i]
		node := inodes[nodeOf(e)]
		if node == nil {
			node = &inode{ino: next}
			next++
			inodes[nodeOf(e)] = node
		}
		node.names++
		node.last = i
		if e.Link != "" {
			continue
		}
		if primary[e.Path] {
			return nil, fmt.Errorf("newc: %s: named twice", e.Path)
		}
		primary[e.Path] = true
		switch e.Type() {
		case tree.TypeFile:
			node.data = e.Content
		case tree.TypeSymlink:
			node.data = tree.Bytes([]byte(e.Target))
		}
	}
	for i := range entries {
		if e := &entries[i]; e.Link != "" && !primary[e.Link] {
			return nil, fmt.Errorf("newc: %s: hard link to %s, which is not in the archive", e.Path, e.Link)
		}
	}
	return inodes, nil
}

func writeMember(w *bufio.Writer, h header, e *tree.Entry, data tree.Blob) error {
	switch {
	case e.Path == "" || e.Path == trailer || strings.ContainsRune(e.Path, 0):
		return fmt.Errorf("name %q cannot be stored", e.Path)
	case len(e.Path) >= maxName:
		return fmt.Errorf("name has %d bytes: want at most %d", len(e.Path), maxName-1)
	case e.Type() == tree.TypeSymlink && len(e.Target) >= maxName:
		return fmt.Errorf("link target has %d bytes: want at most %d", len(e.Target), maxName-1)
	case len(e.Xattrs) > 0:
		return fmt.Errorf("has extended attributes, which the format cannot store")
	case data.Size < 0 || data.Size > math.MaxUint32:
		return fmt.Errorf("size is %d bytes: want at most %d", data.Size, uint32(math.MaxUint32))
	}
	h.FileSize = uint32(data.Size)
	h.NameSize = uint32(len(e.Path) + 1)
	if t := e.Type(); t == tree.TypeCharDev || t == tree.TypeBlkDev {
		h.RDevMajor, h.RDevMinor = e.Major, e.Minor
	}
	w.WriteString(magic) // a bufio.Writer keeps its first error
	for _, f := range h.fields() {
		fmt.Fprintf(w, "%08x", *f)
	}
	w.WriteString(e.Path)
	w.Write(zeros[:1+padding(headerSize+int64(h.NameSize))])
	if err := data.Copy(w); err != nil {
		return err
	}
	_, err := w.Write(zeros[:padding(data.Size)])
	return err
}

var zeros [4]byte
