// Package sign holds signing keys, of PEM files and of PKCS #11 tokens, and puts
// signatures around what others made: COSE_Sign1 for a CoRIM, DSSE for an in-toto
// statement.
//
// A signature is the same every time where its scheme allows: ECDSA of a PEM file
// (RFC 6979) and Ed25519. RSA-PSS has a random salt, and a token's ECDSA is what
// the token makes it.
package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384 and SHA-512
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// ErrNoTool: a token was named, and this host lacks what reaches it.
var ErrNoTool = errors.New("pkcs11-tool is not installed")

// A KeyError says why a key is of no use, and what to do.
type KeyError struct {
	Key  string // file or URI
	Err  error
	hint string
}

func (e *KeyError) Error() string { return fmt.Sprintf("sign: %s: %v", e.Key, e.Err) }
func (e *KeyError) Unwrap() error { return e.Err }

// Hint says what to do about it, "" when there is nothing to say.
func (e *KeyError) Hint() string { return e.hint }

// Options are for keys in tokens.
type Options struct {
	PIN    string // of the token, when the URI has no pin-source; it never stands in an argument of a process
	Module string // PKCS #11 library, when the URI names none
	Tool   string // pkcs11-tool; "" looks for it in PATH
}

// A Key is a private key, here or in a token. It is a crypto.Signer.
type Key struct {
	signer crypto.Signer
	alg    *Algorithm
}

// An Algorithm is how a key signs.
type Algorithm struct {
	Name string // as IANA's COSE registry has it
	COSE int64  // its number there
	Hash crypto.Hash
}

// The algorithms, by the key that asks for each: RFC 9053 section 2, RFC 8230.
var (
	es256 = &Algorithm{"ES256", -7, crypto.SHA256}
	es384 = &Algorithm{"ES384", -35, crypto.SHA384}
	es512 = &Algorithm{"ES512", -36, crypto.SHA512}
	ps256 = &Algorithm{"PS256", -37, crypto.SHA256}
	eddsa = &Algorithm{"EdDSA", -8, 0}
)

// Open opens the key that name names: a PEM file, or a token's key as a pkcs11:
// URI of RFC 7512. The context holds for Open and, with a token, for every
// signature that the key makes.
func Open(ctx context.Context, name string, o Options) (*Key, error) {
	if isURI(name) {
		return openToken(ctx, name, o)
	}
	b, err := readFile(name)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	k, err := ParseKey(b)
	return k, named(name, err)
}

// named puts the name of a key into a KeyError.
func named(name string, err error) error {
	var bad *KeyError
	if errors.As(err, &bad) {
		bad.Key = name
	}
	return err
}

// maxFile is far above what any key or chain of certificates has.
const maxFile = 1 << 20

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes: not a key", name, maxFile)
	}
	return b, err
}

// New makes a Key of a signer. It refuses keys that no form here has a number for,
// and RSA below 2048 bits.
func New(s crypto.Signer) (*Key, error) {
	alg, err := algorithmOf(s.Public())
	if err != nil {
		return nil, err
	}
	return &Key{s, alg}, nil
}

func algorithmOf(pub crypto.PublicKey) (*Algorithm, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return es256, nil
		case elliptic.P384():
			return es384, nil
		case elliptic.P521():
			return es512, nil
		}
		return nil, fmt.Errorf("ECDSA on %s: want P-256, P-384 or P-521", k.Curve.Params().Name)
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return nil, fmt.Errorf("RSA with %d bits: want 2048 to 8192", n)
		}
		return ps256, nil
	case ed25519.PublicKey:
		return eddsa, nil
	}
	return nil, fmt.Errorf("%T: want ECDSA, RSA or Ed25519", pub)
}

// Algorithm returns how the key signs.
func (k *Key) Algorithm() Algorithm { return *k.alg }

// Public returns the public key.
func (k *Key) Public() crypto.PublicKey { return k.signer.Public() }

// Sign is crypto.Signer's.
func (k *Key) Sign(rand io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return k.signer.Sign(rand, digest, o)
}

// ID is the SHA-256 of the public key's SubjectPublicKeyInfo.
func (k *Key) ID() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// pss is RFC 8230 section 2: the salt is as long as the digest.
var pss = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

// SignMessage signs a message: ASN.1 for ECDSA, RSA-PSS, Ed25519. What a key that
// is not ours says is checked before anybody else sees it.
func (k *Key) SignMessage(message []byte) ([]byte, error) {
	digest, o, r := k.digest(message), crypto.SignerOpts(k.alg.Hash), io.Reader(nil)
	if k.alg == ps256 {
		o, r = pss, rand.Reader
	}
	// Without a source of randomness ECDSA is deterministic: crypto/ecdsa, Sign.
	sig, err := k.signer.Sign(r, digest, o)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if !verify(k.Public(), k.alg, message, sig) {
		return nil, errors.New("sign: the signature is not one of this key: token or key damaged")
	}
	return sig, nil
}

// SignRaw signs a message as COSE and JOSE want it: ECDSA as r and s, each as
// long as the curve's order (RFC 9053 section 2.1, RFC 7518 section 3.4).
func (k *Key) SignRaw(message []byte) ([]byte, error) {
	sig, err := k.SignMessage(message)
	if pub, ok := k.Public().(*ecdsa.PublicKey); ok && err == nil {
		return rawECDSA(pub, sig)
	}
	return sig, err
}

// digest is what the scheme signs.
func (k *Key) digest(message []byte) []byte { return k.alg.digest(message) }

func (a *Algorithm) digest(message []byte) []byte {
	if a.Hash == 0 {
		return message
	}
	h := a.Hash.New()
	h.Write(message)
	return h.Sum(nil)
}

func verify(pub crypto.PublicKey, a *Algorithm, message, sig []byte) bool {
	switch p := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, a.digest(message), sig)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(p, a.Hash, a.digest(message), sig, pss) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(p, message, sig)
	}
	return false
}

func isURI(name string) bool { return len(name) >= 7 && strings.EqualFold(name[:7], "pkcs11:") }
