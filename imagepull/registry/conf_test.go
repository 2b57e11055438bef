package registry

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distribution/reference"

	"github.com/plinth-os/plinth/internal/testenv"
)

// conf reads a file of containers/image, pkg/sysregistriesv2/testdata.
func conf(t testing.TB, name string) (*Config, error) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/containers-image/registries-conf", name))
	if err != nil {
		t.Fatal(err)
	}
	return ParseConfig(b)
}

func TestConfigs(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testenv.Vectors(t), "guest/containers-image/registries-conf/*.conf"))
	if err != nil || len(files) < 20 {
		t.Fatal(err, len(files))
	}
	for _, f := range files {
		name := filepath.Base(f)
		bad := false
		for _, s := range []string{"invalid-", "conflicts", "missing-", "mixing-", "v1-", "try-update-cache-invalid"} {
			bad = bad || strings.Contains(name, s)
		}
		if _, err := conf(t, name); (err != nil) != bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSources(t *testing.T) {
	const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, tt := range []struct {
		file, image string
		want        []string // ! before one that is insecure
	}{
		{"mirrors.conf", "registry.com/a:1", []string{"mirror-1.registry.com/a:1", "!mirror-2.registry.com/a:1", "registry.com/a:1"}},
		{"mirrors.conf", "registry.community/a:1", []string{"registry.community/a:1"}},
		{"mirrors.conf", "blocked.registry.com/a:1", nil},
		{"base-for-registries.d.conf", "base.com/a:1", []string{"!base.com/a:1"}},
		{"find-registry.conf", "simple-prefix.com/foo/bar:latest", []string{"registry.com:5000/foo/bar:latest"}},
		{"find-registry.conf", "complex-prefix.com:4000/with/path/and/beyond:tag", []string{"another-registry.com:5000/and/beyond:tag"}},
		{"find-registry.conf", "complex-prefix.com:4000/with/pathology:tag", []string{"*"}},
		{"find-registry.conf", "no-prefix.com/a" + digest, []string{"no-prefix.com/a" + digest}},
		{"find-registry.conf", "foo.so.simple-prefix.com/bar:1", []string{"subdomain-prefix.com/bar:1"}},
		{"find-registry.conf", "foo.simple-prefix.com:80/bar:1", []string{"subdomain-prefix-2.com:80/bar:1"}},
		{"find-registry.conf", "foo.bar.example.com:5000/a:1", []string{"subdomain-prefix-5.com/a:1"}},
		{"find-registry.conf", "x.internal.registry.com/a:1", []string{"x.internal.registry.com/a:1"}},
		{"pull-sources-from-reference.conf", "registry-a.com/foo/image:aaa", []string{"mirror-1.registry-a.com/image:aaa", "!mirror-2.registry-a.com/image:aaa", "registry-a.com/bar/image:aaa"}},
		{"pull-sources-from-reference.conf", "registry-a.com/foo/image" + digest, []string{"mirror-1.registry-a.com/image" + digest, "!mirror-2.registry-a.com/image" + digest, "registry-a.com/bar/image" + digest}},
		{"pull-sources-from-reference.conf", "registry-b.com/foo/image:aaa", []string{"registry-b.com/bar/image:aaa"}},
		{"pull-sources-from-reference.conf", "registry-b.com/foo/image" + digest, []string{"mirror-1.registry-b.com/image" + digest, "mirror-2.registry-b.com/image" + digest, "registry-b.com/bar/image" + digest}},
		{"pull-sources-from-reference.conf", "registry-c.com/baz/image:aaa", []string{"mirror-1.registry-c.com/image:aaa", "registry-c.com/bar/image:aaa"}},
		{"pull-sources-from-reference.conf", "registry-e.com/baz/image" + digest, []string{"registry-e.com/bar/image" + digest}},
		{"pull-sources-from-reference.conf", "registry-g.com/baz/image:aaa", []string{"mirror-2.registry-g.com/image:aaa", "mirror-3.registry-g.com/image:aaa", "mirror-4.registry-g.com/image:aaa", "registry-g.com/bar/image:aaa"}},
		{"pull-sources-from-reference.conf", "registry-g.com/baz/image" + digest, []string{"mirror-1.registry-g.com/image" + digest, "mirror-3.registry-g.com/image" + digest, "mirror-4.registry-g.com/image" + digest, "registry-g.com/bar/image" + digest}},
	} {
		c, err := conf(t, tt.file)
		if err != nil {
			t.Fatal(err)
		}
		ref, err := reference.ParseNormalizedNamed(tt.image)
		if err != nil {
			t.Fatal(err)
		}
		sources, err := c.Sources(ref)
		var got []string
		for _, s := range sources {
			text := s.Ref.String()
			if s.Insecure {
				text = "!" + text
			}
			got = append(got, text)
		}
		switch {
		case tt.want == nil:
			if !errors.Is(err, ErrBlocked) {
				t.Errorf("%s: %s: %v", tt.file, tt.image, err)
			}
		case tt.want[0] == "*": // no prefix but *.com
			if len(got) != 1 || got[0] != tt.image {
				t.Errorf("%s: %s: got %q", tt.file, tt.image, got)
			}
		case err != nil || !slices.Equal(got, tt.want):
			t.Errorf("%s: %s: got %q, %v; want %q", tt.file, tt.image, got, err, tt.want)
		}
	}
}

func TestAuthFiles(t *testing.T) {
	for _, tt := range []struct{ file, image, user, password, token string }{
		{"example.json", "example.org/a", "example", "org", ""},
		{"example.json", "example.com/a", "", "", ""},
		{"example_identitytoken.json", "example.org/a", "00000000-0000-0000-0000-000000000000", "", "some very long identity token"},
		{"full.json", "localhost:5000/a", "local", "host-5000", ""},
		{"full.json", "docker.io/library/a", "docker", "io", ""},
		{"full.json", "normalize.example.org/a", "normalize", "example", ""},
		{"abnormal.json", "docker.io/library/a", "index", "docker.io", ""},
		{"abnormal.json", "127.0.0.1:5000/a", "127.0", "0.1-5000", ""},
		{"abnormal.json", "localhost:5001/a", "local", "host-5001", ""},
		{"refpath.json", "example.org/repo/image:latest", "example", "org", ""},
		{"refpath.json", "example.org/repository", "local", "host", ""},
		{"refpath.json", "docker.io/vendor/product", "first", "level", ""},
		{"refpath.json", "docker.io/unknown/product", "top", "level", ""},
		{"refpath.json", "docker.io/library/busybox", "library", "busybox", ""},
		{"refpath.json", "docker.io/library/ubuntu", "library", "other", ""},
		{"empty.json", "example.org/a", "", "", ""},
		{"config.json", "registry-no-creds.com/a", "", "", ""},
	} {
		b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/containers-image/docker-auth", tt.file))
		if err != nil {
			t.Fatal(err)
		}
		a, err := ParseAuthFile(b)
		if err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		ref, err := reference.ParseNormalizedNamed(tt.image)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := a.For(ref)
		if c.User != tt.user || c.Password != tt.password || c.Token != tt.token {
			t.Errorf("%s: %s: got %+v", tt.file, tt.image, c)
		}
	}
	a, err := ParseAuthFile([]byte(`{"auths":{"example.org":{}},"credsStore":"desktop"}`))
	ref, _ := reference.ParseNormalizedNamed("example.org/a")
	if _, known := a.For(ref); err != nil || known {
		t.Errorf("an entry without credentials: %v, %v", known, err)
	}
	for name, text := range map[string]string{
		"not JSON": "auths", "not base64": `{"auths":{"a":{"auth":"*"}}}`, "no colon": `{"auths":{"a":{"auth":"YQ=="}}}`,
	} {
		if _, err := ParseAuthFile([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("[[registry]]\nprefix=\"*.example.com\"\n[[registry.mirror]]\nlocation=\"m.example.com/x\"\n"))
	ref, err := reference.ParseNormalizedNamed("a.example.com/b/c:1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		if s, err := c.Sources(ref); err == nil && len(s) == 0 {
			t.Error("neither an error nor a source")
		}
	})
}

func FuzzAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://example.org/v1":{"auth":"ZXhhbXBsZTpvcmc="}}}`))
	ref, err := reference.ParseNormalizedNamed("example.org/b/c:1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		if a, err := ParseAuthFile(b); err == nil {
			a.For(ref)
		}
	})
}
