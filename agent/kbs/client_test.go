package kbs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/evidence"
)

// ask wants the canary.
func ask(t testing.TB, c *Client) {
	t.Helper()
	got, err := c.Resource(t.Context(), canaryURI)
	if err != nil || string(got) != canary {
		t.Fatalf("%q, %v", got, err)
	}
}

// wantCounts are requests of auth, attest and resource.
func wantCounts(t testing.TB, b *fakeBroker, want string) {
	t.Helper()
	if got := b.counts(); got != want {
		t.Errorf("%s requests of auth/attest/resource, want %s", got, want)
	}
}

// Each key with each hash, without and with a device: the broker works out the same
// report data by itself, and encrypts by the standard library.
func TestResource(t *testing.T) {
	for _, key := range append([]KeyAlgorithm{""}, Keys...) {
		for _, hash := range []string{"", "sha256", "SHA384", "sha512"} {
			for _, devices := range [][]attester.Device{nil, {attester.NewSampleDevice()}} {
				b, c := newFake(t)
				b.hash, c.Key, c.Devices = hash, key, devices
				ask(t, c)
				ask(t, c)
				wantCounts(t, b, "1/1/2")
			}
		}
	}
}

func TestInitData(t *testing.T) {
	b, c := newFake(t)
	ask(t, c)
	c2 := &Client{URL: c.URL, Roots: c.Roots, Attester: c.Attester, InitData: &evidence.InitData{Format: "toml", Body: "a = \"<&>\u2028\"\n"}}
	ask(t, c2)
	if b.docs[0].InitData != nil {
		t.Error("initdata of nobody")
	}
	if d := b.docs[1].InitData; d == nil || d.Format != "toml" || d.Body != "a = \"<&>\u2028\"\n" {
		t.Errorf("initdata %+v", d)
	}
}

// Plugins and queries get where they belong.
func TestResourcePlugin(t *testing.T) {
	b, c := newFake(t)
	b.secrets["nebula-ca/a/b/c?ip=192.0.2.1&name=x"] = "credential"
	u, err := ParseURI("kbs+nebula-ca:///a/b/c?ip=192.0.2.1&name=x")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Resource(t.Context(), u); err != nil || string(got) != "credential" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.Resource(t.Context(), URI{"resource", "", "..", "b", "c", ""}); err == nil {
		t.Error("a path upwards")
	}
	if got, err := c.Resource(t.Context(), URI{Repository: "default", Type: "key", Tag: "1"}); err != nil || string(got) != canary {
		t.Errorf("without a plugin: %q, %v", got, err)
	}
}

// A session has one key, and another session another; RSA keys stay.
func TestSessionKeys(t *testing.T) {
	for _, c := range []struct {
		key  KeyAlgorithm
		same bool
	}{{keyP256, false}, {keyRSA, true}} {
		b, client := newFake(t)
		client.Key = c.key
		first, err := client.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		again, err := client.Token(t.Context())
		if err != nil || *again != *first {
			t.Errorf("%s: another token: %v", c.key, err)
		}
		client.drop(client.current)
		other, err := client.Token(t.Context())
		if err != nil || other.JWT == first.JWT && !c.same || (other.Key == first.Key) != c.same {
			t.Errorf("%s: same key: %v, %v", c.key, other.Key == first.Key, err)
		}
		wantCounts(t, b, "2/2/0")
		if !other.Expires.Equal(noon.Add(5 * time.Minute)) {
			t.Errorf("expires %v", other.Expires)
		}
	}
}

// What was measured since makes a token useless for what is asked now.
func TestGeneration(t *testing.T) {
	b, c := newFake(t)
	var n atomic.Uint64
	c.Generation = n.Load
	ask(t, c)
	ask(t, c)
	wantCounts(t, b, "1/1/2")
	n.Add(1)
	ask(t, c)
	wantCounts(t, b, "2/2/3")
	// One that comes while an attestation is under way counts too: the evidence may be
	// older than the question.
	n.Add(1)
	b.fault = func(step string, i int, _ http.ResponseWriter) bool {
		if step == "auth" && i == 3 {
			n.Add(1)
		}
		return false
	}
	ask(t, c)
	wantCounts(t, b, "3/3/4")
	ask(t, c)
	wantCounts(t, b, "4/4/5")
}

