package kbs

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

// A jwe is one made here with the standard library alone: RFC 7516 section 5.1, the
// steps of trustee's kbs/src/jwe/mod.rs. What opens it is another library.
type jwe struct {
	header map[string]any
	parts  map[string]string
}

// sealJWE encrypts to the key of a JWK. Edits change the protected header before it is
// authenticated.
func sealJWE(t testing.TB, jwk json.RawMessage, secret []byte, edits map[string]any) *jwe {
	t.Helper()
	var k map[string]string
	if err := json.Unmarshal(jwk, &k); err != nil {
		t.Fatal(err)
	}
	cek, iv := random(t, 32), random(t, 12)
	j := &jwe{header: map[string]any{"alg": k["alg"], "enc": "A256GCM"}}
	var wrapped []byte
	switch k["kty"] {
	case "RSA":
		n, e := unb64(t, k["n"]), unb64(t, k["e"])
		pub := &rsa.PublicKey{N: bigInt(n), E: int(bigInt(e).Int64())}
		var err error
		if wrapped, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, cek, nil); err != nil {
			t.Fatal(err)
		}
	case "EC":
		z, epk := agree2(t, k)
		j.header["epk"] = epk
		wrapped = keyWrap(t, concatKDF(z, "ECDH-ES+A256KW"), cek)
	default:
		t.Fatalf("kty %q", k["kty"])
	}
	maps.Copy(j.header, edits)
	head, err := json.Marshal(j.header)
	if err != nil {
		t.Fatal(err)
	}
	protected := base64url(head)
	sealed := gcm(t, cek).Seal(nil, iv, secret, []byte(protected))
	j.parts = map[string]string{
		"protected": protected, "encrypted_key": base64url(wrapped), "iv": base64url(iv),
		"ciphertext": base64url(sealed[:len(secret)]), "tag": base64url(sealed[len(secret):]),
	}
	return j
}

func (j *jwe) json(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(j.parts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// agree2 is ECDH with a new key on the curve of k.
func agree2(t testing.TB, k map[string]string) (z []byte, epk map[string]string) {
	t.Helper()
	curve := map[string]ecdh.Curve{"P-256": ecdh.P256(), "P-521": ecdh.P521()}[k["crv"]]
	pub, err := curve.NewPublicKey(append(append([]byte{4}, unb64(t, k["x"])...), unb64(t, k["y"])...))
	if err != nil {
		t.Fatal(err)
	}
	ephemeral, err := curve.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if z, err = ephemeral.ECDH(pub); err != nil {
		t.Fatal(err)
	}
	point := ephemeral.PublicKey().Bytes()[1:]
	return z, map[string]string{"kty": "EC", "crv": k["crv"], "x": base64url(point[:len(point)/2]), "y": base64url(point[len(point)/2:])}
}

// concatKDF is NIST SP 800-56A section 5.8.1 as RFC 7518 section 4.6.2 uses it, for 256
// bits and two parties without names.
func concatKDF(z []byte, alg string) []byte {
	h := sha256.New()
	h.Write([]byte{0, 0, 0, 1})
	h.Write(z)
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(alg))))
	h.Write([]byte(alg))
	h.Write(make([]byte, 8)) // PartyUInfo, PartyVInfo
	h.Write([]byte{0, 0, 1, 0})
	return h.Sum(nil)
}

// keyWrap is RFC 3394 section 2.2.1.
func keyWrap(t testing.TB, kek, key []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	a, n := bytes.Repeat([]byte{0xa6}, 8), len(key)/8
	r := bytes.Clone(key)
	for j := range 6 {
		for i := range n {
			b := append(bytes.Clone(a), r[8*i:8*i+8]...)
			block.Encrypt(b, b)
			copy(r[8*i:], b[8:])
			copy(a, b[:8])
			binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(a)^uint64(n*j+i+1))
		}
	}
	return append(a, r...)
}

