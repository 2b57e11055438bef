package evidence

import (
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const jwk = `{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"AQ","y":"Ag"}`

// The canonical form is written here by hand: keys in order, no space.
func TestBinding(t *testing.T) {
	const key = `{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"AQ","y":"Ag"}`
	none, devices := "", `{"sampledevice":{"svn":"2"}}`
	d256 := sha256.Sum256([]byte(`{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":` + key + `}`))
	d384 := sha512.Sum384([]byte(`{"additional-evidence":"{\"sampledevice\":{\"svn\":\"2\"}}","nonce":"bm9uY2U=","tee-pubkey":` + key + `}`))
	d512 := sha512.Sum512([]byte(`{"nonce":"bm9uY2U=","tee-pubkey":` + key + `}`))
	for _, tt := range []struct {
		name       string
		h          crypto.Hash
		additional *string
		want       []byte
	}{
		{"no devices", crypto.SHA256, &none, d256[:]},
		{"devices", crypto.SHA384, &devices, d384[:]},
		{"a device's own", crypto.SHA512, nil, d512[:]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Binding(tt.h, "bm9uY2U=", json.RawMessage(jwk), tt.additional)
			if err != nil || hex.EncodeToString(got) != hex.EncodeToString(tt.want) {
				t.Errorf("got %x, %v: want %x", got, err, tt.want)
			}
		})
	}
}

