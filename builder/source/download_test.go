package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/testenv"
)

// One package of 300 kB on a mirror, and ways in which the mirror fails. Each
// fault sees how many requests came before it.
func TestFetchFaults(t *testing.T) {
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request, []byte, int) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ []byte, _ int) bool {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			return true
		}
	}
	first := func(f func(http.ResponseWriter, *http.Request, []byte, int) bool) func(http.ResponseWriter, *http.Request, []byte, int) bool {
		return func(w http.ResponseWriter, r *http.Request, b []byte, n int) bool { return n == 0 && f(w, r, b, n) }
	}
	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request, body []byte, n int) bool
		code  int
		say   string
		slept string
	}{
		{"none", nil, 0, "", "[]"},
		{"not found", status(404), 9, "names app 1, which no mirror of test trixie has any more", "[]"},
		{"gone", status(410), 9, "no mirror", "[]"},
		{"forbidden", status(403), 5, "403 Forbidden", "[]"},
		{"unavailable once", first(status(503)), 0, "", "[500ms]"},
		{"unavailable", status(503), 5, "503 Service Unavailable", "[500ms 1s 2s]"},
		{"too many requests", first(status(429, "Retry-After", "7")), 0, "", "[7s]"},
		{"retry after a day", first(status(503, "Retry-After", "86400")), 0, "", "[30s]"},
		{"retry after a date", first(status(503, "Retry-After", "Fri, 20 Nov 2026 12:00:00 GMT")), 0, "", "[500ms]"},
		{"web page", func(w http.ResponseWriter, _ *http.Request, _ []byte, _ int) bool {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, "Please log in")
			return true
		}, 5, "mirror answered with a web page instead of the file", "[]"},
		{"web page that says it is none", func(w http.ResponseWriter, _ *http.Request, _ []byte, _ int) bool {
			w.Header().Set("Content-Type", "application/octet-stream")
			fmt.Fprint(w, "\n<!doctype HTML>Log in")
			return true
		}, 5, "web page", "[]"},
		{"one bit wrong", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			b[len(b)/2] ^= 1
			w.Write(b)
			return true
		}, 7, "sha256 is", "[]"},
		{"too long, announced", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)+1))
			w.Write(append(b, 0))
			return true
		}, 7, "want", "[]"},
		{"too long, not announced", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.(http.Flusher).Flush()
			for range 100 {
				w.Write(b)
			}
			return true
		}, 7, "that it should have", "[]"},
		{"too short", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)-1))
			w.Write(b[:len(b)-1])
			return true
		}, 7, "want", "[]"},
		{"cut off once", first(func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b[:len(b)/3])
			return true
		}), 0, "", "[500ms]"},
		{"always cut off", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.(http.Flusher).Flush()
			w.Write(b[:len(b)/3])
			return true
		}, 5, "truncated: ", "[500ms 1s 2s]"},
		{"stalled once", first(func(w http.ResponseWriter, r *http.Request, b []byte, _ int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b[:len(b)/2])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}), 0, "", "[500ms]"},
		{"slow but steady", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			for part := range slices.Chunk(b, len(b)/6) {
				w.Write(part)
				w.(http.Flusher).Flush()
				time.Sleep(60 * time.Millisecond)
			}
			return true
		}, 0, "", "[]"},
		{"never answers", func(_ http.ResponseWriter, r *http.Request, _ []byte, _ int) bool {
			<-r.Context().Done()
			return true
		}, 5, "stalled: no data for 200ms", "[500ms 1s 2s]"},
		{"cut off, then ignores the range", func(w http.ResponseWriter, r *http.Request, b []byte, n int) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b[:len(b)/(3-2*min(n, 1))])
			return true
		}, 0, "", "[500ms]"},
		{"cut off, then refuses the range", func(w http.ResponseWriter, r *http.Request, b []byte, n int) bool {
			switch n {
			case 0:
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				w.Write(b[:100])
			case 1:
				w.WriteHeader(416)
			}
			return n < 2
		}, 0, "", "[500ms 1s]"},
		{"cut off, then answers another range", func(w http.ResponseWriter, r *http.Request, b []byte, n int) bool {
			if n > 0 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(b)-1, len(b)))
				w.WriteHeader(206)
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b[:100])
			return true
		}, 5, "answered from offset 7, want 100", "[500ms]"},
		{"redirect", func(w http.ResponseWriter, r *http.Request, _ []byte, _ int) bool {
			if r.URL.RawQuery == "" {
				http.Redirect(w, r, r.URL.Path+"?node=2", http.StatusFound)
				return true
			}
			return false
		}, 0, "", "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newArchive(t)
			noise := make([]byte, 300_000)
			for i, rng := 0, rand.New(rand.NewPCG(1, 1)); i < len(noise); i++ {
				noise[i] = byte(rng.Uint32())
			}
			a.addFile("pool/app.deb", "Package: app\nVersion: 1\nArchitecture: all", noise)
			a.publish()
			client := newClient(t)
			client.Stall = 200 * time.Millisecond
			l := a.resolve(client.Client, a.request(root("app")...), nil)
			var n atomic.Int32
			if c.fault != nil {
				a.fault = func(w http.ResponseWriter, r *http.Request) bool {
					return c.fault(w, r, bytes.Clone(noise), int(n.Add(1))-1)
				}
			}
			ref, err := client.Fetch(context.Background(), []Source{a.source()}, l.Packages[0])
			wantError(t, err, c.code, c.say)
			if got := fmt.Sprint(client.slept); got != c.slept {
				t.Errorf("slept %s, want %s", got, c.slept)
			}
			if has := client.Store.Holds(ref); has != (c.code == 0) {
				t.Errorf("the store holds the package: %v", has)
			}
			if c.code == 0 {
				if b, err := client.Store.ReadFile(ref.Digest); err != nil || !bytes.Equal(b, noise) {
					t.Errorf("stored %d bytes, %v", len(b), err)
				}
			}
		})
	}
}

