package oracle

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"testing"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/crypt"
)

// The library that skopeo, buildah and containerd encrypt layers with decrypts
// ours, and we its.
func TestLayerEncryption(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]interface{ Public() any }{"EC": key{ec, &ec.PublicKey}, "RSA": key{rs, &rs.PublicKey}} {
		for _, size := range []int{0, 1, 15, 16, 17, 4096, 1 << 20} {
			plain := make([]byte, size)
			if _, err := rand.Read(plain); err != nil {
				t.Fatal(err)
			}
			private := k.(key).private
			if got := decryptTheirs(t, private, encryptOurs(t, k.Public(), plain)); !bytes.Equal(got, plain) {
				t.Errorf("%s: %d bytes: theirs decrypts ours to something else", name, size)
			}
			if got := decryptOurs(t, private, encryptTheirs(t, k.Public(), plain)); !bytes.Equal(got, plain) {
				t.Errorf("%s: %d bytes: ours decrypts theirs to something else", name, size)
			}
		}
	}
}

type key struct{ private, public any }

func (k key) Public() any { return k.public }

// layer is an encrypted one.
type layer struct {
	blob        []byte
	annotations map[string]string
}

func encryptOurs(t *testing.T, public any, plain []byte) layer {
	t.Helper()
	var b bytes.Buffer
	a, err := crypt.Encrypt(t.Context(), &b, bytes.NewReader(plain), fmt.Sprintf("sha256:%x", sha256.Sum256(plain)), rand.Reader, crypt.ForJWE(public))
	if err != nil {
		t.Fatal(err)
	}
	return layer{b.Bytes(), a}
}

func decryptOurs(t *testing.T, private any, l layer) []byte {
	t.Helper()
	k, err := crypt.Open(t.Context(), l.annotations, crypt.JWE(private))
	if err != nil {
		t.Fatal(err)
	}
	r, err := k.Decrypt(bytes.NewReader(l.blob))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encryptTheirs(t *testing.T, public any, plain []byte) layer {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := config.EncryptWithJwe([][]byte{pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})})
	if err != nil {
		t.Fatal(err)
	}
	desc := v1.Descriptor{Digest: digest.FromBytes(plain), Size: int64(len(plain))}
	r, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, bytes.NewReader(plain), desc)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	a, err := finish()
	if err != nil {
		t.Fatal(err)
	}
	return layer{b, a}
}

func decryptTheirs(t *testing.T, private any, l layer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := config.DecryptWithPrivKeys([][]byte{pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})}, [][]byte{nil})
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := ocicrypt.DecryptLayer(cc.DecryptConfig, bytes.NewReader(l.blob), v1.Descriptor{Annotations: maps.Clone(l.annotations)}, false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