// Each part moves it, and nothing else does.
func TestBindingCovers(t *testing.T) {
	none, one := "", "{}"
	of := func(nonce, key string, additional *string) string {
		b, err := Binding(crypto.SHA256, nonce, json.RawMessage(key), additional)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	base := of("n", jwk, &none)
	for name, other := range map[string]string{"nonce": of("m", jwk, &none), "key": of("n", strings.Replace(jwk, "AQ", "AA", 1), &none), "devices": of("n", jwk, &one), "a device": of("n", jwk, nil)} {
		if other == base {
			t.Errorf("%s: not covered", name)
		}
	}
	if spaced := of("n", strings.ReplaceAll(jwk, ",", " , "), &none); spaced != base {
		t.Error("space in the key moves it")
	}
	for name, key := range map[string]string{"not UTF-8": "{\"x\":\"\xff\"}", "not an object": `"AQ"`, "key twice": `{"x":"1","x":"2"}`, "nothing": ``} {
		if _, err := Binding(crypto.SHA256, "n", json.RawMessage(key), &none); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := Binding(crypto.SHA256, "\xff", json.RawMessage(jwk), &none); err == nil {
		t.Error("a nonce that is not UTF-8 is taken")
	}
	if _, err := Binding(0, "n", json.RawMessage(jwk), &none); err == nil {
		t.Error("no hash is taken")
	}
}

func TestChallengeHash(t *testing.T) {
	for _, tt := range []struct {
		extra string
		want  crypto.Hash
		err   string
	}{
		{`""`, crypto.SHA384, ""},
		{`null`, crypto.SHA384, ""},
		{`{}`, crypto.SHA384, ""},
		{`{"other":{"a":1}}`, crypto.SHA384, ""},
		{`{"selected-hash-algorithm":"sha256"}`, crypto.SHA256, ""},
		{`{"selected-hash-algorithm":"SHA384"}`, crypto.SHA384, ""},
		{` {"selected-hash-algorithm":"Sha512"}`, crypto.SHA512, ""},
		{`{"selected-hash-algorithm":"sha1"}`, 0, `is "sha1", want one of`},
		{`{"selected-hash-algorithm":""}`, 0, `is "", want one of`},
		{`{"selected-hash-algorithm":384}`, 0, "want text"},
		{`{"selected-hash-algorithm":null}`, 0, "want text"},
		{`{"selected-hash-algorithm":"sha256","selected-hash-algorithm":"sha1"}`, 0, "duplicate key"},
		{`"sha256"`, 0, "want an object"},
		{`[]`, 0, "want an object"},
	} {
		t.Run(tt.extra, func(t *testing.T) {
			c, err := ParseChallenge([]byte(`{"nonce":"AAECAwQFBgcICQoLDA0ODwABAgMEBQYHCAkKCwwNDg8=","extra-params":` + tt.extra + `}`))
			if tt.err != "" {
				wantError(t, err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h, err := c.Hash(); h != tt.want || err != nil {
				t.Errorf("got %v, %v: want %v", h, err, tt.want)
			}
		})
	}
	if h, err := (&Challenge{}).Hash(); h != crypto.SHA384 || err != nil {
		t.Errorf("without parameters: %v, %v", h, err)
	}
}

func TestChallengeNonce(t *testing.T) {
	for nonce, want := range map[string]string{
		"": "0 bytes", "AAAA": "3 bytes", "not base64": "want base64", strings.Repeat("AAAA", 400): "1200 bytes",
		"AAECAwQFBgcICQoLDA0ODwABAgMEBQYHCAkKCwwNDg9=":   "want base64", // bits behind the end
		`AAECAwQFBgcICQoLDA0ODwABAgMEBQYH\nCAkKCwwNDg8=`: "want base64",
	} {
		_, err := ParseChallenge([]byte(`{"nonce":"` + nonce + `","extra-params":""}`))
		wantError(t, err, want)
	}
	_, err := ParseChallenge([]byte(`{"nonce":"AAECAwQFBgcICQoLDA0ODw==","extra-params":"","more":1}`))
	wantError(t, err, "more: unknown key")
}

// The bytes that go to a broker: kbs-types writes the same keys.
func TestWire(t *testing.T) {
	r, err := NewRequest(TEETPM, []string{"sha384", "sha256"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Marshal()
	if want := `{"version":"0.4.0","tee":"tpm","extra-params":{"supported-hash-algorithms":["sha384","sha256"]}}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v: want %s", b, err, want)
	}
	if again, err := ParseRequest(b); err != nil || !reflect.DeepEqual(again, r) {
		t.Errorf("got %+v, %v", again, err)
	}
	a := &Attestation{RuntimeData: RuntimeData{Nonce: "bg==", TEEPubKey: json.RawMessage(jwk)}, TEEEvidence: TEEEvidence{Primary: json.RawMessage(`{"svn":"<1>"}`)}}
	want := `{"init-data":null,"runtime-data":{"nonce":"bg==","tee-pubkey":` + jwk + `},"tee-evidence":{"primary_evidence":{"svn":"<1>"},"additional_evidence":""}}`
	if b, err = a.Marshal(); err != nil || string(b) != want {
		t.Errorf("got %s, %v: want %s", b, err, want)
	}
	if again, err := ParseAttestation(b); err != nil || !reflect.DeepEqual(again, a) {
		t.Errorf("got %+v, %v", again, err)
	}
	a.InitData = &InitData{Format: FormatTOML, Body: "a = \"<b>\"\n"}
	if b, err = a.Marshal(); err != nil || !strings.HasPrefix(string(b), `{"init-data":{"format":"toml","body":"a = \"<b>\"\n"},`) {
		t.Errorf("got %s, %v", b, err)
	}
}

func TestAttestationRefuses(t *testing.T) {
	doc := func(nonce, key, primary string) string {
		return `{"init-data":null,"runtime-data":{"nonce":` + nonce + `,"tee-pubkey":` + key + `},"tee-evidence":{"primary_evidence":` + primary + `,"additional_evidence":""}}`
	}
	for _, tt := range []struct{ name, in, want string }{
		{"no nonce", doc(`""`, jwk, `{}`), "no nonce"},
		{"no key", doc(`"n"`, `null`, `{}`), "want a JWK"},
		{"evidence as text", doc(`"n"`, jwk, `"{}"`), "primary_evidence"},
		{"unknown key", strings.Replace(doc(`"n"`, jwk, `{}`), `"init-data"`, `"x":1,"init-data"`, 1), "x: unknown key"},
		{"truncated", doc(`"n"`, jwk, `{}`)[:60], "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseAttestation([]byte(tt.in))
			wantError(t, err, tt.want)
		})
	}
	if _, err := (&TEEEvidence{Additional: "nothing"}).Devices(); err == nil {
		t.Error("devices that are no object are taken")
	}
	d, err := (&TEEEvidence{Additional: `{"sampledevice":{"svn":"2"}}`}).Devices()
	if err != nil || string(d["sampledevice"]) != `{"svn":"2"}` {
		t.Errorf("got %s, %v", d, err)
	}
}

func TestFit(t *testing.T) {
	if got := string(Fit([]byte("abc"), 2)); got != "ab" {
		t.Errorf("cut to %q", got)
	}
	if got := string(Fit([]byte("abc"), 5)); got != "abc\x00\x00" {
		t.Errorf("filled to %q", got)
	}
}

// FuzzRCAR: messages that are taken are written back and read as the same.
func FuzzRCAR(f *testing.F) {
	f.Add([]byte(`{"version":"0.4.0","tee":"tpm","extra-params":{"supported-hash-algorithms":["sha384"]}}`))
	f.Add([]byte(`{"nonce":"AAECAwQFBgcICQoLDA0ODw==","extra-params":{"selected-hash-algorithm":"sha384"}}`))
	f.Add([]byte(`{"init-data":null,"runtime-data":{"nonce":"bg==","tee-pubkey":` + jwk + `},"tee-evidence":{"primary_evidence":{},"additional_evidence":""}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if c, err := ParseChallenge(in); err == nil {
			if _, err := c.Hash(); err != nil {
				t.Fatal(err)
			}
		}
		if a, err := ParseAttestation(in); err == nil {
			b, err := a.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParseAttestation(b); err != nil {
				t.Fatalf("%s: %v", b, err)
			}
		}
		if r, err := ParseRequest(in); err == nil && r.ExtraParams != nil {
			if _, err := r.Marshal(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
