package kbs

import (
	"strings"
	"testing"
)

// The first rows are those of guest-components' resource_uri.
func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		text string
		want URI
	}{
		{"kbs:///alice/cosign-key/213", URI{"resource", "", "alice", "cosign-key", "213", ""}},
		{"kbs:///repo/type/tag?param1=value1&param2=value2", URI{"resource", "", "repo", "type", "tag", "param1=value1&param2=value2"}},
		{"kbs+pkcs11:///repo/type/tag", URI{"pkcs11", "", "repo", "type", "tag", ""}},
		{"kbs+custom://example.com:8080/repo/type/tag", URI{"custom", "example.com:8080", "repo", "type", "tag", ""}},
		{"kbs://example.com/a/b/c.d", URI{"resource", "example.com", "a", "b", "c.d", ""}},
		{"kbs://[2001:db8::1]:8443/a/b/c", URI{"resource", "[2001:db8::1]:8443", "a", "b", "c", ""}},
		{"kbs://[2001:db8::1]/a/b/c", URI{"resource", "[2001:db8::1]", "a", "b", "c", ""}},
		{"kbs://192.0.2.1:1/_/-/0", URI{"resource", "192.0.2.1:1", "_", "-", "0", ""}},
	} {
		got, err := ParseURI(c.text)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.text, got, err, c.want)
		}
		if got.String() != c.text {
			t.Errorf("%s: written as %s", c.text, got)
		}
	}
	// The default plugin, and names of hosts, have one spelling.
	for text, want := range map[string]string{
		"kbs+resource:///repo/type/tag":   "kbs:///repo/type/tag",
		"kbs://EXAMPLE.com/a/b/c":         "kbs://example.com/a/b/c",
		"kbs://[2001:DB8:0::1]:443/a/b/c": "kbs://[2001:db8::1]:443/a/b/c",
	} {
		if got, err := ParseURI(text); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v, want %s", text, got, err, want)
		}
	}
}

func TestParseURIRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "want",
		"http:///repo/type/tag":     `scheme "http"`,
		"KBS:///repo/type/tag":      "scheme",
		"kbs+:///repo/type/tag":     "plugin",
		"kbs+../x:///repo/type/tag": "plugin",
		"kbs:/a/b/c":                "want",
		"kbs://":                    "want REPOSITORY",
		"kbs:///":                   "1 names",
		"kbs:///a/b":                "2 names",
		"kbs:///a/b/c/d":            "4 names",
		"kbs:///a/b/c/":             "4 names",
		"kbs:////a/b/c":             "4 names",
		"kbs:///a//c":               `name ""`,
		"kbs:///a/../c":             `name ".."`,
		"kbs:///a/./c":              `name "."`,
		"kbs:///a/.b/c":             `name ".b"`,
		"kbs:///a/b/%2e":            "name",
		"kbs:///a/b/c%2fd":          "name",
		"kbs:///a/b/c\n":            "name",
		"kbs:///a/b/ü":              "name",
		"kbs:///a/b/c#d":            "name",
		"kbs:///a/b/c?":             "query",
		"kbs:///a/b/c?x y":          "query",
		"kbs:///a/b/c?x#y":          "query",
		"kbs:///a/b/c?x?y":          "query",
		"kbs:///a/b/c?../":          "query",
		"kbs://user@host/a/b/c":     "HOST",
		"kbs://ho st/a/b/c":         "HOST",
		"kbs://host:/a/b/c":         "port",
		"kbs://host:0/a/b/c":        "port",
		"kbs://host:080/a/b/c":      "port",
		"kbs://host:65536/a/b/c":    "port",
		"kbs://host:+1/a/b/c":       "port",
		"kbs://:443/a/b/c":          "HOST",
		"kbs://host../a/b/c":        "HOST",
		"kbs://[::1%25lo]/a/b/c":    "HOST",
		"kbs://[::1/a/b/c":          "",
		"kbs://[127.0.0.1]/a/b/c":   "HOST",
		"kbs:///a/b/" + strings.Repeat("c", maxURI): "bytes, want at most",
	} {
		if u, err := ParseURI(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %+v, %v, want an error with %q", text, u, err, want)
		}
	}
}

func FuzzURI(f *testing.F) {
	f.Add("kbs+plugin://host.example:8443/repository/type/tag?a=b")
	f.Add("kbs://[::1]:1/a/b/c")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURI(text)
		if err != nil {
			return
		}
		again, err := ParseURI(u.String())
		if err != nil || again != u {
			t.Fatalf("%q: %+v, then %+v, %v", text, u, again, err)
		}
		if strings.Contains(u.path(), "..") && strings.Contains("/"+u.path()+"/", "/../") {
			t.Fatalf("%q leads upwards", text)
		}
	})
}
