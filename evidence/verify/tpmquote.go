package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/plinth-os/plinth/evidence"
)

// Constants of TPM 2.0 Library, part 2: 6.2 TPM_GENERATED, 6.3 TPM_ALG_ID, 6.9 TPM_ST.
const (
	tpmGenerated = 0xff544347 // a TPM made it: one signs nothing else that begins so with a restricted key
	tpmQuoteTag  = 0x8018     // TPM_ST_ATTEST_QUOTE

	tpmRSASSA = 0x14
	tpmRSAPSS = 0x16
	tpmECDSA  = 0x18
	tpmSHA256 = 0x0b
)

var tpmHashes = map[uint16]crypto.Hash{tpmSHA256: crypto.SHA256, 0x0c: crypto.SHA384, 0x0d: crypto.SHA512}

var tpmSchemes = map[uint16]string{tpmRSASSA: "RSASSA", tpmRSAPSS: "RSAPSS", tpmECDSA: "ECDSA"}

// tpmAttest is what a TPM signs; big-endian; TPM 2.0 Library, part 2, 10.12.12,
// TPMS_ATTEST, and 10.12.4, TPMS_QUOTE_INFO.
type tpmAttest struct {
	magic    uint32
	kind     uint16
	signer   []byte // name of the key
	extra    []byte // qualifying data
	clock    tpmClock
	firmware uint64 // version, by the vendor

	selections []tpmSelection
	digest     []byte // of the registers that are selected
}

// tpmClock is TPMS_CLOCK_INFO: 10.11.1.
type tpmClock struct {
	Clock        uint64 // milliseconds that the TPM was powered
	ResetCount   uint32 // boots
	RestartCount uint32 // resumes since
	Safe         uint8  // 1: no later Clock was ever shown
}

// tpmSelection is TPMS_PCR_SELECTION: 10.6.2.
type tpmSelection struct {
	hash uint16
	bits []byte // a register each, from the lowest bit of the first
}

// Bounds of a quote: those of the largest digest that a TPM has, and of its banks.
const (
	maxTPM2B      = 2 + 64
	maxSelections = 16
	maxSelectSize = 4 // bytes of a selection: 32 registers
)

const objectAttest = "TPMS_ATTEST"

// reader is a cursor over a structure of a TPM; big-endian.
type reader struct {
	object string
	b      []byte
	at     int
	err    error
}

func (r *reader) take(n int, what string) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > len(r.b)-r.at {
		r.err = malformed(r.object, r.at, "%s: %d bytes: %d are left", what, n, len(r.b)-r.at)
		return nil
	}
	out := r.b[r.at : r.at+n : r.at+n]
	r.at += n
	return out
}

func (r *reader) number(size int, what string) (n uint64) {
	for _, x := range r.take(size, what) {
		n = n<<8 | uint64(x)
	}
	return n
}

// sized is a TPM2B of at most max bytes.
func (r *reader) sized(max int, what string) []byte {
	n := int(r.number(2, "size of "+what))
	if r.err == nil && n > max {
		r.err = malformed(r.object, r.at-2, "%s: %d bytes: want at most %d", what, n, max)
	}
	return r.take(n, what)
}

func (r *reader) end() error {
	if r.err == nil && r.at != len(r.b) {
		r.err = malformed(r.object, r.at, "%d bytes behind the end", len(r.b)-r.at)
	}
	return r.err
}

// parseAttest reads a quote. Whether it is one, its magic and kind say.
func parseAttest(b []byte) (*tpmAttest, error) {
	r := &reader{object: objectAttest, b: b}
	a := &tpmAttest{magic: uint32(r.number(4, "magic")), kind: uint16(r.number(2, "type"))}
	if r.err == nil && a.kind != tpmQuoteTag {
		return a, nil // what follows is of another form
	}
	a.signer = r.sized(maxTPM2B, "name of the key")
	a.extra = r.sized(maxTPM2B, "qualifying data")
	a.clock = tpmClock{r.number(8, "clock"), uint32(r.number(4, "reset count")), uint32(r.number(4, "restart count")), uint8(r.number(1, "safe"))}
	a.firmware = r.number(8, "firmware version")
	n := r.number(4, "number of selections")
	if r.err == nil && n > maxSelections {
		return nil, malformed(r.object, r.at-4, "%d selections of registers: want at most %d", n, maxSelections)
	}
	for range n {
		s := tpmSelection{hash: uint16(r.number(2, "bank"))}
		size := int(r.number(1, "size of a selection"))
		if r.err == nil && size > maxSelectSize {
			return nil, malformed(r.object, r.at-1, "selection of %d bytes: want at most %d", size, maxSelectSize)
		}
		s.bits = r.take(size, "selection")
		a.selections = append(a.selections, s)
	}
	a.digest = r.sized(maxTPM2B, "digest of the registers")
	return a, r.end()
}

