package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// brief lists a tree: "d/", "f=content", "l->target", "p|" for a FIFO; "f==a"
// is a further name of a.
func brief(m *made) string {
	var out []string
	tree, inodes := m.show(), m.inodes()
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		n := tree[name]
		switch {
		case name == ".":
		case n.First != "" && n.First != name:
			out = append(out, name+"=="+n.First)
		case n.Mode&unix.S_IFMT == unix.S_IFDIR:
			out = append(out, name+"/")
		case n.Mode&unix.S_IFMT == unix.S_IFLNK:
			out = append(out, name+"->"+n.Target)
		case n.Mode&unix.S_IFMT == unix.S_IFIFO:
			out = append(out, name+"|")
		default:
			out = append(out, name+"="+string(m.read(inodes[name])))
		}
	}
	return strings.Join(out, " ")
}

// inodes are those of the tree, by path.
func (m *made) inodes() map[string]*inode {
	out := map[string]*inode{}
	var walk func(path string, n *inode)
	walk = func(path string, n *inode) {
		out[path] = n
		if n.dir == nil {
			return
		}
		for name, e := range n.kids {
			walk(filepath.Join(path, name), e.inode)
		}
	}
	walk(".", m.tree.root)
	return out
}

func layers(l ...[]item) [][]item { return l }

