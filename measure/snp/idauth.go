package snp

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// IDAuthSize is that of the ID authentication information, in bytes.
const IDAuthSize = 4096

// Sizes of the fields below, in bytes: 56860, chapter on digital signatures.
const (
	coordinateSize = 72 // little-endian, of a number that has 48
	signatureSize  = 512
	keySize        = 1028
)

const (
	algoECDSA384 = 1 // ECDSA on P-384 with SHA-384
	curveP384    = 2
)

// idAuth is the ID authentication information, in wire order: 56860, structure
// of it. The names are those of QEMU's id-auth=.
type idAuth []byte

func (a idAuth) idAlgo() []byte         { return a[0x000:][:4] }
func (a idAuth) authorAlgo() []byte     { return a[0x004:][:4] }
func (a idAuth) blockSignature() []byte { return a[0x040:][:signatureSize] } // by the ID key, over the ID block
func (a idAuth) idKey() []byte          { return a[0x240:][:keySize] }
func (a idAuth) idKeySignature() []byte { return a[0x680:][:signatureSize] } // by the author key, over the ID key
func (a idAuth) authorKey() []byte      { return a[0x880:][:keySize] }
func (a idAuth) padding() [][2]int {
	return [][2]int{{0x008, 0x040}, {0x644, 0x680}, {0xc84, IDAuthSize}}
}

// IDAuth is the ID authentication information.
type IDAuth struct {
	Signature       ECDSASignature // by Key, over the ID block
	Key             *ecdsa.PublicKey
	AuthorSignature ECDSASignature   // by Author, over Key; zero without one
	Author          *ecdsa.PublicKey // nil: none
}

// ECDSASignature is a pair of numbers below the order of P-384, big-endian.
type ECDSASignature struct{ R, S [48]byte }

// SignIDBlock signs an ID block with id, and the public part of id with author if
// there is one. Keys are of P-384. Signatures are deterministic (RFC 6979): equal
// arguments give equal bytes.
func SignIDBlock(b *IDBlock, id, author *ecdsa.PrivateKey) ([]byte, error) {
	if err := b.Policy.Check(); err != nil {
		return nil, err
	}
	auth := make(idAuth, IDAuthSize)
	block := b.Marshal()
	if err := signInto(auth.idAlgo(), auth.blockSignature(), auth.idKey(), "ID key", id, block[:]); err != nil {
		return nil, err
	}
	if author == nil {
		return auth, nil
	}
	if err := signInto(auth.authorAlgo(), auth.idKeySignature(), auth.authorKey(), "author key", author, auth.idKey()); err != nil {
		return nil, err
	}
	return auth, nil
}

func signInto(algo, signature, public []byte, what string, key *ecdsa.PrivateKey, message []byte) error {
	if key == nil {
		return fmt.Errorf("snp: %s: none given", what)
	}
	wire, err := wireKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("snp: %s: %w", what, err)
	}
	s, err := sign(key, message)
	if err != nil {
		return fmt.Errorf("snp: %s: %w", what, err)
	}
	binary.LittleEndian.PutUint32(algo, algoECDSA384)
	copy(public, wire)
	copy(signature[:coordinateSize], littleEndian(s.R))
	copy(signature[coordinateSize:], littleEndian(s.S))
	return nil
}

// sign makes the signature of RFC 6979: crypto/ecdsa does without a random source.
func sign(key *ecdsa.PrivateKey, message []byte) (s ECDSASignature, err error) {
	digest := sha512.Sum384(message)
	der, err := key.Sign(nil, digest[:], crypto.SHA384)
	if err != nil {
		return s, err
	}
	var n struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &n); err != nil {
		return s, err
	}
	n.R.FillBytes(s.R[:])
	n.S.FillBytes(s.S[:])
	return s, nil
}

// verify tells whether s is key's signature of message.
func (s ECDSASignature) verify(key *ecdsa.PublicKey, message []byte) bool {
	digest := sha512.Sum384(message)
	return ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(s.R[:]), new(big.Int).SetBytes(s.S[:]))
}

// KeyDigest is what a report has as ID_KEY_DIGEST or AUTHOR_KEY_DIGEST: SHA-384
// of the key as ID authentication information holds it. It panics if the key is
// not of P-384; SignIDBlock and ParseIDAuth refuse such a one.
func KeyDigest(pub *ecdsa.PublicKey) [48]byte {
	b, err := wireKey(pub)
	if err != nil {
		panic("snp: key digest: " + err.Error())
	}
	return sha512.Sum384(b)
}

// wireKey is the wire form of a public key: curve, x, y, zeros.
func wireKey(pub *ecdsa.PublicKey) ([]byte, error) {
	if pub.Curve != elliptic.P384() {
		return nil, errors.New("not a key of P-384")
	}
	point, err := pub.Bytes() // 4, x, y
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, keySize), curveP384)
	b = append(b, littleEndian([48]byte(point[1:49]))...)
	b = append(b, littleEndian([48]byte(point[49:]))...)
	return b[:keySize], nil
}

