package export

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/sign"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/refvalue"
	"github.com/plinth-os/plinth/tests/kbs"
)

// set is one of values that are written as a payload has them.
func set(t *testing.T, payload string) *refvalue.Set {
	t.Helper()
	s, err := refvalue.ParseRVPS([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const (
	payload = `{"snp_launch_measurement": ["aa", "bb"], "snp_guest_abi_major": 0, "snp_smt_allowed": true}`
	other   = `{"snp_launch_measurement": ["bb", "cc"], "snp_guest_abi_major": 0, "snp_smt_allowed": true}`
)

// serve starts a broker and returns a client of it.
func serve(t *testing.T, h http.Handler) *Trustee {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &Trustee{URL: s.URL}
}

// calls are the methods and paths that came in.
func calls(b *kbs.Broker) (out []string) {
	for _, r := range b.Requests() {
		out = append(out, r.Method+" "+strings.TrimPrefix(r.Path, "/kbs/v0/reference-value"))
	}
	return out
}

func states(outcomes []Outcome) (out []State) {
	for _, o := range outcomes {
		out = append(out, o.State)
	}
	return out
}

func TestRegister(t *testing.T) {
	for _, documented := range []bool{false, true} {
		b := &kbs.Broker{Documented: documented}
		c := serve(t, b)
		first, err := c.Register(context.Background(), set(t, payload))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := states(first), []State{StateNew, StateNew, StateNew}; !reflect.DeepEqual(got, want) {
			t.Errorf("first: %v, want %v", got, want)
		}
		ask := []string{"GET /snp_guest_abi_major", "GET /snp_launch_measurement", "GET /snp_smt_allowed"}
		want := append(append(append([]string{}, ask...), "POST "), ask...)
		if got := calls(b); !reflect.DeepEqual(got, want) {
			t.Errorf("requests:\n%q\nwant\n%q", got, want)
		}
		values := map[string]any{"snp_launch_measurement": []any{"aa", "bb"}, "snp_guest_abi_major": 0.0, "snp_smt_allowed": true}
		if got := b.Values(); !reflect.DeepEqual(got, values) {
			t.Errorf("the broker has %v, want %v", got, values)
		}
		again, err := c.Register(context.Background(), set(t, payload))
		if got, want := states(again), []State{StateSame, StateSame, StateSame}; err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("second: %v, %v, want %v", got, err, want)
		}
		if got, want := calls(b)[len(want):], ask; !reflect.DeepEqual(got, want) {
			t.Errorf("a second call made %q, want %q", got, want)
		}
	}
}

// Only what differs is sent, and the answer says what was there.
func TestRegisterChanged(t *testing.T) {
	b := &kbs.Broker{}
	c := serve(t, b)
	b.Set("mr_td", []string{"of somebody else"})
	b.Set("snp_launch_measurement", []string{"bb", "aa"}) // the order of a list says nothing
	b.Set("snp_guest_abi_major", []int{0})                // a list is no scalar
	got, err := c.Register(context.Background(), set(t, payload))
	if err != nil {
		t.Fatal(err)
	}
	if want := []State{StateChanged, StateSame, StateNew}; !reflect.DeepEqual(states(got), want) {
		t.Errorf("%v, want %v", states(got), want)
	}
	if string(got[0].Was) != "[0]" || string(got[0].Value) != "0" || !got[0].Set || got[1].Set {
		t.Errorf("%+v", got)
	}
	var sent map[string]any
	for _, r := range b.Requests() {
		if r.Method == http.MethodPost {
			sent = message(t, r.Body)
		}
	}
	if want := (map[string]any{"snp_guest_abi_major": 0.0, "snp_smt_allowed": true}); !reflect.DeepEqual(sent, want) {
		t.Errorf("sent %v, want %v", sent, want)
	}
	if b.Values()["mr_td"] == nil {
		t.Error("the values of others are gone")
	}
	if got, err = c.Register(context.Background(), set(t, other)); err != nil || string(got[1].Was) != `["bb","aa"]` {
		t.Errorf("%s, %v", got[1].Was, err)
	}
}

// message returns the payload of a message after a look at its frame.
func message(t *testing.T, b []byte) (values map[string]any) {
	t.Helper()
	var m map[string]string
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	inner, err := base64.StdEncoding.DecodeString(m["payload"])
	if err != nil || m["version"] != "0.1.0" || m["type"] != "sample" || len(m) != 3 {
		t.Fatalf("%s: %v", b, err)
	}
	if err := json.Unmarshal(inner, &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// The message of RVPS's guide: rvps/README.md, "Quick guide to interact with RVPS".
func TestRecordedMessage(t *testing.T) {
	const recorded = `{
    "version" : "0.1.0",
    "type": "sample",
    "payload": "ewogICAgInRlc3QtYmluYXJ5LTEiOiBbCiAgICAgICAgInJlZmVyZW5jZS12YWx1ZS0xIiwKICAgICAgICAicmVmZXJlbmNlLXZhbHVlLTIiCiAgICBdLAogICAgInRlc3QtYmluYXJ5LTIiOiBbCiAgICAgICAgInJlZmVyZW5jZS12YWx1ZS0zIiwKICAgICAgICAicmVmZXJlbmNlLXZhbHVlLTQiCiAgICBdCn0K"
}`
	theirs := &kbs.Broker{}
	if err := theirs.Load("rvps", []byte(recorded)); err != nil {
		t.Fatal(err)
	}
	ours := &kbs.Broker{}
	if _, err := serve(t, ours).Register(context.Background(), set(t, recorded)); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"test-binary-1": []any{"reference-value-1", "reference-value-2"}, "test-binary-2": []any{"reference-value-3", "reference-value-4"}}
	if !reflect.DeepEqual(ours.Values(), want) || !reflect.DeepEqual(theirs.Values(), want) {
		t.Errorf("ours %v, theirs %v, want %v", ours.Values(), theirs.Values(), want)
	}
	post := ours.Requests()[2]
	if !reflect.DeepEqual(message(t, post.Body), message(t, []byte(recorded))) || post.ContentType != "application/json" {
		t.Errorf("%+v", post)
	}
}

// An operation of an OpenAPI description.
type operation struct {
	RequestBody struct {
		Content map[string]struct{ Schema struct{ Type string } }
	} `yaml:"requestBody"`
	Responses map[string]any
}

// Every request is one of those that the API's description lists, with its types
// of content.
func TestDescription(t *testing.T) {
	dir := os.Getenv("PLINTH_TRUSTEE")
	if dir == "" {
		testenv.Missing(t, "trustee", "PLINTH_TRUSTEE names no checkout")
	}
	b, err := os.ReadFile(filepath.Join(dir, "kbs", "docs", "kbs.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var api struct {
		Servers []struct{ URL string }
		Paths   map[string]map[string]yaml.Node
	}
	if err := yaml.Unmarshal(b, &api); err != nil {
		t.Fatal(err)
	}
	broker := &kbs.Broker{}
	if _, err := serve(t, broker).Register(context.Background(), set(t, payload)); err != nil {
		t.Fatal(err)
	}
	base := strings.TrimPrefix(api.Servers[0].URL, "http://<kbs>")
	for _, r := range broker.Requests() {
		path := strings.TrimPrefix(r.Path, base)
		if name, ok := strings.CutPrefix(path, "/reference-value/"); ok && name != "" {
			path = "/reference-value/{reference_value_id}"
		}
		node, ok := api.Paths[path][strings.ToLower(r.Method)]
		if !ok {
			t.Errorf("%s %s is not described", r.Method, r.Path)
			continue
		}
		var op operation
		if err := node.Decode(&op); err != nil {
			t.Fatal(err)
		}
		if _, ok := op.Responses["200"]; !ok {
			t.Errorf("%s %s: no 200 among %v", r.Method, r.Path, op.Responses)
		}
		if len(r.Body) == 0 {
			continue
		}
		var object map[string]any
		if c, ok := op.RequestBody.Content[r.ContentType]; !ok || c.Schema.Type != "object" || json.Unmarshal(r.Body, &object) != nil {
			t.Errorf("%s %s: a body of %s, described is %v", r.Method, r.Path, r.ContentType, op.RequestBody.Content)
		}
	}
}

// keys are one of each kind that a broker can check.
func keys(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"Ed25519": ed, "P-256": p256, "P-384": p384, "RSA": r}
}

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func admin(key crypto.Signer) *kbs.Admin {
	return &kbs.Admin{
		Key: key.Public(), Issuer: "ops", Audience: "kbs", Now: func() time.Time { return now },
		ACL: []kbs.ACL{{Role: "writer", Paths: "^/kbs/v0/reference-value$"}, {Role: "admin", Paths: "^/kbs/v0/reference-value(/.+)?$"}},
	}
}

var claims = AdminClaims{Role: "admin", Issuer: "ops", Audience: "kbs", Issued: now, Lifetime: time.Minute}

func token(t *testing.T, key crypto.Signer, c AdminClaims) string {
	t.Helper()
	k, err := sign.New(key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := AdminToken(k, c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestAdminToken(t *testing.T) {
	for name, key := range keys(t) {
		b := &kbs.Broker{Admin: admin(key)}
		c := serve(t, b)
		c.Token = token(t, key, claims)
		if _, err := c.Register(context.Background(), set(t, payload)); err != nil || len(b.Values()) != 3 {
			t.Errorf("%s: %v", name, err)
		}
		if again := token(t, key, claims); name != "RSA" && again != c.Token {
			t.Errorf("%s: the same claims gave another token", name)
		}
	}
}

func TestRefusedTokens(t *testing.T) {
	all := keys(t)
	key := all["P-256"]
	with := func(change func(*AdminClaims)) string {
		c := claims
		change(&c)
		return token(t, key, c)
	}
	good := token(t, key, claims)
	bent := good[:40] + string('A'+(good[40]-'A'+1)%26) + good[41:]
	for name, text := range map[string]string{
		"none":           "",
		"no token":       "abc",
		"another key":    token(t, all["P-384"], claims),
		"expired":        with(func(c *AdminClaims) { c.Issued = now.Add(-time.Hour) }),
		"another role":   with(func(c *AdminClaims) { c.Role = "guest" }),
		"another issuer": with(func(c *AdminClaims) { c.Issuer = "" }),
		"for another":    with(func(c *AdminClaims) { c.Audience = "as" }),
		"bent":           bent,
	} {
		b := &kbs.Broker{Admin: admin(key)}
		c := serve(t, b)
		c.Token = text
		_, err := c.Register(context.Background(), set(t, payload))
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Type != "AdminAuthAccess" || !strings.Contains(refused.Hint(), "role") || len(b.Values()) > 0 {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: the token is in the message: %v", name, err)
		}
	}
}

func TestRefusedClaims(t *testing.T) {
	k, err := sign.New(keys(t)["P-256"])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]AdminClaims{
		"no role": {Issued: now, Lifetime: 1}, "no time": {Role: "r", Lifetime: 1}, "no lifetime": {Role: "r", Issued: now},
	} {
		if _, err := AdminToken(k, c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if k, err = sign.New(p521); err != nil {
		t.Fatal(err)
	}
	if _, err := AdminToken(k, claims); err == nil || !strings.Contains(err.Error(), "ES256") {
		t.Errorf("P-521: %v", err)
	}
}

// A token that may write and not read registers all the same.
func TestWriteOnly(t *testing.T) {
	key := keys(t)["Ed25519"]
	b := &kbs.Broker{Admin: admin(key)}
	c := serve(t, b)
	writer := claims
	writer.Role = "writer"
	c.Token = token(t, key, writer)
	got, err := c.Register(context.Background(), set(t, payload))
	if want := []State{StateUnknown, StateUnknown, StateUnknown}; err != nil || !reflect.DeepEqual(states(got), want) || len(b.Values()) != 3 {
		t.Errorf("%v, %v, the broker has %v", states(got), err, b.Values())
	}
}

// answer is a server that says one thing to everybody.
func answer(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

func TestStatuses(t *testing.T) {
	for _, x := range []struct {
		name    string
		handler http.Handler
		network bool
		want    string
	}{
		{"no such API", answer(404, `{"type":"https://x/PluginNotFound","detail":"Plugin reference-value not found"}`), false, "404 Not Found: Plugin reference-value not found"},
		{"forbidden", answer(403, "nothing for you"), false, `403 Forbidden: "nothing for you"`},
		{"RVPS fails", answer(401, `{"type":"https://x/RvpsError","detail":"Failed to get reference_values: connection refused"}`), false, "connection refused"},
		{"no JSON", answer(200, "<html>"), false, `no JSON: "<html>"`},
		{"escapes", answer(401, `{"type":"https://x/RvpsError","detail":"\u001b[2Jgone\nforged"}`), false, "?[2Jgone?forged"},
		{"endless", answer(200, strings.Repeat(" ", maxAnswer+1)), false, "more than 1048576 bytes"},
		{"broken", answer(500, ""), true, "500 Internal Server Error"},
		{"gateway", answer(503, "later"), true, "503 Service Unavailable"},
	} {
		_, err := serve(t, x.handler).Register(context.Background(), set(t, payload))
		var network *source.NetworkError
		var refused *RefusedError
		if err == nil || !strings.Contains(err.Error(), x.want) || errors.As(err, &network) != x.network || !x.network && !errors.As(err, &refused) {
			t.Errorf("%s: %v, want %q", x.name, err, x.want)
		}
	}
}

// What a broker took and does not have is an error.
func TestForgetful(t *testing.T) {
	b := &kbs.Broker{}
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			b.ServeHTTP(w, r)
		}
	}))
	_, err := c.Register(context.Background(), set(t, payload))
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "the broker took snp_guest_abi_major and has nothing, want 0") {
		t.Errorf("got %v", err)
	}
}

// A token goes to nobody but the address given.
func TestRedirect(t *testing.T) {
	asked := false
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer thief.Close()
	c := serve(t, http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
	c.Token = "secret"
	_, err := c.Register(context.Background(), set(t, payload))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusTemporaryRedirect || refused.Hint() == "" || asked {
		t.Errorf("%v, asked %t", err, asked)
	}
}

func TestUnreachable(t *testing.T) {
	secure := httptest.NewUnstartedServer(&kbs.Broker{})
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of a handshake that fails as it is to
	secure.StartTLS()
	defer secure.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	hangs := make(chan bool)
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer slow.Close()
	defer close(hangs)
	for name, x := range map[string]struct{ url, hint string }{
		"unknown authority": {secure.URL, "--ca"}, "nobody listens": {gone.URL, "--url"}, "no answer": {slow.URL, "--url"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		_, err := (&Trustee{URL: x.url}).Register(ctx, set(t, payload))
		cancel()
		var network *source.NetworkError
		var here *UnreachableError
		if !errors.As(err, &network) || !errors.As(err, &here) || !strings.Contains(here.Hint(), x.hint) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := &Trustee{URL: secure.URL, Client: secure.Client()}
	if _, err := c.Register(context.Background(), set(t, payload)); err != nil {
		t.Errorf("with the authority: %v", err)
	}
}

func TestAddress(t *testing.T) {
	for _, u := range []string{"", "kbs:8080", "ftp://kbs", "https://", "https://kbs?x=1", "https://kbs#x", "https://me:pw@kbs", "https://kbs\n", "::"} {
		if err := (&Trustee{URL: u}).Check(); err == nil {
			t.Errorf("%q: taken", u)
		}
		if _, err := (&Trustee{URL: u}).Requests(set(t, payload)); err == nil {
			t.Errorf("%q: requests", u)
		}
	}
	for u, plain := range map[string]bool{
		"https://kbs": false, "http://127.0.0.1:8080": false, "http://[::1]:1": false, "http://localhost": false,
		"http://kbs": true, "http://10.0.0.1": true, "http://localhost.example.com": true,
	} {
		c := &Trustee{URL: u}
		if err := c.Check(); err != nil || c.Plain() != plain {
			t.Errorf("%s: plain %t, %v", u, c.Plain(), err)
		}
	}
}

// What is shown beforehand is what a broker without the values gets, token aside.
func TestRequests(t *testing.T) {
	b := &kbs.Broker{}
	c := serve(t, b)
	c.Token = "very.secret.token"
	shown, err := c.Requests(set(t, payload))
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Requests()) != 0 {
		t.Error("it asked")
	}
	if text := fmt.Sprint(shown); strings.Contains(text, c.Token) {
		t.Errorf("the token is in %s", text)
	}
	if _, err := c.Register(context.Background(), set(t, payload)); err != nil {
		t.Fatal(err)
	}
	for i, r := range b.Requests() {
		if s := shown[i]; s.Method != r.Method || s.URL != c.URL+r.Path || s.Body != string(r.Body) || r.Authorization != "Bearer "+c.Token {
			t.Errorf("request %d: shown %+v, made %+v", i, s, r)
		}
	}
}

// A name with slashes stays a path; anything else is escaped.
func TestValuePath(t *testing.T) {
	for name, want := range map[string]string{
		"mr_td":               "/kbs/v0/reference-value/mr_td",
		"AMD/SEV-SNP/digests": "/kbs/v0/reference-value/AMD/SEV-SNP/digests",
		"a b?c#d%":            "/kbs/v0/reference-value/a%20b%3Fc%23d%25",
	} {
		if got := valuePath(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}
