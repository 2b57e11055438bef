// Package imagepull gets OCI images that a policy admits. Nothing that it gets is
// anybody's to see before it is proven.
package imagepull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/workload"
)

// A Puller has what is needed to get images and to judge them.
type Puller struct {
	Registry  *registry.Client
	Lookaside *Lookaside
	Policy    *policy.Policy
	Trust     policy.Trust
	Platform  v1.Platform // of which one image of an index is
	Admit     Admit       // kinds of images that are taken at all; nil: signed ones
	// OpenFile opens an oci-archive by its path. nil: a file, or a device.
	OpenFile func(path string) (File, error)

	// What follows is for Pull alone.
	Unwrappers []crypt.Unwrapper // of the layers' keys
	Limits     unpack.Limits
	Parts      string // directory for what broken pulls left; "": nothing is kept
	Parallel   int    // layers at a time; 0: as many as there are processors
	Log        func(format string, args ...any)
}

// An Image is one whose manifest has been fetched, and judged where it says so.
type Image struct {
	Name     string          `json:"name"`
	From     string          `json:"from"`            // the registry or mirror that had it
	Index    string          `json:"index,omitempty"` // digest of the index that was named
	Digest   string          `json:"digest"`          // of the platform's manifest
	Platform string          `json:"platform,omitempty"`
	Config   v1.Descriptor   `json:"config"`
	Layers   []Layer         `json:"layers"`
	Verdict  *policy.Verdict `json:"verdict,omitempty"`
	Judged   string          `json:"judged,omitempty"` // digest of what the verdict is of
	Kind     Kind            `json:"kind,omitempty"`   // of an image that was judged
	Event    string          `json:"event,omitempty"`  // by which a guest measures it

	manifest []byte // the platform's, as it came
	refused  error  // by Admit
}

// A Layer is one of an image's.
type Layer struct {
	Digest    string `json:"digest"`
	MediaType string `json:"media_type"`
	Size      int64  `json:"size"`
	Encrypted bool   `json:"encrypted"`

	descriptor v1.Descriptor // with the annotations by which it is decrypted
}

// Err returns nil for an image that the policy accepts and whose kind is admitted.
func (im *Image) Err() error {
	if im.Verdict == nil {
		return errors.New("not judged by any policy")
	}
	if err := im.Verdict.Err(); err != nil {
		return err
	}
	return im.refused
}

// Inspect fetches what a name leads to, and judges nothing.
func (p *Puller) Inspect(ctx context.Context, n policy.Name) (*Image, error) {
	s, err := p.Source(ctx, n)
	if err != nil {
		return nil, err
	}
	im, _, err := p.resolve(ctx, s, n)
	return im, errors.Join(err, s.Close())
}

// Explain fetches what a name leads to and judges it by the policy; Image.Err says
// what came of it. Whoever signed the index has signed the manifests in it: where the
// index is not admitted, the platform's manifest is judged. (containers/image judges
// that alone, so that it wants cosign's --recursive.)
func (p *Puller) Explain(ctx context.Context, n policy.Name) (*Image, error) {
	s, err := p.Source(ctx, n)
	if err != nil {
		return nil, err
	}
	im, err := p.explain(ctx, s, n)
	return im, errors.Join(err, s.Close())
}

// explain is Explain of a source that is open. The bytes that it judged are the ones
// that a pull goes by.
func (p *Puller) explain(ctx context.Context, s Source, n policy.Name) (*Image, error) {
	im, manifests, err := p.resolve(ctx, s, n)
	if err != nil {
		return nil, err
	}
	for _, m := range manifests {
		im.Judged = m.Digest
		if im.Verdict, err = p.judge(ctx, s, n, m); err != nil {
			return nil, err
		}
		if im.Verdict.Accepted {
			break
		}
	}
	im.Kind, im.refused = im.kind(), p.Admit.Check(im)
	e, err := workload.PullImage(im.Name, im.Digest)
	im.Event = e.Text()
	return im, err
}

func (p *Puller) judge(ctx context.Context, s Source, n policy.Name, m *registry.Manifest) (*policy.Verdict, error) {
	return p.Policy.Judge(policy.Candidate{
		Name: n, Manifest: m.Bytes,
		Signatures: func(k policy.Kind) ([]policy.Signature, error) {
			switch {
			case k == policy.Sigstore:
				return attachments(ctx, s, m.Digest)
			case n.Ref == nil: // a lookaside goes by a registry's names
				return nil, nil
			}
			return p.Lookaside.signatures(ctx, p.Registry, n.Ref, m.Digest)
		},
	}, p.Trust)
}

