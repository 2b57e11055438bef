package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A site is a registry with one repository, app, and what goes wrong there.
type site struct {
	*httptest.Server
	blob     []byte
	manifest []byte

	sent   atomic.Int64 // bytes of blob bodies
	fault  func(w http.ResponseWriter, r *http.Request) bool
	mu     sync.Mutex
	header []http.Header // of every request
}

func newSite(t testing.TB, blob []byte) *site {
	s := &site{blob: blob, manifest: []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `"}`)}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that leave
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.header = append(s.header, r.Header.Clone())
	fault := s.fault
	s.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/v2/app/manifests/"):
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		_, _ = w.Write(s.manifest)
	case strings.HasPrefix(r.URL.Path, "/v2/app/blobs/"):
		s.serveBlob(w, r, len(s.blob))
	default:
		http.NotFound(w, r)
	}
}

// serveBlob sends what is asked for, at most n bytes of it.
func (s *site) serveBlob(w http.ResponseWriter, r *http.Request, n int) {
	from := 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(s.blob)-1, len(s.blob)))
	}
	rest := s.blob[from:]
	w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	sent, _ := w.Write(rest[:min(n, len(rest))]) // the client may have gone
	s.sent.Add(int64(sent))
}

func (s *site) client() *Client {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return &Client{Roots: pool, Patience: 300 * time.Millisecond, Tries: 4}
}

func (s *site) ref(t testing.TB, suffix string) reference.Named {
	ref, err := reference.ParseNormalizedNamed(strings.TrimPrefix(s.URL, "https://") + "/app" + suffix)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (s *site) descriptor() v1.Descriptor {
	return v1.Descriptor{Digest: digest.FromBytes(s.blob), Size: int64(len(s.blob))}
}

func random(t testing.TB, n int) []byte {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func fetchBlob(t testing.TB, s *site, c *Client) ([]byte, error) {
	r, err := c.Blob(t.Context(), s.ref(t, ":1"), s.descriptor())
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// A connection that breaks, again and again, costs nothing twice.
func TestBlobResumes(t *testing.T) {
	for name, tt := range map[string]struct {
		fault func(s *site) func(http.ResponseWriter, *http.Request) bool
		twice bool // bytes may be sent twice
	}{
		"no fault": {fault: func(*site) func(http.ResponseWriter, *http.Request) bool { return nil }},
		"broken every 100 kB": {fault: func(s *site) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				s.serveBlob(w, r, 100_000)
				return true
			}
		}},
		"stalls": {fault: func(s *site) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				s.serveBlob(w, r, 400_000)
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(5 * time.Second):
				}
				return true
			}
		}},
		"500 and 429 between": {fault: func(s *site) func(http.ResponseWriter, *http.Request) bool {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				switch n.Add(1) {
				case 1, 4:
					http.Error(w, "", http.StatusInternalServerError)
				case 2:
					w.Header().Set("Retry-After", "1")
					http.Error(w, "", http.StatusTooManyRequests)
				default:
					s.serveBlob(w, r, 300_000)
				}
				return true
			}
		}},
		"no ranges": {twice: true, fault: func(s *site) func(http.ResponseWriter, *http.Request) bool {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				r.Header.Del("Range")
				s.serveBlob(w, r, len(s.blob)/2*int(n.Add(1)))
				return true
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, random(t, 1_000_003))
			s.fault = tt.fault(s)
			got, err := fetchBlob(t, s, s.client())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, s.blob) {
				t.Error("other bytes")
			}
			s.Close() // and with it what still counts
			if n := s.sent.Load(); n != int64(len(s.blob)) && !tt.twice {
				t.Errorf("%d bytes were sent for a blob of %d", n, len(s.blob))
			}
		})
	}
}

func TestBlobRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		fault func(s *site, w http.ResponseWriter, r *http.Request)
		want  string
	}{
		"another blob": {func(s *site, w http.ResponseWriter, r *http.Request) {
			b := bytes.Clone(s.blob)
			b[len(b)-1] ^= 1
			_, _ = w.Write(b)
		}, "digest is"},
		"longer":  {func(s *site, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(bytes.Clone(s.blob), 0)) }, "more than"},
		"endless": {func(_ *site, w http.ResponseWriter, _ *http.Request) { endless(w) }, "more than"},
		"shorter": {func(s *site, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(nil) }, "0 of"},
		"gone": {func(_ *site, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}`, http.StatusNotFound)
		}, "BLOB_UNKNOWN not here"},
		"fails": {func(_ *site, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "", http.StatusServiceUnavailable)
		}, "503"},
		"moves": {func(_ *site, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusFound)
		}, "want https"},
		"in rings": {func(_ *site, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, "redirects"},
		"range": {func(s *site, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				s.serveBlob(w, r, 10)
				return
			}
			w.Header().Set("Content-Range", "bytes 0-9/10")
			w.WriteHeader(http.StatusPartialContent)
		}, "Content-Range"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, random(t, 50_000))
			s.fault = func(w http.ResponseWriter, r *http.Request) bool { tt.fault(s, w, r); return true }
			_, err := fetchBlob(t, s, s.client())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	s := newSite(t, nil)
	for _, d := range []v1.Descriptor{{Digest: "sha512:00"}, {Digest: "sha256:00"}, {Digest: s.descriptor().Digest, Size: -1}} {
		if _, err := s.client().Blob(t.Context(), s.ref(t, ""), d); err == nil {
			t.Errorf("%+v: accepted", d)
		}
	}
}

func endless(w io.Writer) {
	for {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil {
			return
		}
	}
}

func TestBlobIsCancelled(t *testing.T) {
	s := newSite(t, random(t, 100_000))
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		s.serveBlob(w, r, 50_000)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	c := s.client()
	c.Patience = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	r, err := c.Blob(ctx, s.ref(t, ""), s.descriptor())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestManifest(t *testing.T) {
	s := newSite(t, nil)
	c := s.client()
	m, err := c.Manifest(t.Context(), s.ref(t, ":1"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.Bytes, s.manifest) || m.Digest != digestOf(s.manifest) || m.MediaType != v1.MediaTypeImageManifest {
		t.Errorf("got %+v", m)
	}
	if _, err := c.Manifest(t.Context(), s.ref(t, "@"+m.Digest)); err != nil {
		t.Error(err)
	}
	if _, err := c.Manifest(t.Context(), s.ref(t, "@"+digestOf([]byte("other")))); err == nil || !strings.Contains(err.Error(), "digest is") {
		t.Errorf("another manifest: %v", err)
	}
	s.manifest = []byte(`{"mediaType":"` + v1.MediaTypeImageIndex + `"}`)
	if _, err := c.Manifest(t.Context(), s.ref(t, ":1")); err == nil || !strings.Contains(err.Error(), "calls itself") {
		t.Errorf("of two types: %v", err)
	}
	s.manifest = bytes.Repeat([]byte(" "), maxManifest+1)
	if _, err := c.Manifest(t.Context(), s.ref(t, ":1")); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a large manifest: %v", err)
	}
	// Without its certificate the registry is nobody.
	stranger := &Client{Tries: 2}
	if _, err := stranger.Manifest(t.Context(), s.ref(t, ":1")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a stranger's: %v", err)
	}
}

// Who asks: nobody, user and password, a token for either, a refresh token. None of
// it goes to where a registry redirects to.
func TestCredentials(t *testing.T) {
	elsewhere := newSite(t, random(t, 1000))
	for name, tt := range map[string]struct {
		auth, challenge string
		fails           string
	}{
		"basic":            {`{"auth":"dXNlcjpwYXNz"}`, `Basic realm="x"`, ""},
		"basic, unknown":   {``, `Basic realm="x"`, "401"},
		"bearer":           {`{"auth":"dXNlcjpwYXNz"}`, `Bearer realm="$URL/token",service="a service, with a comma",scope="repository:app:pull"`, ""},
		"bearer, nobody":   {``, `Bearer realm="$URL/token",service="s"`, ""},
		"refresh token":    {`{"identitytoken":"refresh"}`, `bearer realm="$URL/token"`, ""},
		"realm by HTTP":    {``, `Bearer realm="http://127.0.0.1:1/token"`, "want https"},
		"no realm":         {``, `Bearer service="s"`, "want a URL"},
		"unknown scheme":   {``, `Negotiate`, "401"},
		"endless token":    {``, `Bearer realm="$URL/endless"`, "more than"},
		"second challenge": {`{"auth":"dXNlcjpwYXNz"}`, `Negotiate|Bearer realm="$URL/token?tenant=7"`, ""},
		"token elsewhere":  {`{"identitytoken":"refresh"}`, `Bearer realm="$URL/moved"`, "another host"},
		"token is no JSON": {``, `Bearer realm="$URL/text"`, "no JSON"},
		"no token":         {``, `Bearer realm="$URL/empty"`, "no token"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, elsewhere.blob)
			var asked string
			s.fault = func(w http.ResponseWriter, r *http.Request) bool {
				switch r.URL.Path {
				case "/token":
					_ = r.ParseForm()
					if tenant := r.URL.Query().Get("tenant"); tenant != "7" && strings.Contains(tt.challenge, "tenant") {
						t.Errorf("tenant %q", tenant)
					}
					asked = r.Method + " " + r.Form.Get("scope") + " " + r.Form.Get("refresh_token") + " " + r.Header.Get("Authorization")
					_, _ = io.WriteString(w, `{"token":"secret"}`)
				case "/moved":
					http.Redirect(w, r, elsewhere.URL+"/token", http.StatusTemporaryRedirect)
				case "/endless":
					endless(w)
				case "/text":
					_, _ = io.WriteString(w, `secret`)
				case "/empty":
					_, _ = io.WriteString(w, `{}`)
				default:
					if a := r.Header.Get("Authorization"); a != "Bearer secret" && a != "Basic dXNlcjpwYXNz" {
						for challenge := range strings.SplitSeq(strings.ReplaceAll(tt.challenge, "$URL", s.URL), "|") {
							w.Header().Add("WWW-Authenticate", challenge)
						}
						http.Error(w, "", http.StatusUnauthorized)
						return true
					}
					http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
				}
				return true
			}
			c := s.client()
			c.Roots.AddCert(elsewhere.Certificate())
			if tt.auth != "" {
				var err error
				c.Auth, err = ParseAuthFile([]byte(`{"auths":{"` + strings.TrimPrefix(s.URL, "https://") + `/app":` + tt.auth + `}}`))
				if err != nil {
					t.Fatal(err)
				}
			}
			elsewhere.header = nil
			got, err := fetchBlob(t, s, c)
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) || strings.Contains(err.Error(), "secret") {
					t.Errorf("got %v, want %q", err, tt.fails)
				}
				return
			}
			if err != nil || !bytes.Equal(got, s.blob) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			for _, h := range elsewhere.header {
				if h.Get("Authorization") != "" {
					t.Error("credentials went elsewhere")
				}
			}
			if strings.HasPrefix(tt.challenge, "Bearer") && !strings.Contains(asked, "repository:app:pull") {
				t.Errorf("asked %q", asked)
			}
			if strings.Contains(tt.auth, "identity") && !strings.Contains(asked, "POST repository:app:pull refresh ") {
				t.Errorf("asked %q", asked)
			}
		})
	}
}

