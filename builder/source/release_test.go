package source

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/plinth-os/plinth/internal/testenv"
)

// The embedded keys are those that keys/README.md lists, and no others.
func TestArchiveKeys(t *testing.T) {
	k, err := ArchiveKeys()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("keys/README.md")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`\b[0-9A-F]{40}\b`).FindAllString(string(readme), -1)
	slices.Sort(want)
	if got := k.Fingerprints(); len(got) != 6 || !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, pinned := range []string{ // as Debian publishes them
		"B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8", "04B54C3CDCA79751B16BC6B5225629DF75B188BD",
		"05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0", "5E04A1E3223A19A20706E20F9904613D4CCE68C6"} {
		if !slices.Contains(want, pinned) {
			t.Errorf("key %s is missing", pinned)
		}
	}
	if err := k.Add([]byte("no keyring")); err == nil {
		t.Error("rubbish was accepted as a keyring")
	}
}

// realRelease is what Debian signed on 2026-11-18.
func realRelease(t testing.TB) []byte {
	b, err := os.ReadFile("testdata/trixie-security-InRelease")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRealRelease(t *testing.T) {
	k, err := ArchiveKeys()
	if err != nil {
		t.Fatal(err)
	}
	s := Source{Name: "debian", Suite: "trixie-security"}
	r, err := readRelease(realRelease(t), s, k, today)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0", "5E04A1E3223A19A20706E20F9904613D4CCE68C6"}
	if !slices.Equal(r.Fingerprints, want) || stamp(r.Date) != "2026-11-18T22:17:43Z" || stamp(r.ValidUntil) != "2026-11-25T22:17:43Z" {
		t.Errorf("got %+v", r.Release)
	}
	f := r.files["main/binary-amd64/Packages.xz"]
	line := regexp.MustCompile(`([0-9a-f]{64}) +\d+ main/binary-amd64/Packages\.xz`).FindSubmatch(realRelease(t))
	if paths, err := r.indexPaths(s, "amd64"); err != nil || !slices.Equal(paths, []string{"main/binary-amd64/Packages"}) || f.SHA256.String() != string(line[1]) {
		t.Errorf("indexes %q, %v; Packages.xz is %+v", paths, err, f)
	}
	half := &Keyring{k.keys[1:2]} // one good signature of two is enough
	if r, err := readRelease(realRelease(t), s, half, today); err != nil || len(r.Fingerprints) != 1 {
		t.Errorf("one key of two: %v", err)
	}
	for _, bad := range map[string]struct {
		keys *Keyring
		now  time.Time
	}{
		"no key":        {&Keyring{}, today},
		"other key":     {&Keyring{openpgp.EntityList{testKey()}}, today},
		"before it was": {k, today.AddDate(0, 0, -3)},
		"after it was":  {k, today.AddDate(0, 0, 6)},
	} {
		_, err := readRelease(realRelease(t), s, bad.keys, bad.now)
		wantError(t, err, 7)
	}
}

// TestKeysAsGpg reads the embedded keys with another program.
func TestKeysAsGpg(t *testing.T) {
	testenv.Need(t, "gpg")
	files, err := filepath.Glob("keys/*.asc")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("gpg", append([]string{"--homedir", t.TempDir(), "--with-colons", "--show-keys"}, files...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	primary := false
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(line, ":")
		switch {
		case fields[0] == "pub":
			primary = true
		case fields[0] == "fpr" && primary:
			got, primary = append(got, fields[9]), false
		}
	}
	slices.Sort(got)
	k, err := ArchiveKeys()
	if err != nil || !slices.Equal(got, k.Fingerprints()) {
		t.Errorf("got %q, gpg says %q; %v", k.Fingerprints(), got, err)
	}
}

// What verifies is text that stands in the message, between its markers.
func FuzzVerify(f *testing.F) {
	f.Add((&archive{t: f, key: testKey(), date: today}).sign("Suite: x\n- dash\nDate: y\n"))
	k := &Keyring{openpgp.EntityList{testKey()}}
	f.Fuzz(func(t *testing.T, b []byte) {
		text, signers, err := k.verify(b, today)
		if err != nil {
			return
		}
		if len(signers) != 1 {
			t.Fatalf("signers %q", signers)
		}
		for line := range bytes.Lines(text) {
			if !bytes.Contains(b, bytes.TrimRight(line, "\n")) {
				t.Fatalf("line %q is not in the message", line)
			}
		}
	})
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte("Suite: stable\nCodename: trixie\nDate: Wed, 18 Nov 2026 22:17:43 UTC\nArchitectures: all amd64\nSHA256:\n " +
		strings.Repeat("0", 64) + " 7 main/binary-amd64/Packages.xz\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRelease(b)
		if err != nil {
			return
		}
		for path, file := range r.files {
			if path != file.Path || file.Size < 0 {
				t.Fatalf("%q: %+v", path, file)
			}
		}
	})
}

// TestNetwork resolves the suites that a stock profile uses, through the mirrors
// of the host's apt.
func TestNetwork(t *testing.T) {
	testenv.Network(t)
	host, err := HostApt("/")
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t)
	c.Keys, c.sleepFunc = nil, nil
	req := Request{Arch: "amd64", Now: time.Now(), Wants: append(root("ca-certificates"),
		Want{Role: "kernel", Package: "linux-image-cloud-amd64"}, Want{Role: "stub", Package: "systemd-boot-efi"}, Want{Role: "firmware", Package: "ovmf"})}
	for _, suite := range []string{"trixie", "trixie-security"} {
		s := Source{Name: "debian", Suite: suite}
		if s.Mirrors, err = MirrorsFor(s, MirrorChoice{Env: os.Getenv("PLINTH_MIRROR"), Host: host}); err != nil || len(s.Mirrors) == 0 {
			testenv.Missing(t, "network", "no Debian mirror is configured")
		}
		req.Sources = append(req.Sources, s)
	}
	start := time.Now()
	l, err := c.Resolve(context.Background(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("resolved in %v: %s", time.Since(start), versions(l))
	if n := len(l.Sources[0].Releases[0].Fingerprints); n < 2 {
		t.Errorf("%d good signatures on trixie, want at least 2", n)
	}
	kernel := l.Role("kernel")
	if len(kernel) != 2 || !strings.Contains(kernel[0].Name, "cloud-amd64") {
		t.Errorf("kernel packages are %s", names(kernel))
	}
	start = time.Now()
	refs, err := c.FetchAll(context.Background(), req.Sources, l.Packages)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("fetched in %v", time.Since(start))
	start = time.Now()
	for _, ref := range refs {
		if _, err := UnpackDeb(context.Background(), c.Store, ref, 1<<30); err != nil {
			t.Error(err)
		}
	}
	t.Logf("unpacked in %v", time.Since(start))
}

// BenchmarkPackages scans PACKAGES, a Packages file such as trixie main's.
func BenchmarkPackages(b *testing.B) {
	data, err := os.ReadFile(os.Getenv("PACKAGES"))
	if err != nil {
		b.Skip("PACKAGES names no file")
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		r := bytes.NewReader(data)
		if err := newCatalog("amd64").add(&index{r, &openSource{}}, r); err != nil {
			b.Fatal(err)
		}
	}
}
