package fat

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

const epoch = 1767225601 // 2026-01-01 00:00:01 UTC, an odd second

// random returns n bytes that compress badly and are the same every time.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// sample has names of every kind.
func sample(cluster int) []tree.Entry {
	var entries []tree.Entry
	add := func(name string, n int) {
		entries = append(entries, tree.File(name, 0o644, tree.Bytes(random(n))))
	}
	add("EFI/BOOT/BOOTX64.EFI", 100_000)
	add("EFI/BOOT/boot.cfg", 17)
	add("EFI/Linux/plinth-6.12.107+deb13-cloud-amd64.efi", 3*cluster)
	add("EFI/Linux/plinth-6.12.107+deb13-generic-amd64.efi", 3*cluster+1)
	add("loader/entries.srel", 5)
	add("loader/loader.conf", 0)
	add("exactly-thirtee", cluster)
	add("thirteen-char", cluster-1)
	add("a", cluster+1)
	add("LONG~1.TXT", 1) // what the next would be called first
	add("Long file name.txt", 2)
	add("Long file name 2.txt", 3)
	add("Straße 🌱.txt", 4)
	add(strings.Repeat("x", 255), 5)
	add(".profile", 6)
	add("many.dots.in.name", 7)
	for i := range 100 { // more than a cluster of entries
		add(fmt.Sprintf("many/file number %03d.bin", i), i)
	}
	return append(entries, tree.Dir("empty", 0o755), tree.Dir("deep/deeper/deepest", 0o755))
}

// create writes a volume into a file and returns its path.
func create(t testing.TB, size int64, entries []tree.Entry, p Params) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fat.img")
	w, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := Write(w, size, entries, p); err != nil {
		t.Fatal(err)
	}
	return path
}

// open reads a volume back.
func open(t testing.TB, path string) *FS {
	t.Helper()
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	fi, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(r, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// contains checks that the files of entries, and no others, are in f.
func contains(t testing.TB, f fs.FS, entries []tree.Entry) {
	t.Helper()
	files := 0
	for _, e := range entries {
		if e.Type() != tree.TypeFile {
			continue
		}
		files++
		got, err := fs.ReadFile(f, e.Path)
		if want := blob(t, e); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes (%v), want %d", e.Path, len(got), err, len(want))
		}
	}
	err := fs.WalkDir(f, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files--
		}
		return err
	})
	if err != nil || files != 0 {
		t.Errorf("walk: %v, %d files are missing", err, files)
	}
}

func blob(t testing.TB, e tree.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.Content.Copy(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const mib = 1 << 20

// sizes are volume sizes: the limits between cluster sizes, FAT16 and FAT32, and
// sizes where a FAT is full to the last entry or the volume ends in mid-cluster.
var sizes = []int64{
	2200 << 10, 8400 * 512, 8401 * 512, 5*mib + 512, 16 * mib, 16*mib + 512, 32 * mib, MinFAT32 - 512,
	MinFAT32, MinFAT32 + 512, 34 * mib, 64 * mib, 64*mib + 512*3, 65 * mib, 127*mib + 512*5, 260 * mib, 260*mib + 512, 261*mib + 512*7, 1 << 30,
}

func TestVolumes(t *testing.T) {
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			g, err := layout(size)
			if err != nil {
				t.Fatal(err)
			}
			// FAT spec: the number of clusters alone says what a volume is.
			if fat32 := g.clusters >= 65525; fat32 != (g.bits == 32) || g.clusters < 4085 {
				t.Errorf("FAT%d with %d clusters", g.bits, g.clusters)
			}
			if have := int64(g.fatSectors) * sectorSize * 8 / int64(g.bits); have < int64(g.clusters)+2 {
				t.Errorf("%d FAT entries for %d clusters", have, g.clusters)
			}
			entries := sample(g.clusterSize)
			path := create(t, size, entries, Params{VolumeID: 0x1234abcd, Label: "PLINTH", Epoch: epoch})
			f := open(t, path)
			if f.Bits != g.bits || f.VolumeID != 0x1234abcd || f.Label != "PLINTH" {
				t.Errorf("FAT%d, serial %#x, label %q", f.Bits, f.VolumeID, f.Label)
			}
			contains(t, f, entries)
			fsck(t, path)
		})
	}
}

// fsck asks fsck.vfat for a second opinion; any finding is a failure.
func fsck(t *testing.T, path string) {
	t.Helper()
	testenv.Need(t, "fsck.vfat")
	cmd := exec.Command(testenv.Tool("fsck.vfat"), "-n", path)
	cmd.Env = []string{"LC_ALL=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	if err != nil || bytes.Count(out, []byte("\n")) != 2 { // its version, and the number of files
		t.Errorf("fsck.vfat: %v\n%s", err, out)
	}
}

