package unpack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// kept is the binary form of a layer of some records.
func kept(t testing.TB, change func(*Layer), records ...record) []byte {
	t.Helper()
	var e encoder
	l := &Layer{}
	for i := range records {
		r := &records[i]
		e.add(r)
		l.stats.Entries++
		l.stats.Bytes += r.size
		for _, run := range r.runs {
			l.blocks += run.data
		}
		if r.kind == kindWhiteout || r.kind == kindOpaque {
			l.stats.Whiteouts++
		}
	}
	l.records = e.b
	if change != nil {
		change(l)
	}
	b, err := l.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnmarshalRefusals has what Read does not write.
func TestUnmarshalRefusals(t *testing.T) {
	good := record{kind: kindFile, name: "d/f", size: 9000, runs: []run{{0, 1}, {1, 1}}, mode: 0o644, sec: -5, nsec: 999999999}
	if err := (&Layer{}).UnmarshalBinary(kept(t, nil, good, record{kind: kindOpaque, name: "d"}, record{kind: kindHardLink, name: "e", target: "d/f"}, record{kind: kindWhiteout, name: "x"})); err != nil {
		t.Fatal(err)
	}
	with := func(change func(*record)) []byte {
		r := good
		change(&r)
		return kept(t, nil, r)
	}
	for _, row := range []struct {
		name string
		data []byte
		want string
	}{
		{"nothing", nil, "the beginning"},
		{"another version", bytes.Replace(kept(t, nil, good), []byte("layer 1"), []byte("layer 2"), 1), "the beginning"},
		{"cut off", kept(t, nil, good)[:40], "cut off"},
		{"a number in a long form", bytes.Replace(kept(t, nil), []byte("1\n\x00"), []byte("1\n\x80\x00"), 1), "not what Read writes"},
		{"fewer records", kept(t, func(l *Layer) { l.stats.Entries++ }, good), "want 2"},
		{"other bytes", kept(t, func(l *Layer) { l.stats.Bytes++ }, good), "want 1 with 9001"},
		{"other blocks", kept(t, func(l *Layer) { l.blocks++ }, good), "in 3 and 0"},
		{"other whiteouts", kept(t, func(l *Layer) { l.stats.Whiteouts++ }, good), "in 2 and 1"},
		{"kind", with(func(r *record) { r.kind = 'x' }), "kind 'x'"},
		{"name with ..", with(func(r *record) { r.name = "d/../f" }), "not what Read writes"},
		{"name with .", with(func(r *record) { r.name = "./f" }), "not what Read writes"},
		{"absolute name", with(func(r *record) { r.name = "/f" }), "not what Read writes"},
		{"directory's name", with(func(r *record) { r.name = "f/" }), "not what Read writes"},
		{"name with //", with(func(r *record) { r.name = "d//f" }), "not what Read writes"},
		{"name that becomes .. with the one before", kept(t, nil, record{kind: kindDir, name: "d/.x"}, record{kind: kindDir, name: "d/.."}), "not what Read writes"},
		{"name of a whiteout", with(func(r *record) { r.name = "d/.wh.f" }), "not what Read writes"},
		{"name with a NUL", with(func(r *record) { r.name = "d\x00" }), "holds a NUL"},
		{"name too long", with(func(r *record) { r.name = strings.Repeat("n", pathMax+1) }), "cut off"},
		{"names together too long", kept(t, nil, record{kind: kindDir, name: strings.Repeat("n", pathMax)}, record{kind: kindDir, name: strings.Repeat("n", pathMax) + "n"}), "length of the name"},
		{"root is a file", with(func(r *record) { r.name = "" }), "the root of the tree"},
		{"mode", with(func(r *record) { r.mode = 0o10000 }), "out of range"},
		{"owner", with(func(r *record) { r.uid = math.MaxUint32 }), "out of range"},
		{"group", with(func(r *record) { r.gid = math.MaxUint32 }), "out of range"},
		{"nanoseconds", with(func(r *record) { r.nsec = 1e9 }), "out of range"},
		{"mode of a link", kept(t, nil, record{kind: kindSymlink, name: "l", target: "x", mode: 0o644}), "out of range"},
		{"link without a target", kept(t, nil, record{kind: kindSymlink, name: "l", mode: 0o777}), "link without a target"},
		{"link target with a NUL", kept(t, nil, record{kind: kindSymlink, name: "l", mode: 0o777, target: "\x00"}), "holds a NUL"},
		{"link target too long", kept(t, nil, record{kind: kindSymlink, name: "l", mode: 0o777, target: strings.Repeat("n", pathMax+1)}), "length of the link target"},
		{"hard link with ..", kept(t, nil, record{kind: kindHardLink, name: "l", target: "../x"}), "not clean"},
		{"hard link to the root", kept(t, nil, record{kind: kindHardLink, name: "l"}), "hard link to the root"},
		{"major", kept(t, nil, record{kind: kindChar, name: "c", major: 4096}), "out of range"},
		{"minor", kept(t, nil, record{kind: kindBlock, name: "c", minor: 1 << 20}), "out of range"},
		{"size", with(func(r *record) { r.size = maxFile + 1 }), "not what Read writes"},
		{"too few blocks", with(func(r *record) { r.runs = []run{{0, 1}} }), "1 blocks: want 3"},
		{"too many blocks", with(func(r *record) { r.runs = []run{{0, 4}} }), "4 blocks: want 3"},
		{"blocks that overflow", with(func(r *record) { r.runs = []run{{math.MaxUint32, 1}, {math.MaxUint32, 5}, {1, 1}} }), "blocks: want 3"},
		{"runs that meet", with(func(r *record) { r.runs = []run{{0, 1}, {0, 2}} }), "run 1 is empty"},
		{"holes that meet", with(func(r *record) { r.runs = []run{{1, 0}, {1, 1}} }), "run 0 is empty"},
		{"dropped attribute", with(func(r *record) { r.attrs = map[string][]byte{"trusted.overlay.opaque": []byte("y")} }), `attribute "trusted.overlay.opaque"`},
		{"attribute of no class", with(func(r *record) { r.attrs = map[string][]byte{"a.b": nil} }), `set attribute "a.b"`},
		{"access list that the mode says", with(func(r *record) { r.attrs = map[string][]byte{aclAccess: []byte(aclOf("owner:6 ownergroup:4 other:4"))} }), "contradict"},
		{"access list and another mode", with(func(r *record) { r.attrs = map[string][]byte{aclAccess: []byte(acl)} }), "contradict"},
		{"attributes out of order", attributesOutOfOrder(t), "not what Read writes"},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := Layer{blocks: 7}
			err := l.UnmarshalBinary(row.data)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
			if l.blocks != 7 {
				t.Error("the layer is changed by an error")
			}
		})
	}
}

