package kbs

import (
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
)

func bigInt(b []byte) *big.Int { return new(big.Int).SetBytes(b) }

func parsePEM(t testing.TB, b []byte) any {
	t.Helper()
	block, rest := pem.Decode(b)
	if block == nil || len(rest) != 0 {
		t.Fatal("want one block")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
