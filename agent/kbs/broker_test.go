package kbs

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/plinth-os/plinth/agent/attester"
)

// A fakeBroker speaks the protocol as Trustee's sources have it, and checks of what it
// is sent only what the client is to blame for. It shares no code with the client.
type fakeBroker struct {
	t         testing.TB
	hash      string                                               // to select; "": none
	secrets   map[string]string                                    // by path below kbs/v0/
	lifetime  int64                                                // of tokens, seconds; 0: 300
	fault     func(step string, n int, w http.ResponseWriter) bool // the n-th request of a step, from 1; true: it is answered
	tokenEdit func(string) string

	mu       sync.Mutex
	count    map[string]int
	sessions map[string]*fakeSession
	docs     []fakeAttestation
	headers  []http.Header
}

type fakeSession struct {
	nonce, token string
	jwk          json.RawMessage
}

type fakeAttestation struct {
	InitData *struct {
		Format, Body string
	} `json:"init-data"`
	Runtime struct {
		Nonce string          `json:"nonce"`
		Key   json.RawMessage `json:"tee-pubkey"`
	} `json:"runtime-data"`
	Evidence struct {
		Primary struct {
			SVN        string `json:"svn"`
			ReportData string `json:"report_data"`
		} `json:"primary_evidence"`
		Additional string `json:"additional_evidence"`
	} `json:"tee-evidence"`
}

const cookieName = "kbs-session-id"

func (b *fakeBroker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	step := strings.TrimPrefix(r.URL.Path, "/kbs/v0/")
	path := step
	if r.Method == http.MethodGet {
		step = "resource"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count == nil {
		b.count, b.sessions = map[string]int{}, map[string]*fakeSession{}
	}
	b.count[step]++
	b.headers = append(b.headers, r.Header.Clone())
	if b.fault != nil && b.fault(step, b.count[step], w) {
		return
	}
	body, _ := io.ReadAll(r.Body)
	switch step {
	case "auth":
		b.auth(w, body)
	case "attest":
		b.attest(w, r, body)
	default:
		b.resource(w, r, path)
	}
}

func (b *fakeBroker) auth(w http.ResponseWriter, body []byte) {
	var req map[string]json.RawMessage
	if err := json.Unmarshal(body, &req); err != nil || string(req["version"]) != `"0.4.0"` || string(req["tee"]) != `"sample"` {
		b.t.Errorf("request %s, %v", body, err)
	}
	id := fmt.Sprintf("%032d", len(b.sessions)+1)
	s := &fakeSession{nonce: base64.StdEncoding.EncodeToString([]byte("a nonce of 32 bytes, number " + id[28:]))}
	b.sessions[id] = s
	// It is long over by the client's clock.
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: id, Expires: noon.AddDate(-10, 0, 0)})
	extra := `""`
	if b.hash != "" {
		extra = fmt.Sprintf(`{"selected-hash-algorithm":%q}`, b.hash)
	}
	fmt.Fprintf(w, `{"nonce":%q,"extra-params":%s}`, s.nonce, extra)
}

func (b *fakeBroker) attest(w http.ResponseWriter, r *http.Request, body []byte) {
	s := b.session(r)
	var a fakeAttestation
	if err := json.Unmarshal(body, &a); err != nil || s == nil || a.Runtime.Nonce != s.nonce {
		b.t.Errorf("attestation for session %v: %v", s, err)
		refuse(w, 401, "AttestationError", "Attestation error: RCAR handshake Attest failed")
		return
	}
	b.docs = append(b.docs, a)
	b.checkBinding(&a)
	s.jwk = a.Runtime.Key
	life := b.lifetime
	if life == 0 {
		life = 300
	}
	s.token = jwt(es256, ear(s.jwk, fmt.Sprintf(`"iat":%d,"exp":%d,`, noon.Unix(), noon.Unix()+life)))
	if b.tokenEdit != nil {
		s.token = b.tokenEdit(s.token)
	}
	json.NewEncoder(w).Encode(map[string]string{"token": s.token})
}

