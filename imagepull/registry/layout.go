package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/internal/ctxio"
)

// Bounds on a layout, besides those of a registry.
const (
	maxIndex     = 4096 // manifests that index.json names
	maxReferrers = 256  // manifests that are read to find those with a subject
)

// A Layout is images in a directory, or in a tar of one: OCI Image Format
// Specification, image-layout.md. Whoever made it is not trusted, and it may change
// while it is read: index.json is read once and says only where to begin; the rest
// has the digest by which it is asked for.
type Layout struct {
	files files
	index v1.Index
}

// files are those of a layout, by slash-separated paths.
type files interface {
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

// OpenDir opens a directory.
func OpenDir(path string) (*Layout, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	l, err := newLayout(directory{root})
	if err != nil {
		_ = root.Close() // nothing was written
	}
	return l, err
}

func newLayout(f files) (*Layout, error) {
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	l := &Layout{files: f}
	if err := l.readJSON(v1.ImageLayoutFile, &version); err != nil {
		return nil, err
	}
	if version.Version != v1.ImageLayoutVersion {
		return nil, fmt.Errorf("%s: version %.100q: want %s", v1.ImageLayoutFile, version.Version, v1.ImageLayoutVersion)
	}
	if err := l.readJSON(v1.ImageIndexFile, &l.index); err != nil {
		return nil, err
	}
	if n := len(l.index.Manifests); n > maxIndex {
		return nil, fmt.Errorf("%s: %d manifests: want at most %d", v1.ImageIndexFile, n, maxIndex)
	}
	return l, nil
}

// Close closes what the layout is in.
func (l *Layout) Close() error { return l.files.Close() }

func (l *Layout) readJSON(name string, v any) error {
	b, err := l.read(name, -1)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// read reads a small file whole, of want bytes; -1: of any size that a manifest may
// have.
func (l *Layout) read(name string, want int64) ([]byte, error) {
	r, size, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if want >= 0 && size != want {
		return nil, fmt.Errorf("%s: %d bytes: want %d", name, size, want)
	}
	if size > maxManifest {
		return nil, fmt.Errorf("%s: %d bytes: want at most %d", name, size, maxManifest)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// Manifest reads one by its digest; its size is compared unless it is -1. Of what
// type one is that does not say so, d says, else index.json.
func (l *Layout) Manifest(d v1.Descriptor) (*Manifest, error) {
	if err := checkBlob(v1.Descriptor{Digest: d.Digest}); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	b, err := l.read(blobPath(d), d.Size)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m := &Manifest{Bytes: b, Digest: digestOf(b)}
	if m.Digest != d.Digest.String() {
		return nil, &DigestError{"manifest " + d.Digest.String(), m.Digest, d.Digest.String()}
	}
	if i := slices.IndexFunc(l.index.Manifests, func(e v1.Descriptor) bool { return e.Digest == d.Digest }); d.MediaType == "" && i >= 0 {
		d.MediaType = l.index.Manifests[i].MediaType
	}
	m.MediaType, err = mediaType(b, d.MediaType)
	return m, err
}

func blobPath(d v1.Descriptor) string {
	return path.Join(v1.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
}

// Blob returns a blob under the rules of Client.Blob.
func (l *Layout) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if err := checkBlob(d); err != nil {
		return nil, err
	}
	r, size, err := l.files.open(blobPath(d))
	if err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	if size != d.Size {
		return nil, errors.Join(fmt.Errorf("blob %s: %d bytes: want %d", d.Digest, size, d.Size), r.Close())
	}
	return &proven{ctxio.Reader(ctx, io.LimitReader(r, size)), r, d, sha256.New(), 0}, nil
}

// A proven reader gives EOF only at the end of what a descriptor describes.
type proven struct {
	io.Reader
	io.Closer
	d    v1.Descriptor
	hash hash.Hash
	at   int64
}

func (p *proven) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.hash.Write(b[:n])
	p.at += int64(n)
	if err != io.EOF {
		return n, err
	}
	if p.at != p.d.Size {
		return n, fmt.Errorf("blob %s: %d of %d bytes: %w", p.d.Digest, p.at, p.d.Size, io.ErrUnexpectedEOF)
	}
	if got := fmt.Sprintf("sha256:%x", p.hash.Sum(nil)); got != p.d.Digest.String() {
		return n, &DigestError{"blob " + p.d.Digest.String(), got, p.d.Digest.String()}
	}
	return n, io.EOF
}

// How cosign marks what it stores in a layout: cosign, pkg/oci/layout.
const (
	cosignKind       = "kind"
	cosignImage      = "dev.cosignproject.cosign/image"
	cosignImageIndex = "dev.cosignproject.cosign/imageIndex"
	cosignSigs       = "dev.cosignproject.cosign/sigs"
	cosignAtts       = "dev.cosignproject.cosign/atts"
)

// beside is what the name of something is that belongs to an image.
var beside = regexp.MustCompile(`(?:^|[:/])sha256-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?$`)

// attached tells whether a descriptor of index.json is of no image but of something
// that belongs to one.
func attached(d v1.Descriptor) bool {
	switch d.Annotations[cosignKind] {
	case cosignImage, cosignImageIndex:
		return false
	case cosignSigs, cosignAtts:
		return true
	}
	return d.ArtifactType != "" && d.ArtifactType != v1.MediaTypeImageConfig || beside.MatchString(d.Annotations[v1.AnnotationRefName])
}

// Image finds an image by its name in index.json; "" is the only one that there is.
func (l *Layout) Image(name string) (v1.Descriptor, error) {
	var found []v1.Descriptor
	var names []string
	for _, d := range l.index.Manifests {
		if name == "" && attached(d) {
			continue
		}
		ref := d.Annotations[v1.AnnotationRefName]
		if name == "" || ref == name {
			found = append(found, d)
		}
		names = append(names, fmt.Sprintf("%.100q", ref))
	}
	switch {
	case len(found) == 0:
		return v1.Descriptor{}, fmt.Errorf("no image %q: there is %s", name, list(names))
	case slices.ContainsFunc(found, func(d v1.Descriptor) bool { return d.Digest != found[0].Digest }):
		return v1.Descriptor{}, fmt.Errorf("%d images %q: want one of %s", len(found), name, list(names))
	}
	return found[0], nil
}

func list(names []string) string {
	const most = 10
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return strings.Join(names[:most], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// Tagged finds what is beside an image by its tag, nil if there is none. Programs
// write the tag alone, or behind a repository; cosign marks signatures without one.
func (l *Layout) Tagged(tag string) (*v1.Descriptor, error) {
	var found *v1.Descriptor
	for i, d := range l.index.Manifests {
		ref := d.Annotations[v1.AnnotationRefName]
		marked := d.Annotations[cosignKind] == cosignSigs && strings.HasSuffix(tag, ".sig")
		if ref != tag && !strings.HasSuffix(ref, ":"+tag) && !marked {
			continue
		}
		if found != nil && found.Digest != d.Digest {
			return nil, fmt.Errorf("%s: two manifests %q", v1.ImageIndexFile, tag)
		}
		found = &l.index.Manifests[i]
	}
	return found, nil
}

// Referrers lists the manifests whose subject has a digest, of one artifact type:
// those that index.json names, and those of an index under the fallback tag.
func (l *Layout) Referrers(digest, artifactType string) ([]v1.Descriptor, error) {
	all := slices.Clone(l.index.Manifests)
	tagged, err := l.Tagged(Tag(digest))
	if err != nil {
		return nil, err
	}
	if tagged != nil {
		m, err := l.Manifest(*tagged)
		if err != nil {
			return nil, fmt.Errorf("referrers: %w", err)
		}
		var index v1.Index
		if err := json.Unmarshal(m.Bytes, &index); err != nil {
			return nil, fmt.Errorf("referrers: %w", err)
		}
		all = append(all, index.Manifests...)
	}
	var out []v1.Descriptor
	read := 0
	for _, d := range all {
		if !IsManifest(d.MediaType) || d.Digest.String() == digest || d.ArtifactType != "" && d.ArtifactType != artifactType ||
			slices.ContainsFunc(out, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
			continue
		}
		if read++; read > maxReferrers {
			return nil, fmt.Errorf("referrers: more than %d manifests to read", maxReferrers)
		}
		refers, err := l.refers(d, digest, artifactType)
		if err != nil {
			return nil, fmt.Errorf("referrers: %w", err)
		}
		if refers {
			out = append(out, d)
		}
	}
	return out, nil
}

func (l *Layout) refers(d v1.Descriptor, digest, artifactType string) (bool, error) {
	m, err := l.Manifest(d)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // a layout need not have all of an index
	}
	if err != nil {
		return false, err
	}
	var v v1.Manifest
	if err := json.Unmarshal(m.Bytes, &v); err != nil {
		return false, fmt.Errorf("%s: %w", d.Digest, err)
	}
	kind := v.ArtifactType
	if kind == "" {
		kind = v.Config.MediaType
	}
	return kind == artifactType && v.Subject != nil && v.Subject.Digest.String() == digest, nil
}

// A directory holds a layout.
type directory struct{ *os.Root }

func (d directory) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO is not waited for
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: %s: want a file", name, fi.Mode())
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, 0, err
	}
	return f, fi.Size(), nil
}
