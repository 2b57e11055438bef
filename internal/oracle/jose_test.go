package oracle

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwe"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/plinth-os/plinth/agent/attester"
	agentkbs "github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/jcs"
	"github.com/plinth-os/plinth/tests/kbs"
)

// teeKeys are keys as guests make them, and what they are encrypted to by.
var teeKeys = map[agentkbs.KeyAlgorithm]struct {
	alg  jwa.KeyEncryptionAlgorithm
	kind jwa.KeyType
	make func() (any, error)
}{
	"ECDH-ES+A256KW-P256": {jwa.ECDH_ES_A256KW(), jwa.EC(), func() (any, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	"ECDH-ES+A256KW-P521": {jwa.ECDH_ES_A256KW(), jwa.EC(), func() (any, error) { return ecdsa.GenerateKey(elliptic.P521(), rand.Reader) }},
	"RSA-OAEP-256":        {jwa.RSA_OAEP_256(), jwa.RSA(), func() (any, error) { return rsa.GenerateKey(rand.Reader, 2048) }},
}

const resourcePath, canary = "default/key/1", "canary-53cc18e4"

func sampleBroker() *kbs.Broker {
	return &kbs.Broker{Sample: true, Resources: map[string]kbs.Resource{resourcePath: {Value: []byte(canary)}}}
}

// Secrets that jwx encrypts to the key in the agent's attestation, the agent decrypts.
func TestAgentDecrypts(t *testing.T) {
	b := sampleBroker()
	var with func(jwk.Key) (string, error)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			b.ServeHTTP(w, r)
			return
		}
		all := b.Attestations()
		key, err := pubkeyIn(all[len(all)-1])
		if err != nil {
			t.Error(err)
		}
		text, err := with(key)
		if err != nil {
			t.Error(err)
		}
		io.WriteString(w, text)
	}))
	defer s.Close()
	uri, err := agentkbs.ParseURI("kbs:///" + resourcePath)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range teeKeys {
		encrypt := func(content jwa.ContentEncryptionAlgorithm, alg jwa.KeyEncryptionAlgorithm, form func([]byte) string, o ...jwe.EncryptOption) func(jwk.Key) (string, error) {
			return func(key jwk.Key) (string, error) {
				if got, ok := key.Algorithm(); !ok || got.String() != k.alg.String() || key.KeyType() != k.kind {
					return "", fmt.Errorf("%s: the guest's key is %v for %v", name, key.KeyType(), got)
				}
				if err := key.Remove(jwk.AlgorithmKey); err != nil {
					return "", err
				}
				b, err := jwe.Encrypt([]byte(canary), append(o, jwe.WithKey(alg, key), jwe.WithContentEncryption(content))...)
				return form(b), err
			}
		}
		get := func() ([]byte, error) {
			c := &agentkbs.Client{URL: s.URL, Roots: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, Attester: attester.NewSample(), Key: name}
			defer c.Close()
			return c.Resource(t.Context(), uri)
		}
		with = encrypt(jwa.A256GCM(), k.alg, flattened)
		if got, err := get(); string(got) != canary {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		for what, bad := range map[string]func(jwk.Key) (string, error){
			"A128GCM":                    encrypt(jwa.A128GCM(), k.alg, flattened),
			"A256CBC":                    encrypt(jwa.A256CBC_HS512(), k.alg, flattened),
			"compact":                    encrypt(jwa.A256GCM(), k.alg, asIs),
			"with an unprotected header": encrypt(jwa.A256GCM(), k.alg, asIs, jwe.WithJSON()),
		} {
			with = bad
			if got, err := get(); err == nil || strings.Contains(err.Error(), canary) {
				t.Errorf("%s, %s: got %q, %v", name, what, got, err)
			}
		}
		if k.kind == jwa.RSA() {
			for _, alg := range []jwa.KeyEncryptionAlgorithm{jwa.RSA1_5(), jwa.RSA_OAEP(), jwa.RSA_OAEP_512()} {
				with = encrypt(jwa.A256GCM(), alg, flattened)
				if got, err := get(); err == nil {
					t.Errorf("%s, %s: got %q", name, alg, got)
				}
			}
			continue
		}
		for _, alg := range []jwa.KeyEncryptionAlgorithm{jwa.ECDH_ES(), jwa.ECDH_ES_A128KW()} {
			with = encrypt(jwa.A256GCM(), alg, flattened)
			if got, err := get(); err == nil {
				t.Errorf("%s, %s: got %q", name, alg, got)
			}
		}
	}
}