// checkBinding works the report data out as trustee does, with the canonical form
// written by hand: the members of the key are text, so their order is all there is.
func (b *fakeBroker) checkBinding(a *fakeAttestation) {
	var k map[string]string
	if err := json.Unmarshal(a.Runtime.Key, &k); err != nil {
		b.t.Error(err)
	}
	key := fmt.Sprintf(`{"alg":%q,"crv":%q,"kty":%q,"x":%q,"y":%q}`, k["alg"], k["crv"], k["kty"], k["x"], k["y"])
	if k["kty"] == "RSA" {
		key = fmt.Sprintf(`{"alg":%q,"e":%q,"kty":%q,"n":%q}`, k["alg"], k["e"], k["kty"], k["n"])
	}
	h := map[string]crypto.Hash{"": crypto.SHA384, "sha256": crypto.SHA256, "SHA384": crypto.SHA384, "sha512": crypto.SHA512}[b.hash]
	digest := func(text string) string {
		d := h.New()
		d.Write([]byte(text))
		return base64.StdEncoding.EncodeToString(d.Sum(nil))
	}
	additional, _ := json.Marshal(a.Evidence.Additional)
	want := digest(fmt.Sprintf(`{"additional-evidence":%s,"nonce":%q,"tee-pubkey":%s}`, additional, a.Runtime.Nonce, key))
	if got := a.Evidence.Primary.ReportData; got != want {
		b.t.Errorf("report data %s, want %s", got, want)
	}
	if a.Evidence.Additional == "" {
		return
	}
	device := digest(fmt.Sprintf(`{"nonce":%q,"tee-pubkey":%s}`, a.Runtime.Nonce, key))
	if !strings.Contains(a.Evidence.Additional, device) || !strings.HasPrefix(a.Evidence.Additional, `{"sampledevice":{`) {
		b.t.Errorf("additional evidence %s, want report data %s", a.Evidence.Additional, device)
	}
}

func (b *fakeBroker) session(r *http.Request) *fakeSession {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return nil
	}
	return b.sessions[c.Value]
}

func (b *fakeBroker) resource(w http.ResponseWriter, r *http.Request, path string) {
	s := b.session(r)
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	secret, ok := b.secrets[path]
	switch {
	case s == nil || s.token == "":
		refuse(w, 401, "TokenNotFound", "Attestation Token not found")
	case r.Header.Get("Authorization") != "Bearer "+s.token:
		b.t.Errorf("authorization %.40q", r.Header.Get("Authorization"))
	case !ok:
		refuse(w, 401, "PluginInternalError", "Plugin internal error")
	default:
		w.Write(sealJWE(b.t, s.jwk, []byte(secret), nil).json(b.t))
	}
}

func refuse(w http.ResponseWriter, status int, kind, detail string) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"type": "https://github.com/confidential-containers/kbs/errors/" + kind, "detail": detail})
}

func (b *fakeBroker) counts() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("%d/%d/%d", b.count["auth"], b.count["attest"], b.count["resource"])
}

// serve answers by TLS until the test ends.
func serve(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

func rootsOf(s *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

const canary = "the-canary-of-this-test"

var canaryURI = URI{PluginResource, "", "default", "key", "1", ""}

// newFake returns a broker with one secret, and a client of it.
func newFake(t testing.TB) (*fakeBroker, *Client) {
	t.Helper()
	b := &fakeBroker{t: t, secrets: map[string]string{"resource/default/key/1": canary}}
	s := serve(t, b)
	c := &Client{URL: s.URL, Roots: rootsOf(s), Attester: attester.NewSample(), Logf: func(format string, a ...any) {
		if text := fmt.Sprintf(format, a...); strings.Contains(text, canary) {
			t.Errorf("logged: %s", text)
		}
	}}
	t.Cleanup(c.Close)
	return b, c
}
