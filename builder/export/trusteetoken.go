package export

import (
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/plinth-os/plinth/internal/sign"
)

// AdminClaims are what Trustee's bearer_jwt reads of an admin token: kbs/docs/admin.md.
type AdminClaims struct {
	Role     string // that the broker's ACL names; required
	Issuer   string // "": none
	Audience string // "": none
	Issued   time.Time
	Lifetime time.Duration
}

// tokenAlgorithms are those that Trustee's library checks, by their names in JWS:
// RFC 7518, section 3.1, and RFC 8037.
var tokenAlgorithms = []string{"EdDSA", "ES256", "ES384", "PS256"}

// AdminToken makes an admin token with the private key whose public half the
// broker was given: a JWT, RFC 7519, signed as RFC 7515 has it.
func AdminToken(key *sign.Key, c AdminClaims) (string, error) {
	if c.Role == "" || c.Lifetime <= 0 || c.Issued.IsZero() {
		return "", errors.New("export: admin token: want a role, a time and a lifetime")
	}
	alg := key.Algorithm().Name
	if !slices.Contains(tokenAlgorithms, alg) {
		return "", fmt.Errorf("export: admin token: a key for %s: want one for %s", alg, slices.Sorted(slices.Values(tokenAlgorithms)))
	}
	head, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Typ string `json:"typ"`
	}{alg, "JWT"})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(struct {
		Issuer   string `json:"iss,omitempty"`
		Audience string `json:"aud,omitempty"`
		Role     string `json:"role"`
		Issued   int64  `json:"iat"`
		Expires  int64  `json:"exp"`
	}{c.Issuer, c.Audience, c.Role, c.Issued.Unix(), c.Issued.Add(c.Lifetime).Unix()})
	if err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString(head) + "." + b64.EncodeToString(body)
	sig, err := key.SignMessage([]byte(signed))
	if err != nil {
		return "", fmt.Errorf("export: admin token: %w", err)
	}
	if size := map[string]int{"ES256": 32, "ES384": 48}[alg]; size > 0 {
		if sig, err = joinedSignature(sig, size); err != nil {
			return "", fmt.Errorf("export: admin token: %w", err)
		}
	}
	return signed + "." + b64.EncodeToString(sig), nil
}

// joinedSignature is an ECDSA signature as JWS has it, r and s behind each other
// in size bytes each, not in ASN.1: RFC 7518, section 3.4.
func joinedSignature(der []byte, size int) ([]byte, error) {
	var sig struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) > 0 || sig.R.BitLen() > size*8 || sig.S.BitLen() > size*8 {
		return nil, fmt.Errorf("a signature of %d bytes: want ASN.1 with two numbers of %d bytes", len(der), size)
	}
	out := make([]byte, 2*size)
	sig.R.FillBytes(out[:size])
	sig.S.FillBytes(out[size:])
	return out, nil
}
