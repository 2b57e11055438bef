package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/internal/xz"
)

var version2 = arFile{"debian-binary", []byte("2.0\n")}

func store(t testing.TB) *cas.Store {
	t.Helper()
	st, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func put(t testing.TB, st *cas.Store, b []byte) cas.Ref {
	t.Helper()
	ref, err := st.Put(b)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// debOf is a .deb with the given data archive and an empty control archive.
func debOf(t testing.TB, name string, data []byte) []byte {
	return arOf(version2, arFile{"control.tar", tarOf(t)}, arFile{name, data})
}

var sampleFiles = []tarFile{
	{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
	{tar.Header{Name: "./usr/", Typeflag: tar.TypeDir, Mode: 0o750}, ""},
	{tar.Header{Name: "./usr/a", Mode: 0o4755, Uid: 5, Gid: 6}, "hello"},
	{tar.Header{Name: "./usr/b", Typeflag: tar.TypeLink, Linkname: "./usr/a", Mode: 0o4755, Uid: 5, Gid: 6}, ""},
	{tar.Header{Name: "./usr/lib/up", Typeflag: tar.TypeSymlink, Linkname: "../a", Mode: 0o777}, ""},
	{tar.Header{Name: "./usr/lib/abs", Typeflag: tar.TypeSymlink, Linkname: "/usr/lib/up", Mode: 0o777}, ""},
	{tar.Header{Name: "./usr/lib/" + strings.Repeat("long", 60), Mode: 0o644}, "L"},
	{tar.Header{Name: "./usr/lib-x", Mode: 0o644}, ""},
}

func TestUnpackDeb(t *testing.T) {
	plain := tarOf(t, sampleFiles...)
	var zst bytes.Buffer
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	want := []Member{
		{Path: ".", Mode: tree.TypeDir | 0o755},
		{Path: "usr", Mode: tree.TypeDir | 0o750},
		{Path: "usr/a", Mode: tree.TypeFile | 0o4755, UID: 5, GID: 6, Size: 5},
		{Path: "usr/b", Mode: tree.TypeFile | 0o4755, UID: 5, GID: 6, Link: "usr/a"},
		{Path: "usr/lib-x", Mode: tree.TypeFile | 0o644},
		{Path: "usr/lib/abs", Mode: tree.TypeSymlink | 0o777, Target: "/usr/lib/up"},
		{Path: "usr/lib/" + strings.Repeat("long", 60), Mode: tree.TypeFile | 0o644, Size: 1},
		{Path: "usr/lib/up", Mode: tree.TypeSymlink | 0o777, Target: "../a"},
	}
	for name, data := range map[string][]byte{"data.tar": plain, "data.tar.gz": gzipOf(t, plain), "data.tar.xz": xzOf(t, plain), "data.tar.zst": zst.Bytes()} {
		st := store(t)
		ref := put(t, st, debOf(t, name, data))
		u, err := UnpackDeb(context.Background(), st, ref, int64(len(plain)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ignoreOffset := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Offset" }, cmp.Ignore())
		if diff := cmp.Diff(want, u.Members, ignoreOffset); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		// The second call must not need the package.
		if err := st.Remove(ref.Digest); err != nil {
			t.Fatal(err)
		}
		again, err := UnpackDeb(context.Background(), st, ref, 0)
		if err != nil || !cmp.Equal(u, again) {
			t.Errorf("%s: again: %v", name, err)
		}
		if _, err := UnpackDeb(context.Background(), store(t), put(t, st, debOf(t, name, data)), 1); err == nil {
			t.Errorf("%s: unpacked from another store", name)
		}
		var limit *xz.LimitError
		st = store(t)
		if _, err := UnpackDeb(context.Background(), st, put(t, st, debOf(t, name, data)), int64(len(plain))-1); !errors.As(err, &limit) {
			t.Errorf("%s: limit: %v", name, err)
		}
	}
}

func TestDebFS(t *testing.T) {
	st := store(t)
	u, err := UnpackDeb(context.Background(), st, put(t, st, debOf(t, "data.tar", tarOf(t, sampleFiles...))), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	d, err := u.Open(st)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := fstest.TestFS(d, "usr/a", "usr/b", "usr/lib-x", "usr/lib/up"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"usr/a", "usr/b", "usr/lib/up", "usr/lib/abs"} {
		s, err := d.Section(name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(s); err != nil || string(b) != "hello" {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	for name, want := range map[string]error{"usr": fs.ErrInvalid, "none": fs.ErrNotExist, "../x": fs.ErrInvalid} {
		if _, err := d.Section(name); !errors.Is(err, want) {
			t.Errorf("Section(%q): %v, want %v", name, err, want)
		}
	}
	if m, ok := u.Member("usr/lib"); !ok || m.Mode != tree.TypeDir|0o755 {
		t.Errorf("directory that only its members name: %+v, %v", m, ok)
	}
	for _, e := range u.Entries(st, func(p string) bool { return p == "usr/a" }) {
		r, err := e.Content.Open()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != "hello" || e.Mode != tree.TypeFile|0o4755 || e.UID != 5 {
			t.Errorf("entry %+v holds %q, %v", e, b, err)
		}
		r.Close()
	}
	if n := len(u.Entries(st, nil)); n != len(sampleFiles) {
		t.Errorf("%d entries, want %d", n, len(sampleFiles))
	}
}

func TestDebRefusals(t *testing.T) {
	control := arFile{"control.tar", tarOf(t)}
	data := func(h tar.Header) []byte { return debOf(t, "data.tar", tarOf(t, tarFile{h, ""})) }
	good := debOf(t, "data.tar", tarOf(t, sampleFiles...))
	file := tarFile{tar.Header{Name: "./x", Mode: 0o644}, strings.Repeat("x", 3000)}
	for _, c := range []struct {
		name string
		deb  []byte
		say  string
	}{
		{"empty", nil, "not an ar archive"},
		{"only magic", []byte(arMagic), "not a .deb"},
		{"truncated header", good[:100], "truncated header"},
		{"truncated member", good[:len(good)-512], "out of bounds"},
		{"bad header", bytes.Replace(good, []byte("`\n"), []byte("x\n"), 1), "bad header"},
		{"bad size", bytes.Replace(good, []byte("4         `"), []byte("-4        `"), 1), "out of bounds"},
		{"many members", arOf(make([]arFile, maxArMembers+1)...), "more than 32 members"},
		{"other version", arOf(arFile{"debian-binary", []byte("3.0\n")}, control, arFile{"data.tar", nil}), `format version "3."`},
		{"other order", arOf(version2, arFile{"data.tar", nil}, control), "not a .deb"},
		{"other compression", debOf(t, "data.tar.bz2", nil), `compression ".bz2" is not supported`},
		{"absolute path", data(tar.Header{Name: "/etc/passwd"}), "leaves the package"},
		{"path upwards", data(tar.Header{Name: "./../x"}), "leaves the package"},
		{"path upwards inside", data(tar.Header{Name: "./a/../../x"}), "leaves the package"},
		{"hard link upwards", data(tar.Header{Name: "./x", Typeflag: tar.TypeLink, Linkname: "../y"}), "leaves the package"},
		{"hard link to nothing", data(tar.Header{Name: "./x", Typeflag: tar.TypeLink, Linkname: "./y"}), "does not come before it"},
		{"device", data(tar.Header{Name: "./x", Typeflag: tar.TypeChar}), "is not supported"},
		{"owner", data(tar.Header{Name: "./x", Uid: 1 << 40}), "owner"},
		{"twice", debOf(t, "data.tar", tarOf(t, file, file)), "occurs twice"},
		{"truncated tar", debOf(t, "data.tar", tarOf(t, file)[:2048]), "truncated"},
		{"no xz", debOf(t, "data.tar.xz", []byte("none")), "truncated"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := store(t)
			_, err := UnpackDeb(context.Background(), st, put(t, st, c.deb), 1<<20)
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v, want %q", err, c.say)
			}
		})
	}
	loop := &Unpacked{Members: []Member{{Path: "l", Mode: tree.TypeSymlink, Target: "l"}, {Path: "out", Mode: tree.TypeSymlink, Target: "../../x"}}}
	for _, name := range []string{"l", "out"} {
		if _, err := loop.resolve(name); err == nil {
			t.Errorf("link %s was followed", name)
		}
	}
}

// TestDpkg packs with dpkg-deb and compares what both read.
func TestDpkg(t *testing.T) {
	testenv.Need(t, "dpkg-deb")
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for name, text := range map[string]string{"DEBIAN/control": "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n", "usr/a": "hello\n", "usr/lib/b c": ""} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a", filepath.Join(root, "usr/lib/l")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "usr/a"), filepath.Join(root, "usr/hard")); err != nil {
		t.Fatal(err)
	}
	for _, z := range []string{"none", "gzip", "xz", "zstd"} {
		deb := filepath.Join(dir, z+".deb")
		if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-Z"+z, "-b", root, deb).CombinedOutput(); err != nil {
			t.Logf("%s: %v: %s", z, err, out) // dpkg before 1.21.18 has no zstd
			continue
		}
		compareDpkg(t, deb)
	}
	made := filepath.Join(dir, "made.deb")
	if err := os.WriteFile(made, makeDeb(t, "Package: y\nVersion: 1\nArchitecture: all", map[string]string{"./usr/z": "zz"}), 0o644); err != nil {
		t.Fatal(err)
	}
	compareDpkg(t, made)
}

// compareDpkg compares UnpackDeb with the tar that dpkg-deb unpacks, and
// readControl with the control file that it prints.
func compareDpkg(t *testing.T, deb string) {
	t.Helper()
	dpkg := func(flag string) []byte {
		out, err := exec.Command("dpkg-deb", flag, deb).Output()
		if err != nil {
			t.Fatalf("dpkg-deb %s %s: %v", flag, deb, err)
		}
		return out
	}
	b, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	st := store(t)
	u, err := UnpackDeb(context.Background(), st, put(t, st, b), 1<<30)
	if err != nil {
		t.Fatalf("%s: %v", deb, err)
	}
	d, err := u.Open(st)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	seen := 0
	for r := tar.NewReader(bytes.NewReader(dpkg("--fsys-tarfile"))); ; seen++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Trim(strings.TrimPrefix(h.Name, "."), "/")
		m, ok := u.Member(cmpOr(name, "."))
		if !ok || m.Mode&0o7777 != uint32(h.Mode) || m.Target != h.Linkname && m.Link != strings.TrimPrefix(h.Linkname, "./") {
			t.Fatalf("%s: member %q is %+v, tar has %+v", deb, name, m, h)
		}
		if h.Typeflag == tar.TypeReg {
			s, err := d.Section(name)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(s)
			if want, _ := io.ReadAll(r); !bytes.Equal(got, want) {
				t.Errorf("%s: %s: %d bytes, want %d, or other content", deb, name, len(got), len(want))
			}
		}
	}
	if seen != len(u.Members) {
		t.Errorf("%s: %d members, dpkg-deb has %d", deb, len(u.Members), seen)
	}
	control, err := readControl(context.Background(), bytes.NewReader(b), int64(len(b)))
	if want := dpkg("--field"); err != nil || !bytes.Equal(bytes.TrimSpace(control), bytes.TrimSpace(want)) {
		t.Errorf("%s: control is %q, %v; want %q", deb, control, err, want)
	}
}

func cmpOr(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// TestRealDebs compares every package that DEBS, a pattern, names.
func TestRealDebs(t *testing.T) {
	debs := realDebs(t)
	testenv.Need(t, "dpkg-deb")
	for _, d := range debs {
		compareDpkg(t, d)
	}
}

func realDebs(t testing.TB) []string {
	debs, err := filepath.Glob(os.Getenv("DEBS"))
	if err != nil || len(debs) == 0 {
		testenv.Missing(t, "debs", "DEBS names no packages")
	}
	return debs
}

func FuzzReadAr(f *testing.F) {
	f.Add(debOf(f, "data.tar", nil))
	f.Add(arOf(arFile{"odd", []byte("abc")}, arFile{"x/", nil}))
	f.Fuzz(func(t *testing.T, b []byte) {
		members, err := readAr(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, m := range members {
			if n, err := io.Copy(io.Discard, io.NewSectionReader(m.data, 0, m.data.Size())); n != m.data.Size() || err != nil {
				t.Fatalf("member %q: %d of %d bytes, %v", m.name, n, m.data.Size(), err)
			}
		}
	})
}

func FuzzListTar(f *testing.F) {
	f.Add(tarOf(f, sampleFiles...))
	f.Fuzz(func(t *testing.T, b []byte) {
		members, err := listTar(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
		if err != nil {
			return
		}
		u := &Unpacked{Members: members}
		for _, m := range members {
			if !fs.ValidPath(m.Path) || m.Offset < 0 || m.Size < 0 || m.Offset > int64(len(b))-m.Size {
				t.Fatalf("member %+v of %d bytes", m, len(b))
			}
			u.resolve(m.Path)
			u.readDir(m.Path)
		}
	})
}

// BenchmarkUnpackDeb unpacks the packages that DEBS, a pattern, names into an
// empty store.
func BenchmarkUnpackDeb(b *testing.B) {
	for _, name := range realDebs(b) {
		deb, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(filepath.Base(name), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				st := store(b)
				ref := put(b, st, deb)
				b.StartTimer()
				u, err := UnpackDeb(context.Background(), st, ref, 1<<30)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(u.Data.Size)
			}
		})
	}
}
