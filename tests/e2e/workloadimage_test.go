package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/internal/testenv"
)

// webPackages make a web server's image of some 40 MiB; morePackages bring it to
// 300 MiB.
var (
	webPackages  = []string{"base-files", "nginx-light", "git", "python3-minimal", "coreutils", "dash", "sed"}
	morePackages = []string{"gcc", "g++", "clang", "python3-numpy", "nodejs"}
)

// debs fetches packages and all that they need, by the host's mirror, and returns
// the files in the order of their names. They are fetched once for all tests.
func debs(t *testing.T, packages []string) []string {
	t.Helper()
	fetch.Lock()
	defer fetch.Unlock()
	dir := filepath.Join(shared.work, "debs-"+hexOf([]byte(strings.Join(packages, " ")))[:8])
	if _, err := os.Stat(filepath.Join(dir, "VERSIONS")); err != nil {
		script := filepath.Join(testenv.Root(t), "tests/tools/unpack-debs.sh")
		if out, err := exec.Command(script, append([]string{"trixie", dir}, packages...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "apt/archives/*.deb"))
	if err != nil || len(files) == 0 {
		t.Fatal(len(files), err)
	}
	return files
}

var fetch sync.Mutex

func hexOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A layout is an OCI image layout under construction, with one image.
type layout struct {
	dir    string
	config v1.Image
	layers []v1.Descriptor
}

// newLayout has a layer of each share of the packages, as Debian's archives have
// them, gzip and zstd in turn.
func newLayout(t *testing.T, packages []string, layers int) *layout {
	t.Helper()
	l := &layout{dir: t.TempDir()}
	l.config = v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	files := debs(t, packages)
	for share := range slices.Chunk(files, (len(files)+layers-1)/layers) {
		media := v1.MediaTypeImageLayerGzip
		if len(l.layers)%2 == 1 {
			media = v1.MediaTypeImageLayerZstd
		}
		l.layer(t, media, func(w *tar.Writer) {
			for _, deb := range share {
				copyPackage(t, w, deb)
			}
		})
	}
	return l
}

func copyPackage(t *testing.T, w *tar.Writer, deb string) {
	t.Helper()
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = w.WriteHeader(h)
		}
		if err == nil {
			_, err = io.Copy(w, r)
		}
		if err != nil {
			t.Fatalf("%s: %v", deb, err)
		}
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v", deb, err)
	}
}

