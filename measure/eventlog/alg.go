package eventlog

import (
	"crypto"
	_ "crypto/sha1" // the SHA-1 bank is still there on every TPM 2.0 that QEMU offers
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
)

// Alg is a hash algorithm as the TPM names it: TPM_ALG_ID, TPM 2.0 Library
// part 2, section 6.3.
type Alg uint16

// The hash algorithms that a register bank can have. SM3 digests are read and
// written but not computed.
const (
	SHA1   Alg = 0x0004
	SHA256 Alg = 0x000b
	SHA384 Alg = 0x000c
	SHA512 Alg = 0x000d
	SM3    Alg = 0x0012
)

var algs = []struct {
	alg  Alg
	name string
	size int // bytes
	hash crypto.Hash
}{
	{SHA1, "sha1", 20, crypto.SHA1},
	{SHA256, "sha256", 32, crypto.SHA256},
	{SHA384, "sha384", 48, crypto.SHA384},
	{SHA512, "sha512", 64, crypto.SHA512},
	{SM3, "sm3_256", 32, 0},
}

// ParseAlg returns the algorithm of a bank's name, as in "sha256".
func ParseAlg(name string) (Alg, error) {
	for _, a := range algs {
		if a.name == name {
			return a.alg, nil
		}
	}
	return 0, fmt.Errorf("eventlog: bank %q: want sha1, sha256, sha384, sha512 or sm3_256", name)
}

// String is the bank's name, "sha256", or "alg 0x0027" for an unknown one.
func (a Alg) String() string {
	for _, k := range algs {
		if k.alg == a {
			return k.name
		}
	}
	return fmt.Sprintf("alg %#04x", uint16(a))
}

// Hash is zero, which is not available, for an algorithm that is not computed.
func (a Alg) Hash() crypto.Hash {
	for _, k := range algs {
		if k.alg == a {
			return k.hash
		}
	}
	return 0
}

// Size is the digest's size in bytes, zero for an unknown algorithm.
func (a Alg) Size() int {
	for _, k := range algs {
		if k.alg == a {
			return k.size
		}
	}
	return 0
}

// Sum hashes the concatenation of parts. It panics when Hash is zero, as
// crypto.Hash.New does.
func (a Alg) Sum(parts ...[]byte) []byte {
	h := a.Hash().New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
