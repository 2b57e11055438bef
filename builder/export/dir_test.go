package export

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/testenv"
)

// fixture is a store with two artefacts, and the folder that they go to.
type fixture struct {
	*testing.T
	store    *cas.Store
	manifest *builder.Manifest
	dir      string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t, st, &builder.Manifest{Schema: 1, Name: "demo", Lock: &source.Lock{}, Profile: []byte("{}")}, filepath.Join(t.TempDir(), "out", "demo")}
	f.artefact("image.raw", strings.Repeat("disk", 1<<20))
	f.artefact("cmdline", "quiet")
	return f
}

// artefact adds one, or changes it.
func (f *fixture) artefact(name, content string) {
	f.Helper()
	r, err := f.store.Put([]byte(content))
	if err != nil {
		f.Fatal(err)
	}
	f.manifest.Artefacts = slices.DeleteFunc(f.manifest.Artefacts, func(a builder.Artefact) bool { return a.Name == name })
	f.manifest.Artefacts = append(f.manifest.Artefacts, builder.Artefact{Name: name, Ref: r})
}

func (f *fixture) export() error {
	return Dir(context.Background(), f.store, f.manifest, Provenance{Schema: 1, Time: "now"}, f.dir)
}

func (f *fixture) mustExport() {
	f.Helper()
	if err := f.export(); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) read(name string) string {
	f.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		f.Fatal(err)
	}
	return string(b)
}

