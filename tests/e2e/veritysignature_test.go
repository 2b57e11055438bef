package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/uki"
)

// TestVerityRootSignature gives the guest's kernel signatures of the root hash. It
// checks them with the certificate inside, and then asks for somebody whom it
// trusts behind that certificate: of its own makers' keys there is no private half
// here, so that the best end is that one.
func TestVerityRootSignature(t *testing.T) {
	const (
		untrusted = "required key not available"  // ENOKEY: all is right but the trust
		rejected  = "key was rejected by service" // EKEYREJECTED: not the key's signature of this
		malformed = "invalid argument|bad message|" + rejected
	)
	img := stockRecipe().make(t)
	signer := newSigner(t)
	sign := func(text string) []byte {
		sig, err := signer.SignDetached([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	hash := fmt.Sprintf("%x", img.root.RootHash)
	good := sign(hash)
	flipped := sign(hash)
	flipped[len(flipped)-1] ^= 1 // the signature itself comes last
	g := img.boot(t)
	g.mustReport(t)
	for _, c := range []struct {
		name string
		sig  []byte
		want string
	}{
		{"of the root hash", good, untrusted},
		{"a bit flipped", flipped, malformed},
		{"of another root hash", sign(strings.Repeat("0", len(hash))), rejected},
		{"of the root hash as bytes", sign(string(img.root.RootHash)), rejected},
		{"cut off", good[:len(good)-1], malformed},
	} {
		got := g.ask(t, fmt.Sprintf("signed %x", c.sig))
		if !regexp.MustCompile(`^error dm: load table: .*: (` + c.want + `)$`).MatchString(got) {
			t.Errorf("%s: %q, want %q\n%s", c.name, got, c.want, g.vm.ConsoleTail())
		}
	}
}

func newSigner(t *testing.T) *uki.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &uki.Signer{Key: key, Cert: cert}
}
