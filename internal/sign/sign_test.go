package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rfc6979 is the P-256 key of RFC 6979, appendix A.2.5.
func rfc6979(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	d, _ := hex.DecodeString("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ecdsaKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) }

func newKey(t testing.TB, s crypto.Signer) *Key {
	t.Helper()
	k, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der)
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// TestDeterministicECDSA: the signature of "sample" is the one of RFC 6979,
// appendix A.2.5, with SHA-256.
func TestDeterministicECDSA(t *testing.T) {
	k := newKey(t, rfc6979(t))
	raw, err := k.SignRaw([]byte("sample"))
	if err != nil {
		t.Fatal(err)
	}
	want := "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716" + "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
	if hex.EncodeToString(raw) != want {
		t.Errorf("got %x, want %s", raw, want)
	}
}

func TestAlgorithms(t *testing.T) {
	for _, row := range []struct {
		key           crypto.Signer
		name          string
		number        int64
		deterministic bool
	}{
		{ecdsaKey(t, elliptic.P256()), "ES256", -7, true},
		{ecdsaKey(t, elliptic.P384()), "ES384", -35, true},
		{ecdsaKey(t, elliptic.P521()), "ES512", -36, true},
		{rsaKey(t), "PS256", -37, false},
		{edKey(), "EdDSA", -8, true},
	} {
		k := newKey(t, row.key)
		if a := k.Algorithm(); a.Name != row.name || a.COSE != row.number {
			t.Errorf("%s: %+v", row.name, a)
		}
		one, err := k.SignMessage([]byte("m"))
		if err != nil {
			t.Fatal(err)
		}
		two, err := k.SignMessage([]byte("m"))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(one, two) != row.deterministic {
			t.Errorf("%s: two signatures: equal is %v", row.name, !row.deterministic)
		}
		if verify(k.Public(), k.alg, []byte("n"), one) {
			t.Errorf("%s: good for another message", row.name)
		}
	}
}

// liar signs something else.
type liar struct{ *ecdsa.PrivateKey }

func (l liar) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	other := bytes.Clone(digest)
	other[0]++
	return l.PrivateKey.Sign(nil, other, o)
}

func TestWrongSignatureIsKept(t *testing.T) {
	k := newKey(t, liar{rfc6979(t)})
	if sig, err := k.SignMessage([]byte("m")); err == nil {
		t.Errorf("%x", sig)
	}
	if _, err := DSSE("t", nil, k); err == nil {
		t.Error("an envelope")
	}
	if _, err := SignCOSE(nil, k, CoRIMParams{}); err == nil {
		t.Error("a COSE_Sign1")
	}
}

// broken cannot sign.
type broken struct{ *ecdsa.PrivateKey }

var errBroken = errors.New("out of order")

func (b broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errBroken }

func TestSignerFails(t *testing.T) {
	k := newKey(t, broken{rfc6979(t)})
	for name, f := range map[string]func() ([]byte, error){
		"SignMessage": func() ([]byte, error) { return k.SignMessage(nil) },
		"SignRaw":     func() ([]byte, error) { return k.SignRaw(nil) },
		"DSSE":        func() ([]byte, error) { return DSSE("t", nil, k) },
		"SignCOSE":    func() ([]byte, error) { return SignCOSE(nil, k, CoRIMParams{}) },
	} {
		if b, err := f(); !errors.Is(err, errBroken) || b != nil {
			t.Errorf("%s: %x, %v", name, b, err)
		}
	}
}

func TestParseKey(t *testing.T) {
	ec, rs := rfc6979(t), rsaKey(t)
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		pem  []byte
		want crypto.PublicKey
	}{
		"PKCS #8 EC":      {pkcs8(t, ec), ec.Public()},
		"PKCS #8 RSA":     {pkcs8(t, rs), rs.Public()},
		"PKCS #8 Ed25519": {pkcs8(t, edKey()), edKey().Public()},
		"SEC 1":           {block("EC PRIVATE KEY", sec1), ec.Public()},
		"with parameters": {append(block("EC PARAMETERS", []byte{6, 1, 1}), block("EC PRIVATE KEY", sec1)...), ec.Public()},
		"PKCS #1":         {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs)), rs.Public()},
	} {
		k, err := ParseKey(row.pem)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !k.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(row.want) {
			t.Errorf("%s: another key", name)
		}
	}
}