// An answer that begins and does not go on ends, and a secret in the query of where
// it came from is nobody's to read.
func TestManifestStalls(t *testing.T) {
	s := newSite(t, nil)
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.RawQuery == "" {
			http.Redirect(w, r, r.URL.Path+"?sig=secret", http.StatusTemporaryRedirect)
			return true
		}
		_, _ = io.WriteString(w, "{")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	if _, err := s.client().Manifest(t.Context(), s.ref(t, ":1")); err == nil || !errors.Is(err, errStalled) || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.RawQuery == "" {
			http.Redirect(w, r, r.URL.Path+"?sig=secret", http.StatusTemporaryRedirect)
			return true
		}
		http.Error(w, "", http.StatusForbidden)
		return true
	}
	if _, err := s.client().Manifest(t.Context(), s.ref(t, ":1")); err == nil || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

// A mirror that is down, or breaks off for good, costs nothing but time. One that has
// other bytes is found out at the end, when the others went to the reader already.
func TestMirrors(t *testing.T) {
	s, mirror := newSite(t, random(t, 10_000)), newSite(t, random(t, 10_000))
	text := fmt.Sprintf("[[registry]]\nprefix=\"registry.example.com\"\nlocation=%q\n[[registry.mirror]]\nlocation=%q\n",
		strings.TrimPrefix(s.URL, "https://"), strings.TrimPrefix(mirror.URL, "https://"))
	c := s.client()
	c.Roots.AddCert(mirror.Certificate())
	var err error
	if c.Config, err = ParseConfig([]byte(text)); err != nil {
		t.Fatal(err)
	}
	ref, err := reference.ParseNormalizedNamed("registry.example.com/app:1")
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Manifest(t.Context(), ref)
	if err != nil || m.From != strings.TrimPrefix(mirror.URL, "https://")+"/app:1" {
		t.Errorf("got %+v, %v", m, err)
	}
	mirror.blob = s.blob
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"gone": func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true },
		"breaks off": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") == "" {
				mirror.serveBlob(w, r, 5000)
			} else {
				w.Header().Set("Content-Range", "bytes 5000-9999/10000")
				w.Header().Set("Content-Length", "5000")
				w.WriteHeader(http.StatusPartialContent)
			}
			return true
		},
	} {
		mirror.fault = fault
		r, err := c.Blob(t.Context(), ref, s.descriptor())
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, s.blob) {
			t.Errorf("%s: %v", name, err)
		}
		r.Close()
	}
}

