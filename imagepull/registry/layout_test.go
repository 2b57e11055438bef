package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/internal/testenv"
)

// A shelf is what a layout is made of.
type shelf struct {
	files map[string][]byte
	index v1.Index
}

func newShelf(t testing.TB) *shelf {
	s := &shelf{files: map[string][]byte{v1.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	s.index.SchemaVersion = 2
	return s
}

func (s *shelf) blob(mediaType string, b []byte) v1.Descriptor {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	s.files[blobPath(d)] = b
	return d
}

func (s *shelf) json(t testing.TB, mediaType string, v any) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return s.blob(mediaType, b)
}

// name puts a manifest into index.json.
func (s *shelf) name(d v1.Descriptor, annotations ...string) {
	for i := 0; i < len(annotations); i += 2 {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	s.index.Manifests = append(s.index.Manifests, d)
}

func (s *shelf) finish(t testing.TB) {
	t.Helper()
	b, err := json.Marshal(s.index)
	if err != nil {
		t.Fatal(err)
	}
	s.files[v1.ImageIndexFile] = b
}

func (s *shelf) tar(t testing.TB, change func(h *tar.Header)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		content := s.files[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}
		if change != nil {
			change(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (s *shelf) write(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range s.files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func openBytes(t testing.TB, b []byte) (*Layout, error) {
	return OpenArchive(t.Context(), memory{bytes.NewReader(b)}, int64(len(b)))
}

func imageManifest() v1.Manifest {
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	return m
}

// Everything that a layout has is found in a directory, in a tar, and in a device
// that is larger than its tar.
func TestLayout(t *testing.T) {
	s := newShelf(t)
	m := imageManifest()
	layer := s.blob(v1.MediaTypeImageLayer, random(t, 100_000))
	m.Layers = []v1.Descriptor{layer}
	image := s.json(t, m.MediaType, m)
	s.name(image)
	s.finish(t)
	packed := s.tar(t, nil)
	dir, err := OpenDir(s.write(t))
	if err != nil {
		t.Fatal(err)
	}
	inTar, err := openBytes(t, packed)
	if err != nil {
		t.Fatal(err)
	}
	device, err := openBytes(t, append(bytes.Clone(packed), random(t, 1<<20)...))
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]*Layout{"directory": dir, "tar": inTar, "device": device} {
		d, err := l.Image("")
		if err != nil || d.Digest != image.Digest {
			t.Fatalf("%s: %s, %v", name, d.Digest, err)
		}
		got, err := l.Manifest(d)
		if err != nil || got.Digest != image.Digest.String() || got.MediaType != m.MediaType {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		r, err := l.Blob(t.Context(), layer)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(b, s.files[blobPath(layer)]) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		if err := errors.Join(r.Close(), l.Close()); err != nil {
			t.Error(err)
		}
	}
}

// What is asked for by a digest has it, also where what is read changes.
func TestLayoutProves(t *testing.T) {
	s := newShelf(t)
	layer := s.blob(v1.MediaTypeImageLayer, random(t, 100_000))
	image := s.json(t, v1.MediaTypeImageManifest, imageManifest())
	s.name(image)
	s.finish(t)
	for name, tt := range map[string]struct {
		change func(b []byte) []byte
		want   string
	}{
		"one bit": {func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, "digest is"},
		"longer":  {func(b []byte) []byte { return append(b, 0) }, "bytes: want"},
		"shorter": {func(b []byte) []byte { return b[1:] }, "bytes: want"},
	} {
		for kind, d := range map[string]v1.Descriptor{"layer": layer, "manifest": image} {
			c := newShelf(t)
			for f, b := range s.files {
				c.files[f] = b
			}
			c.files[blobPath(d)] = tt.change(bytes.Clone(s.files[blobPath(d)]))
			for where, open := range map[string]func() (*Layout, error){
				"directory": func() (*Layout, error) { return OpenDir(c.write(t)) },
				"tar":       func() (*Layout, error) { return openBytes(t, c.tar(t, nil)) },
			} {
				l, err := open()
				if err != nil {
					t.Fatal(err)
				}
				if kind == "manifest" {
					_, err = l.Manifest(d)
				} else {
					err = drain(t, l, d)
				}
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: %s: %s: got %v, want %q", name, kind, where, err, tt.want)
				}
			}
		}
	}
}

func drain(t testing.TB, l *Layout, d v1.Descriptor) error {
	r, err := l.Blob(t.Context(), d)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// A device may give other bytes at another time: those that are hashed are used.
func TestDeviceChanges(t *testing.T) {
	s := newShelf(t)
	layer := s.blob(v1.MediaTypeImageLayer, bytes.Repeat([]byte("good"), 30_000))
	s.name(s.json(t, v1.MediaTypeImageManifest, imageManifest()))
	s.finish(t)
	b := s.tar(t, nil)
	l, err := openBytes(t, b)
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Blob(t.Context(), layer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 50_000)); err != nil {
		t.Fatal(err)
	}
	copy(b, bytes.ReplaceAll(b, []byte("good"), []byte("evil")))
	var wrong *DigestError
	if _, err := io.Copy(io.Discard, r); !errors.As(err, &wrong) {
		t.Errorf("got %v", err)
	}
}

func TestArchiveRefuses(t *testing.T) {
	ordinary := func() *shelf {
		s := newShelf(t)
		s.name(s.json(t, v1.MediaTypeImageManifest, imageManifest()))
		s.finish(t)
		return s
	}
	index := func(f func(h *tar.Header)) func(t *testing.T) []byte {
		return func(t *testing.T) []byte {
			return ordinary().tar(t, func(h *tar.Header) {
				if h.Name == v1.ImageIndexFile {
					f(h)
				}
			})
		}
	}
	without := func(name string, b []byte) func(t *testing.T) []byte {
		return func(t *testing.T) []byte {
			s := ordinary()
			if delete(s.files, name); b != nil {
				s.files[name] = b
			}
			return s.tar(t, nil)
		}
	}
	for name, tt := range map[string]struct {
		make func(t *testing.T) []byte
		want string
	}{
		"nothing":       {func(*testing.T) []byte { return nil }, "oci-layout: file does not exist"},
		"no tar":        {func(t *testing.T) []byte { return random(t, 4096) }, "invalid tar header"},
		"truncated":     {func(t *testing.T) []byte { b := ordinary().tar(t, nil); return b[:len(b)-1024-512] }, "unexpected EOF"},
		"symbolic link": {index(func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "x", 0 }), "want a file"},
		"hard link":     {index(func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeLink, "x", 0 }), "want a file"},
		"two spellings": {index(func(h *tar.Header) { h.Name = ".//index.json" }), "want it written as"},
		"roundabout":    {index(func(h *tar.Header) { h.Name = "blobs/../index.json" }), "want it written as"},
		"absolute":      {index(func(h *tar.Header) { h.Name = "/index.json" }), "index.json: file does not exist"},
		"twice": {func(t *testing.T) []byte {
			b := ordinary().tar(t, nil)
			return append(b[:len(b)-1024:len(b)-1024], ordinary().tar(t, nil)...)
		}, "there twice"},
		"sparse":           {sparseTar, "not sparse"},
		"no index":         {without(v1.ImageIndexFile, nil), "index.json: file does not exist"},
		"no version":       {without(v1.ImageLayoutFile, nil), "oci-layout: file does not exist"},
		"another version":  {without(v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"2.0.0"}`)), "want 1.0.0"},
		"index is no JSON": {without(v1.ImageIndexFile, []byte(`x`)), "index.json: invalid character"},
		"huge index":       {without(v1.ImageIndexFile, bytes.Repeat([]byte(" "), maxManifest+1)), "want at most"},
		"many manifests":   {without(v1.ImageIndexFile, []byte(`{"manifests":[{}`+strings.Repeat(",{}", maxIndex)+`]}`)), "want at most 4096"},
		"many members":     {manyMembers, "more than 65536 members"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openBytes(t, tt.make(t))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// sparseTar has an index.json that is a map of a sparse file, in PAX.
func sparseTar(t *testing.T) []byte {
	s := newShelf(t)
	s.finish(t)
	b := s.tar(t, func(h *tar.Header) {
		if h.Name == v1.ImageIndexFile {
			size := fmt.Sprint(h.Size)
			h.Format, h.PAXRecords = tar.FormatPAX, map[string]string{"QQQ.sparse.size": size, "QQQ.sparse.numblocks": "1", "QQQ.sparse.map": "0," + size}
		}
	})
	return bytes.ReplaceAll(b, []byte("QQQ.sparse"), []byte("GNU.sparse")) // the writer refuses to write it
}

func manyMembers(t *testing.T) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range maxMembers + 1 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("x", i)}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// In a directory a link leads nowhere outside, and nothing is waited for.
func TestDirRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		put  func(path string) error
		want string
	}{
		"link outside": {func(path string) error { return os.Symlink("/etc/hostname", path) }, "escapes"},
		"FIFO":         {func(path string) error { return syscall.Mkfifo(path, 0o600) }, "want a file"},
		"directory":    {func(path string) error { return os.Mkdir(path, 0o700) }, "want a file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			s.finish(t)
			dir := s.write(t)
			path := filepath.Join(dir, v1.ImageIndexFile)
			if err := errors.Join(os.Remove(path), tt.put(path)); err != nil {
				t.Fatal(err)
			}
			if _, err := OpenDir(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestImageByName(t *testing.T) {
	const ref = v1.AnnotationRefName
	s := newShelf(t)
	a, b := s.json(t, v1.MediaTypeImageManifest, imageManifest()), s.blob(v1.MediaTypeImageManifest, []byte(`{}`))
	sig, referrer := b, b
	sig.Digest, referrer.Digest = digest.FromString("sig"), digest.FromString("referrer")
	referrer.ArtifactType = "application/example"
	for name, tt := range map[string]struct {
		fill func(s *shelf)
		ask  string
		want string // digest or part of the error
	}{
		"the only one":         {func(s *shelf) { s.name(a, ref, "x") }, "", a.Digest.String()},
		"by name":              {func(s *shelf) { s.name(a, ref, "x"); s.name(b, ref, "y") }, "y", b.Digest.String()},
		"one with two names":   {func(s *shelf) { s.name(a, ref, "x"); s.name(a, ref, "y") }, "", a.Digest.String()},
		"two":                  {func(s *shelf) { s.name(a, ref, "x"); s.name(b, ref, "y") }, "", `2 images "": want one of "x", "y"`},
		"two of one name":      {func(s *shelf) { s.name(a, ref, "x"); s.name(b, ref, "x") }, "x", `2 images "x"`},
		"none of the name":     {func(s *shelf) { s.name(a, ref, "x") }, "z", `no image "z": there is "x"`},
		"none":                 {func(*shelf) {}, "", `no image "": there is none`},
		"beside its signature": {func(s *shelf) { s.name(a); s.name(sig, ref, attachment(a, ".sig")) }, "", a.Digest.String()},
		"beside a referrer":    {func(s *shelf) { s.name(a); s.name(referrer) }, "", a.Digest.String()},
		"as cosign saves": {func(s *shelf) { s.name(a, cosignKind, cosignImage); s.name(sig, cosignKind, cosignSigs) }, "",
			a.Digest.String()},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			tt.fill(s)
			s.finish(t)
			l, err := openBytes(t, s.tar(t, nil))
			if err != nil {
				t.Fatal(err)
			}
			d, err := l.Image(tt.ask)
			if got := d.Digest.String(); err == nil && got != tt.want || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %s, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func attachment(d v1.Descriptor, suffix string) string {
	return "registry.example.com/app:" + strings.Replace(d.Digest.String(), ":", "-", 1) + suffix
}

func TestLayoutReferrers(t *testing.T) {
	const kind = "application/example"
	s := newShelf(t)
	image, other := digest.FromString("image"), digest.FromString("other")
	artifact := func(kind string, subject digest.Digest) v1.Descriptor {
		m := imageManifest()
		m.ArtifactType, m.Subject = kind, &v1.Descriptor{Digest: subject}
		return s.json(t, m.MediaType, m)
	}
	ours, tagged := artifact(kind, image), artifact(kind+"; q=1", image)
	oldStyle := imageManifest() // its type is that of its config
	oldStyle.Config.MediaType, oldStyle.Subject = kind, &v1.Descriptor{Digest: image}
	old := s.json(t, oldStyle.MediaType, oldStyle)
	s.name(ours)
	s.name(artifact(kind, other))
	s.name(artifact("application/other", image))
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{ours, tagged, old, {MediaType: v1.MediaTypeImageManifest, Digest: other}}}
	s.name(s.json(t, index.MediaType, index), v1.AnnotationRefName, strings.Replace(image.String(), ":", "-", 1))
	s.finish(t)
	l, err := openBytes(t, s.tar(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	got, err := l.Referrers(image.String(), kind)
	if err != nil || len(got) != 2 || got[0].Digest != ours.Digest || got[1].Digest != old.Digest {
		t.Errorf("got %v, %v", got, err)
	}
	s.name(old, v1.AnnotationRefName, attachment(v1.Descriptor{Digest: image}, ""))
	s.finish(t)
	if l, err = openBytes(t, s.tar(t, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Referrers(image.String(), kind); err == nil || !strings.Contains(err.Error(), "two manifests") {
		t.Errorf("got %v", err)
	}
	many := newShelf(t)
	for i := range maxReferrers + 1 {
		many.name(many.blob(v1.MediaTypeImageManifest, fmt.Appendf(nil, `{"schemaVersion":%d}`, i)))
	}
	many.finish(t)
	if l, err = openBytes(t, many.tar(t, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Referrers(image.String(), kind); err == nil || !strings.Contains(err.Error(), "more than 256") {
		t.Errorf("got %v", err)
	}
}

// Layouts of other programs: containers/image, oras-go, go-containerregistry.
func TestPublishedLayouts(t *testing.T) {
	guest := filepath.Join(testenv.Vectors(t), "guest")
	for _, tt := range []struct{ path, image, want string }{
		{"oras-go/hello-world.tar", "", "sha256:faa03e786c97f07ef34423fccceeec2398ec8a5759259f94d99078f264e9d7af"},
		{"oras-go/hello-world-prefixed-path.tar", "latest", "sha256:faa03e786c97f07ef34423fccceeec2398ec8a5759259f94d99078f264e9d7af"},
		{"containers-image/oci-layout/delete_image_multiple_images", "3.17.5", "sha256:5b2aba4d3c27b"},
		{"containers-image/oci-layout/delete_image_multiple_images", "", "images"},
		{"containers-image/oci-layout/delete_image_two_identical_references", "1.0.0", "2 images"},
		{"containers-image/oci-layout/delete_image_only_one_image", "", "sha256:eaa95f3cfaac07c8a5153eb77c933269586ad0226c83405776be08547e4d2a18"},
		{"containers-image/oci-layout/delete_image_shared_blobs_dir", "", "no such file"},
		{"containers-image/oci-layout/name_lookups", "a", "no such file"},
		{"made/encrypted-oci-layout", "jwe-gzip", "sha256:dfe16d9ac97b3aebc9a5cb072c60628021a7cb8b9f59141962cd146b099ad5d8"},
		{"go-containerregistry/tarball/no_manifest.tar", "", "file does not exist"},
	} {
		t.Run(tt.path+":"+tt.image, func(t *testing.T) {
			got, err := lead(t, filepath.Join(guest, tt.path), tt.image)
			if err == nil && !strings.HasPrefix(got, tt.want) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func lead(t *testing.T, path, image string) (string, error) {
	var l *Layout
	var err error
	if strings.HasSuffix(path, ".tar") {
		b, readErr := os.ReadFile(path)
		if readErr != nil {
			t.Fatal(readErr)
		}
		l, err = openBytes(t, b)
	} else {
		l, err = OpenDir(path)
	}
	if err != nil {
		return "", err
	}
	d, err := l.Image(image)
	if err != nil {
		return "", err
	}
	m, err := l.Manifest(d)
	if err != nil {
		return "", err
	}
	return m.Digest, l.Close()
}

// Whatever a tar holds, nothing that it gives has another digest than was asked for.
func FuzzArchive(f *testing.F) {
	s := newShelf(f)
	m := imageManifest()
	m.Layers = []v1.Descriptor{s.blob(v1.MediaTypeImageLayer, []byte("layer"))}
	s.name(s.json(f, m.MediaType, m), v1.AnnotationRefName, "a")
	s.finish(f)
	f.Add(s.tar(f, nil))
	f.Add(s.tar(f, func(h *tar.Header) { h.Format = tar.FormatPAX; h.PAXRecords = map[string]string{"A.b": "c"} }))
	f.Add(s.tar(f, func(h *tar.Header) { h.Format = tar.FormatGNU; h.Name = "./" + h.Name }))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := openBytes(t, b)
		if err != nil {
			return
		}
		for _, name := range []string{"", "a"} {
			d, err := l.Image(name)
			if err != nil {
				continue
			}
			if m, err := l.Manifest(d); err == nil && (digest.FromBytes(m.Bytes) != d.Digest || int64(len(m.Bytes)) != d.Size) {
				t.Errorf("manifest %s of %d bytes, asked for %s of %d", m.Digest, len(m.Bytes), d.Digest, d.Size)
			}
			if _, err := l.Referrers(d.Digest.String(), "x"); err == nil {
				_ = drain(t, l, d) // no panic
			}
		}
	})
}

// What came under the path while an image was written stays.
func TestWriterReplacesNothing(t *testing.T) {
	for _, asTar := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "image")
		w, err := Create(path, asTar)
		if err != nil {
			t.Fatal(err)
		}
		d, err := w.JSON(v1.MediaTypeImageManifest, imageManifest())
		if err != nil {
			t.Fatal(err)
		}
		if asTar {
			err = os.WriteFile(path, nil, 0o600)
		} else {
			err = os.Mkdir(path, 0o700) // an empty one would be replaced
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Finish(d, ""); !errors.Is(err, fs.ErrExist) {
			t.Errorf("got %v", err)
		}
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
	}
}
