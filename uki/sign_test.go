package uki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// pair makes a key and its certificate, in PEM.
func pair(key any, public any) (keyPEM, certPEM []byte) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0x1234567890),
		Subject:      pkix.Name{CommonName: "test signer", Organization: []string{"plinth"}},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Unix(1<<33, 0),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		panic(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

type pems struct{ key, cert []byte }

var rsaPair = sync.OnceValue(func() pems {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	key, cert := pair(k, &k.PublicKey)
	return pems{key, cert}
})

var otherPair = sync.OnceValue(func() pems {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	key, cert := pair(k, &k.PublicKey)
	return pems{key, cert}
})

func load(t testing.TB, p pems) *Signer {
	t.Helper()
	s, err := LoadSigner(p.key, p.cert)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testSigner(t testing.TB) *Signer { return load(t, rsaPair()) }

func sign(t testing.TB, image []byte, s *Signer) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Sign(&out, bytes.NewReader(image), int64(len(image)), s); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func verify(image []byte, cert *x509.Certificate) error {
	return VerifySignature(bytes.NewReader(image), int64(len(image)), cert)
}

func unsigned(t testing.TB) []byte { return build(t, roomy("257.13").Bytes(), sections(contents())) }

func TestSign(t *testing.T) {
	s, image := testSigner(t), unsigned(t)
	signed := sign(t, image, s)
	if again := sign(t, image, s); !bytes.Equal(signed, again) {
		t.Error("two runs differ")
	}
	if err := verify(signed, s.Cert); err != nil {
		t.Error(err)
	}
	if len(signed)%8 != 0 {
		t.Errorf("%d bytes: want a multiple of 8", len(signed))
	}
	a, err := authenticode(parse(t, image))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := authenticode(parse(t, signed)); err != nil || a != b {
		t.Errorf("digest %v, %v: before signing %v", b, err, a)
	}
	// Besides two header fields nothing that was there has changed.
	f := parse(t, signed)
	for _, field := range [][2]int64{{f.CheckSumField, 4}, {f.CertDir, 8}} {
		clear(signed[field[0]:][:field[1]])
	}
	if !bytes.Equal(signed[:len(image)], image) {
		t.Error("the image itself has changed")
	}
	if err := verify(image, s.Cert); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("unsigned image: error %v", err)
	}
}

// TestSignPadding signs an image of every size modulo 8: its digest then is
// that of the padded image.
func TestSignPadding(t *testing.T) {
	s := testSigner(t)
	for n := range 8 {
		i := roomy("257.13")
		i.Tail = bytes.Repeat([]byte{7}, n)
		image := i.Bytes()
		signed := sign(t, image, s)
		if err := verify(signed, s.Cert); err != nil {
			t.Errorf("%d bytes over: %v", n, err)
		}
		if !bytes.Equal(signed[len(image)-n:len(image)], i.Tail) {
			t.Errorf("%d bytes over: tail has changed", n)
		}
	}
}

func TestPaddedReader(t *testing.T) {
	for _, n := range []int64{0, 1, 7, 8, 100} {
		pad := make([]byte, -n&7)
		r := &padded{strings.NewReader(strings.Repeat("x", int(n))), n, pad}
		want := append(bytes.Repeat([]byte("x"), int(n)), pad...)
		if err := iotest.TestReader(io.NewSectionReader(r, 0, n+int64(len(pad))), want); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	short := &padded{strings.NewReader("x"), 5, make([]byte, 3)}
	if _, err := short.ReadAt(make([]byte, 8), 0); err == nil {
		t.Error("a file shorter than it says: no error")
	}
}

// TestVerifyTampered changes one byte at a time: of what the digest covers, of
// the signature, and of the two fields that nothing covers.
func TestVerifyTampered(t *testing.T) {
	s := testSigner(t)
	signed := sign(t, unsigned(t), s)
	f := parse(t, signed)
	table := int(f.CertTable.Offset)
	step := 1 + table/500
	for i := 0; i < table; i += step {
		b := bytes.Clone(signed)
		b[i] ^= 0x40
		free := int64(i) >= f.CheckSumField && int64(i) < f.CheckSumField+4
		if err := verify(b, s.Cert); err == nil && !free {
			t.Fatalf("byte %#x of the image changed: no error", i)
		}
	}
	sig, err := f.Certificates()
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for i := range sig[0] {
		b := bytes.Clone(signed)
		b[table+8+i] ^= 0x01
		if err := verify(b, s.Cert); err == nil {
			accepted++
		}
	}
	// What the signature does not cover: version numbers, parameters of
	// algorithms, the algorithms set and the embedded copy of the
	// certificate, which verification does not use. x509 refuses most of it.
	if accepted > len(s.Cert.Raw)+100 {
		t.Errorf("%d of %d bytes of the signature can be changed", accepted, len(sig[0]))
	}
}

// TestVerifyParts changes the parts of a signature that carry its meaning.
func TestVerifyParts(t *testing.T) {
	s, other := testSigner(t), load(t, otherPair())
	image := unsigned(t)
	blob, err := parse(t, sign(t, image, s)).Certificates()
	if err != nil {
		t.Fatal(err)
	}
	a, err := authenticode(parse(t, image))
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := hex.DecodeString(a.SHA256)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, curvePEM := pair(curve, &curve.PublicKey)
	block, _ := pem.Decode(curvePEM)
	curveCert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sha384 := pkix.AlgorithmIdentifier{Algorithm: []int{2, 16, 840, 1, 101, 3, 4, 2, 2}}
	for _, row := range []struct {
		name   string
		change func(*signature)
		digest []byte
		cert   *x509.Certificate
		want   string
	}{
		{"good", func(*signature) {}, digest, s.Cert, ""},
		{"another image", func(*signature) {}, make([]byte, 32), s.Cert, "image digest is"},
		{"another serial", func(sig *signature) { sig.signer.IssuerAndSerialNumber.SerialNumber = big.NewInt(1) }, digest, s.Cert, "another certificate"},
		{"another issuer", func(sig *signature) { sig.signer.IssuerAndSerialNumber.Issuer.FullBytes = nil }, digest, s.Cert, "another certificate"},
		{"another key of that name", func(*signature) {}, digest, other.Cert, "verification error"},
		{"digest algorithm of the image", func(sig *signature) { sig.spc.MessageDigest.DigestAlgorithm = sha384 }, digest, s.Cert, "want SHA-256"},
		{"digest algorithm", func(sig *signature) { sig.signer.DigestAlgorithm = sha384 }, digest, s.Cert, "want RSA with SHA-256"},
		{"signature algorithm", func(sig *signature) { sig.signer.DigestEncryptionAlgorithm = sha384 }, digest, s.Cert, "want RSA with SHA-256"},
		{"content", func(sig *signature) { sig.content = append([]byte{1}, sig.content...) }, digest, s.Cert, "does not match the signed content"},
		{"no attributes", func(sig *signature) { sig.signer.AuthenticatedAttributes.Bytes = nil }, digest, s.Cert, "once each"},
		{"attributes are no DER", func(sig *signature) { sig.signer.AuthenticatedAttributes.Bytes = []byte{1} }, digest, s.Cert, "attributes"},
		{"signature", func(sig *signature) { sig.signer.EncryptedDigest[9] ^= 1 }, digest, s.Cert, "verification error"},
		{"another kind of key", func(*signature) {}, digest, curveCert, "want RSA"},
	} {
		t.Run(row.name, func(t *testing.T) {
			sig, err := parseSignature(bytes.Clone(blob[0]))
			if err != nil {
				t.Fatal(err)
			}
			row.change(sig)
			err = sig.verify(row.digest, row.cert)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error %v: want %q", err, row.want)
			}
		})
	}
}

// TestParseSignature changes the frame of a signature.
func TestParseSignature(t *testing.T) {
	blob, err := marshalSignature(make([]byte, 32), testSigner(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		change func(*contentInfo, *signedData)
		want   string
	}{
		{"good", func(*contentInfo, *signedData) {}, ""},
		{"no signed data", func(c *contentInfo, _ *signedData) { c.ContentType = oidSHA256 }, "want signedData"},
		{"other content", func(_ *contentInfo, sd *signedData) { sd.ContentInfo.ContentType = oidSHA256 }, "want SpcIndirectData"},
		{"no content", func(_ *contentInfo, sd *signedData) { sd.ContentInfo.Content = asn1.RawValue{} }, "SpcIndirectData"},
		{"content of another form", func(_ *contentInfo, sd *signedData) {
			sd.ContentInfo.Content = tagged(0, true, []byte{0x30, 0})
		}, "SpcIndirectData"},
		{"no signer", func(_ *contentInfo, sd *signedData) { sd.SignerInfos = nil }, "0 signers"},
		{"two signers", func(_ *contentInfo, sd *signedData) { sd.SignerInfos = append(sd.SignerInfos, sd.SignerInfos[0]) }, "2 signers"},
		{"certificates", func(_ *contentInfo, sd *signedData) { sd.Certificates = tagged(0, true, []byte{0x30, 0}) }, "certificates"},
		{"no certificate", func(_ *contentInfo, sd *signedData) { sd.Certificates = tagged(0, true, nil) }, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			var outer contentInfo
			if _, err := asn1.Unmarshal(blob, &outer); err != nil {
				t.Fatal(err)
			}
			var sd signedData
			if _, err := asn1.Unmarshal(outer.Content.Bytes, &sd); err != nil {
				t.Fatal(err)
			}
			row.change(&outer, &sd)
			inner, err := asn1.Marshal(sd)
			if err != nil {
				t.Fatal(err)
			}
			der, err := asn1.Marshal(contentInfo{outer.ContentType, tagged(0, true, inner)})
			if err != nil {
				t.Fatal(err)
			}
			if row.name == "good" && !bytes.Equal(der, blob) {
				t.Error("written back, it differs")
			}
			sig, err := parseSignature(der)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error %v: want %q", err, row.want)
			}
			if row.name == "no certificate" && sig.cert() != nil {
				t.Error("a certificate from nowhere")
			}
		})
	}
}

