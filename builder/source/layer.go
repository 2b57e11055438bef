package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/tree"
)

// A Layer is a layer of a container image, unpacked into the store as one blob;
// its members are ranges of that blob: OCI Image Format Specification, "Image
// Layer Filesystem Changeset".
type Layer struct {
	Data    cas.Ref       `json:"data"`
	Members []LayerMember `json:"members"` // sorted by path
}

// A LayerMember is one name in a layer.
type LayerMember struct {
	Member
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
	// Problem says why the member can be in no image. It counts only where the
	// member is wanted.
	Problem string `json:"problem,omitempty"`
}

const (
	maxLayerMembers = 1 << 20
	maxReplaced     = 64        // each costs a look at all members
	maxLayerNames   = 256 << 20 // paths, targets and attributes of all members, bytes
	maxPath         = 4096      // PATH_MAX, Linux, include/uapi/linux/limits.h
	xattrRecord     = "SCHILY.xattr."
	// layerVersion changes when the same layer gives another Layer.
	layerVersion = "layer 1 "
)

// UnpackLayer unpacks the layer that the store holds as blob, or returns what an
// earlier call left there. limit bounds the unpacked layer, in bytes.
func UnpackLayer(ctx context.Context, st *cas.Store, blob cas.Ref, limit int64) (*Layer, error) {
	return unpackOnce(ctx, st, layerVersion, blob, (*Layer).data, func(r *io.SectionReader) (*Layer, error) {
		l, err := unpackLayer(ctx, st, r, limit)
		if err != nil {
			return nil, fmt.Errorf("source: layer sha256:%s: %w", blob.Digest.Short(), err)
		}
		return l, nil
	})
}

func (l *Layer) data() cas.Ref { return l.Data }

func unpackLayer(ctx context.Context, st *cas.Store, blob *io.SectionReader, limit int64) (*Layer, error) {
	packed, err := packedLayer(blob)
	if err != nil {
		return nil, err
	}
	w, err := st.Create()
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	n, err := packed.expand(ctx, w.File(), limit)
	if err != nil {
		return nil, err
	}
	members, err := listLayer(io.NewSectionReader(w.File(), 0, n))
	if err != nil {
		return nil, err
	}
	ref, err := w.Commit(ctx)
	return &Layer{ref, members}, err
}

// packings are how compressed files begin: RFC 1952, RFC 8878, the .xz File Format.
var packings = []struct{ magic, ext string }{
	{"\x1f\x8b", ".gz"},
	{"\x28\xb5\x2f\xfd", ".zst"},
	{"\xfd7zXZ\x00", ".xz"},
}

// packedLayer tells by its first bytes how a layer is packed: media types differ
// from tool to tool.
func packedLayer(blob *io.SectionReader) (debArchive, error) {
	head := make([]byte, 6)
	n, err := blob.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return debArchive{}, err
	}
	for _, p := range packings {
		if bytes.HasPrefix(head[:n], []byte(p.magic)) {
			return debArchive{"layer.tar" + p.ext, blob}, nil
		}
	}
	return debArchive{"layer.tar", blob}, nil
}

// listLayer lists the members of a layer and where their content lies. Of two by
// one name the later one counts.
func listLayer(r *io.SectionReader) ([]LayerMember, error) {
	t := tar.NewReader(r)
	at, linked := map[string]int{}, map[string]bool{}
	var members []LayerMember
	names, replaced := 0, 0
	for headers := 0; ; headers++ {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader && headers < maxLayerMembers {
			continue // says something of the archive
		}
		m, err := layerMember(h)
		if err != nil {
			return nil, fmt.Errorf("member %.200q: %w", h.Name, err)
		}
		if names += m.length(); headers == maxLayerMembers || names > maxLayerNames {
			return nil, fmt.Errorf("more than %d members or %d bytes of names", maxLayerMembers, maxLayerNames)
		}
		if m.Size > 0 {
			// archive/tar leaves the reader at the content of the member.
			m.Offset, err = r.Seek(0, io.SeekCurrent)
			if err != nil || m.Size > r.Size()-m.Offset {
				return nil, fmt.Errorf("member %.200q: truncated", h.Name)
			}
		}
		if m.Link != "" {
			linked[m.Link] = true
		}
		if i, ok := at[m.Path]; ok {
			if linked[m.Path] {
				if replaced++; replaced > maxReplaced {
					return nil, fmt.Errorf("member %.200q: more than %d members that hard links lead to are there again", h.Name, maxReplaced)
				}
				keepLinked(members, i)
				delete(linked, m.Path)
			}
			members[i] = m
			continue
		}
		at[m.Path] = len(members)
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b LayerMember) int { return strings.Compare(a.Path, b.Path) })
	return members, nil
}

// keepLinked gives what is linked to member i its content, before another one comes
// by that name: a link leads to a file, not to a name.
func keepLinked(members []LayerMember, i int) {
	first := ""
	for j := range members {
		l := &members[j]
		switch {
		case l.Link != members[i].Path:
		case first == "":
			first = l.Path
			*l = members[i]
			l.Path = first
		default:
			l.Link = first
		}
	}
}

func (m *LayerMember) length() int {
	n := len(m.Path) + len(m.Target) + len(m.Link)
	for k, v := range m.Xattrs {
		n += len(k) + len(v)
	}
	return n
}

