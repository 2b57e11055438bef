package oracle

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/foxboron/go-uefi/authenticode"
	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/internal/pe/petest"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/uki"
	saferwall "github.com/saferwall/pe"
)

func image(t *testing.T) []byte {
	t.Helper()
	stub := petest.Stub("257.13")
	stub.SizeOfHeaders = 2048
	kernel, initrd := petest.Kernel().Bytes(), bytes.Repeat([]byte("initrd"), 9999)
	var out bytes.Buffer
	err := uki.Write(&out, stub.Bytes(), []uki.Section{
		{Name: ".linux", Content: io.NewSectionReader(bytes.NewReader(kernel), 0, int64(len(kernel)))},
		{Name: ".initrd", Content: io.NewSectionReader(bytes.NewReader(initrd), 0, int64(len(initrd)))},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func signer(t *testing.T) *uki.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7),
		Subject:      pkix.Name{CommonName: "oracle"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Unix(1<<33, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &uki.Signer{Key: key, Cert: cert}
}

func sign(t *testing.T, b []byte, s *uki.Signer) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := uki.Sign(&out, bytes.NewReader(b), int64(len(b)), s); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestAuthenticodeDigest compares the digest with go-uefi's and saferwall's,
// of images of ours, of the published vector, and of the files that
// PLINTH_TEST_PE names. Only files whose size is a multiple of 8 are compared:
// both libraries pad the others, which firmware does not.
func TestAuthenticodeDigest(t *testing.T) {
	unsigned := image(t)
	images := map[string][]byte{"unsigned": unsigned, "signed": sign(t, unsigned, signer(t))}
	files := filepath.SplitList(os.Getenv("PLINTH_TEST_PE"))
	for _, file := range append(files, filepath.Join(testenv.Vectors(t), "measure", "go-uefi", "test.pecoff.signed")) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		images[file] = b
	}
	for name, b := range images {
		f, err := pe.Parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if err := f.WriteAuthenticode(h); err != nil {
			t.Fatal(err)
		}
		bin, err := authenticode.Parse(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if want := bin.Hash(crypto.SHA256); !bytes.Equal(h.Sum(nil), want) {
			t.Errorf("%s: digest %x: go-uefi says %x", name, h.Sum(nil), want)
		}
		other, err := saferwall.NewBytes(b, &saferwall.Options{Fast: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Parse(); err != nil {
			t.Fatal(err)
		}
		if want := other.Authentihash(); !bytes.Equal(h.Sum(nil), want) {
			t.Errorf("%s: digest %x: saferwall says %x", name, h.Sum(nil), want)
		}
	}
}

// TestSignatures verifies our signature with go-uefi and go-uefi's with ours.
func TestSignatures(t *testing.T) {
	s, unsigned := signer(t), image(t)
	signed := sign(t, unsigned, s)
	bin, err := authenticode.Parse(bytes.NewReader(signed))
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := bin.Verify(s.Cert); !ok || err != nil {
		t.Errorf("go-uefi on our signature: %v, %v", ok, err)
	}
	if ok, err := bin.Verify(signer(t).Cert); ok && err == nil {
		t.Error("go-uefi takes another certificate")
	}
	if bin, err = authenticode.Parse(bytes.NewReader(unsigned)); err != nil {
		t.Fatal(err)
	}
	if _, err := bin.Sign(s.Key, s.Cert); err != nil {
		t.Fatal(err)
	}
	theirs := bin.Bytes()
	if err := uki.VerifySignature(bytes.NewReader(theirs), int64(len(theirs)), s.Cert); err != nil {
		t.Errorf("we on go-uefi's signature: %v", err)
	}
	theirs[len(unsigned)/2] ^= 1
	if err := uki.VerifySignature(bytes.NewReader(theirs), int64(len(theirs)), s.Cert); err == nil {
		t.Error("we take go-uefi's signature on another image")
	}
}