// layer adds one that fill writes.
func (l *layout) layer(t *testing.T, media string, fill func(*tar.Writer)) {
	t.Helper()
	f, err := os.CreateTemp(l.dir, "layer-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blob, diff := sha256.New(), sha256.New()
	to := io.MultiWriter(f, blob)
	var packed io.WriteCloser
	switch media {
	case v1.MediaTypeImageLayerGzip:
		packed = pgzip.NewWriter(to)
	case v1.MediaTypeImageLayerZstd:
		if packed, err = zstd.NewWriter(to); err != nil {
			t.Fatal(err)
		}
	default:
		packed = uncompressed{to}
	}
	w := tar.NewWriter(io.MultiWriter(packed, diff))
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d := v1.Descriptor{MediaType: media, Digest: digest.NewDigest(digest.SHA256, blob), Size: fi.Size()}
	l.layers = append(l.layers, d)
	l.config.RootFS.DiffIDs = append(l.config.RootFS.DiffIDs, digest.NewDigest(digest.SHA256, diff))
	l.place(t, f.Name(), d.Digest)
}

// uncompressed is a packer that packs nothing.
type uncompressed struct{ io.Writer }

func (uncompressed) Close() error { return nil }

// files adds a layer of files by their paths; a path that ends in "/" is a
// directory. It is not compressed: what is in it can be searched for.
func (l *layout) files(t *testing.T, files map[string]string) {
	t.Helper()
	l.layer(t, v1.MediaTypeImageLayer, func(w *tar.Writer) {
		for _, name := range slices.Sorted(func(yield func(string) bool) {
			for n := range files {
				if !yield(n) {
					return
				}
			}
		}) {
			h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name])), Typeflag: tar.TypeReg, ModTime: time.Unix(1767225600, 5)}
			if strings.HasSuffix(name, "/") {
				h.Typeflag = tar.TypeDir
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, files[name]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func (l *layout) place(t *testing.T, from string, d digest.Digest) {
	t.Helper()
	to := filepath.Join(l.dir, "blobs/sha256", d.Encoded())
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func (l *layout) json(t *testing.T, media string, v any) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := v1.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
	write(t, filepath.Join(l.dir, "blobs/sha256", d.Digest.Encoded()), b)
	return d
}

// finish writes configuration, manifest and index, and returns the layout's
// directory and its size in bytes.
func (l *layout) finish(t *testing.T, config v1.ImageConfig) (dir string, size int64) {
	t.Helper()
	l.config.Config = config
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: l.layers}
	m.Config = l.json(t, v1.MediaTypeImageConfig, l.config)
	manifest := l.json(t, v1.MediaTypeImageManifest, m)
	manifest.Annotations = map[string]string{v1.AnnotationRefName: "web"}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(l.dir, "index.json"), index)
	write(t, filepath.Join(l.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	for _, d := range l.layers {
		size += d.Size
	}
	return l.dir, size
}

// archive packs a layout as an oci-archive, with GNU tar.
func archive(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	cmd := exec.Command("tar", "-C", dir, "-cf", path, "oci-layout", "index.json", "blobs")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// webFiles are what makes Debian's packages a server of one page.
func webFiles(page string) map[string]string {
	return map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n",
		"etc/group":  "root:x:0:\nadm:x:4:\nwww-data:x:33:\n",
		"etc/nginx/nginx.conf": `daemon off;
user www-data;
error_log stderr;
pid /run/nginx.pid;
events {}
http {
	access_log off;
	server {
		listen 8080;
		root /srv/page;
	}
}
`,
		"srv/page/":           "",
		"srv/page/index.html": page,
		"srv/.wh..wh..opq":    "", // there is nothing below for it to hide
		"usr/share/.wh.doc":   "",
		"run/":                "",
	}
}

func webConfig() v1.ImageConfig {
	return v1.ImageConfig{Entrypoint: []string{"/usr/sbin/nginx"}, Env: []string{"PATH=/usr/sbin:/usr/bin"}, WorkingDir: "/srv"}
}

// secret is text that is found nowhere by chance.
func secret(t *testing.T, name string) string {
	t.Helper()
	b := make([]byte, 24)
	f, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("canary-%s-%x", name, b)
}

// wantEncrypted holds that each layer of an image is, and that a text which is in the
// plain image, and found there, is not in the encrypted one.
func wantEncrypted(t *testing.T, plain, encrypted, text string) {
	t.Helper()
	var m v1.Manifest
	d, _ := digest.Parse(manifestDigest(t, encrypted))
	if err := json.Unmarshal(read(t, filepath.Join(encrypted, "blobs/sha256", d.Encoded())), &m); err != nil || len(m.Layers) == 0 {
		t.Fatalf("%s: %d layers, %v", encrypted, len(m.Layers), err)
	}
	for i, l := range m.Layers {
		if !strings.HasSuffix(l.MediaType, "+encrypted") {
			t.Errorf("layer %d is %s", i, l.MediaType)
		}
	}
	count := func(dir string) (n int) {
		blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range blobs {
			n += len(inFile(t, path, text))
		}
		return n
	}
	if a, b := count(plain), count(encrypted); a == 0 || b > 0 {
		t.Errorf("%d blobs of the plain image have %q in them, want some; %d of the encrypted one, want none", a, text, b)
	}
}

// spellings are the ways in which a key may have got somewhere.
func spellings(key []byte) []string {
	return []string{string(key), hex.EncodeToString(key), base64.RawStdEncoding.EncodeToString(key), base64.RawURLEncoding.EncodeToString(key)}
}

// absent fails where one of the secrets is in a file.
func absent(t *testing.T, path string, secrets ...string) {
	t.Helper()
	for _, s := range inFile(t, path, secrets...) {
		t.Errorf("%s has %q in it", path, s)
	}
}

// inFile returns those of the texts that are in a file.
func inFile(t *testing.T, path string, texts ...string) (found []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	longest := 0
	for _, s := range texts {
		longest = max(longest, len(s))
	}
	buf, have := make([]byte, 4<<20), 0
	for {
		n, err := f.Read(buf[have:])
		for _, s := range texts {
			if !slices.Contains(found, s) && bytes.Contains(buf[:have+n], []byte(s)) {
				found = append(found, s)
			}
		}
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		end := have + n
		have = min(end, longest)
		copy(buf, buf[end-have:end])
	}
}
