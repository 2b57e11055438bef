package pcr

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/internal/pe/petest"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
)

var (
	algs     = []eventlog.Alg{eventlog.SHA1, eventlog.SHA256, eventlog.SHA384, eventlog.SHA512}
	order252 = []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"}
	order257 = []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile"}
)

func image(t testing.TB, sections ...petest.Section) *pe.File {
	t.Helper()
	b := petest.Image{SizeOfHeaders: 4096, Sections: sections}.Bytes()
	f, err := pe.Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func section(name, content string) petest.Section {
	return petest.Section{Name: name, Data: []byte(content)}
}

func events(t testing.TB, order []string, f *pe.File) []eventlog.Event {
	t.Helper()
	e, err := Sections(algs, order, f)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestVectors(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "measure", "systemd", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Vectors []struct {
			Linux, Initrd string
			Phase         []string
			Bank          string
			Expected      string `json:"expected_pcr11"`
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil || len(doc.Vectors) != 8 {
		t.Fatalf("%d vectors, %v", len(doc.Vectors), err)
	}
	for _, v := range doc.Vectors {
		alg, err := eventlog.ParseAlg(v.Bank)
		if err != nil {
			t.Fatal(err)
		}
		f := image(t, section(".initrd", v.Initrd), section(".linux", v.Linux))
		all := append(events(t, order257, f), Phases(algs, v.Phase)...)
		if got := hex.EncodeToString(Fold(alg, 11, all)); got != v.Expected {
			t.Errorf("%s, phases %v: PCR 11 %s: want %s", v.Bank, v.Phase, got, v.Expected)
		}
	}
}

// TestSystemdMeasure compares with systemd-measure 252, which knows the
// sections of stub 252.
func TestSystemdMeasure(t *testing.T) {
	testenv.Need(t, "systemd-measure")
	all := map[string]string{
		".linux": "kernel", ".osrel": "ID=x\n", ".cmdline": "a b c", ".initrd": strings.Repeat("i", 5000),
		".splash": "BM", ".dtb": "\xd0\x0d\xfe\xed", ".pcrpkey": "-----BEGIN\n",
	}
	for _, row := range []struct {
		name  string
		leave []string // sections left out
		empty []string // sections without content
		phase []string
	}{
		{name: "all"},
		{name: "kernel alone", leave: []string{".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"}},
		{name: "empty ones", empty: []string{".splash", ".dtb", ".cmdline"}},
		{name: "phases", phase: []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}},
		{name: "one phase, no initrd", leave: []string{".initrd"}, phase: []string{"enter-initrd"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			args := []string{"calculate", "--json=short", "--bank=sha1", "--bank=sha256", "--bank=sha384", "--bank=sha512",
				"--phase=" + strings.Join(row.phase, ":")}
			if len(row.phase) == 0 {
				args[len(args)-1] = "--phase=:"
			}
			var sections []petest.Section
			for _, name := range order252 {
				content := all[name]
				if slices.Contains(row.leave, name) {
					continue
				}
				if slices.Contains(row.empty, name) {
					content = ""
				}
				file := filepath.Join(dir, name)
				if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--"+name[1:]+"="+file)
				sections = append(sections, section(name, content))
			}
			out, err := exec.Command(testenv.Tool("systemd-measure"), args...).Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var want map[string][]struct{ Hash string }
			if err := json.Unmarshal(out, &want); err != nil {
				t.Fatal(err)
			}
			got := append(events(t, order252, image(t, sections...)), Phases(algs, row.phase)...)
			for _, alg := range algs {
				if len(want[alg.String()]) != 1 {
					t.Fatalf("systemd-measure: %s", out)
				}
				if got, want := hex.EncodeToString(Fold(alg, 11, got)), want[alg.String()][0].Hash; got != want {
					t.Errorf("%s: PCR 11 %s: systemd-measure says %s", alg, got, want)
				}
			}
		})
	}
}

func TestSectionEvents(t *testing.T) {
	f := image(t, section(".text", "code"), section(".cmdline", "x"), section(".linux", "kernel"),
		petest.Section{Name: ".splash", Data: []byte("BM"), VirtualSize: 700}, section(".pcrsig", "{}"))
	var got []string
	for _, e := range events(t, order257, f) {
		if e.Register != 11 || e.Type != eventlog.IPL || len(e.Digests) != len(algs) {
			t.Errorf("event %+v", e)
		}
		got = append(got, fmt.Sprintf("%s %x %.8x", e.Name, e.Data, e.Digest(eventlog.SHA256)))
	}
	sum := func(s string) string { return fmt.Sprintf("%.8x", eventlog.SHA256.Sum([]byte(s))) }
	linux, cmdline, splash := "2e006c0069006e00750078000000", "2e0063006d0064006c0069006e0065000000", "2e00730070006c006100730068000000"
	want := []string{
		"name of section .linux " + linux + " " + sum(".linux\x00"),
		"section .linux " + linux + " " + sum("kernel"),
		"name of section .cmdline " + cmdline + " " + sum(".cmdline\x00"),
		"section .cmdline " + cmdline + " " + sum("x"),
		"name of section .splash " + splash + " " + sum(".splash\x00"),
		"section .splash " + splash + " " + sum("BM"+strings.Repeat("\x00", 698)),
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestProfiles follows the rule of systemd-stub(7): what stands before the
// first .profile is common, the first profile overrides it, the rest is for
// whoever asks for another profile.
func TestProfiles(t *testing.T) {
	f := image(t, section(".linux", "common"), section(".cmdline", "common"), section(".osrel", "common"),
		section(".profile", "ID=one"), section(".cmdline", "one"), petest.Section{Name: ".osrel"},
		section(".profile", "ID=two"), section(".cmdline", "two"))
	sections, err := selected(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{".linux": "common", ".cmdline": "one", ".osrel": "common", ".profile": "ID=one"} {
		if got, _ := io.ReadAll(f.Measured(sections[name])); string(got) != want {
			t.Errorf("section %s: %q: want %q", name, got, want)
		}
	}
}

func TestSectionsRefused(t *testing.T) {
	for _, row := range []struct {
		name string
		f    *pe.File
		want string
	}{
		{"twice", image(t, section(".linux", "a"), section(".linux", "b")), "twice"},
		{"twice in the profile", image(t, section(".profile", "a"), section(".linux", "a"), section(".linux", "b")), "twice"},
		{".dtbauto", image(t, section(".linux", "a"), section(".dtbauto", "b")), ".dtbauto"},
		{".efifw", image(t, section(".linux", "a"), section(".efifw", "b")), ".efifw"},
	} {
		_, err := Sections(algs, order257, row.f)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: error %v: want %q", row.name, err, row.want)
		}
		if _, err := Initrd(257, row.f); err == nil {
			t.Errorf("%s: initrd: no error", row.name)
		}
		if _, _, err := Cmdline(257, row.f); err == nil {
			t.Errorf("%s: command line: no error", row.name)
		}
	}
	if _, err := Sections([]eventlog.Alg{0x12}, order257, image(t, section(".linux", "a"))); err == nil || !strings.Contains(err.Error(), "unsupported") {
		t.Errorf("SM3: error %v", err)
	}
}

func TestFold(t *testing.T) {
	e := Phases(algs, []string{"a"})
	ignored := e[0]
	ignored.Type = eventlog.NoAction
	other := e[0]
	other.Register = 4
	want := eventlog.Extend(eventlog.SHA256, make([]byte, 32), eventlog.SHA256.Sum([]byte("a")))
	if got := Fold(eventlog.SHA256, 11, []eventlog.Event{ignored, other, e[0]}); !bytes.Equal(got, want) {
		t.Errorf("got %x: want %x", got, want)
	}
	// The register of a separator alone, as every TPM under OVMF shows it.
	sep := eventlog.Event{Register: 3, Type: eventlog.Separator, Digests: Separator(algs)}
	for alg, want := range map[eventlog.Alg]string{
		eventlog.SHA1:   "b2a83b0ebf2f8374299a5b2bdfc31ea955ad7236",
		eventlog.SHA256: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
	} {
		if got := hex.EncodeToString(Fold(alg, 3, []eventlog.Event{sep})); got != want {
			t.Errorf("%s: separator alone: %s: want %s", alg, got, want)
		}
	}
}

func TestAuthenticode(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "measure", "go-uefi", "test.pecoff.signed"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Authenticode(algs, f)
	if err != nil {
		t.Fatal(err)
	}
	// vectors.json beside it; the file's own signature holds this digest.
	if got := hex.EncodeToString(d[1].Value); got != "e7d74d2bc1287c17bf056e259ad7d2ca557e848b252509ae9956df0b14f69702" {
		t.Errorf("sha256 %s", got)
	}
}

func TestCmdline(t *testing.T) {
	for _, row := range []struct {
		stub           int
		content, want  string
		refused, empty bool
	}{
		{stub: 252, content: "a b", want: "a b"},
		{stub: 252, content: "  a\tb \x7f \n\n", want: "  a b \x7f"},
		{stub: 254, content: "\n a \n", want: "  a"},
		{stub: 255, content: "\n a \n", want: "a"},
		{stub: 257, content: " \t a\tb  c\x7f\n", want: "a b  c"},
		{stub: 257, content: "a\x00b", want: "a"},
		{stub: 257, content: " \n", want: ""},
		{stub: 257, content: "é €", want: "é €"},
		{stub: 257, content: "a\xffb", refused: true},
		{stub: 257, content: "a\U0001f600", refused: true},
		{stub: 257, content: strings.Repeat("a", maxCmdline+1), refused: true},
		{stub: 257, content: "", empty: true},
	} {
		got, ok, err := Cmdline(row.stub, image(t, section(".cmdline", row.content)))
		if (err != nil) != row.refused || ok == (row.refused || row.empty) || got != row.want {
			t.Errorf("stub %d, %.30q: got %.30q, %v, %v: want %q", row.stub, row.content, got, ok, err, row.want)
		}
	}
	if got, want := LoadOptions("aé€"), "6100e900ac200000"; hex.EncodeToString(got) != want {
		t.Errorf("load options %x: want %s", got, want)
	}
}

func TestAppendsConsole(t *testing.T) {
	for _, row := range []struct {
		stub    int
		cmdline string
		want    bool
	}{
		{262, "panic=-1", true}, {262, "", true}, {262, "netconsole=x", true}, {262, "a_console=x", true},
		{262, "console=ttyS0", false}, {262, "panic=-1 console=ttyS0", false}, {257, "panic=-1", false},
	} {
		if got := AppendsConsole(row.stub, row.cmdline); got != row.want {
			t.Errorf("%d, %q: %v", row.stub, row.cmdline, got)
		}
	}
}

func TestInitrd(t *testing.T) {
	extra := func(name, content string) string { return string(extraArchive(name, []byte(content))) }
	sig, key, osrel, profile := extra("tpm2-pcr-signature.json", "{}"), extra("tpm2-pcr-public-key.pem", "key"), extra("os-release", "ID=x\n"), extra("profile", "ID=p")
	full := image(t, section(".osrel", "ID=x\n"), section(".initrd", "initrd"), section(".ucode", "micro"),
		section(".pcrpkey", "key"), section(".profile", "ID=p"), section(".pcrsig", "{}"))
	for _, row := range []struct {
		name string
		stub int
		f    *pe.File
		want string
	}{
		{"nothing", 257, image(t), ""},
		{"one part is not padded", 257, image(t, section(".initrd", "odd")), "odd"},
		{"one generated part", 257, image(t, section(".osrel", "ID=x\n")), osrel},
		{"two parts", 257, image(t, section(".initrd", "odd"), section(".osrel", "ID=x\n")), "odd\x00" + osrel},
		{"252: no .osrel", 252, image(t, section(".initrd", "odd"), section(".osrel", "ID=x\n")), "odd"},
		{"252", 252, full, "initrd\x00\x00" + sig + key},
		{"256", 256, full, "micro\x00\x00\x00initrd\x00\x00" + sig + key},
		{"257", 257, full, "micro\x00\x00\x00initrd\x00\x00" + sig + key + osrel + profile},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := Initrd(row.stub, row.f)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || string(got) != row.want {
				t.Errorf("got %q, %v\nwant %q", got, err, row.want)
			}
		})
	}
	if _, err := Initrd(257, image(t, section(".osrel", strings.Repeat("x", maxExtra+1)))); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("long .osrel: error %v", err)
	}
}

// TestExtraArchive pins the bytes that are free in the format. They are those
// that stub 257.13 and 262.1 made in boots whose PCR 9 was predicted with them.
func TestExtraArchive(t *testing.T) {
	want := "070701" + "00000001" + "0000416d" + strings.Repeat("00000000", 2) + "00000001" + strings.Repeat("00000000", 6) + "00000007" + "00000000" +
		".extra\x00" + "\x00\x00\x00" +
		"070701" + "00000002" + "00008124" + strings.Repeat("00000000", 2) + "00000001" + "00000000" + "00000005" + strings.Repeat("00000000", 4) + "00000012" + "00000000" +
		".extra/os-release\x00" + "ID=x\n" + "\x00\x00\x00" +
		"070701" + strings.Repeat("00000000", 4) + "00000001" + strings.Repeat("00000000", 6) + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	if got := string(extraArchive("os-release", []byte("ID=x\n"))); got != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestExtraArchiveCpio(t *testing.T) {
	testenv.Need(t, "cpio")
	for _, size := range []int{0, 1, 2, 3, 4, 5000} {
		content := strings.Repeat("x", size)
		dir := t.TempDir()
		cmd := exec.Command("cpio", "--extract", "--quiet", "--make-directories", "--no-absolute-filenames")
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(extraArchive("profile", []byte(content)))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Fatalf("%d bytes: cpio: %v: %s", size, err, out)
		}
		got, err := os.ReadFile(filepath.Join(dir, ".extra", "profile"))
		if err != nil || string(got) != content {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		// The directory is read-only, which hinders t.TempDir unless root.
		_ = os.Chmod(filepath.Join(dir, ".extra"), 0o700)
	}
}