// flattened is the form of RFC 7516, section 7.2.2, as KBS writes it. That of jwx
// repeats members of the protected header in an unprotected one.
func flattened(compact []byte) string {
	p := strings.Split(string(compact), ".")
	if len(p) != 5 {
		return ""
	}
	return fmt.Sprintf(`{"protected":"%s","encrypted_key":"%s","iv":"%s","ciphertext":"%s","tag":"%s"}`, p[0], p[1], p[2], p[3], p[4])
}

func asIs(b []byte) string { return string(b) }

func pubkeyIn(attestation []byte) (jwk.Key, error) {
	var a struct {
		Runtime struct {
			Key json.RawMessage `json:"tee-pubkey"`
		} `json:"runtime-data"`
	}
	if err := json.Unmarshal(attestation, &a); err != nil {
		return nil, err
	}
	key, err := jwk.ParseKey(a.Runtime.Key)
	if err != nil {
		return nil, err
	}
	return key, key.Validate()
}

// A guest that is jwx and another canonical form attests to the test broker, which
// says that both of the ends of the protocol in this repository agree with others and
// not with each other alone.
func TestBrokerEncrypts(t *testing.T) {
	for name, k := range teeKeys {
		b := sampleBroker()
		s := httptest.NewTLSServer(b)
		g := &jwxGuest{t: t, client: s.Client(), url: s.URL + "/kbs/v0/"}
		var err error
		if g.client.Jar, err = cookiejar.New(nil); err != nil {
			t.Fatal(err)
		}
		private, err := k.make()
		if err != nil {
			t.Fatal(err)
		}
		token := g.attest(private, k.alg)
		if _, err := jws.Verify([]byte(token), jws.WithKey(jwa.ES256(), b.TokenKey())); err != nil {
			t.Errorf("%s: token: %v", name, err)
		}
		secret, err := jwe.Decrypt(g.do("GET", "resource/"+resourcePath, nil), jwe.WithKey(k.alg, private))
		if err != nil || string(secret) != canary {
			t.Errorf("%s: got %q, %v", name, secret, err)
		}
		s.Close()
	}
}

type jwxGuest struct {
	t      *testing.T
	client *http.Client
	url    string
}

func (g *jwxGuest) do(method, path string, body any) []byte {
	g.t.Helper()
	content, err := json.Marshal(body)
	if err != nil {
		g.t.Fatal(err)
	}
	r, err := http.NewRequest(method, g.url+path, bytes.NewReader(content))
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := g.client.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		g.t.Fatalf("%s: %d %s, %v", path, resp.StatusCode, answer, err)
	}
	return answer
}

func (g *jwxGuest) attest(private any, alg jwa.KeyEncryptionAlgorithm) string {
	g.t.Helper()
	key, err := jwk.PublicKeyOf(private)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := key.Set(jwk.AlgorithmKey, alg); err != nil {
		g.t.Fatal(err)
	}
	var challenge struct{ Nonce string }
	request := map[string]any{"version": "0.4.0", "tee": "sample", "extra-params": ""}
	if err := json.Unmarshal(g.do("POST", "auth", request), &challenge); err != nil {
		g.t.Fatal(err)
	}
	runtime := map[string]any{"nonce": challenge.Nonce, "tee-pubkey": key, "additional-evidence": ""}
	binding := sha512.Sum384(canonical(g.t, runtime))
	delete(runtime, "additional-evidence")
	var answer struct{ Token string }
	err = json.Unmarshal(g.do("POST", "attest", map[string]any{"init-data": nil, "runtime-data": runtime, "tee-evidence": map[string]any{
		"additional_evidence": "", "primary_evidence": map[string]string{"svn": "1", "report_data": base64.StdEncoding.EncodeToString(binding[:])}}}), &answer)
	if err != nil {
		g.t.Fatal(err)
	}
	return answer.Token
}

