package kbs

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// A Token is a broker's word for an attestation.
type Token struct {
	JWT     string
	Expires time.Time         // by the broker's clock; zero: it does not say
	Key     crypto.PrivateKey // the guest's, which secrets are encrypted to
}

// PEM returns the private key as guest-components writes it beside a token.
func (t *Token) PEM() ([]byte, error) { return pemOf(t.Key) }

// String keeps token and key out of what is printed.
func (t *Token) String() string { return "kbs.Token" }

// GoString is String.
func (t *Token) GoString() string { return t.String() }

const (
	// maxToken bounds a token: Trustee puts all claims into it, event logs too.
	maxToken = 1 << 20

	// defaultLife is how long a token is used that does not say how long it holds:
	// what Trustee's configuration has for them by default.
	defaultLife = 5 * time.Minute

	// maxLife bounds how long any is used.
	maxLife = time.Hour
)

// Where brokers put the guest's key into the claims: Trustee, kbs/src/token/mod.rs.
var keyClaims = [][]string{
	{"submods", "cpu0", "ear.veraison.annotated-evidence", "runtime_data_claims", "tee-pubkey"},
	{"customized_claims", "runtime_data", "tee-pubkey"},
	{"tdx", "attester_runtime_data", "tee-pubkey"},
	{"tdx", "attester_user_data", "tee-pubkey"},
	{"tee-pubkey"},
}

// A claims is what of a token is looked at. Nobody here knows by which key a broker
// signs: that it is the broker's token, TLS says.
type claims struct {
	Expires *json.Number `json:"exp"`
	Issued  *json.Number `json:"iat"`
}

// parseToken checks that a token is a JWT for k. It returns for how long to use it,
// from now: by the broker's own figures, since the two clocks may differ.
func parseToken(jwt string, k *teeKey, now time.Time) (*Token, time.Duration, error) {
	parts := strings.Split(jwt, ".")
	if len(jwt) > maxToken || len(parts) != 3 || parts[2] == "" {
		return nil, 0, fmt.Errorf("token: %d bytes in %d parts: want a signed JWT of at most %d", len(jwt), len(parts), maxToken)
	}
	var header struct {
		Alg string `json:"alg"`
	}
	var body map[string]json.RawMessage
	var c claims
	for i, v := range []any{&header, &body} {
		if err := decodePart(parts[i], v); err != nil {
			return nil, 0, fmt.Errorf("token: part %d: %w", i+1, err)
		}
	}
	if err := decodePart(parts[1], &c); err != nil {
		return nil, 0, fmt.Errorf("token: part 2: %w", err)
	}
	if !isBase64url(parts[2]) || header.Alg == "" || strings.EqualFold(header.Alg, "none") {
		return nil, 0, errors.New("token: not signed")
	}
	if err := checkKeyClaim(body, k); err != nil {
		return nil, 0, err
	}
	expires, life, err := c.life(now)
	if err != nil {
		return nil, 0, err
	}
	return &Token{jwt, expires, k.private}, life, nil
}

// decodePart reads JSON in base64url. Its errors quote nothing.
func decodePart(s string, v any) error {
	if !isBase64url(s) {
		return errors.New("not base64url")
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return errors.New("not base64url")
	}
	if json.Unmarshal(b, v) != nil {
		return errors.New("not what a JWT has there")
	}
	return nil
}

// checkKeyClaim wants the guest's key in at least one of the places where brokers look
// for it, and no other key in any.
func checkKeyClaim(body map[string]json.RawMessage, k *teeKey) error {
	found := false
	for _, path := range keyClaims {
		v, ok := claim(body, path)
		if !ok {
			continue
		}
		if !k.is(v) {
			return fmt.Errorf("token: %s: not this guest's key", strings.Join(path, "/"))
		}
		found = true
	}
	if !found {
		return errors.New("token: no tee-pubkey: it is for no guest")
	}
	return nil
}

func claim(body map[string]json.RawMessage, path []string) (json.RawMessage, bool) {
	for {
		v, ok := body[path[0]]
		if !ok || len(path) == 1 {
			return v, ok
		}
		body, path = nil, path[1:]
		if json.Unmarshal(v, &body) != nil {
			return nil, false
		}
	}
}

func (c *claims) life(now time.Time) (time.Time, time.Duration, error) {
	if c.Expires == nil {
		return time.Time{}, defaultLife, nil
	}
	expires, err := numericDate(*c.Expires)
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("token: exp: %w", err)
	}
	from := now
	if c.Issued != nil {
		if from, err = numericDate(*c.Issued); err != nil {
			return time.Time{}, 0, fmt.Errorf("token: iat: %w", err)
		}
	}
	life := expires.Sub(from)
	if life <= 0 {
		return time.Time{}, 0, fmt.Errorf("token: expired: exp %s, from %s", expires.Format(time.RFC3339), from.UTC().Format(time.RFC3339))
	}
	return expires, min(life, maxLife), nil
}

// numericDate is RFC 7519 section 2: seconds since 1970, perhaps with a fraction.
func numericDate(n json.Number) (time.Time, error) {
	f, err := n.Float64()
	if err != nil || math.IsNaN(f) || f < 0 || f > 1<<37 { // some 4300 years
		return time.Time{}, errors.New("want seconds since 1970")
	}
	return time.Unix(int64(f), 0).UTC(), nil
}
