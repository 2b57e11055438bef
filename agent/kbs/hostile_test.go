package kbs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/attester"
)

// steps are the requests that lead to a secret.
var steps = []string{"auth", "attest", "resource"}

// hostile lets one step of an otherwise right broker answer in its own way.
func hostile(t testing.TB, step string, answer func(http.ResponseWriter)) (*fakeBroker, *Client) {
	b, c := newFake(t)
	c.Sleep = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	b.fault = func(s string, _ int, w http.ResponseWriter) bool {
		if s == step {
			answer(w)
		}
		return s == step
	}
	return b, c
}

// refused wants an error, at once, of bounded length.
func refused(t testing.TB, name string, c *Client, want string) {
	t.Helper()
	start := time.Now()
	got, err := c.Resource(t.Context(), canaryURI)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %q, %v, want an error with %q", name, got, err, want)
		return
	}
	if len(err.Error()) > 2048 || strings.Contains(err.Error(), canary) {
		t.Errorf("%s: the error is of %d bytes: %.300q", name, len(err.Error()), err)
	}
	if s := err.Error(); printable(s[:min(len(s), maxDetail)]) != s[:min(len(s), maxDetail)] {
		t.Errorf("%s: the error is not for a console: %q", name, s)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("%s: took %v", name, d)
	}
}

func TestHostileAnswers(t *testing.T) {
	for _, step := range steps {
		for name, c := range map[string]struct {
			answer func(http.ResponseWriter)
			want   string
		}{
			"nothing":  {func(http.ResponseWriter) {}, ""},
			"garbage":  {func(w http.ResponseWriter) { w.Write(bytes.Repeat([]byte{0xff, 0, '{'}, 5000)) }, ""},
			"HTML":     {func(w http.ResponseWriter) { io.WriteString(w, "<html>"+canary+"</html>") }, ""},
			"null":     {func(w http.ResponseWriter) { io.WriteString(w, "null") }, ""},
			"array":    {func(w http.ResponseWriter) { io.WriteString(w, "[1]") }, ""},
			"deep":     {func(w http.ResponseWriter) { w.Write(bytes.Repeat([]byte("["), 1<<20)) }, ""},
			"long key": {func(w http.ResponseWriter) { fmt.Fprintf(w, `{%q:1}`, strings.Repeat("a", 1<<20)) }, ""},
			"endless": {func(w http.ResponseWriter) {
				io.WriteString(w, `{"nonce":"`)
				for range 1 << 14 { // a GiB, if somebody takes it
					if _, err := w.Write(bytes.Repeat([]byte("A"), 64<<10)); err != nil {
						return
					}
				}
				t.Errorf("%s: the client took a GiB", step)
			}, "longer than 2097152 bytes"},
			"announced": {func(w http.ResponseWriter) {
				w.Header().Set("Content-Length", "99999999999")
				io.WriteString(w, "{")
			}, "longer than 2097152 bytes"},
			"headers":  {func(w http.ResponseWriter) { w.Header().Set("X-A", strings.Repeat("a", 1<<20)) }, "header"},
			"redirect": {func(w http.ResponseWriter) { w.Header().Set("Location", "https://example.com/"); w.WriteHeader(307) }, "redirects"},
			"see other": {func(w http.ResponseWriter) {
				w.Header().Set("Location", "/kbs/v0/auth")
				w.WriteHeader(303)
			}, "redirects"},
			"no header": {func(w http.ResponseWriter) {
				conn, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				io.WriteString(conn, "HTTP/1.1 200 OK\r\n\x1b[2J"+strings.Repeat("a", 8<<10)+"\r\n\r\n")
			}, "malformed"},
			"long version": {func(w http.ResponseWriter) {
				refuse(w, 401, "X", "Protocol version mismatch: expect "+strings.Repeat("1", 60<<10)+".1.1")
			}, "version"},
			"204":          {func(w http.ResponseWriter) { w.WriteHeader(204) }, "204"},
			"long refusal": {func(w http.ResponseWriter) { refuse(w, 403, "X", strings.Repeat("\u202e\x1b[2J", 1<<18)) }, "403"},
		} {
			_, client := hostile(t, step, c.answer)
			refused(t, step+": "+name, client, c.want)
		}
	}
}

