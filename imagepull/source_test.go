package imagepull

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
)

// A disk is one whose first bytes are an oci-archive.
type disk struct {
	*bytes.Reader
	closed *int
}

func (d disk) Size() (int64, error) { return d.Reader.Size(), nil }
func (d disk) Close() error         { *d.closed++; return nil }

// The name of a device leads to what OpenFile says, and no further than its tar.
func TestArchiveOnDevice(t *testing.T) {
	from, _ := layout(t, v1.MediaTypeImageLayer)
	path := filepath.Join(t.TempDir(), "app.tar")
	if err := encryptTo(t, from, path, true, coco(1)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const name = "oci-archive:/dev/disk/by-id/virtio-app"
	closed := 0
	p := &Puller{Registry: &registry.Client{}, Policy: mustPolicy(t, `{"default":[{"type":"insecureAcceptAnything"}]}`)}
	p.OpenFile = func(path string) (File, error) {
		if path != "/dev/disk/by-id/virtio-app" {
			t.Errorf("%s is opened", path)
		}
		return disk{bytes.NewReader(append(bytes.Clone(b), make([]byte, 1<<20)...)), &closed}, nil
	}
	im, err := p.Explain(t.Context(), mustParse(t, name))
	if err != nil {
		t.Fatal(err)
	}
	if im.Kind != EncryptedUnsigned || im.From != name || closed != 1 || im.Err() == nil {
		t.Errorf("%+v, closed %d times, %v", im, closed, im.Err())
	}
	want := fmt.Sprintf(`github.com/confidential-containers PullImage {"digest":"%s","image":"%s"}`, im.Digest, name)
	if im.Event != want {
		t.Errorf("event %s, want %s", im.Event, want)
	}
	p.Admit = Admit{EncryptedUnsigned}
	for suffix, ok := range map[string]bool{":app": true, "@" + im.Digest: true, ":app@" + im.Digest: true, ":other": false, "@" + digestOf(nil): false} {
		im, err := p.Explain(t.Context(), mustParse(t, name+suffix))
		if err == nil {
			err = im.Err()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v", suffix, err)
		}
	}
	p.OpenFile = func(string) (File, error) { return disk{bytes.NewReader([]byte("no tar")), &closed}, nil }
	if closed = 0; true {
		if _, err := p.Explain(t.Context(), mustParse(t, name)); err == nil || closed != 1 {
			t.Errorf("%v, closed %d times", err, closed)
		}
	}
}

func mustPolicy(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An index leads to one image, by one step.
func TestIndexes(t *testing.T) {
	platform := &v1.Platform{OS: "linux", Architecture: "amd64"}
	image := []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","config":{"mediaType":"x","digest":"` + digestOf(nil) + `","size":0},"layers":[]}`)
	of := func(mediaType string, b []byte) v1.Descriptor {
		return v1.Descriptor{MediaType: mediaType, Digest: godigest.FromBytes(b), Size: int64(len(b)), Platform: platform}
	}
	index := func(d ...v1.Descriptor) []byte {
		v := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: d}
		v.SchemaVersion = 2
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	short := of(v1.MediaTypeImageManifest, image)
	short.Size--
	arm := of(v1.MediaTypeImageManifest, image)
	arm.Platform = &v1.Platform{OS: "linux", Architecture: "arm64"}
	inner := index(of(v1.MediaTypeImageManifest, image))
	for name, tt := range map[string]struct {
		named []byte
		why   string
	}{
		"image":                        {image, ""},
		"index":                        {index(of(v1.MediaTypeImageManifest, image)), ""},
		"index of an index":            {index(of(v1.MediaTypeImageIndex, inner)), "is an index, too"},
		"index that does not say so":   {index(of(v1.MediaTypeImageManifest, inner)), "not an image"},
		"index without a media type":   {index(of("", inner)), "not an image"},
		"another platform":             {index(arm), "nothing for linux/amd64"},
		"another size":                 {index(short), "want "},
		"a manifest that is not there": {index(of(v1.MediaTypeImageManifest, []byte("x"))), "404"},
		"no digest":                    {index(v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: "../x", Platform: platform}), "digest"},
		"no config":                    {[]byte(`{"mediaType":"` + v1.MediaTypeImageManifest + `"}`), "no config"},
	} {
		t.Run(name, func(t *testing.T) {
			held := map[string][]byte{"1": tt.named, digestOf(tt.named): tt.named, digestOf(image): image, digestOf(inner): inner}
			s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, ok := held[strings.TrimPrefix(r.URL.Path, "/v2/app/manifests/")]
				if !ok {
					http.NotFound(w, r)
					return
				}
				w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
				if bytes.Contains(b, []byte(v1.MediaTypeImageIndex)) && !bytes.Contains(b, []byte("layers")) {
					w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
				}
				_, _ = w.Write(b)
			}))
			defer s.Close()
			pool := x509.NewCertPool()
			pool.AddCert(s.Certificate())
			p := &Puller{Registry: &registry.Client{Roots: pool, Tries: 1}, Platform: *platform}
			im, err := p.Inspect(t.Context(), mustParse(t, "docker://"+strings.TrimPrefix(s.URL, "https://")+"/app:1"))
			switch {
			case tt.why == "" && (err != nil || im.Digest != digestOf(image)):
				t.Errorf("%+v, %v", im, err)
			case tt.why != "" && (err == nil || !strings.Contains(err.Error(), tt.why)):
				t.Errorf("got %v, want %q", err, tt.why)
			}
		})
	}
}

