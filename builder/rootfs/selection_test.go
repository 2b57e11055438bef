package rootfs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/plinth-os/plinth/internal/tree"
)

func TestSelection(t *testing.T) {
	names := []string{".", "usr", "usr/bin", "usr/bin/kata-agent", "usr/bin/other", "usr/lib/a", "bin/x"}
	for _, c := range []struct {
		patterns []string
		strip    int
		to       string
		want     string
	}{
		{nil, 0, "", "usr usr/bin usr/bin/kata-agent usr/bin/other usr/lib/a bin/x"},
		{nil, 2, "/", "kata-agent other a"},
		{[]string{"/usr/bin/kata-agent"}, 0, "", "usr/bin/kata-agent"},
		{[]string{"/usr/bin/kata-agent"}, 2, "/usr/local/bin", "usr/local/bin/kata-agent"},
		{[]string{"/usr/bin"}, 1, "/opt/", "opt/bin opt/bin/kata-agent opt/bin/other"},
		{[]string{"/usr/*/k*", "/**/a"}, 0, "", "usr/bin/kata-agent usr/lib/a"},
		{[]string{"/bin"}, 0, "", "bin bin/x"}, // where the archive has it, not /usr/bin
	} {
		s, err := NewSelection(c.patterns, c.strip, c.to)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range append([]string{"bin"}, names...) {
			if to, ok := s.Place(name); ok && (name != "bin" || len(c.patterns) > 0) {
				got = append(got, to)
			}
		}
		if strings.Join(got, " ") != c.want || s.Check() != nil {
			t.Errorf("%q strip %d to %q: got %q, %v, want %q", c.patterns, c.strip, c.to, got, s.Check(), c.want)
		}
	}
	if _, err := NewSelection([]string{"/[a"}, 0, ""); err == nil || !strings.Contains(err.Error(), `"/[a"`) {
		t.Errorf("bad pattern: %v", err)
	}
	s, err := NewSelection([]string{"/usr", "/none"}, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	s.Place("usr")
	if err := s.Check(); err == nil || !strings.Contains(err.Error(), "/none: there is no such path") {
		t.Errorf("pattern without use: %v", err)
	}
}

// layer is what comes from a layer of an image.
func layer(name string, entries ...tree.Entry) Package {
	digest := [32]byte{0xab, 0xcd}
	return Package{Name: name, Version: fmt.Sprintf("sha256:%x", digest), SHA256: digest, PURL: GenericPURL(name, digest), Entries: entries}
}

func TestLayerInTree(t *testing.T) {
	odd := func(e *tree.Entry) { e.UID, e.GID, e.Mode = 1001, 1001, tree.TypeDir|0o700 }
	l := layer("kata_agent", with(tree.Dir("bin", 0), odd), with(tree.Dir("opt", 0), odd), f("bin/kata-agent", "agent"), f("opt/own", "x"))
	for _, pkgs := range [][]Package{{l, deb("dash", tree.Dir("usr/bin", 0o755), f("usr/bin/dash", "sh"))}, {deb("zsh", tree.Dir("bin", 0o755)), l}} {
		got := mustBuild(t, pkgs, nil, Params{})
		if content(t, got, "usr/bin/kata-agent") != "agent" {
			t.Error("no /usr/bin/kata-agent")
		}
		// A directory that a package has, too, is the package's.
		if e := entry(t, got.Entries, "usr/bin"); e.Mode != tree.TypeDir|0o755 || e.UID != 0 {
			t.Errorf("/usr/bin: %+v", e)
		}
		if e := entry(t, got.Entries, "opt"); e.Mode != tree.TypeDir|0o700 || e.UID != 1001 {
			t.Errorf("/opt: %+v", e)
		}
	}
	for _, c := range []struct {
		pkgs []Package
		say  string
	}{
		{[]Package{l, deb("other", f("usr/bin/kata-agent", "another"))}, "packages kata_agent and other have different files by this name"},
		{[]Package{layer("a", f("init", "x"))}, "rootfs: package a: /init belongs to the agent"},
		{[]Package{layer("a", f("lib/plinth/agent", "x"))}, "/usr/lib/plinth/agent belongs to the agent"},
		{[]Package{deb("a", f("etc/plinth/agent.json", "x"))}, "/etc/plinth/agent.json belongs to the agent"},
		{[]Package{layer("a", tree.Symlink("x", "/usr/lib"), f("x/plinth/agent", "x"))}, "/usr/lib/plinth/agent belongs to the agent"},
		{[]Package{layer("a", tree.Symlink("usr/lib", "/opt/lib"), f("opt/lib/x", "x"))}, "/usr/lib belongs to the agent"},
		{[]Package{layer("a", tree.Symlink("etc", "/opt/etc"))}, "/etc belongs to the agent"},
	} {
		if _, err := Build(c.pkgs, nil, Params{}); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("got %v, want %q", err, c.say)
		}
	}
	// The package decides over the directory, whatever the layers are called.
	for _, names := range [][2]string{{"aaa", "aab"}, {"zzz", "zzy"}} {
		other := layer(names[1], tree.Dir("usr/share", 0o711))
		mustBuild(t, []Package{layer(names[0], tree.Dir("usr/share", 0o700)), other, deb("base-files", tree.Dir("usr/share", 0o755))}, nil, Params{})
		mustBuild(t, []Package{layer(names[0], tree.Dir("usr/share", 0o700)), other, deb("mmm", tree.Dir("usr/share", 0o755))}, nil, Params{})
	}
	mustBuild(t, []Package{layer("a", f("init.d/x", "x"), f("usr/lib/plinth-x", "x"))}, nil, Params{})
}

