package imagepull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/internal/ctxio"
)

// An Encryption says which layers of an image are encrypted, and for whom.
type Encryption struct {
	To     []crypt.Wrapper
	Layers []int     // 0 is the bottom, -1 the top; nil: all
	Random io.Reader // of which every layer's key is
}

// docker are the media types of Docker's images, and OCI's for the same bytes:
// encryption has names in OCI's alone.
var docker = map[string]string{
	"application/vnd.docker.container.image.v1+json":    v1.MediaTypeImageConfig,
	"application/vnd.docker.image.rootfs.diff.tar":      v1.MediaTypeImageLayer,
	"application/vnd.docker.image.rootfs.diff.tar.gzip": v1.MediaTypeImageLayerGzip,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": v1.MediaTypeImageLayerZstd,
}

// Encrypt copies an image into a layout, its layers encrypted: of an index the
// platform's image. What had signed the image has not signed the copy, which is
// another manifest. No policy is asked.
func (p *Puller) Encrypt(ctx context.Context, n policy.Name, to *registry.Writer, e Encryption) (v1.Descriptor, error) {
	s, err := p.Source(ctx, n)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := p.encrypt(ctx, s, n, to, e)
	return d, errors.Join(err, s.Close())
}

func (p *Puller) encrypt(ctx context.Context, s Source, n policy.Name, to *registry.Writer, e Encryption) (v1.Descriptor, error) {
	im, _, err := p.resolve(ctx, s, n)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(im.manifest, &m); err != nil {
		return v1.Descriptor{}, fmt.Errorf("manifest %s: %w", im.Digest, err)
	}
	chosen, err := e.chosen(len(m.Layers))
	if err != nil {
		return v1.Descriptor{}, err
	}
	m.MediaType = v1.MediaTypeImageManifest
	if m.Config, err = copyBlob(ctx, s, m.Config, to); err != nil {
		return v1.Descriptor{}, err
	}
	for i, d := range m.Layers {
		if chosen[i] {
			m.Layers[i], err = e.layer(ctx, s, d, to)
		} else {
			m.Layers[i], err = copyBlob(ctx, s, d, to)
		}
		if err != nil {
			return v1.Descriptor{}, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return to.JSON(m.MediaType, m)
}

// chosen tells of every layer whether it is to be encrypted.
func (e *Encryption) chosen(n int) ([]bool, error) {
	out := make([]bool, n)
	if e.Layers == nil {
		for i := range out {
			out[i] = true
		}
	}
	for _, l := range e.Layers {
		i := l
		if i < 0 {
			i += n
		}
		if i < 0 || i >= n {
			return nil, fmt.Errorf("layer %d: the image has %d", l, n)
		}
		out[i] = true
	}
	if n == 0 {
		return nil, errors.New("the image has no layer that could be encrypted")
	}
	return out, nil
}

// layer encrypts one.
func (e *Encryption) layer(ctx context.Context, s Source, d v1.Descriptor, to *registry.Writer) (v1.Descriptor, error) {
	if _, already := crypt.Encrypted(d.MediaType); already {
		return d, errors.New("it is encrypted already")
	}
	var added map[string]string
	out, err := through(ctx, s, d, to, crypt.MediaSuffix, func(w io.Writer, r io.Reader) (err error) {
		added, err = crypt.Encrypt(ctx, w, r, d.Digest.String(), e.Random, e.To...)
		return err
	})
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	maps.Copy(out.Annotations, added)
	return out, err
}

func copyBlob(ctx context.Context, s Source, d v1.Descriptor, to *registry.Writer) (v1.Descriptor, error) {
	return through(ctx, s, d, to, "", func(w io.Writer, r io.Reader) error {
		_, err := io.Copy(w, ctxio.Reader(ctx, r))
		return err
	})
}

// through stores what becomes of a blob, under OCI's media type and a suffix. What
// is not at its end proven to be the blob leaves an error.
func through(ctx context.Context, s Source, d v1.Descriptor, to *registry.Writer, suffix string, change func(io.Writer, io.Reader) error) (v1.Descriptor, error) {
	mediaType := d.MediaType
	if oci := docker[mediaType]; oci != "" {
		mediaType = oci
	}
	r, err := s.Blob(ctx, d, nil, 0)
	if err != nil {
		return d, err
	}
	out, err := to.Blob(mediaType+suffix, func(w io.Writer) error { return change(w, r) })
	out.Annotations = maps.Clone(d.Annotations)
	return out, errors.Join(err, r.Close())
}
