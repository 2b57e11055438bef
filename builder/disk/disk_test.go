package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	diskfs "github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"

	"github.com/plinth-os/plinth/internal/fat"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

const mib = 1 << 20

// sample returns a disk with an ESP and a root that ends in mid-MiB.
func sample(t testing.TB) Disk {
	t.Helper()
	uki := bytes.Repeat([]byte("not really a UKI\n"), 100_000)
	esp, err := ESP([]tree.Entry{tree.File(BootPath, 0o644, tree.Bytes(uki))}, ESPParams{Seed: "seed", Digest: []byte("digest"), Epoch: 1767225600})
	if err != nil {
		t.Fatal(err)
	}
	root := Partition{
		Type: TypeRoot, ID: ID("seed", "root partition"), Name: "root", Attributes: AttrReadOnly | AttrGrowFS, Size: 3*mib + 5,
		Content: func(w io.WriterAt) error {
			_, err := w.WriteAt([]byte("end"), 3*mib+5-3)
			return err
		},
	}
	return Disk{ID: ID("seed", "disk", []byte("digest")), Partitions: []Partition{esp, root}}
}

func create(t testing.TB, d Disk) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := Write(f, d); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestWrite(t *testing.T) {
	d := sample(t)
	f := create(t, d)
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	want, err := d.Layout()
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() != int64(want.Sectors)*512 || fi.Size() != (1+33+4+1)*mib {
		t.Errorf("size is %d, layout has %d sectors", fi.Size(), want.Sectors)
	}
	got, err := gpt.Read(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for i, p := range got.Partitions {
		if p.First%2048 != 0 {
			t.Errorf("partition %d starts at LBA %d, not at a whole MiB", i, p.First)
		}
	}
	esp := got.Partitions[0]
	size := int64(esp.Last-esp.First+1) * 512
	v, err := fat.Open(io.NewSectionReader(f, int64(esp.First)*512, size), size)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := fs.ReadFile(v, BootPath); err != nil || len(b) != 1_700_000 || v.Bits != 32 {
		t.Errorf("%s: %d bytes, %v; FAT%d", BootPath, len(b), err, v.Bits)
	}
	end := make([]byte, 3)
	if _, err := f.ReadAt(end, int64(got.Partitions[1].First)*512+3*mib+5-3); err != nil || string(end) != "end" {
		t.Errorf("end of root is %q (%v)", end, err)
	}
}

// A disk that is to be a multiple of something ends with its backup table there,
// and its partitions lie where they lay.
func TestMultiple(t *testing.T) {
	small, err := (&Disk{ID: sample(t).ID, Partitions: sample(t).Partitions}).Layout()
	if err != nil {
		t.Fatal(err)
	}
	for multiple, want := range map[int64]int64{0: 39 * mib, mib: 39 * mib, 13 * mib: 39 * mib, 64 * mib: 64 * mib, 1 << 30: 1 << 30} {
		d := sample(t)
		d.Multiple = multiple
		f := create(t, d)
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		table, err := gpt.Read(f, fi.Size())
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() != want || int64(table.Sectors)*512 != want || table.LastUsable != uint64(want/512)-34 {
			t.Errorf("a multiple of %d: %d bytes, %d sectors, usable to %d; want %d bytes", multiple, fi.Size(), table.Sectors, table.LastUsable, want)
		}
		if diff := cmp.Diff(small.Partitions, table.Partitions); diff != "" {
			t.Errorf("a multiple of %d: %s", multiple, diff)
		}
	}
}

// A change of these bytes changes PCR 5 of every image.
func TestWriteGolden(t *testing.T) {
	const want = "dd88dae55228ddeca08a5a9b43d0487bfd16515b24e8a27a192e0e518dfefac1"
	for range 2 {
		h := sha256.New()
		if _, err := io.Copy(h, create(t, sample(t))); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != want {
			t.Errorf("sha256 is %s, want %s", got, want)
		}
	}
}

func TestWriteIsSparse(t *testing.T) {
	f := create(t, sample(t))
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		testenv.Missing(t, "sparse", "no block count")
	}
	// 1.7 MB of file, two FATs of 14 kB, the tables; some file systems have no holes.
	if used := st.Blocks * 512; used > 2*mib {
		if used >= fi.Size() {
			testenv.Missing(t, "sparse", "the file system makes no holes")
		}
		t.Errorf("%d bytes used", used)
	}
}