// resolve returns the image, and the manifests on the way to it, the named one
// first.
func (p *Puller) resolve(ctx context.Context, s Source, n policy.Name) (*Image, []*registry.Manifest, error) {
	named, err := s.Manifest(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	im := &Image{Name: n.String(), From: named.From, Digest: named.Digest}
	manifests := []*registry.Manifest{named}
	if registry.IsIndex(named.MediaType) {
		m, err := p.choose(ctx, s, named)
		if err != nil {
			return nil, nil, err
		}
		im.Index, im.Digest = named.Digest, m.Digest
		im.Platform = p.Platform.OS + "/" + p.Platform.Architecture
		manifests = append(manifests, m)
	}
	return im, manifests, im.read(manifests[len(manifests)-1])
}

// choose takes the platform's manifest of an index. An index of indexes is refused,
// and with it a loop of them.
func (p *Puller) choose(ctx context.Context, s Source, index *registry.Manifest) (*registry.Manifest, error) {
	var v v1.Index
	if err := json.Unmarshal(index.Bytes, &v); err != nil {
		return nil, fmt.Errorf("index %s: %w", index.Digest, err)
	}
	i := slices.IndexFunc(v.Manifests, func(d v1.Descriptor) bool {
		return d.Platform != nil && d.Platform.OS == p.Platform.OS && d.Platform.Architecture == p.Platform.Architecture
	})
	if i < 0 {
		return nil, fmt.Errorf("index %s: nothing for %s/%s", index.Digest, p.Platform.OS, p.Platform.Architecture)
	}
	d := v.Manifests[i]
	if err := check(d); err != nil {
		return nil, fmt.Errorf("index %s: %w", index.Digest, err)
	}
	if registry.IsIndex(d.MediaType) {
		return nil, fmt.Errorf("index %s: %s is an index, too: want an image", index.Digest, d.Digest)
	}
	m, err := s.Manifest(ctx, d.Digest.String())
	switch {
	case err != nil:
		return nil, err
	case int64(len(m.Bytes)) != d.Size:
		return nil, fmt.Errorf("index %s: manifest %s has %d bytes: want %d", index.Digest, d.Digest, len(m.Bytes), d.Size)
	case m.MediaType == "": // neither it nor who had it says
		m.MediaType = d.MediaType
	}
	return m, nil
}

const maxLayers = 512

func (im *Image) read(m *registry.Manifest) error {
	if !registry.IsManifest(m.MediaType) {
		return fmt.Errorf("manifest %s: media type %q: not an image", m.Digest, m.MediaType)
	}
	var v v1.Manifest
	if err := json.Unmarshal(m.Bytes, &v); err != nil {
		return fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	switch {
	case v.Config.Digest == "":
		return fmt.Errorf("manifest %s: %w", m.Digest, errors.New("no config"))
	case len(v.Layers) > maxLayers:
		return fmt.Errorf("manifest %s: %d layers: want at most %d", m.Digest, len(v.Layers), maxLayers)
	}
	im.Config, im.manifest = v.Config, m.Bytes
	for _, d := range append([]v1.Descriptor{v.Config}, v.Layers...) {
		if err := check(d); err != nil {
			return fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
	}
	for _, d := range v.Layers {
		_, encrypted := crypt.Encrypted(d.MediaType)
		im.Layers = append(im.Layers, Layer{d.Digest.String(), d.MediaType, d.Size, encrypted, d})
	}
	return nil
}

// check refuses a descriptor that would be unsafe to show or to fetch by.
func check(d v1.Descriptor) error {
	printable := func(r rune) bool { return r > ' ' && r < 0x7f }
	switch {
	case d.Digest.Validate() != nil:
		return fmt.Errorf("digest %.100q", d.Digest)
	case d.Size < 0:
		return fmt.Errorf("%s: size %d", d.Digest, d.Size)
	case strings.ContainsFunc(d.MediaType, func(r rune) bool { return !printable(r) }):
		return fmt.Errorf("%s: media type %.100q", d.Digest, d.MediaType)
	}
	return nil
}
