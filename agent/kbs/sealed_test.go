package kbs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// store is a broker without anything around it.
type store map[string]string

var errNothing = errors.New("nothing there")

func (s store) get(_ context.Context, uri string) ([]byte, error) {
	v, ok := s[uri]
	if !ok {
		return nil, errNothing
	}
	return []byte(v), nil
}

const (
	kidURI = "kbs:///default/seal/public"
	kekURI = "kbs:///default/kek/1"
)

// A signer signs as JOSE wants it.
type signer struct{ key *ecdsa.PrivateKey }

func newSigner(t testing.TB) signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{k}
}

func (s signer) sign(message []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return nil, err
	}
	return append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...), nil
}

func (s signer) jwk(t testing.TB) string {
	t.Helper()
	b, err := SealedKey(&s.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// seal signs any header and payload.
func (s signer) seal(t testing.TB, header, payload string) []byte {
	t.Helper()
	signed := base64url([]byte(header)) + "." + base64url([]byte(payload))
	sig, err := s.sign([]byte(signed))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(SealedPrefix + signed + "." + base64url(sig))
}

const goodHeader = `{"alg":"ES256","kid":"` + kidURI + `"}`

// Sealed secrets that CoCo's own tool made and Kata's tests use.
func TestUnsealPublished(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "kata-sealed.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		JWK    json.RawMessage
		KID    string
		Sealed map[string]string
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	for uri, sealed := range v.Sealed {
		broker := store{v.KID: string(v.JWK), uri: canary}
		for _, text := range []string{sealed, strings.TrimPrefix(sealed, SealedPrefix)} {
			if got, err := Unseal(t.Context(), broker.get, []byte(text)); err != nil || string(got) != canary {
				t.Errorf("%s: %q, %v", uri, got, err)
			}
		}
		// The places that guest-components' own test alters, and others.
		for _, at := range []int{7, 50, 120, 200, 250, len(sealed) - 40} {
			altered := []byte(sealed)
			altered[at] ^= 1
			if got, err := Unseal(t.Context(), broker.get, altered); err == nil {
				t.Errorf("%s: byte %d altered: %q", uri, at, got)
			}
		}
		if got, err := Unseal(t.Context(), store{v.KID: newSigner(t).jwk(t), uri: canary}.get, []byte(sealed)); err == nil || !strings.Contains(err.Error(), "not signed by") {
			t.Errorf("another key: %q, %v", got, err)
		}
	}
}

// The payloads that are published have exactly the members that are read here.
func TestSecretVectors(t *testing.T) {
	s := newSigner(t)
	for name, want := range map[string]string{
		"vault-2.json":    "",
		"vault-1.json":    `provider "aliyun": only kbs is supported`,
		"envelope-1.json": `provider "aliyun": only kbs is supported`,
	} {
		b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest", "guest-components", "sealed-secret", name))
		if err != nil {
			t.Fatal(err)
		}
		sealed := s.seal(t, goodHeader, string(b))
		got, err := Unseal(t.Context(), store{kidURI: s.jwk(t), "kbs:///one/2/trois": canary}.get, sealed)
		switch {
		case want == "" && (err != nil || string(got) != canary):
			t.Errorf("%s: %q, %v", name, got, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		// What is written has the same members.
		parsed, err := ParseSealed(sealed)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(parsed.Secret)
		if err != nil || !sameJSON(t, again, b) {
			t.Errorf("%s: written as %s, %v", name, again, err)
		}
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		t.Fatal(err)
	}
	p, _ := json.Marshal(x)
	q, _ := json.Marshal(y)
	return bytes.Equal(p, q)
}

func newEnvelope(t testing.TB, secret string, kek []byte) *Secret {
	t.Helper()
	s, err := NewEnvelope([]byte(secret), random(t, 32), random(t, 12), kekURI, kek)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEnvelope(t *testing.T) {
	s, kek := newSigner(t), random(t, 32)
	for _, secret := range []string{"", "x", strings.Repeat("long", 1<<14)} {
		text, err := newEnvelope(t, secret, kek).Seal(kidURI, s.sign)
		if err != nil {
			t.Fatal(err)
		}
		broker := store{kidURI: s.jwk(t), kekURI: string(kek)}
		if got, err := Unseal(t.Context(), broker.get, []byte(text)); err != nil || string(got) != secret {
			t.Errorf("%d bytes: %v", len(secret), err)
		}
		for name, other := range map[string][]byte{"another key": random(t, 32), "a short key": kek[:31], "no key": nil} {
			broker[kekURI] = string(other)
			if got, err := Unseal(t.Context(), broker.get, []byte(text)); err == nil {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
}

// The key wrap of the standard, by this test's own code, opens; altered parts do not,
// whoever signs them.
func TestEnvelopeAltered(t *testing.T) {
	s, kek, key, iv := newSigner(t), random(t, 32), random(t, 32), random(t, 12)
	std := base64.StdEncoding.EncodeToString
	good := Secret{
		Version: "0.1.0", Type: "envelope", Provider: "kbs", KeyID: kekURI, WrapType: "A256GCM",
		EncryptedKey: std(keyWrap(t, kek, key)), IV: std(iv), EncryptedData: std(gcm(t, key).Seal(nil, iv, []byte(canary), nil)),
		ProviderSettings: map[string]string{}, Annotations: map[string]string{"key_wrap": "A256KW"},
	}
	try := func(edit func(*Secret)) ([]byte, error) {
		bad := good
		bad.Annotations = maps.Clone(good.Annotations)
		edit(&bad)
		b, err := json.Marshal(bad)
		if err != nil {
			t.Fatal(err)
		}
		return Unseal(t.Context(), store{kidURI: s.jwk(t), kekURI: string(kek)}.get, s.seal(t, goodHeader, string(b)))
	}
	if got, err := try(func(*Secret) {}); err != nil || string(got) != canary {
		t.Fatalf("%q, %v", got, err)
	}
	flip := func(text string) string {
		b, _ := base64.StdEncoding.DecodeString(text)
		b[len(b)/2] ^= 1
		return std(b)
	}
	for name, c := range map[string]struct {
		edit func(*Secret)
		want string
	}{
		"key":            {func(s *Secret) { s.EncryptedKey = flip(s.EncryptedKey) }, "not the one that wrapped"},
		"data":           {func(s *Secret) { s.EncryptedData = flip(s.EncryptedData) }, "altered"},
		"iv":             {func(s *Secret) { s.IV = flip(s.IV) }, "altered"},
		"tag alone":      {func(s *Secret) { s.EncryptedData = std(make([]byte, 16)) }, "altered"},
		"no tag":         {func(s *Secret) { s.EncryptedData = std(make([]byte, 15)) }, "15 bytes"},
		"short key":      {func(s *Secret) { s.EncryptedKey = std(make([]byte, 39)) }, "39 bytes"},
		"long iv":        {func(s *Secret) { s.IV = std(make([]byte, 16)) }, "16 bytes"},
		"base64url":      {func(s *Secret) { s.IV = "-_-_-_-_-_-_-_-_" }, "iv: want base64"},
		"line end":       {func(s *Secret) { s.IV = "\n" + s.IV }, "iv: want base64"},
		"A256CTR":        {func(s *Secret) { s.WrapType = "A256CTR" }, `wrap_type "A256CTR": want A256GCM`},
		"no wrap type":   {func(s *Secret) { s.WrapType = "" }, "wrap_type"},
		"no key wrap":    {func(s *Secret) { s.Annotations = nil }, "annotations"},
		"other key wrap": {func(s *Secret) { s.Annotations["key_wrap"] = "A256GCM" }, "annotations"},
		"annotations":    {func(s *Secret) { s.Annotations["x"] = "y" }, "annotations"},
		"settings":       {func(s *Secret) { s.ProviderSettings = map[string]string{"x": "y"} }, "provider_settings"},
		"version":        {func(s *Secret) { s.Version = "0.2.0" }, `version "0.2.0"`},
		"provider":       {func(s *Secret) { s.Provider = "aws" }, `provider "aws"`},
		"type":           {func(s *Secret) { s.Type = "other" }, `type "other"`},
		"also a vault":   {func(s *Secret) { s.Name = kekURI }, "name of a vault"},
		"vault, really":  {func(s *Secret) { s.Type, s.Name = "vault", kekURI }, "members of an envelope"},
		"key_id":         {func(s *Secret) { s.KeyID = "file:///etc/passwd" }, "key_id"},
	} {
		got, err := try(c.edit)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %q, %v, want an error with %q", name, got, err, c.want)
		}
	}
}

const goodVault = `{"version":"0.1.0","type":"vault","name":"kbs:///a/b/c","provider":"kbs","provider_settings":{},"annotations":{}}`

func TestUnsealRefused(t *testing.T) {
	s := newSigner(t)
	asked := 0
	broker := store{kidURI: s.jwk(t), "kbs:///a/b/c": canary}
	get := func(ctx context.Context, uri string) ([]byte, error) { asked++; return broker.get(ctx, uri) }
	if got, err := Unseal(t.Context(), get, s.seal(t, goodHeader, goodVault)); err != nil || string(got) != canary || asked != 2 {
		t.Fatalf("%q, %v, asked %d times", got, err, asked)
	}
	good := string(s.seal(t, goodHeader, goodVault))
	for name, c := range map[string]struct {
		sealed []byte
		asked  int // what may be asked of the broker before it is refused
		want   string
	}{
		"b64 false":          {s.seal(t, `{"b64":false,"alg":"ES256","kid":"`+kidURI+`"}`, goodVault), 0, "b64"},
		"crit":               {s.seal(t, `{"crit":["b64"],"alg":"ES256","kid":"`+kidURI+`"}`, goodVault), 0, "crit"},
		"key in the header":  {s.seal(t, `{"jwk":{},"alg":"ES256","kid":"`+kidURI+`"}`, goodVault), 0, "jwk"},
		"alg none":           {s.seal(t, `{"alg":"none","kid":"`+kidURI+`"}`, goodVault), 0, `alg "none"`},
		"HS256":              {s.seal(t, `{"alg":"HS256","kid":"`+kidURI+`"}`, goodVault), 0, `alg "HS256"`},
		"alg twice":          {s.seal(t, `{"alg":"HS256","alg":"ES256","kid":"`+kidURI+`"}`, goodVault), 0, "alg"},
		"no kid":             {s.seal(t, `{"alg":"ES256"}`, goodVault), 0, "kid"},
		"kid of a file":      {s.seal(t, `{"alg":"ES256","kid":"../../etc/passwd"}`, goodVault), 0, "kid"},
		"unknown member":     {s.seal(t, goodHeader, strings.Replace(goodVault, "{", `{"x":1,`, 1)), 0, "payload"},
		"member twice":       {s.seal(t, goodHeader, strings.Replace(goodVault, "{", `{"name":"kbs:///d/e/f",`, 1)), 0, "payload"},
		"name is no URI":     {s.seal(t, goodHeader, strings.Replace(goodVault, "kbs:///a/b/c", "/a/b/c", 1)), 0, "name"},
		"annotations":        {s.seal(t, goodHeader, strings.Replace(goodVault, `"annotations":{}`, `"annotations":{"a":"b"}`, 1)), 0, "annotations"},
		"signed by another":  {newSigner(t).seal(t, goodHeader, goodVault), 1, "not signed by key " + kidURI},
		"kid that is not":    {s.seal(t, `{"alg":"ES256","kid":"kbs:///no/such/key"}`, goodVault), 1, "nothing there"},
		"secret that is not": {s.seal(t, goodHeader, strings.Replace(goodVault, "/c", "/d", 1)), 2, "nothing there"},
		"kid is a secret":    {s.seal(t, `{"alg":"ES256","kid":"kbs:///a/b/c"}`, goodVault), 1, "not a JWK"},
		"no signature":       {[]byte(good[:strings.LastIndexByte(good, '.')+1]), 1, "not signed"},
		"long signature":     {[]byte(good + "AAAA"), 1, "not signed"},
		"DER signature":      {[]byte(good[:strings.LastIndexByte(good, '.')+1] + base64url(der(t, s, good))), 1, "not signed"},
		"two parts":          {[]byte("sealed.e30.e30"), 0, "2 parts"},
		"four parts":         {[]byte(good + ".e30"), 0, "4 parts"},
		"prefix twice":       {[]byte(SealedPrefix + good), 0, "4 parts"},
		"line end":           {[]byte(good + "\n"), 0, "base64url"},
		"padding":            {[]byte(good + "=="), 0, "base64url"},
		"empty":              {nil, 0, "1 parts"},
		"not UTF-8":          {s.seal(t, goodHeader, "\xff"), 0, "payload"},
		"too long":           {bytes.Repeat([]byte("A"), maxSealed+1), 0, "want at most"},
	} {
		asked = 0
		got, err := Unseal(t.Context(), get, c.sealed)
		if err == nil || !strings.Contains(err.Error(), c.want) || asked > c.asked {
			t.Errorf("%s: %q, %v after %d questions, want an error with %q", name, got, err, asked, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), canary) || len(err.Error()) > 1500) {
			t.Errorf("%s: the error says too much: %v", name, err)
		}
	}
}

// der is the form of a signature that JOSE does not take.
func der(t testing.TB, s signer, sealed string) []byte {
	t.Helper()
	text := strings.TrimPrefix(sealed, SealedPrefix)
	digest := sha256.Sum256([]byte(text[:strings.LastIndexByte(text, '.')]))
	b, err := ecdsa.SignASN1(rand.Reader, s.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVerifierRefused(t *testing.T) {
	s := newSigner(t)
	sealed := s.seal(t, goodHeader, goodVault)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SealedKey(&p384.PublicKey); err == nil {
		t.Error("a key on P-384")
	}
	good := s.jwk(t)
	d, err := s.key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	private := strings.Replace(good, "{", `{"d":"`+base64url(d)+`",`, 1)
	for name, c := range map[string][2]string{
		"private":       {private, "is private or secret"},
		"symmetric":     {`{"kty":"oct","k":"AAAA"}`, "is private or secret"},
		"for ES384":     {strings.Replace(good, "ES256", "ES384", 1), "ES384"},
		"for encoding":  {strings.Replace(good, `"sig"`, `"enc"`, 1), "not for signatures"},
		"RSA":           {string(mustKey(t, keyRSA).jwk), "P-256"},
		"off the curve": {strings.Replace(good, `"x":"`, `"x":"A`, 1), "not a JWK"},
		"key twice":     {strings.Replace(good, "{", `{"kty":"oct",`, 1), "not a JWK"},
		"PEM":           {"-----BEGIN PUBLIC KEY-----", "not a JWK"},
		"empty":         {"", "not a JWK"},
	} {
		_, err := Unseal(t.Context(), store{kidURI: c[0]}.get, sealed)
		if err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v, want an error with %q", name, err, c[1])
		}
	}
	// What files have at their end is no part of the key.
	if got, err := Unseal(t.Context(), store{kidURI: good + "\n", "kbs:///a/b/c": canary}.get, sealed); err != nil || string(got) != canary {
		t.Error(err)
	}
}

// Another implementation opens our envelopes and verifies our signatures, and we open
// and verify its own: Python's cryptography.
func TestSealedPython(t *testing.T) {
	testenv.Need(t, "python3")
	if err := exec.Command("python3", "-c", "import cryptography").Run(); err != nil {
		testenv.Missing(t, "python3-cryptography", "not installed")
	}
	s, kek := newSigner(t), random(t, 32)
	ours, err := newEnvelope(t, canary, kek).Seal(kidURI, s.sign)
	if err != nil {
		t.Fatal(err)
	}
	in, err := json.Marshal(map[string]string{"sealed": ours, "jwk": s.jwk(t), "kek": base64.StdEncoding.EncodeToString(kek), "kid": kidURI, "key_id": kekURI})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", filepath.Join("testdata", "sealed.py"))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var theirs struct{ Secret, Sealed, JWK string }
	if err := json.Unmarshal(out, &theirs); err != nil {
		t.Fatal(err)
	}
	if theirs.Secret != canary {
		t.Errorf("theirs opens ours as %q", theirs.Secret)
	}
	if got, err := Unseal(t.Context(), store{kidURI: theirs.JWK, kekURI: string(kek)}.get, []byte(theirs.Sealed)); err != nil || string(got) != canary {
		t.Errorf("ours opens theirs as %q, %v", got, err)
	}
}

func FuzzSealed(f *testing.F) {
	s := newSigner(f)
	f.Add(s.seal(f, goodHeader, goodVault))
	f.Add([]byte("sealed.e30.e30."))
	jwk := s.jwk(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseSealed(b)
		if err != nil || p.Check() != nil {
			return
		}
		if err := p.Verify([]byte(jwk)); err == nil && p.Secret.Name != "kbs:///a/b/c" {
			t.Fatalf("%q is signed by a key that signed no such thing", b)
		}
	})
}