// A mirror that is not there is waited for once.
func TestDeadMirror(t *testing.T) {
	s := newSite(t, random(t, 10_000))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := s.client()
	waits := 0
	c.Log = func(string, ...any) { waits++ }
	if c.Config, err = ParseConfig(fmt.Appendf(nil, "[[registry]]\nprefix=\"registry.example.com\"\nlocation=%q\n[[registry.mirror]]\nlocation=%q\n",
		strings.TrimPrefix(s.URL, "https://"), l.Addr())); err != nil {
		t.Fatal(err)
	}
	ref, err := reference.ParseNormalizedNamed("registry.example.com/app:1")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.Manifest(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	if want := c.tries() - 1; waits != want {
		t.Errorf("waited %d times, want %d", waits, want)
	}
}

// Whoever answers is there again, whatever he says.
func TestMirrorComesBack(t *testing.T) {
	s := newSite(t, random(t, 10_000))
	c := s.client()
	ref := s.ref(t, ":1")
	c.gone.Store(reference.Domain(ref), true)
	var n atomic.Int32
	s.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		switch n.Add(1) {
		case 1:
			http.Error(w, "", http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler)
		default:
			return false
		}
		return true
	}
	if _, err := c.Manifest(t.Context(), ref); err != nil || n.Load() != 3 {
		t.Errorf("%v after %d requests", err, n.Load())
	}
}

