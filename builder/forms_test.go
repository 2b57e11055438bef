package builder

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/profiles"
)

// lay writes the artefacts of an image to a folder.
func (s *site) lay(m *Manifest) string {
	s.t.Helper()
	dir := s.t.TempDir()
	for _, a := range m.Artefacts {
		b, err := s.Store.ReadFile(a.Digest)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, a.Name), b, 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What a build writes is what the image's disk is converted to later, and other
// seeds make other identifiers.
func TestForms(t *testing.T) {
	s := newSite(t)
	build := func(set ...string) (*Manifest, string) {
		m, err := Build(t.Context(), s.spec(s.profile("", set...)), Options{Store: s.Store, Workplace: s.Workplace})
		if err != nil {
			t.Fatal(err)
		}
		return m, s.lay(m)
	}
	plain, plainDir := build()
	m, dir := build(`outputs.kinds=["vmdk", "qcow2", "vhd"]`)
	if plain.Artefact(DiskName) != m.Artefact(DiskName) {
		t.Error("a form of whole MiB makes another disk")
	}
	raw := mustRead(t, filepath.Join(dir, DiskName))
	disk := io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw)))
	for _, f := range Forms {
		var b bytes.Buffer
		err := f.Convert(&b, m, disk)
		if f.Name == "gce" {
			var size *FormSizeError
			if !errors.As(err, &size) || size.Multiple != 1<<30 || !errors.Is(err, profiles.ErrUnsupported) || !strings.Contains(size.Hint(), "outputs.kinds") || b.Len() > 0 {
				t.Errorf("gce: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, filepath.Join(dir, f.File)); !bytes.Equal(got, b.Bytes()) {
			t.Errorf("%s: build wrote %d bytes, Convert %d others", f.Name, len(got), b.Len())
		}
		if _, err := os.Stat(filepath.Join(plainDir, f.File)); err == nil {
			t.Errorf("%s was not asked for", f.File)
		}
	}
	_, other := build(`outputs.kinds=["vhd"]`, "seed=another")
	const id = 512 - 68 // the unique identifier in a VHD's footer, from its end
	a, b := mustRead(t, filepath.Join(dir, "image.vhd")), mustRead(t, filepath.Join(other, "image.vhd"))
	if bytes.Equal(a[len(a)-id:][:16], b[len(b)-id:][:16]) {
		t.Error("two VHDs have one identifier")
	}
}

// A disk for Google has whole GiB, and its backup table at the end of them.
func TestFormOfWholeGiB(t *testing.T) {
	if testing.Short() {
		t.Skip("hashes and packs 1 GiB")
	}
	s := newSite(t)
	p := s.profile("", `outputs.kinds=["gce", "raw"]`)
	results, err := s.run(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := results["disk"]["image.raw"]
	f, err := s.Store.Open(r)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(f, r.Size)
	if err != nil || r.Size != 1<<30 || table.LastUsable != 1<<21-34 {
		t.Errorf("%d bytes, %+v, %v", r.Size, table, err)
	}
	if n := results["forms"]["image.tar.gz"].Size; n < 1<<16 || n > 64<<20 {
		t.Errorf("image.tar.gz has %d bytes", n)
	}
}

func TestFindForm(t *testing.T) {
	for _, f := range Forms {
		if got, err := FindForm(f.Name); err != nil || got.File != f.File {
			t.Errorf("%s: %+v, %v", f.Name, got, err)
		}
		if len(cloudsOf(f.Name)) == 0 {
			t.Errorf("%s: nobody takes it", f.Name)
		}
		found := false
		for _, a := range artefacts {
			found = found || a.step == "forms" && a.output == f.File && a.name == f.File && a.optional
		}
		if !found {
			t.Errorf("%s: is no artefact", f.File)
		}
	}
	if _, err := FindForm("vdi"); err == nil || !strings.Contains(err.Error(), "want one of qcow2, vhd, vmdk, gce") {
		t.Error(err)
	}
}
