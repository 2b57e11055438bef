package source

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/ctxio"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/internal/xz"
)

// An Unpacked is the data archive of a .deb, unpacked into the store as one blob;
// its members are ranges of that blob. A kernel package has thousands of files,
// and one sync is faster than thousands.
type Unpacked struct {
	Data    cas.Ref  `json:"data"`
	Members []Member `json:"members"` // sorted by path
}

// A Member is one name in a .deb.
type Member struct {
	Path   string `json:"path"` // as fs.ValidPath has it; "." is the root
	Mode   uint32 `json:"mode"` // st_mode, type bits included
	UID    uint32 `json:"uid,omitempty"`
	GID    uint32 `json:"gid,omitempty"`
	Offset int64  `json:"offset,omitempty"` // of a file's content in the blob
	Size   int64  `json:"size,omitempty"`   // bytes
	Target string `json:"target,omitempty"` // of a symbolic link
	Link   string `json:"link,omitempty"`   // path of the member that this is a hard link of
}

const (
	maxControl    = 16 << 20  // unpacked control archive, bytes
	maxWindow     = 128 << 20 // of zstd, bytes
	maxJobs       = 4         // each needs twice the dictionary, with dpkg's defaults 18 MiB
	maxDebMembers = 1 << 20
	// unpackVersion changes when the same .deb gives another Unpacked.
	unpackVersion = "deb data 1 "
)

// UnpackDeb unpacks the .deb file that the store holds as deb, or returns what an
// earlier call left there. limit bounds the unpacked data archive, in bytes.
func UnpackDeb(ctx context.Context, st *cas.Store, deb cas.Ref, limit int64) (*Unpacked, error) {
	return unpackOnce(ctx, st, unpackVersion, deb, (*Unpacked).data, func(r *io.SectionReader) (*Unpacked, error) {
		u, err := unpackDeb(ctx, st, r, r.Size(), limit)
		if err != nil {
			return nil, fmt.Errorf("source: package %s: %w", deb.Digest.Short(), err)
		}
		return u, nil
	})
}

func (u *Unpacked) data() cas.Ref { return u.Data }

// unpackOnce returns what an earlier call made of a blob and left in the store, or
// makes it. version says what it is; data is the blob that it refers to.
func unpackOnce[T any](ctx context.Context, st *cas.Store, version string, blob cas.Ref, data func(*T) cas.Ref, unpack func(*io.SectionReader) (*T, error)) (*T, error) {
	key := cas.Sum([]byte(version + blob.Digest.String()))
	unlock, err := st.Lock(ctx, "unpack "+blob.Digest.String())
	if err != nil {
		return nil, err
	}
	defer unlock()
	var t T
	if b, err := st.LoadResult(key); err == nil && json.Unmarshal(b, &t) == nil && st.Holds(data(&t)) {
		return &t, nil
	}
	f, err := st.Open(blob)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing is lost
	made, err := unpack(io.NewSectionReader(f, 0, blob.Size))
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(made)
	if err != nil {
		return nil, err
	}
	return made, st.SaveResult(key, b)
}

func unpackDeb(ctx context.Context, st *cas.Store, r io.ReaderAt, size, limit int64) (*Unpacked, error) {
	d, err := readDeb(r, size)
	if err != nil {
		return nil, err
	}
	w, err := st.Create()
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	n, err := d.data.expand(ctx, w.File(), limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.data.name, err)
	}
	members, err := listTar(io.NewSectionReader(w.File(), 0, n))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.data.name, err)
	}
	ref, err := w.Commit(ctx)
	return &Unpacked{Data: ref, Members: members}, err
}

// A debFile is a .deb opened, deb(5).
type debFile struct {
	control, data debArchive
}

// A debArchive is control.tar or data.tar with the extension of its compression.
type debArchive struct {
	name string
	data *io.SectionReader
}

// readDeb finds the parts of a .deb, which must be in the order that deb(5) gives.
func readDeb(r io.ReaderAt, size int64) (*debFile, error) {
	members, err := readAr(r, size)
	if err != nil {
		return nil, err
	}
	// deb(5) lets members whose names start with an underscore stand anywhere.
	members = slices.DeleteFunc(members, func(m arMember) bool { return strings.HasPrefix(m.name, "_") })
	if len(members) < 3 || members[0].name != "debian-binary" ||
		!strings.HasPrefix(members[1].name, "control.tar") || !strings.HasPrefix(members[2].name, "data.tar") {
		return nil, errors.New("not a .deb: want members debian-binary, control.tar, data.tar")
	}
	var version [2]byte
	if _, err := members[0].data.ReadAt(version[:], 0); err != nil || string(version[:]) != "2." {
		return nil, fmt.Errorf("format version %q: want 2.x", version)
	}
	return &debFile{control: debArchive(members[1]), data: debArchive(members[2])}, nil
}