// TestSemantics has one row for each rule; what is wanted follows from layer.md
// and, where that is silent, from the package comment. Where umoci is at hand it
// has to agree, but for the rows of which the comment says that it does not.
func TestSemantics(t *testing.T) {
	umociToo := hasUmoci(t)
	differs := map[string]bool{"notes of aufs": true, "global comment": true}
	lower := []item{directory("d"), file("d/a", "1"), file("d/b", "1"), directory("d/e"), file("d/e/f", "1"), file("x", "1"), symlink("s", "d")}
	wh := func(name string) item { return file(name, "") }
	for _, row := range []struct {
		name   string
		layers [][]item
		want   string
	}{
		{"nothing", layers(nil), ""},
		{"lower", layers(lower), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 s->d x=1"},
		{"whiteout", layers(lower, []item{wh(".wh.x"), wh("d/.wh.e")}), "d/ d/a=1 d/b=1 s->d"},
		{"whiteout of nothing", layers(lower[:1], []item{wh(".wh.y"), wh("d/.wh.y"), wh("q/.wh.y")}), "d/"},
		{"whiteout below a file", layers([]item{file("x", "1")}, []item{wh("x/.wh.y"), wh("x/.wh..wh..opq")}), "x=1"},
		{"whiteout of a link, not of its target", layers(lower, []item{wh(".wh.s")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 x=1"},
		{"whiteout through a link", layers(lower, []item{wh("s/.wh.a")}), "d/ d/b=1 d/e/ d/e/f=1 s->d x=1"},
		{"whiteout before the new entry", layers(lower, []item{wh(".wh.x"), file("x", "2")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 s->d x=2"},
		{"whiteout behind the new entry", layers(lower, []item{file("x", "2"), wh(".wh.x")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 s->d x=2"},
		{"whiteout of a directory that got something", layers(lower, []item{file("d/e/n", "2"), wh(".wh.d")}), "d/ d/e/ d/e/n=2 s->d x=1"},
		{"whiteout of a directory that got a directory which no entry names", layers(lower, []item{file("d/e/p/q/n", "2"), wh(".wh.d")}), "d/ d/e/ d/e/p/ d/e/p/q/ d/e/p/q/n=2 s->d x=1"},
		{"whiteout of the own layer's entry has no effect", layers([]item{file("n", "1"), wh(".wh.n")}), "n=1"},
		{"whiteout of any type", layers(lower, []item{directory("d/.wh.a"), symlink(".wh.x", "y")}), "d/ d/b=1 d/e/ d/e/f=1 s->d"},
		{"opaque before", layers(lower, []item{wh("d/.wh..wh..opq"), file("d/n", "2")}), "d/ d/n=2 s->d x=1"},
		{"opaque behind", layers(lower, []item{file("d/n", "2"), wh("d/.wh..wh..opq")}), "d/ d/n=2 s->d x=1"},
		{"opaque between", layers(lower, []item{file("d/a", "2"), wh("d/.wh..wh..opq"), file("d/e/n", "2")}), "d/ d/a=2 d/e/ d/e/n=2 s->d x=1"},
		{"opaque twice, parents first", layers(lower, []item{wh("d/.wh..wh..opq"), file("d/e/n", "2"), wh("d/e/.wh..wh..opq"), wh("d/.wh..wh..opq")}), "d/ d/e/ d/e/n=2 s->d x=1"},
		{"opaque root", layers(lower, []item{file("d/n", "2"), wh(".wh..wh..opq")}), "d/ d/n=2"},
		{"opaque keeps a hard link to what it hides", layers(lower, []item{hardlink("d/n", "x"), wh(".wh..wh..opq")}), "d/ d/n=1"},
		{"opaque in the third layer hides both below", layers(lower, []item{file("d/n", "2")}, []item{wh("d/.wh..wh..opq")}), "d/ s->d x=1"},
		{"notes of aufs", layers(lower[:1], []item{wh(".wh..wh.aufs"), directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), directory("d/.wh..wh.orph")}), "d/"},

		{"file over file", layers([]item{file("x", "1"), file("x", "2")}), "x=2"},
		{"file over a hard link leaves the other name", layers([]item{file("x", "1"), hardlink("y", "x")}, []item{file("x", "2")}), "x=2 y=1"},
		{"file over directory", layers(lower, []item{file("d", "2")}), "d=2 s->d x=1"},
		{"file over link", layers(lower, []item{file("s", "2")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 s=2 x=1"},
		{"link over directory", layers(lower, []item{symlink("d", "x")}), "d->x s->d x=1"},
		{"directory over directory", layers(lower, []item{directory("d")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 s->d x=1"},
		{"directory over file", layers(lower, []item{directory("x"), file("x/y", "2")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 s->d x/ x/y=2"},
		{"directory over link to a directory", layers(lower, []item{directory("s"), file("s/y", "2")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 s/ s/y=2 x=1"},
		{"directory and back", layers([]item{file("x", "1")}, []item{directory("x"), file("x/y", "2")}, []item{file("x", "3")}), "x=3"},
		{"FIFO over file", layers([]item{file("x", "1"), node(tar.TypeFifo, "x", 0, 0)}), "x|"},
		{"directory replaced within a layer and made again", layers([]item{file("d/a", "1"), file("d", "2"), directory("d"), file("d/b", "3")}), "d/ d/b=3"},

		{"hard link within", layers([]item{file("x", "1"), hardlink("y", "./x")}), "x=1 y==x"},
		{"hard link to a lower layer", layers([]item{file("x", "1")}, []item{hardlink("d/y", "/x")}), "d/ d/y=1 x==d/y"},
		{"hard link to a symbolic link", layers([]item{symlink("x", "y"), hardlink("z", "x")}), "x->y z==x"},
		{"hard link through a link", layers(lower, []item{hardlink("n", "s/a")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 n==d/a s->d x=1"},
		{"hard link over a file", layers([]item{file("x", "1"), file("y", "2"), hardlink("y", "x")}), "x=1 y==x"},

		{"parents that are missing", layers([]item{file("p/q/r", "1")}), "p/ p/q/ p/q/r=1"},
		{"parent is a link", layers(lower, []item{file("s/n", "2")}), "d/ d/a=1 d/b=1 d/e/ d/e/f=1 d/n=2 s->d x=1"},
		{"parent is an absolute link", layers([]item{symlink("s", "/p/q"), file("s/n", "2")}), "p/ p/q/ p/q/n=2 s->/p/q"},
		{"parent is a link out of the tree", layers([]item{symlink("s", "../../../p"), file("s/n", "2")}), "p/ p/n=2 s->../../../p"},
		{"parent is a link to the root", layers([]item{symlink("s", "/"), file("s/n", "2")}), "n=2 s->/"},
		{"link with a missing part that it leaves again", layers([]item{symlink("s", "q/../p"), file("s/n", "2")}), "p/ p/n=2 s->q/../p"},
		{"the way changes when the missing part appears", layers([]item{
			directory("p"), directory("o"), symlink("s", "q/../p"), file("s/1", "1"), directory("o/i"), symlink("q", "o/i"), directory("o/p"), file("s/2", "2")}),
			"o/ o/i/ o/p/ o/p/2=2 p/ p/1=1 q->o/i s->q/../p"},
		{"the way changes by an entry of the directory", layers([]item{directory("o/i"), symlink("s", "q/.."), symlink("s/q", "o/i"), file("s/2", "2")}),
			"o/ o/2=2 o/i/ q->o/i s->q/.."},
		{"the way changes by an entry that replaces it", layers([]item{symlink("s", "."), file("s/1", "1"), symlink("s/s", "p"), file("s/2", "2")}), "1=1 p/ p/2=2 s->p"},
		{"a link is replaced under a name that was resolved", layers([]item{
			symlink("s", "p"), file("s/1", "1"), symlink("s", "q"), file("s/2", "2")}), "p/ p/1=1 q/ q/2=2 s->q"},

		{"odd names", layers([]item{file("./a", "1"), file("b//c", "1"), file("/d", "1"), file("../e", "1"), file("x/../f", "1"), file("g/./h", "1"), directory("i///")}),
			"a=1 b/ b/c=1 d=1 e=1 f=1 g/ g/h=1 i/"},
		{"name as long as the kernel takes", layers([]item{file(strings.Repeat("n", 255), "1")}), strings.Repeat("n", 255) + "=1"},
		{"name of GNU tar, long", layers([]item{file(strings.Repeat("p/", 120)+"q", "1").format(tar.FormatGNU), file("p/a", "2")}), ""},
		{"old names", layers([]item{file("a", "1").format(tar.FormatUSTAR), symlink("l", strings.Repeat("t/", 200)).format(tar.FormatGNU)}), "a=1 l->" + strings.Repeat("t/", 200)},
		{"global comment", layers([]item{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "0123"}}}, file("a", "1")}), "a=1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := brief(mustApply(t, packAll(t, row.layers)...))
			if row.want == "" && len(row.layers[0]) > 0 {
				if !strings.HasPrefix(got, "p/ p/a=2 p/p/ p/p/p/") || !strings.HasSuffix(got, "/p/q=1") {
					t.Errorf("got %s", got)
				}
				return
			}
			if got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			if umociToo && !differs[row.name] && sameAsUmoci(t, packAll(t, row.layers)...) == nil {
				t.Error("umoci refuses it")
			}
		})
	}
}

// TestRefused has what is no layer, or one that Linux cannot hold.
func TestRefused(t *testing.T) {
	for _, row := range []struct {
		name   string
		layers [][]item
		want   string
	}{
		{"root is a file", layers([]item{file(".", "")}), "the root of the tree is a directory"},
		{"root is a link", layers([]item{symlink("./", "/etc")}), "the root of the tree is a directory"},
		{"root by dots", layers([]item{symlink("a/..", "/etc")}), "the root of the tree is a directory"},
		{"name is empty", layers([]item{file("", "")}), "the root of the tree is a directory"},
		{"parent is a file", layers([]item{file("x", "1"), file("x/y", "2")}), `make directory "x": not a directory`},
		{"parent is a loop", layers([]item{symlink("x", "y"), symlink("y", "x"), file("x/z", "2")}), "too many levels of symbolic links"},
		{"parent of a note is a loop", layers([]item{symlink("x", "y"), symlink("y", "x"), file("x/.wh..wh.a", "")}), "too many levels of symbolic links"},
		{"parent is a link to itself", layers([]item{symlink("x", "x"), file("x/z", "2")}), "too many levels of symbolic links"},
		{"link without a target", layers([]item{symlink("x", "")}), "link without a target"},
		{"hard link to nothing", layers([]item{hardlink("x", "y")}), `hard link to "y": no such file`},
		{"hard link to itself", layers([]item{file("x", "1"), hardlink("x", "x")}), `hard link to "x": no such file`},
		{"hard link to a directory", layers([]item{directory("d"), hardlink("x", "d")}), "operation not permitted"},
		{"hard link to the root", layers([]item{hardlink("x", "/")}), "hard link to the root"},
		{"hard link into what it replaces", layers([]item{file("d/x", "1"), hardlink("d", "d/x")}), "no such file"},
		{"whiteout without a name", layers([]item{file("d/.wh.", "")}), "whiteout without a name"},
		{"whiteout of the directory", layers([]item{file("d/.wh..", "")}), "whiteout without a name"},
		{"whiteout of the directory above", layers([]item{file(".wh...", "")}), "whiteout without a name"},
		{"whiteout as a parent", layers([]item{file("d/.wh.x/y", "")}), "the name is that of a whiteout"},
		{"whiteout as a parent, by a link", layers([]item{symlink("s", ".wh.x"), file("s/y", "")}), "the name is that of a whiteout"},
		{"owner -1", layers([]item{file("x", "").owned(1<<32-1, 0)}), "owner 4294967295:0: want 0 to 4294967294"},
		{"group below 0", layers([]item{file("x", "").owned(0, -2)}), "owner 0:-2"},
		{"major", layers([]item{node(tar.TypeChar, "x", 4096, 0)}), "device 4096:0: want at most 4095:1048575"},
		{"minor", layers([]item{node(tar.TypeBlock, "x", 0, 1<<20)}), "device 0:1048576"},
		{"part of a name", layers([]item{file(strings.Repeat("n", 256), "")}), "file name too long"},
		{"name of a whiteout", layers([]item{file(".wh."+strings.Repeat("n", 256), "")}), "file name too long"},
		{"part of a directory's name", layers([]item{file(strings.Repeat("n", 256)+"/x", "")}), "file name too long"},
		{"type", layers([]item{{Header: tar.Header{Typeflag: '7', Name: "x"}}}), "type '7' is not supported"},
		{"type of a volume", layers([]item{{Header: tar.Header{Typeflag: 'V', Name: "x"}}}), "type 'V' is not supported"},
		{"global header that renames", layers([]item{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": "etc/passwd"}}}, file("a", "")}), `record "path" is not supported`},
		{"attribute of a link", layers([]item{symlink("x", "y").attr("user.a", "b")}), `set attribute "user.a"`},
		{"access list of version 1", layers([]item{file("x", "").attr(aclAccess, "\x01\x00\x00\x00")}), "set attribute \"system.posix_acl_access\": invalid argument"},
		{"default access list of a link", layers([]item{symlink("x", "y").attr(aclDefault, acl)}), "set attribute \"system.posix_acl_default\""},
		{"attribute without a name", layers([]item{file("x", "").attr("user.", "b")}), `set attribute "user."`},
		{"attribute with a long name", layers([]item{file("x", "").attr("user."+strings.Repeat("n", 251), "b")}), "out of range"},
		{"attribute with a long value", layers([]item{file("x", "").attr("user.a", strings.Repeat("n", 1<<16))}), "argument list too long"},
		{"many attributes", layers([]item{file("x", "").attr("user.a", strings.Repeat("n", 60000)).attr("user.b", strings.Repeat("n", 60000)).attr("user.c", strings.Repeat("n", 60000))}), "180018 bytes of attributes: want at most 131072"},
		{"capability of revision 1", layers([]item{file("x", "").attr(capability, "\x01\x00\x00\x01"+strings.Repeat("\x00", 8))}), "set attribute \"security.capability\": invalid argument"},
		{"capability cut off", layers([]item{file("x", "").attr(capability, netRaw[:19])}), "set attribute \"security.capability\": invalid argument"},
		{"attribute of no class", layers([]item{file("x", "").attr("nothing", "b")}), `set attribute "nothing"`},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := apply(Limits{}, packAll(t, row.layers)...)
			var bad *EntryError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("got %v, want an EntryError with %q", err, row.want)
			}
			if last := row.layers[len(row.layers)-1]; bad.Index > int64(len(last)) {
				t.Errorf("entry %d of %d", bad.Index, len(last))
			}
		})
	}
}

// TestLinkChain follows as many links as the kernel would, and as long a way as
// makes sense.
func TestLinkChain(t *testing.T) {
	chain := func(n int, target func(string) string) []item {
		items := []item{directory("l0")}
		for i := range n {
			items = append(items, symlink(fmt.Sprintf("l%d", i+1), target(fmt.Sprintf("l%d", i))))
		}
		return append(items, file(fmt.Sprintf("l%d/x", n), ""))
	}
	plain := func(name string) string { return name }
	winding := func(name string) string { return strings.Repeat("./", 1900) + name }
	for _, row := range []struct {
		name  string
		items []item
		good  bool
	}{
		{"40", chain(40, plain), true},
		{"41", chain(41, plain), false},
		{"4 long ones", chain(4, winding), true},
		{"5 long ones", chain(5, winding), false},
	} {
		_, err := apply(Limits{}, pack(t, row.items...))
		if row.good && err != nil || !row.good && !errors.Is(err, unix.ELOOP) {
			t.Errorf("%s: got %v", row.name, err)
		}
	}
}

func TestMetadata(t *testing.T) {
	m := mustApply(t,
		pack(t,
			directory("d").perm(0o2775).owned(5, 6).at(100, 1).attr("user.a", "1"),
			file("d/setuid", "x").perm(0o4755).owned(7, 8).at(1<<33, 999999999).attr(capability, netRaw),
			symlink("d/link", "setuid").owned(9, 10).at(-5, 7),
			node(tar.TypeChar, "d/null", 1, 3).perm(0o666).attr("trusted.t", "t"),
			node(tar.TypeBlock, "d/disk", 259, 1<<20-1).owned(0, 6).perm(0o660),
			file("d/zero", "").attr("user.empty", ""),
			file("d/e/missing", "").attr("trusted.overlay.redirect", "/x").attr("security.selinux", "y"),
			file("q/r/missing", ""),
		),
		pack(t, directory("d").perm(0o700).at(200, 2).attr("user.b", "2"), file("d/new", ""), file("d/.wh.zero", "")),
		pack(t, file("d/newer", ""), hardlink("d/other", "d/setuid")),
	)
	tree := m.show()
	for name, want := range map[string]shown{
		".":           {Mode: unix.S_IFDIR | 0o755, Links: 4, Time: stamp(0, 0)},
		"d":           {Mode: unix.S_IFDIR | 0o700, Links: 3, Time: stamp(200, 2), Attrs: map[string]string{"user.b": "2"}},
		"d/setuid":    {Mode: unix.S_IFREG | 0o4755, UID: 7, GID: 8, Links: 2, Size: 1, Time: stamp(1<<33, 999999999), Attrs: map[string]string{capability: netRaw}, Digest: "2d711642b726b044", First: "d/other"},
		"d/link":      {Mode: unix.S_IFLNK | 0o777, UID: 9, GID: 10, Links: 1, Time: stamp(-5, 7), Target: "setuid", First: "d/link"},
		"d/null":      {Mode: unix.S_IFCHR | 0o666, Links: 1, Rdev: unix.Mkdev(1, 3), Time: stamp(day.Unix(), 123456789), Attrs: map[string]string{"trusted.t": "t"}, First: "d/null"},
		"d/disk":      {Mode: unix.S_IFBLK | 0o660, GID: 6, Links: 1, Rdev: unix.Mkdev(259, 1<<20-1), Time: stamp(day.Unix(), 123456789), First: "d/disk"},
		"d/e":         {Mode: unix.S_IFDIR | 0o2755, GID: 6, Links: 2, Time: stamp(0, 0)},
		"q":           {Mode: unix.S_IFDIR | 0o755, Links: 3, Time: stamp(0, 0)},
		"q/r":         {Mode: unix.S_IFDIR | 0o755, Links: 2, Time: stamp(0, 0)},
		"d/e/missing": {Mode: unix.S_IFREG | 0o644, Links: 1, Time: stamp(day.Unix(), 123456789), Digest: "e3b0c44298fc1c14", First: "d/e/missing"},
	} {
		want.First = tree[name].First
		if got := tree[name]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, want)
		}
	}
	if tree["d/setuid"].First != tree["d/other"].First {
		t.Error("d/other is no second name of d/setuid")
	}
	t.Run("on disk", func(t *testing.T) {
		needRoot(t)
		before := unix.Umask(0o077)
		defer unix.Umask(before)
		base, mine := t.TempDir(), t.TempDir()
		if err := m.extract(mine); err != nil {
			t.Fatal(err)
		}
		same(t, tree, mine)
		if dir, ok := m.mount(t, base); ok {
			same(t, tree, dir)
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestSparseByHand has headers as the GNU tar manual describes them.
func TestSparseByHand(t *testing.T) {
	body := strings.Repeat("D", 512)
	for name, layer := range map[string][]byte{
		"PAX 0.1": rawTar(paxHeader("GNU.sparse.size=1049600", "GNU.sparse.numblocks=1", "GNU.sparse.map=1048576,512", "GNU.sparse.name=x"), rawHeader("0", '0', 512, nil), []byte(body)),
		"GNU": rawTar(rawHeader("x", 'S', 512, func(h []byte) {
			copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", 1<<20, 512))
			copy(h[483:], fmt.Sprintf("%011o\x00", 1<<20+1024))
		}), []byte(body)),
	} {
		t.Run(name, func(t *testing.T) {
			m := mustApply(t, layer)
			n := m.inodes()["x"]
			if got, want := string(m.read(n)), strings.Repeat("\x00", 1<<20)+body+strings.Repeat("\x00", 512); got != want {
				t.Errorf("%d bytes, want %d; or they differ", len(got), len(want))
			}
			if len(m.content[0]) != BlockSize || fmt.Sprint(n.runs) != "[{256 1}]" {
				t.Errorf("%d bytes of content, runs %v: the hole is filled", len(m.content[0]), n.runs)
			}
		})
	}
}

// sparseFile is a file with holes as GNU tar packs it for PAX, version 0.1, with data of one byte's repetition.
func sparseFile(name string, size int, runs ...[2]int) []byte {
	var text []string
	var data []byte
	if len(runs) == 0 {
		runs = [][2]int{{size, 0}}
	}
	for i, r := range runs {
		text = append(text, fmt.Sprintf("%d,%d", r[0], r[1]))
		data = append(data, bytes.Repeat([]byte{byte(i + 1)}, r[1])...)
	}
	return slices.Concat(paxHeader(fmt.Sprintf("GNU.sparse.size=%d", size), fmt.Sprintf("GNU.sparse.numblocks=%d", len(runs)),
		"GNU.sparse.map="+strings.Join(text, ","), "GNU.sparse.name="+name), rawHeader("0", '0', len(data), nil), padded(data))
}

// TestSparseFiles has holes and data at the edges of blocks and pieces, as a tree
// and as the chunks of the image.
func TestSparseFiles(t *testing.T) {
	const k = 1 << 10
	umociToo := hasUmoci(t)
	for _, row := range []struct {
		name   string
		size   int
		runs   [][2]int
		want   string // runs, in blocks
		chunk  int    // bytes
		chunks int
	}{
		{"a hole", 1 << 20, nil, "[{256 0}]", 1 << 20, 1},
		{"a hole of one byte", 1, nil, "[{1 0}]", 4 * k, 1},
		{"no hole", 8 * k, [][2]int{{0, 8 * k}}, "[{0 2}]", 8 * k, 1},
		{"data first", 65 * k, [][2]int{{0, 8 * k}}, "[{0 2} {15 0}]", 8 * k, 9},
		{"data last", 65 * k, [][2]int{{64 * k, k}}, "[{16 1}]", 64 * k, 2},
		{"data in the middle", 64 * k, [][2]int{{16 * k, 16 * k}}, "[{4 4} {8 0}]", 16 * k, 4},
		{"two in the middle, odd", 100*k + 1, [][2]int{{5 * k, k}, {28*k - 1, 2}}, "[{1 1} {4 2} {18 0}]", 4 * k, 26},
		{"a byte at the end", 40*k + 1, [][2]int{{40 * k, 1}}, "[{10 1}]", 8 * k, 6},
		{"large pieces", 300 << 20, [][2]int{{0, 1}, {200<<20 + 5, 8 * k}, {300<<20 - 1, 1}}, "[{0 2} {51198 4} {25594 2}]", 8 * k, 38400},
	} {
		t.Run(row.name, func(t *testing.T) {
			layer := rawTar(sparseFile("x", row.size, row.runs...), rawHeader("y", '0', 1, nil), padded([]byte("y")))
			m := mustApply(t, layer)
			x := m.inodes()["x"]
			want := make([]byte, row.size)
			for i, r := range row.runs {
				copy(want[r[0]:], bytes.Repeat([]byte{byte(i + 1)}, r[1]))
			}
			if !bytes.Equal(m.read(x), want) {
				t.Error("the content differs")
			}
			runs := x.runs
			if runs == nil {
				runs = []run{{0, uint32(blockCount(x.size))}}
			}
			if got := fmt.Sprint(runs); got != row.want {
				t.Errorf("runs %s, want %s", got, row.want)
			}
			c := (&converter{devices: []int{0}}).chunks(x)
			if c.Size != row.chunk || len(c.At) != row.chunks {
				t.Errorf("%d chunks of %d bytes, want %d of %d", len(c.At), c.Size, row.chunks, row.chunk)
			}
			if umociToo && sameAsUmoci(t, layer) == nil {
				t.Error("umoci refuses it")
			}
		})
	}
}

// rawHeader is a ustar header as POSIX has it, for what archive/tar does not write.
func rawHeader(name string, flag byte, size int, more func([]byte)) []byte {
	h := make([]byte, 512)
	copy(h[0:], name)
	copy(h[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", 0o644, os.Geteuid(), os.Getegid(), size, 1700000000))
	h[156] = flag
	copy(h[257:], "ustar  \x00")
	if flag != 'S' {
		copy(h[257:], "ustar\x0000")
	}
	if more != nil {
		more(h)
	}
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func paxHeader(records ...string) []byte {
	var body strings.Builder
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprintf("%d %s\n", n, r)) != n {
			n++
		}
		fmt.Fprintf(&body, "%d %s\n", n, r)
	}
	return slices.Concat(rawHeader("pax", 'x', body.Len(), nil), padded([]byte(body.String())))
}

func padded(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }

func rawTar(parts ...[]byte) []byte { return append(slices.Concat(parts...), make([]byte, 1024)...) }

// TestStream says what the end of a layer is.
func TestStream(t *testing.T) {
	whole := pack(t, file("a", strings.Repeat("1", 700)), file("b", "2"))
	failure := errors.New("digest differs")
	for _, row := range []struct {
		name  string
		layer io.Reader
		want  error // nil: taken
		trail int64
	}{
		{"empty", strings.NewReader(""), nil, 0},
		{"one block of zeros", bytes.NewReader(make([]byte, 512)), nil, 0},
		{"end mark", bytes.NewReader(make([]byte, 1024)), nil, 0},
		{"whole", bytes.NewReader(whole), nil, 0},
		{"no end mark", bytes.NewReader(whole[:len(whole)-1024]), nil, 0},
		{"half an end mark", bytes.NewReader(whole[:len(whole)-512]), nil, 0},
		{"zeros behind", io.MultiReader(bytes.NewReader(whole), bytes.NewReader(make([]byte, 9<<20))), nil, 0},
		{"garbage behind", io.MultiReader(bytes.NewReader(whole), strings.NewReader("garbage")), nil, 7},
		{"a second tar behind", io.MultiReader(bytes.NewReader(whole), bytes.NewReader(pack(t, file("c", "3")))), nil, -1},
		{"cut in a header", bytes.NewReader(whole[:100]), io.ErrUnexpectedEOF, 0},
		{"cut in a body", bytes.NewReader(whole[:3*512+100]), io.ErrUnexpectedEOF, 0},
		{"cut in the end mark", bytes.NewReader(whole[:len(whole)-600]), io.ErrUnexpectedEOF, 0},
		{"no tar", strings.NewReader(strings.Repeat("no tar, ", 200)), tar.ErrHeader, 0},
		{"the reader fails at the end", io.MultiReader(bytes.NewReader(whole), failing{failure}), failure, 0},
		{"the reader fails far behind the end mark", io.MultiReader(bytes.NewReader(whole), bytes.NewReader(make([]byte, 5<<20)), failing{failure}), failure, 0},
		{"a byte at a time", oneByte{bytes.NewReader(whole)}, nil, 0},
		{"a reader that gives nothing", failing{nil}, io.ErrNoProgress, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := NewBudget(Limits{})
			l, err := Read(t.Context(), row.layer, io.Discard, b)
			if !errors.Is(err, row.want) {
				t.Fatalf("got %v, want %v", err, row.want)
			}
			if row.want != nil {
				if l != nil {
					t.Error("a layer behind an error")
				}
				return
			}
			if s := l.Stats(); row.trail >= 0 && s.Trailing != row.trail || row.trail < 0 && s.Trailing == 0 {
				t.Errorf("%d bytes trail, want %d", s.Trailing, row.trail)
			}
			tree := NewTree(b)
			if err := tree.Apply(l); err != nil {
				t.Fatal(err)
			}
			if _, ok := tree.root.kids["c"]; ok {
				t.Error("an entry behind the end mark was taken")
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(len(p), 1)]) }

// TestCut cuts a layer anywhere: what is taken ends at a header, or in the zeros
// that fill the block before it.
func TestCut(t *testing.T) {
	whole := pack(t, directory("d"), file("d/a", strings.Repeat("1", 600)), file("b", ""))
	for n := 0; n < len(whole); n += 11 {
		_, err := apply(Limits{}, whole[:n])
		var bad *EntryError
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if errors.As(err, &bad) && bad.Name != "d/a" {
			t.Errorf("%d bytes: entry %q has no body to be cut", n, bad.Name)
		}
		if rest := whole[n : n+(-n&511)]; err == nil && len(bytes.Trim(rest, "\x00")) > 0 {
			t.Errorf("%d bytes: taken without %q", n, rest)
		}
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err := Read(ctx, &repeat{data: pack(t, directory("a"))[:1536]}, io.Discard, NewBudget(Limits{}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// repeat gives data again and again.
type repeat struct {
	data  []byte
	at    int
	total int64
}

func (r *repeat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], r.data[r.at:])
		n, r.at = n+k, (r.at+k)%len(r.data)
	}
	r.total += int64(n)
	return n, nil
}

// TestApplyEnds has layers that take long to apply: someone may stop it, and it ends.
func TestApplyEnds(t *testing.T) {
	l, err := Read(t.Context(), bytes.NewReader(pack(t, file("a", "1"))), io.Discard, NewBudget(Limits{}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	tree := NewTree(NewBudget(Limits{})).Until(ctx)
	if err := tree.Apply(l); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := tree.Write(io.Discard, [16]byte{1}, []string{"a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Write: got %v", err)
	}
	if err := tree.Apply(l); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: got %v", err)
	}
	// Each name takes some 1,600 steps: the target goes to and fro.
	items := []item{directory("d"), symlink("l", strings.Repeat("d/../", 800)+"d")}
	e := encoder{}
	for _, i := range items {
		r, err := newRecord(&i.Header, &tree.limits, &Stats{})
		if err != nil {
			t.Fatal(err)
		}
		e.add(r)
	}
	for range 64 << 10 {
		e.add(&record{kind: kindWhiteout, name: "l/x"})
	}
	var limit *LimitError
	if err := NewTree(NewBudget(Limits{})).Apply(&Layer{records: e.b}); !errors.As(err, &limit) || limit.Most != maxSteps {
		t.Errorf("got %v: want a LimitError", err)
	}
}

// TestFailedTree has no use for a tree of which half a layer is missing.
func TestFailedTree(t *testing.T) {
	b := NewBudget(Limits{})
	var read []*Layer
	for _, layer := range packAll(t, layers([]item{file("a", "1")}, []item{file("b", ""), file("a/x", "2")})) {
		l, err := Read(t.Context(), bytes.NewReader(layer), io.Discard, b)
		if err != nil {
			t.Fatal(err)
		}
		read = append(read, l)
	}
	tree := NewTree(b)
	if err := tree.Apply(read[0]); err != nil {
		t.Fatal(err)
	}
	want := `unpack: layer 2: entry 2: "a/x": make directory "a": not a directory`
	if err := tree.Apply(read[1]); err == nil || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
	for what, err := range map[string]error{
		"Apply": tree.Apply(read[0]), "Write": tree.Write(io.Discard, [16]byte{1}, []string{""}),
		"Extract": tree.Extract(t.Context(), t.TempDir(), make([]io.ReaderAt, 2)),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// TestSideBySide reads layers at once, on one budget.
func TestSideBySide(t *testing.T) {
	const count = 8
	layer := pack(t, file("a", strings.Repeat("1", 100<<10)), directory("d"), file("d/b", "2"))
	b := NewBudget(Limits{Entries: 3*count - 1, Bytes: count * 200 << 10})
	errs := make(chan error)
	for range count {
		go func() {
			_, err := Read(t.Context(), bytes.NewReader(layer), io.Discard, b)
			errs <- err
		}()
	}
	failed := 0
	for range count {
		var limit *LimitError
		if err := <-errs; errors.As(err, &limit) {
			failed++
		} else if err != nil {
			t.Error(err)
		}
	}
	if failed != 1 {
		t.Errorf("%d layers exceed the limit, want 1", failed)
	}
}

// TestMemory has a layer of many names.
func TestMemory(t *testing.T) {
	const count = 200_000
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for n := range count {
		i := file(fmt.Sprintf("usr/share/package-%d/name-of-a-file-%d", n/20, n), "").format(tar.FormatUSTAR)
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatal(err)
		}
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	b := NewBudget(Limits{})
	l, err := Read(t.Context(), &buf, io.Discard, b)
	if err != nil {
		t.Fatal(err)
	}
	read := heap()
	tree := NewTree(b)
	if err := tree.Apply(l); err != nil {
		t.Fatal(err)
	}
	applied := heap()
	t.Logf("%d bytes a name in the layer, %d in the tree", len(l.records)/count, (applied-read)/count)
	if each := (applied - read) / count; each > 300 {
		t.Errorf("%d bytes for each name", each)
	}
	if size := len(l.records) / count; size > 64 {
		t.Errorf("%d bytes for each record", size)
	}
	runtime.KeepAlive(tree)
}
