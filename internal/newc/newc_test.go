package newc

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// sample holds every kind of entry, hard links in both orders among them.
func sample(t testing.TB) []tree.Entry {
	t.Helper()
	tool := tree.File("bin/tool", 0o4755, tree.Bytes([]byte("tool\n")))
	tool.UID, tool.GID = 1000, 100
	entries, err := tree.Normalize([]tree.Entry{
		tree.CharDev("dev/console", 0o600, 5, 1),
		tree.CharDev("dev/far", 0o600, 511, 1048575), // minor above 255
		{Path: "dev/disk", Mode: tree.TypeBlkDev | 0o660, Major: 259, Minor: 300},
		{Path: "run/fifo", Mode: tree.TypeFIFO | 0o600},
		tree.Symlink("init", "bin/tool"),
		tree.File("empty", 0o400, tree.Bytes(nil)),
		tool,
		{Path: "bin/also", Link: "bin/tool"}, // before it in order
		{Path: "sbin/third", Link: "bin/tool"},
		tree.File("odd", 0o644, tree.Bytes([]byte("12345"))),
		tree.Dir("tmp", 0o1777),
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func write(t testing.TB, entries []tree.Entry, p Params) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Write(&buf, entries, p); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// A change of these bytes changes PCR 9 of every image.
func TestWriteGolden(t *testing.T) {
	got := sha256.Sum256(write(t, sample(t), Params{MTime: 1767225600}))
	const want = "3653f7db3c86f68e6f5c5f02b080942e698fccb6111ca29e94b1a6589cf32584"
	if hex.EncodeToString(got[:]) != want {
		t.Errorf("sha256 is %x, want %s", got, want)
	}
}

// The archive that systemd-stub 257 generates for an embedded .osrel of
// "ID=plinth\n": written out from src/boot/cpio.c (pack_cpio_prefix,
// pack_cpio_one, pack_cpio_trailer).
func TestWriteIsSystemdStubs(t *testing.T) {
	z := strings.Repeat("0", 8)
	want := "070701" + "00000001" + "0000416d" + z + z + "00000001" + z + z + z + z + z + z + "00000007" + z + ".extra\x00\x00\x00\x00" +
		"070701" + "00000002" + "00008124" + z + z + "00000001" + z + "0000000a" + z + z + z + z + "00000012" + z + ".extra/os-release\x00" +
		"ID=plinth\n\x00\x00" +
		"070701" + z + z + z + z + "00000001" + z + z + z + z + z + z + "0000000B" + z + "TRAILER!!!\x00\x00\x00\x00"
	got := write(t, []tree.Entry{
		tree.Dir(".extra", 0o555),
		tree.File(".extra/os-release", 0o444, tree.Bytes([]byte("ID=plinth\n"))),
	}, Params{})
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestWriteLengths(t *testing.T) {
	for n := range 9 {
		b := write(t, []tree.Entry{tree.File(strings.Repeat("n", n+1), 0, tree.Bytes(make([]byte, n)))}, Params{})
		if len(b)%4 != 0 {
			t.Errorf("name of %d bytes, data of %d: archive has %d bytes", n+1, n, len(b))
		}
	}
	if b := write(t, nil, Params{}); len(b) != 124 {
		t.Errorf("empty archive has %d bytes, want 124", len(b))
	}
}

func TestWriteRefuses(t *testing.T) {
	blob := tree.Bytes(nil)
	capable := tree.File("a", 0, blob)
	capable.Xattrs = map[string][]byte{"security.capability": nil}
	boom := errors.New("boom")
	for _, tt := range []struct {
		name  string
		entry tree.Entry
		want  string
	}{
		{"xattr", capable, "extended attributes"},
		{"trailer", tree.File("TRAILER!!!", 0, blob), "cannot be stored"},
		{"no name", tree.File("", 0, blob), "cannot be stored"},
		{"negative size", tree.File("a", 0, tree.Blob{Size: -1, Open: blob.Open}), "size is -1"},
		{"nul", tree.File("a\x00", 0, blob), "cannot be stored"},
		{"long name", tree.File(strings.Repeat("a", 4096), 0, blob), "name has 4096 bytes"},
		{"long target", tree.Symlink("a", strings.Repeat("a", 4096)), "target has 4096 bytes"},
		{"huge", tree.File("a", 0, tree.Blob{Size: 1 << 32, Open: blob.Open}), "size is 4294967296"},
		{"short blob", tree.File("a", 0, tree.Blob{Size: 1, Open: blob.Open}), "content has 0 bytes, want 1"},
		{"long blob", tree.File("a", 0, tree.Blob{Size: 1, Open: tree.Bytes([]byte("abc")).Open}), "more than 1 bytes"},
		{"no blob", tree.File("a", 0, tree.Blob{Size: 1}), "no content"},
		{"open fails", tree.File("a", 0, tree.Blob{Size: 1, Open: func() (io.ReadCloser, error) { return nil, boom }}), "boom"},
		{"dangling link", tree.Entry{Path: "a", Link: "b", Mode: tree.TypeFile}, "not in the archive"},
	} {
		err := Write(io.Discard, []tree.Entry{tt.entry}, Params{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := Write(io.Discard, []tree.Entry{tree.Dir("a", 0), tree.Dir("a", 0)}, Params{}); err == nil {
		t.Error("a path named twice was written")
	}
	for _, mtime := range []int64{-1, 1 << 32} {
		if err := Write(io.Discard, nil, Params{MTime: mtime}); err == nil {
			t.Errorf("time %d was written", mtime)
		}
	}
}

// flat makes entries comparable: content as bytes.
func flat(t testing.TB, entries []tree.Entry) []tree.Entry {
	t.Helper()
	out := append([]tree.Entry(nil), entries...)
	for i := range out {
		if out[i].Content.Open == nil {
			continue
		}
		r, err := out[i].Content.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil || int64(len(b)) != out[i].Content.Size {
			t.Fatalf("%s: %d bytes, %v", out[i].Path, len(b), err)
		}
		out[i].Xattrs, out[i].Content = map[string][]byte{"data": b}, tree.Blob{}
	}
	return out
}

func TestReadBack(t *testing.T) {
	in := sample(t)
	b := write(t, in, Params{MTime: 7})
	r := bytes.NewReader(append(b, "next"...))
	got, err := Read(r, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Len() != len("next") {
		t.Errorf("%d bytes left, want %d: the next archive's", r.Len(), len("next"))
	}
	norm, err := tree.Normalize(got)
	if err != nil {
		t.Fatal(err)
	}
	if again := write(t, norm, Params{MTime: 7}); !bytes.Equal(again, b) {
		t.Errorf("written again:\n% x\nwant\n% x", again, b)
	}
	// The first name of a hard-linked file becomes the one that is linked to.
	for i := range in {
		switch in[i].Path {
		case "bin/also":
			in[i].Link, in[i].Content = "", tree.Bytes([]byte("tool\n"))
		case "bin/tool", "sbin/third":
			in[i].Link, in[i].Content = "bin/also", tree.Blob{}
		}
	}
	if diff := cmp.Diff(flat(t, in), flat(t, got)); diff != "" {
		t.Error(diff)
	}
}

func TestReadTruncated(t *testing.T) {
	b := write(t, sample(t), Params{})
	for n := range len(b) - 3 { // the last 3 zeros may be missing
		if _, err := Read(bytes.NewReader(b[:n]), Limits{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut to %d of %d bytes: got %v, want unexpected EOF", n, len(b), err)
		}
	}
	if _, err := Read(bytes.NewReader(b[:len(b)-3]), Limits{}); err != nil {
		t.Errorf("without the last zeros: %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	file := string(write(t, []tree.Entry{tree.File("abc", 0o644, tree.Bytes([]byte("0123456789")))}, Params{}))
	dir := string(write(t, []tree.Entry{tree.Dir("abc", 0o755)}, Params{}))
	swap := func(s string, at int, new string) string { return s[:at] + new + s[at+len(new):] }
	field := func(i int) int { return len(magic) + 8*i }
	for _, tt := range []struct {
		name, in, want string
		lim            Limits
	}{
		{name: "magic", in: swap(file, 0, "070702"), want: `magic is "070702"`},
		{name: "digits", in: swap(file, field(3), "0000000g"), want: "field 3"},
		{name: "sign", in: swap(file, field(3), "+0000000"), want: "field 3"},
		{name: "no name", in: swap(file, field(11), "00000001"), want: "name size is 1"},
		{name: "long name", in: swap(file, field(11), "00001001"), want: "name size is 4097"},
		{name: "no NUL", in: swap(file, headerSize+3, "d"), want: "want one NUL"},
		{name: "two NULs", in: swap(file, headerSize+1, "\x00"), want: "want one NUL"},
		{name: "out", in: swap(file, headerSize, ".."+"/"), want: "no path within"},
		{name: "type", in: swap(file, field(1), "00000000"), want: "no known file type"},
		{name: "data of a directory", in: swap(dir, field(6), "00000004"), want: "with 4 bytes of data"},
		{name: "data of the trailer", in: swap(file, strings.Index(file, trailer)-headerSize+field(6), "00000004"), want: "trailer has 4 bytes"},
		{name: "bytes", in: file, lim: Limits{Bytes: 9}, want: "the limit leaves 9"},
		{name: "entries", in: file + "", lim: Limits{Entries: -1}, want: "more than"},
	} {
		_, err := Read(strings.NewReader(tt.in), tt.lim)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// One inode number for a file and a symbolic link: not the same file.
func TestReadJoinsLikes(t *testing.T) {
	b := string(write(t, []tree.Entry{tree.File("a", 0, tree.Bytes([]byte("1234"))), tree.Symlink("b", "1234")}, Params{}))
	b = strings.ReplaceAll(b, "070701"+"00000002", "070701"+"00000001")
	b = strings.ReplaceAll(b, "00000001"+"00000000"+"00000004", "00000002"+"00000000"+"00000004") // links before time and size
	entries, err := Read(strings.NewReader(b), Limits{})
	if err != nil || len(entries) != 2 || entries[1].Link != "" || entries[1].Target != "1234" {
		t.Errorf("got %+v, %v", entries, err)
	}
}

func TestReadCleansNames(t *testing.T) {
	for in, want := range map[string]string{"/a": "a", "./a": "a", ".//./a/b": "a/b", ".": ".", "./": ".", "/": ".", "d/": "d"} {
		if got := clean(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// A second opinion: u-root's reader, record by record.
func TestUrootReads(t *testing.T) {
	in := sample(t)
	recs, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(write(t, in, Params{MTime: 9}))))
	if err != nil {
		t.Fatal(err)
	}
	if len(recs) != len(in) {
		t.Fatalf("%d records, want %d", len(recs), len(in))
	}
	ino := map[string]uint64{}
	for i, r := range recs {
		e := in[i]
		if r.Name != e.Path || r.Mode != uint64(e.Mode) || r.UID != uint64(e.UID) || r.GID != uint64(e.GID) ||
			r.MTime != 9 || r.Rmajor != uint64(e.Major) || r.Rminor != uint64(e.Minor) {
			t.Errorf("record %d: got %+v, want %+v", i, r.Info, e)
		}
		ino[e.Path] = r.Ino
	}
	if ino["bin/also"] != ino["bin/tool"] || ino["sbin/third"] != ino["bin/tool"] || ino["odd"] == ino["empty"] {
		t.Errorf("inodes: %v", ino)
	}
}

// A second opinion: what GNU cpio lists.
func TestCpioLists(t *testing.T) {
	testenv.Need(t, "cpio")
	cmd := exec.Command(testenv.Tool("cpio"), "-itv", "--numeric-uid-gid", "--quiet")
	cmd.Env = []string{"TZ=UTC", "LC_ALL=C"}
	cmd.Stdin = bytes.NewReader(write(t, sample(t), Params{MTime: 86400}))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := `drwxr-xr-x   1 0        0               0 Jan  2  1970 .
drwxr-xr-x   1 0        0               0 Jan  2  1970 bin
-rwsr-xr-x   3 1000     100             0 Jan  2  1970 bin/also
-rwsr-xr-x   3 1000     100             0 Jan  2  1970 bin/tool
drwxr-xr-x   1 0        0               0 Jan  2  1970 dev
crw-------   1 0        0          5,   1 Jan  2  1970 dev/console
brw-rw----   1 0        0        259, 300 Jan  2  1970 dev/disk
crw-------   1 0        0        511, 1048575 Jan  2  1970 dev/far
-r--------   1 0        0               0 Jan  2  1970 empty
lrwxrwxrwx   1 0        0               8 Jan  2  1970 init -> bin/tool
-rw-r--r--   1 0        0               5 Jan  2  1970 odd
drwxr-xr-x   1 0        0               0 Jan  2  1970 run
prw-------   1 0        0               0 Jan  2  1970 run/fifo
drwxr-xr-x   1 0        0               0 Jan  2  1970 sbin
-rwsr-xr-x   3 1000     100             5 Jan  2  1970 sbin/third
drwxrwxrwt   1 0        0               0 Jan  2  1970 tmp
`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Error(diff)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(write(f, sample(f), Params{MTime: 1}))
	f.Add(write(f, nil, Params{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := Read(bytes.NewReader(b), Limits{Entries: 1000, Bytes: 1 << 20})
		if err != nil {
			return
		}
		norm, err := tree.Normalize(entries)
		if err != nil {
			return // a path named twice, or a link that leads nowhere
		}
		var first, second bytes.Buffer
		if err := Write(&first, norm, Params{}); err != nil {
			return // a name too long once it has parents
		}
		again, err := Read(bytes.NewReader(first.Bytes()), Limits{})
		if err != nil {
			t.Fatalf("own archive: %v", err)
		}
		if again, err = tree.Normalize(again); err != nil {
			t.Fatalf("own archive: %v", err)
		}
		if err := Write(&second, again, Params{}); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Fatalf("own archive changed when read and written again (%v)", err)
		}
	})
}
