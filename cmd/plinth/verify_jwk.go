package main

import (
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/plinth-os/plinth/internal/jcs"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// describeJWK tells what key secrets are encrypted to, and whether it is one that can be:
// RFC 7517 and 7518. The thumbprint is that of RFC 7638.
func describeJWK(b []byte) (string, error) {
	raw := map[string]json.RawMessage{}
	if err := strictjson.Unmarshal(b, &raw); err != nil {
		return "", err
	}
	text := map[string]string{}
	for name, v := range raw {
		var s string
		if json.Unmarshal(v, &s) == nil {
			text[name] = s
		}
	}
	switch text["kty"] {
	case "EC":
		return ecJWK(text)
	case "RSA":
		return rsaJWK(text)
	}
	return fmt.Sprintf("of type %.20q", text["kty"]), errors.New("want EC or RSA")
}

// thumbprint is over the members that make the key.
func thumbprint(k map[string]string, names ...string) string {
	members := map[string]string{}
	for _, n := range names {
		members[n] = k[n]
	}
	b, err := jcs.Marshal(members)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func ecJWK(k map[string]string) (string, error) {
	curves := map[string]ecdh.Curve{"P-256": ecdh.P256(), "P-384": ecdh.P384(), "P-521": ecdh.P521()}
	name := fmt.Sprintf("EC %.10q, %.30q, thumbprint %s", k["crv"], k["alg"], thumbprint(k, "crv", "kty", "x", "y"))
	curve := curves[k["crv"]]
	x, err := base64.RawURLEncoding.DecodeString(k["x"])
	y, err2 := base64.RawURLEncoding.DecodeString(k["y"])
	if curve == nil || err != nil || err2 != nil {
		return name, errors.New("want a point of P-256, P-384 or P-521")
	}
	if _, err := curve.NewPublicKey(append(append([]byte{4}, x...), y...)); err != nil {
		return name, errors.New("the point is not on the curve")
	}
	if k["d"] != "" {
		return name, errors.New("it is a private key")
	}
	return name, nil
}

// minRSA is the least size of a key, in bits.
const minRSA = 2048

func rsaJWK(k map[string]string) (string, error) {
	n, err := base64.RawURLEncoding.DecodeString(k["n"])
	bits := new(big.Int).SetBytes(n).BitLen()
	name := fmt.Sprintf("RSA, %d bits, %.30q, thumbprint %s", bits, k["alg"], thumbprint(k, "e", "kty", "n"))
	switch {
	case err != nil || bits < minRSA:
		return name, fmt.Errorf("want a modulus of at least %d bits", minRSA)
	case k["d"] != "":
		return name, errors.New("it is a private key")
	}
	return name, nil
}
