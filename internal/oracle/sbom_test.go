package oracle

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdxlib"
	"github.com/spdx/tools-golang/utils"
	"github.com/xeipuuv/gojsonschema"

	"github.com/plinth-os/plinth/builder/rootfs"
	"github.com/plinth-os/plinth/internal/tree"
)

// billOfMaterials is a small tree with all that a bill of materials can say.
func billOfMaterials(t *testing.T) (*rootfs.Inventory, rootfs.Document) {
	t.Helper()
	file := func(name, content string) tree.Entry {
		return tree.File(name, 0o644, tree.Bytes([]byte(content)))
	}
	copyright := "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+ or Odd\n\nLicense: Odd\n Odd text.\n"
	control := "Package: libx++\nSource: x (1:2)\nVersion: 1:2+b1\nMaintainer: Some One <one@example.org>\nHomepage: https://example.org/\nDepends: base-files\nDescription: a <library>\n"
	tr, err := rootfs.Build([]rootfs.Package{
		{Name: "libx++", Version: "1:2+b1", Arch: "amd64", SHA256: [32]byte{1}, Control: map[string][]byte{"control": []byte(control)},
			Entries: []tree.Entry{file("usr/lib/a", "a"), file("usr/lib/b", "b"), file("usr/share/doc/libx++/copyright", copyright)}},
		{Name: "base-files", Version: "13", Arch: "amd64", Entries: []tree.Entry{file("etc/os-release", "ID=debian\nVERSION_ID=13\n")}},
	}, []tree.Entry{file("etc/mine", "mine")}, rootfs.Params{})
	if err != nil {
		t.Fatal(err)
	}
	return &tr.Inventory, rootfs.Document{Name: "oracle", Epoch: 1767225600, Seed: "seed", Tool: "plinth-1", ImageFile: "root.erofs",
		ImageSHA256: strings.Repeat("ab", 32), RootHash: strings.Repeat("cd", 32)}
}

// TestSPDX reads ours with the SPDX project's library, which checks that what
// relationships name is there, and makes the verification code itself.
func TestSPDX(t *testing.T) {
	v, d := billOfMaterials(t)
	b, err := v.SPDX(d)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := spdxjson.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	described, err := spdxlib.GetDescribedPackageIDs(doc)
	if err != nil || len(described) != 1 || described[0] != "Root" {
		t.Errorf("describes %v, %v", described, err)
	}
	if len(doc.Packages) != 3 || len(doc.Files) != len(v.Files) || doc.SPDXVersion != "SPDX-2.3" || doc.CreationInfo.Created != "2026-01-01T00:00:00Z" {
		t.Fatalf("%d packages, %d files, %s %+v", len(doc.Packages), len(doc.Files), doc.SPDXVersion, doc.CreationInfo)
	}
	files := map[spdx.ElementID]*spdx.File{}
	for _, f := range doc.Files {
		files[f.FileSPDXIdentifier] = f
	}
	for _, p := range doc.Packages[1:] {
		var own []*spdx.File
		for _, r := range doc.Relationships {
			if f := files[r.RefB.ElementRefID]; f != nil && r.RefA.ElementRefID == p.PackageSPDXIdentifier && r.Relationship == "CONTAINS" {
				own = append(own, f)
			}
		}
		code, err := utils.GetVerificationCode(own, "")
		if err != nil || p.PackageVerificationCode == nil || code.Value != p.PackageVerificationCode.Value {
			t.Errorf("%s: verification code %+v, want %+v, %v", p.PackageName, p.PackageVerificationCode, code, err)
		}
	}
	x := doc.Packages[2]
	if x.PackageName != "libx++" || x.PackageSupplier.SupplierType != "Organization" || x.PackageSupplier.Supplier != "Some One (one@example.org)" ||
		x.PackageExternalReferences[0].Locator != "pkg:deb/debian/libx%2B%2B@1:2%2Bb1?arch=amd64&distro=debian-13&upstream=x%401:2" ||
		!strings.HasPrefix(x.PackageLicenseDeclared, "GPL-2.0-or-later OR LicenseRef-Odd-") || len(doc.OtherLicenses) != 1 {
		t.Errorf("%+v", x)
	}
}

// TestCycloneDXSchema holds ours to the published schema.
func TestCycloneDXSchema(t *testing.T) {
	v, d := billOfMaterials(t)
	b, err := v.CycloneDX(d)
	if err != nil {
		t.Fatal(err)
	}
	schema := cycloneDXSchema(t)
	check := func(b []byte) int {
		r, err := schema.Validate(gojsonschema.NewBytesLoader(b))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Errors() {
			t.Log(e)
		}
		return len(r.Errors())
	}
	if check(b) > 0 {
		t.Error("not as the schema has it")
	}
	// The check works: a component without a name.
	var bom map[string]any
	if err := json.Unmarshal(b, &bom); err != nil {
		t.Fatal(err)
	}
	delete(bom["components"].([]any)[0].(map[string]any), "name")
	if b, err = json.Marshal(bom); err != nil || check(b) == 0 {
		t.Error("the schema accepts anything")
	}
}

// cycloneDXSchema is the published one, from the module that has it for its own
// tests.
func cycloneDXSchema(t *testing.T) *gojsonschema.Schema {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "schema")
	loader := gojsonschema.NewSchemaLoader()
	for name, as := range map[string]string{"spdx.schema.json": "spdx.schema.json", "jsf-0.82.schemax.json": "jsf-0.82.schema.json"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := loader.AddSchema("http://cyclonedx.org/schema/"+as, gojsonschema.NewBytesLoader(text)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "bom-1.6.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	schema, err := loader.Compile(gojsonschema.NewBytesLoader(text))
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// TestGivenBillsOfMaterials holds those of an image, which PLINTH_SBOM names the
// directory of, to library and schema.
func TestGivenBillsOfMaterials(t *testing.T) {
	dir := os.Getenv("PLINTH_SBOM")
	if dir == "" {
		t.Skip("PLINTH_SBOM names no directory")
	}
	f, err := os.Open(filepath.Join(dir, "sbom.spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	doc, err := spdxjson.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "sbom.cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := cycloneDXSchema(t).Validate(gojsonschema.NewBytesLoader(b))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range r.Errors() {
		t.Error(e)
	}
}
