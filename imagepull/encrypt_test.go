package imagepull

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/internal/testenv"
)

// layout writes an image with layers of the given media types into a directory, and
// returns its name and what the layers hold.
func layout(t *testing.T, mediaTypes ...string) (name string, layers [][]byte) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	w, err := registry.Create(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	var diffIDs []string
	for i, mediaType := range mediaTypes {
		plain := bytes.Repeat([]byte{byte(i)}, 70000+i)
		content := plain
		if strings.HasSuffix(mediaType, "+gzip") || strings.HasSuffix(mediaType, "+zstd") {
			content = compressed(t, mediaType, plain)
		}
		d, err := w.Blob(mediaType, func(to io.Writer) error { _, err := to.Write(content); return err })
		if err != nil {
			t.Fatal(err)
		}
		m.Layers, layers = append(m.Layers, d), append(layers, content)
		diffIDs = append(diffIDs, digestOf(plain))
	}
	ids, err := json.Marshal(diffIDs)
	if err != nil {
		t.Fatal(err)
	}
	if m.Config, err = w.JSON(v1.MediaTypeImageConfig, json.RawMessage(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":`+string(ids)+`}}`)); err != nil {
		t.Fatal(err)
	}
	d, err := w.JSON(m.MediaType, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(d, ""); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir, layers
}

// compressed packs by an outside tool: skopeo looks at what it encrypts.
func compressed(t *testing.T, mediaType string, b []byte) []byte {
	t.Helper()
	tool := mediaType[strings.LastIndexByte(mediaType, '+')+1:]
	testenv.Need(t, tool)
	cmd := exec.CommandContext(t.Context(), testenv.Tool(tool), "-c")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	return out
}

func encryptTo(t *testing.T, from, path string, asTar bool, e Encryption) error {
	t.Helper()
	w, err := registry.Create(path, asTar)
	if err != nil {
		return err
	}
	p := &Puller{Registry: &registry.Client{}, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	d, err := p.Encrypt(t.Context(), mustParse(t, from), w, e)
	if err == nil {
		err = w.Finish(d, "app")
	}
	return errors.Join(err, w.Discard())
}

var ordinary = []string{v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd}

// skopeo decrypts what we encrypt, for keys of either type, from a directory and a
// tar, and has the layers that were there before.
func TestSkopeoDecrypts(t *testing.T) {
	testenv.Need(t, "skopeo")
	from, layers := layout(t, ordinary...)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range []crypto.Signer{ec, rs} {
		asTar := i == 1
		dir := t.TempDir()
		to, key := filepath.Join(dir, "encrypted"), filepath.Join(dir, "key.pem")
		if err := encryptTo(t, from, to, asTar, Encryption{To: []crypt.Wrapper{crypt.ForJWE(k.Public())}, Random: rand.Reader}); err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		name := map[bool]string{false: "oci:", true: "oci-archive:"}[asTar] + to
		allEncrypted(t, name+":app", true)
		if asTar { // by way of a registry
			s := startRegistry(t)
			write(t, filepath.Join(dir, "ca.crt"), s.ca)
			skopeoCopy(t, "--dest-cert-dir", dir, name+":app", "docker://"+s.host+"/app:1")
			skopeoCopy(t, "--src-cert-dir", dir, "docker://"+s.host+"/app:1", "oci:"+dir+"/back:app")
			name = "oci:" + dir + "/back"
			allEncrypted(t, name+":app", true)
		}
		// The digests that skopeo compares are those of the plain layers.
		skopeoCopy(t, "--decryption-key", key, name+":app", "oci:"+dir+"/plain:app")
		for i, want := range layers {
			got, err := os.ReadFile(filepath.Join(dir, "plain/blobs/sha256", digestOf(want)[7:]))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%T: layer %d: %v", k, i, err)
			}
		}
		allEncrypted(t, "oci:"+dir+"/plain:app", false)
	}
}

func skopeoCopy(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"--insecure-policy", "copy"}, args...)
	if b, err := exec.CommandContext(t.Context(), testenv.Tool("skopeo"), args...).CombinedOutput(); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, b)
	}
}

func allEncrypted(t *testing.T, name string, want bool) {
	t.Helper()
	p := &Puller{Registry: &registry.Client{}, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	im, err := p.Inspect(t.Context(), mustParse(t, name))
	if err != nil {
		t.Fatal(err)
	}
	if got := im.kind() == EncryptedUnsigned; got != want || len(im.Layers) == 0 {
		t.Errorf("%s: encrypted %v, want %v", name, got, want)
	}
}

func coco(seed uint64) Encryption {
	var key [32]byte
	return Encryption{To: []crypt.Wrapper{crypt.ForCoCo("kbs:///default/key/1", key[:])}, Random: mathrand.NewChaCha8([32]byte{byte(seed)})}
}

// Equal random bytes give equal archives; no others do.
func TestEncryptIsDeterministic(t *testing.T) {
	from, _ := layout(t, v1.MediaTypeImageLayer, v1.MediaTypeImageLayer)
	var digests []string
	for _, seed := range []uint64{1, 1, 2} {
		path := filepath.Join(t.TempDir(), "app.tar")
		if err := encryptTo(t, from, path, true, coco(seed)); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digestOf(b))
	}
	if digests[0] != digests[1] || digests[0] == digests[2] {
		t.Errorf("got %v", digests)
	}
}