// littleEndian turns a number around and fills it up.
func littleEndian(n [48]byte) []byte {
	slices.Reverse(n[:])
	return append(n[:], make([]byte, coordinateSize-len(n))...)
}

// ParseIDAuth reads ID authentication information. It checks no signature.
func ParseIDAuth(auth []byte) (*IDAuth, error) {
	if len(auth) != IDAuthSize {
		return nil, fmt.Errorf("snp: ID auth: %d bytes: want %d", len(auth), IDAuthSize)
	}
	a := idAuth(auth)
	for _, r := range a.padding() {
		if err := wantZero(a[r[0]:r[1]], r[0]); err != nil {
			return nil, err
		}
	}
	if algo := binary.LittleEndian.Uint32(a.idAlgo()); algo != algoECDSA384 {
		return nil, fmt.Errorf("snp: ID auth: algorithm of the ID key at 0x0: %d: want %d", algo, algoECDSA384)
	}
	var out IDAuth
	var err error
	if out.Signature, out.Key, err = parseSigned(a.blockSignature(), 0x040, a.idKey(), 0x240); err != nil {
		return nil, err
	}
	if err := out.parseAuthor(a); err != nil {
		return nil, err
	}
	return &out, nil
}

// parseAuthor reads the author key, if there is one.
func (out *IDAuth) parseAuthor(a idAuth) (err error) {
	switch algo := binary.LittleEndian.Uint32(a.authorAlgo()); algo {
	case 0:
		return cmp.Or(wantZero(a.idKeySignature(), 0x680), wantZero(a.authorKey(), 0x880))
	case algoECDSA384:
		out.AuthorSignature, out.Author, err = parseSigned(a.idKeySignature(), 0x680, a.authorKey(), 0x880)
		return err
	default:
		return fmt.Errorf("snp: ID auth: algorithm of the author key at 0x4: %d: want %d, or 0 for none", algo, algoECDSA384)
	}
}

// parseSigned reads a signature and the key that made it, at their offsets.
func parseSigned(signature []byte, signatureAt int, key []byte, keyAt int) (s ECDSASignature, pub *ecdsa.PublicKey, err error) {
	if s.R, err = parseNumber(signature[:coordinateSize], signatureAt); err != nil {
		return s, nil, err
	}
	if s.S, err = parseNumber(signature[coordinateSize:2*coordinateSize], signatureAt+coordinateSize); err != nil {
		return s, nil, err
	}
	if err := wantZero(signature[2*coordinateSize:], signatureAt+2*coordinateSize); err != nil {
		return s, nil, err
	}
	pub, err = parseKey(key, keyAt)
	return s, pub, err
}

func parseKey(key []byte, at int) (*ecdsa.PublicKey, error) {
	if curve := binary.LittleEndian.Uint32(key); curve != curveP384 {
		return nil, fmt.Errorf("snp: ID auth: curve at %#x: %d: want %d (P-384)", at, curve, curveP384)
	}
	x, err := parseNumber(key[4:][:coordinateSize], at+4)
	if err != nil {
		return nil, err
	}
	y, err := parseNumber(key[4+coordinateSize:][:coordinateSize], at+4+coordinateSize)
	if err != nil {
		return nil, err
	}
	if err := wantZero(key[4+2*coordinateSize:], at+4+2*coordinateSize); err != nil {
		return nil, err
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), slices.Concat([]byte{4}, x[:], y[:]))
	if err != nil {
		return nil, fmt.Errorf("snp: ID auth: key at %#x: %w", at, err)
	}
	return pub, nil
}

func parseNumber(b []byte, at int) (n [48]byte, err error) {
	copy(n[:], b)
	slices.Reverse(n[:])
	return n, wantZero(b[len(n):], at+len(n))
}

// wantZero refuses a reserved range that begins at an offset.
func wantZero(b []byte, at int) error {
	if i := slices.IndexFunc(b, func(c byte) bool { return c != 0 }); i >= 0 {
		return fmt.Errorf("snp: ID auth: byte at %#x: %#02x: want 0", at+i, b[i])
	}
	return nil
}

// VerifyIDAuth checks the signatures over an ID block and, if an author key is
// there, over the ID key. Whose keys they are is for the caller to say: KeyDigest.
func VerifyIDAuth(block *IDBlock, auth []byte) error {
	a, err := ParseIDAuth(auth)
	if err != nil {
		return err
	}
	b := block.Marshal()
	if !a.Signature.verify(a.Key, b[:]) {
		return errors.New("snp: ID auth: signature at 0x40: it is not the ID key's of this ID block")
	}
	if a.Author != nil && !a.AuthorSignature.verify(a.Author, idAuth(auth).idKey()) {
		return errors.New("snp: ID auth: signature at 0x680: it is not the author key's of the ID key")
	}
	return nil
}
