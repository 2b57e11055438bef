package source

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/plinth-os/plinth/internal/cas"
)

// imageOf is an image of one layer, as a library of containers makes it, with the
// layer's digest and bytes.
func imageOf(t *testing.T, files ...tarFile) (v1.Image, cas.Digest, []byte) {
	t.Helper()
	plain := tarOf(t, files...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(plain)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	h, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := cas.ParseDigest(h.Hex)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return img, digest, blob
}

func content(t *testing.T, st *cas.Store, ref cas.Ref) string {
	t.Helper()
	b, err := st.ReadFile(ref.Digest)
	if err != nil || int64(len(b)) != ref.Size {
		t.Fatalf("%d bytes, want %d: %v", len(b), ref.Size, err)
	}
	return string(b)
}

func TestPutLayout(t *testing.T) {
	img, digest, blob := imageOf(t, layerFiles[:5]...)
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	pack := func(name, prefix string, change func([]byte) []byte) string {
		member := tarFile{tar.Header{Name: prefix + blobPath(digest), Mode: 0o644}, string(change(bytes.Clone(blob)))}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, tarOf(t, tarFile{tar.Header{Name: "oci-layout", Mode: 0o644}, "{}"}, member), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	same := func(b []byte) []byte { return b }
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for _, layout := range []string{dir, pack("image.tar", "", same), pack("image.tar", "./", same)} {
		st := store(t)
		ref, err := PutLayout(t.Context(), st, layout, digest)
		if err != nil || content(t, st, ref) != string(blob) {
			t.Errorf("%s: %v", layout, err)
		}
	}

	other := cas.Sum([]byte("other"))
	bent := filepath.Join(t.TempDir(), "bent")
	if err := os.CopyFS(bent, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(bent, blobPath(digest))
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, flip(bytes.Clone(blob)), 0o644); err != nil {
		t.Fatal(err)
	}
	noise := filepath.Join(t.TempDir(), "noise")
	if err := os.WriteFile(noise, bytes.Repeat([]byte("x"), 2000), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		layout string
		digest cas.Digest
		code   int
		say    string
	}{
		{dir, other, 7, "has no blobs/sha256/" + other.String()},
		{pack("image.tar", "", same), other, 7, "has no blobs/sha256/" + other.String()},
		{bent, digest, 7, "want " + digest.String()},
		{pack("image.tar", "", flip), digest, 7, "want " + digest.String()},
		{noise, digest, 6, "want a directory or a tar archive"},
		{noise + "s", digest, 6, "no such file"},
	} {
		st := store(t)
		_, err := PutLayout(t.Context(), st, c.layout, c.digest)
		wantError(t, err, c.code, c.say)
		if _, ok := st.Find(c.digest); ok {
			t.Errorf("%s: the store has a wrong blob", c.layout)
		}
	}
}

// anonymous keeps the user's own credentials out of a test.
func anonymous(t *testing.T, config string) {
	t.Helper()
	dir := t.TempDir()
	if config != "" {
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("HOME", dir)
}

// serve runs a registry with an image in team/image; gate may answer in its place.
func serve(t *testing.T, img v1.Image, gate func(w http.ResponseWriter, r *http.Request) bool) (repository string) {
	t.Helper()
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := true
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if open || gate == nil || !gate(w, r) {
			reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	repository = strings.TrimPrefix(s.URL, "http://") + "/team/image"
	tag, err := name.NewTag(repository + ":1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	open = false
	return repository
}

func TestFetchBlob(t *testing.T) {
	anonymous(t, "")
	img, digest, blob := imageOf(t, layerFiles[:5]...)
	asked := 0
	repository := serve(t, img, func(http.ResponseWriter, *http.Request) bool { asked++; return false })
	c := newClient(t)
	ref, err := c.FetchBlob(t.Context(), repository, digest)
	if err != nil || content(t, c.Store, ref) != string(blob) {
		t.Fatal(err)
	}

	// What the store has is asked of nobody.
	before := asked
	c.Offline = true
	if again, err := c.FetchBlob(t.Context(), repository, digest); err != nil || again != ref || asked != before {
		t.Errorf("%v, %v, %d requests more", again, err, asked-before)
	}
	_, err = c.FetchBlob(t.Context(), repository, cas.Sum(nil))
	wantError(t, err, 5, "not in the store, and offline")
	c.Offline = false
	_, err = c.FetchBlob(t.Context(), repository, cas.Sum([]byte("nothing")))
	wantError(t, err, 5, "404")
	_, err = c.FetchBlob(t.Context(), "registry.invalid.example/UPPER", cas.Sum([]byte("nothing")))
	wantError(t, err, 6, "registry.invalid.example/UPPER")
}

func TestFetchBlobFaults(t *testing.T) {
	anonymous(t, "")
	img, digest, blob := imageOf(t, layerFiles[:5]...)
	bytesOf := func(b []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/blobs/") {
				w.Write(b)
				return true
			}
			return false
		}
	}
	flipped := bytes.Clone(blob)
	flipped[len(blob)/2] ^= 1
	n := 0
	for _, c := range []struct {
		name string
		gate func(w http.ResponseWriter, r *http.Request) bool
		code int
		say  string
	}{
		{"another blob", bytesOf([]byte("other")), 7, "want " + digest.String()},
		{"a bit flipped", bytesOf(flipped), 7, "want " + digest.String()},
		{"one byte more", bytesOf(append(bytes.Clone(blob), 0)), 7, "want " + digest.String()},
		{"down", func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }, 5, "503"},
		{"down once", func(w http.ResponseWriter, _ *http.Request) bool {
			if n++; n > 1 {
				return false
			}
			w.WriteHeader(503)
			return true
		}, 0, ""},
		{"forbidden", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			w.WriteHeader(403)
			return true
		}, 5, "403"},
		{"to a host without encryption", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			http.Redirect(w, r, "http://files.example.com/blob", http.StatusTemporaryRedirect)
			return true
		}, 5, "http://files.example.com/blob: want https"},
		{"a realm without encryption", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://10.0.0.1/token"`)
			w.WriteHeader(401)
			return true
		}, 5, "realm"},
	} {
		client := newClient(t)
		ref, err := client.FetchBlob(t.Context(), serve(t, img, c.gate), digest)
		if wantError(t, err, c.code, c.say); err == nil && content(t, client.Store, ref) != string(blob) {
			t.Errorf("%s: other bytes", c.name)
		}
		if _, ok := client.Store.Find(digest); ok != (c.code == 0) {
			t.Errorf("%s: blob in the store: %v", c.name, ok)
		}
	}

	// A host with a private address is no reason to do without encryption.
	c := newClient(t)
	c.HTTP = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme != "https" {
			t.Errorf("asked %s", r.URL)
		}
		return nil, fmt.Errorf("no such host")
	})}
	_, err := c.FetchBlob(t.Context(), "10.1.2.3:5000/team/image", digest)
	wantError(t, err, 5, "10.1.2.3:5000")

	// Giving up is none of the registry's faults.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newClient(t).FetchBlob(ctx, serve(t, img, nil), digest); err == nil || exit(err) == 5 {
		t.Errorf("cancelled: %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A registry that wants a token gives it for the password in the user's
// configuration; OCI distribution: "Authentication" of Docker Registry HTTP API V2.
func TestFetchBlobToken(t *testing.T) {
	img, digest, blob := imageOf(t, layerFiles[:5]...)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:secret"))
	scope := ""
	gate := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			scope = r.URL.Query().Get("scope")
			if r.Header.Get("Authorization") != basic {
				w.WriteHeader(401)
			} else {
				fmt.Fprint(w, `{"token": "t0ken"}`)
			}
			return true
		}
		if r.Header.Get("Authorization") == "Bearer t0ken" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="r"`, r.Host))
		w.WriteHeader(401)
		return true
	}
	repository := serve(t, img, gate)
	host, _, _ := strings.Cut(repository, "/")
	for _, c := range []struct {
		password string
		code     int
	}{{"me:secret", 0}, {"me:wrong", 5}, {"", 5}} {
		config := ""
		if c.password != "" {
			config = fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, base64.StdEncoding.EncodeToString([]byte(c.password)))
		}
		anonymous(t, config)
		client := newClient(t)
		ref, err := client.FetchBlob(t.Context(), repository, digest)
		wantError(t, err, c.code)
		if err == nil && (content(t, client.Store, ref) != string(blob) || scope != "repository:team/image:pull") {
			t.Errorf("scope %q", scope)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%v", err)
		}
	}
}
