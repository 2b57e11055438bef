package imagepull

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
)

// maxBundle bounds one of sigstore's bundles, bytes.
const maxBundle = 1 << 20

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
	for _, d := range refs {
		m, err := s.Manifest(ctx, d.Digest.String())
		if err != nil {
			return nil, err
		}
		var v v1.Manifest
		if err := json.Unmarshal(m.Bytes, &v); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Digest, err)
		}
		for _, l := range v.Layers {
			if l.MediaType != policy.BundleMIME {
				continue
			}
			if l.Size > maxBundle {
				return nil, fmt.Errorf("%s: bundle of %d bytes: want at most %d", m.Digest, l.Size, maxBundle)
			}
			b, err := blob(ctx, s, l)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.Digest, err)
			}
			out = append(out, policy.Signature{Source: m.Digest, MIMEType: l.MediaType, Payload: b})
		}
		if len(out) > maxSignatures {
			return nil, fmt.Errorf("more than %d bundles", maxSignatures)
		}
	}
	return out, nil
}