// A token is used until shortly before its end, by the broker's figures.
func TestExpiry(t *testing.T) {
	b, c := newFake(t)
	b.lifetime = 60
	now := time.Now()
	c.Now = func() time.Time { return now }
	ask(t, c)
	now = now.Add(49 * time.Second)
	ask(t, c)
	wantCounts(t, b, "1/1/2")
	now = now.Add(2 * time.Second)
	ask(t, c)
	wantCounts(t, b, "2/2/3")
}

// 401 for a token that was there before: one new attestation, then the error.
func TestUnauthorized(t *testing.T) {
	forget := func(kind string) func(string, int, http.ResponseWriter) bool {
		return func(step string, n int, w http.ResponseWriter) bool {
			if step == "resource" && n > 1 {
				refuse(w, 401, kind, "x")
			}
			return step == "resource" && n > 1
		}
	}
	for kind, counts := range map[string]string{"TokenNotFound": "2/2/3", "PolicyDeny": "2/2/3", "": "2/2/3"} {
		b, c := newFake(t)
		b.fault = forget(kind)
		ask(t, c)
		_, err := c.Resource(t.Context(), canaryURI)
		var status *StatusError
		if !errors.Is(err, ErrUnauthorized) || !errors.As(err, &status) || status.Kind != kind {
			t.Errorf("%s: %v", kind, err)
		}
		wantCounts(t, b, counts)
	}
	// A broker that forgot the session, and one that forgot it for a moment.
	b, c := newFake(t)
	ask(t, c)
	b.sessions = map[string]*fakeSession{}
	ask(t, c)
	wantCounts(t, b, "2/2/3")

	// The token is new: a policy's refusal stays, another 401 is worth one more.
	for kind, counts := range map[string]string{"TokenVerifierError": "2/2/2", "PolicyDeny": "1/1/1", "PluginInternalError": "1/1/1"} {
		b, c := newFake(t)
		b.fault = func(step string, _ int, w http.ResponseWriter) bool {
			if step == "resource" {
				refuse(w, 401, kind, "x")
			}
			return step == "resource"
		}
		if _, err := c.Resource(t.Context(), canaryURI); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: %v", kind, err)
		}
		wantCounts(t, b, counts)
	}
}