func TestParseKeyRefuses(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip("crypto/rsa makes no small keys")
	}
	spki, _ := x509.MarshalPKIXPublicKey(rfc6979(t).Public())
	sec1, _ := x509.MarshalECPrivateKey(rfc6979(t))
	x25519, _ := ecdh.X25519().GenerateKey(rand.Reader)
	p224 := pkcs8(t, ecdsaKey(t, elliptic.P224()))
	old := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: sec1})
	for name, row := range map[string]struct {
		pem  []byte
		want string
		hint bool
	}{
		"nothing":          {nil, "no PEM block", false},
		"no PEM":           {[]byte("a key"), "no PEM block", false},
		"DER":              {sec1, "DER: want PEM", true},
		"public":           {block("PUBLIC KEY", spki), "a PEM file with a PUBLIC KEY: want a private key", true},
		"certificate":      {block("CERTIFICATE", []byte{1}), "CERTIFICATE: want a private key", true},
		"OpenSSH":          {block("OPENSSH PRIVATE KEY", []byte{1}), "OpenSSH", true},
		"encrypted":        {block("ENCRYPTED PRIVATE KEY", []byte{1}), "encrypted", true},
		"encrypted of old": {old, "encrypted", true},
		"two keys":         {append(pkcs8(t, edKey()), pkcs8(t, edKey())...), "two private keys", false},
		"damaged":          {block("PRIVATE KEY", []byte{0x30, 1}), "PRIVATE KEY: ", false},
		"RSA of 1024":      {pkcs8(t, small), "RSA with 1024 bits", false},
		"X25519":           {pkcs8(t, x25519), "cannot sign", false},
		"P-224":            {p224, "P-224", false},
	} {
		_, err := ParseKey(row.pem)
		var bad *KeyError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		} else if (bad.Hint() != "") != row.hint {
			t.Errorf("%s: hint %q", name, bad.Hint())
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if k, err := Open(context.Background(), put("ec.pem", pkcs8(t, rfc6979(t))), Options{}); err != nil || k.alg != es256 {
		t.Errorf("%v", err)
	}
	bad := put("bad.pem", []byte("x"))
	var ke *KeyError
	if _, err := Open(context.Background(), bad, Options{}); !errors.As(err, &ke) || !strings.HasPrefix(err.Error(), "sign: "+bad+": ") {
		t.Errorf("%v", err)
	}
	if _, err := Open(context.Background(), filepath.Join(dir, "none"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Open(context.Background(), put("big", make([]byte, maxFile+1)), Options{}); err == nil || !strings.Contains(err.Error(), "not a key") {
		t.Errorf("%v", err)
	}
}

// certify makes a certificate for pub, signed by parent's key, or by its own.
func certify(t *testing.T, name string, key crypto.Signer, parent *x509.Certificate, by crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
		IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	if parent == nil {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func certPEM(list ...*x509.Certificate) (out []byte) {
	for _, c := range list {
		out = append(out, block("CERTIFICATE", c.Raw)...)
	}
	return out
}

func TestParseChain(t *testing.T) {
	leaf, root := rfc6979(t), ecdsaKey(t, elliptic.P384())
	rootCert := certify(t, "root", root, nil, nil)
	leafCert := certify(t, "leaf", leaf, rootCert, root)
	k := newKey(t, leaf)
	chain, err := ParseChain(certPEM(leafCert, rootCert), k)
	if err != nil || len(chain) != 2 {
		t.Fatalf("%v", err)
	}
	for name, row := range map[string]struct {
		pem  []byte
		want string
	}{
		"nothing":     {nil, "no PEM block"},
		"a key":       {pkcs8(t, leaf), "PRIVATE KEY"},
		"damaged":     {block("CERTIFICATE", []byte{0x30, 1}), "certificate 0"},
		"wrong key":   {certPEM(rootCert), "not for this key"},
		"wrong order": {certPEM(rootCert, leafCert), "not for this key"},
		"no chain":    {certPEM(leafCert, certify(t, "other", ecdsaKey(t, elliptic.P256()), nil, nil)), "not signed by the next"},
	} {
		if _, err := ParseChain(row.pem, k); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

// TestPAE holds the pre-authentication encoding against the example of DSSE's
// protocol.md.
func TestPAE(t *testing.T) {
	got := pae("http://example.com/HelloWorld", []byte("hello world"))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestDSSE checks an envelope of two keys, each over bytes written by hand.
func TestDSSE(t *testing.T) {
	ec, ed := newKey(t, rfc6979(t)), newKey(t, edKey())
	b, err := DSSE(InTotoPayload, []byte("{}"), ec, ed)
	if err != nil {
		t.Fatal(err)
	}
	var e Envelope
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	if e.PayloadType != "application/vnd.in-toto+json" || string(e.Payload) != "{}" || len(e.Signatures) != 2 {
		t.Errorf("%s", b)
	}
	message := []byte("DSSEv1 28 application/vnd.in-toto+json 2 {}")
	if !verify(ec.Public(), es256, message, e.Signatures[0].Sig) || !verify(ed.Public(), eddsa, message, e.Signatures[1].Sig) {
		t.Error("a signature is not good")
	}
	if !bytes.Contains(b, []byte(`"keyid":""`)) {
		t.Errorf("a key ID: %s", b)
	}
	if again, _ := DSSE(InTotoPayload, []byte("{}"), ec, ed); !bytes.Equal(b, again) {
		t.Error("two envelopes differ")
	}
	if _, err := DSSE("t", nil); err == nil {
		t.Error("an envelope without a key")
	}
}

// TestCOSE holds a COSE_Sign1 of an Ed25519 key against bytes put together by hand
// from RFC 9052 and draft-ietf-rats-corim.
func TestCOSE(t *testing.T) {
	k := newKey(t, edKey())
	payload := []byte{0xd9, 0x01, 0xf5, 0xa0}
	got, err := SignCOSE(payload, k, CoRIMParams{Signer: "me", NotAfter: 5})
	if err != nil {
		t.Fatal(err)
	}
	id := idOf(t, k)
	meta := "a2" + "00" + "a1" + "00" + "626d65" + "01" + "a1" + "01" + "c105"
	protected := "a4" + "01" + "27" + "03" + "74" + hex.EncodeToString([]byte("application/rim+cbor")) + "04" + "5820" + id + "08" + "4c" + meta
	header, _ := hex.DecodeString(protected)
	tbs, _ := hex.DecodeString("84" + "6a" + hex.EncodeToString([]byte("Signature1")) + "584a" + protected + "40" + "44d901f5a0")
	if len(header) != 0x4a {
		t.Fatalf("a header of %#x bytes", len(header))
	}
	want := "d2" + "84" + "584a" + protected + "a0" + "44d901f5a0" + "5840" + hex.EncodeToString(ed25519.Sign(edKey(), tbs))
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

// idOf is the ID in hex, made another way than Key.ID makes it.
func idOf(t *testing.T, k *Key) string {
	t.Helper()
	id, err := k.ID()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if sum := sha256.Sum256(der); err != nil || !bytes.Equal(sum[:], id) {
		t.Errorf("ID %x", id)
	}
	return hex.EncodeToString(id)
}

func TestCOSESigner(t *testing.T) {
	leaf, root := rfc6979(t), ecdsaKey(t, elliptic.P384())
	rootCert := certify(t, "root", root, nil, nil)
	leafCert := certify(t, "leaf", leaf, rootCert, root)
	k := newKey(t, leaf)
	id := idOf(t, k)
	for name, row := range map[string]struct {
		p    CoRIMParams
		want []byte
	}{
		"name":        {CoRIMParams{Signer: "me", Chain: []*x509.Certificate{leafCert}}, []byte("\xa1\x00\xa1\x00\x62me")},
		"subject":     {CoRIMParams{Chain: []*x509.Certificate{leafCert}}, []byte("\xa1\x00\xa1\x00\x67CN=leaf")},
		"key":         {CoRIMParams{}, []byte("key " + id)},
		"certificate": {CoRIMParams{Chain: []*x509.Certificate{leafCert}}, append([]byte{0x18, 33, 0x59, byte(len(leafCert.Raw) >> 8), byte(len(leafCert.Raw))}, leafCert.Raw...)},
		"chain":       {CoRIMParams{Chain: []*x509.Certificate{leafCert, rootCert}}, append([]byte{0x18, 33, 0x82, 0x59, byte(len(leafCert.Raw) >> 8), byte(len(leafCert.Raw))}, leafCert.Raw...)},
	} {
		b, err := SignCOSE([]byte{0xa0}, k, row.p)
		if err != nil || !bytes.Contains(b, row.want) {
			t.Errorf("%s: %x, %v", name, b, err)
		}
		pairs := byte(0xa4) // of the protected header, which begins with the algorithm and the content type
		if len(row.p.Chain) > 0 {
			pairs++
		}
		if !bytes.Contains(b, []byte{pairs, labelAlg, 0x26, labelContentType}) {
			t.Errorf("%s: not a header of %d pairs: %x", name, pairs&0x1f, b)
		}
	}
}

func TestRawECDSA(t *testing.T) {
	pub := &rfc6979(t).PublicKey
	if _, err := rawECDSA(pub, []byte{1}); err == nil {
		t.Error("what is not ASN.1 passes")
	}
	if _, err := rawECDSA(pub, append([]byte{0x30, 0x26, 2, 1, 1, 2, 0x21}, bytes.Repeat([]byte{0x7f}, 33)...)); err == nil {
		t.Error("s of 33 bytes passes")
	}
	raw, err := rawECDSA(pub, []byte{0x30, 6, 2, 1, 1, 2, 1, 2}) // short numbers have leading zeros
	if err != nil || len(raw) != 64 || raw[31] != 1 || raw[63] != 2 {
		t.Errorf("%x, %v", raw, err)
	}
	back, err := asn1ECDSA(pub, raw)
	if err != nil || !bytes.Equal(back, []byte{0x30, 6, 2, 1, 1, 2, 1, 2}) {
		t.Errorf("%x, %v", back, err)
	}
	if _, err := asn1ECDSA(pub, raw[1:]); err == nil {
		t.Error("63 bytes pass")
	}
}
