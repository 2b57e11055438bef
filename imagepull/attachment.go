package imagepull

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
)

// maxAttachment bounds what a sigstore signature signs, bytes.
const maxAttachment = 64 << 10

// attachments fetches the signatures that lie beside a manifest: those that cosign
// keeps as an image by a tag of its own, and sigstore's bundles.
func attachments(ctx context.Context, s Source, digest string) ([]policy.Signature, error) {
	out, err := cosigned(ctx, s, digest)
	if err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	more, err := bundles(ctx, s, digest)
	if err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	return append(out, more...), nil
}

// cosigned fetches what cosign attached by a tag that is made of the digest: cosign,
// specs/SIGNATURE_SPEC.md.
func cosigned(ctx context.Context, s Source, digest string) ([]policy.Signature, error) {
	tag := registry.Tag(digest) + ".sig"
	m, err := s.Tagged(ctx, tag)
	if err != nil || m == nil {
		return nil, err
	}
	var image v1.Manifest
	if err := json.Unmarshal(m.Bytes, &image); err != nil {
		return nil, fmt.Errorf("%s: %w", tag, err)
	}
	if len(image.Layers) > maxSignatures {
		return nil, fmt.Errorf("%s: %d: want at most %d", tag, len(image.Layers), maxSignatures)
	}
	var out []policy.Signature
	for i, d := range image.Layers {
		if d.MediaType != policy.CosignMIME {
			continue // no signature
		}
		if d.Size > maxAttachment {
			return nil, fmt.Errorf("%s: signature %d: %d bytes: want at most %d", tag, i, d.Size, maxAttachment)
		}
		b, err := readSmall(ctx, s, d)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", tag, err)
		}
		out = append(out, policy.Signature{Source: fmt.Sprintf("%s#%d", tag, i), MIMEType: d.MediaType, Payload: b, Annotations: d.Annotations})
	}
	return out, nil
}
