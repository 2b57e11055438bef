package kbs

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// A response is what a broker puts a secret into: a flattened JWE (RFC 7516 section
// 7.2.2) without unprotected headers.
type response struct {
	Protected    string  `json:"protected"`
	EncryptedKey string  `json:"encrypted_key"`
	IV           string  `json:"iv"`
	Ciphertext   string  `json:"ciphertext"`
	AAD          *string `json:"aad"` // Trustee writes null
	Tag          string  `json:"tag"`
}

// A jweHeader is its protected header. Whatever would change how the rest is to be
// read ("zip", "crit", "apu") is no member, and so refused.
type jweHeader struct {
	Alg string `json:"alg"`
	Enc string `json:"enc"`
	EPK *struct {
		Kty string `json:"kty"`
		Crv string `json:"crv"`
		X   string `json:"x"`
		Y   string `json:"y"`
	} `json:"epk"`
	KeyID       string `json:"kid"`
	Type        string `json:"typ"`
	ContentType string `json:"cty"`
}

// errNotForUs says no more: what exactly did not fit is of use to an attacker alone.
var errNotForUs = errors.New("secret: not encrypted to this guest's key, or altered")

// openResponse returns the secret in a broker's answer. The key must be encrypted in
// the way that k's public half asks for, the secret by A256GCM.
func openResponse(k *teeKey, b []byte) ([]byte, error) {
	var r response
	if err := strictjson.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("secret: want a flattened JWE: %w", plain(err))
	}
	if err := r.check(k.alg); err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	// Only what was looked at goes on.
	clean := map[string]string{"protected": r.Protected, "encrypted_key": r.EncryptedKey, "iv": r.IV, "ciphertext": r.Ciphertext, "tag": r.Tag}
	if r.AAD != nil {
		clean["aad"] = *r.AAD
	}
	text, err := json.Marshal(clean)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	obj, err := jose.ParseEncryptedJSON(string(text), []jose.KeyAlgorithm{k.alg}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return nil, fmt.Errorf("secret: %w", plain(err))
	}
	secret, err := obj.Decrypt(k.private)
	if err != nil {
		return nil, errNotForUs
	}
	return secret, nil
}

func (r *response) check(alg jose.KeyAlgorithm) error {
	aad := ""
	if r.AAD != nil {
		aad = *r.AAD
	}
	for _, v := range []string{r.Protected, r.EncryptedKey, r.IV, r.Ciphertext, aad, r.Tag} {
		if !isBase64url(v) {
			return errors.New("want base64url")
		}
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(r.Protected)
	if err != nil {
		return errors.New("protected: not base64url")
	}
	var h jweHeader
	if err := strictjson.Unmarshal(raw, &h); err != nil {
		return fmt.Errorf("protected header: %w", plain(err))
	}
	if h.Alg != string(alg) {
		return fmt.Errorf("alg %.40q: want %q", h.Alg, alg)
	}
	if h.Enc != string(jose.A256GCM) {
		return fmt.Errorf("enc %.40q: want %q", h.Enc, jose.A256GCM)
	}
	if (h.EPK != nil) != (alg == jose.ECDH_ES_A256KW) {
		return fmt.Errorf("epk: does not go with %s", alg)
	}
	return nil
}

// isBase64url looks at the alphabet: Go's decoder skips line ends.
func isBase64url(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// plain bounds the text of a decoder's error, which may quote its input.
func plain(err error) error {
	if s := err.Error(); len(s) > maxDetail || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New(printable(s))
	}
	return err
}
