package kbs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/plinth-os/plinth/internal/jcs"
)

// A KeyAlgorithm is a kind of key that a guest lets secrets be encrypted to, in the
// words of CoCo's configuration (tee_key_algorithm).
type KeyAlgorithm string

// Keys are all of them, the default first.
var Keys = []KeyAlgorithm{keyP256, keyP521, keyRSA}

const (
	keyP256 KeyAlgorithm = "ECDH-ES+A256KW-P256"
	keyP521 KeyAlgorithm = "ECDH-ES+A256KW-P521"
	keyRSA  KeyAlgorithm = "RSA-OAEP-256"
)

// rsaBits is what guest-components makes.
const rsaBits = 2048

// A teeKey is the guest's key of one attestation. Its public half is bound to the
// evidence.
type teeKey struct {
	private crypto.Signer
	alg     jose.KeyAlgorithm // what secrets for it are encrypted by
	jwk     json.RawMessage   // public, in the form of RFC 8785
}

func newKey(a KeyAlgorithm) (*teeKey, error) {
	switch a {
	case keyP256, "":
		return newEC(elliptic.P256())
	case keyP521:
		return newEC(elliptic.P521())
	case keyRSA:
		k, err := rsa.GenerateKey(rand.Reader, rsaBits)
		if err != nil {
			return nil, err
		}
		return rsaKey(k)
	}
	return nil, fmt.Errorf("key %.100q: want one of %q", a, Keys)
}

func newEC(c elliptic.Curve) (*teeKey, error) {
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		return nil, err
	}
	return ecKey(k)
}

// The members of the keys are those of kbs-types' TeePubKey, and no others: both sides
// hash them (RFC 8785), and the verifier writes them anew.
func ecKey(k *ecdsa.PrivateKey) (*teeKey, error) {
	point, err := k.PublicKey.Bytes() // 4, x, y: SEC 1 section 2.3.3
	if err != nil {
		return nil, err
	}
	size := (len(point) - 1) / 2
	return finishKey(k, jose.ECDH_ES_A256KW, map[string]string{
		"kty": "EC", "crv": k.Curve.Params().Name, "alg": string(jose.ECDH_ES_A256KW),
		"x": base64url(point[1 : 1+size]), "y": base64url(point[1+size:]),
	})
}

func rsaKey(k *rsa.PrivateKey) (*teeKey, error) {
	return finishKey(k, jose.RSA_OAEP_256, map[string]string{
		"kty": "RSA", "alg": string(jose.RSA_OAEP_256),
		"n": base64url(k.N.Bytes()), "e": base64url(big.NewInt(int64(k.E)).Bytes()),
	})
}

func finishKey(k crypto.Signer, alg jose.KeyAlgorithm, jwk map[string]string) (*teeKey, error) {
	b, err := jcs.Marshal(jwk)
	if err != nil {
		return nil, err
	}
	return &teeKey{k, alg, b}, nil
}

// is reports whether a JWK is the public half of k: all of our members are there with
// the same values. Others, such as a key's name, change nothing.
func (k *teeKey) is(jwk json.RawMessage) bool {
	var ours map[string]string
	var theirs map[string]json.RawMessage
	if json.Unmarshal(k.jwk, &ours) != nil || json.Unmarshal(jwk, &theirs) != nil {
		return false
	}
	for name, want := range ours {
		var got string
		if json.Unmarshal(theirs[name], &got) != nil || got != want {
			return false
		}
	}
	return true
}

// pem writes the private key as guest-components reads it: PKCS #1 for RSA, PKCS #8
// otherwise.
func pemOf(k crypto.PrivateKey) ([]byte, error) {
	if r, ok := k.(*rsa.PrivateKey); ok {
		return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r)}), nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func (a KeyAlgorithm) check() error {
	if a != "" && !slices.Contains(Keys, a) {
		return fmt.Errorf("key %.100q: want one of %q", a, Keys)
	}
	return nil
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