// all tells whether PCR 0 to 23 of bank sha256 are selected, and nothing else.
func (a *tpmAttest) all() bool {
	if len(a.selections) != 1 || a.selections[0].hash != tpmSHA256 {
		return false
	}
	for i := range 8 * maxSelectSize {
		s := a.selections[0].bits
		if set := i/8 < len(s) && s[i/8]>>(i%8)&1 != 0; set != (i < evidence.Registers) {
			return false
		}
	}
	return true
}

func (a *tpmAttest) selected() (out string) {
	for i, s := range a.selections {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("bank %#x: %x", s.hash, s.bits)
	}
	return orUnknown(out)
}

// tpmSignature is TPMT_SIGNATURE: TPM 2.0 Library, part 2, 11.3.4.
type tpmSignature struct {
	scheme uint16
	hash   uint16
	rsa    []byte
	r, s   []byte
}

const maxRSA = 1 << 10 // bytes of a signature: 8192 bits

func parseTPMSignature(b []byte) (*tpmSignature, error) {
	r := &reader{object: "TPMT_SIGNATURE", b: b}
	s := &tpmSignature{scheme: uint16(r.number(2, "scheme"))}
	s.hash = uint16(r.number(2, "hash"))
	switch {
	case r.err != nil:
	case tpmSchemes[s.scheme] == "":
		return nil, malformed(r.object, 0, "scheme %#x: want RSASSA, RSAPSS or ECDSA", s.scheme)
	case tpmHashes[s.hash] == 0:
		return nil, malformed(r.object, 2, "hash %#x: want SHA-256, SHA-384 or SHA-512", s.hash)
	case s.scheme == tpmECDSA:
		s.r, s.s = r.sized(maxTPM2B, "r"), r.sized(maxTPM2B, "s")
	default:
		s.rsa = r.sized(maxRSA, "signature")
	}
	return s, r.end()
}

func (s *tpmSignature) String() string {
	return fmt.Sprintf("%s with %v", tpmSchemes[s.scheme], tpmHashes[s.hash])
}

var errSignature = errors.New("the signature is not that of this key over this message")

// verify checks the signature over message.
func (s *tpmSignature) verify(key crypto.PublicKey, message []byte) error {
	h := tpmHashes[s.hash]
	d := h.New()
	d.Write(message)
	digest := d.Sum(nil)
	switch k := key.(type) {
	case *rsa.PublicKey:
		switch s.scheme {
		case tpmRSASSA:
			return faulty(rsa.VerifyPKCS1v15(k, h, digest, s.rsa) == nil)
		case tpmRSAPSS:
			return faulty(rsa.VerifyPSS(k, h, digest, s.rsa, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil)
		}
	case *ecdsa.PublicKey:
		if s.scheme == tpmECDSA {
			return faulty(ecdsa.Verify(k, digest, new(big.Int).SetBytes(s.r), new(big.Int).SetBytes(s.s)))
		}
	}
	return fmt.Errorf("%s does not go with a key of this kind", s)
}

func faulty(ok bool) error {
	if ok {
		return nil
	}
	return errSignature
}

// Least and greatest size of an RSA key, in bits: a greater one takes seconds to try.
const (
	minRSABits = 2048
	maxRSABits = 8 * maxRSA
)

// maxSPKI bounds a public key, in bytes.
const maxSPKI = 2 << 10

// attestationKey reads an attestation key and tells what it is.
func attestationKey(spki []byte) (key crypto.PublicKey, what string, err error) {
	if len(spki) > maxSPKI {
		return nil, "", fmt.Errorf("%d bytes, want at most %d", len(spki), maxSPKI)
	}
	if key, err = x509.ParsePKIXPublicKey(spki); err != nil {
		return nil, "", err
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k, fmt.Sprintf("RSA, %d bits", k.N.BitLen()), checkRSA(k)
	case *ecdsa.PublicKey:
		what = "ECDSA " + k.Curve.Params().Name
		if k.Curve == elliptic.P224() {
			err = errors.New("too weak")
		}
		return k, what, err
	}
	return nil, fmt.Sprintf("%T", key), errors.New("want RSA or ECDSA")
}

func checkRSA(k *rsa.PublicKey) error {
	switch n := k.N.BitLen(); {
	case n < minRSABits || n > maxRSABits:
		return fmt.Errorf("%d bits: want %d to %d", n, minRSABits, maxRSABits)
	case k.E < 1<<16 || k.E%2 == 0: // part 2, 12.2.3.5: 65537, where a TPM is not told otherwise
		return fmt.Errorf("exponent %d: want an odd one, 65537 or greater", k.E)
	}
	return nil
}

func (c tpmClock) String() string {
	safe := "safe"
	if c.Safe != 1 {
		safe = "not safe"
	}
	return fmt.Sprintf("clock %d ms (%s), reset %d times, restarted %d times", c.Clock, safe, c.ResetCount, c.RestartCount)
}

// firmwareText writes a version as the two numbers that it is most often made of.
func firmwareText(v uint64) string {
	return fmt.Sprintf("%#x", binary.BigEndian.AppendUint64(nil, v))
}
