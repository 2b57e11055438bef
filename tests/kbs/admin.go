package kbs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// An Admin checks admin tokens as bearer_jwt and regex_acl do:
// kbs/src/admin/authentication/bearer_jwt.rs, authorization/regex_acl.rs.
type Admin struct {
	Key      crypto.PublicKey
	Issuer   string // "": not checked
	Audience string // "": not checked
	ACL      []ACL
	Now      func() time.Time
}

// An ACL lets a role use paths.
type ACL struct {
	Role  string
	Paths string // anchored regular expression
}

// check refuses a request with the reason.
func (a *Admin) check(r *http.Request) error {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return errors.New("failed to parse HTTP Auth Bearer header")
	}
	claims, err := verifyToken(a.Key, token, a.Now())
	if err != nil {
		return fmt.Errorf("Admin access denied: Cannot verify token with any of the issuers (%w)", err)
	}
	role, ok := claims["role"].(string)
	switch {
	case !ok:
		return errors.New("Admin access denied: Missing required `role` claim in JWT")
	case a.Issuer != "" && claims["iss"] != a.Issuer, a.Audience != "" && !a.isAudience(claims["aud"]):
		return errors.New("Admin access denied: Cannot verify token with any of the issuers")
	}
	for _, acl := range a.ACL {
		if acl.Role == role && regexp.MustCompile(acl.Paths).MatchString(r.URL.RequestURI()) {
			return nil
		}
	}
	return fmt.Errorf("Admin access denied: Role %s not allowed for path %s", role, r.URL.RequestURI())
}

func (a *Admin) isAudience(claim any) bool {
	list, ok := claim.([]any)
	if !ok {
		list = []any{claim}
	}
	return slices.Contains(list, any(a.Audience))
}

// verifyToken checks a JWT: signature and, as the library that KBS uses demands
// it, its end.
func verifyToken(key crypto.PublicKey, token string, now time.Time) (map[string]any, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%d parts: want 3", len(parts))
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil {
			return nil, err
		}
	}
	var head, claims map[string]any
	if err := errors.Join(parse(raw[0], &head), parse(raw[1], &claims)); err != nil {
		return nil, err
	}
	alg, _ := head["alg"].(string)
	if !verifySignature(key, alg, []byte(parts[0]+"."+parts[1]), raw[2]) {
		return nil, fmt.Errorf("%s: bad signature", alg)
	}
	exp, ok := claims["exp"].(float64)
	const leeway = 60 // seconds
	if !ok || now.Unix() > int64(exp)+leeway {
		return nil, errors.New("expired")
	}
	return claims, nil
}

// verifySignature checks a signature in the forms of JOSE and COSE, which are the
// same: RFC 7518, RFC 9053.
func verifySignature(key crypto.PublicKey, alg string, message, sig []byte) bool {
	switch k := key.(type) {
	case ed25519.PublicKey:
		return alg == "EdDSA" && ed25519.Verify(k, message, sig)
	case *ecdsa.PublicKey:
		digest := map[string][]byte{"ES256": sum256(message), "ES384": sum384(message)}[alg]
		n := (k.Curve.Params().BitSize + 7) / 8
		if digest == nil || len(digest) != n || len(sig) != 2*n {
			return false
		}
		return ecdsa.Verify(k, digest, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:]))
	case *rsa.PublicKey:
		return alg == "PS256" && rsa.VerifyPSS(k, crypto.SHA256, sum256(message), sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	}
	return false
}

func sum256(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
func sum384(b []byte) []byte { s := sha512.Sum384(b); return s[:] }