func attributesOutOfOrder(t *testing.T) []byte {
	b := kept(t, nil, record{kind: kindDir, name: "d", attrs: map[string][]byte{"user.a": []byte("1"), "user.b": []byte("2")}})
	b = bytes.Replace(b, []byte("user.a"), []byte("user.c"), 1)
	return b
}

// TestKeptLayers has layers that were read within other limits than the tree's.
func TestKeptLayers(t *testing.T) {
	l, err := Read(context.Background(), bytes.NewReader(pack(t, directory("d/e"), file("d/e/f", strings.Repeat("1", 5000)), symlink("l", strings.Repeat("n", 60)))), io.Discard, NewBudget(Limits{}))
	if err != nil {
		t.Fatal(err)
	}
	for want, limits := range map[string]Limits{
		"bytes of the files: 5000": {Bytes: 4999}, "entries: 3": {Entries: 2}, "depth of directories: 3": {Depth: 2},
		"length of the name: 5": {PathLen: 4}, "length of the link target: 60": {PathLen: 59},
	} {
		var limit *LimitError
		if err := NewTree(NewBudget(limits)).Apply(l); !errors.As(err, &limit) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want a LimitError with %q", err, want)
		}
	}
	if err := NewTree(NewBudget(Limits{Bytes: 5000, Entries: 4, Depth: 3, PathLen: 60})).Apply(l); err != nil {
		t.Errorf("within: %v", err)
	}
}

// TestWriteRefusals has tags that are not those of Devices.
func TestWriteRefusals(t *testing.T) {
	m := mustApply(t, pack(t, file("a", "1")), pack(t, directory("d")), pack(t, file("b", "2")))
	if got := m.tree.Devices(); len(got) != 2 || got[0] != 0 || got[1] != 2 {
		t.Errorf("devices %v, want [0 2]", got)
	}
	for _, row := range []struct {
		tags []string
		id   [16]byte
		want string
	}{
		{[]string{"a"}, [16]byte{1}, "1 tags for 2 devices"},
		{[]string{"a", strings.Repeat("b", 65)}, [16]byte{1}, "want at most 64 bytes"},
		{[]string{"a", "b"}, [16]byte{}, "no UUID"},
	} {
		if err := m.tree.Write(io.Discard, row.id, row.tags); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("got %v, want %q", err, row.want)
		}
	}
	if err := m.tree.Extract(t.Context(), t.TempDir(), make([]io.ReaderAt, 2)); err == nil || !strings.Contains(err.Error(), "contents of 2 layers, want 3") {
		t.Errorf("got %v", err)
	}
	if a, b := m.image(t), m.image(t); !bytes.Equal(a, b) {
		t.Error("the same tree makes different images")
	}
}

// TestExtractRefusals has a directory and contents that are not as Extract needs
// them.
func TestExtractRefusals(t *testing.T) {
	needRoot(t)
	m := mustApply(t, pack(t, file("a", "1")))
	dir := t.TempDir()
	if err := m.extract(dir); err != nil {
		t.Fatal(err)
	}
	if err := m.extract(dir); err == nil || !strings.Contains(err.Error(), "1 names in it: want none") {
		t.Errorf("a full directory: %v", err)
	}
	if err := m.tree.Extract(t.Context(), t.TempDir(), make([]io.ReaderAt, 1)); err == nil || !strings.Contains(err.Error(), `make file "a": content of layer 1: offset 0x0: it is not there`) {
		t.Errorf("no content: %v", err)
	}
	if err := m.tree.Extract(t.Context(), t.TempDir(), []io.ReaderAt{bytes.NewReader(nil)}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short content: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.tree.Extract(ctx, t.TempDir(), []io.ReaderAt{bytes.NewReader(m.content[0])}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestContent has files of many sizes: the content is each of them, and zeros up
// to a block.
func TestContent(t *testing.T) {
	var items []item
	var want []byte
	for i, size := range []int{contentSize + 1, 0, 1, BlockSize, BlockSize - 1, 3 * contentSize, 2*contentSize - 1, BlockSize + 1} {
		body := bytes.Repeat([]byte{byte(i + 1)}, size)
		items = append(items, file(string(rune('a'+i)), string(body)))
		want = append(append(want, body...), make([]byte, -size&(BlockSize-1))...)
	}
	m := mustApply(t, pack(t, items...))
	if !bytes.Equal(m.content[0], want) {
		t.Errorf("%d bytes, want %d; or they differ", len(m.content[0]), len(want))
	}
	for name, n := range m.inodes() {
		if name != "." && string(m.read(n)) != items[name[0]-'a'].body {
			t.Errorf("%s differs", name)
		}
	}
}
