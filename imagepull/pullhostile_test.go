package imagepull_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/store"
	"github.com/plinth-os/plinth/imagepull/unpack"
)

// A hostile image, and what becomes of it.
type hostile struct {
	name string
	make func(t *testing.T) *image
	// want is a part of the error; "" where the image is contained: it is pulled, and
	// its tree has tree, name=content.
	want string
	tree []string
	// answer makes the registry worse; there is no archive of such an image.
	answer func(*image) func(http.ResponseWriter, *http.Request, digest.Digest, []byte) bool
	limits unpack.Limits
	slow   bool
}

var hostiles = []hostile{
	{name: "names with ..", make: tars("../../up=1", "a/../../b=2"), tree: []string{"up=1", "b=2"}},
	{name: "absolute names", make: tars("/etc/=", "//etc/x=1"), tree: []string{"etc/x=1"}},
	{name: "symbolic link out", make: links(tar.TypeSymlink, "../../../outside"), tree: []string{"outside/x=1"}},
	{name: "absolute symbolic link", make: links(tar.TypeSymlink, "/outside"), tree: []string{"outside/x=1"}},
	{name: "hard link out", make: links(tar.TypeLink, "../../outside"), want: "outside"},
	{name: "directory replaced by a link", make: func(t *testing.T) *image {
		return newImage(t, layer{tar: tarOf(t, "d/", "d/x=1", "e/", "e/y=2")}, layer{tar: entries(t, &tar.Header{Typeflag: tar.TypeSymlink, Name: "d", Linkname: "e"})}, layer{tar: tarOf(t, "d/z=3")})
	}, tree: []string{"e/y=2", "e/z=3"}},
	{name: "device", make: func(t *testing.T) *image {
		return newImage(t, layer{tar: entries(t, &tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666})})
	}},

	{name: "other bytes", make: damaged(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), want: "digest is sha256:"},
	{name: "other bytes at the end", make: damaged(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), want: "digest is sha256:"},
	{name: "bytes behind the blob", make: damaged(func(b []byte) []byte { return append(b, 0) }), want: "sha256:"},
	{name: "smaller than it says", make: descriptor(func(d *v1.Descriptor) { d.Size++ }), want: "blob sha256:"},
	{name: "larger than it says", make: descriptor(func(d *v1.Descriptor) { d.Size-- }), want: "bytes"},
	{name: "digest of sha512", make: descriptor(func(d *v1.Descriptor) { d.Digest = digest.SHA512.FromString("x") }), want: "sha256"},
	{name: "another diff ID", make: changed(func(im *image) { im.config.RootFS.DiffIDs[0] = digest.FromString("x") }), want: "diff ID is sha256:"},
	{name: "diff IDs swapped", make: changed(func(im *image) { slices.Reverse(im.config.RootFS.DiffIDs) }), want: "diff ID is sha256:"},
	{name: "a diff ID too few", make: changed(func(im *image) { im.config.RootFS.DiffIDs = im.config.RootFS.DiffIDs[1:] }), want: "1 diff IDs for 2 layers"},
	{name: "diff ID of sha512", make: changed(func(im *image) { im.config.RootFS.DiffIDs[1] = digest.SHA512.FromString("x") }), want: "diff ID 2: "},
	{name: "diff ID that is a path", make: changed(func(im *image) { im.config.RootFS.DiffIDs[1] = "sha256:../../x" }), want: "diff ID 2: "},
	{name: "rootfs of another type", make: changed(func(im *image) { im.config.RootFS.Type = "files" }), want: `rootfs of type "files"`},
	{name: "for another processor", make: changed(func(im *image) { im.config.Architecture = "arm64" }), want: `architecture "arm64": want amd64`},
	{name: "for another system", make: changed(func(im *image) { im.config.OS = "windows" }), want: `system "windows": want linux`},
	{name: "other configuration", make: changed(func(im *image) {
		im.setConfig([]byte(`{"rootfs":{}}`))
		im.blobs[im.manifest.Config.Digest] = []byte(`{"rootfs":{ }`)
	}), want: "digest is sha256:"},
	{name: "configuration of an artifact", make: changed(func(im *image) {
		im.setConfig([]byte(`{}`))
		im.manifest.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
	}), want: "not of an image to run"},
	{name: "configuration that is no JSON", make: changed(func(im *image) { im.setConfig([]byte("<html>")) }), want: "invalid character"},
	{name: "configuration of 5 MiB", make: changed(func(im *image) { im.setConfig(bytes.Repeat([]byte(" "), 5<<20)) }), want: "5242880 bytes: want at most 4194304"},
	{name: "without layers", make: func(t *testing.T) *image { return newImage(t) }, want: "an image without layers"},
	{name: "a layer that is none", make: descriptor(func(d *v1.Descriptor) { d.MediaType = "application/json" }), want: "not a layer of an image"},
	{name: "Docker's suffix on OCI's type", make: descriptor(func(d *v1.Descriptor) { d.MediaType = ociTar + ".gzip" }), want: "not a layer of an image"},
	{name: "OCI's suffix on Docker's type", make: descriptor(func(d *v1.Descriptor) { d.MediaType = "application/vnd.docker.image.rootfs.diff.tar+gzip" }), want: "not a layer of an image"},
	{name: "600 layers", make: changed(func(im *image) {
		for len(im.manifest.Layers) < 600 {
			im.manifest.Layers = append(im.manifest.Layers, im.manifest.Layers[0])
		}
	}), want: "600 layers"},
	{name: "declared larger than the limit", make: descriptor(func(d *v1.Descriptor) { d.Size = 1 << 40 }), want: "limit: bytes of the layers, as the manifest says"},
	{name: "sizes that overflow", make: changed(func(im *image) {
		im.manifest.Layers[0].Size, im.manifest.Layers[1].Size = 1<<62, 1<<62
	}), want: "limit: bytes of the layers, as the manifest says"},

	{name: "gzip called plain", make: descriptor(func(d *v1.Descriptor) { d.MediaType = ociTar }), want: "tar"},
	{name: "gzip called zstd", make: descriptor(func(d *v1.Descriptor) { d.MediaType = ociZstd }), want: "magic"},
	{name: "plain called gzip", make: packed(ociGzip, func(_ *testing.T, b []byte) []byte { return b }), want: "gzip"},
	{name: "nothing called gzip", make: packed(ociGzip, func(*testing.T, []byte) []byte { return []byte{} }), want: "unexpected EOF"},
	{name: "gzip cut short", make: packed(ociGzip, func(t *testing.T, b []byte) []byte { b = compress(t, ociGzip, b); return b[:len(b)-9] }), want: "unexpected EOF"},
	{name: "gzip with a wrong sum", make: packed(ociGzip, func(t *testing.T, b []byte) []byte { b = compress(t, ociGzip, b); b[len(b)-8] ^= 1; return b }), want: "checksum"},
	{name: "zeros behind gzip", make: packed(ociGzip, func(t *testing.T, b []byte) []byte { return append(compress(t, ociGzip, b), make([]byte, 64)...) }), want: "gzip"},
	{name: "garbage behind gzip", make: packed(ociGzip, func(t *testing.T, b []byte) []byte { return append(compress(t, ociGzip, b), "garbage!garbage"...) }), want: "gzip"},
	{name: "zstd cut short", make: packed(ociZstd, func(t *testing.T, b []byte) []byte { b = compress(t, ociZstd, b); return b[:len(b)-9] }), want: "unexpected EOF"},
	{name: "garbage behind zstd", make: packed(ociZstd, func(t *testing.T, b []byte) []byte { return append(compress(t, ociZstd, b), "garbage!garbage"...) }), want: "magic"},
	{name: "zstd of a large window", make: packed(ociZstd, func(t *testing.T, b []byte) []byte {
		var out bytes.Buffer
		z, err := zstd.NewWriter(&out, zstd.WithWindowSize(32<<20))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(append(b, make([]byte, 40<<20)...)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}), want: "window size"},
	{name: "tar cut short", make: packed(ociTar, func(_ *testing.T, b []byte) []byte { return b[:700] }), want: "unexpected EOF"},
	{name: "gzip bomb", make: packed(ociGzip, bomb), want: "limit: bytes of tar per compressed byte"},
	{name: "zstd bomb", make: packed(ociZstd, bomb), want: "limit: bytes of tar per compressed byte"},
	{name: "10 million entries", make: manyEntries, want: "limit: entries", slow: true},
	{name: "more than the limit in one file", make: tars("a=" + strings.Repeat("x", 3<<20)), limits: unpack.Limits{Bytes: 2 << 20}, want: "limit: "},
	{name: "more than the limit in two layers", make: func(t *testing.T) *image {
		return newImage(t, layer{tar: tarOf(t, "a="+strings.Repeat("x", 1<<20))}, layer{tar: tarOf(t, "b="+strings.Repeat("x", 1<<20))})
	}, limits: unpack.Limits{Bytes: 2 << 20}, want: "limit: "},

	{name: "a bit of the encrypted layer", make: encrypted(func(im *image) {
		im.repack(0, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	}), want: "the HMAC of the encrypted layer is wrong"},
	{name: "an encrypted layer cut short", make: encrypted(func(im *image) {
		im.repack(0, func(b []byte) []byte { return b[:len(b)-1] })
	}), want: "the HMAC of the encrypted layer is wrong"},
	{name: "annotations swapped", make: encrypted(func(im *image) {
		l := im.manifest.Layers
		l[0].Annotations, l[1].Annotations = l[1].Annotations, l[0].Annotations
	}), want: "the HMAC of the encrypted layer is wrong"},
	{name: "layers swapped", make: encrypted(func(im *image) { slices.Reverse(im.manifest.Layers) }), want: "diff ID is sha256:"},
	{name: "encrypted without annotations", make: encrypted(func(im *image) { im.manifest.Layers[0].Annotations = nil }), want: "org.opencontainers.image.enc.pubopts"},
	{name: "encrypted, called plain", make: encrypted(func(im *image) { im.manifest.Layers[0].MediaType = ociGzip }), want: "gzip"},

	{name: "index in an index", make: func(t *testing.T) *image {
		im := newImage(t)
		loop := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromString("x"), Size: 1, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}
		im.raw, _ = json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": v1.MediaTypeImageIndex, "manifests": []v1.Descriptor{loop}}) // it has no cycle
		return im
	}, want: "is an index, too", answer: func(*image) func(http.ResponseWriter, *http.Request, digest.Digest, []byte) bool { return nil }},
	{name: "manifest of 100 MiB", make: func(t *testing.T) *image {
		im := newImage(t)
		im.raw = append([]byte(`{"mediaType":"`+v1.MediaTypeImageManifest+`"}`), bytes.Repeat([]byte(" "), 100<<20)...)
		return im
	}, want: "4194304", answer: func(*image) func(http.ResponseWriter, *http.Request, digest.Digest, []byte) bool { return nil }},
	{name: "endless body", make: tars("a=1"), want: "more than", answer: onLayer(func(w http.ResponseWriter, r *http.Request, b []byte) {
		for _, err := w.Write(b); err == nil && r.Context().Err() == nil; {
			_, err = w.Write(make([]byte, 64<<10))
		}
	})},
	{name: "sent on to plain HTTP", make: tars("a=1"), want: "redirect not followed", answer: onLayer(func(w http.ResponseWriter, r *http.Request, b []byte) {
		http.Redirect(w, r, "http://127.0.0.1:1/x", http.StatusTemporaryRedirect)
	})},
}

