package registry

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/plinth-os/plinth/internal/ctxio"
)

// maxMembers bounds how many headers of a tar are read.
const maxMembers = 1 << 16

// An archive is a tar of a layout. Its headers are read once, when it is opened;
// where its members lie does not change after that.
type archive struct {
	r  File
	at map[string]member
}

// A member is a file of the tar.
type member struct{ offset, size int64 }

// A File is what an archive is in.
type File interface {
	io.ReaderAt
	io.Closer
}

// OpenArchive opens a tar: of a file, or of a device that is larger than the tar.
// The layout closes r. No member but those that a layout has is looked at; among
// them there is nothing but files, each once and by one spelling.
func OpenArchive(ctx context.Context, r File, size int64) (*Layout, error) {
	a := &archive{r: r, at: map[string]member{}}
	if err := a.scan(io.NewSectionReader(ctxio.ReaderAt(ctx, r), 0, size)); err != nil {
		return nil, fmt.Errorf("tar: %w", err)
	}
	return newLayout(a)
}

// scan notes where the members lie. It seeks over what they hold, and fails where
// one ends behind the end of r.
func (a *archive) scan(r *io.SectionReader) error {
	t := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("member %d: %w", n, err)
		}
		if n >= maxMembers {
			return fmt.Errorf("more than %d members", maxMembers)
		}
		at, err := r.Seek(0, io.SeekCurrent) // the reader takes whole headers and no more
		if err != nil {
			return err
		}
		if err := a.add(h, at); err != nil {
			return fmt.Errorf("member %d: %.200q: %w", n, h.Name, err)
		}
	}
}

// wanted are the files of a layout.
var wanted = regexp.MustCompile(`^(?:oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)

func (a *archive) add(h *tar.Header, at int64) error {
	name := path.Clean(h.Name)
	if !wanted.MatchString(name) {
		return nil
	}
	_, twice := a.at[name]
	switch {
	case strings.TrimPrefix(h.Name, "./") != name:
		return fmt.Errorf("want it written as %q", name)
	case h.Typeflag != tar.TypeReg || sparse(h):
		return fmt.Errorf("type %q: want a file that is not sparse", h.Typeflag)
	case twice:
		return fmt.Errorf("there twice")
	}
	a.at[name] = member{at, h.Size}
	return nil
}

// sparse tells whether what a member holds is not the file itself: GNU tar, "Sparse
// Formats".
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	m, ok := a.at[name]
	if !ok {
		return nil, 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(io.NewSectionReader(a.r, m.offset, m.size)), m.size, nil
}

func (a *archive) Close() error { return a.r.Close() }
