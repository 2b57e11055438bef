package imagepull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/unpack"
)

// maxConfig bounds an image's configuration, bytes, as registries bound manifests.
const maxConfig = 4 << 20

// The media types of configurations.
const dockerConfig = "application/vnd.docker.container.image.v1+json"

// describe reads the manifest and the configuration: what there is to fetch, and
// what it must be.
func (j *job) describe(ctx context.Context) error {
	if err := j.readLayers(); err != nil {
		return fmt.Errorf("manifest %s: %w", j.pulled.Digest, err)
	}
	if err := j.readConfig(ctx, j.pulled.Config); err != nil {
		return fmt.Errorf("config %s: %w", j.pulled.Config.Digest, err)
	}
	return nil
}

func (j *job) readLayers() error {
	if len(j.pulled.Image.Layers) == 0 {
		return errors.New("an image without layers")
	}
	most, total := j.p.maxBytes(), int64(0)
	for i, l := range j.pulled.Image.Layers {
		f, err := formOf(l.MediaType)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		if l.Size > most-total {
			return &unpack.LimitError{What: "bytes of the layers, as the manifest says", Got: total + l.Size, Most: most}
		}
		total += l.Size
		j.layers, j.forms = append(j.layers, l.descriptor), append(j.forms, f)
	}
	return nil
}

// maxBytes is what the layers may unpack to, and so what their blobs may be.
func (p *Puller) maxBytes() int64 {
	if p.Limits.Bytes > 0 {
		return p.Limits.Bytes
	}
	return 64 << 30 // as unpack.Limits
}

func (j *job) readConfig(ctx context.Context, d v1.Descriptor) error {
	switch {
	case d.MediaType != v1.MediaTypeImageConfig && d.MediaType != dockerConfig:
		return fmt.Errorf("media type %q: not of an image to run", d.MediaType)
	case d.Size > maxConfig:
		return fmt.Errorf("%d bytes: want at most %d", d.Size, maxConfig)
	}
	raw, err := readSmall(ctx, j.src, d)
	if err != nil {
		return err
	}
	j.pulled.Raw = raw
	if err := json.Unmarshal(raw, &j.pulled.Settings); err != nil {
		return err
	}
	return j.checkConfig(&j.pulled.Settings)
}

// readSmall returns a blob whose size is bounded. It is whole and has its digest.
func readSmall(ctx context.Context, s Source, d v1.Descriptor) ([]byte, error) {
	r, err := s.Blob(ctx, d, nil, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func (j *job) checkConfig(c *v1.Image) error {
	want, ids := j.p.Platform, c.RootFS.DiffIDs
	switch {
	case c.OS != "" && c.OS != want.OS:
		return fmt.Errorf("for the system %.40q: want %s", c.OS, want.OS)
	case c.Architecture != "" && c.Architecture != want.Architecture:
		return fmt.Errorf("for the architecture %.40q: want %s", c.Architecture, want.Architecture)
	case c.RootFS.Type != "layers":
		return fmt.Errorf("rootfs of type %.40q: want layers", c.RootFS.Type)
	case len(ids) != len(j.layers):
		return fmt.Errorf("%d diff IDs for %d layers", len(ids), len(j.layers))
	}
	for i, id := range ids {
		if id.Validate() != nil || id.Algorithm() != digest.SHA256 {
			return fmt.Errorf("diff ID %d: %.100q: want a digest of sha256", i+1, string(id))
		}
	}
	j.pulled.DiffIDs = ids
	j.pulled.ChainID = identity.ChainID(ids) // of copies: it changes none
	return nil
}