func TestEmptyVolumes(t *testing.T) {
	for _, size := range []int64{3 * mib, 64 * mib} {
		path := create(t, size, nil, Params{})
		contains(t, open(t, path), nil)
		fsck(t, path)
	}
}

// The label takes an entry of the root: here the first of its second cluster.
func TestLabel(t *testing.T) {
	var entries []tree.Entry
	for i := range 512 / entrySize {
		entries = append(entries, tree.File(fmt.Sprintf("F%d", i), 0, tree.Bytes(random(i))))
	}
	for _, label := range []string{"", "A B"} {
		path := create(t, MinFAT32, entries, Params{Label: label})
		f := open(t, path)
		if f.Label != label {
			t.Errorf("label is %q, want %q", f.Label, label)
		}
		contains(t, f, entries)
		fsck(t, path)
	}
}

// The volume is as full as it can be.
func TestFullVolume(t *testing.T) {
	for _, size := range []int64{20 * mib, 34 * mib} {
		g, err := layout(size)
		if err != nil {
			t.Fatal(err)
		}
		n := int(g.clusters) * g.clusterSize
		if g.bits == 32 {
			n -= g.clusterSize // the root's
		}
		entries := []tree.Entry{tree.File("full", 0, tree.Bytes(random(n)))}
		path := create(t, size, entries, Params{})
		contains(t, open(t, path), entries)
		fsck(t, path)
		entries[0] = tree.File("full", 0, tree.Bytes(random(n+1)))
		if err := Write(nowhere{}, size, entries, Params{}); err == nil || !strings.Contains(err.Error(), "clusters of") {
			t.Errorf("one byte too much: got %v", err)
		}
	}
}

type nowhere struct{}

func (nowhere) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }

// A second opinion: mtools and go-diskfs read the same bytes.
func TestOthersRead(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	entries := append(sample(512), tree.File("EFI/BOOT/GRTLARGE.EFI", 0, tree.Bytes(random(60*1000*1000))))
	// Neither knows of characters that take two units.
	entries = slices.DeleteFunc(entries, func(e tree.Entry) bool { return strings.Contains(e.Path, "🌱") })
	size, err := Size(entries)
	if err != nil {
		t.Fatal(err)
	}
	path := create(t, size, entries, Params{VolumeID: 7, Label: "ESP", Epoch: epoch})
	contains(t, open(t, path), entries)
	t.Run("fsck", func(t *testing.T) { fsck(t, path) })
	t.Run("go-diskfs", func(t *testing.T) {
		img, err := file.OpenFromPath(path, true)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		d, err := fat32.Read(img, size, 0, 512)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Type() != tree.TypeFile || e.Content.Size == 0 {
				continue
			}
			f, err := d.OpenFile("/"+e.Path, os.O_RDONLY)
			if err != nil {
				t.Errorf("%s: %v", e.Path, err)
				continue
			}
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, blob(t, e)) {
				t.Errorf("%s: %d bytes (%v), want %d", e.Path, len(got), err, e.Content.Size)
			}
		}
	})
	t.Run("mtools", func(t *testing.T) {
		testenv.Need(t, "mcopy")
		dir := t.TempDir()
		cmd := exec.Command(testenv.Tool("mcopy"), "-s", "-m", "-Q", "-i", path, "::*", dir)
		cmd.Env = []string{"LC_ALL=C.UTF-8", "TZ=UTC", "MTOOLS_LOWER_CASE=0"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		contains(t, os.DirFS(dir), entries)
		fi, err := os.Stat(filepath.Join(dir, "EFI/BOOT/GRTLARGE.EFI"))
		if want := time.Unix(epoch-1, 0); err != nil || !fi.ModTime().Equal(want) {
			t.Errorf("time is %v (%v), want %v", fi.ModTime(), err, want)
		}
	})
}

// What is stored follows from the arguments; a change of these bytes changes
// what every ESP is.
func TestWriteGolden(t *testing.T) {
	for _, tt := range []struct {
		size int64
		want string
	}{
		{3 * mib, "0d34de1392abaf1753ed27d33cda242a53405e29ded7a98476f661669b83a749"},
		{MinFAT32, "22c0f46823a7282f38c2e5eadff25e165e1f494dfe97872931e64d506803a33a"},
	} {
		entries := sample(512)
		var digests []string
		for range 2 {
			path := create(t, tt.size, entries, Params{VolumeID: 1, Label: "GOLD", Epoch: epoch})
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(b)
			digests = append(digests, hex.EncodeToString(sum[:]))
			for i, j := 0, len(entries)-1; i < j; i, j = i+1, j-1 { // order must not matter
				entries[i], entries[j] = entries[j], entries[i]
			}
		}
		if digests[0] != tt.want || digests[1] != tt.want {
			t.Errorf("%d bytes: sha256 is %s, want %s", tt.size, digests, tt.want)
		}
	}
}