// canonical is RFC 8785 by the implementation of its author.
func canonical(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsoncanonicalizer.Transform(b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCanonicalForm(t *testing.T) {
	for _, text := range []string{
		`{}`, `[]`, `{"b":1,"a":"test","c":{"d":"e"}}`, `[1e21,1e-7,0.000001,-0,5e-324,1.7976931348623157e308,333333333.33333329,1E30,4.50,2e-3]`,
		`{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One","\ud83d\ude00":"Emoji","\u0080":"Control","\u00f6":"o"}`,
		`{"a":"\u0000\b\f\n\r\t\"\\\/<>&\u2028\u2029\u007f"}`, ` [ true , false , null , { "z" : [ ] , "y" : { } } , 9007199254740993, "\u00e9" ] `,
	} {
		want, err := jsoncanonicalizer.Transform([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got, err := jcs.Transform([]byte(text)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
	}
}

// What evidence is bound by.
func TestBinding(t *testing.T) {
	key, nonce := json.RawMessage(`{"kty":"EC", "y":"eQ","x":"eA","crv":"P-256","alg":"ECDH-ES+A256KW"}`), "bm9uY2U="
	for _, additional := range []string{"", `{"sampledevice":{"svn":"1","report_data":"\u003c/"}}`, "<&>\u2028"} {
		for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			for _, device := range []bool{false, true} {
				runtime := map[string]any{"nonce": nonce, "tee-pubkey": key}
				var a *string
				if !device {
					runtime["additional-evidence"], a = additional, &additional
				}
				d := h.New()
				d.Write(canonical(t, runtime))
				if got, err := evidence.Binding(h, nonce, key, a); err != nil || !bytes.Equal(got, d.Sum(nil)) {
					t.Errorf("%v, %q, device %t: got %x, %v, want %x", h, additional, device, got, err, d.Sum(nil))
				}
			}
		}
	}
}

const (
	keyURI = "kbs:///default/sealing/public"
	kekURI = "kbs:///default/sealing/kek"
)

// Sealed secrets, signed by jwx and opened here, and the other way round.
func TestSealed(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	kek, cek, iv := random(t, 32), random(t, 32), random(t, 12)
	vault, err := agentkbs.NewVault("kbs:///default/secret/1")
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := agentkbs.NewEnvelope([]byte(canary), cek, iv, kekURI, kek)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := base64.StdEncoding.DecodeString(envelope.EncryptedKey)
	if err != nil || !bytes.Equal(unwrap(t, kek, wrapped), cek) {
		t.Errorf("RFC 3394 unwraps %x, want %x: %v", unwrap(t, kek, wrapped), cek, err)
	}
	public, err := jwk.PublicKeyOf(key)
	if err != nil {
		t.Fatal(err)
	}
	theirKey, err := json.Marshal(public)
	if err != nil {
		t.Fatal(err)
	}
	ourKey, err := agentkbs.SealedKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]*agentkbs.Secret{"vault": vault, "envelope": envelope} {
		ours, err := secret.Seal(keyURI, func(message []byte) ([]byte, error) {
			d := sha256.Sum256(message)
			r, s, err := ecdsa.Sign(rand.Reader, key, d[:])
			if err != nil {
				return nil, err
			}
			return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := jwk.ParseKey(ourKey)
		if err != nil {
			t.Fatal(err)
		}
		payload, err := jws.Verify([]byte(strings.TrimPrefix(ours, "sealed.")), jws.WithKey(jwa.ES256(), parsed))
		if err != nil {
			t.Errorf("%s: jwx: %v", name, err)
		}
		head := jws.NewHeaders()
		if err := head.Set(jws.KeyIDKey, keyURI); err != nil {
			t.Fatal(err)
		}
		theirs, err := jws.Sign(payload, jws.WithKey(jwa.ES256(), key, jws.WithProtectedHeaders(head)))
		if err != nil {
			t.Fatal(err)
		}
		for who, sealed := range map[string]string{"ours": ours, "jwx's": "sealed." + string(theirs)} {
			for whose, jwk := range map[string][]byte{"ours": ourKey, "jwx's": theirKey} {
				got, err := agentkbs.Unseal(t.Context(), broker(jwk, kek), []byte(sealed))
				if err != nil || string(got) != canary {
					t.Errorf("%s, %s, key of %s: got %q, %v", name, who, whose, got, err)
				}
			}
		}
	}
}

// broker gives what sealed secrets lead to.
func broker(jwk, kek []byte) func(context.Context, string) ([]byte, error) {
	return func(_ context.Context, uri string) ([]byte, error) {
		switch uri {
		case keyURI:
			return jwk, nil
		case kekURI:
			return bytes.Clone(kek), nil // it is cleared after use
		case "kbs:///default/secret/1":
			return []byte(canary), nil
		}
		return nil, errors.New("not there")
	}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// unwrap is the index-based key unwrap of RFC 3394, section 2.2.2.
func unwrap(t *testing.T, kek, wrapped []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	var c cipher.Block = block
	a, r := bytes.Clone(wrapped[:8]), bytes.Clone(wrapped[8:])
	n := len(r) / 8
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			b := make([]byte, 16)
			binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(a)^uint64(n*j+i))
			copy(b[8:], r[8*(i-1):8*i])
			c.Decrypt(b, b)
			copy(a, b[:8])
			copy(r[8*(i-1):], b[8:])
		}
	}
	if !bytes.Equal(a, bytes.Repeat([]byte{0xa6}, 8)) {
		t.Errorf("integrity value %x", a)
	}
	return r
}