// layerMember translates a tar header. Only a path that leaves the layer is an
// error: what else is wrong may be in a part of the layer that nobody wants.
func layerMember(h *tar.Header) (LayerMember, error) {
	name, err := layerPath(h.Name)
	if err != nil {
		return LayerMember{}, err
	}
	m := LayerMember{Member: Member{Path: name, Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid)}}
	kind, ok := tarTypes[h.Typeflag]
	m.Mode |= kind
	for k, v := range h.PAXRecords {
		ok = ok && !strings.HasPrefix(k, "GNU.sparse.")
		if attr, found := strings.CutPrefix(k, xattrRecord); found {
			if m.Xattrs == nil {
				m.Xattrs = map[string][]byte{}
			}
			m.Xattrs[attr] = []byte(v)
			ok = ok && utf8.ValidString(attr)
		}
	}
	switch {
	case !ok:
		m.Problem = fmt.Sprintf("type %q with attributes %q is not supported", h.Typeflag, slices.Sorted(maps.Keys(h.PAXRecords)))
	case strings.HasPrefix(path.Base(name), ".wh."):
		m.Problem = "deletes a file of a lower layer, which is not supported"
	case h.Uid < 0 || h.Uid > 1<<31 || h.Gid < 0 || h.Gid > 1<<31:
		m.Problem = fmt.Sprintf("owner %d:%d is out of bounds", h.Uid, h.Gid)
	case h.Typeflag == tar.TypeReg:
		m.Size = h.Size
	case h.Typeflag == tar.TypeSymlink:
		m.Target = h.Linkname
		if m.Target == "" || len(m.Target) >= maxPath || !utf8.ValidString(m.Target) {
			m.Problem = fmt.Sprintf("symbolic link to %.200q", h.Linkname)
		}
	case h.Typeflag == tar.TypeLink:
		m.Link, err = layerPath(h.Linkname)
	}
	return m, err
}

var errLeaves = errors.New("leaves the layer")

// layerPath turns "./usr/" into "usr". Tools write paths in many ways; absolute
// ones and those with ".." are refused.
func layerPath(name string) (string, error) {
	if path.IsAbs(name) || slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("path %.200q: %w", name, errLeaves)
	}
	p, err := memberPath(path.Clean(name))
	if name == "" || len(p) >= maxPath {
		err = fmt.Errorf("path %.200q: want 1 to %d bytes", name, maxPath-1)
	}
	return p, err
}

// member returns the member at a path.
func (l *Layer) member(name string) (*LayerMember, bool) {
	i, ok := slices.BinarySearchFunc(l.Members, name, func(m LayerMember, p string) int { return strings.Compare(m.Path, p) })
	if !ok {
		return nil, false
	}
	return &l.Members[i], true
}

// Entries returns what is wanted of the layer as tree entries whose content is
// read from the store. place tells for a path in the layer whether it is wanted
// and where it goes. A hard link to what is not wanted becomes a file of its own.
func (l *Layer) Entries(st *cas.Store, place func(path string) (string, bool)) ([]tree.Entry, error) {
	var entries []tree.Entry
	names := map[string]string{} // where a file's content went, by its path in the layer
	var links []tree.Entry
	for i := range l.Members {
		m := &l.Members[i]
		to, ok := place(m.Path)
		if !ok {
			continue
		}
		if m.Problem != "" {
			return nil, fmt.Errorf("source: layer: %s: %s", m.Path, m.Problem)
		}
		if m.Link != "" {
			links = append(links, tree.Entry{Path: to, Link: m.Link})
			continue
		}
		names[m.Path] = to
		entries = append(entries, l.entry(st, m, to))
	}
	for _, e := range links {
		target, err := l.file(e.Link)
		if err != nil {
			return nil, fmt.Errorf("source: layer: %s: %w", e.Path, err)
		}
		if to, ok := names[target.Path]; ok {
			entries = append(entries, tree.Entry{Path: e.Path, Link: to})
			continue
		}
		names[target.Path] = e.Path
		entries = append(entries, l.entry(st, target, e.Path))
	}
	return entries, nil
}

// file returns the file that a hard link leads to.
func (l *Layer) file(name string) (*LayerMember, error) {
	for range maxLinks {
		m, ok := l.member(name)
		switch {
		case !ok:
			return nil, fmt.Errorf("hard link to %s, which is not in the layer", name)
		case m.Problem != "":
			return nil, fmt.Errorf("hard link to %s: %s", name, m.Problem)
		case m.Mode&tree.TypeMask == tree.TypeDir:
			return nil, fmt.Errorf("hard link to %s, a directory", name)
		case m.Link == "":
			return m, nil
		}
		name = m.Link
	}
	return nil, fmt.Errorf("hard link through more than %d others", maxLinks)
}

func (l *Layer) entry(st *cas.Store, m *LayerMember, to string) tree.Entry {
	e := tree.Entry{Path: to, Mode: m.Mode, UID: m.UID, GID: m.GID, Target: m.Target, Xattrs: m.Xattrs}
	if m.Mode&tree.TypeMask == tree.TypeFile {
		u := Unpacked{Data: l.Data}
		e.Content = tree.Blob{Size: m.Size, Open: func() (io.ReadCloser, error) { return u.reader(st, m.Member) }}
	}
	return e
}