// names lists the folder.
func (f *fixture) names() string {
	f.Helper()
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		f.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

const all = "SHA256SUMS cmdline image.raw manifest.json provenance.json"

func TestDir(t *testing.T) {
	f := newFixture(t)
	f.mustExport()
	if got := f.names(); got != all {
		t.Errorf("got %s, want %s", got, all)
	}
	if f.read("cmdline") != "quiet" || f.read("image.raw") != strings.Repeat("disk", 1<<20) {
		t.Error("other content")
	}
	if sums := f.read(SumsName); strings.Count(sums, "\n") != 3 || strings.Contains(sums, ProvenanceName) {
		t.Errorf("SHA256SUMS:\n%s", sums)
	}
	for _, name := range strings.Fields(all) {
		if fi, err := os.Stat(filepath.Join(f.dir, name)); err != nil || fi.Mode() != 0o644 {
			t.Errorf("%s: %v, %v", name, fi.Mode(), err)
		}
	}
}

// The list is what the tool that reads such lists expects.
func TestSumsTool(t *testing.T) {
	testenv.Need(t, "sha256sum")
	f := newFixture(t)
	f.mustExport()
	cmd := exec.Command("sha256sum", "--check", "--strict", SumsName)
	cmd.Dir = f.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSameBytesStayUntouched(t *testing.T) {
	f := newFixture(t)
	f.mustExport()
	stat := func(name string) os.FileInfo {
		fi, err := os.Stat(filepath.Join(f.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return fi
	}
	disk, cmdline := stat("image.raw"), stat("cmdline")
	f.artefact("cmdline", "loud")
	f.mustExport()
	if !os.SameFile(disk, stat("image.raw")) || !stat("image.raw").ModTime().Equal(disk.ModTime()) {
		t.Error("image.raw was written again")
	}
	if os.SameFile(cmdline, stat("cmdline")) || f.read("cmdline") != "loud" {
		t.Error("cmdline is the old one")
	}
}

// A file that somebody changed is written again, also when its size is the same.
func TestChangedFileIsMended(t *testing.T) {
	f := newFixture(t)
	f.mustExport()
	for _, content := range []string{"quit!", "quiet and more", ""} {
		if err := os.WriteFile(filepath.Join(f.dir, "cmdline"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		f.mustExport()
		if got := f.read("cmdline"); got != "quiet" {
			t.Errorf("%q became %q", content, got)
		}
	}
}

// While the folder changes there is no SHA256SUMS in it, and a damaged blob does
// not get there.
func TestDamagedBlob(t *testing.T) {
	f := newFixture(t)
	f.mustExport()
	f.artefact("cmdline", "loud")
	r := f.manifest.Artefacts[1].Ref
	hex := r.Digest.String()
	if err := os.WriteFile(filepath.Join(f.store.Dir(), "blobs", "sha256", hex[:2], hex), []byte("laud"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.store, _ = cas.Open(f.store.Dir()) // as the next process finds it
	var damaged *cas.DamagedError
	if err := f.export(); !errors.As(err, &damaged) || !strings.HasPrefix(err.Error(), "cmdline: ") {
		t.Errorf("got %v", err)
	}
	if f.read("cmdline") != "quiet" || f.read(SumsName) != "" {
		t.Errorf("cmdline %q, SHA256SUMS %q", f.read("cmdline"), f.read(SumsName))
	}
	if f.store.Has(r.Digest) {
		t.Error("the damaged blob is still in the store")
	}
	f.artefact("cmdline", "loud")
	f.mustExport()
	if f.read("cmdline") != "loud" || f.names() != all {
		t.Errorf("cmdline %q in %s", f.read("cmdline"), f.names())
	}
}

// What a killed process left is removed; what is a user's stays.
func TestLeftovers(t *testing.T) {
	f := newFixture(t)
	f.mustExport()
	for _, name := range []string{".image.raw.plinth-tmp-1", "notes", ".hidden"} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f.mustExport()
	if got, want := f.names(), ".hidden "+strings.Replace(all, "manifest.json", "manifest.json notes", 1); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A disk in another form goes when the image has become another one: it is not of
// that. Beside the image that it was made of it stays.
func TestOldForms(t *testing.T) {
	f := newFixture(t)
	f.mustExport()
	path := filepath.Join(f.dir, "image.vhd")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.mustExport()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	f.manifest.Epoch++
	f.mustExport()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the form of another image: %v", err)
	}
}

// A disk is mostly holes, and stays so.
func TestHoles(t *testing.T) {
	f := newFixture(t)
	const size = 64 << 20
	for name, data := range map[string]map[int64]string{
		"empty": {}, "start": {0: "x"}, "end": {size - 1: "x"}, "middle": {20 << 20: strings.Repeat("disk", 3<<20), 50 << 20: "x"},
	} {
		w, err := f.store.Create()
		if err != nil {
			t.Fatal(err)
		}
		for at, text := range data {
			if _, err := w.WriteAt([]byte(text), at); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.File().Truncate(size); err != nil {
			t.Fatal(err)
		}
		r, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.manifest.Artefacts = []builder.Artefact{{Name: "disk", Ref: r}}
		f.mustExport()
		got := f.read("disk")
		if cas.Sum([]byte(got)) != r.Digest {
			t.Errorf("%s: another content", name)
		}
		var st, blob unix.Stat_t
		hex := r.Digest.String()
		if err := errors.Join(unix.Stat(filepath.Join(f.dir, "disk"), &st), unix.Stat(filepath.Join(f.store.Dir(), "blobs", "sha256", hex[:2], hex), &blob)); err != nil {
			t.Fatal(err)
		}
		if blob.Blocks*512 >= size {
			testenv.Missing(t, "sparse", "the file system makes no holes")
		}
		if st.Blocks*512 > 16<<20 {
			t.Errorf("%s: %d bytes on the disk, %d in the store", name, st.Blocks*512, blob.Blocks*512)
		}
	}
}

func TestCanceled(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := Dir(ctx, f.store, f.manifest, Provenance{}, f.dir)
	if !errors.Is(err, context.Canceled) || f.names() != "" {
		t.Errorf("%v, %s", err, f.names())
	}
	var b bytes.Buffer
	if err := copyContext(ctx, &b, strings.NewReader("x")); !errors.Is(err, context.Canceled) || b.Len() > 0 {
		t.Errorf("copied %d bytes, %v", b.Len(), err)
	}
}
