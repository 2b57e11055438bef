package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	diskfs "github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"

	"github.com/plinth-os/plinth/internal/testenv"
)

const (
	esp     = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	root    = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
	diskID  = "01234567-89ab-8def-8123-456789abcdef"
	espID   = "11111111-2222-8333-8444-555555555555"
	rootID  = "aaaaaaaa-bbbb-8ccc-8ddd-eeeeeeeeeeee"
	sectors = 16384 // of 512 bytes: 8 MiB
)

func must(t testing.TB, text string) GUID {
	t.Helper()
	g, err := ParseGUID(text)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// memory is a disk for go-diskfs.
type memory struct {
	b []byte
	io.ReaderAt
	io.Seeker
	fs.File
}

func (m memory) WriteAt(b []byte, off int64) (int, error) { return copy(m.b[off:], b), nil }

// sample returns a disk of 8 MiB with two partitions, written by go-diskfs.
func sample(t testing.TB, sector int) []byte { return sampleOf(t, sector, sectors*512) }

func sampleOf(t testing.TB, sector, size int) []byte {
	t.Helper()
	mib := uint64(size/8) / uint64(sector) // if the disk has 8
	table := diskfs.Table{
		GUID: diskID, LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true,
		Partitions: []*diskfs.Partition{
			{Index: 1, Start: mib, End: 3*mib - 1, Type: esp, GUID: espID, Name: "esp"},
			{Index: 3, Start: 3 * mib, End: 4*mib - 1, Type: root, GUID: rootID, Name: "Wurzel \U0001f331", Attributes: 1<<60 | 1},
		},
	}
	m := memory{b: make([]byte, size)}
	if err := table.Write(m, int64(len(m.b))); err != nil {
		t.Fatal(err)
	}
	return m.b
}

func read(b []byte) (*Table, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func TestRead(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		got, err := read(sample(t, sector))
		if err != nil {
			t.Fatal(err)
		}
		n := uint64(sectors * 512 / sector)
		mib := uint64(1<<20) / uint64(sector)
		array := uint64(16384 / sector)
		want := &Table{
			DiskID: must(t, diskID), SectorSize: sector, Sectors: n, FirstUsable: 2 + array, LastUsable: n - 2 - array,
			Partitions: []Partition{
				{Type: must(t, esp), ID: must(t, espID), First: mib, Last: 3*mib - 1, Name: "esp"},
				{Type: must(t, root), ID: must(t, rootID), First: 3 * mib, Last: 4*mib - 1, Attributes: 1<<60 | 1, Name: "Wurzel \U0001f331"},
			},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d-byte sectors: %s", sector, diff)
		}
	}
}

func TestEventData(t *testing.T) {
	b := sample(t, 512)
	var want []byte
	want = append(want, b[512:][:92]...)
	want = append(want, 2, 0, 0, 0, 0, 0, 0, 0)
	want = append(want, b[1024:][:128]...)     // slot 1
	want = append(want, b[1024+256:][:128]...) // slot 3
	clear(b[len(b)-512:])                      // the backup does not count
	got, err := EventData(bytes.NewReader(b), int64(len(b)))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got\n% x\n(%v), want\n% x", got, err, want)
	}
}

func TestHeaderSizes(t *testing.T) {
	if n := binary.Size(header{}); n != headerSize {
		t.Errorf("header has %d bytes, want %d", n, headerSize)
	}
	if n := binary.Size(entry{}); n != entrySize {
		t.Errorf("entry has %d bytes, want %d", n, entrySize)
	}
}

// seal makes the checksums of the header at LBA lba right again.
func seal(b []byte, lba int) {
	h := b[lba*512:]
	le := binary.LittleEndian
	array, size := le.Uint64(h[72:]), uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
	if array < uint64(len(b)) && size < uint64(len(b)) && array*512+size <= uint64(len(b)) {
		le.PutUint32(h[88:], crc32.ChecksumIEEE(b[array*512:][:size]))
	}
	clear(h[16:20])
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
}

