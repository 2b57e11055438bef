package source

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/internal/xz"
)

var layerFiles = []tarFile{
	{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
	{tar.Header{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
	{tar.Header{Name: "usr/bin/agent", Mode: 0o755, Uid: 1001, Gid: 121}, "first"},
	{tar.Header{Name: "./usr//bin/./agent", Mode: 0o755, Uid: 1001, Gid: 121}, "second"},
	{tar.Header{Name: "usr/bin/twin", Typeflag: tar.TypeLink, Linkname: "usr/bin/agent"}, ""},
	{tar.Header{Name: "usr/bin/ping", Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x00\x01\xff"}}, "ping"},
	{tar.Header{Name: "usr/bin/sh", Typeflag: tar.TypeSymlink, Linkname: "/bin/dash", Mode: 0o777}, ""},
	{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o666}, ""},
	{tar.Header{Name: "etc/.wh.passwd", Mode: 0o644}, ""},
	{tar.Header{Name: "var/lost", Typeflag: tar.TypeLink, Linkname: "of/another/layer"}, ""},
	{tar.Header{Name: "var/link\xff", Typeflag: tar.TypeSymlink, Linkname: "a"}, ""},
}

// all takes everything as it is.
func all(name string) (string, bool) { return name, true }

// only takes what lies in a directory.
func only(dir string) func(string) (string, bool) {
	return func(name string) (string, bool) { return name, strings.HasPrefix(name, dir+"/") }
}

func TestUnpackLayer(t *testing.T) {
	files := layerFiles[:len(layerFiles)-1] // the last has a name that is no text
	plain := tarOf(t, files...)
	var zst bytes.Buffer
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	half := len(plain) / 2
	for name, blob := range map[string][]byte{
		"tar": plain, "gzip": gzipOf(t, plain), "xz": xzOf(t, plain), "zstd": zst.Bytes(),
		"gzip in two": append(gzipOf(t, plain[:half]), gzipOf(t, plain[half:])...),
	} {
		st := store(t)
		ref := put(t, st, blob)
		l, err := UnpackLayer(context.Background(), st, ref, int64(len(plain)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := ""
		for _, m := range l.Members {
			got += fmt.Sprintf("%s %o %d:%d %d %s%s%s\n", m.Path, m.Mode, m.UID, m.GID, m.Size, m.Target, m.Link, m.Problem)
		}
		want := `. 40755 0:0 0 
dev/null 666 0:0 0 type '3' with attributes [] is not supported
etc/.wh.passwd 100644 0:0 0 deletes a file of a lower layer, which is not supported
usr 40755 0:0 0 
usr/bin/agent 100755 1001:121 6 
usr/bin/ping 100755 0:0 4 
usr/bin/sh 120777 0:0 0 /bin/dash
usr/bin/twin 100000 0:0 0 usr/bin/agent
var/lost 100000 0:0 0 of/another/layer
`
		if got != want {
			t.Errorf("%s:\n%s", name, cmp.Diff(want, got))
		}
		// The second call must not need the layer.
		if name != "tar" { // which is its own content
			if err := st.Remove(ref.Digest); err != nil {
				t.Fatal(err)
			}
		}
		again, err := UnpackLayer(context.Background(), st, ref, 0)
		if err != nil || !cmp.Equal(l, again) {
			t.Errorf("%s: again: %v\n%s", name, err, cmp.Diff(l, again))
		}
		st = store(t)
		if _, err := UnpackLayer(context.Background(), st, put(t, st, blob), int64(len(plain))-1); !errors.As(err, new(*xz.LimitError)) {
			t.Errorf("%s: limit: %v", name, err)
		}
	}
}

func unpacked(t *testing.T, st *cas.Store, files ...tarFile) *Layer {
	t.Helper()
	l, err := UnpackLayer(context.Background(), st, put(t, st, tarOf(t, files...)), 1<<24)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayerEntries(t *testing.T) {
	st := store(t)
	l := unpacked(t, st, layerFiles[:len(layerFiles)-1]...)
	list := func(place func(string) (string, bool)) string {
		entries, err := l.Entries(st, place)
		if err != nil {
			return err.Error()
		}
		text := ""
		for _, e := range entries {
			text += fmt.Sprintf("%s %o %d:%d %s%s %q", e.Path, e.Mode, e.UID, e.GID, e.Target, e.Link, e.Xattrs["security.capability"])
			if e.Content.Open != nil {
				var b bytes.Buffer
				if err := e.Content.Copy(&b); err != nil {
					t.Error(err)
				}
				text += " " + b.String()
			}
			text += "\n"
		}
		return text
	}
	for _, c := range []struct {
		name  string
		place func(string) (string, bool)
		want  string
	}{
		{"a directory", only("usr/bin"), `usr/bin/agent 100755 1001:121  "" second
usr/bin/ping 100755 0:0  "\x00\x01\xff" ping
usr/bin/sh 120777 0:0 /bin/dash ""
usr/bin/twin 0 0:0 usr/bin/agent ""
`},
		{"elsewhere", func(name string) (string, bool) { return "opt/" + path.Base(name), path.Dir(name) == "usr/bin" }, `opt/agent 100755 1001:121  "" second
opt/ping 100755 0:0  "\x00\x01\xff" ping
opt/sh 120777 0:0 /bin/dash ""
opt/twin 0 0:0 opt/agent ""
`},
		{"a link without what it leads to", func(name string) (string, bool) { return name, name == "usr/bin/twin" }, "usr/bin/twin 100755 1001:121  \"\" second\n"},
		{"all", all, "source: layer: dev/null: type '3' with attributes [] is not supported"},
		{"a deletion", only("etc"), "source: layer: etc/.wh.passwd: deletes a file of a lower layer, which is not supported"},
		{"a link to another layer", only("var"), "source: layer: var/lost: hard link to of/another/layer, which is not in the layer"},
	} {
		if got := list(c.place); got != c.want {
			t.Errorf("%s:\n%s", c.name, cmp.Diff(c.want, got))
		}
	}
}

func TestLayerRefusals(t *testing.T) {
	layer := func(h tar.Header) []byte { return tarOf(t, tarFile{h, ""}) }
	good := tarOf(t, layerFiles[:3]...)
	for _, c := range []struct {
		name string
		blob []byte
		say  string
	}{
		{"absolute path", layer(tar.Header{Name: "/etc/passwd"}), "leaves the layer"},
		{"path upwards", layer(tar.Header{Name: "../x"}), "leaves the layer"},
		{"path upwards inside", layer(tar.Header{Name: "a/../b"}), "leaves the layer"},
		{"hard link upwards", layer(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../y"}), "leaves the layer"},
		{"absolute hard link", layer(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "/y"}), "leaves the layer"},
		{"long path", layer(tar.Header{Name: strings.Repeat("a/", 2048) + "a"}), "want 1 to 4095 bytes"},
		{"path that is no text", tarOf(t, layerFiles[len(layerFiles)-1]), "is not clean"},
		{"twice around hard links", tarOf(t, slices.Repeat([]tarFile{{tar.Header{Name: "a"}, "x"}, {tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}, ""}}, maxReplaced+2)...), "are there again"},
		{"no archive", []byte(`{"schemaVersion": 2}` + strings.Repeat(" ", 512)), "invalid tar header"},
		{"truncated", good[:len(good)-1024-512], "truncated"},
		{"broken gzip", gzipOf(t, good)[:40], "unexpected EOF"},
	} {
		st := store(t)
		_, err := UnpackLayer(context.Background(), st, put(t, st, c.blob), 1<<24)
		if err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.say)
		}
	}
}

// What git archive and others write of the whole archive is no member.
func TestLayerGlobalHeader(t *testing.T) {
	global := tarFile{tar.Header{Name: "/tmp/GlobalHead.1.1", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""}
	l := unpacked(t, store(t), global, tarFile{tar.Header{Name: "a"}, "x"})
	if len(l.Members) != 1 || l.Members[0].Path != "a" {
		t.Errorf("got %+v", l.Members)
	}
}

// A hard link keeps the file that it was made to, as tar extracts it.
func TestLayerReplaced(t *testing.T) {
	st := store(t)
	link := func(name, to string) tarFile {
		return tarFile{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
	}
	l := unpacked(t, st, tarFile{tar.Header{Name: "a"}, "old"}, link("b", "a"), link("c", "a"), tarFile{tar.Header{Name: "a"}, "newer"}, link("d", "a"))
	entries, err := l.Entries(st, func(p string) (string, bool) { return p, true })
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]tree.Entry{}
	for _, e := range entries {
		at[e.Path] = e
	}
	if at["a"].Content.Size != 5 || at["b"].Content.Size != 3 || at["c"].Link != "b" || at["d"].Link != "a" {
		t.Errorf("got %+v", entries)
	}
}

// What is wrong with a member counts where the member is wanted, and only there.
func TestLayerProblems(t *testing.T) {
	for _, c := range []struct {
		header tar.Header
		say    string
	}{
		{tar.Header{Typeflag: tar.TypeFifo}, "type '6'"},
		{tar.Header{Typeflag: tar.TypeBlock}, "type '4'"},
		{tar.Header{Uid: 1<<31 + 1, Format: tar.FormatPAX}, "owner 2147483649:0 is out of bounds"},
		{tar.Header{Gid: -1, Format: tar.FormatGNU}, "owner 0:-1 is out of bounds"},
		{tar.Header{Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("l", 4096)}, "symbolic link to"},
		{tar.Header{Typeflag: tar.TypeSymlink, Linkname: "\xff", Format: tar.FormatGNU}, `symbolic link to "\xff"`},
		{tar.Header{PAXRecords: map[string]string{"SCHILY.xattr.user.\xff": "x"}}, "is not supported"},
		{tar.Header{Typeflag: tar.TypeLink, Linkname: "a"}, "hard link to a, a directory"},
		{tar.Header{Typeflag: tar.TypeLink, Linkname: "b/bad"}, "hard link through more than 40 others"},
		{tar.Header{Typeflag: tar.TypeLink, Linkname: "c"}, "hard link to c: type '3'"},
	} {
		c.header.Name = "b/bad"
		st := store(t)
		l := unpacked(t, st, tarFile{tar.Header{Name: "a/", Typeflag: tar.TypeDir}, ""}, tarFile{tar.Header{Name: "c", Typeflag: tar.TypeChar}, ""}, tarFile{c.header, ""})
		if _, err := l.Entries(st, only("b")); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%+v: got %v, want %q", c.header, err, c.say)
		}
		if _, err := l.Entries(st, only("a")); err != nil {
			t.Errorf("%+v: not wanted: %v", c.header, err)
		}
	}
}

// The content of a sparse file is in pieces: it is no range of the archive.
func TestLayerSparse(t *testing.T) {
	testenv.Need(t, "tar", "truncate")
	dir := t.TempDir()
	for _, c := range [][]string{
		{"truncate", "-s", "1M", dir + "/sparse"},
		{"tar", "-C", dir, "--sparse", "--format=posix", "-cf", dir + "/posix.tar", "sparse"},
		{"tar", "-C", dir, "--sparse", "--format=gnu", "-cf", dir + "/gnu.tar", "sparse"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, name := range []string{"posix.tar", "gnu.tar"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		st := store(t)
		l, err := UnpackLayer(context.Background(), st, put(t, st, b), 1<<24)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Entries(st, all); err == nil || !strings.Contains(err.Error(), "is not supported") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzListLayer(f *testing.F) {
	f.Add(tarOf(f, layerFiles...))
	f.Add(tarOf(f, layerFiles[:len(layerFiles)-1]...))
	f.Add(tarOf(f, sampleFiles...))
	f.Fuzz(func(t *testing.T, b []byte) {
		members, err := listLayer(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))))
		if err != nil {
			return
		}
		for i, m := range members {
			if !fs.ValidPath(m.Path) || m.Offset < 0 || m.Size < 0 || m.Offset > int64(len(b))-m.Size || i > 0 && members[i-1].Path >= m.Path {
				t.Fatalf("member %+v of %d bytes", m, len(b))
			}
		}
		l := &Layer{Members: members}
		entries, err := l.Entries(nil, all)
		for _, e := range entries {
			if e.Link == "" && e.Mode&tree.TypeMask == 0 {
				t.Fatalf("entry %+v, %v", e, err)
			}
		}
	})
}