// onePackage returns a mirror with a package and a lock that names it.
func onePackage(t *testing.T) (*archive, *testClient, Package) {
	a := newArchive(t)
	a.add("app", "1")
	a.publish()
	c := newClient(t)
	return a, c, a.resolve(c.Client, a.request(root("app")...), nil).Packages[0]
}

// A download that another process began goes on, with a Range request; when what
// that process left is wrong, it begins again.
func TestResume(t *testing.T) {
	for _, c := range []struct {
		name     string
		left     func(b []byte) []byte
		ranges   string
		attempts int
	}{
		{"nothing", func(b []byte) []byte { return nil }, "[]", 1},
		{"half", func(b []byte) []byte { return b[:100] }, "[bytes=100-]", 1},
		{"all", func(b []byte) []byte { return b }, "", 0},
		{"wrong half", func(b []byte) []byte { return bytes.Repeat([]byte("x"), 100) }, "[bytes=100- ]", 2},
		{"wrong whole", func(b []byte) []byte { return make([]byte, len(b)) }, "[]", 1},
		{"too much", func(b []byte) []byte { return append(b, 1) }, "[]", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, client, p := onePackage(t)
			if err := os.WriteFile(client.Store.Partial("download "+p.SHA256.String()), c.left(bytes.Clone(a.files[p.Filename])), 0o644); err != nil {
				t.Fatal(err)
			}
			var ranges []string
			a.fault = func(_ http.ResponseWriter, r *http.Request) bool {
				ranges = append(ranges, r.Header.Get("Range"))
				return false
			}
			if _, err := client.Fetch(context.Background(), []Source{a.source()}, p); err != nil {
				t.Fatal(err)
			}
			if len(ranges) != c.attempts || c.attempts > 0 && fmt.Sprint(ranges) != c.ranges {
				t.Errorf("requests for ranges %q, want %s", ranges, c.ranges)
			}
		})
	}
}