// A layer, and a file from an address, are components of the bills of materials.
func TestLayerInSBOM(t *testing.T) {
	tr := mustBuild(t, []Package{layer("kata_agent", f("usr/bin/kata-agent", "agent")), deb("dash", f("usr/bin/dash", "sh"))},
		[]tree.Entry{f("usr/bin/pinned", "pinned"), f("usr/bin/mine", "mine")}, Params{})
	v := tr.Inventory
	digest := entry(t, tr.Entries, "usr/bin/pinned").Content.Digest
	v.Name(Component{Name: "/usr/bin/pinned", Version: "v", SHA256: fmt.Sprintf("%x", digest), PURL: GenericPURL("/usr/bin/pinned", digest)})
	v.Name(Component{Name: "/usr/bin/gone", SHA256: strings.Repeat("0", 64)})

	zeros := strings.Repeat("0", 60)
	want := []string{
		fmt.Sprintf("/usr/bin/pinned pkg:generic/usr/bin/pinned@sha256:%x", digest),
		"dash pkg:deb/debian/dash@1?arch=amd64",
		"kata_agent pkg:generic/kata_agent@sha256:abcd" + zeros,
	}
	for i, c := range v.Components {
		if got := c.Name + " " + v.purl(&v.Components[i]); len(v.Components) != len(want) || got != want[i] {
			t.Errorf("component %s, want %s", got, want[min(i, len(want)-1)])
		}
	}
	for _, file := range v.Files {
		if owner := map[string]string{"usr/bin/pinned": "/usr/bin/pinned", "usr/bin/mine": "", "usr/bin/kata-agent": "kata_agent"}[file.Path]; strings.HasPrefix(file.Path, "usr/bin/") && file.Path != "usr/bin/dash" && file.Package != owner {
			t.Errorf("%s is of %q", file.Path, file.Package)
		}
	}

	b, err := v.SPDX(document)
	if err != nil {
		t.Fatal(err)
	}
	var doc spdxDocument
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	checkSPDX(t, &doc)
	for _, p := range doc.Packages[1:] {
		if (p.SourceInfo != "") != (p.Name == "dash") {
			t.Errorf("%s: source info %q", p.Name, p.SourceInfo)
		}
	}
	if doc.Packages[3].Checksums[0].Value != "abcd"+zeros || doc.Packages[3].ID != "SPDXRef-Package-kata.5f.agent" {
		t.Errorf("%+v", doc.Packages[3])
	}

	if b, err = v.CycloneDX(document); err != nil {
		t.Fatal(err)
	}
	bom := new(cdx.BOM)
	if err := cdx.NewBOMDecoder(bytes.NewReader(b), cdx.BOMFileFormatJSON).Decode(bom); err != nil {
		t.Fatal(err)
	}
	for _, c := range *bom.Components {
		if c.Name == "kata_agent" && (c.Type != cdx.ComponentTypeApplication || c.PackageURL != want[2][len("kata_agent "):] || len(*c.Components) != 1) {
			t.Errorf("%+v", c)
		}
	}
}
