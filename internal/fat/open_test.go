package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// Images that mkfs.vfat made and mcopy filled, of every kind and sector size.
func TestOpenMkfs(t *testing.T) {
	testenv.Need(t, "mkfs.vfat", "mcopy", "mmd", "mdel")
	for _, tt := range []struct {
		bits, sector, cluster int // sector in bytes, cluster in sectors
		size                  int64
	}{
		{12, 512, 4, 1440 << 10},
		{12, 512, 8, 15 * mib},
		{16, 512, 4, 20 * mib},
		{16, 2048, 1, 30 * mib},
		{32, 512, 1, 40 * mib},
		{32, 4096, 1, 300 * mib},
	} {
		t.Run(fmt.Sprintf("FAT%d/%d", tt.bits, tt.sector), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "img")
			run := func(tool string, args ...string) {
				t.Helper()
				cmd := exec.Command(testenv.Tool(tool), args...)
				cmd.Env = []string{"LC_ALL=C.UTF-8", "TZ=UTC", "MTOOLS_SKIP_CHECK=1"}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", tool, err, out)
				}
			}
			run("mkfs.vfat", "-C", "-F", fmt.Sprint(tt.bits), "-S", fmt.Sprint(tt.sector), "-s", fmt.Sprint(tt.cluster),
				"-n", "PLINTH", "-i", "deadbeef", path, fmt.Sprint(tt.size>>10))
			entries := []tree.Entry{
				tree.File("BIG.BIN", 0, tree.Bytes(random(300_000))),
				tree.File("d/split.bin", 0, tree.Bytes(random(200_001))), // lands where something was deleted, and after it
				tree.File("d/lower", 0, tree.Bytes(random(1))),
				tree.File("d/Mixed Case Name.efi", 0, tree.Bytes(random(4096))),
				tree.File("empty", 0, tree.Bytes(nil)),
			}
			src := t.TempDir()
			run("mmd", "-i", path, "::d")
			for i := range 40 {
				name := filepath.Join(src, fmt.Sprintf("hole%d", i))
				if err := os.WriteFile(name, random(10_000), 0o600); err != nil {
					t.Fatal(err)
				}
				run("mcopy", "-i", path, name, fmt.Sprintf("::hole%d", i))
			}
			for i := range 20 {
				run("mdel", "-i", path, fmt.Sprintf("::hole%d", 2*i))
			}
			for _, e := range entries {
				name := filepath.Join(src, filepath.Base(e.Path))
				if err := os.WriteFile(name, blob(t, e), 0o600); err != nil {
					t.Fatal(err)
				}
				run("mcopy", "-i", path, name, "::"+e.Path)
			}
			for i := range 20 {
				entries = append(entries, tree.File(fmt.Sprintf("hole%d", 2*i+1), 0, tree.Bytes(random(10_000))))
			}
			f := open(t, path)
			if f.Bits != tt.bits || f.Label != "PLINTH" || f.VolumeID != 0xdeadbeef {
				t.Errorf("FAT%d, label %q, serial %#x", f.Bits, f.Label, f.VolumeID)
			}
			contains(t, f, entries)
			if _, err := fs.Stat(f, "D/MIXED case name.EFI"); err != nil {
				t.Errorf("names in another case: %v", err)
			}
		})
	}
}

// sampleImage returns a small volume in memory.
func sampleImage(t testing.TB, size int64) []byte {
	t.Helper()
	b := make(memory, size)
	if err := Write(b, size, sample(512), Params{VolumeID: 1, Label: "X"}); err != nil {
		t.Fatal(err)
	}
	return b
}

type memory []byte

func (m memory) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }

func TestReadAt(t *testing.T) {
	b := sampleImage(t, 40*mib)
	f, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.Open("efi/boot/bootx64.efi")
	if err != nil {
		t.Fatal(err)
	}
	want := random(100_000)
	r := file.(io.ReaderAt)
	for _, off := range []int64{0, 1, 511, 512, 99_999} {
		got := make([]byte, 600)
		n, err := r.ReadAt(got, off)
		if !bytes.Equal(got[:n], want[off:][:n]) || n != min(600, 100_000-int(off)) || (n < 600) != (err == io.EOF) {
			t.Errorf("at %d: %d bytes, %v", off, n, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	const size = 3 * mib // FAT16
	le := binary.LittleEndian
	g, err := layout(size)
	if err != nil {
		t.Fatal(err)
	}
	fat, root := int(g.fatOffset(0)), int(g.rootOffset())
	// find returns the offset of the entry of a short name.
	find := func(b []byte, short string) int {
		i := bytes.Index(b[root:], []byte(short))
		if i < 0 {
			t.Fatalf("%q is not there", short)
		}
		return root + i
	}
	cluster := func(b []byte, short string) int { return int(le.Uint16(b[find(b, short)+26:])) }
	for _, tt := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"boot signature", func(b []byte) { b[510] = 0 }, "no FAT boot sector"},
		{"sector size", func(b []byte) { le.PutUint16(b[11:], 513) }, "no FAT boot sector"},
		{"sector size 256", func(b []byte) { le.PutUint16(b[11:], 256) }, "no FAT boot sector"},
		{"sector size 8192", func(b []byte) { le.PutUint16(b[11:], 8192) }, "no FAT boot sector"},
		{"sector size 0", func(b []byte) { le.PutUint16(b[11:], 0) }, "no FAT boot sector"},
		{"cluster size 0", func(b []byte) { b[13] = 0 }, "no FAT boot sector"},
		{"no reserved sectors", func(b []byte) { le.PutUint16(b[14:], 0) }, "no FAT boot sector"},
		{"no FAT", func(b []byte) { b[16] = 0 }, "no FAT boot sector"},
		{"no sectors", func(b []byte) { le.PutUint16(b[19:], 0) }, "0 sectors"},
		{"too many sectors", func(b []byte) { le.PutUint16(b[19:], size/512+1) }, "6145 sectors of 512 bytes in a volume"},
		{"too few sectors", func(b []byte) { le.PutUint16(b[19:], 40) }, "not for files"},
		{"FAT too small", func(b []byte) { le.PutUint16(b[22:], 10) }, "but a FAT of 10 sectors"},
		{"FAT too large", func(b []byte) { le.PutUint16(b[22:], 0xffff) }, "not for files"},
		{"no root", func(b []byte) { le.PutUint16(b[17:], 0) }, "root directory of 0 entries"},
		{"FAT32 with a root", func(b []byte) { le.PutUint16(b[22:], 0); le.PutUint32(b[36:], 100) }, "FAT32 with a root"},
		{"directory in cluster 0", func(b []byte) { le.PutUint16(b[find(b, "MANY       ")+26:], 0) }, "/many: chain from cluster 0"},
		{"directory outside", func(b []byte) { le.PutUint16(b[find(b, "MANY       ")+26:], 0xffe0) }, "/many: chain from cluster 65504"},
		{"directory in itself", func(b []byte) {
			le.PutUint16(b[find(b, "DEEPEST    ")+26:], uint16(cluster(b, "DEEP       ")))
		}, "belongs to two directories"},
		{"directory twice", func(b []byte) {
			le.PutUint16(b[find(b, "EMPTY      ")+26:], uint16(cluster(b, "DEEP       ")))
		}, "belongs to two directories"},
		{"directory's chain loops", func(b []byte) {
			c := cluster(b, "MANY       ")
			le.PutUint16(b[fat+2*(c+1):], uint16(c))
		}, "longer than 4096 clusters"},
		{"directory's chain ends in free", func(b []byte) { le.PutUint16(b[fat+2*(cluster(b, "MANY       ")):], 0) }, "is followed by 0"},
		{"directory's chain leaves", func(b []byte) { le.PutUint16(b[fat+2*(cluster(b, "MANY       ")):], 0xfff0) }, "is followed by 65520"},
		{"name twice", func(b []byte) { copy(b[find(b, "BOOTX64 EFI"):], "BOOT    CFG") }, "is there twice"},
		{"name with a slash", func(b []byte) { copy(b[find(b, "BOOTX64 EFI"):], "../../") }, `name "../../4.EFI"`},
		{"name with a slash inside", func(b []byte) { copy(b[find(b, "BOOTX64 EFI"):], "A/B    ") }, `name "A/B.EFI"`},
		{"name with a backslash", func(b []byte) { copy(b[find(b, "BOOTX64 EFI"):], "A\\B    ") }, `name "A\\B.EFI"`},
		{"a dot for a name", func(b []byte) {
			i := find(b, "BOOTX64 EFI")
			copy(b[i+32:], structs(longEntries([]uint16{'.'}, pack("DOT", ""))))
			copy(b[i+64:], structs(dirEntry{Name: pack("DOT", "")}))
		}, `name "."`},
		{"no name", func(b []byte) { copy(b[find(b, "BOOTX64 EFI"):], "           ") }, `name ""`},
	} {
		b := sampleImage(t, size)
		tt.change(b)
		_, err := Open(bytes.NewReader(b), size)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"too long", func(b []byte) { le.PutUint32(b[find(b, "BOOTX64 EFI")+28:], 100_000+512) }, "196 clusters, want 197"},
		{"4 GiB", func(b []byte) { le.PutUint32(b[find(b, "BOOTX64 EFI")+28:], 1<<32-1) }, "196 clusters, want"},
		{"no cluster", func(b []byte) { le.PutUint16(b[find(b, "BOOTX64 EFI")+26:], 0) }, "chain from cluster 0"},
		{"chain leaves", func(b []byte) { le.PutUint16(b[fat+2*cluster(b, "BOOTX64 EFI"):], 0xfff0) }, "is followed by 65520"},
		{"chain loops", func(b []byte) {
			c := cluster(b, "BOOTX64 EFI")
			le.PutUint16(b[fat+2*c:], uint16(c))
			le.PutUint32(b[find(b, "BOOTX64 EFI")+28:], 1<<32-1)
		}, "longer than"},
	} {
		b := sampleImage(t, size)
		tt.change(b)
		f, err := Open(bytes.NewReader(b), size)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if _, err := f.Open("EFI/BOOT/BOOTX64.EFI"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestOpenShort(t *testing.T) {
	b := sampleImage(t, 3*mib)
	for _, n := range []int{0, 1, 511, 512, 1024, 20_000, 3*mib - 1} {
		if _, err := Open(bytes.NewReader(b[:n]), int64(n)); err == nil {
			t.Errorf("volume cut to %d bytes was opened", n)
		}
	}
	if _, err := Open(bytes.NewReader(b[:20_000]), 3*mib); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reader that ends early: got %v, want unexpected EOF", err)
	}
	b = sampleImage(t, MinFAT32)
	if _, err := Open(bytes.NewReader(b[:32*512+9]), MinFAT32); !errors.Is(err, io.ErrUnexpectedEOF) { // in the FAT
		t.Errorf("reader that ends early: got %v, want unexpected EOF", err)
	}
	if _, err := Open(bytes.NewReader(make([]byte, mib)), mib); !errors.Is(err, ErrNotFAT) {
		t.Errorf("zeros: got %v, want ErrNotFAT", err)
	}
}

func TestOpenLimits(t *testing.T) {
	var many []tree.Entry
	for i := range maxEntries {
		many = append(many, tree.File(fmt.Sprintf("%d/%d", i&1, i), 0, tree.Bytes(nil)))
	}
	for _, tt := range []struct {
		name    string
		entries []tree.Entry
		want    string
	}{
		{"deep", []tree.Entry{tree.Dir(strings.Repeat("d/", maxDepth)+"d", 0)}, "more than 64 directories deep"},
		{"many", many, "more than 65536 files"},
	} {
		b := make(memory, 64*mib)
		if err := Write(b, 64*mib, tt.entries, Params{}); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(bytes.NewReader(b), 64*mib); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestFSErrors(t *testing.T) {
	b := sampleImage(t, 3*mib)
	f, err := Open(bytes.NewReader(b), 3*mib)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{"/EFI": fs.ErrInvalid, "EFI/": fs.ErrInvalid, "..": fs.ErrInvalid, "none": fs.ErrNotExist, "a/b": fs.ErrNotExist} {
		if _, err := f.Open(name); !errors.Is(err, want) {
			t.Errorf("Open(%q): got %v, want %v", name, err, want)
		}
	}
	if _, err := f.ReadDir("EFI/BOOT/BOOTX64.EFI"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadDir of a file: got %v", err)
	}
	// A file that the reader ends in.
	ext, err := f.extents(f.root.children["A"].entry.cluster(), 2, 2)
	if err != nil || len(ext) != 1 || ext[0].count != 2 {
		t.Fatalf("extents of a contiguous file: %v, %v", ext, err)
	}
	f.r = bytes.NewReader(b[:f.g.clusterOffset(ext[0].first)+700])
	if n, err := (&content{f, ext}).ReadAt(make([]byte, 1024), 0); n != 700 || err != io.ErrUnexpectedEOF {
		t.Errorf("reader that ends early: %d bytes, %v", n, err)
	}
	if n, err := (&content{f, ext}).ReadAt(make([]byte, 1000), 1000); n != 0 || err == nil {
		t.Errorf("reader that ended: %d bytes, %v", n, err)
	}
	f.r = bytes.NewReader(b)
	if n, err := (&content{f, ext}).ReadAt(make([]byte, 100), 1000); n != 24 || err != io.EOF {
		t.Errorf("end of the last cluster: %d bytes, %v", n, err)
	}
}

// A chain that jumps to and fro, over more of the FAT than is read at once.
func TestFragments(t *testing.T) {
	b := sampleImage(t, MinFAT32)
	g, err := layout(MinFAT32)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(bytes.NewReader(b), MinFAT32)
	if err != nil {
		t.Fatal(err)
	}
	first := f.root.children["EFI"].children["BOOT"].children["BOOTX64.EFI"].entry.cluster()
	want := random(100_000)
	fat := b[g.fatOffset(0):]
	for i, far := range []uint32{20_000, 40_000, 60_000} { // the third, fifth and seventh cluster move there
		from := first + 2*uint32(i) + 1
		copy(b[g.clusterOffset(far):], b[g.clusterOffset(from+1):][:g.clusterSize])
		clear(b[g.clusterOffset(from+1):][:g.clusterSize])
		binary.LittleEndian.PutUint32(fat[4*from:], far)
		binary.LittleEndian.PutUint32(fat[4*far:], from+2)
	}
	got, err := fs.ReadFile(f, "EFI/BOOT/BOOTX64.EFI")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; equal: %v", len(got), err, bytes.Equal(got, want))
	}
}

func TestDecodeShort(t *testing.T) {
	for _, tt := range []struct {
		short string
		lower uint8
		want  string
	}{
		{"BOOTX64 EFI", 0, "BOOTX64.EFI"},
		{"BOOTX64 EFI", caseName, "bootx64.EFI"},
		{"BOOTX64 EFI", caseExt, "BOOTX64.efi"},
		{"BOOTX64 EFI", caseName | caseExt, "bootx64.efi"},
		{"NOEXT      ", 0, "NOEXT"},
		{"A B     C  ", 0, "A B.C"},
		{"\x05\xfc      TXT", 0, "\u00e5\u00fc.TXT"},
	} {
		if got := decodeShort([11]byte([]byte(tt.short)), tt.lower); got != tt.want {
			t.Errorf("%q, %#x: got %q, want %q", tt.short, tt.lower, got, tt.want)
		}
	}
}

// Parts of long names count only when all of them are there, in order, and were
// made for the short name.
func TestLongName(t *testing.T) {
	short := pack("SHORT", "")
	units := utf16.Encode([]rune("A long name that takes three.parts"))
	entries := longEntries(units, short)
	for _, tt := range []struct {
		name   string
		change func(e []longEntry) []longEntry
		want   string
	}{
		{"whole", func(e []longEntry) []longEntry { return e }, "A long name that takes three.parts"},
		{"none", func(e []longEntry) []longEntry { return nil }, ""},
		{"no start", func(e []longEntry) []longEntry { return e[1:] }, ""},
		{"no end", func(e []longEntry) []longEntry { return e[:2] }, ""},
		{"no middle", func(e []longEntry) []longEntry { return []longEntry{e[0], e[2]} }, ""},
		{"wrong order", func(e []longEntry) []longEntry { return []longEntry{e[0], e[2], e[1]} }, ""},
		{"order 0", func(e []longEntry) []longEntry { e[0].Order = lastLong; return e[:1] }, ""},
		{"order 0 alone", func(e []longEntry) []longEntry { e[0].Order = 0; e[0].Checksum = 0; return e[:1] }, ""},
		{"another short name", func(e []longEntry) []longEntry { e[0].Checksum++; e[1].Checksum++; e[2].Checksum++; return e }, ""},
		{"another short name in the middle", func(e []longEntry) []longEntry { e[1].Checksum++; return e }, ""},
		{"starts again", func(e []longEntry) []longEntry { return append(e[:1:1], e...) }, "A long name that takes three.parts"},
		{"too many", func(e []longEntry) []longEntry {
			var many []longEntry
			for i := uint8(21); i > 0; i-- {
				part := e[1]
				part.Order = i
				many = append(many, part)
			}
			many[0].Order |= lastLong
			return many
		}, ""},
	} {
		var n longName
		for _, e := range tt.change(slices.Clone(entries)) {
			n.add(structs(e))
		}
		if got := n.take(short); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
		if got := n.take(short); got != "" {
			t.Errorf("%s: taken twice: %q", tt.name, got)
		}
	}
}

// Long names that are not whole do not count.
func TestBrokenLongNames(t *testing.T) {
	for name, at := range map[string]int{"order": 0, "checksum": 13} {
		b := sampleImage(t, 3*mib)
		i := bytes.Index(b, []byte("LOADER~1CON")) // loader.conf
		b[i-32+at] ^= 0x02
		f, err := Open(bytes.NewReader(b), 3*mib)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fs.Stat(f, "loader/LOADER~1.CON"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	// The parts that say where things are, of a FAT16 and a FAT32 volume; small,
	// for the fuzzer's sake. The rest is zero.
	entries := []tree.Entry{
		tree.File("EFI/BOOT/BOOTX64.EFI", 0, tree.Bytes(random(600))),
		tree.File("EFI/Long name of a file.txt", 0, tree.Bytes(random(1))),
		tree.File("empty", 0, tree.Bytes(nil)),
	}
	for _, size := range []int64{3 * mib, MinFAT32} {
		b := make(memory, size)
		if err := Write(b, size, entries, Params{Label: "X"}); err != nil {
			f.Fatal(err)
		}
		g, err := layout(size)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(size == MinFAT32, []byte(b[:512]), []byte(b[g.fatOffset(0):][:64]), []byte(b[g.rootOffset():][:256]), []byte(b[g.clusterOffset(2):][:2048]))
	}
	f.Fuzz(func(t *testing.T, large bool, boot, table, root, data []byte) {
		size := int64(3 * mib)
		if large {
			size = MinFAT32
		}
		g, err := layout(size)
		if err != nil {
			t.Fatal(err)
		}
		r := patches{{0, boot}, {g.fatOffset(0), table}, {g.rootOffset(), root}, {g.clusterOffset(2), data}}
		v, err := Open(r, size)
		if err != nil {
			return
		}
		err = fs.WalkDir(v, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			file, err := v.Open(path)
			if err != nil {
				return nil
			}
			n, err := io.Copy(io.Discard, io.LimitReader(file, 1<<16))
			fi, _ := d.Info()
			if err != nil || n != min(fi.Size(), 1<<16) || fi.Size() > size {
				t.Fatalf("%s: read %d of %d bytes: %v", path, n, fi.Size(), err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// patches is a large image of zeros but for a few places, the later ones on top.
type patches []struct {
	at int64
	b  []byte
}

func (p patches) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	for _, part := range p {
		if d := part.at - off; d >= 0 && d < int64(len(b)) {
			copy(b[d:], part.b)
		} else if d < 0 && -d < int64(len(part.b)) {
			copy(b, part.b[-d:])
		}
	}
	return len(b), nil
}