// expand writes the tar into w from offset 0 and returns its size.
func (a debArchive) expand(ctx context.Context, w io.WriterAt, limit int64) (int64, error) {
	r := ctxio.Reader(ctx, a.data)
	switch path.Ext(a.name) {
	case ".xz":
		return xz.Decode(ctx, w, a.data, a.data.Size(), xz.Limits{Size: limit, Jobs: min(runtime.GOMAXPROCS(0), maxJobs)})
	case ".gz":
		z, err := gzip.NewReader(r)
		if err != nil {
			return 0, err
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return 0, err
		}
		defer z.Close()
		r = z
	case ".tar":
	default:
		return 0, fmt.Errorf("compression %q is not supported", path.Ext(a.name))
	}
	n, err := io.Copy(io.NewOffsetWriter(w, 0), io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = &xz.LimitError{Limit: limit}
	}
	return n, err
}

// growing is a WriterAt in memory, for writers that respect a limit.
type growing []byte

func (g *growing) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(*g) {
		*g = append(*g, make([]byte, end-len(*g))...)
	}
	return copy((*g)[off:], p), nil
}

// listTar lists the members of a tar file and where their content lies.
func listTar(r *io.SectionReader) ([]Member, error) {
	t := tar.NewReader(r)
	var members []Member
	seen := map[string]bool{}
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(members) == maxDebMembers {
			return nil, fmt.Errorf("more than %d members", maxDebMembers)
		}
		m, err := member(h)
		if err == nil && m.Link != "" && !seen[m.Link] {
			err = fmt.Errorf("hard link to %q, which does not come before it", m.Link)
		}
		if err == nil && seen[m.Path] {
			err = errors.New("occurs twice")
		}
		if err != nil {
			return nil, fmt.Errorf("member %.200q: %w", h.Name, err)
		}
		seen[m.Path] = true
		if m.Size > 0 {
			// archive/tar leaves the reader at the content of the member.
			m.Offset, err = r.Seek(0, io.SeekCurrent)
			if err != nil || m.Size > r.Size()-m.Offset {
				return nil, fmt.Errorf("member %.200q: truncated", h.Name)
			}
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Path, b.Path) })
	return members, nil
}

var tarTypes = map[byte]uint32{
	tar.TypeReg: tree.TypeFile, tar.TypeLink: tree.TypeFile,
	tar.TypeDir: tree.TypeDir, tar.TypeSymlink: tree.TypeSymlink,
}

// member translates a tar header. Devices and sparse files have no place in a
// package.
func member(h *tar.Header) (Member, error) {
	kind, ok := tarTypes[h.Typeflag]
	for k := range h.PAXRecords {
		ok = ok && !strings.HasPrefix(k, "GNU.sparse.")
	}
	if !ok {
		return Member{}, fmt.Errorf("type %q is not supported", h.Typeflag)
	}
	name, err := memberPath(h.Name)
	if err != nil {
		return Member{}, err
	}
	if h.Uid < 0 || h.Uid > 1<<31 || h.Gid < 0 || h.Gid > 1<<31 {
		return Member{}, fmt.Errorf("owner %d:%d is out of bounds", h.Uid, h.Gid)
	}
	m := Member{Path: name, Mode: kind | uint32(h.Mode&0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid)}
	switch h.Typeflag {
	case tar.TypeReg:
		m.Size = h.Size
	case tar.TypeSymlink:
		m.Target = h.Linkname
	case tar.TypeLink:
		m.Link, err = memberPath(h.Linkname)
	}
	return m, err
}

// memberPath turns "./usr/" into "usr". It refuses absolute paths and "..".
func memberPath(name string) (string, error) {
	p := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if p == "" && name == "./" {
		p = "."
	}
	if !fs.ValidPath(p) {
		return "", fmt.Errorf("path %.200q leaves the package or is not clean", name)
	}
	return p, nil
}
