package rootfs

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/plinth-os/plinth/internal/tree"
)

func inventory(t *testing.T) Inventory {
	t.Helper()
	pkgs := []Package{
		deb("libstdc++6", f("usr/lib/libstdc++.so.6.0", "abc"), f("usr/share/doc/libstdc++6/copyright", dep5+"\nFiles: *\nLicense: Odd\n Odd text.\n")).
			field("Source: gcc-14 (14.2.0-19)\nMaintainer: Debian GCC <gcc@example.org>\nHomepage: https://gcc.example/\nDescription: library <of> C++ & more\n long\nDepends: libc6 (>= 2.36), gone"),
		deb("libc6", f("usr/lib/libc.so.6", "libc"), tree.Symlink("usr/share/doc/libc6", "libstdc++6")).field("Source: glibc"),
		deb("empty", tree.Dir("usr/share/empty", 0o755)),
		deb("docs", f("usr/share/doc/docs/copyright", dep5+"\nFiles: *\nLicense: Expat\n")),
		deb(basePackage, f("usr/lib/os-release", "ID=debian\nVERSION_ID=\"13\"\n"), tree.Symlink("etc/os-release", "../usr/lib/os-release")),
	}
	pkgs[0].SHA256[0] = 0xab
	pkgs[0].Version = "1:14.2.0-19+b1~x"
	pkgs[0].Control["control"] = []byte(strings.Replace(string(pkgs[0].Control["control"]), "Version: 1", "Version: 1:14.2.0-19+b1~x", 1))
	return mustBuild(t, pkgs, []tree.Entry{f("etc/mine", "m")}, Params{Exclude: []string{"/usr/share/doc/**"}}).Inventory
}

var document = Document{Name: "test", Epoch: 1767225600, Seed: "seed", Tool: "plinth-0.4", ImageFile: "root.erofs",
	ImageSHA256: strings.Repeat("12", 32), RootHash: strings.Repeat("34", 32)}

func TestInventory(t *testing.T) {
	v := inventory(t)
	var names []string
	for _, c := range v.Components {
		names = append(names, c.Name)
	}
	// Nothing is left of "docs" and "empty".
	if want := []string{"base-files", "libc6", "libstdc++6"}; !slices.Equal(names, want) {
		t.Fatalf("components %q, want %q", names, want)
	}
	if v.Distro != "debian-13" {
		t.Errorf("distribution %q", v.Distro)
	}
	c := v.Components[2]
	if c.Source != "gcc-14" || c.SourceVersion != "14.2.0-19" || c.Supplier != "Debian GCC <gcc@example.org>" || c.Summary != "library <of> C++ & more" ||
		!strings.HasPrefix(c.Licence, "LicenseRef-Odd-") || !slices.Equal(c.Depends, []string{"libc6"}) || !strings.HasPrefix(c.SHA256, "ab00") {
		t.Errorf("%+v", c)
	}
	// By a link into the documentation of another package, which is left out.
	if v.Components[1].Licence != c.Licence {
		t.Errorf("licence of libc6: %q", v.Components[1].Licence)
	}
}

