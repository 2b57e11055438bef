package kbs

import (
	"encoding/pem"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/attester"
)

// A URI that names a broker leads to that one, and to no other whatever it says.
func TestBrokers(t *testing.T) {
	b1, c1 := newFake(t)
	b2, c2 := newFake(t)
	b2.secrets["resource/default/key/1"] = "of the second"
	b, err := NewBrokers(c1, c2)
	if err != nil {
		t.Fatal(err)
	}
	for uri, want := range map[string]string{
		"kbs:///default/key/1":                  canary,
		"kbs://" + c1.Host() + "/default/key/1": canary,
		"kbs://" + c2.Host() + "/default/key/1": "of the second",
		"kbs+resource:///default/key/1":         canary,
	} {
		if got, err := b.Resource(t.Context(), uri); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", uri, got, err, want)
		}
	}
	wantCounts(t, b1, "1/1/3")
	wantCounts(t, b2, "1/1/1")
	for _, uri := range []string{
		"kbs://kbs.example.com/default/key/1", "kbs://127.0.0.1/default/key/1", "kbs://127.0.0.1:1/default/key/1", "kbs://localhost:443/default/key/1",
		"https://" + c1.Host() + "/default/key/1", "kbs:///default/key", "",
	} {
		if _, err := b.Resource(t.Context(), uri); err == nil {
			t.Errorf("%s: taken", uri)
		}
	}
	wantCounts(t, b1, "1/1/3")
	wantCounts(t, b2, "1/1/1")
	if token, err := b.Token(t.Context()); err != nil || token.Key != c1.current.key.private {
		t.Errorf("token of another: %v", err)
	}
}

// What a URI without a port means.
func TestBrokerPorts(t *testing.T) {
	https := &Client{URL: "https://kbs.example.com", Attester: attester.NewSample()}
	odd := &Client{URL: "https://kbs.example.com:8443/", Attester: attester.NewSample()}
	plain := &Client{URL: "http://old.example.com", AllowHTTP: true, Attester: attester.NewSample()}
	six := &Client{URL: "https://[2001:db8::1]", Attester: attester.NewSample()}
	mixed := &Client{URL: "https://mixed.example.com:80", Attester: attester.NewSample()}
	b, err := NewBrokers(odd, https, plain, six, mixed)
	if err != nil {
		t.Fatal(err)
	}
	for uri, want := range map[string]*Client{
		"kbs:///a/b/c":                     odd,
		"kbs://kbs.example.com/a/b/c":      https,
		"kbs://KBS.example.com:443/a/b/c":  https,
		"kbs://kbs.example.com:8443/a/b/c": odd,
		"kbs://kbs.example.com:80/a/b/c":   nil,
		"kbs://old.example.com/a/b/c":      plain,
		"kbs://old.example.com:80/a/b/c":   plain,
		"kbs://old.example.com:443/a/b/c":  nil,
		"kbs://[2001:db8:0::1]/a/b/c":      six,
		"kbs://[2001:db8::1]:443/a/b/c":    six,
		"kbs://[2001:db8::2]/a/b/c":        nil,
		"kbs://mixed.example.com/a/b/c":    nil,
		"kbs://mixed.example.com:80/a/b/c": mixed,
		"kbs://example.com/a/b/c":          nil,
		"kbs://kbs.example.com.evil/a/b/c": nil,
	} {
		u, err := ParseURI(uri)
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.client(u)
		if got != want || (err == nil) != (want != nil) {
			t.Errorf("%s: %v, %v", uri, got, err)
		}
	}
}

func TestNewBrokersRefused(t *testing.T) {
	ok := func(url string) *Client { return &Client{URL: url, Attester: attester.NewSample()} }
	if _, err := NewBrokers(ok("https://a.example.com"), ok("https://A.example.com:443")); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
	if _, err := NewBrokers(ok("http://a.example.com")); err == nil {
		t.Error("plain HTTP")
	}
	none, err := NewBrokers()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Resource(t.Context(), "kbs:///a/b/c"); err == nil || !strings.Contains(err.Error(), "no broker") {
		t.Error(err)
	}
	if _, err := none.Token(t.Context()); err == nil {
		t.Error("a token of nobody")
	}
}

func TestParseCAs(t *testing.T) {
	s := serve(t, &fakeBroker{t: t})
	good := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	for _, text := range []string{good, "\n" + good + "\n\n" + good, strings.ReplaceAll(good, "\n", "\r\n")} {
		pool, err := ParseCAs(text)
		if err != nil || !pool.Equal(rootsOf(s)) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	for _, text := range []string{"", "\n", "cert", good + "x", strings.Replace(good, "CERTIFICATE", "PUBLIC KEY", 2),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))} {
		if _, err := ParseCAs(text); err == nil {
			t.Errorf("%.40q: taken", text)
		}
	}
}
