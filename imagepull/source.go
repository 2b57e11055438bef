package imagepull

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
)

// A Source is where one image is, and its signatures. What was asked for by its
// digest has that digest.
type Source interface {
	// Manifest returns one by its digest; by "" the one that the image's name means.
	Manifest(ctx context.Context, digest string) (*registry.Manifest, error)
	// Tagged returns the manifest beside the image that has a tag, nil if none has.
	Tagged(ctx context.Context, tag string) (*registry.Manifest, error)
	// Referrers lists the manifests of an artifact type whose subject has a digest.
	Referrers(ctx context.Context, digest, artifactType string) ([]v1.Descriptor, error)
	// Blob returns a whole blob, of which the first n bytes are taken from have,
	// what an earlier pull left; they may also be read anew. It gives EOF only when
	// size and digest over all are those of the descriptor, a *registry.DigestError
	// where the digest is not. With n of 0 have may be nil.
	Blob(ctx context.Context, d v1.Descriptor, have io.Reader, n int64) (io.ReadCloser, error)
	Close() error
}

// A File is an oci-archive: a file, or the device of a disk that begins with one.
type File interface {
	io.ReaderAt
	io.Closer
	Size() (int64, error) // bytes
}

// Source opens what a name leads to. The caller closes it.
func (p *Puller) Source(ctx context.Context, n policy.Name) (Source, error) {
	switch n.Transport {
	case policy.Docker:
		return &remote{p.Registry, n.Ref}, nil
	case policy.OCI:
		l, err := registry.OpenDir(n.Path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		return &local{l, n}, nil
	case policy.OCIArchive:
		l, err := p.openArchive(ctx, n.Path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n, err)
		}
		return &local{l, n}, nil
	}
	return nil, fmt.Errorf("%s: unknown transport", n)
}

func (p *Puller) openArchive(ctx context.Context, path string) (*registry.Layout, error) {
	open := p.OpenFile
	if open == nil {
		open = openFile
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err == nil {
		var l *registry.Layout
		if l, err = registry.OpenArchive(ctx, f, size); err == nil {
			return l, nil
		}
	}
	_ = f.Close() // nothing was written
	return nil, err
}

// A localFile is one of the host's.
type localFile struct{ *os.File }

func openFile(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return localFile{f}, nil
}

// Size works on block devices, too.
func (f localFile) Size() (int64, error) { return f.Seek(0, io.SeekEnd) }

// A remote image is in a registry.
type remote struct {
	client *registry.Client
	ref    reference.Named
}

func (r *remote) Manifest(ctx context.Context, d string) (*registry.Manifest, error) {
	if d == "" {
		return r.client.Manifest(ctx, r.ref)
	}
	ref, err := reference.WithDigest(reference.TrimNamed(r.ref), digest.Digest(d))
	if err != nil {
		return nil, fmt.Errorf("manifest %.100q: %w", d, err)
	}
	return r.client.Manifest(ctx, ref)
}

func (r *remote) Tagged(ctx context.Context, tag string) (*registry.Manifest, error) {
	ref, err := reference.WithTag(reference.TrimNamed(r.ref), tag)
	if err != nil {
		return nil, err
	}
	m, err := r.client.Manifest(ctx, ref)
	if registry.NotFound(err) {
		return nil, nil
	}
	return m, err
}

func (r *remote) Referrers(ctx context.Context, digest, artifactType string) ([]v1.Descriptor, error) {
	return r.client.Referrers(ctx, reference.TrimNamed(r.ref), digest, artifactType)
}

func (r *remote) Blob(ctx context.Context, d v1.Descriptor, have io.Reader, n int64) (io.ReadCloser, error) {
	body, err := r.client.Resume(ctx, r.ref, d, have, n)
	if err != nil {
		return nil, err
	}
	return &fetching{body, d.Size}, nil
}

// A fetching reader tells bytes that did not come from bytes that are wrong.
type fetching struct {
	io.ReadCloser
	left int64 // bytes, as the manifest says
}

func (f *fetching) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	f.left -= int64(n)
	if err != nil && err != io.EOF && f.left > 0 {
		err = &FetchError{err}
	}
	return n, err
}

func (r *remote) Close() error { return nil }

// A local image is in a layout. Nothing of it is kept from an earlier pull: to read
// it again costs nothing.
type local struct {
	layout *registry.Layout
	name   policy.Name
}

func (l *local) Manifest(_ context.Context, d string) (*registry.Manifest, error) {
	m, err := l.manifest(d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.name, err)
	}
	m.From = l.name.String()
	return m, nil
}

func (l *local) manifest(d string) (*registry.Manifest, error) {
	if d == "" {
		d = l.name.Digest
	}
	if d != "" {
		return l.layout.Manifest(v1.Descriptor{Digest: digest.Digest(d), Size: -1})
	}
	found, err := l.layout.Image(l.name.Image)
	if err != nil {
		return nil, err
	}
	return l.layout.Manifest(found)
}

func (l *local) Tagged(_ context.Context, tag string) (*registry.Manifest, error) {
	d, err := l.layout.Tagged(tag)
	if err != nil || d == nil {
		return nil, err
	}
	return l.layout.Manifest(*d)
}

func (l *local) Referrers(_ context.Context, digest, artifactType string) ([]v1.Descriptor, error) {
	return l.layout.Referrers(digest, artifactType)
}

func (l *local) Blob(ctx context.Context, d v1.Descriptor, _ io.Reader, _ int64) (io.ReadCloser, error) {
	return l.layout.Blob(ctx, d)
}

func (l *local) Close() error { return l.layout.Close() }
