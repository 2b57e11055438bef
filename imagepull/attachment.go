package imagepull

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
)

// maxAttachment bounds what a sigstore signature signs, bytes.
const maxAttachment = 64 << 10

// attachments fetches the signatures that cosign keeps in the image's repository,
// as an image by a tag of its own: cosign, specs/SIGNATURE_SPEC.md.
func attachments(ctx context.Context, c *registry.Client, ref reference.Named, digest string) ([]policy.Signature, error) {
	tagged, err := reference.WithTag(reference.TrimNamed(ref), strings.Replace(digest, ":", "-", 1)+".sig")
	if err != nil {
		return nil, err
	}
	m, err := c.Manifest(ctx, tagged)
	if registry.NotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	var image v1.Manifest
	if err := json.Unmarshal(m.Bytes, &image); err != nil {
		return nil, fmt.Errorf("signatures: %s: %w", tagged, err)
	}
	if len(image.Layers) > maxSignatures {
		return nil, fmt.Errorf("signatures: %s: %d: want at most %d", tagged, len(image.Layers), maxSignatures)
	}
	var out []policy.Signature
	for i, d := range image.Layers {
		if d.MediaType != policy.CosignMIME {
			continue // no signature
		}
		if d.Size > maxAttachment {
			return nil, fmt.Errorf("signatures: %s: signature %d: %d bytes: want at most %d", tagged, i, d.Size, maxAttachment)
		}
		b, err := blob(ctx, c, tagged, d)
		if err != nil {
			return nil, fmt.Errorf("signatures: %s: %w", tagged, err)
		}
		out = append(out, policy.Signature{Source: fmt.Sprintf("%s#%d", tagged, i), MIMEType: d.MediaType, Payload: b, Annotations: d.Annotations})
	}
	return out, nil
}

// blob fetches a small blob whole.
func blob(ctx context.Context, c *registry.Client, ref reference.Named, d v1.Descriptor) ([]byte, error) {
	r, err := c.Blob(ctx, ref, d)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	if closed := r.Close(); err == nil {
		err = closed
	}
	return b, err
}
