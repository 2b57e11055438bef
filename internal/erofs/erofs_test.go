package erofs

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/tree"
)

func written(t *testing.T, entries []tree.Entry, p Params) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, entries, p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestOrderDoesNotMatter: the same tree, told in another order, is the same image.
func TestOrderDoesNotMatter(t *testing.T) {
	a := odd()
	want := written(t, a, params)
	for i := range 5 {
		rand.New(rand.NewPCG(1, uint64(i))).Shuffle(len(a), func(i, j int) { a[i], a[j] = a[j], a[i] })
		if got := written(t, a, params); !bytes.Equal(got, want) {
			t.Fatalf("order %d: another image, of %d bytes for %d", i, len(got), len(want))
		}
	}
}

// TestEqualFilesAreStoredOnce, and different ones of equal size are not.
func TestEqualFilesAreStoredOnce(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789"), 100_000)
	once := len(written(t, []tree.Entry{file("a", big)}, params))
	twice := written(t, []tree.Entry{file("a", big), file("b", big)}, params)
	if len(twice) != once {
		t.Errorf("%d bytes for two, %d for one", len(twice), once)
	}
	other := bytes.Clone(big)
	other[0]++
	if two := len(written(t, []tree.Entry{file("a", big), file("b", other)}, params)); two < 2*len(big) {
		t.Errorf("%d bytes for two that differ", two)
	}
	unknown := []tree.Entry{tree.File("a", 0o644, tree.Bytes(big)), tree.File("b", 0o644, tree.Bytes(big))}
	if two := len(written(t, unknown, params)); two < 2*len(big) {
		t.Errorf("%d bytes for two whose digest nobody knows", two)
	}
}

// TestRefusals: what the format cannot hold, and what makes no sense.
func TestRefusals(t *testing.T) {
	with := func(change func(*Params)) Params {
		p := params
		change(&p)
		return p
	}
	short := tree.Blob{Size: 5000, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("short")), nil }}
	cut := tree.Blob{Size: 5000, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(make([]byte, 4096))), nil }}
	long := tree.Blob{Size: 2, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("long")), nil }}
	broken := tree.Blob{Size: 2, Open: func() (io.ReadCloser, error) { return nil, errors.New("gone") }}
	outside := func(c Chunks, blocks uint32) Params {
		return with(func(p *Params) {
			p.Devices, p.Outside = []Device{{Tag: "a", Blocks: blocks}}, map[string]Chunks{"f": c}
		})
	}
	attribute := func(name string, value []byte) []tree.Entry {
		e := file("f", nil)
		e.Xattrs = map[string][]byte{name: value}
		return []tree.Entry{e}
	}
	f := []tree.Entry{file("f", make([]byte, 5000))}
	for _, x := range []struct {
		want    string
		entries []tree.Entry
		p       Params
	}{
		{"no UUID", f, with(func(p *Params) { p.UUID = [16]byte{} })},
		{"epoch -1", f, with(func(p *Params) { p.Epoch = -1 })},
		{"label", f, with(func(p *Params) { p.Label = strings.Repeat("l", 17) })},
		{"devices: want at most", f, with(func(p *Params) { p.Devices = make([]Device, 1024) })},
		{"tag", f, with(func(p *Params) { p.Devices = []Device{{Tag: strings.Repeat("t", 65)}} })},
		{"f: shorter than announced", []tree.Entry{tree.File("f", 0o644, short)}, params},
		{"f: shorter than the 5000 bytes", []tree.Entry{tree.File("f", 0o644, cut)}, params},
		{"f: longer than the 2 bytes", []tree.Entry{tree.File("f", 0o644, long)}, params},
		{"f: gone", []tree.Entry{tree.File("f", 0o644, broken)}, params},
		{"size -1", []tree.Entry{tree.File("f", 0o644, tree.Blob{Size: -1})}, params},
		{"name of 256 bytes", []tree.Entry{file(strings.Repeat("n", 256), nil)}, params},
		{"link target of 4096 bytes", []tree.Entry{tree.Symlink("l", strings.Repeat("t", 4096))}, params},
		{"device 4096:0", []tree.Entry{tree.CharDev("d", 0o600, 4096, 0)}, params},
		{"device 0:1048576", []tree.Entry{tree.CharDev("d", 0o600, 0, 1048576)}, params},
		{`attribute "system.nfs4_acl"`, attribute("system.nfs4_acl", nil), params},
		{`attribute "system.posix_acl_access2"`, attribute("system.posix_acl_access2", nil), params},
		{`attribute "user."`, attribute("user.", nil), params},
		{"too long", attribute("user."+strings.Repeat("n", 256), nil), params},
		{"too long", attribute("user.n", make([]byte, 65536)), params},
		{"hard link to g", []tree.Entry{{Path: "f", Link: "g"}}, params},
		{"named twice", []tree.Entry{file("f", nil), file("f", nil)}, params},
		{"not in the tree", nil, outside(Chunks{Size: 4096}, 1)},
		{"chunks of 2048 bytes", f, outside(Chunks{Size: 2048}, 9)},
		{"chunks of 12288 bytes", f, outside(Chunks{Size: 12288}, 9)},
		{"1 chunks of 4096 bytes for 5000 bytes: want 2", f, outside(Chunks{Size: 4096, At: make([]Chunk, 1)}, 9)},
		{"files that have times are not in the tree", f, with(func(p *Params) { p.Times = map[string]Time{"g": {}} })},
		{"time has 1000000000 nanoseconds", f, with(func(p *Params) { p.Times = map[string]Time{"f": {Nsec: 1e9}} })},
		{"chunk 1: device -1", f, outside(Chunks{Size: 4096, At: []Chunk{{}, {Device: Hole, Block: 1}}}, 9)},
		{"chunk 1: device -2", f, outside(Chunks{Size: 4096, At: []Chunk{{}, {Device: -2}}}, 9)},
		{"chunk 1: device 1", f, outside(Chunks{Size: 4096, At: []Chunk{{}, {Device: 1}}}, 9)},
		{"ends at block 10 of device 0, which has 9", f, outside(Chunks{Size: 4096, At: []Chunk{{}, {Block: 9}}}, 9)},
	} {
		var b bytes.Buffer
		if err := Write(&b, x.entries, x.p); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("error is %v, want %q", err, x.want)
		}
	}
}

// full is a disk with some room.
type full struct{ left int }

func (f *full) Write(b []byte) (int, error) {
	if len(b) > f.left {
		return 0, errors.New("disk full")
	}
	f.left -= len(b)
	return len(b), nil
}

func TestFullDisk(t *testing.T) {
	size := len(written(t, odd(), params))
	for _, left := range []int{0, BlockSize, size / 2, size - 1} {
		if err := Write(&full{left}, odd(), params); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("%d bytes of room: %v", left, err)
		}
	}
	if err := Write(&full{size}, odd(), params); err != nil {
		t.Error(err)
	}
}