func tars(names ...string) func(*testing.T) *image {
	return func(t *testing.T) *image { return newImage(t, layer{tar: tarOf(t, names...)}) }
}

func entries(t *testing.T, list ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		writeEntry(t, w, h, bytes.Repeat([]byte("1"), int(h.Size)))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// links makes a link and a file behind it.
func links(kind byte, target string) func(*testing.T) *image {
	return func(t *testing.T) *image {
		return newImage(t, layer{tar: entries(t, &tar.Header{Typeflag: kind, Name: "a/b/l", Linkname: target}, &tar.Header{Typeflag: tar.TypeReg, Name: "a/b/l/x", Size: 1})})
	}
}

// changed makes an image of two layers and changes it.
func changed(f func(*image)) func(*testing.T) *image {
	return func(t *testing.T) *image {
		im := newImage(t, layer{tar: tarOf(t, "a=1")}, layer{tar: tarOf(t, "b="+noise(8, 100<<10))})
		f(im)
		return im
	}
}

func encrypted(f func(*image)) func(*testing.T) *image {
	return func(t *testing.T) *image {
		coco := []crypt.Wrapper{crypt.ForCoCo(keyName, layerKey)}
		im := newImage(t, layer{tar: tarOf(t, "a="+noise(5, 50<<10)), encrypt: coco}, layer{tar: tarOf(t, "b="+noise(6, 50<<10)), encrypt: coco})
		f(im)
		return im
	}
}

func descriptor(f func(*v1.Descriptor)) func(*testing.T) *image {
	return changed(func(im *image) { f(&im.manifest.Layers[1]) })
}

// damaged serves other bytes than those that the digest is of.
func damaged(f func([]byte) []byte) func(*testing.T) *image {
	return changed(func(im *image) {
		d := im.manifest.Layers[1].Digest
		im.blobs[d] = f(bytes.Clone(im.blobs[d]))
	})
}

// packed makes the blob of a layer in an odd way; its digest is right.
func packed(mediaType string, f func(*testing.T, []byte) []byte) func(*testing.T) *image {
	return func(t *testing.T) *image {
		b := tarOf(t, "a="+noise(7, 2000))
		return newImage(t, layer{tar: b, mediaType: mediaType, blob: f(t, b)})
	}
}

// repack changes a blob, and its descriptor with it.
func (im *image) repack(i int, f func([]byte) []byte) {
	d := &im.manifest.Layers[i]
	b := f(bytes.Clone(im.blobs[d.Digest]))
	d.Digest, d.Size = digest.FromBytes(b), int64(len(b))
	im.blobs[d.Digest] = b
}

func bomb(t *testing.T, _ []byte) []byte {
	mediaType := ociGzip
	if strings.HasPrefix(t.Name(), "TestHostile/zstd") {
		mediaType = ociZstd
	}
	one := compress(t, mediaType, tarOf(t, "zeros="+string(make([]byte, 64<<20))))
	return one
}

// manyEntries repeats the same thousand entries; their end mark is in no member.
func manyEntries(t *testing.T) *image {
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("f%d=", i))
	}
	b := tarOf(t, names...)
	member := compress(t, ociGzip, b[:len(b)-1024])
	return newImage(t, layer{blob: bytes.Repeat(member, 10_000), tar: []byte("another diff ID")})
}