func TestEncryptSomeLayers(t *testing.T) {
	from, _ := layout(t, v1.MediaTypeImageLayer, "application/vnd.docker.image.rootfs.diff.tar", v1.MediaTypeImageLayer)
	for _, tt := range []struct {
		layers []int
		want   string
	}{
		{nil, "eee"}, {[]int{0}, "e--"}, {[]int{-1}, "--e"}, {[]int{1, 2}, "-ee"}, {[]int{3}, "layer 3: the image has 3"}, {[]int{-4}, "layer -4: the image has 3"},
	} {
		t.Run(fmt.Sprint(tt.layers), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out")
			e := coco(1)
			e.Layers = tt.layers
			got := ""
			if err := encryptTo(t, from, path, false, e); err != nil {
				got = err.Error()
				nothingIn(t, filepath.Dir(path))
			} else {
				got = pattern(t, "oci:"+path)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// pattern shows which layers are encrypted; all have OCI's media types.
func pattern(t *testing.T, name string) (out string) {
	t.Helper()
	p := &Puller{Registry: &registry.Client{}, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	im, err := p.Inspect(t.Context(), mustParse(t, name))
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range im.Layers {
		if plain, _ := crypt.Encrypted(l.MediaType); plain != v1.MediaTypeImageLayer {
			t.Errorf("layer %d: media type %s", i, l.MediaType)
		}
		out += map[bool]string{true: "e", false: "-"}[l.Encrypted]
	}
	return out
}

func nothingIn(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		t.Errorf("%s is there", e.Name())
	}
}

// An image of a registry, in Docker's media types, is copied in OCI's.
func TestEncryptFromRegistry(t *testing.T) {
	s := &shelf{server: startRegistry(t)}
	m := v1.Manifest{
		MediaType: "application/vnd.docker.distribution.manifest.v2+json",
		Config:    s.putBlob(t, "app", []byte("{}"), "application/vnd.docker.container.image.v1+json"),
		Layers:    []v1.Descriptor{s.putBlob(t, "app", []byte("layer"), "application/vnd.docker.image.rootfs.diff.tar")},
	}
	m.SchemaVersion = 2
	s.putManifest(t, "app", "1", m)
	path := filepath.Join(t.TempDir(), "app")
	w, err := registry.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	p := &Puller{Registry: &registry.Client{Roots: s.roots}, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	d, err := p.Encrypt(t.Context(), mustParse(t, "docker://"+s.host+"/app:1"), w, coco(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(d, ""); err != nil {
		t.Fatal(err)
	}
	im, err := p.Inspect(t.Context(), mustParse(t, "oci:"+path))
	if err != nil || im.Config.MediaType != v1.MediaTypeImageConfig || d.MediaType != v1.MediaTypeImageManifest {
		t.Errorf("%+v, %v", im, err)
	}
	if got := pattern(t, "oci:"+path); got != "e" {
		t.Errorf("got %s", got)
	}
}

// What cannot be encrypted leaves nothing.
func TestEncryptRefuses(t *testing.T) {
	from, layers := layout(t, v1.MediaTypeImageLayer)
	dir := t.TempDir()
	once := filepath.Join(dir, "once")
	if err := encryptTo(t, from, once, false, coco(1)); err != nil {
		t.Fatal(err)
	}
	if err := encryptTo(t, from, once, false, coco(1)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over what is there: %v", err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := encryptTo(t, "oci:"+once, out, true, coco(1)); err == nil || !strings.Contains(err.Error(), "encrypted already") {
		t.Errorf("twice: %v", err)
	}
	if err := encryptTo(t, from, out, true, Encryption{Random: rand.Reader}); err == nil || !strings.Contains(err.Error(), "no recipient") {
		t.Errorf("for nobody: %v", err)
	}
	blob := filepath.Join(strings.TrimPrefix(from, "oci:"), "blobs/sha256", digestOf(layers[0])[7:])
	b := bytes.Clone(layers[0])
	b[len(b)-1] ^= 1
	write(t, blob, b)
	var wrong *registry.DigestError
	if err := encryptTo(t, from, out, true, coco(1)); !errors.As(err, &wrong) {
		t.Errorf("another layer: %v", err)
	}
	nothingIn(t, filepath.Dir(out))
}

// The layer's key opens by the packet that is in the manifest.
func TestEncryptForBroker(t *testing.T) {
	from, layers := layout(t, v1.MediaTypeImageLayer)
	path := filepath.Join(t.TempDir(), "app.tar")
	if err := encryptTo(t, from, path, true, coco(1)); err != nil {
		t.Fatal(err)
	}
	p := &Puller{Registry: &registry.Client{}, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	s, err := p.Source(t.Context(), mustParse(t, "oci-archive:"+path))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	im, _, err := p.resolve(t.Context(), s, mustParse(t, "oci-archive:"+path))
	if err != nil {
		t.Fatal(err)
	}
	d := im.Layers[0].descriptor
	packet, err := base64.StdEncoding.DecodeString(d.Annotations["org.opencontainers.image.enc.keys.provider.attestation-agent"])
	if err != nil || !bytes.Contains(packet, []byte(`"kid":"kbs:///default/key/1"`)) {
		t.Fatalf("packet %s: %v", packet, err)
	}
	key, err := crypt.Open(t.Context(), d.Annotations, crypt.CoCo(fixedKey))
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Blob(t.Context(), d, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := key.Decrypt(r)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(plain); err != nil || !bytes.Equal(got, layers[0]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func fixedKey(context.Context, string) ([]byte, error) { return make([]byte, 32), nil }
