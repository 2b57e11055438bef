package imagepull_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/store"
)

const (
	ociTar     = v1.MediaTypeImageLayer
	ociGzip    = v1.MediaTypeImageLayerGzip
	ociZstd    = v1.MediaTypeImageLayerZstd
	dockerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"

	keyName = "kbs:///test/key/one"
)

var layerKey = bytes.Repeat([]byte{7}, 32)

// An image is one of a test: good, until a test changes it.
type image struct {
	config   v1.Image
	manifest v1.Manifest
	blobs    map[digest.Digest][]byte
	raw      []byte // in the place of the manifest
}

func newImage(t testing.TB, layers ...layer) *image {
	t.Helper()
	im := &image{blobs: map[digest.Digest][]byte{}}
	im.config.OS, im.config.Architecture, im.config.RootFS.Type = "linux", "amd64", "layers"
	im.config.Config.Cmd = []string{"/bin/app"}
	im.manifest.SchemaVersion, im.manifest.MediaType = 2, v1.MediaTypeImageManifest
	for _, l := range layers {
		im.add(t, l)
	}
	return im
}

// A layer of an image to be made.
type layer struct {
	tar       []byte
	mediaType string // without that of encryption; "": OCI's of gzip
	blob      []byte // nil: tar, compressed as mediaType says
	encrypt   []crypt.Wrapper
}

func (im *image) add(t testing.TB, l layer) {
	t.Helper()
	if l.mediaType == "" {
		l.mediaType = ociGzip
	}
	if l.blob == nil {
		l.blob = compress(t, l.mediaType, l.tar)
	}
	d := v1.Descriptor{MediaType: l.mediaType}
	if l.encrypt != nil {
		var b bytes.Buffer
		var err error
		d.Annotations, err = crypt.Encrypt(t.Context(), &b, bytes.NewReader(l.blob), digest.FromBytes(l.blob).String(), rand.Reader, l.encrypt...)
		if err != nil {
			t.Fatal(err)
		}
		l.blob, d.MediaType = b.Bytes(), l.mediaType+crypt.MediaSuffix
	}
	d.Digest, d.Size = digest.FromBytes(l.blob), int64(len(l.blob))
	im.blobs[d.Digest] = l.blob
	im.manifest.Layers = append(im.manifest.Layers, d)
	im.config.RootFS.DiffIDs = append(im.config.RootFS.DiffIDs, digest.FromBytes(l.tar))
}

// seal makes configuration and manifest of what the image is now.
func (im *image) seal(t testing.TB) (manifest []byte) {
	t.Helper()
	if im.raw != nil {
		return im.raw
	}
	if im.manifest.Config.Digest == "" {
		b, err := json.Marshal(im.config)
		if err != nil {
			t.Fatal(err)
		}
		im.setConfig(b)
	}
	b, err := json.Marshal(im.manifest)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (im *image) setConfig(b []byte) {
	im.manifest.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(b), Size: int64(len(b))}
	im.blobs[im.manifest.Config.Digest] = b
}