// onLayer answers for the first layer.
func onLayer(f func(http.ResponseWriter, *http.Request, []byte)) func(*image) func(http.ResponseWriter, *http.Request, digest.Digest, []byte) bool {
	return func(im *image) func(http.ResponseWriter, *http.Request, digest.Digest, []byte) bool {
		return func(w http.ResponseWriter, r *http.Request, d digest.Digest, b []byte) bool {
			if d != im.manifest.Layers[0].Digest {
				return false
			}
			f(w, r, b)
			return true
		}
	}
}

// Every hostile image is refused or contained, from a registry and from an archive,
// and of those that are refused nothing ever was outside the staging directory.
func TestHostile(t *testing.T) {
	for _, h := range hostiles {
		t.Run(h.name, func(t *testing.T) {
			if h.slow && testing.Short() {
				t.Skip("takes seconds")
			}
			im := h.make(t)
			f := newFakeRegistry(t)
			f.put(t, "1", im)
			if h.answer != nil {
				f.blob = h.answer(im)
			}
			t.Run("registry", func(t *testing.T) { h.try(t, puller(t, f), f.name(t, "1"), true) })
			if h.answer != nil {
				return
			}
			path := filepath.Join(t.TempDir(), "image.tar")
			writeArchive(t, path, im)
			t.Run("archive", func(t *testing.T) { h.try(t, puller(t, nil), parseName(t, "oci-archive:"+path), false) })
		})
	}
}

