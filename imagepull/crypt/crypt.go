// Package crypt encrypts and decrypts layers of OCI images as ocicrypt does:
// containers/ocicrypt, docs and spec; ocicrypt-rs of confidential-containers.
package crypt

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Names of what an encrypted layer's descriptor has.
const (
	MediaSuffix = "+encrypted" // behind the layer's media type

	annotationPublic = "org.opencontainers.image.enc.pubopts"
	annotationKeys   = "org.opencontainers.image.enc.keys."
)

// The schemes by which a layer's key is wrapped for a recipient.
const (
	SchemeJWE  = "jwe"
	SchemeCoCo = "provider.attestation-agent" // a key broker has the key
)

// Encrypted takes the suffix off a media type; ok tells whether it was there.
func Encrypted(mediaType string) (plain string, ok bool) {
	return strings.CutSuffix(mediaType, MediaSuffix)
}

const cipherName = "AES_256_CTR_HMAC_SHA256" // the only one of the format

// maxAnnotation bounds one annotation, bytes; the registry's manifest is bounded,
// too.
const maxAnnotation = 1 << 20

// public is what everybody may know of a layer's encryption.
type public struct {
	Cipher  string            `json:"cipher"`
	HMAC    []byte            `json:"hmac"`
	Options map[string][]byte `json:"cipheroptions"`
}

// private is what recipients know.
type private struct {
	Key     []byte            `json:"symkey"`
	Digest  string            `json:"digest"` // of the layer before it was encrypted
	Options map[string][]byte `json:"cipheroptions"`
}

// An Unwrapper opens what was wrapped for one kind of recipient.
type Unwrapper interface {
	Scheme() string
	Unwrap(ctx context.Context, wrapped []byte) ([]byte, error)
}

// A Key decrypts one layer.
type Key struct {
	Digest string // of the plain layer, as whoever encrypted it says: "sha256:..."

	key, nonce, hmac []byte
}

// Open finds a recipient among a layer's annotations whose packet one of the
// unwrappers opens. All are tried; the error names why each was not.
func Open(ctx context.Context, annotations map[string]string, unwrappers ...Unwrapper) (*Key, error) {
	pub, err := publicOptions(annotations)
	if err != nil {
		return nil, fmt.Errorf("crypt: %w", err)
	}
	var failed []error
	for _, u := range unwrappers {
		packets, err := recipients(annotations[annotationKeys+u.Scheme()])
		if err != nil {
			return nil, fmt.Errorf("crypt: %s%s: %w", annotationKeys, u.Scheme(), err)
		}
		for _, p := range packets {
			b, err := u.Unwrap(ctx, p)
			if err == nil {
				return newKey(b, pub)
			}
			failed = append(failed, fmt.Errorf("%s: %w", u.Scheme(), err))
		}
	}
	if failed == nil {
		return nil, fmt.Errorf("crypt: the layer is encrypted for %s: no key for any", schemes(annotations))
	}
	return nil, fmt.Errorf("crypt: no key: %w", errors.Join(failed...))
}

// schemes names the recipients that a layer has, for people.
func schemes(annotations map[string]string) string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if s, ok := strings.CutPrefix(key, annotationKeys); ok {
			out = append(out, s)
		}
	}
	if out == nil {
		return "nobody"
	}
	return strings.Join(out, ", ")
}

func publicOptions(annotations map[string]string) (*public, error) {
	text := annotations[annotationPublic]
	if len(text) > maxAnnotation {
		return nil, fmt.Errorf("%s: %d bytes: want at most %d", annotationPublic, len(text), maxAnnotation)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", annotationPublic, err)
	}
	p := &public{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("%s: %w", annotationPublic, err)
	}
	switch {
	case p.Cipher != cipherName:
		return nil, fmt.Errorf("%s: cipher %q: want %s", annotationPublic, p.Cipher, cipherName)
	case len(p.HMAC) != 32:
		return nil, fmt.Errorf("%s: HMAC of %d bytes: want 32", annotationPublic, len(p.HMAC))
	}
	return p, nil
}

// recipients splits an annotation: base64 of one packet for each, commas between.
func recipients(text string) (out [][]byte, err error) {
	if len(text) > maxAnnotation {
		return nil, fmt.Errorf("%d bytes: want at most %d", len(text), maxAnnotation)
	}
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		b, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func newKey(b []byte, pub *public) (*Key, error) {
	var p private
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, errors.New("crypt: what was unwrapped is no layer key") // the cause may quote it
	}
	nonce := p.Options["nonce"]
	digest, ok := strings.CutPrefix(p.Digest, "sha256:")
	switch h, err := hex.DecodeString(digest); {
	case len(p.Key) != 32:
		return nil, fmt.Errorf("crypt: key of %d bytes: want 32", len(p.Key))
	case len(nonce) != 16:
		return nil, fmt.Errorf("crypt: nonce of %d bytes: want 16", len(nonce))
	case !ok || err != nil || len(h) != 32:
		return nil, fmt.Errorf("crypt: digest %q of the plain layer: want sha256 and 64 hexadecimal digits", p.Digest)
	}
	return &Key{Digest: p.Digest, key: p.Key, nonce: nonce, hmac: pub.HMAC}, nil
}
