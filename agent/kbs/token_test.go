package kbs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// jwt puts a token together. Nobody checks its signature: no guest has the key for it.
func jwt(header, payload string) string {
	return base64url([]byte(header)) + "." + base64url([]byte(payload)) + "." + base64url([]byte("signature"))
}

const es256 = `{"alg":"ES256","typ":"JWT"}`

// ear is the claims of a token as Trustee's attestation service writes them.
func ear(jwk json.RawMessage, more string) string {
	return fmt.Sprintf(`{%s"submods":{"cpu0":{"ear.status":"affirming","ear.veraison.annotated-evidence":{"runtime_data_claims":{"nonce":"x","tee-pubkey":%s}}}}}`, more, jwk)
}

func TestParseToken(t *testing.T) {
	k, other := mustKey(t, keyP256), mustKey(t, keyP256)
	exp := func(iat, exp int64) string {
		return fmt.Sprintf(`"iat":%d,"exp":%d,`, iat, exp)
	}
	n := noon.Unix()
	for name, c := range map[string]struct {
		token string
		life  time.Duration
		want  string // in the error; "": none
	}{
		"as Trustee writes it":     {jwt(es256, ear(k.jwk, exp(n, n+300))), 5 * time.Minute, ""},
		"our clock is a day ahead": {jwt(es256, ear(k.jwk, exp(n-86400, n-86400+300))), 5 * time.Minute, ""},
		"our clock is behind":      {jwt(es256, ear(k.jwk, exp(n+86400, n+86400+300))), 5 * time.Minute, ""},
		"no iat":                   {jwt(es256, ear(k.jwk, fmt.Sprintf(`"exp":%d,`, n+60))), time.Minute, ""},
		"no exp":                   {jwt(es256, ear(k.jwk, "")), defaultLife, ""},
		"a fraction":               {jwt(es256, ear(k.jwk, fmt.Sprintf(`"exp":%d.5,`, n+60))), time.Minute, ""},
		"a year":                   {jwt(es256, ear(k.jwk, exp(n, n+31536000))), maxLife, ""},
		"the simple form":          {jwt(es256, fmt.Sprintf(`{"customized_claims":{"runtime_data":{"tee-pubkey":%s}}}`, k.jwk)), defaultLife, ""},
		"ITA":                      {jwt(`{"alg":"PS384"}`, fmt.Sprintf(`{"tdx":{"attester_runtime_data":{"tee-pubkey":%s}}}`, k.jwk)), defaultLife, ""},
		"at the top":               {jwt(es256, fmt.Sprintf(`{"tee-pubkey":%s}`, k.jwk)), defaultLife, ""},

		"expired":              {jwt(es256, ear(k.jwk, fmt.Sprintf(`"exp":%d,`, n-1))), 0, "expired"},
		"ends before it began": {jwt(es256, ear(k.jwk, exp(n, n))), 0, "expired"},
		"exp is text":          {jwt(es256, ear(k.jwk, `"exp":"soon",`)), 0, "part 2"},
		"exp is huge":          {jwt(es256, ear(k.jwk, `"exp":1e300,`)), 0, "exp"},
		"exp is negative":      {jwt(es256, ear(k.jwk, `"exp":-5,`)), 0, "exp"},
		"iat is huge":          {jwt(es256, ear(k.jwk, `"iat":1e300,"exp":5,`)), 0, "iat"},
		"for another key":      {jwt(es256, ear(other.jwk, exp(n, n+300))), 0, "not this guest's key"},
		"two keys":             {jwt(es256, strings.Replace(ear(k.jwk, exp(n, n+300)), "{", fmt.Sprintf(`{"tee-pubkey":%s,`, other.jwk), 1)), 0, "tee-pubkey: not this"},
		"for no key":           {jwt(es256, `{"exp":9999999999}`), 0, "no tee-pubkey"},
		"key is null":          {jwt(es256, ear(json.RawMessage("null"), "")), 0, "not this guest's key"},
		"claims are an array":  {jwt(es256, `[]`), 0, "part 2"},
		"submods is text":      {jwt(es256, `{"submods":"x"}`), 0, "no tee-pubkey"},
		"alg none":             {jwt(`{"alg":"none"}`, ear(k.jwk, "")), 0, "not signed"},
		"alg NONE":             {jwt(`{"alg":"NONE"}`, ear(k.jwk, "")), 0, "not signed"},
		"no alg":               {jwt(`{}`, ear(k.jwk, "")), 0, "not signed"},
		"no signature":         {strings.TrimSuffix(jwt(es256, ear(k.jwk, "")), base64url([]byte("signature"))), 0, "parts"},
		"four parts":           {jwt(es256, ear(k.jwk, "")) + ".x", 0, "4 parts"},
		"not JSON":             {jwt("x", "y"), 0, "part 1"},
		"not base64":           {"{}.{}.x", 0, "part 1: not base64url"},
		"line end":             {"\r\n" + jwt(es256, ear(k.jwk, "")), 0, "not base64url"},
		"line end at the end":  {jwt(es256, ear(k.jwk, "")) + "\r\nX-Header: y", 0, "not signed"},
		"empty":                {"", 0, "0 bytes"},
		"too long":             {jwt(es256, ear(k.jwk, "")) + strings.Repeat("A", maxToken), 0, "want a signed JWT of at most"},
	} {
		token, life, err := parseToken(c.token, k, noon)
		switch {
		case c.want == "" && (err != nil || life != c.life || token.JWT != c.token || token.Key != k.private):
			t.Errorf("%s: life %v, %v, want %v", name, life, err, c.life)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}

// The claims around the key are where a published token has them; this one was made
// without a broker, and so for no key.
func TestTokenVector(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest", "trustee", "attestation-service", "docs", "example.token.json"))
	if err != nil {
		t.Fatal(err)
	}
	k := mustKey(t, keyP256)
	if _, _, err := parseToken(jwt(es256, string(b)), k, noon); err == nil || !strings.Contains(err.Error(), "no tee-pubkey") {
		t.Errorf("the published token: %v", err)
	}
	const none = `"runtime_data_claims": null`
	if strings.Count(string(b), none) != 1 {
		t.Fatal("the vector is another one")
	}
	withKey := strings.Replace(string(b), none, fmt.Sprintf(`"runtime_data_claims": {"tee-pubkey": %s}`, k.jwk), 1)
	if _, _, err := parseToken(jwt(es256, withKey), k, noon); err != nil {
		t.Error(err)
	}
}

// Neither key nor token is printed by accident.
func TestTokenPrints(t *testing.T) {
	token := &Token{JWT: "canary.canary.canary", Key: mustKey(t, keyP256).private}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, token); s != "kbs.Token" {
			t.Errorf("%s: %s", format, s)
		}
	}
}

func FuzzToken(f *testing.F) {
	k := mustKey(f, keyP256)
	f.Add(jwt(es256, ear(k.jwk, `"iat":1,"exp":2,`)))
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		token, life, err := parseToken(text, k, noon)
		if err == nil && (life <= 0 || life > maxLife || strings.ContainsAny(token.JWT, "\r\n ")) {
			t.Fatalf("%q: life %v", text, life)
		}
	})
}