// A manifest that does not say what it is is what led there says.
func TestManifestWithoutType(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, b []byte) v1.Descriptor {
		d := v1.Descriptor{Digest: godigest.FromBytes(b), Size: int64(len(b))}
		if name == "" {
			name = "blobs/sha256/" + d.Digest.Encoded()
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700), os.WriteFile(filepath.Join(dir, name), b, 0o600)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	index := func(d v1.Descriptor) []byte {
		b, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []v1.Descriptor{d}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	image := put("", []byte(`{"schemaVersion":2,"config":{"mediaType":"x","digest":"`+digestOf(nil)+`","size":0},"layers":[]}`))
	image.MediaType, image.Platform = v1.MediaTypeImageManifest, &v1.Platform{OS: "linux", Architecture: "amd64"}
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	p := &Puller{Platform: *image.Platform}
	inspect := func(suffix string) {
		if im, err := p.Inspect(t.Context(), mustParse(t, "oci:"+dir+suffix)); err != nil || im.Digest != image.Digest.String() {
			t.Errorf("%q: %+v, %v", suffix, im, err)
		}
	}
	put("index.json", index(image))
	inspect("")
	inspect("@" + image.Digest.String())
	outer := put("", index(image))
	outer.MediaType = v1.MediaTypeImageIndex
	put("index.json", index(outer))
	inspect("")
	inspect("@" + outer.Digest.String())
}

// A connection that dies while a signature is read says nothing of the image.
func TestAttachmentDies(t *testing.T) {
	config, layer := []byte("{}"), []byte("signature")
	of := func(mediaType string, b []byte) v1.Descriptor {
		return v1.Descriptor{MediaType: mediaType, Digest: godigest.FromBytes(b), Size: int64(len(b))}
	}
	m, err := json.Marshal(v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: of("x", config), Layers: []v1.Descriptor{of(policy.CosignMIME, layer)}})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
			_, _ = w.Write(m)
			return
		}
		w.Header().Set("Content-Length", "9")
		_, _ = w.Write(layer[:4]) // and no more
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	src := &remote{&registry.Client{Roots: pool, Tries: 1}, mustParse(t, "docker://"+strings.TrimPrefix(s.URL, "https://")+"/app:1").Ref}
	if _, err := attachments(t.Context(), src, digestOf(m)); err == nil || verdict(err) {
		t.Errorf("got %v: want an error of the network", err)
	}
}

// A source of signatures that never end, or are too large, is refused.
func TestManyAttachments(t *testing.T) {
	for name, tt := range map[string]struct {
		source *fake
		why    string
	}{
		"signatures":      {&fake{layers: maxSignatures + 1, mediaType: policy.CosignMIME}, "want at most"},
		"large signature": {&fake{layers: 1, mediaType: policy.CosignMIME, size: maxAttachment + 1}, "want at most"},
		"bundles":         {&fake{referrers: maxSignatures + 1}, "want at most"},
		"bundles of one":  {&fake{referrers: 1, layers: maxSignatures + 1, mediaType: policy.BundleMIME}, "want one, a bundle"},
		"no bundle":       {&fake{referrers: 1, layers: 1, mediaType: policy.CosignMIME}, "want one, a bundle"},
		"bundles, large":  {&fake{referrers: 9, layers: 1, mediaType: policy.BundleMIME, size: maxBundle}, "of all"},
		"large bundle":    {&fake{referrers: 1, layers: 1, mediaType: policy.BundleMIME, size: maxBundle + 1}, "want at most"},
	} {
		if _, err := attachments(t.Context(), tt.source, digestOf(nil)); err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s: got %v, want %q", name, err, tt.why)
		}
	}
}

// A fake is a source of manifests with many layers.
type fake struct {
	Source
	referrers, layers int
	mediaType         string
	size              int64
}

func (f *fake) Manifest(context.Context, string) (*registry.Manifest, error) {
	var m v1.Manifest
	for range f.layers {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: f.mediaType, Digest: godigest.FromBytes(nil), Size: f.size})
	}
	b, err := json.Marshal(m)
	return &registry.Manifest{Bytes: b, Digest: digestOf(b)}, err
}

func (f *fake) Tagged(ctx context.Context, _ string) (*registry.Manifest, error) {
	if f.referrers > 0 {
		return nil, nil
	}
	return f.Manifest(ctx, "")
}

func (f *fake) Referrers(context.Context, string, string) ([]v1.Descriptor, error) {
	return make([]v1.Descriptor, f.referrers), nil
}

func (f *fake) Blob(context.Context, v1.Descriptor, io.Reader, int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("")), nil
}

// Who reads a layout may be stopped.
func TestSourceIsCancelled(t *testing.T) {
	from, layers := layout(t, v1.MediaTypeImageLayer)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := (&Puller{}).Source(ctx, mustParse(t, from))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Blob(ctx, v1.Descriptor{Digest: godigest.FromBytes(layers[0]), Size: int64(len(layers[0]))}, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