func compress(t testing.TB, mediaType string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		w, err = gzip.NewWriterLevel(&out, gzip.BestSpeed)
	case strings.HasSuffix(mediaType, "zstd"):
		w, err = zstd.NewWriter(&out)
	default:
		return b
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// tarOf makes a tar of files, each "name=content", or "name/" for a directory.
func tarOf(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1700000000, 0)}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		writeEntry(t, w, h, []byte(content))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeEntry(t testing.TB, w *tar.Writer, h *tar.Header, b []byte) {
	t.Helper()
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

// noise is a string that hardly compresses.
func noise(seed uint64, n int) string {
	r := mathrand.New(mathrand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// A fakeRegistry serves images over TLS as a registry would, or worse.
type fakeRegistry struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string][]byte // by tag and digest
	blobs     map[digest.Digest][]byte
	sent      map[digest.Digest]int64 // bytes of bodies
	asked     map[digest.Digest]int
	// blob takes over the answer where it returns true.
	blob func(w http.ResponseWriter, r *http.Request, d digest.Digest, b []byte) bool
}

func newFakeRegistry(t testing.TB) *fakeRegistry {
	f := &fakeRegistry{
		manifests: map[string][]byte{}, blobs: map[digest.Digest][]byte{},
		sent: map[digest.Digest]int64{}, asked: map[digest.Digest]int{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/app/manifests/{ref}", f.serveManifest)
	mux.HandleFunc("GET /v2/app/blobs/{digest}", f.serveBlob)
	f.Server = httptest.NewUnstartedServer(mux)
	f.Config.ErrorLog = nil
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

func (f *fakeRegistry) put(t testing.TB, tag string, im *image) {
	t.Helper()
	m := im.seal(t)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.manifests[tag], f.manifests[digest.FromBytes(m).String()] = m, m
	for d, b := range im.blobs {
		f.blobs[d] = b
	}
}

func (f *fakeRegistry) serveManifest(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	b, ok := f.manifests[r.PathValue("ref")]
	f.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	var v struct{ MediaType string }
	_ = json.Unmarshal(b, &v) // a broken one has no type
	w.Header().Set("Content-Type", v.MediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // the client may have gone
}

func (f *fakeRegistry) serveBlob(w http.ResponseWriter, r *http.Request) {
	d := digest.Digest(r.PathValue("digest"))
	f.mu.Lock()
	b, ok := f.blobs[d]
	f.asked[d]++
	answer := f.blob
	f.mu.Unlock()
	counted := &counter{ResponseWriter: w, f: f, d: d}
	switch {
	case answer != nil && answer(counted, r, d, b):
	case !ok:
		http.NotFound(w, r)
	default:
		http.ServeContent(counted, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// counter adds up what was sent of a blob.
type counter struct {
	http.ResponseWriter
	f      *fakeRegistry
	d      digest.Digest
	failed bool // what is written now is no part of a blob
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counter) WriteHeader(status int) {
	c.failed = status/100 != 2
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	if !c.failed {
		c.f.mu.Lock()
		c.f.sent[c.d] += int64(n)
		c.f.mu.Unlock()
	}
	return n, err
}

func (f *fakeRegistry) sentOf(d digest.Digest) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent[d]
}

func (f *fakeRegistry) name(t testing.TB, tag string) policy.Name {
	return parseName(t, "docker://"+strings.TrimPrefix(f.URL, "https://")+"/app:"+tag)
}

func parseName(t testing.TB, s string) policy.Name {
	t.Helper()
	n, err := policy.ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// puller takes every image, encrypted or not.
func puller(t testing.TB, f *fakeRegistry) *imagepull.Puller {
	t.Helper()
	pol, err := policy.Parse([]byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	p := &imagepull.Puller{
		Registry: &registry.Client{Patience: 2 * time.Second, Tries: 4},
		Policy:   pol, Admit: imagepull.Admit{imagepull.PlainUnsigned, imagepull.EncryptedUnsigned},
		Platform:   v1.Platform{OS: "linux", Architecture: "amd64"},
		Unwrappers: []crypt.Unwrapper{crypt.CoCo(testKeys)},
		Log:        t.Logf,
	}
	if f != nil {
		p.Registry.Roots = f.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	}
	return p
}

func newStore(t testing.TB) *store.Dir {
	t.Helper()
	st, err := store.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// writeArchive writes an oci-archive with one image.
func writeArchive(t testing.TB, path string, im *image) {
	t.Helper()
	manifest := im.seal(t)
	index, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}}})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, content []byte) {
		writeEntry(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, content)
	}
	add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	add("index.json", []byte(strings.Replace(string(index), `{"manifests"`, `{"schemaVersion":2,"manifests"`, 1)))
	add("blobs/sha256/"+digest.FromBytes(manifest).Encoded(), manifest)
	for d, blob := range im.blobs {
		add("blobs/sha256/"+d.Encoded(), blob)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, b.Bytes())
}

func testKeys(_ context.Context, id string) ([]byte, error) {
	if id != keyName {
		return nil, fmt.Errorf("no key %s", id)
	}
	return layerKey, nil
}
