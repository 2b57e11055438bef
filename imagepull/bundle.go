package imagepull

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
)

// Bounds on one of sigstore's bundles, and on all of an image, bytes.
const (
	maxBundle  = 1 << 20
	maxBundles = 8 << 20
)

// bundles fetches sigstore's bundles: manifests that refer to the image's, with one
// layer each. cosign, specs/BUNDLE_SPEC.md.
func bundles(ctx context.Context, s Source, digest string) ([]policy.Signature, error) {
	refs, err := s.Referrers(ctx, digest, policy.BundleMIME)
	if err != nil {
		return nil, err
	}
	if len(refs) > maxSignatures {
		return nil, fmt.Errorf("%d bundles: want at most %d", len(refs), maxSignatures)
	}
	var out []policy.Signature
	total := int64(0)
	for _, d := range refs {
		m, err := s.Manifest(ctx, d.Digest.String())
		if err != nil {
			return nil, err
		}
		var v v1.Manifest
		if err := json.Unmarshal(m.Bytes, &v); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Digest, err)
		}
		if len(v.Layers) != 1 || v.Layers[0].MediaType != policy.BundleMIME {
			return nil, fmt.Errorf("%s: %d layers: want one, a bundle", m.Digest, len(v.Layers))
		}
		l := v.Layers[0]
		if l.Size > maxBundle || l.Size > maxBundles-total {
			return nil, fmt.Errorf("%s: bundle of %d bytes: want at most %d, and %d of all", m.Digest, l.Size, maxBundle, maxBundles)
		}
		total += l.Size
		b, err := readSmall(ctx, s, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.Digest, err)
		}
		out = append(out, policy.Signature{Source: m.Digest, MIMEType: l.MediaType, Payload: b})
	}
	return out, nil
}
