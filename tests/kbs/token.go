package kbs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// An appraisal is what became of evidence.
type appraisal struct {
	tee      string
	claims   map[string]any // of the evidence
	runtime  map[string]any
	initdata any
	events   map[int][]event // of a TPM, by register
}

// annotated is ear.veraison.annotated-evidence: transform_claims of
// attestation-service/src/ear_token/broker.rs.
func (a *appraisal) annotated() map[string]any {
	claims, out := maps.Clone(a.claims), map[string]any{}
	for name, data := range map[string]any{"init_data": a.initdata, "report_data": a.runtime} {
		if value, ok := claims[name]; ok {
			delete(claims, name)
			out[name] = value
			out[map[string]string{"init_data": "init_data_claims", "report_data": "runtime_data_claims"}[name]] = data
		}
	}
	out[a.tee] = claims
	return out
}

// makeToken writes an EAR token as the attestation service does.
func (b *Broker) makeToken(a *appraisal) (string, error) {
	if b.Faults[StepAttest] == FaultOtherToken {
		other, err := jwkOf(mustKey())
		if err != nil {
			return "", err
		}
		other["alg"] = string(jose.ECDH_ES_A256KW)
		a.runtime["tee-pubkey"] = other
	}
	now := b.now()
	claims := map[string]any{
		"eat_profile":     "tag:github.com,2024:confidential-containers/Trustee",
		"ear.verifier-id": map[string]string{"developer": "https://confidentialcontainers.org", "build": "plinth tests/kbs"},
		"iat":             now.Unix(), "exp": now.Add(b.lifetime()).Unix(), "iss": "CoCo-Attestation-Service",
		"submods": map[string]any{"cpu0": map[string]any{
			"ear.status":                      "affirming",
			"ear.trustworthiness-vector":      map[string]int{"executables": 3, "hardware": 2, "configuration": 0},
			"ear.appraisal-policy-id":         "default",
			"ear.veraison.annotated-evidence": a.annotated(),
		}},
	}
	key := b.signer()
	if b.Faults[StepAttest] == FaultOtherSigner {
		key = mustKey()
	}
	token, err := signToken(key, claims)
	if err != nil {
		return "", err
	}
	if b.appraisals == nil {
		b.appraisals = map[string]*appraisal{}
	}
	b.appraisals[token] = a
	return token, nil
}

// TokenKey is what tokens are signed by.
func (b *Broker) TokenKey() *ecdsa.PublicKey {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &b.signer().PublicKey
}

// signer is made at first use, as the attestation service does that has none
// configured. The caller holds the lock.
func (b *Broker) signer() *ecdsa.PrivateKey {
	if b.tokenKey == nil {
		b.tokenKey = mustKey()
	}
	return b.tokenKey
}

func mustKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // no randomness
	}
	return key
}

// signToken writes a JWT whose header has the key that it is signed by.
func signToken(key *ecdsa.PrivateKey, claims map[string]any) (string, error) {
	jwk, err := jwkOf(key)
	if err != nil {
		return "", err
	}
	jwk["alg"] = "ES256"
	head, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "jwk": jwk})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum256([]byte(signed)))
	if err != nil {
		return "", err
	}
	sig := s.FillBytes(make([]byte, 64)[32:])
	sig = append(r.FillBytes(make([]byte, 32)), sig...)
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// jwkOf is the public half of a key.
func jwkOf(key *ecdsa.PrivateKey) (jwk map[string]any, err error) {
	b, err := jose.JSONWebKey{Key: key.Public()}.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(b, &jwk)
	}
	return jwk, err
}

// checkToken is kbs/src/token: signature, end, and whose key it is for.
func (b *Broker) checkToken(token string) (claims map[string]any, teeKey *jose.JSONWebKey, err error) {
	var key crypto.PublicKey = &b.signer().PublicKey
	if b.Off[CheckTokenKey] { // insecure_header_jwk
		if key, err = headerKey(token); err != nil {
			return nil, nil, err
		}
	}
	if claims, err = verifyToken(key, token, b.now()); err != nil {
		return nil, nil, fmt.Errorf("token-key: %w", err)
	}
	pubkey := dig(claims, "submods", "cpu0", "ear.veraison.annotated-evidence", "runtime_data_claims", "tee-pubkey")
	text, err := json.Marshal(pubkey)
	if err != nil {
		return nil, nil, err
	}
	teeKey = new(jose.JSONWebKey)
	if err := teeKey.UnmarshalJSON(text); err != nil || !teeKey.Valid() || !teeKey.IsPublic() {
		return nil, nil, errors.New("no public key in part of the claims")
	}
	return claims, teeKey, nil
}

func headerKey(token string) (crypto.PublicKey, error) {
	head, _, _ := strings.Cut(token, ".")
	b, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return nil, err
	}
	var h struct{ JWK jose.JSONWebKey }
	if err := parse(b, &h); err != nil {
		return nil, err
	}
	return h.JWK.Key, nil
}

// dig follows keys into objects; nil where one is missing.
func dig(v any, path ...string) any {
	for _, key := range path {
		object, _ := v.(map[string]any)
		v = object[key]
	}
	return v
}