func TestMirrorsInOrder(t *testing.T) {
	a, client, p := onePackage(t)
	dead := newArchive(t)
	dead.server.Close()
	empty := newArchive(t)
	broken := newArchive(t)
	broken.files[p.Filename] = bytes.Repeat([]byte("x"), int(p.Size))
	src := a.source()
	src.Mirrors = []string{dead.url(), empty.url(), broken.url(), a.url()}
	if _, err := client.Fetch(context.Background(), []Source{src}, p); err != nil || len(client.slept) > 0 {
		t.Fatalf("slept %v, %v", client.slept, err)
	}
	src.Mirrors = []string{dead.url(), empty.url()}
	_, err := newClient(t).Fetch(context.Background(), []Source{src}, p)
	wantError(t, err, 5, "refused", "404")
	src.Mirrors = []string{empty.url(), broken.url()}
	_, err = newClient(t).Fetch(context.Background(), []Source{src}, p)
	wantError(t, err, 7, "sha256 is", broken.url())
}

func TestOffline(t *testing.T) {
	a, client, p := onePackage(t)
	client.Offline = true
	_, err := client.Fetch(context.Background(), []Source{a.source()}, p)
	wantError(t, err, 5, "app 1: not in the store, and offline")
	var hint interface{ Hint() string }
	if !errors.As(err, &hint) || !strings.Contains(hint.Hint(), "without --offline") {
		t.Error("no hint")
	}
	client.Offline = false
	if _, err := client.Fetch(context.Background(), []Source{a.source()}, p); err != nil {
		t.Fatal(err)
	}
	client.Offline = true
	if _, err := client.Fetch(context.Background(), nil, p); err != nil {
		t.Errorf("the store has it: %v", err)
	}
}

func TestCancel(t *testing.T) {
	a, client, p := onePackage(t)
	ctx, cancel := context.WithCancel(context.Background())
	a.fault = func(_ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		return true
	}
	if _, err := client.Fetch(ctx, []Source{a.source()}, p); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Two processes that want one package fetch it once.
func TestFetchOnce(t *testing.T) {
	a, client, p := onePackage(t)
	other, err := cas.Open(client.Store.Dir())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, st := range []*cas.Store{client.Store, other, client.Store, other} {
		wg.Go(func() {
			c := &Client{Store: st}
			if _, err := c.Fetch(context.Background(), []Source{a.source()}, p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := a.count(".deb"); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestProgress(t *testing.T) {
	a, client, p := onePackage(t)
	var last Progress
	client.Progress = func(p Progress) { last = p }
	if _, err := client.Fetch(context.Background(), []Source{a.source()}, p); err != nil {
		t.Fatal(err)
	}
	if want := (Progress{"app 1", p.Size, p.Size}); last != want {
		t.Errorf("got %+v, want %+v", last, want)
	}
}

// A full disk is no reason to ask the next mirror.
func TestDiskFull(t *testing.T) {
	a, client, p := onePackage(t)
	if _, err := os.Stat("/dev/full"); err != nil {
		testenv.Missing(t, "/dev/full", err.Error())
	}
	if err := os.Symlink("/dev/full", client.Store.Partial("download "+p.SHA256.String())); err != nil {
		t.Fatal(err)
	}
	_, err := client.Fetch(context.Background(), []Source{a.source()}, p)
	wantError(t, err, 6)
	if n := a.count(".deb"); n > 1 {
		t.Errorf("%d requests", n)
	}
}

func TestVerifier(t *testing.T) {
	want := cas.Ref{Digest: cas.Sum([]byte("abc")), Size: 3}
	for _, c := range []struct {
		text string
		say  string
	}{{"abc", "<nil>"}, {"abd", "sha256 is"}, {"ab", "size is 2 bytes, want 3"}, {"abcd", "size is 4 bytes"}, {"", "size is 0"}} {
		_, err := io.ReadAll(newVerifier(strings.NewReader(c.text), want, "x"))
		if !strings.Contains(fmt.Sprint(err), c.say) {
			t.Errorf("%q: %v, want %q", c.text, err, c.say)
		}
	}
}

func TestRedacted(t *testing.T) {
	a, client, p := onePackage(t)
	src := a.source()
	src.Mirrors = []string{strings.Replace(a.url(), "http://", "http://user:secret@", 1)}
	for _, code := range []int{404, 503, 200} {
		a.fault = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
		if _, err := client.Fetch(context.Background(), []Source{src}, p); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("status %d: %v", code, err)
		}
	}
}
