package tree

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func paths(entries []Entry) []string {
	var s []string
	for _, e := range entries {
		s = append(s, e.Path)
	}
	return s
}

func TestNormalizeOrder(t *testing.T) {
	in := []Entry{
		File("usr/lib/x", 0o644, Bytes(nil)),
		File("a-b", 0o600, Bytes(nil)),
		File("a/c", 0o600, Bytes(nil)),
		Dir("usr", 0o711),
		File("-", 0o600, Bytes(nil)), // sorts below "."
	}
	want := []string{".", "-", "a", "a-b", "a/c", "usr", "usr/lib", "usr/lib/x"}
	for range 20 { // map order must not show
		got, err := Normalize(in)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(paths(got), want) {
			t.Fatalf("got %q, want %q", paths(got), want)
		}
		if got[5].Mode != TypeDir|0o711 || got[6].Mode != TypeDir|0o755 {
			t.Errorf("modes: usr %#o, usr/lib %#o", got[5].Mode, got[6].Mode)
		}
		again, err := Normalize(got)
		if err != nil || !slices.Equal(paths(again), want) {
			t.Fatalf("again: %q, %v", paths(again), err)
		}
	}
}

func TestNormalizeEmpty(t *testing.T) {
	if got, err := Normalize(nil); err != nil || len(got) != 0 {
		t.Fatalf("got %v, %v; want nothing", got, err)
	}
}

func TestNormalizeHardLink(t *testing.T) {
	f := File("b", 0o4755, Bytes([]byte("x")))
	f.UID, f.Xattrs = 7, map[string][]byte{"user.a": []byte("1")}
	got, err := Normalize([]Entry{{Path: "a", Link: "b"}, f})
	if err != nil {
		t.Fatal(err)
	}
	a := got[1]
	if a.Path != "a" || a.Link != "b" || a.Mode != f.Mode || a.UID != 7 || len(a.Xattrs) != 1 || a.Content.Open != nil {
		t.Errorf("link: %+v", a)
	}
}

func TestNormalizeRefuses(t *testing.T) {
	blob := Bytes(nil)
	for _, tt := range []struct {
		name string
		in   []Entry
		want string
	}{
		{"absolute", []Entry{File("/a", 0, blob)}, `path "/a"`},
		{"dotdot", []Entry{File("a/../b", 0, blob)}, `path "a/../b"`},
		{"empty", []Entry{File("", 0, blob)}, `path ""`},
		{"nul", []Entry{File("a\x00b", 0, blob)}, `path "a\x00b"`},
		{"duplicate", []Entry{File("a", 0, blob), Dir("a", 0)}, "a: named twice"},
		{"below a file", []Entry{File("a", 0, blob), File("a/b/c", 0, blob)}, "a/b/c: a is no directory"},
		{"below a symlink", []Entry{Symlink("a", "b"), File("a/b", 0, blob)}, "a/b: a is no directory"},
		{"below a link", []Entry{{Path: "a", Link: "b"}, File("b", 0, blob), File("a/c", 0, blob)}, "a/c: a is no directory"},
		{"no type", []Entry{{Path: "a", Mode: 0o644}}, "no known file type"},
		{"bits", []Entry{{Path: "a", Mode: TypeFile | 1<<20}}, "unknown bits"},
		{"root file", []Entry{File(".", 0, blob)}, "root: mode"},
		{"empty symlink", []Entry{Symlink("a", "")}, "symbolic link to"},
		{"NUL in a symlink", []Entry{Symlink("a", "b\x00")}, "symbolic link to"},
		{"below a link to a directory", []Entry{{Path: "a", Link: "b", Mode: TypeDir}, File("b", 0, blob), File("a/c", 0, blob)}, "a/c: a is no directory"},
		{"dangling link", []Entry{{Path: "a", Link: "b"}}, "not in the tree"},
		{"link to link", []Entry{{Path: "a", Link: "b"}, {Path: "b", Link: "c"}, File("c", 0, blob)}, "hard link itself"},
		{"link to itself", []Entry{{Path: "a", Link: "a"}}, "hard link itself"},
		{"link to directory", []Entry{{Path: "a", Link: "b"}, Dir("b", 0o755)}, "hard link to directory"},
	} {
		_, err := Normalize(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{".", ".", 0}, {".", "-", -1}, {"-", ".", 1}, {"a", "a/b", -1}, {"a-b", "a/b", -1}, {"b", "a", 1}, {"a", "a", 0}} {
		if got := Compare(tt.a, tt.b); got != tt.want {
			t.Errorf("%q, %q: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestCopy(t *testing.T) {
	boom := errors.New("boom")
	open := Bytes([]byte("abc")).Open
	for _, tt := range []struct {
		name string
		b    Blob
		want string
	}{
		{"right", Blob{Size: 3, Open: open}, ""},
		{"nothing", Blob{}, ""},
		{"nothing, but a size", Blob{Size: 3}, "no content"},
		{"short", Blob{Size: 4, Open: open}, "content has 3 bytes, want 4"},
		{"long", Blob{Size: 2, Open: open}, "more than 2"},
		{"not empty", Blob{Size: 0, Open: open}, "more than 0"},
		{"open fails", Blob{Size: 3, Open: func() (io.ReadCloser, error) { return nil, boom }}, "boom"},
	} {
		var out bytes.Buffer
		err := tt.b.Copy(&out)
		if tt.want == "" && (err != nil || int64(out.Len()) != tt.b.Size) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestBytesReopens(t *testing.T) {
	b := Bytes([]byte("plinth"))
	for range 2 {
		r, err := b.Open()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != "plinth" || b.Size != 6 {
			t.Errorf("got %q, %v", got, err)
		}
	}
}
