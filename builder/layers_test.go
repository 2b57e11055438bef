package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
)

// sampleLayer is a layer as a build that does not run as root makes it.
func sampleLayer(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, h := range []tar.Header{
		{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1001, Gid: 121},
		{Name: "usr/bin/kata-agent", Typeflag: tar.TypeReg, Mode: 0o755, Uid: 1001, Gid: 121, Size: 10},
		{Name: "usr/bin/twin", Typeflag: tar.TypeLink, Linkname: "usr/bin/kata-agent"},
		{Name: "dev/null", Typeflag: tar.TypeChar},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("kata-agent")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// layerText is a profile with the layer, from wherever it is.
func layerText(from string, digest cas.Digest) string {
	return fmt.Sprintf(`
[[layers]]
name   = "kata"
digest = "sha256:%s"
%s
paths  = ["/usr/bin/*"]
strip  = 1
to     = "/opt"
owner  = "0:0"
`, digest, from)
}

func TestLayers(t *testing.T) {
	blob := sampleLayer(t)
	digest := cas.Sum(blob)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(blob) })) // as registry and as file
	defer server.Close()
	registry := strings.TrimPrefix(server.URL, "http://") + "/team/kata"
	t.Setenv("DOCKER_CONFIG", t.TempDir())

	var want string
	for _, from := range []string{`source = "kata.tar.gz"`, `layout = "layout"`, fmt.Sprintf("registry = %q", registry)} {
		s := newSite(t)
		s.write("kata.tar.gz", blob)
		s.write("layout/blobs/sha256/"+digest.String(), blob)
		url := fmt.Sprintf("[[files]]\npath = \"/usr/bin/from-url\"\nurl = \"%s/f\"\nsha256 = \"%s\"\n", server.URL, digest)
		p := s.profile(layerText(from, digest)+url, "root.kind=verity")
		results, err := s.run(p, Options{})
		if err != nil {
			t.Fatal(err)
		}
		lock, err := ReadLock(s.LockPath)
		if err != nil {
			t.Fatal(err)
		}
		for i, key := range []string{"files /usr/bin/from-url", "layers kata"} {
			if f := (source.File{Path: key, Size: int64(len(blob)), SHA256: digest}); len(lock.Files) != 2 || lock.Files[i] != f {
				t.Errorf("%s: lock has %v, want %v", from, lock.Files, f)
			}
		}
		// Where it comes from decides nothing.
		root := results["rootfs"]["root.erofs"].Digest.String() + results["verity"]["sbom.spdx.json"].Digest.String()
		if want == "" {
			want = root
		}
		if root != want {
			t.Errorf("%s: another root", from)
		}
		v, err := (&work{Spec: s.spec(p), Options: Options{Store: s.Store}, results: map[string]*pending{"rootfs": {out: results["rootfs"]}}}).inventory()
		if err != nil {
			t.Fatal(err)
		}
		var files []string
		for _, f := range v.Files {
			if f.Package == "kata" || f.Package == "/usr/bin/from-url" {
				files = append(files, f.Path)
			}
		}
		if !slices.Equal(files, []string{"opt/bin/kata-agent", "opt/bin/twin", "usr/bin/from-url"}) {
			t.Errorf("%s: files %q", from, files)
		}

		// From then on nobody is asked, and the lock is enough.
		s.Locked, s.Client.Offline = true, true
		if _, err := s.Spec(context.Background(), p, Guest{}); err != nil {
			t.Errorf("%s: locked and offline: %v", from, err)
		}
		moved := s.profile(strings.ReplaceAll(layerText(from, digest)+url, server.URL, "https://elsewhere.example.com"), "root.kind=verity")
		if _, err := s.Spec(context.Background(), moved, Guest{}); err != nil {
			t.Errorf("%s: from elsewhere: %v", from, err)
		}
	}
}

func TestLayersRefused(t *testing.T) {
	blob := sampleLayer(t)
	digest, other := cas.Sum(blob), cas.Sum([]byte("other"))
	for _, c := range []struct {
		name, text string
		verify     bool // exit code 7
		say        string
	}{
		{"another file", layerText(`source = "kata.tar.gz"`, other), true, "kata.tar.gz: sha256 is "},
		{"no file", layerText(`source = "none"`, digest), false, "layers kata: open "},
		{"not in the layout", layerText(`layout = "."`, digest), true, "has no blobs/sha256/"},
		{"another content", "[[files]]\npath = \"/a\"\nsource = \"kata.tar.gz\"\nsha256 = \"" + other.String() + "\"\n", true, "sha256 is " + digest.String() + ", want " + other.String()},
		{"a name that is taken", strings.ReplaceAll(layerText(`source = "kata.tar.gz"`, digest), `"kata"`, `"motd"`), false, "layers motd: a package has this name, too"},
		{"a device", strings.ReplaceAll(layerText(`source = "kata.tar.gz"`, digest), "/usr/bin/*", "/dev"), false, "dev/null: type '3'"},
		{"no such path", strings.ReplaceAll(layerText(`source = "kata.tar.gz"`, digest), "/usr/bin/*", "/usr/lib"), false, "layers kata: rootfs: /usr/lib: there is no such path"},
		{"nothing left", strings.ReplaceAll(layerText(`source = "kata.tar.gz"`, digest), "strip  = 1", "strip  = 9"), false, "layers kata: nothing is taken of it"},
		{"the place of the agent", strings.ReplaceAll(layerText(`source = "kata.tar.gz"`, digest), "/opt", "/usr/lib/plinth"), false, "belongs to the agent"},
		{"no layer", layerText(`source = "tiny.toml"`, cas.Digest{}), false, "invalid tar header"},
	} {
		s := newSite(t)
		s.write("kata.tar.gz", blob)
		text := c.text
		if c.name == "no layer" { // a file with the right digest
			s.write("note", bytes.Repeat([]byte("note"), 500))
			text = layerText(`source = "note"`, cas.Sum(bytes.Repeat([]byte("note"), 500)))
		}
		p := s.profile(text)
		spec, err := s.Spec(context.Background(), p, Guest{})
		if err == nil {
			var agent cas.Ref
			if agent, err = s.Store.Put([]byte("agent")); err != nil {
				t.Fatal(err)
			}
			spec.Guest = Guest{Agent: agent}
			_, err = Build(context.Background(), spec, Options{Store: s.Store, Workplace: s.Workplace})
		}
		wantError(t, err, c.say)
		if errors.As(err, new(*source.VerifyError)) != c.verify {
			t.Errorf("%s: %T", c.name, err)
		}
	}
}
