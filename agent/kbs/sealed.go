package kbs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// SealedPrefix is what sealed secrets begin with where they stand among other values.
const SealedPrefix = "sealed."

// SealedAlgorithm is the only one that sealed secrets are signed by.
const SealedAlgorithm = "ES256"

// maxSealed bounds a sealed secret.
const maxSealed = 1 << 20

// A SealedHeader is the header of the signature.
type SealedHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid"` // URI of the public key, a JWK
	Type      string `json:"typ,omitempty"`
	Base64    *bool  `json:"b64,omitempty"` // RFC 7797; guest-components writes true, as if it were not there
}

// A Sealed is a sealed secret, taken apart. Its signature is not checked.
type Sealed struct {
	Header    SealedHeader
	Secret    Secret
	signed    string // what the signature is over
	signature []byte
}

// ParseSealed reads a sealed secret: a compact JWS (RFC 7515 section 7.1), with or
// without SealedPrefix.
func ParseSealed(b []byte) (*Sealed, error) {
	s, err := parseSealed(b)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	return s, nil
}

func parseSealed(b []byte) (*Sealed, error) {
	if len(b) > maxSealed {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(b), maxSealed)
	}
	text := strings.TrimPrefix(string(b), SealedPrefix)
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%d parts, want header.payload.signature", len(parts))
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil || !isBase64url(p) {
			return nil, fmt.Errorf("part %d: not base64url", i+1)
		}
	}
	s := &Sealed{signed: parts[0] + "." + parts[1], signature: raw[2]}
	if err := strictjson.Unmarshal(raw[0], &s.Header); err != nil {
		return nil, fmt.Errorf("header: %w", plain(err))
	}
	if err := strictjson.Unmarshal(raw[1], &s.Secret); err != nil {
		return nil, fmt.Errorf("payload: %w", plain(err))
	}
	return s, nil
}

// Unseal checks a sealed secret and returns what is in it, or behind it. get asks a
// broker: for the public key, for the key of an envelope, for the secret of a vault.
func Unseal(ctx context.Context, get func(ctx context.Context, uri string) ([]byte, error), sealed []byte) ([]byte, error) {
	s, err := ParseSealed(sealed)
	if err != nil {
		return nil, err
	}
	// Everything that can be known without the broker is known first.
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	jwk, err := get(ctx, s.Header.KeyID)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: key of the signature: %w", err)
	}
	if err := s.Verify(jwk); err != nil {
		return nil, err
	}
	if s.Secret.Type == SecretVault {
		secret, err := get(ctx, s.Secret.Name)
		if err != nil {
			return nil, fmt.Errorf("sealed secret: %w", err)
		}
		return secret, nil
	}
	kek, err := get(ctx, s.Secret.KeyID)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: key of the envelope: %w", err)
	}
	defer clear(kek)
	secret, err := s.Secret.open(kek)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: %w", err)
	}
	return secret, nil
}

// Check refuses what Unseal would refuse without asking anybody.
func (s *Sealed) Check() error {
	if err := s.check(); err != nil {
		return fmt.Errorf("sealed secret: %w", err)
	}
	return nil
}

func (s *Sealed) check() error {
	if s.Header.Algorithm != SealedAlgorithm {
		return fmt.Errorf("alg %.40q: want %s", s.Header.Algorithm, SealedAlgorithm)
	}
	if s.Header.Base64 != nil && !*s.Header.Base64 {
		return errors.New("b64: want true")
	}
	if _, err := ParseURI(s.Header.KeyID); err != nil {
		return fmt.Errorf("kid: %w", err)
	}
	return s.Secret.Check()
}

// Verify checks the signature by a public key, a JWK.
func (s *Sealed) Verify(jwk []byte) error {
	pub, err := parseVerifier(jwk)
	if err != nil {
		return fmt.Errorf("sealed secret: key %s: %w", s.Header.KeyID, err)
	}
	digest := sha256.Sum256([]byte(s.signed))
	// RFC 7518 section 3.4: r and s, 32 bytes each.
	if len(s.signature) != 64 || !ecdsa.Verify(pub, digest[:], new(big.Int).SetBytes(s.signature[:32]), new(big.Int).SetBytes(s.signature[32:])) {
		return fmt.Errorf("sealed secret: not signed by key %s, or altered", s.Header.KeyID)
	}
	return nil
}

// parseVerifier reads the public key of a signature. A private key is refused: every
// guest that gets it could sign.
func parseVerifier(b []byte) (*ecdsa.PublicKey, error) {
	var k jose.JSONWebKey
	if len(b) > maxSealed || k.UnmarshalJSON(bytes.TrimSpace(b)) != nil {
		return nil, errors.New("not a JWK")
	}
	pub, ok := k.Key.(*ecdsa.PublicKey)
	switch {
	case !k.IsPublic():
		return nil, errors.New("is private or secret: a broker gets the public half")
	case !ok || pub.Curve != elliptic.P256():
		return nil, errors.New("want EC on P-256")
	case k.Algorithm != "" && k.Algorithm != SealedAlgorithm:
		return nil, fmt.Errorf("is for %.40q: want %s", k.Algorithm, SealedAlgorithm)
	case k.Use != "" && k.Use != "sig":
		return nil, errors.New("is not for signatures")
	}
	return pub, nil
}

// Seal signs a secret. kid is the URI under which brokers have the public key; sign
// makes an ES256 signature, r and s.
func (s *Secret) Seal(kid string, sign func(message []byte) ([]byte, error)) (string, error) {
	header, err := json.Marshal(SealedHeader{Algorithm: SealedAlgorithm, KeyID: kid})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	signed := base64url(header) + "." + base64url(payload)
	sig, err := sign([]byte(signed))
	if err != nil {
		return "", err
	}
	text := SealedPrefix + signed + "." + base64url(sig)
	sealed, err := ParseSealed([]byte(text))
	if err != nil {
		return "", err
	}
	return text, sealed.Check()
}

// SealedKey is the JWK by which signatures of pub are checked.
func SealedKey(pub *ecdsa.PublicKey) ([]byte, error) {
	if pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("sealed secret: key on %s: want P-256", pub.Curve.Params().Name)
	}
	return jose.JSONWebKey{Key: pub, Algorithm: SealedAlgorithm, Use: "sig"}.MarshalJSON()
}
