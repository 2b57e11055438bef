package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
)

const (
	maxEntries = 1 << 16 // files and directories of a volume
	maxDepth   = 64      // directories in each other
)

// An item is a file or directory of a volume that was opened.
type item struct {
	name     string
	dir      bool
	entry    dirEntry // of the root: empty
	children map[string]*item
}

func (e *dirEntry) cluster() uint32 { return uint32(e.ClusterHigh)<<16 | uint32(e.ClusterLow) }

// loader reads all directories of a volume.
type loader struct {
	f     *FS
	used  map[uint32]bool // first clusters of directory extents
	count int
}

func (f *FS) load(rootCluster uint32) error {
	f.root = &item{name: ".", dir: true}
	l := &loader{f: f, used: map[uint32]bool{}}
	var b []byte
	var err error
	if f.g.bits == 32 {
		b, err = l.clusters(rootCluster)
	} else {
		b = make([]byte, f.g.rootEntries*entrySize)
		err = readFull(f.r, b, f.g.rootOffset())
	}
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	return l.dir(f.root, "", b, 0)
}

// clusters returns the content of the directory that starts at cluster c. Every
// cluster may belong to one directory only: no directory contains itself, and
// the work is bounded by the size of the volume.
func (l *loader) clusters(c uint32) ([]byte, error) {
	g := l.f.g
	ext, err := l.f.extents(c, -1, max(1, g.clustersOf(maxDirEntries*entrySize)))
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, e := range ext {
		for c := e.first; c < e.first+e.count; c++ {
			if l.used[c] {
				return nil, fmt.Errorf("cluster %d belongs to two directories", c)
			}
			l.used[c] = true
		}
		part := make([]byte, int64(e.count)*int64(g.clusterSize))
		if err := readFull(l.f.r, part, g.clusterOffset(e.first)); err != nil {
			return nil, err
		}
		b = append(b, part...)
	}
	return b, nil
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	_, err := io.ReadFull(io.NewSectionReader(r, off, int64(len(b))), b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// dir reads the entries in b, and the directories among them, into parent.
func (l *loader) dir(parent *item, path string, b []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d directories deep", path, maxDepth)
	}
	items, err := l.entries(b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	parent.children = make(map[string]*item, len(items))
	for _, it := range items {
		if l.count++; l.count > maxEntries {
			return fmt.Errorf("more than %d files", maxEntries)
		}
		if parent.children[fold(it.name)] != nil {
			return fmt.Errorf("%s: %q is there twice", path, it.name)
		}
		parent.children[fold(it.name)] = it
		if !it.dir {
			continue
		}
		sub := path + "/" + it.name
		b, err := l.clusters(it.entry.cluster())
		if err != nil {
			return fmt.Errorf("%s: %w", sub, err)
		}
		if err := l.dir(it, sub, b, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// entries decodes a directory, and keeps the volume's label.
func (l *loader) entries(b []byte) ([]*item, error) {
	var items []*item
	var long longName
	for ; len(b) >= entrySize && b[0] != 0; b = b[entrySize:] {
		var e dirEntry
		binary.Decode(b, binary.LittleEndian, &e)
		switch {
		case b[0] == 0xe5: // free
			long = longName{}
			continue
		case e.Attr&attrLongMask == attrLong:
			long.add(b)
			continue
		case e.Attr&attrVolume != 0:
			l.f.Label = strings.TrimRight(string(e.Name[:]), " ")
			long = longName{}
			continue
		}
		name := long.take(e.Name)
		if e.Name == pack(".", "") || e.Name == pack("..", "") {
			continue
		}
		if name == "" {
			name = decodeShort(e.Name, e.Case)
		}
		if !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "/\\\x00") {
			return nil, fmt.Errorf("name %q", name)
		}
		items = append(items, &item{name: name, dir: e.Attr&attrDirectory != 0, entry: e})
	}
	return items, nil
}

// longName collects the parts of a long name. Parts that do not fit together
// are dropped, as the specification wants it: the short name then counts.
type longName struct {
	units []uint16
	next  uint8 // order that the next part must have; 0 when complete
	sum   uint8
}

func (n *longName) add(b []byte) {
	var e longEntry
	binary.Decode(b, binary.LittleEndian, &e)
	order := e.Order &^ lastLong
	if e.Order&lastLong != 0 {
		*n = longName{next: order, sum: e.Checksum}
	}
	if order == 0 || order > maxLongEntries || order != n.next || e.Checksum != n.sum {
		*n = longName{}
		return
	}
	part := append(append(append(make([]uint16, 0, unitsPerEntry), e.Name1[:]...), e.Name2[:]...), e.Name3[:]...)
	n.units = append(part, n.units...)
	n.next--
}

// take returns the collected name if it belongs to short, and forgets it.
func (n *longName) take(short [11]byte) string {
	defer func() { *n = longName{} }()
	if n.next != 0 || n.sum != checksum(short) {
		return ""
	}
	units := n.units
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return string(utf16.Decode(units))
}