// A fresh file is written only where there is something.
func TestWriteIsSparse(t *testing.T) {
	var end int64
	w := writerFunc(func(b []byte, off int64) { end = max(end, off+int64(len(b))) })
	if err := Write(w, 1<<40, []tree.Entry{tree.File("a", 0, tree.Bytes([]byte("x")))}, Params{}); err != nil {
		t.Fatal(err)
	}
	g, err := layout(1 << 40)
	if err != nil {
		t.Fatal(err)
	}
	if want := g.clusterOffset(3) + 1; end != want {
		t.Errorf("written up to %d, want %d", end, want)
	}
}

type writerFunc func(b []byte, off int64)

func (f writerFunc) WriteAt(b []byte, off int64) (int, error) { f(b, off); return len(b), nil }

func TestWriteRefuses(t *testing.T) {
	file := func(name string) tree.Entry { return tree.File(name, 0, tree.Bytes(nil)) }
	capable := file("a")
	capable.Xattrs = map[string][]byte{"security.capability": nil}
	var many, more []tree.Entry
	for i := range maxDirEntries {
		more = append(more, file(fmt.Sprintf("d/F%d", i)))
	}
	for i := range 513 {
		many = append(many, file(fmt.Sprintf("F%d", i)))
	}
	for _, tt := range []struct {
		name    string
		size    int64
		entries []tree.Entry
		p       Params
		want    string
	}{
		{"no size", 0, nil, Params{}, "too small"},
		{"small", 2 * mib, nil, Params{}, "FAT16 needs"},
		{"odd size", 3*mib + 1, nil, Params{}, "multiple of 512"},
		{"negative", -512, nil, Params{}, "multiple of 512"},
		{"huge", maxSize + 512, nil, Params{}, "at most"},
		{"symlink", mib * 3, []tree.Entry{tree.Symlink("a", "b")}, Params{}, "FAT holds"},
		{"device", mib * 3, []tree.Entry{tree.CharDev("a", 0, 1, 1)}, Params{}, "FAT holds"},
		{"hard link", mib * 3, []tree.Entry{file("a"), {Path: "b", Link: "a"}}, Params{}, "FAT holds"},
		{"xattr", mib * 3, []tree.Entry{capable}, Params{}, "FAT holds"},
		{"case", mib * 3, []tree.Entry{file("d/a"), file("d/A")}, Params{}, `names "A" and "a" differ only in case`},
		{"twice", mib * 3, []tree.Entry{file("a"), file("a")}, Params{}, "named twice"},
		{"colon", mib * 3, []tree.Entry{file("a:b")}, Params{}, "FAT allows"},
		{"backslash", mib * 3, []tree.Entry{file(`a\b`)}, Params{}, "FAT allows"},
		{"control", mib * 3, []tree.Entry{file("a\nb")}, Params{}, "FAT allows"},
		{"delete", mib * 3, []tree.Entry{file("a\x7fb")}, Params{}, "FAT allows"},
		{"dot at the end", mib * 3, []tree.Entry{file("a.")}, Params{}, "FAT allows"},
		{"space at the end", mib * 3, []tree.Entry{file("a ")}, Params{}, "FAT allows"},
		{"space at the start", mib * 3, []tree.Entry{file(" a")}, Params{}, "FAT allows"},
		{"UTF-8", mib * 3, []tree.Entry{file("a\xff")}, Params{}, `path "a\xff"`},
		{"long name", mib * 3, []tree.Entry{file(strings.Repeat("🌱", 128))}, Params{}, "255"},
		{"4 GiB", 8 << 30, []tree.Entry{tree.File("a", 0, tree.Blob{Size: 1 << 32})}, Params{}, "at most 4294967295"},
		{"root of FAT16", mib * 3, many, Params{}, "FAT16 has 512"},
		{"names", mib * 64, append(more, file("d/a")), Params{}, "65537 names"},
		{"directory", mib * 64, more, Params{}, "65538 directory entries"},
		{"long label", mib * 3, nil, Params{Label: "TWELVE CHARS"}, "11 characters"},
		{"label with a space first", mib * 3, nil, Params{Label: " ESP"}, "label"},
		{"negative blob", mib * 3, []tree.Entry{tree.File("a", 0, tree.Blob{Size: -1})}, Params{}, "size is -1"},
		{"label", mib * 3, nil, Params{Label: "esp"}, "label"},
		{"short blob", mib * 3, []tree.Entry{tree.File("d/a", 0, tree.Blob{Size: 1, Open: tree.Bytes(nil).Open})}, Params{}, "d/a: content has 0 bytes"},
	} {
		err := Write(nowhere{}, tt.size, tt.entries, tt.p)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

type full struct{ at int }

func (f *full) WriteAt(b []byte, _ int64) (int, error) {
	if f.at--; f.at < 0 {
		return 0, io.ErrShortWrite
	}
	return len(b), nil
}

func TestWriteErrors(t *testing.T) {
	for n := range 10 { // 4 boot and info sectors, 2 FATs, root, d, a, b
		w := &full{n}
		err := Write(w, 34*mib, []tree.Entry{tree.File("d/a", 0, tree.Bytes([]byte("1"))), tree.File("d/b", 0, tree.Bytes([]byte("1")))}, Params{})
		if err == nil || w.at != -1 {
			t.Errorf("write %d failed, but: %v, %d", n, err, w.at)
		}
	}
}

func TestSize(t *testing.T) {
	for _, n := range []int{0, 1, 30 * mib, 40*mib + 1, 300 * mib} {
		entries := []tree.Entry{tree.File("EFI/BOOT/BOOTX64.EFI", 0, tree.Blob{Size: int64(n)})}
		size, err := Size(entries)
		if err != nil || size%mib != 0 || size < MinFAT32 {
			t.Fatalf("%d bytes: %d, %v", n, size, err)
		}
		fits := func(size int64) bool {
			g, err := layout(size)
			if err != nil {
				t.Fatal(err)
			}
			nodes, err := plan(entries, true)
			if err != nil {
				t.Fatal(err)
			}
			return g.allocate(nodes) <= int64(g.clusters)
		}
		if !fits(size) || size > MinFAT32 && fits(size-mib) {
			t.Errorf("%d bytes: %d is not the smallest size", n, size)
		}
	}
}

func TestShortNames(t *testing.T) {
	names := []string{"BOOTX64.EFI", "boot.cfg", "Long file name.txt", "Long file name 2.txt", "LONGFI~2.TXT", "a.b.c", ".profile", "ümlaut", "no ext", "x.conf", "+,;=[].a"}
	want := []string{"BOOTX64 EFI", "BOOT    CFG", "LONGFI~1TXT", "LONGFI~3TXT", "LONGFI~2TXT", "AB~1    C  ", "PROFIL~1   ", "_MLAUT~1   ", "NOEXT~1    ", "X~1     CON", "______~1A  "}
	got := shorten(names)
	for i := range names {
		if string(got[i][:]) != want[i] {
			t.Errorf("%q: got %q, want %q", names[i], got[i], want[i])
		}
	}
}

func TestManyShortNames(t *testing.T) {
	var names []string
	for i := range 20000 {
		names = append(names, fmt.Sprintf("the same start %d", i))
	}
	shorts := shorten(names)
	seen := map[[11]byte]bool{}
	for i, s := range shorts {
		if seen[s] {
			t.Fatalf("%q: %q is taken", names[i], s)
		}
		seen[s] = true
	}
}

func TestTimes(t *testing.T) {
	for _, tt := range []struct {
		in   int64
		want string
		rest uint8
	}{
		{-1 << 62, "1980-01-01T00:00:00Z", 0},
		{0, "1980-01-01T00:00:00Z", 0},
		{315532799, "1980-01-01T00:00:00Z", 0},
		{315532801, "1980-01-01T00:00:00Z", 100},
		{1709251199, "2024-02-29T23:59:58Z", 100},
		{4354819199, "2107-12-31T23:59:58Z", 100},
		{4354819200, "2107-12-31T23:59:58Z", 100},
		{1 << 62, "2107-12-31T23:59:58Z", 100},
	} {
		date, clock, rest := encodeTime(tt.in)
		if got := decodeTime(date, clock).Format(time.RFC3339); got != tt.want || rest != tt.rest {
			t.Errorf("%d: got %s and %d, want %s and %d", tt.in, got, rest, tt.want, tt.rest)
		}
	}
}

func TestStructSizes(t *testing.T) {
	for _, tt := range []struct {
		v    any
		want int
	}{{bootSector{}, 36}, {bootSector32{}, 28}, {bootSectorEnd{}, 26}, {infoSector{}, 512}, {dirEntry{}, 32}, {longEntry{}, 32}} {
		if got := binary.Size(tt.v); got != tt.want {
			t.Errorf("%T has %d bytes, want %d", tt.v, got, tt.want)
		}
	}
}

func TestIsAnFS(t *testing.T) {
	f := open(t, create(t, 40*mib, sample(512), Params{}))
	if err := fstest.TestFS(f, "EFI/BOOT/BOOTX64.EFI", "many/file number 099.bin", "empty", "deep/deeper/deepest"); err != nil {
		t.Error(err)
	}
}
