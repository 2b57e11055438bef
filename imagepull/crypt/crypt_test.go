package crypt

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/plinth-os/plinth/internal/testenv"
)

// sampleKEK is published: guest-components, attestation-agent/kbc/src/sample_kbc.
const sampleKEK = "d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea"

func sampleKeys(t testing.TB) Keys {
	kek, err := hex.DecodeString(sampleKEK)
	if err != nil {
		t.Fatal(err)
	}
	return func(_ context.Context, id string) ([]byte, error) {
		if id != "kbs:///default/test-key/1" && id != "kbs:///default/key/1" {
			return nil, fmt.Errorf("no key %s", id)
		}
		return kek, nil
	}
}

// A packet of CoCo's own: guest-components, ocicrypt-rs/data.
func TestPublishedPacket(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/guest-components/ocicrypt-rs/sample_kbc_annotation.json"))
	if err != nil {
		t.Fatal(err)
	}
	kek, _ := hex.DecodeString(sampleKEK)
	got, err := CoCo(func(context.Context, string) ([]byte, error) { return kek, nil }).Unwrap(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKey(got, &public{HMAC: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	if k.Digest != "sha256:18be1897f9402f27c8c0eba7c86e0c00f5656db62961b5949d55f9565c42c6e7" ||
		base64.StdEncoding.EncodeToString(k.key) != "1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs=" ||
		base64.StdEncoding.EncodeToString(k.nonce) != "r10F9oaCu+nWFXfod3l83g==" {
		t.Errorf("got %s", got)
	}
}

// The malformed name of an old provider: guest-components, confidential-data-hub.
func TestOldKeyName(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/guest-components/cdh-image/v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	var asked string
	_, err = CoCo(func(_ context.Context, id string) ([]byte, error) { asked = id; return nil, errors.New("none") }).Unwrap(t.Context(), b)
	if asked != "kbs:///default/key/1" || err == nil {
		t.Errorf("asked for %q: %v", asked, err)
	}
}

// layout is one made with github.com/containers/ocicrypt: README of the vectors.
type layout struct {
	Ref, Manifest string
	Layers        []struct {
		Blob, DiffID string
		Encrypted    bool
		Plain        string `json:"plain_compressed"`
	}
}

func TestPublishedLayout(t *testing.T) {
	dir := filepath.Join(testenv.Vectors(t), "guest/made")
	b, err := os.ReadFile(filepath.Join(dir, "encrypted-oci-layout.expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []layout
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	blob := func(digest string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, "encrypted-oci-layout/blobs/sha256", strings.TrimPrefix(digest, "sha256:")))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	opened := 0
	for _, l := range all {
		var m struct {
			Layers []struct {
				MediaType, Digest string
				Annotations       map[string]string
			}
		}
		if err := json.Unmarshal(blob(l.Manifest), &m); err != nil {
			t.Fatal(err)
		}
		for i, d := range m.Layers {
			if _, ok := Encrypted(d.MediaType); !ok {
				continue
			}
			err := decryptTo(t, d.Annotations, blob(d.Digest), l.Layers[i].Plain)
			switch want := "for jwe: no key"; { // private keys are not among the vectors
			case d.Annotations[annotationKeys+SchemeCoCo] != "":
				if err != nil {
					t.Errorf("%s: layer %d: %v", l.Ref, i, err)
				}
				opened++
			case l.Ref == "bad-no-hmac" && i == 0:
				want = "HMAC of 0 bytes"
				fallthrough
			default:
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: layer %d: %v", l.Ref, i, err)
				}
			}
		}
	}
	if opened < 4 {
		t.Errorf("%d layers decrypted", opened)
	}
}

func decryptTo(t *testing.T, annotations map[string]string, blob []byte, want string) error {
	k, err := Open(t.Context(), annotations, CoCo(sampleKeys(t)))
	if err != nil {
		return err
	}
	r, err := k.Decrypt(bytes.NewReader(blob))
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(b)); want != "" && got != want {
		t.Errorf("decrypted to %s: want %s", got, want)
	}
	return nil
}

// A layer for several recipients, each of whom opens it; and every way in which it
// can be damaged.
func TestEncrypt(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	kek, _ := hex.DecodeString(sampleKEK)
	plain := gzipped(t, 300_000)
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(plain))
	var blob bytes.Buffer
	a, err := Encrypt(t.Context(), &blob, bytes.NewReader(plain), digest, rand.Reader, ForJWE(&ec.PublicKey), ForJWE(&rs.PublicKey), ForCoCo("kbs:///default/key/1", kek))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(blob.Bytes(), plain[:64]) {
		t.Fatal("plain bytes in the encrypted layer")
	}
	for name, u := range map[string]Unwrapper{"EC": JWE(ec), "RSA": JWE(rs), "either": JWE(newKeyEC(t), rs), "CoCo": CoCo(sampleKeys(t))} {
		if err := open(t, a, blob.Bytes(), plain, u); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := open(t, a, blob.Bytes(), plain, JWE(newKeyEC(t))); err == nil || !strings.Contains(err.Error(), "none of the private keys") {
		t.Errorf("another's key: %v", err)
	}
	if err := open(t, a, blob.Bytes(), plain); err == nil || !strings.Contains(err.Error(), "no key for any") {
		t.Errorf("no key: %v", err)
	}
	for _, at := range []int{0, 15, 16, blob.Len() / 2, blob.Len() - 1} {
		bad := bytes.Clone(blob.Bytes())
		bad[at] ^= 1
		if err := open(t, a, bad, plain, CoCo(sampleKeys(t))); !errors.Is(err, ErrHMAC) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
	for name, bad := range map[string][]byte{"truncated": blob.Bytes()[:blob.Len()-1], "empty": {}, "longer": append(bytes.Clone(blob.Bytes()), 0)} {
		if err := open(t, a, bad, plain, CoCo(sampleKeys(t))); !errors.Is(err, ErrHMAC) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func newKeyEC(t *testing.T) crypto.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t *testing.T, a map[string]string, blob, want []byte, u ...Unwrapper) error {
	k, err := Open(t.Context(), a, u...)
	if err != nil {
		return err
	}
	r, err := k.Decrypt(iotest.HalfReader(bytes.NewReader(blob)))
	if err != nil {
		return err
	}
	got, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(got, want) {
		t.Error("decrypted to something else")
	}
	return err
}

func gzipped(t *testing.T, n int) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.CopyN(w, rand.Reader, int64(n)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The digest in the key is the layer's, and is held to it even where the HMAC is right.
func TestDigestOfPlainLayer(t *testing.T) {
	kek, _ := hex.DecodeString(sampleKEK)
	if _, err := Encrypt(t.Context(), io.Discard, strings.NewReader("layer"), "sha256:00", rand.Reader, ForCoCo("kbs:///default/key/1", kek)); err == nil {
		t.Error("encrypted under another layer's digest")
	}
	var blob bytes.Buffer
	a, err := Encrypt(t.Context(), &blob, strings.NewReader("layer"), fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("layer"))), rand.Reader, ForCoCo("kbs:///default/key/1", kek))
	if err != nil {
		t.Fatal(err)
	}
	k, err := Open(t.Context(), a, CoCo(sampleKeys(t)))
	if err != nil {
		t.Fatal(err)
	}
	k.Digest = "sha256:" + strings.Repeat("0", 64)
	r, err := k.Decrypt(&blob)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err == nil || !strings.Contains(err.Error(), "decrypted layer is") {
		t.Errorf("got %v", err)
	}
	if _, err := Encrypt(t.Context(), io.Discard, strings.NewReader("layer"), fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("layer"))), rand.Reader); err == nil {
		t.Error("encrypted for nobody")
	}
}

func TestOpenRefuses(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	kek, _ := hex.DecodeString(sampleKEK)
	good, err := Encrypt(t.Context(), io.Discard, strings.NewReader("layer"), fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("layer"))), rand.Reader, ForCoCo("kbs:///default/key/1", kek))
	if err != nil {
		t.Fatal(err)
	}
	const coco = annotationKeys + SchemeCoCo
	wrap := func(s string) string {
		b, err := ForCoCo("kbs:///default/key/1", kek).Wrap([]byte(s), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(b)
	}
	for name, tt := range map[string]struct{ key, value, want string }{
		"no options":      {annotationPublic, "", "unexpected end"},
		"not base64":      {annotationPublic, "*", "illegal base64"},
		"another cipher":  {annotationPublic, b64(`{"cipher":"AES_128_CBC","hmac":""}`), `cipher "AES_128_CBC"`},
		"no HMAC":         {annotationPublic, b64(`{"cipher":"` + cipherName + `"}`), "HMAC of 0 bytes"},
		"large":           {annotationPublic, strings.Repeat("A", maxAnnotation+1), "at most"},
		"large keys":      {coco, strings.Repeat("A", maxAnnotation+1), "at most"},
		"keys not base64": {coco, "AA==,*", "illegal base64"},
		"packet":          {coco, b64("{"), "packet: unexpected end"},
		"packet version":  {coco, b64(`{"kid":"kbs:///default/key/1","version":"9"}`), `version "9"`},
		"packet provider": {coco, b64(`{"kid":"a","provider":"aliyun"}`), `provider "aliyun"`},
		"no kid":          {coco, b64(`{}`), "no kid"},
		"unknown key":     {coco, b64(`{"kid":"kbs:///a/b/c"}`), "no key kbs:///a/b/c"},
		"wrap type":       {coco, b64(`{"kid":"kbs:///default/key/1","wrap_type":"none"}`), `wrap_type "none"`},
		"iv":              {coco, b64(`{"kid":"kbs:///default/key/1","wrap_type":"A256GCM","iv":"AA=="}`), "iv of 1 bytes"},
		"CTR iv":          {coco, b64(`{"kid":"kbs:///default/key/1","wrap_type":"A256CTR","iv":"AA=="}`), "iv of 1 bytes"},
		"tag":             {coco, b64(`{"kid":"kbs:///default/key/1","wrap_type":"A256GCM","iv":"AAAAAAAAAAAAAAAA","wrapped_data":"AAAA"}`), "authentication failed"},
		"no layer key":    {coco, wrap("text"), "no layer key"},
		"short key":       {coco, wrap(`{"symkey":"AA=="}`), "key of 1 bytes"},
		"no nonce":        {coco, wrap(`{"symkey":"` + b64(strings.Repeat("k", 32)) + `"}`), "nonce of 0 bytes"},
		"no digest of it": {coco, wrap(`{"symkey":"` + b64(strings.Repeat("k", 32)) + `","cipheroptions":{"nonce":"` + b64(strings.Repeat("n", 16)) + `"}}`), `digest ""`},
	} {
		t.Run(name, func(t *testing.T) {
			a := map[string]string{annotationPublic: good[annotationPublic], coco: good[coco]}
			a[tt.key] = tt.value
			_, err := Open(t.Context(), a, CoCo(sampleKeys(t)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzOpen(f *testing.F) {
	kek, _ := hex.DecodeString(sampleKEK)
	a, err := Encrypt(f.Context(), io.Discard, strings.NewReader("layer"), fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("layer"))), rand.Reader, ForCoCo("kbs:///default/key/1", kek))
	if err != nil {
		f.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(a[annotationPublic], a[annotationKeys+SchemeCoCo], "")
	f.Fuzz(func(t *testing.T, pub, coco, jwe string) {
		m := map[string]string{annotationPublic: pub, annotationKeys + SchemeCoCo: coco, annotationKeys + SchemeJWE: jwe}
		k, err := Open(t.Context(), m, CoCo(sampleKeys(t)), JWE(ec))
		if err == nil && (len(k.key) != 32 || len(k.nonce) != 16) {
			t.Errorf("got %+v", k)
		}
	})
}