// What the client takes of an endless answer is what it may be long.
func TestBoundedMemory(t *testing.T) {
	_, c := hostile(t, "auth", func(w http.ResponseWriter) {
		for range 1 << 12 {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	refused(t, "endless", c, "longer than")
	runtime.ReadMemStats(&after)
	// io.ReadAll doubles as it grows; server and client are one process here.
	if n := after.TotalAlloc - before.TotalAlloc; n > 8*maxAnswer+64<<20 {
		t.Errorf("%d bytes allocated", n)
	}
}

// Every answer, cut short anywhere, is an error; nothing is made of a part.
func TestTruncated(t *testing.T) {
	b, c := newFake(t)
	for _, step := range steps {
		for _, part := range []int{0, 10, 30, 50, 70, 90, 99} {
			record := &recorder{b: b, step: step, percent: part}
			s := serve(t, record)
			client := &Client{URL: s.URL, Roots: rootsOf(s), Attester: c.Attester}
			if got, err := client.Resource(t.Context(), canaryURI); err == nil {
				t.Errorf("%s, %d %%: %q", step, part, got)
			}
		}
	}
}

// A recorder passes a part of one step's answers on, as if it were all.
type recorder struct {
	b       *fakeBroker
	step    string
	percent int
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	rec := httptest.NewRecorder()
	r.b.ServeHTTP(rec, req)
	body := rec.Body.Bytes()
	if strings.HasPrefix(req.URL.Path, "/kbs/v0/"+r.step) {
		body = body[:len(body)*r.percent/100]
	}
	for name, v := range rec.Header() {
		w.Header()[name] = v
	}
	w.WriteHeader(rec.Code)
	w.Write(body)
}

// Brokers that are slow at any point of an answer cost no more than the time that one
// request has.
func TestSlow(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	for name, answer := range map[string]func(http.ResponseWriter){
		"silent": func(http.ResponseWriter) { <-stop },
		"drops": func(w http.ResponseWriter) {
			for {
				io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		},
	} {
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
		c := &Client{URL: s.URL, Roots: rootsOf(s), Attester: attester.NewSample(), Timeout: 100 * time.Millisecond,
			Sleep: func(context.Context, time.Duration) error { return nil }}
		start := time.Now()
		_, err := c.Resource(t.Context(), canaryURI)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
	}
}

func TestChallengeRefused(t *testing.T) {
	nonce := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, c := range map[string][2]string{
		"no nonce":        {`{"extra-params":""}`, "nonce"},
		"short nonce":     {`{"nonce":"AAAA","extra-params":""}`, "nonce"},
		"long nonce":      {fmt.Sprintf(`{"nonce":%q,"extra-params":""}`, strings.Repeat("AAAA", 1000)), "nonce"},
		"not base64":      {fmt.Sprintf(`{"nonce":%q,"extra-params":""}`, strings.Repeat("!", 44)), "nonce"},
		"nonce twice":     {fmt.Sprintf(`{"nonce":%q,"nonce":%q,"extra-params":""}`, nonce, nonce), "nonce"},
		"hash a number":   {fmt.Sprintf(`{"nonce":%q,"extra-params":{"selected-hash-algorithm":1}}`, nonce), "want text"},
		"hash not known":  {fmt.Sprintf(`{"nonce":%q,"extra-params":{"selected-hash-algorithm":"md5"}}`, nonce), "md5"},
		"hash not wanted": {fmt.Sprintf(`{"nonce":%q,"extra-params":{"selected-hash-algorithm":"sha512"}}`, nonce), `selected SHA-512, offered were ["sha256"]`},
		"none selected":   {fmt.Sprintf(`{"nonce":%q,"extra-params":""}`, nonce), `selected SHA-384, offered were ["sha256"]`},
	} {
		b, client := hostile(t, "auth", func(w http.ResponseWriter) { io.WriteString(w, c[0]) })
		client.Hashes = []string{"sha256"}
		refused(t, name, client, c[1])
		wantCounts(t, b, "1/0/0")
	}
}

// Tokens for another key, or of no form, are refused before anything is asked by them.
func TestTokenRefused(t *testing.T) {
	other := mustKey(t, keyP256)
	for name, c := range map[string]struct {
		edit func(string) string
		want string
	}{
		"another key":  {func(string) string { return jwt(es256, ear(other.jwk, "")) }, "not this guest's key"},
		"unsigned":     {func(s string) string { return s[:strings.LastIndexByte(s, '.')+1] }, "want a signed JWT"},
		"alg none":     {func(s string) string { return base64url([]byte(`{"alg":"none"}`)) + s[strings.IndexByte(s, '.'):] }, "not signed"},
		"header break": {func(s string) string { return s + "\r\nX: y" }, "not signed"},
		"empty":        {func(string) string { return "" }, "no token"},
	} {
		b, client := newFake(t)
		b.tokenEdit = c.edit
		refused(t, name, client, c.want)
		wantCounts(t, b, "1/1/0")
	}
}

// A secret for another key, and one that was for an earlier session.
func TestSecretForAnother(t *testing.T) {
	other := mustKey(t, keyP256)
	_, c := hostile(t, "resource", func(w http.ResponseWriter) { w.Write(sealJWE(t, other.jwk, []byte(canary), nil).json(t)) })
	refused(t, "another key", c, "not encrypted to this guest's key")

	b, c := newFake(t)
	ask(t, c)
	old := sealJWE(t, c.current.key.jwk, []byte("an old secret"), nil).json(t)
	c.drop(c.current)
	b.fault = func(step string, _ int, w http.ResponseWriter) bool {
		if step == "resource" {
			w.Write(old)
		}
		return step == "resource"
	}
	refused(t, "replayed", c, "not encrypted to this guest's key")
}

// Who answers has to be who the configuration says; a wrong certificate is not tried
// again, and nothing is sent to whoever has it.
func TestWrongCertificate(t *testing.T) {
	b := &fakeBroker{t: t}
	s := serve(t, b)
	named := func(name string) *Client {
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		return &Client{URL: "https://" + name + ":" + port, Roots: rootsOf(s), Attester: attester.NewSample(),
			Sleep: func(context.Context, time.Duration) error { t.Error("tried again"); return nil }}
	}
	empty := named("127.0.0.1")
	empty.Roots = x509.NewCertPool()
	expired := named("127.0.0.1")
	expired.Now = func() time.Time { return s.Certificate().NotAfter.Add(time.Hour) }
	for name, c := range map[string]*Client{"unknown authority": empty, "certificate is valid for": named("localhost"), "expired": expired} {
		refused(t, name, c, "certificate")
	}
	wantCounts(t, b, "0/0/0")

	plain := httptest.NewServer(b)
	defer plain.Close()
	c := named("127.0.0.1")
	c.URL = "https://" + plain.Listener.Addr().String()
	refused(t, "no TLS", c, "HTTP")
}

func TestOldTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(&fakeBroker{t: t})
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	s.StartTLS()
	defer s.Close()
	c := &Client{URL: s.URL, Roots: rootsOf(s), Attester: attester.NewSample(), Sleep: func(context.Context, time.Duration) error { t.Error("tried again"); return nil }}
	refused(t, "TLS 1.1", c, "tls")
}

// The environment names no proxy here, and one that is given is used.
func TestProxy(t *testing.T) {
	b, c := newFake(t)
	if c.newHTTP().Transport.(*http.Transport).Proxy != nil {
		t.Error("a proxy that nobody gave")
	}
	used := false
	c.Proxy = func(*http.Request) (*url.URL, error) { used = true; return nil, nil }
	ask(t, c)
	if !used {
		t.Error("the proxy was not asked for")
	}
	wantCounts(t, b, "1/1/1")
}

// Nothing that was tried above may make the next request fail.
func TestAfterFailure(t *testing.T) {
	b, c := newFake(t)
	bad := true
	b.fault = func(step string, _ int, w http.ResponseWriter) bool {
		if bad {
			json.NewEncoder(w).Encode(map[string]string{"token": "x"})
		}
		return bad
	}
	refused(t, "bad", c, "")
	bad = false
	ask(t, c)
}