func TestReferrers(t *testing.T) {
	const kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
	index := `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[{"artifactType":"` + kind + `","digest":"` + digestOf(nil) + `"},{"artifactType":"other","digest":"` + digestOf(nil) + `"}]}`
	subject := digestOf([]byte("image"))
	call, tag := "/v2/app/referrers/"+subject, "/v2/app/manifests/"+strings.Replace(subject, ":", "-", 1)
	for name, tt := range map[string]struct {
		serves string
		status int // of what is not served
	}{
		"the call": {call, 404}, "the tag": {tag, 404}, "neither": {"", 404}, "a call it does not know": {tag, 405}, "a call it takes amiss": {tag, 400},
	} {
		serves := tt.serves
		t.Run(name, func(t *testing.T) {
			s := newSite(t, nil)
			s.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != serves {
					http.Error(w, "", tt.status)
					return true
				}
				_, _ = io.WriteString(w, index)
				return true
			}
			got, err := s.client().Referrers(t.Context(), s.ref(t, ""), subject, kind)
			if want := min(len(serves), 1); err != nil || len(got) != want {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

// A list of referrers may come in pages, of the same repository, and has an end.
func TestReferrerPages(t *testing.T) {
	const kind = "kind"
	subject := digestOf([]byte("image"))
	for name, tt := range map[string]struct {
		link string // of the first page; %s: the registry
		want string
	}{
		"relative":           {`</v2/app/referrers/` + subject + `?last=1>; rel="next"`, ""},
		"absolute":           {`<%s/v2/app/referrers/` + subject + `?last=1>; rel="next"`, ""},
		"beside another":     {`<https://example.com/doc>; rel="help", </v2/app/referrers/` + subject + `?last=1>;rel=next`, ""},
		"another host":       {`<https://registry.example.com/v2/app/referrers/x>; rel="next"`, "want one below"},
		"another repository": {`</v2/app/../other/referrers/x>; rel="next"`, "want one below"},
		"page not there":     {`</v2/app/referrers/` + subject + `?last=none>; rel="next"`, "404"},
		"endless":            {`</v2/app/referrers/` + subject + `>; rel="next"`, "more than 128 pages"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, nil)
			s.fault = func(w http.ResponseWriter, r *http.Request) bool {
				switch r.URL.Query().Get("last") {
				case "none":
					http.NotFound(w, r)
					return true
				case "":
					w.Header().Set("Link", strings.Replace(tt.link, "%s", s.URL, 1))
				}
				_, _ = fmt.Fprintf(w, `{"manifests":[{"artifactType":"kind","digest":%q}]}`, digestOf([]byte(r.URL.RawQuery)))
				return true
			}
			got, err := s.client().Referrers(t.Context(), s.ref(t, ""), subject, kind)
			if tt.want == "" && (err != nil || len(got) != 2 || got[0].Digest == got[1].Digest) {
				t.Errorf("got %+v, %v", got, err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A connection that breaks behind the last byte has brought all of it.
func TestBlobBreaksAtEnd(t *testing.T) {
	s := newSite(t, random(t, 50_000))
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			http.Error(w, "", http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		_, _ = w.Write(s.blob) // in chunks, the last of which does not come
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	if b, err := fetchBlob(t, s, s.client()); err != nil || !bytes.Equal(b, s.blob) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// What registries.conf calls insecure may have no certificate, or no TLS.
func TestInsecure(t *testing.T) {
	s := newSite(t, nil)
	plain := httptest.NewServer(http.HandlerFunc(s.serve))
	defer plain.Close()
	for name, url := range map[string]string{"own certificate": s.URL, "plain HTTP": plain.URL} {
		_, host, _ := strings.Cut(url, "://")
		ref, err := reference.ParseNormalizedNamed(host + "/app:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&Client{Tries: 1}).Manifest(t.Context(), ref); err == nil {
			t.Errorf("%s: accepted", name)
		}
		c := &Client{Tries: 1, Config: &Config{Registries: []Registry{{Prefix: host, Location: host, Insecure: true}}}}
		if _, err := c.Manifest(t.Context(), ref); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example.com/token",service="s",scope="a,b"`)
	f.Fuzz(func(_ *testing.T, s string) { parseChallenge(s) })
}

// What an earlier download left is not asked for again, and is hashed with the rest.
func TestResume(t *testing.T) {
	for name, tt := range map[string]struct {
		n      int64
		change func(have []byte) []byte
		sent   int64
		want   string
	}{
		"nothing":     {0, nil, 50_000, ""},
		"half":        {20_000, nil, 30_000, ""},
		"all":         {50_000, nil, 0, ""},
		"short":       {20_000, func(b []byte) []byte { return b[:5000] }, 45_000, ""},
		"more":        {20_000, func(b []byte) []byte { return append(b, 1) }, 30_000, ""},
		"other bytes": {20_000, func(b []byte) []byte { b[7] ^= 1; return b }, 30_000, "digest is"},
		"too much":    {50_001, func(b []byte) []byte { return append(b, 1) }, 0, "want at most 50000"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, random(t, 50_000))
			have := bytes.Clone(s.blob[:min(tt.n, 50_000)])
			if tt.change != nil {
				have = tt.change(have)
			}
			r, err := s.client().Resume(t.Context(), s.ref(t, ":1"), s.descriptor(), bytes.NewReader(have), tt.n)
			var b []byte
			if err == nil {
				b, err = io.ReadAll(r)
				err = errors.Join(err, r.Close())
			}
			switch {
			case tt.want == "" && (err != nil || !bytes.Equal(b, s.blob)):
				t.Errorf("%d bytes, %v", len(b), err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
			s.Close() // it counts what it has sent
			if got := s.sent.Load(); got != tt.sent {
				t.Errorf("%d bytes sent, want %d", got, tt.sent)
			}
		})
	}
}

// A mirror that served other bytes is not asked again for them; one is not blamed for
// what was at hand.
func TestWrongMirror(t *testing.T) {
	s, mirror := newSite(t, random(t, 10_000)), newSite(t, random(t, 10_000))
	text := fmt.Sprintf("[[registry]]\nprefix=\"registry.example.com\"\nlocation=%q\n[[registry.mirror]]\nlocation=%q\n",
		strings.TrimPrefix(s.URL, "https://"), strings.TrimPrefix(mirror.URL, "https://"))
	c := s.client()
	c.Roots.AddCert(mirror.Certificate())
	var err error
	if c.Config, err = ParseConfig([]byte(text)); err != nil {
		t.Fatal(err)
	}
	ref, err := reference.ParseNormalizedNamed("registry.example.com/app@" + digestOf(s.manifest))
	if err != nil {
		t.Fatal(err)
	}
	mirror.manifest = append(bytes.Clone(s.manifest), ' ')
	if m, err := c.Manifest(t.Context(), ref); err != nil || m.Digest != digestOf(s.manifest) {
		t.Errorf("manifest: got %+v, %v", m, err)
	}
	for i, tt := range []struct {
		had  int64
		want bool
		sent int64 // by the mirror, in all
	}{{1000, false, 9000}, {0, false, 19_000}, {0, true, 19_000}, {0, true, 19_000}} {
		r, err := c.Resume(t.Context(), ref, s.descriptor(), bytes.NewReader(make([]byte, tt.had)), tt.had)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, r)
		for deadline := time.Now().Add(5 * time.Second); mirror.sent.Load() < tt.sent && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // it counts what it has sent
		}
		if r.Close(); (err == nil) != tt.want || mirror.sent.Load() != tt.sent {
			t.Errorf("try %d: %v; the mirror sent %d bytes, want %d", i, err, mirror.sent.Load(), tt.sent)
		}
	}
}

// A registry is asked for bytes alone: what it says of them beforehand, or the next
// time, is of no use.
func TestOneAnswerCounts(t *testing.T) {
	s := newSite(t, nil)
	var asked atomic.Int64
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if n := asked.Add(1); n > 1 || r.Method != http.MethodGet {
			t.Errorf("request %d: %s %s", n, r.Method, r.URL.Path)
		}
		return false
	}
	m, err := s.client().Manifest(t.Context(), s.ref(t, ":1"))
	if err != nil || m.Digest != digestOf(s.manifest) {
		t.Errorf("got %+v, %v", m, err)
	}
}