// RFC 3394 section 4.6: the tests' own key wrap is right.
func TestKeyWrapVector(t *testing.T) {
	kek := unhex(t, "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")
	key := unhex(t, "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
	want := unhex(t, "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")
	if got := keyWrap(t, kek, key); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func random(t testing.TB, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func unb64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gcm(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	a, err := newGCM(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustKey(t testing.TB, a KeyAlgorithm) *teeKey {
	t.Helper()
	k, err := newKey(a)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// What the standard library encrypted to a key's JWK, the client opens.
func TestOpenResponse(t *testing.T) {
	for _, alg := range Keys {
		k := mustKey(t, alg)
		for _, size := range []int{0, 1, 32, 1 << 20} {
			secret := random(t, size)
			j := sealJWE(t, k.jwk, secret, nil)
			got, err := openResponse(k, j.json(t))
			if err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%s, %d bytes: %v", alg, size, err)
			}
		}
		// Trustee writes what it does not have as null; headers that say nothing pass.
		j := sealJWE(t, k.jwk, []byte("x"), map[string]any{"kid": "1", "typ": "JOSE"})
		withNull := strings.Replace(string(j.json(t)), "{", `{"aad":null,`, 1)
		if _, err := openResponse(k, []byte(withNull)); err != nil {
			t.Errorf("%s: aad null: %v", alg, err)
		}
	}
}

// The keys that are sent are those that are kept, in the form of kbs-types.
func TestKeyForms(t *testing.T) {
	for alg, want := range map[KeyAlgorithm]string{
		keyP256: `{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"`,
		keyP521: `{"alg":"ECDH-ES+A256KW","crv":"P-521","kty":"EC","x":"A`,
		keyRSA:  `{"alg":"RSA-OAEP-256","e":"AQAB","kty":"RSA","n":"`,
	} {
		k := mustKey(t, alg)
		if !strings.HasPrefix(string(k.jwk), want) {
			t.Errorf("%s: %s, want %s...", alg, k.jwk, want)
		}
		var m map[string]string
		if err := json.Unmarshal(k.jwk, &m); err != nil {
			t.Fatal(err)
		}
		size := map[KeyAlgorithm]int{keyP256: 32, keyP521: 66, keyRSA: 256}[alg]
		for _, name := range []string{"x", "y", "n"} {
			if v, ok := m[name]; ok && len(unb64(t, v)) != size {
				t.Errorf("%s: %s has %d bytes, want %d", alg, name, len(unb64(t, v)), size)
			}
		}
	}
	if _, err := newKey("ML-KEM-768+A192KW"); err == nil {
		t.Error("a key of an unknown kind")
	}
}

func TestKeyIs(t *testing.T) {
	k, other := mustKey(t, keyP256), mustKey(t, keyP256)
	with := func(name string, v any) json.RawMessage {
		var m map[string]any
		if err := json.Unmarshal(k.jwk, &m); err != nil {
			t.Fatal(err)
		}
		m[name] = v
		if v == nil {
			delete(m, name)
		}
		b, _ := json.Marshal(m)
		return b
	}
	for name, c := range map[string]struct {
		jwk  json.RawMessage
		want bool
	}{
		"itself":     {k.jwk, true},
		"with a kid": {with("kid", "1"), true},
		"another":    {other.jwk, false},
		"no y":       {with("y", nil), false},
		"other alg":  {with("alg", "RSA1_5"), false},
		"no alg":     {with("alg", nil), false},
		"other crv":  {with("crv", "P-521"), false},
		"number":     {with("x", 1), false},
		"null":       {json.RawMessage("null"), false},
		"text":       {json.RawMessage(`"x"`), false},
		"empty":      {nil, false},
	} {
		if got := k.is(c.jwk); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestOpenResponseRefused(t *testing.T) {
	ec, p521, rs, other := mustKey(t, keyP256), mustKey(t, keyP521), mustKey(t, keyRSA), mustKey(t, keyP256)
	canary := []byte("the-canary-of-this-test")
	edit := func(k *teeKey, name string, v any) []byte {
		return sealJWE(t, k.jwk, canary, map[string]any{name: v}).json(t)
	}
	raw := func(f func(j *jwe)) []byte {
		j := sealJWE(t, ec.jwk, canary, nil)
		f(j)
		return j.json(t)
	}
	head := func(text string) []byte {
		return raw(func(j *jwe) { j.parts["protected"] = base64url([]byte(text)) })
	}
	wrongCurve := sealJWE(t, p521.jwk, canary, nil).json(t)
	for name, c := range map[string]struct {
		k    *teeKey
		b    []byte
		want string
	}{
		"RSA1_5":              {rs, edit(rs, "alg", "RSA1_5"), `alg "RSA1_5": want "RSA-OAEP-256"`},
		"RSA-OAEP":            {rs, edit(rs, "alg", "RSA-OAEP"), "alg"},
		"dir":                 {ec, edit(ec, "alg", "dir"), `alg "dir"`},
		"ECDH-ES alone":       {ec, edit(ec, "alg", "ECDH-ES"), "alg"},
		"A128KW":              {ec, edit(ec, "alg", "ECDH-ES+A128KW"), "alg"},
		"alg of another key":  {rs, sealJWE(t, ec.jwk, canary, nil).json(t), `alg "ECDH-ES+A256KW": want "RSA-OAEP-256"`},
		"alg none":            {ec, edit(ec, "alg", "none"), "alg"},
		"alg a number":        {ec, edit(ec, "alg", 1), "header"},
		"A128GCM":             {ec, edit(ec, "enc", "A128GCM"), `enc "A128GCM"`},
		"A256CBC-HS512":       {ec, edit(ec, "enc", "A256CBC-HS512"), "enc"},
		"zip":                 {ec, edit(ec, "zip", "DEF"), "zip"},
		"crit":                {ec, edit(ec, "crit", []string{"exp"}), "crit"},
		"apu":                 {ec, edit(ec, "apu", "QQ"), "apu"},
		"jku":                 {ec, edit(ec, "jku", "https://example.com"), "jku"},
		"epk for RSA":         {rs, edit(rs, "epk", map[string]string{"kty": "EC"}), "epk"},
		"no epk":              {ec, head(`{"alg":"ECDH-ES+A256KW","enc":"A256GCM"}`), "epk"},
		"alg twice":           {ec, head(`{"alg":"dir","alg":"ECDH-ES+A256KW","enc":"A256GCM"}`), "alg"},
		"private epk":         {ec, edit(ec, "epk", map[string]string{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "d": "AA"}), "header"},
		"point off the curve": {ec, edit(ec, "epk", map[string]string{"kty": "EC", "crv": "P-256", "x": base64url(make([]byte, 32)), "y": base64url(make([]byte, 32))}), "secret"},
		"another curve":       {ec, wrongCurve, "secret"},
		"another's":           {other, sealJWE(t, ec.jwk, canary, nil).json(t), "not encrypted to this guest's key"},
		"aad":                 {ec, raw(func(j *jwe) { j.parts["aad"] = "QQ" }), "not encrypted"},
		"unprotected header":  {ec, raw(func(j *jwe) { j.parts["unprotected"] = "x" }), "unprotected"},
		"recipients":          {ec, raw(func(j *jwe) { j.parts["recipients"] = "x" }), "recipients"},
		"no tag":              {ec, raw(func(j *jwe) { delete(j.parts, "tag") }), "secret"},
		"short tag":           {ec, raw(func(j *jwe) { j.parts["tag"] = j.parts["tag"][:16] }), "secret"},
		"no key":              {ec, raw(func(j *jwe) { delete(j.parts, "encrypted_key") }), "secret"},
		"long iv":             {ec, raw(func(j *jwe) { j.parts["iv"] += "AAAA" }), "secret"},
		"no iv":               {ec, raw(func(j *jwe) { j.parts["iv"] = "" }), "secret"},
		"line end":            {ec, raw(func(j *jwe) { j.parts["iv"] = "\n" + j.parts["iv"] }), "base64url"},
		"base64 of another":   {ec, raw(func(j *jwe) { j.parts["tag"] = "+/==" }), "base64url"},
		"compact":             {ec, []byte("a.b.c.d.e"), "JWE"},
		"array":               {ec, []byte("[]"), "JWE"},
		"null":                {ec, []byte("null"), "secret"},
		"empty":               {ec, nil, "JWE"},
		"secret in the clear": {ec, canary, "JWE"},
	} {
		got, err := openResponse(c.k, c.b)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v, want an error with %q", name, got, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "canary") || len(err.Error()) > 2*maxDetail) {
			t.Errorf("%s: the error says too much: %v", name, err)
		}
	}
}

// Every bit of every part counts, and so does every byte at the end.
func TestOpenResponseAltered(t *testing.T) {
	for _, alg := range Keys {
		k := mustKey(t, alg)
		j := sealJWE(t, k.jwk, []byte("secret of some bytes"), nil)
		whole := j.json(t)
		for n := range len(whole) {
			if got, err := openResponse(k, whole[:n]); err == nil {
				t.Fatalf("%s: opens with %d of %d bytes: %q", alg, n, len(whole), got)
			}
		}
		for name, text := range j.parts {
			b := unb64(t, text)
			for i := 0; i < len(b); i += 1 + len(b)/16 {
				b[i] ^= 1 << (i % 8)
				j.parts[name] = base64url(b)
				if got, err := openResponse(k, j.json(t)); err == nil {
					t.Errorf("%s: %s: opens with byte %d altered: %q", alg, name, i, got)
				}
				b[i] ^= 1 << (i % 8)
			}
			j.parts[name] = text
		}
	}
}

func FuzzResponse(f *testing.F) {
	k := mustKey(f, keyP256)
	j := sealJWE(f, k.jwk, []byte("secret"), nil)
	f.Add(j.json(f))
	f.Add([]byte(`{"protected":"e30","encrypted_key":"","iv":"","ciphertext":"","tag":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if secret, err := openResponse(k, b); err == nil && string(secret) != "secret" {
			t.Fatalf("made up: %q", secret)
		}
	})
}

// PEM is what guest-components reads: PKCS #1 for RSA, PKCS #8 for EC.
func TestTokenPEM(t *testing.T) {
	for alg, want := range map[KeyAlgorithm]string{keyP256: "-----BEGIN PRIVATE KEY-----\n", keyRSA: "-----BEGIN RSA PRIVATE KEY-----\n"} {
		k := mustKey(t, alg)
		b, err := (&Token{Key: k.private}).PEM()
		if err != nil || !bytes.HasPrefix(b, []byte(want)) {
			t.Errorf("%s: %v", alg, err)
		}
		if e, ok := k.private.(*ecdsa.PrivateKey); ok {
			if got := parsePEM(t, b).(*ecdsa.PrivateKey); !got.Equal(e) {
				t.Error("another key")
			}
		}
	}
}
