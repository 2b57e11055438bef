package initrd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ko returns a module: an ELF file with an empty section, one of names and
// .modinfo with the given fields.
func ko(fields ...string) []byte {
	const names = "\x00.text\x00.modinfo\x00.shstrtab\x00"
	modinfo := strings.Join(fields, "\x00") + "\x00"
	h := elfHeader{Type: 1, Machine: 62, Version: 1, HeaderSize: 64, EntrySize: 64, Sections: 4, NameIndex: 3}
	copy(h.Ident[:], elfIdent)
	offset := uint64(binary.Size(h))
	h.SectionOff = offset + uint64(len(modinfo)+len(names))
	return structs(h, []byte(modinfo), []byte(names),
		elfSectionHeader{},
		elfSectionHeader{Name: 1, Type: 8, Offset: 1 << 40, Size: 1 << 40}, // SHT_NOBITS
		elfSectionHeader{Name: 7, Type: 1, Offset: offset, Size: uint64(len(modinfo))},
		elfSectionHeader{Name: 16, Type: 3, Offset: offset + uint64(len(modinfo)), Size: uint64(len(names))})
}

func structs(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		if err := binary.Write(&b, binary.LittleEndian, p); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func asXZ(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func asZstd(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// kernel is a module directory with every kind of dependency.
func kernel(t testing.TB) fstest.MapFS {
	t.Helper()
	file := func(b []byte) *fstest.MapFile { return &fstest.MapFile{Data: b} }
	return fstest.MapFS{
		"modules.builtin": file([]byte("kernel/crypto/sha256_generic.ko\nkernel/fs/ext4/ext4.ko\n")),
		"modules.builtin.modinfo": file([]byte("ext4.alias=fs-ext4\x00ext4.license=GPL\x00" +
			"sha256_generic.alias=crypto-sha256\x00sha256_generic.alias=sha256\x00")),
		"modules.order":                       file([]byte("kernel/a.ko\n")),
		"kernel/a.ko":                         file(ko("license=GPL", "depends=b-dash,sha256_generic", "softdep=pre: wanted post: later")),
		"kernel/b-dash.ko.xz":                 file(asXZ(t, ko("depends=c", "alias=pci:v00001AF4d*sv*"))),
		"kernel/sub/c.ko.zst":                 file(asZstd(t, ko("depends="))),
		"kernel/wanted_generic.ko":            file(ko("alias=wanted", "alias=crypto-wanted", "depends=")),
		"kernel/wanted_fast.ko":               file(ko("alias=wanted", "depends=wanted_generic")),
		"kernel/wanted_not.ko":                file(ko("depends=")),
		"kernel/other.ko":                     file(ko("alias=wanted", "alias=net-pf-[0-9]-x", "alias=dmi:*:d01/02/*")),
		"kernel/later.ko":                     file(ko("depends=a", "softdep=pre: nowhere sha256", "weakdep=weak")),
		"kernel/weak.ko":                      file(ko("depends=")),
		"kernel/loop1.ko":                     file(ko("depends=loop2")),
		"kernel/loop2.ko":                     file(ko("depends=loop1")),
		"kernel/soft1.ko":                     file(ko("softdep=pre: soft2")),
		"kernel/soft2.ko":                     file(ko("softdep=pre: soft1")),
		"kernel/knot1.ko":                     file(ko("softdep=pre: knot2")),
		"kernel/knot2.ko":                     file(ko("depends=knot1")),
		"kernel/lacking.ko":                   file(ko("depends=gone")),
		"kernel/twice.ko":                     file(ko("depends=")),
		"updates/twice.ko":                    file(ko("depends=")),
		"kernel/not_a_module.ko.gz":           file(nil),
		"build":                               {Mode: fs.ModeSymlink, Data: []byte("/usr/src")},
		"kernel/drivers/virtio/virtio_blk.ko": file(ko("depends=")),
		"kernel/drivers/virtio/virtio_net.ko": file(ko("depends=")),
	}
}

func index(t testing.TB, fsys fs.FS) *Modules {
	t.Helper()
	m, err := IndexModules(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func names(mods []Module) []string {
	s := []string{}
	for _, m := range mods {
		s = append(s, m.Name)
	}
	return s
}

func TestClosure(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want string
	}{
		{"", ""},
		{"c", "c"},
		{"b-dash", "c b_dash"},
		{"b_dash", "c b_dash"},
		{"a", "c b_dash wanted_generic wanted_fast a later"},
		{"c,a", "c b_dash wanted_generic wanted_fast a later"},
		{"weak,c,weak", "weak c"},
		{"ext4", ""},
		{"sha256-generic", ""},
		{"fs-ext4", ""},
		{"sha256,?nothing,c", "c"},
		{"?c", "c"},
		{"crypto_wanted", "wanted_generic"},
		{"pci:v00001AF4d00001041sv00001AF4", "c b_dash"},
		{"net-pf-7-x", "other"},
		{"dmi:bvnX:d01/02/2026:", "other"},
		{"soft1", "soft2 soft1"},
		{"soft2", "soft1 soft2"},
		{"later", "c b_dash wanted_generic wanted_fast a later"}, // needs a, which wants it afterwards
	} {
		m := index(t, kernel(t))
		var in []string
		if tt.in != "" {
			in = strings.Split(tt.in, ",")
		}
		for range 2 { // the same again from a warm index
			got, err := m.Closure(in)
			if err != nil {
				t.Errorf("%s: %v", tt.in, err)
				break
			}
			if s := strings.Join(names(got), " "); s != tt.want {
				t.Errorf("%s: got %s, want %s", tt.in, s, tt.want)
			}
		}
	}
}

func TestModule(t *testing.T) {
	mods, err := index(t, kernel(t)).Closure([]string{"b-dash  debug=1 level=2", "c"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Module{{Name: "c", Path: "kernel/sub/c.ko.zst"}, {Name: "b_dash", Path: "kernel/b-dash.ko.xz", Params: "debug=1 level=2"}}
	bodies := [][]byte{ko("depends="), ko("depends=c", "alias=pci:v00001AF4d*sv*")}
	for i, m := range mods {
		if m.Name != want[i].Name || m.Path != want[i].Path || m.Params != want[i].Params {
			t.Errorf("got %+v, want %+v", m, want[i])
		}
		if b, err := m.Content(); err != nil || !bytes.Equal(b, bodies[i]) {
			t.Errorf("%s: %d bytes, %v", m.Name, len(b), err)
		}
	}
}

func TestClosureRefuses(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"virtio_blkk", `module "virtio_blkk": this kernel has none of that name; did you mean virtio_blk?`},
		{"knot22", "did you mean knot2, knot1?"}, // the nearer first
		{"pci:v00001234", "none of that name"},
		{"loop1", "loop1 needs loop2 needs loop1 needs itself"},
		{"?loop1", "needs itself"},
		{"knot1", "knot1 wants knot2 needs knot1 needs itself"},
		{"lacking", "lacking needs gone, which is not there"},
		{"twice", "twice is there 2 times: kernel/twice.ko, updates/twice.ko"},
		{"ext4 debug=1", "is built in"},
	} {
		_, err := index(t, kernel(t)).Closure([]string{tt.in})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.in, err, tt.want)
		}
	}
	var unknown *UnknownModuleError
	if _, err := index(t, fstest.MapFS{}).Closure([]string{"a"}); !errors.As(err, &unknown) || unknown.Name != "a" {
		t.Errorf("nothing there: got %v", err)
	}
}

// What is not asked for is not unpacked, broken or not.
func TestClosureIsLazy(t *testing.T) {
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst"} {
		k := kernel(t)
		k["kernel/broken"+suffix] = &fstest.MapFile{Data: []byte("rubbish")}
		m := index(t, k)
		if _, err := m.Closure([]string{"b-dash", "fs-ext4", "crypto-wanted", "?unknown"}); err != nil {
			t.Errorf("%s: %v", suffix, err)
		}
		for _, name := range []string{"broken", "unknown"} { // an alias may be in any module
			if _, err := m.Closure([]string{name}); err == nil || !strings.Contains(err.Error(), "kernel/broken"+suffix+": ") {
				t.Errorf("%s: got %v, want an error in the broken module", name, err)
			}
		}
	}
}

func TestIndexErrors(t *testing.T) {
	large := fstest.MapFS{"modules.builtin": {Data: bytes.Repeat([]byte("kernel/x.ko\n"), maxBuiltin/12+1)}}
	if _, err := IndexModules(large); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
	if _, err := IndexModules(brokenFS{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

type brokenFS struct{}

func (brokenFS) Open(string) (fs.File, error) { return nil, fs.ErrPermission }

func TestModinfo(t *testing.T) {
	info, err := parseModinfo(ko("depends=a-b,,c", "alias=x-[a-z]-y", "alias=z", "softdep=before pre: p-1 p2 post: q pre: p3", "softdep=", "novalue", "depends=d"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want []string }{
		{info.depends, []string{"a_b", "c", "d"}},
		{info.aliases, []string{"x_[a-z]_y", "z"}},
		{info.pre, []string{"p_1", "p2", "p3"}},
		{info.post, []string{"q"}},
	} {
		if !slices.Equal(tt.got, tt.want) {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestModinfoRefuses(t *testing.T) {
	le := binary.LittleEndian
	good := ko("depends=")
	headers := int(le.Uint64(good[0x28:]))
	for _, tt := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"32 bits", func(b []byte) { b[4] = 1 }, "not an ELF file"},
		{"big-endian", func(b []byte) { b[5] = 2 }, "not an ELF file"},
		{"header size", func(b []byte) { le.PutUint16(b[0x3a:], 40) }, "headers of 40 bytes"},
		{"no headers", func(b []byte) { le.PutUint64(b[0x28:], 0) }, "at 0x0"},
		{"headers outside", func(b []byte) { le.PutUint64(b[0x28:], 1<<63) }, "section headers"},
		{"too many sections", func(b []byte) { le.PutUint16(b[0x3c:], 0xffff) }, "section headers"},
		{"no names", func(b []byte) { le.PutUint16(b[0x3e:], 4) }, "section 4 of 4"},
		{"names outside", func(b []byte) { le.PutUint64(b[headers+3*64+0x20:], 1<<62) }, "section 3"},
		{"modinfo outside", func(b []byte) { le.PutUint64(b[headers+2*64+0x18:], 1<<62) }, "section 2"},
		{"name outside", func(b []byte) { le.PutUint32(b[headers+2*64:], 1<<31) }, "no section .modinfo"},
		{"name at the end", func(b []byte) { le.PutUint32(b[headers+2*64:], 25) }, "no section .modinfo"},
	} {
		b := bytes.Clone(good)
		tt.change(b)
		if _, err := parseModinfo(b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	for n := range len(good) {
		if _, err := parseModinfo(good[:n]); err == nil {
			t.Errorf("cut to %d of %d bytes: no error", n, len(good))
		}
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(ko("depends=a,b", "softdep=pre: c post: d", "alias=x*"))
	f.Add(ko())
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := parseModinfo(b)
		if err != nil {
			return
		}
		same := bytes.ReplaceAll(b, []byte("-"), []byte("_"))
		for _, s := range slices.Concat(info.depends, info.pre, info.post, info.aliases) {
			if !bytes.Contains(same, []byte(canonical(s))) {
				t.Fatalf("%q is not in the file", s)
			}
			matches(s, "anything")
		}
	})
}
