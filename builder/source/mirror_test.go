package source

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMirrorsFor(t *testing.T) {
	main := Source{Name: "debian", Suite: "trixie"}
	security := Source{Name: "security", Suite: "trixie-security"}
	withMirror := Source{Name: "debian", Suite: "trixie", Mirrors: []string{"http://profile.test/debian"}}
	host := []AptEntry{
		{"http://host.test/debian", []string{"bookworm", "bookworm-updates"}, true},
		{"http://host.test/debian-security", []string{"bookworm-security"}, true},
		{"http://tools.test/apt", []string{"tools-bookworm"}, false},
		{"http://own.test/debian", []string{"trixie"}, false},
	}
	for _, c := range []struct {
		name string
		src  Source
		m    MirrorChoice
		want string
	}{
		{"nothing", main, MirrorChoice{}, ""},
		{"flag first", withMirror, MirrorChoice{Flags: []string{"http://flag.test"}, Env: "http://env.test", Host: host}, "http://flag.test"},
		{"environment next", withMirror, MirrorChoice{Env: " http://env.test\thttps://env2.test ", Host: host}, "http://env.test https://env2.test"},
		{"profile next", withMirror, MirrorChoice{Host: host}, "http://profile.test/debian"},
		{"host: suite, then the same kind", main, MirrorChoice{Host: host}, "http://own.test/debian http://host.test/debian"},
		{"host: security", security, MirrorChoice{Host: host}, "http://host.test/debian-security"},
		{"flag of another source", withMirror, MirrorChoice{Flags: []string{"security=http://flag.test"}}, "http://profile.test/debian"},
		{"flag by name", security, MirrorChoice{Flags: []string{"http://all.test/debian-security", "security=http://flag.test?a=b"}}, "http://all.test/debian-security http://flag.test?a=b"},
		{"flag by suite", security, MirrorChoice{Flags: []string{"trixie=http://a.test", "trixie-security=http://b.test"}}, "http://b.test"},
		{"the security archive beside", security, MirrorChoice{Env: "http://env.test/debian/"}, "http://env.test/debian/ http://env.test/debian-security"},
	} {
		got, err := MirrorsFor(c.src, c.m)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	for _, bad := range []string{"mirror.test", "ftp://mirror.test", "trixie=", "http://", "trixie=/srv/debian", "http://%zz"} {
		if got, err := MirrorsFor(main, MirrorChoice{Flags: []string{bad}}); err == nil {
			t.Errorf("%q was accepted: %q", bad, got)
		}
	}
}

func TestHostApt(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []AptEntry
	}{
		{"nothing", nil, nil},
		{"one-line form", map[string]string{
			"etc/os-release": "ID=debian\nVERSION_CODENAME=bookworm\n",
			"etc/apt/sources.list": "# comment\ndeb http://a.test/debian bookworm main contrib # trailing\n" +
				"deb [arch=amd64 signed-by=/x.gpg] https://b.test/debian-security bookworm-security main\n" +
				"deb-src http://c.test bookworm main\ndeb cdrom:[Debian]/ bookworm main\ndeb http://flat.test ./\ndeb\n",
			"etc/apt/sources.list.d/t.list": "deb http://t.test tools-bookworm main\n",
			"etc/apt/sources.list.d/t.save": "deb http://unused.test bookworm main\n",
		}, []AptEntry{
			{"http://a.test/debian", []string{"bookworm"}, true},
			{"https://b.test/debian-security", []string{"bookworm-security"}, true},
			{"http://t.test", []string{"tools-bookworm"}, false},
		}},
		{"deb822 form", map[string]string{
			"etc/os-release": `ID="debian"` + "\n" + `VERSION_CODENAME='trixie'`,
			"etc/apt/sources.list.d/debian.sources": "# comment\nTypes: deb deb-src\nURIs: http://a.test/debian http://b.test/debian\nSuites: trixie trixie-updates\n" +
				"Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\n" +
				"Types: deb\nURIs: http://off.test\nSuites: trixie\nEnabled: no\n\nTypes: deb-src\nURIs: http://src.test\nSuites: trixie\n\n" +
				"Types: deb\nURIs: file:///srv http://var.test/$(ARCH) http://c.test\nSuites: sid\n",
		}, []AptEntry{
			{"http://a.test/debian", []string{"trixie", "trixie-updates"}, true},
			{"http://b.test/debian", []string{"trixie", "trixie-updates"}, true},
			{"http://c.test", []string{"sid"}, true},
		}},
		{"another distribution", map[string]string{
			"etc/os-release":       "ID=ubuntu\nVERSION_CODENAME=noble\n",
			"etc/apt/sources.list": "deb http://u.test/ubuntu noble main\n",
		}, []AptEntry{{"http://u.test/ubuntu", []string{"noble"}, false}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := HostApt(dir)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStanza(t *testing.T) {
	s, err := parseStanza([]byte("Package: x\n# comment\nDESCRIPTION: short\n long\n .\n  more\nEmpty:\n\n"))
	want := stanza{"package": "x", "description": "short\nlong\n.\n more", "empty": ""}
	if diff := cmp.Diff(want, s); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{" folded", "no colon", "A: 1\na: 2", ": x", "-A: 1", "A B: 1", "Ä: 1"} {
		if s, err := parseStanza([]byte(bad)); err == nil {
			t.Errorf("%q was accepted: %v", bad, s)
		}
	}
	var parts []string
	for p := range paragraphs([]byte("\n\nA: 1\nB: 2\n \n\nC: 3")) {
		parts = append(parts, string(p))
	}
	if !slices.Equal(parts, []string{"A: 1\nB: 2\n", "C: 3"}) {
		t.Errorf("paragraphs are %q", parts)
	}
}

// What parses means the same when it is written out again.
func FuzzParseStanza(f *testing.F) {
	f.Add([]byte("Package: linux\nDepends: kmod,\n initramfs-tools | x (>= 1)\nDescription: d\n .\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseStanza(b)
		if err != nil {
			return
		}
		var out strings.Builder
		for k, v := range s {
			out.WriteString(k + ": " + strings.ReplaceAll(v, "\n", "\n ") + "\n")
		}
		again, err := parseStanza([]byte(out.String()))
		if err != nil || !cmp.Equal(s, again) {
			t.Fatalf("%q became %q, %v", s, again, err)
		}
	})
}
