package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// maxPayload bounds what is signed, bytes.
const maxPayload = 64 << 10

// newSimple opens the keyrings of signedBy.
func newSimple(r *Requirement, t *Trust) (verifier, error) {
	if r.KeyType != "GPGKeys" {
		return nil, fmt.Errorf("keyType %s: not supported", r.KeyType)
	}
	files, err := t.keys(r.KeyPath, r.KeyPaths, r.KeyData, nil)
	if err != nil {
		return nil, err
	}
	var ring openpgp.EntityList
	for _, b := range files {
		more, err := readKeyring(b)
		if err != nil {
			return nil, fmt.Errorf("keyring: %w", err)
		}
		ring = append(ring, more...)
	}
	return func(s Signature) (*claim, string, error) {
		b, key, err := openMessage(s.Payload, ring, t)
		if err != nil {
			return nil, "", err
		}
		c, err := parsePayload(b, simpleType)
		return c, key, err
	}, nil
}

// readKeyring reads keys in the binary form, or any number of armored blocks.
func readKeyring(b []byte) (ring openpgp.EntityList, err error) {
	if !bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN PGP")) {
		return openpgp.ReadKeyRing(bytes.NewReader(b))
	}
	const end = "-----END PGP PUBLIC KEY BLOCK-----"
	for block := range bytes.SplitAfterSeq(bytes.TrimSpace(b), []byte(end)) {
		if len(bytes.TrimSpace(block)) == 0 {
			continue
		}
		more, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(block))
		if err != nil {
			return nil, err
		}
		ring = append(ring, more...)
	}
	return ring, nil
}

// openMessage returns what a signed message holds and the fingerprint of the key
// that signed it. RFC 9580, section 10.3.
func openMessage(b []byte, ring openpgp.EntityList, t *Trust) ([]byte, string, error) {
	m, err := openpgp.ReadMessage(bytes.NewReader(b), ring, nil, &packet.Config{Time: t.now})
	if err != nil {
		return nil, "", err
	}
	switch {
	case m.IsEncrypted:
		return nil, "", errors.New("encrypted, not only signed")
	case !m.IsSigned:
		return nil, "", errors.New("not signed")
	case m.SignedBy == nil:
		return nil, "", fmt.Errorf("signed by key %016X, which is not in the keyring", m.SignedByKeyId)
	}
	payload, err := io.ReadAll(io.LimitReader(m.UnverifiedBody, maxPayload+1))
	if err != nil {
		return nil, "", err
	}
	if len(payload) > maxPayload {
		return nil, "", fmt.Errorf("more than %d bytes signed", maxPayload)
	}
	// Only at the end of the body has the signature been compared.
	if m.SignatureError != nil {
		return nil, "", m.SignatureError
	}
	if m.Signature == nil || m.Signature.SigExpired(t.Now) {
		return nil, "", errors.New("no valid signature, or an expired one")
	}
	return payload, fmt.Sprintf("%X", m.SignedBy.Entity.PrimaryKey.Fingerprint), nil
}