// 401, 403, 404 and another version are four errors.
func TestErrors(t *testing.T) {
	version := func(w http.ResponseWriter) {
		refuse(w, 401, "AttestationError", "Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect =0.5.1 while the request is 0.4.0")
	}
	for name, c := range map[string]struct {
		step   string
		answer func(http.ResponseWriter)
		is     error
		want   string
	}{
		"401": {"attest", func(w http.ResponseWriter) {
			refuse(w, 401, "AttestationError", "Attestation error: pcr11: event 3 \".initrd\"")
		}, ErrUnauthorized, `attest: the broker says 401 Unauthorized, AttestationError: Attestation error: pcr11: event 3 ".initrd"`},
		"403":              {"resource", func(w http.ResponseWriter) { refuse(w, 403, "PolicyDeny", "no") }, ErrForbidden, "403 Forbidden, PolicyDeny: no"},
		"404":              {"resource", func(w http.ResponseWriter) { refuse(w, 404, "PluginNotFound", "no") }, ErrNotFound, "404 Not Found, PluginNotFound"},
		"404 without JSON": {"auth", func(w http.ResponseWriter) { w.WriteHeader(404); io.WriteString(w, "nothing\x1b[31m here\n") }, ErrNotFound, "404 Not Found: nothing [31m here"},
		"version":          {"auth", version, nil, "the broker's protocol is version 0.5.1, ours 0.4.0"},
		"418":              {"auth", func(w http.ResponseWriter) { w.WriteHeader(418) }, nil, "418"},
	} {
		b, client := newFake(t)
		b.fault = func(step string, _ int, w http.ResponseWriter) bool {
			if step == c.step {
				c.answer(w)
			}
			return step == c.step
		}
		_, err := client.Resource(t.Context(), canaryURI)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		for _, is := range []error{ErrUnauthorized, ErrForbidden, ErrNotFound} {
			if errors.Is(err, is) != (is == c.is) {
				t.Errorf("%s: errors.Is(%v): %v", name, is, errors.Is(err, is))
			}
		}
		var v *VersionError
		if errors.As(err, &v) != (name == "version") || v != nil && *v != (VersionError{"0.4.0", "0.5.1"}) {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestRefusal(t *testing.T) {
	long := strings.Repeat("é", 4096)
	for body, want := range map[string]error{
		`{"type":"https://github.com/x/errors/PolicyDeny","detail":"d"}`: &StatusError{401, "PolicyDeny", "d"},
		`{"type":"PolicyDeny","detail":"d"}`:                             &StatusError{401, "PolicyDeny", "d"},
		`{"type":"a/<script>","detail":"d"}`:                             &StatusError{401, "", "d"},
		`{"type":1}`:                                                     &StatusError{401, "", `{"type":1}`},
		``:                                                               &StatusError{401, "", ""},
		`{"detail":"protocol version mismatch: client 0.4.0, server 0.2.0"}`: &VersionError{"0.4.0", "0.2.0"},
		`{"detail":"KBS Client Protocol Version Mismatch"}`:                  &VersionError{"0.4.0", ""},
		`{"detail":"Protocol Version Mismatch: expect =<b>1.2.3"}`:           &VersionError{"0.4.0", "1.2.3"},
	} {
		if got := refusal(401, []byte(body)); got.Error() != want.Error() || fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
			t.Errorf("%s: %v, want %v", body, got, want)
		}
	}
	e := refusal(500, []byte(long)).Error()
	if len(e) > 600 || strings.Contains(e, "é") {
		t.Errorf("%d bytes: %.80q", len(e), e)
	}
}

// What may pass is tried again, within the context; what was decided is not.
func TestRetry(t *testing.T) {
	b, c := newFake(t)
	var slept []time.Duration
	c.Sleep = func(_ context.Context, d time.Duration) error { slept = append(slept, d); return nil }
	b.fault = func(step string, n int, w http.ResponseWriter) bool {
		switch {
		case step == "auth" && n == 1:
			w.WriteHeader(503)
			return true
		case step == "attest" && n == 1:
			w.WriteHeader(502)
			return true
		case n == 1: // the connection breaks in the middle of the answer
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "{")
			return true
		}
		return false
	}
	ask(t, c)
	wantCounts(t, b, "3/2/2") // a new challenge for each attestation
	if fmt.Sprint(slept) != "[250ms 500ms 250ms]" {
		t.Errorf("pauses %v", slept)
	}

	b, c = newFake(t)
	slept = nil
	c.Sleep = func(_ context.Context, d time.Duration) error { slept = append(slept, d); return nil }
	b.fault = func(step string, n int, w http.ResponseWriter) bool { w.WriteHeader(500); return true }
	if _, err := c.Resource(t.Context(), canaryURI); err == nil || !strings.Contains(err.Error(), "500") {
		t.Error(err)
	}
	wantCounts(t, b, "8/0/0")
	if want := "[250ms 500ms 1s 2s 4s 8s 8s]"; fmt.Sprint(slept) != want {
		t.Errorf("pauses %v, want %s", slept, want)
	}

	// Nobody listens, and the caller has no more time.
	c = &Client{URL: "https://127.0.0.1:1", Attester: attester.NewSample()}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := c.Resource(ctx, canaryURI); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// Many ask at once: one attestation. One who goes takes nothing from the others.
func TestTogether(t *testing.T) {
	b, c := newFake(t)
	hold := make(chan struct{})
	c.Attester = held{attester.NewSample(), hold}
	impatient, leave := context.WithCancel(t.Context())
	first := make(chan error)
	go func() { _, err := c.Resource(impatient, canaryURI); first <- err }()
	waitFor(t, func() bool { return b.counts() == "1/0/0" })
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if got, err := c.Resource(context.Background(), canaryURI); err != nil || string(got) != canary {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	waitFor(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.flight.waiters == 21 })
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(hold)
	all.Wait()
	wantCounts(t, b, "1/1/20")
}

// Who asks after a measurement gets nothing of an attestation that began before it.
func TestTogetherLater(t *testing.T) {
	b, c := newFake(t)
	var n atomic.Uint64
	c.Generation = n.Load
	hold := make(chan struct{})
	c.Attester = held{attester.NewSample(), hold}
	var all sync.WaitGroup
	for i := range 2 {
		all.Go(func() {
			if got, err := c.Resource(t.Context(), canaryURI); err != nil || string(got) != canary {
				t.Errorf("%q, %v", got, err)
			}
		})
		waitFor(t, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.flight != nil && c.flight.waiters == i+1
		})
		waitFor(t, func() bool { return b.counts() == "1/0/0" })
		n.Add(1)
	}
	close(hold)
	all.Wait()
	wantCounts(t, b, "2/2/2")
}

// The last one to leave ends the attestation, and the next begins another.
func TestAbandoned(t *testing.T) {
	b, c := newFake(t)
	hold := make(chan struct{})
	c.Attester = held{attester.NewSample(), hold}
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := c.Resource(ctx, canaryURI); done <- err }()
	waitFor(t, func() bool { return b.counts() == "1/0/0" })
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(hold)
	ask(t, c)
	wantCounts(t, b, "2/1/1")
}