func TestReadRefuses(t *testing.T) {
	le := binary.LittleEndian
	h := func(b []byte) []byte { return b[512:] }
	last := sectors - 1
	for _, tt := range []struct {
		name   string
		change func(b []byte)
		sealed []int // headers to seal afterwards
		want   string
	}{
		{"no signature", func(b []byte) { h(b)[0] = 'x' }, nil, "no GUID partition table"},
		{"header checksum", func(b []byte) { h(b)[24]++ }, nil, "primary: header: CRC-32"},
		{"entries checksum", func(b []byte) { b[1024+5]++ }, nil, "primary: entries: CRC-32"},
		{"revision", func(b []byte) { h(b)[9]++ }, []int{1}, "revision"},
		{"header too small", func(b []byte) { le.PutUint32(h(b)[12:], 91) }, nil, "header size is 91"},
		{"header too large", func(b []byte) { le.PutUint32(h(b)[12:], 513) }, nil, "header size is 513"},
		{"own place", func(b []byte) { le.PutUint64(h(b)[24:], 2) }, []int{1}, "header at LBA 1 says 2"},
		{"backup outside", func(b []byte) { le.PutUint64(h(b)[32:], sectors) }, []int{1}, "other header at LBA 16384"},
		{"backup is primary", func(b []byte) { le.PutUint64(h(b)[32:], 1) }, []int{1}, "other header at LBA 1 "},
		{"backup elsewhere", func(b []byte) { le.PutUint64(h(b)[32:], 5) }, []int{1}, "backup: LBA 5"},
		{"entry size 0", func(b []byte) { le.PutUint32(h(b)[84:], 0) }, []int{1}, "entry size is 0"},
		{"entry size 192", func(b []byte) { le.PutUint32(h(b)[84:], 192) }, []int{1}, "entry size is 192"},
		{"entry size 384", func(b []byte) { le.PutUint32(h(b)[84:], 384) }, []int{1}, "entry size is 384"},
		{"no entries", func(b []byte) { le.PutUint32(h(b)[80:], 0) }, []int{1}, "0 entries"},
		{"many entries", func(b []byte) { le.PutUint32(h(b)[80:], 1<<31) }, []int{1}, "2147483648 entries"},
		{"entries outside", func(b []byte) { le.PutUint64(h(b)[72:], sectors-1) }, []int{1}, "entries at LBA 16383"},
		{"entries far outside", func(b []byte) { le.PutUint64(h(b)[72:], 1<<63) }, []int{1}, "entries at LBA 9223372036854775808"},
		{"entries in the header", func(b []byte) { le.PutUint64(h(b)[72:], 1) }, []int{1}, "entries at LBA 1"},
		{"entries in the data", func(b []byte) { le.PutUint64(h(b)[72:], 40) }, []int{1}, "lie in the usable area"},
		{"usable area", func(b []byte) { le.PutUint64(h(b)[48:], sectors) }, []int{1}, "usable area"},
		{"usable area reversed", func(b []byte) { le.PutUint64(h(b)[40:], sectors-5); le.PutUint64(h(b)[48:], 34) }, []int{1}, "usable area"},
		{"MBR signature", func(b []byte) { b[510] = 0 }, nil, "MBR: is not protective"},
		{"MBR signature's end", func(b []byte) { b[511] = 0 }, nil, "MBR: is not protective"},
		{"MBR start", func(b []byte) { b[454] = 2 }, nil, "MBR: is not protective"},
		{"MBR type", func(b []byte) { b[450] = 0x0c }, nil, "MBR: is not protective"},
		{"backup checksum", func(b []byte) { b[last*512+40]++ }, nil, "backup: header: CRC-32"},
		{"backup's other", func(b []byte) { le.PutUint64(b[last*512+32:], 2) }, []int{last}, "names LBA 2"},
		{"backup differs", func(b []byte) { b[last*512+56]++ }, []int{last}, "backup differs"},
		{"backup's entries differ", func(b []byte) { b[(last-32)*512]++ }, []int{last}, "backup differs"},
		{"partition before", func(b []byte) { le.PutUint64(b[1024+32:], 33); le.PutUint64(b[(last-32)*512+32:], 33) }, []int{1, last}, "LBA 33 to"},
		{"partition behind", func(b []byte) { le.PutUint64(b[1024+40:], sectors); le.PutUint64(b[(last-32)*512+40:], sectors) }, []int{1, last}, "to 16384, usable"},
		{"partition reversed", func(b []byte) { le.PutUint64(b[1024+40:], 2047); le.PutUint64(b[(last-32)*512+40:], 2047) }, []int{1, last}, "LBA 2048 to 2047"},
		{"overlap", func(b []byte) { le.PutUint64(b[1024+40:], 6144); le.PutUint64(b[(last-32)*512+40:], 6144) }, []int{1, last}, "overlap at LBA 6144"},
	} {
		b := sample(t, 512)
		tt.change(b)
		for _, lba := range tt.sealed {
			seal(b, lba)
		}
		if _, err := read(b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestReadShort(t *testing.T) {
	b := sample(t, 512)
	for _, n := range []int{0, 1, 511, 512, 1023, 1024, 4096, 8192, 34 * 512, len(b) - 512, len(b) - 1} {
		if _, err := read(b[:n]); err == nil {
			t.Errorf("disk cut to %d bytes was read", n)
		}
		if _, err := Read(bytes.NewReader(b[:n]), int64(len(b))); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrNoTable) {
			t.Errorf("disk of %d bytes said to have %d: got %v", n, len(b), err)
		}
	}
	for _, n := range []int{0, 512, 1 << 20} {
		if _, err := read(make([]byte, n)); !errors.Is(err, ErrNoTable) {
			t.Errorf("%d zeros: got %v, want ErrNoTable", n, err)
		}
	}
}

func TestGUID(t *testing.T) {
	g := must(t, strings.ToUpper(esp))
	if g.String() != esp {
		t.Errorf("got %v, want %s", g, esp)
	}
	if want := (GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}); g != want {
		t.Errorf("got % x, want % x", g[:], want[:])
	}
	for _, s := range []string{"", "c12a7328", strings.ReplaceAll(esp, "-", ""), esp + "0", esp[:35], "{" + esp + "}", esp[:35] + "g", "c12a73-28f81f-11d2-ba4b-00a0c93ec93b"} {
		if _, err := ParseGUID(s); err == nil {
			t.Errorf("%q was parsed", s)
		}
	}
}

// A second opinion: a table that sgdisk made.
func TestReadSgdisk(t *testing.T) {
	testenv.Need(t, "sgdisk")
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, sectors*512), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(testenv.Tool("sgdisk"), "-a", "1", "-U", diskID,
		"-n", "2:4096:6143", "-t", "2:"+root, "-u", "2:"+rootID, "-c", "2:root", "-A", "2:set:60",
		"-n", "1:2048:4095", "-t", "1:"+esp, "-u", "1:"+espID, "-c", "1:esp", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(b)
	if err != nil {
		t.Fatal(err)
	}
	want := &Table{
		DiskID: must(t, diskID), SectorSize: 512, Sectors: sectors, FirstUsable: 34, LastUsable: sectors - 34,
		Partitions: []Partition{
			{Type: must(t, esp), ID: must(t, espID), First: 2048, Last: 4095, Name: "esp"},
			{Type: must(t, root), ID: must(t, rootID), First: 4096, Last: 6143, Attributes: 1 << 60, Name: "root"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzRead(f *testing.F) {
	const size, edge = 1 << 20, 2*4096 + 16384 // the middle is of no interest
	for _, sector := range []int{512, 4096} {
		b := sampleOf(f, sector, size)
		f.Add(b[:edge], b[size-edge:])
	}
	f.Fuzz(func(t *testing.T, head, tail []byte) {
		b := make([]byte, size)
		copy(b, head)
		copy(b[max(0, len(b)-len(tail)):], tail)
		if string(b[512:520]) == signature { // else hardly anything passes
			seal(b, 1)
			seal(b, size/512-1)
		}
		event, eventErr := EventData(bytes.NewReader(b), int64(len(b)))
		table, err := read(b)
		if err != nil {
			return
		}
		if eventErr != nil {
			t.Fatalf("read, but no event: %v", eventErr)
		}
		if n := binary.LittleEndian.Uint64(event[92:]); n != uint64(len(table.Partitions)) {
			t.Fatalf("event has %d entries, table %d", n, len(table.Partitions))
		}
		for _, p := range table.Partitions {
			if p.First > p.Last || p.Last >= table.Sectors {
				t.Fatalf("partition outside the disk: %+v", p)
			}
		}
	})
}