func (h *hostile) try(t *testing.T, p *imagepull.Puller, n policy.Name, parts bool) {
	st := newStore(t)
	w := watch(t, st)
	if parts {
		p.Parts = st.Parts()
	}
	p.Limits = h.limits
	pulled, err := p.Pull(t.Context(), n, st)
	appeared := w.stop(t)
	staged(t, st, 0)
	if h.want == "" {
		if err != nil {
			t.Fatal(err)
		}
		h.contained(t, st, pulled)
		return
	}
	var network *imagepull.FetchError
	switch {
	case err == nil:
		t.Fatal("pulled")
	case !strings.Contains(err.Error(), h.want):
		t.Errorf("got %v: want %q in it", err, h.want)
	case !isRefused(err) && !errors.As(err, &network) && h.name != "sent on to plain HTTP":
		t.Errorf("%v: not a refusal", err)
	}
	if len(appeared) > 0 {
		t.Errorf("appeared outside the staging directory: %q", appeared)
	}
}

func (h *hostile) contained(t *testing.T, st *store.Dir, p *imagepull.Pulled) {
	if os.Geteuid() != 0 {
		return // it takes the right to change owners
	}
	base := t.TempDir()
	dir := filepath.Join(base, "a/b/root")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := st.Extract(t.Context(), p, dir, unpack.Limits{}); err != nil {
		t.Fatal(err)
	}
	for _, f := range h.tree {
		name, want, _ := strings.Cut(f, "=")
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v: want %q", name, b, err, want)
		}
	}
	for dir, want := range map[string]string{base: "a", base + "/a": "b", base + "/a/b": "root"} {
		if list, err := os.ReadDir(dir); err != nil || len(list) != 1 || list[0].Name() != want {
			t.Errorf("outside the root: %v, %v", list, err)
		}
	}
}

