package builder

import (
	"bytes"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/plinth-os/plinth/profiles"
)

func manifest(t testing.TB) *Manifest {
	t.Helper()
	s := everything()
	var err error
	if s.Profile, err = profiles.Load(fstest.MapFS{}, "vtpm", profiles.Options{}); err != nil {
		t.Fatal(err)
	}
	for i := range s.Lock.Packages { // as a real lock has them
		s.Lock.Packages[i].Version, s.Lock.Packages[i].Filename = "1", "x.deb"
	}
	s.Lock.Schema, s.Lock.Profile, s.Lock.Arch = 1, "demo", "amd64"
	return NewManifest(s, map[string]Outputs{}, nil, []string{"nvme"})
}

func TestManifestRoundTrip(t *testing.T) {
	want := manifest(t)
	want.Profile = []byte(`{"cmdline": ["a<b"]}`)
	b, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.Marshal()
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("%v\n%s\nis not\n%s", err, again, b)
	}
	if !bytes.Contains(b, []byte("a<b")) {
		t.Error("< is escaped")
	}
}

func TestParseManifestRefuses(t *testing.T) {
	b, err := manifest(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, c := range []struct{ from, to, want string }{
		{`"schema": 1`, `"schema": 2`, "schema 2: want 1"},
		{`"schema": 1,`, "", "schema 0: want 1"},
		{`"schema": 1,`, `"schema": 1, "more": 1,`, "unknown field"},
		{`"schema": 1,`, `"schema": 1, "schema": 1,`, "repeated"},
		{`"schema": 1,`, `"Schema": 1,`, "a key is repeated, missing or out of order"},
		{`"name": "image.raw"`, `"name": "../image.raw"`, `artefact "../image.raw"`},
		{`"filename": "x.deb"`, `"filename": "../x.deb"`, "file name"},
		{"}\n", "} {}", "more than one document"},
		{text, "null", "schema 0"},
		{text, "{", "manifest: "},
	} {
		broken := strings.Replace(text, c.from, c.to, 1)
		if c.from == "}\n" {
			broken = text + "{}"
		}
		_, err := ParseManifest([]byte(broken))
		wantError(t, err, c.want)
	}
	for _, change := range []func(*Manifest){
		func(m *Manifest) { m.Lock = nil },
		func(m *Manifest) { m.Machine.VCPUs = nil },
	} {
		m := manifest(t)
		change(m)
		b, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		_, err = ParseManifest(b)
		wantError(t, err, "manifest: ")
	}
}

// What parses is written back the same, but for white space.
func FuzzParseManifest(f *testing.F) {
	b, err := manifest(f).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		again, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseManifest(again); err != nil {
			t.Errorf("%v in what was written\n%s", err, again)
		}
	})
}