func TestSgdisk(t *testing.T) {
	testenv.Need(t, "sgdisk")
	f := create(t, sample(t))
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(testenv.Tool("sgdisk"), append(args, f.Name())...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := run("-v"); !strings.Contains(out, "No problems found") || strings.Contains(out, "Caution") || strings.Contains(out, "Warning") {
		t.Errorf("sgdisk -v:\n%s", out)
	}
	out := run("-i", "2")
	for _, want := range []string{
		strings.ToUpper(TypeRoot.String()) + " (Linux x86-64 root (/))",
		strings.ToUpper(ID("seed", "root partition").String()),
		"First sector: 69632 (at 34.0 MiB)",
		"Last sector: 77823",
		"Attribute flags: 1800000000000000",
		"Partition name: 'root'",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("sgdisk -i 2: want %q in\n%s", want, out)
		}
	}
}

func TestLastCHS(t *testing.T) {
	for lba, want := range map[uint64][3]byte{
		0: {0, 1, 0}, 62: {0, 63, 0}, 63: {1, 1, 0}, 79871: {0xf7, 0x33, 4}, // the last by sgdisk 1.0.9
		1024*255*63 - 1: {254, 0xff, 0xff}, 1024 * 255 * 63: {0xff, 0xff, 0xff},
	} {
		if got := lastCHS(lba); got != want {
			t.Errorf("LBA %d: got % x, want % x", lba, got, want)
		}
	}
}

// A second opinion on the protective MBR: what sgdisk writes for a disk of this
// size. It also fills in what is larger than 2 TiB.
func TestProtectiveMBR(t *testing.T) {
	if testing.Short() {
		t.Skip("sgdisk takes a second for each disk")
	}
	testenv.Need(t, "sgdisk")
	for _, size := range []int64{39 * mib, 5 << 30, 10 << 30, 3 << 40} {
		path := filepath.Join(t.TempDir(), "disk")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			testenv.Missing(t, "sparse", err.Error()) // not every file system holds 3 TiB
		}
		if out, err := exec.Command(testenv.Tool("sgdisk"), "-o", path).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		want := make([]byte, 512)
		if _, err := f.ReadAt(want, 0); err != nil {
			t.Fatal(err)
		}
		if got := protectiveMBR(uint64(size / 512)); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got % x, want % x", size, got[446:], want[446:])
		}
	}
}

// go-diskfs reads what it wrote.
func TestDiskfsReads(t *testing.T) {
	f := create(t, sample(t))
	got, err := diskfs.Read(f, 512, 512)
	if err != nil {
		t.Fatal(err)
	}
	if !got.ProtectiveMBR || got.RecoveredFromBackup || len(got.Partitions) != 2 || got.Partitions[1].Name != "root" {
		t.Errorf("got %+v", got)
	}
}

func TestRefuses(t *testing.T) {
	id := func(n byte) gpt.GUID { return gpt.GUID{n} }
	nothing := func(io.WriterAt) error { return nil }
	good := Partition{Type: TypeRoot, ID: id(2), Size: 512, Content: nothing}
	with := func(change func(p *Partition)) []Partition {
		p := good
		change(&p)
		return []Partition{p}
	}
	many := make([]Partition, 129)
	for i := range many {
		many[i] = good
		many[i].ID = gpt.GUID{9, byte(i)}
	}
	boom := errors.New("boom")
	for _, tt := range []struct {
		name string
		d    Disk
		want string
	}{
		{"no GUID", Disk{}, "GUID is zero"},
		{"no partition GUID", Disk{ID: id(1), Partitions: with(func(p *Partition) { p.ID = gpt.GUID{} })}, "want neither zero"},
		{"no type", Disk{ID: id(1), Partitions: with(func(p *Partition) { p.Type = gpt.GUID{} })}, "want neither zero"},
		{"same GUID", Disk{ID: id(2), Partitions: []Partition{good}}, "used twice"},
		{"size 0", Disk{ID: id(1), Partitions: with(func(p *Partition) { p.Size = 0 })}, "size is 0"},
		{"negative size", Disk{ID: id(1), Partitions: with(func(p *Partition) { p.Size = -512 })}, "size is -512"},
		{"huge", Disk{ID: id(1), Partitions: with(func(p *Partition) { p.Size = 1 << 51 })}, "size is"},
		{"long name", Disk{ID: id(1), Partitions: with(func(p *Partition) { p.Name = strings.Repeat("🌱", 19) })}, "36 UTF-16"},
		{"too many", Disk{ID: id(1), Partitions: many}, "129 partitions"},
		{"size in half MiB", Disk{ID: id(1), Multiple: 3 << 19}, "want whole MiB"},
		{"negative multiple", Disk{ID: id(1), Multiple: -1 << 20}, "want whole MiB"},
		{"huge multiple", Disk{ID: id(1), Multiple: 1 << 41}, "at most 1 TiB"},
		{"write past the end", Disk{ID: id(1), Partitions: with(func(p *Partition) {
			p.Content = func(w io.WriterAt) error { _, err := w.WriteAt([]byte("xx"), 511); return err }
		})}, "write of 2 bytes at 511"},
		{"write behind the end", Disk{ID: id(1), Partitions: with(func(p *Partition) {
			p.Content = func(w io.WriterAt) error { _, err := w.WriteAt([]byte("xx"), 4096); return err }
		})}, "write of 2 bytes at 4096"},
		{"write before the start", Disk{ID: id(1), Partitions: with(func(p *Partition) {
			p.Content = func(w io.WriterAt) error { _, err := w.WriteAt([]byte("xx"), -1); return err }
		})}, "write of 2 bytes at -1"},
		{"content fails", Disk{ID: id(1), Partitions: with(func(p *Partition) { p.Content = func(io.WriterAt) error { return boom } })}, "boom"},
	} {
		err := Write(make(memory, 4*mib), tt.d)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := Write(make(memory, 4*mib), Disk{ID: id(1), Partitions: []Partition{good}}); err != nil {
		t.Error(err)
	}
}

type memory []byte

func (m memory) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }

func TestHoles(t *testing.T) {
	const size = 10 * holeSize
	for _, tt := range []struct {
		off, len int
		data     []int // offsets of bytes that are not zero
		want     string
	}{
		{0, size, nil, ""},
		{0, size, []int{0}, "0+4096 "},
		{0, size, []int{4095, 4096, 12288}, "0+8192 12288+4096 "},
		{0, size, []int{size - 1}, "36864+4096 "},
		{100, 5000, []int{100}, "100+3996 "},
		{100, 5000, []int{4096}, "4096+1004 "},
		{100, 5000, []int{5099}, "4096+1004 "},
		{100, 0, nil, ""},
	} {
		b := make([]byte, size)
		for _, i := range tt.data {
			b[i] = 1
		}
		got := make(memory, size)
		var calls strings.Builder
		w := holes{writerFunc(func(p []byte, off int64) {
			fmt.Fprintf(&calls, "%d+%d ", off, len(p))
			copy(got[off:], p)
		})}
		if n, err := w.WriteAt(b[tt.off:tt.off+tt.len], int64(tt.off)); n != tt.len || err != nil {
			t.Errorf("%+v: %d, %v", tt, n, err)
		}
		if calls.String() != tt.want || !bytes.Equal(got, b) {
			t.Errorf("%+v: wrote %s", tt, calls.String())
		}
	}
	if n, err := (holes{full{}}).WriteAt(bytes.Repeat([]byte{1}, size), 0); n != 7 || err == nil {
		t.Errorf("failed write: %d, %v", n, err)
	}
}

type writerFunc func(b []byte, off int64)

func (f writerFunc) WriteAt(b []byte, off int64) (int, error) { f(b, off); return len(b), nil }

type full struct{}

func (full) WriteAt([]byte, int64) (int, error) { return 7, io.ErrShortWrite }

// The numbers of the discoverable partition types, as systemd knows them.
func TestTypes(t *testing.T) {
	testenv.Need(t, "systemd-id128")
	out, err := exec.Command(testenv.Tool("systemd-id128"), "show").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, g := range map[string]gpt.GUID{
		"esp": TypeESP, "xbootldr": TypeXBOOTLDR, "root-x86-64": TypeRoot, "root-x86-64-verity": TypeRootVerity,
		"root-x86-64-verity-sig": TypeRootSig, "usr-x86-64": TypeUsr, "usr-x86-64-verity": TypeUsrVerity,
		"usr-x86-64-verity-sig": TypeUsrSig, "var": TypeVar, "linux-generic": TypeLinuxGeneric,
	} {
		found := false
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			found = found || len(f) == 2 && f[0] == name && f[1] == strings.ReplaceAll(g.String(), "-", "")
		}
		if !found {
			t.Errorf("%s is not %v", name, g)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	uki := make([]byte, 30*mib)
	for i := range uki {
		uki[i] = byte(i*7 + i>>9)
	}
	esp, err := ESP([]tree.Entry{tree.File(BootPath, 0o644, tree.Bytes(uki))}, ESPParams{Seed: "seed"})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		create(b, Disk{ID: gpt.GUID{1}, Partitions: []Partition{esp}})
	}
}