// A watcher hears of every name that appears in a store and beside it, but for what
// is in the staging directory, and in that of parts.
type watcher struct {
	fd   int
	dirs map[int]string
}

func watch(t *testing.T, st *store.Dir) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{fd: fd, dirs: map[int]string{}}
	root := filepath.Dir(st.Parts())
	for _, dir := range []string{filepath.Dir(root), root, root + "/layers", root + "/trees", root + "/images"} {
		id, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO)
		if err != nil {
			t.Fatal(err)
		}
		w.dirs[id] = dir
	}
	return w
}

// stop returns what appeared, besides the locks, which hold nothing.
func (w *watcher) stop(t *testing.T) (out []string) {
	t.Helper()
	defer unix.Close(w.fd)
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		for p := 0; p < n; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[p]))
			name := string(bytes.TrimRight(buf[p+unix.SizeofInotifyEvent:p+unix.SizeofInotifyEvent+int(e.Len)], "\x00"))
			if e.Mask&unix.IN_Q_OVERFLOW != 0 {
				t.Fatal("too many events")
			}
			if !strings.HasSuffix(name, "lock") {
				out = append(out, filepath.Join(w.dirs[int(e.Wd)], name))
			}
			p += unix.SizeofInotifyEvent + int(e.Len)
		}
	}
}

// The watcher sees what a pull publishes.
func TestWatcher(t *testing.T) {
	f, st := newFakeRegistry(t), newStore(t)
	f.put(t, "1", newImage(t, layer{tar: tarOf(t, "a=1")}))
	w := watch(t, st)
	if _, err := puller(t, f).Pull(t.Context(), f.name(t, "1"), st); err != nil {
		t.Fatal(err)
	}
	if got := w.stop(t); len(got) != 3 {
		t.Errorf("appeared: %q: want a layer, a tree and an image", got)
	}
}