func TestSignRefused(t *testing.T) {
	s := testSigner(t)
	noDirectory := roomy("257.13")
	noDirectory.Directories = -1
	for _, row := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"signed", sign(t, unsigned(t), s), "signed already"},
		{"no directory", noDirectory.Bytes(), "no directory entry"},
		{"no PE", []byte("text"), "not a PE image"},
	} {
		err := Sign(io.Discard, bytes.NewReader(row.image), int64(len(row.image)), s)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error %v: want %q", row.name, err, row.want)
		}
	}
	edwards := &Signer{Key: ed25519.NewKeyFromSeed(make([]byte, 32)), Cert: s.Cert}
	if _, err := marshalSignature(make([]byte, 32), edwards); err == nil || !strings.Contains(err.Error(), "want RSA") {
		t.Errorf("Ed25519: error %v", err)
	}
	large := unsigned(t)
	err := Sign(io.Discard, &padded{bytes.NewReader(large), int64(len(large)), make([]byte, 4096)}, 1<<32-8, s)
	if err == nil || !strings.Contains(err.Error(), "want less than 4 GiB") {
		t.Errorf("image of 4 GiB: error %v", err)
	}
}

func TestLoadSigner(t *testing.T) {
	good, other := rsaPair(), otherPair()
	block, _ := pem.Decode(good.key)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(parsed.(*rsa.PrivateKey))})
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	smallKey, smallCert := pair(small, &small.PublicKey)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curveKey, curveCert := pair(curve, &curve.PublicKey)
	edwards := ed25519.NewKeyFromSeed(make([]byte, 32))
	edKey, _ := pair(edwards, edwards.Public())
	for _, row := range []struct {
		name      string
		key, cert []byte
		want      string
	}{
		{"PKCS #8", good.key, good.cert, ""},
		{"PKCS #1", pkcs1, good.cert, ""},
		{"mismatch", good.key, other.cert, "is not for this key"},
		{"key missing", nil, good.cert, "key: no PEM block"},
		{"certificate missing", good.key, nil, "certificate: no PEM block"},
		{"exchanged", good.cert, good.key, "CERTIFICATE\": want PRIVATE KEY"},
		{"encrypted", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY"}), good.cert, "not encrypted"},
		{"key is no DER", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), good.cert, "uki: key: "},
		{"certificate is no DER", good.key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "uki: certificate: "},
		{"1024 bits", smallKey, smallCert, "1024 bits"},
		{"ECDSA", curveKey, curveCert, "ECDSA"},
		{"Ed25519", edKey, good.cert, "ed25519.PrivateKey: want RSA"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := LoadSigner(row.key, row.cert)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error %v: want %q", err, row.want)
			}
		})
	}
}