func TestPURL(t *testing.T) {
	v := inventory(t)
	for i, want := range []string{
		"pkg:deb/debian/base-files@1?arch=amd64&distro=debian-13",
		"pkg:deb/debian/libc6@1?arch=amd64&distro=debian-13&upstream=glibc",
		"pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19%2Bb1~x?arch=amd64&distro=debian-13&upstream=gcc-14%4014.2.0-19",
	} {
		if got := v.purl(&v.Components[i]); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestSPDX(t *testing.T) {
	v := inventory(t)
	b, err := v.SPDX(document)
	if err != nil {
		t.Fatal(err)
	}
	var doc spdxDocument
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if doc.Creation.Created != "2026-01-01T00:00:00Z" || doc.Packages[0].Checksums[0].Value != document.ImageSHA256 || !strings.HasSuffix(doc.Packages[0].Comment, "="+document.RootHash) {
		t.Errorf("%+v %+v", doc.Creation, doc.Packages[0])
	}
	checkSPDX(t, &doc)
	last := doc.Packages[3]
	if last.Supplier != "Organization: Debian GCC (gcc@example.org)" || last.SourceInfo != "built from source package gcc-14 14.2.0-19" {
		t.Errorf("%+v", last)
	}
	// Clause 7.9 on one file: SHA-1 of the SHA-1 of "abc" in hex, by sha1sum.
	if last.Verification.Value != "9ef2bdeea2b1bae79b9ddb930427d0b2c880bdac" {
		t.Errorf("verification code %s", last.Verification.Value)
	}
	if !bytes.Contains(b, []byte("library <of> C++ & more")) {
		t.Error("text is escaped")
	}
}

var spdxID = regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`)

// checkSPDX holds a document to rules of the specification that its schema does
// not have.
func checkSPDX(t *testing.T, doc *spdxDocument) {
	t.Helper()
	ids := map[string]bool{doc.ID: true}
	add := func(id string) {
		if ids[id] || !spdxID.MatchString(id) {
			t.Errorf("identifier %q: twice, or not of letters, digits, . and -", id)
		}
		ids[id] = true
	}
	extracted := map[string]bool{}
	for _, x := range doc.Extracted {
		if extracted[x.ID] || x.Text == "" {
			t.Errorf("licence %s twice or without text", x.ID)
		}
		extracted[x.ID] = true
	}
	used := map[string]bool{}
	for _, p := range doc.Packages {
		add(p.ID)
		if p.FilesAnalyzed != (p.Verification != nil) {
			t.Errorf("%s: files analyzed %t", p.ID, p.FilesAnalyzed)
		}
		for _, ref := range regexp.MustCompile(`LicenseRef-[A-Za-z0-9.-]+`).FindAllString(p.Declared, -1) {
			used[ref] = true
			if !extracted[ref] {
				t.Errorf("%s: %s is not explained", p.ID, ref)
			}
		}
	}
	if len(used) != len(extracted) {
		t.Errorf("%d licences explained, %d used", len(extracted), len(used))
	}
	contained := map[string]int{}
	for _, f := range doc.Files {
		add(f.ID)
		if len(f.Checksums) != 2 || f.Checksums[0].Algorithm != "SHA1" || len(f.Checksums[0].Value) != 40 || len(f.Checksums[1].Value) != 64 || !strings.HasPrefix(f.Name, "./") {
			t.Errorf("%+v", f)
		}
	}
	for _, r := range doc.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("%+v: of something that is not there", r)
		}
		if r.Type == "CONTAINS" {
			contained[r.To]++
		}
	}
	for id := range ids {
		if id != doc.ID && id != spdxRoot && contained[id] != 1 {
			t.Errorf("%s is contained in %d things", id, contained[id])
		}
	}
}

// The order of files does not count for the code, clause 7.9.
func TestVerificationCode(t *testing.T) {
	x, y := File{Package: "p", SHA1: "a9993e364706816aba3e25717850c26c9cd0d89d"}, File{Package: "p", SHA1: "da39a3ee5e6b4b0d3255bfef95601890afd80709"}
	// printf a9993e...da39a3... | sha1sum
	const want = "29d0dbdfff975c93e2d75e5024fe8b650ec847af"
	for _, files := range [][]File{{x, y}, {y, x}} {
		if got := (&Inventory{Files: files}).verificationCodes()["p"]; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestCycloneDX(t *testing.T) {
	v := inventory(t)
	b, err := v.CycloneDX(document)
	if err != nil {
		t.Fatal(err)
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(b), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if bom.SpecVersion != cdx.SpecVersion1_6 || bom.Metadata.Timestamp != "2026-01-01T00:00:00Z" || (*bom.Metadata.Component.Properties)[0].Value != document.RootHash {
		t.Errorf("%+v", bom.Metadata)
	}
	refs := map[string]bool{bom.Metadata.Component.BOMRef: true}
	files := 0
	var walk func(cs []cdx.Component)
	walk = func(cs []cdx.Component) {
		for _, c := range cs {
			if refs[c.BOMRef] {
				t.Errorf("%s twice", c.BOMRef)
			}
			refs[c.BOMRef] = true
			if c.Type == cdx.ComponentTypeFile {
				files++
			}
			if c.Components != nil {
				walk(*c.Components)
			}
		}
	}
	walk(*bom.Components)
	if files != len(v.Files) {
		t.Errorf("%d files, want %d", files, len(v.Files))
	}
	for _, d := range *bom.Dependencies {
		to := []string{d.Ref}
		if d.Dependencies != nil {
			to = append(to, *d.Dependencies...)
		}
		for _, to := range to {
			if !refs[to] {
				t.Errorf("dependency on %s, which is not there", to)
			}
		}
	}
}

// Equal inventories give equal bytes; whatever is in a document is in its
// identifier.
func TestSBOMIdentity(t *testing.T) {
	for name, encode := range map[string]func(*Inventory, Document) ([]byte, error){"spdx": (*Inventory).SPDX, "cyclonedx": (*Inventory).CycloneDX} {
		id := regexp.MustCompile(`urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
		seen := map[string]bool{}
		get := func(change func(*Inventory, *Document)) string {
			v, d := inventory(t), document
			change(&v, &d)
			b, err := encode(&v, d)
			if err != nil {
				t.Fatal(err)
			}
			again, err := encode(&v, d)
			if err != nil || !bytes.Equal(b, again) {
				t.Errorf("%s: twice, and different", name)
			}
			return id.FindString(string(b))
		}
		for _, change := range []func(*Inventory, *Document){
			func(*Inventory, *Document) {},
			func(v *Inventory, _ *Document) { v.Files[0].SHA256 = hex.EncodeToString(make([]byte, 32)) },
			func(v *Inventory, _ *Document) { v.Components[0].Version = "2" },
			func(_ *Inventory, d *Document) { d.Seed = "other" },
			func(_ *Inventory, d *Document) { d.RootHash = "" },
			func(_ *Inventory, d *Document) { d.Epoch++ },
		} {
			u := get(change)
			if u == "" || seen[u] {
				t.Errorf("%s: identifier %q", name, u)
			}
			seen[u] = true
		}
	}
}

func TestParty(t *testing.T) {
	for _, tt := range []struct{ in, name, address, spdx string }{
		{"Debian GCC <gcc@example.org>", "Debian GCC", "gcc@example.org", "Debian GCC (gcc@example.org)"},
		{"A Team <team+x@example.org>, ", "A Team", "team+x@example.org", "A Team (team+x@example.org)"},
		{"Only a Name", "Only a Name", "", "Only a Name"},
		{"Nobody <>", "Nobody", "", "Nobody"},
		{"Nobody <no address>", "Nobody", "", "Nobody"},
		{"Half <half@example.org", "Half", "half@example.org", "Half (half@example.org)"},
	} {
		name, address := party(tt.in)
		if name != tt.name || address != tt.address || spdxParty(tt.in) != tt.spdx {
			t.Errorf("%s: %q, %q, %q", tt.in, name, address, spdxParty(tt.in))
		}
	}
}