// held is an attester that waits.
type held struct {
	attester.Attester
	until chan struct{}
}

func (h held) Evidence(ctx context.Context, report []byte) (json.RawMessage, error) {
	select {
	case <-h.until:
		return h.Attester.Evidence(ctx, report)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to that")
		}
	}
}

// An attester that fails, or has a mistake, is not asked again, and nothing is sent.
func TestNoEvidence(t *testing.T) {
	for want, broken := range map[string]broken{
		"evidence: sample: out of order": func() error { return errors.New("out of order") },
		"panic: a mistake":               func() error { panic("a mistake") },
	} {
		b, c := newFake(t)
		c.Attester = broken
		if _, err := c.Resource(t.Context(), canaryURI); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		wantCounts(t, b, "1/0/0")
	}
}

type broken func() error

func (broken) TEE() string { return "sample" }
func (f broken) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return nil, f()
}

// Clients that could ask nobody, or the wrong one.
func TestCheck(t *testing.T) {
	good := func() *Client { return &Client{URL: "https://kbs.example.com:8443", Attester: attester.NewSample()} }
	if err := good().Check(); err != nil {
		t.Error(err)
	}
	for url, want := range map[string]string{
		"http://kbs.example.com":         "want https",
		"HTTPS://kbs.example.com":        "want https://HOST",
		"ftp://kbs.example.com":          "want https://HOST",
		"https://":                       "want https://HOST",
		"https://kbs.example.com/kbs/v0": "want https://HOST",
		"https://kbs.example.com?x":      "want https://HOST",
		"https://kbs.example.com?":       "want https://HOST",
		"https://kbs.example.com#x":      "want https://HOST",
		"https://kbs.example.com#":       "want https://HOST",
		"https://user@kbs.example.com":   "want https://HOST",
		"https://kbs.example.com:0":      "want https://HOST",
		"https://kbs_example.com":        "want https://HOST",
		"https:kbs.example.com":          "want https://HOST",
		"//kbs.example.com":              "want https://HOST",
		"":                               "want https://HOST",
		"https://a b":                    "not a URL",
	} {
		c := good()
		c.URL = url
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", url, err, want)
		}
		if _, err := c.Resource(t.Context(), canaryURI); err == nil {
			t.Errorf("%q: was asked", url)
		}
	}
	for name, f := range map[string]func(*Client){
		"key":      func(c *Client) { c.Key = "RSA1_5" },
		"hash":     func(c *Client) { c.Hashes = []string{"sha1"} },
		"attester": func(c *Client) { c.Attester = nil },
	} {
		c := good()
		f(c)
		if c.Check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Without TLS only where the caller said so.
func TestAllowHTTP(t *testing.T) {
	b := &fakeBroker{t: t, secrets: map[string]string{"resource/default/key/1": canary}}
	s := httptest.NewServer(b)
	defer s.Close()
	c := &Client{URL: s.URL, Attester: attester.NewSample()}
	if _, err := c.Resource(t.Context(), canaryURI); err == nil {
		t.Error("plain HTTP by default")
	}
	wantCounts(t, b, "0/0/0")
	c.AllowHTTP = true
	ask(t, c)
}