var osslCheckSum = regexp.MustCompile(`PE checksum   : ([0-9A-F]{8})\n`)

func TestOsslsigncode(t *testing.T) {
	testenv.Need(t, "osslsigncode")
	dir := t.TempDir()
	cert := filepath.Join(dir, "cert.pem")
	if err := os.WriteFile(cert, rsaPair().cert, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(image []byte) (string, error) {
		file := filepath.Join(dir, "image.efi")
		if err := os.WriteFile(file, image, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(testenv.Tool("osslsigncode"), "verify", "-in", file, "-CAfile", cert).CombinedOutput()
		return string(out), err
	}
	for name, stub := range stubs(t) {
		added := sections(map[string]string{".linux": contents()[".linux"], ".initrd": "x", ".sbat": contents()[".sbat"]})
		signed := sign(t, build(t, stub, added), testSigner(t))
		out, err := run(signed)
		if err != nil || !strings.Contains(out, "Signature verification: ok") {
			t.Errorf("%s: osslsigncode: %v: %s", name, err, out)
		}
		// It names the checksum once if it agrees and twice if not.
		if osslCheckSum.FindString(out) == "" || strings.Contains(out, "invalid PE checksum") {
			t.Errorf("%s: checksum: %s", name, out)
		}
		signed[len(signed)/2] ^= 1
		if out, err := run(signed); err == nil {
			t.Errorf("%s: osslsigncode takes a changed image: %s", name, out)
		}
	}
}

// TestCheckSum compares pieces of any size with the definition over the whole.
func TestCheckSum(t *testing.T) {
	b := bytes.Repeat([]byte{0xff, 0x01, 0x80}, 70000)
	var want uint32
	for i := 0; i < len(b); i += 2 {
		want += uint32(binary.LittleEndian.Uint16(b[i:]))
		want = want&0xffff + want>>16
	}
	want += uint32(len(b))
	for _, n := range []int{1, 2, 3, 511, len(b)} {
		var c checkSum
		for rest := b; len(rest) > 0; rest = rest[min(n, len(rest)):] {
			if _, err := c.Write(rest[:min(n, len(rest))]); err != nil {
				t.Fatal(err)
			}
		}
		if c.value() != want {
			t.Errorf("pieces of %d: %#x: want %#x", n, c.value(), want)
		}
	}
}

// FuzzSignature parses hostile certificate tables: no signature that the
// signer did not make may verify.
func FuzzSignature(f *testing.F) {
	s := testSigner(f)
	image := unsigned(f)
	file := parse(f, image)
	a, err := authenticode(file)
	if err != nil {
		f.Fatal(err)
	}
	digest, _ := hex.DecodeString(a.SHA256)
	blob, err := marshalSignature(digest, s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob)
	f.Add([]byte{0x30, 0x80})
	wrong := make([]byte, 32)
	f.Fuzz(func(t *testing.T, der []byte) {
		sig, err := parseSignature(der)
		if err != nil {
			return
		}
		sig.cert()
		if err := sig.verify(wrong, s.Cert); err == nil {
			t.Error("a digest that was never signed verifies")
		}
	})
}
