package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/readahead"
	"github.com/plinth-os/plinth/internal/testenv"
	"golang.org/x/sys/unix"
)

const contained = "contained"

// TestHostile has one outcome for each attack: refused, with the reason, or
// contained, which is the tree that umoci makes. In no case is anything outside
// the root touched, or as much as opened.
func TestHostile(t *testing.T) {
	needRoot(t)
	umociToo := hasUmoci(t)
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	writeOutside(t, outside)
	abs := func(name string) string { return filepath.Join(outside, name) }
	for _, row := range []struct {
		name    string
		layers  [][]item
		outcome string
	}{
		{"name with ..", layers([]item{file("../outside/secret", "x"), file("a/../../../outside/x", "x")}), contained},
		{"name with .. behind a link", layers([]item{symlink("a", outside), file("a/../secret", "x")}), contained},
		{"absolute name", layers([]item{file(abs("secret"), "x")}), contained},
		{"directory by an absolute name", layers([]item{directory(outside).perm(0o777).owned(1, 1)}), contained},
		{"name is ..", layers([]item{directory("..").perm(0o777)}), contained},
		{"file through an absolute link", layers([]item{symlink("a", outside), file("a/secret", "x")}), contained},
		{"file through a link with ..", layers([]item{symlink("a", "../outside"), file("a/secret", "x"), file("a/new", "x")}), contained},
		{"file through a link of a lower layer", layers([]item{symlink("a", outside)}, []item{file("a/secret", "x")}), contained},
		{"file through a chain of links", layers([]item{symlink("a", "b"), symlink("b", "c/d"), directory("c"), symlink("c/d", outside), file("a/secret", "x")}), contained},
		{"file through a link to /proc/self/root", layers([]item{symlink("a", "/proc/self/root"+outside), file("a/secret", "x")}), contained},
		{"file through a link to a descriptor", layers([]item{symlink("a", "/proc/self/fd/3/../.."), file("a/x", "x")}), contained},
		{"file over a link", layers([]item{symlink("a", abs("secret")), file("a", "x").perm(0o777).owned(5, 5)}), contained},
		{"directory over a link", layers([]item{symlink("a", outside), directory("a").perm(0o777).owned(5, 5), file("a/secret", "x")}), contained},
		{"directory replaced by a link", layers([]item{directory("a"), file("a/b", "1"), symlink("a", outside), file("a/secret", "x")}), contained},
		{"directory replaced by a link in the next layer", layers([]item{directory("a"), file("a/b", "1")}, []item{symlink("a", outside)}, []item{file("a/secret", "x"), file("a/.wh.secret", "")}), contained},
		{"directory replaced by a link while it is in use", layers([]item{file("a/b/c", "1"), symlink("a/b", outside), file("a/b/secret", "x"), directory("a/b"), file("a/b/secret", "y")}), contained},
		{"node through a link", layers([]item{symlink("a", outside), node(tar.TypeChar, "a/secret", 1, 3)}), contained},
		{"link through a link", layers([]item{symlink("a", outside), symlink("a/secret", "x")}), contained},
		{"owner, mode, time and attribute of a link", layers([]item{symlink("a", abs("secret")).perm(0o4777).owned(1, 1).at(5, 5).attr("trusted.a", "b")}), contained},
		{"hard link to a name outside", layers([]item{hardlink("a", abs("secret"))}), "no such file"},
		{"hard link with ..", layers([]item{hardlink("a", "../outside/secret")}), "no such file"},
		{"hard link through a link", layers([]item{symlink("a", outside), hardlink("b", "a/secret"), file("b", "x")}), "no such file"},
		{"hard link to a link, then written", layers([]item{symlink("a", abs("secret")), hardlink("b", "a"), file("b", "x")}), contained},
		{"hard link from a directory outside", layers([]item{file("x", "1"), symlink("a", outside), hardlink("a/secret", "x")}), contained},
		{"whiteout through a link", layers([]item{symlink("a", outside)}, []item{file("a/.wh.secret", "")}), contained},
		{"whiteout by an absolute name", layers(nil, []item{file(abs(".wh.secret"), "")}), contained},
		{"opaque directory through a link", layers([]item{symlink("a", outside)}, []item{file("a/.wh..wh..opq", "")}), contained},
		{"opaque root by ..", layers([]item{file("a", "1")}, []item{file("../../.wh..wh..opq", "")}), contained},
		{"whiteout of ..", layers([]item{file("a", "1")}, []item{file(".wh...", "")}), "whiteout without a name"},
		{"whiteout of .", layers([]item{file("a", "1")}, []item{file(".wh..", "")}), "whiteout without a name"},
		{"whiteout of nothing", layers([]item{file("a", "1")}, []item{file(".wh.", "")}), "whiteout without a name"},
		{"root becomes a link", layers([]item{symlink(".", outside), file("secret", "x")}), "the root of the tree is a directory"},
		{"root becomes a hard link", layers([]item{hardlink("/", outside)}), "the root of the tree is a directory"},
		{"the machine's memory and disk", layers([]item{node(tar.TypeChar, "mem", 1, 1), node(tar.TypeBlock, "sda", 8, 0), file("mem", "x")}), contained},
		{"node written to", layers([]item{node(tar.TypeChar, "zero", 1, 5)}, []item{file("zero", "x")}), contained},
		{"FIFO opened", layers([]item{node(tar.TypeFifo, "p", 0, 0), file("p/x", "")}), "not a directory"},
		{"loop of links", layers([]item{symlink("a", "b/c"), symlink("b", "a/c"), file("a/x", "")}), "too many levels"},
		{"links that double", layers(doubling(60)), "too many levels"},
		{"overlayfs redirect", layers([]item{directory("a").attr("trusted.overlay.redirect", "/etc").attr("trusted.overlay.opaque", "y")}), contained},
	} {
		t.Run(row.name, func(t *testing.T) {
			events := watch(t, outside)
			mine := filepath.Join(base, "mine")
			defer os.RemoveAll(mine)
			if err := os.Mkdir(mine, 0o700); err != nil {
				t.Fatal(err)
			}
			packed := packAll(t, row.layers)
			m, err := apply(Limits{}, packed...)
			if err == nil {
				err = m.extract(mine)
			}
			for _, e := range events() {
				t.Errorf("outside: %s", e)
			}
			if names, derr := os.ReadDir(base); derr != nil || len(names) != 2 {
				t.Errorf("beside the root: %v, %v", names, derr)
			}
			if row.outcome != contained {
				if err == nil || !strings.Contains(err.Error(), row.outcome) {
					t.Errorf("got %v, want %q", err, row.outcome)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if umociToo && sameAsUmoci(t, packed...) == nil {
				t.Error("umoci refuses it")
			}
		})
	}
}

// doubling has links of which each leads twice through the one before.
func doubling(n int) []item {
	items := []item{directory("d")}
	last := "d"
	for i := range n {
		name := fmt.Sprintf("l%d", i)
		items = append(items, symlink(name, last+"/../"+last))
		last = name
	}
	return append(items, file(last+"/x", ""))
}

func writeOutside(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// watch has the kernel tell of everything that happens to dir and what is in it.
func watch(t *testing.T, dir string) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	for _, path := range []string{dir, filepath.Join(dir, "secret")} {
		if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS); err != nil {
			t.Fatal(err)
		}
	}
	return func() (out []string) {
		buf := make([]byte, 64<<10)
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			mask := uint32(buf[at+4]) | uint32(buf[at+5])<<8 | uint32(buf[at+6])<<16 | uint32(buf[at+7])<<24
			size := int(buf[at+12]) | int(buf[at+13])<<8
			name := string(bytes.TrimRight(buf[at+16:at+16+size], "\x00"))
			out = append(out, fmt.Sprintf("event %#x %q", mask, name))
			at += unix.SizeofInotifyEvent + size
		}
		return out
	}
}

// TestWatch is what makes TestHostile's silence worth something.
func TestWatch(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	writeOutside(t, outside)
	events := watch(t, outside)
	if got := events(); got != nil {
		t.Errorf("before anything happened: %q", got)
	}
	if err := os.Chmod(filepath.Join(outside, "secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := events(); len(got) == 0 {
		t.Error("a change of mode is not seen")
	}
}

// TestBadHeaders has what only a hand can write.
func TestBadHeaders(t *testing.T) {
	for name, layer := range map[string][]byte{
		"NUL in a PAX name":           rawTar(paxHeader("path=a\x00b"), rawHeader("x", '0', 0, nil)),
		"NUL in a PAX link":           rawTar(paxHeader("linkpath=a\x00b"), rawHeader("x", '2', 0, nil)),
		"size below 0":                rawTar(rawHeader("x", '0', 0, func(h []byte) { copy(h[124:], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") })),
		"size beyond 2^63":            rawTar(rawHeader("x", '0', 0, func(h []byte) { copy(h[124:], "\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") })),
		"PAX size is no number":       rawTar(paxHeader("size=1e3"), rawHeader("x", '0', 0, nil)),
		"PAX record too long":         rawTar(rawHeader("p", 'x', 8, nil), padded([]byte("99 a=bc\n")), rawHeader("x", '0', 0, nil)),
		"PAX header of a gigabyte":    rawTar(rawHeader("p", 'x', 1<<30, nil), make([]byte, 4<<20)),
		"long name of a gigabyte":     rawTar(rawHeader("p", 'L', 1<<30, nil), make([]byte, 4<<20)),
		"wrong checksum":              rawTar(rawHeader("x", '0', 0, nil)[:511], []byte("x")),
		"sparse map runs backwards":   rawTar(paxHeader("GNU.sparse.size=1024", "GNU.sparse.numblocks=2", "GNU.sparse.map=512,512,0,512", "GNU.sparse.name=x"), rawHeader("0", '0', 1024, nil), make([]byte, 1024)),
		"sparse map beyond the file":  rawTar(paxHeader("GNU.sparse.size=100", "GNU.sparse.numblocks=1", "GNU.sparse.map=50,512", "GNU.sparse.name=x"), rawHeader("0", '0', 512, nil), make([]byte, 512)),
		"sparse map of many numbers":  rawTar(paxHeader("GNU.sparse.size=100", "GNU.sparse.numblocks=9999999999", "GNU.sparse.map=0,1", "GNU.sparse.name=x"), rawHeader("0", '0', 512, nil), make([]byte, 512)),
		"sparse data that is missing": rawTar(paxHeader("GNU.sparse.size=1000", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,1000", "GNU.sparse.name=x"), rawHeader("0", '0', 10, nil), make([]byte, 512)),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := apply(Limits{}, layer)
			if err == nil {
				t.Fatalf("taken: %s", brief(m))
			}
			if !strings.Contains(err.Error(), "archive/tar: ") && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestLimits exceeds each limit, and stays within it by one.
func TestLimits(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("d/", n) + "x" }
	for _, row := range []struct {
		name   string
		limits Limits
		good   [][]item
		bad    [][]item
		want   string
	}{
		{"bytes of files", Limits{Bytes: 5 << 10}, layers([]item{file("a", strings.Repeat("1", 1<<10))}), layers([]item{file("a", strings.Repeat("1", 6<<10))}), "bytes of the files: 6144, want at most 5120"},
		{"bytes of files in two layers", Limits{Bytes: 9 << 10}, layers([]item{file("a", strings.Repeat("1", 1000))}, []item{file("a", strings.Repeat("2", 1000))}),
			layers([]item{file("a", strings.Repeat("1", 4<<10))}, []item{file("a", strings.Repeat("2", 6<<10))}), "bytes of the"},
		{"bytes of streams", Limits{Bytes: 6 << 10}, layers([]item{directory("a")}), layers([]item{directory("a"), directory("b"), directory("c"), directory("d")}), "bytes of the layers"},
		{"entries", Limits{Entries: 3}, layers([]item{file("a", ""), file("a", ""), file(".wh.x", "")}), layers([]item{file("a", ""), file("a", ""), file(".wh.x", ""), file("a", "")}), "entries: 4, want at most 3"},
		{"entries in two layers", Limits{Entries: 2}, layers([]item{file("a", "")}, []item{file("b", "")}), layers([]item{file("a", "")}, []item{file("b", ""), file("c", "")}), "entries: 3, want at most 2"},
		{"entries that no layer names", Limits{Entries: 4}, layers([]item{file(deep(3), "")}), layers([]item{file(deep(4), "")}), "entries: 5, want at most 4"},
		{"names that are kept", Limits{Kept: 100}, layers([]item{file("a", ""), file("b", "")}), layers([]item{file("a", ""), file(strings.Repeat("n", 90), "")}), "bytes of names, links, attributes and holes: "},
		{"names that are kept in two layers", Limits{Kept: 100}, layers([]item{file("a", "")}, []item{file("b", "")}), layers([]item{file(strings.Repeat("n", 50), "")}, []item{file(strings.Repeat("m", 50), "")}), "bytes of names, links, attributes and holes: "},
		{"attributes that are kept", Limits{Kept: 100}, layers([]item{file("a", "").attr("user.a", "b")}), layers([]item{file("a", "").attr("user.a", strings.Repeat("n", 90))}), "bytes of names, links, attributes and holes: "},
		{"length of a name", Limits{PathLen: 40}, layers([]item{file(strings.Repeat("n", 40), "")}), layers([]item{file(strings.Repeat("n", 41), "")}), "length of the name: 41, want at most 40"},
		{"length of a link", Limits{PathLen: 40}, layers([]item{symlink("l", strings.Repeat("n", 40))}), layers([]item{symlink("l", strings.Repeat("n", 41))}), "length of the link target: 41, want at most 40"},
		{"length of a hard link", Limits{PathLen: 40}, layers([]item{file("n", ""), hardlink("l", "n")}), layers([]item{file("n", ""), hardlink("l", strings.Repeat("n", 41))}), "length of the link target: 41, want at most 40"},
		{"length as resolved", Limits{PathLen: 40}, layers([]item{symlink("l", strings.Repeat("n", 37)), file("l/xx", "")}), layers([]item{symlink("l", strings.Repeat("n", 37)), file("l/xxx", "")}), "length of the resolved name: 41, want at most 40"},
		{"length as resolved, of a directory that no layer names", Limits{PathLen: 40}, layers([]item{symlink("l", strings.Repeat("n", 35)), file("l/xx/y", "")}), layers([]item{symlink("l", strings.Repeat("n", 35)), file("l/xxxxx/y", "")}), "length of the resolved name: 41, want at most 40"},
		{"depth", Limits{Depth: 3}, layers([]item{file(deep(2), "")}), layers([]item{file(deep(3), "")}), "depth of directories: 4, want at most 3"},
		{"depth by a link", Limits{Depth: 3}, layers([]item{symlink("l", "d/d"), file("l/x", "")}), layers([]item{symlink("l", "d/d"), file("l/d/x", "")}), "depth of directories: 4, want at most 3"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := apply(row.limits, packAll(t, row.good)...); err != nil {
				t.Errorf("within: %v", err)
			}
			var limit *LimitError
			_, err := apply(row.limits, packAll(t, row.bad)...)
			if !errors.As(err, &limit) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want a LimitError with %q", err, row.want)
			}
		})
	}
}

// TestDefaultDepth is as deep as the defaults let a tree be, and removes it.
func TestDefaultDepth(t *testing.T) {
	name := strings.Repeat("d/", 255) + "x"
	if got := brief(mustApply(t, pack(t, file(name, "1")), pack(t, file("d/.wh.d", ""), file("y", "")))); got != "d/ y=" {
		t.Errorf("got %s", got)
	}
	if _, err := apply(Limits{}, pack(t, file("d/"+name, "1"))); err == nil {
		t.Error("a deeper one was taken")
	}
}

// TestEndless has streams that would never end. They are refused after the bytes
// or entries that the limits allow.
func TestEndless(t *testing.T) {
	header := pack(t, file(".wh.x", "").format(tar.FormatUSTAR))[:512]
	entries := Limits{}
	if testing.Short() {
		entries.Entries = 1 << 16
	}
	for _, row := range []struct {
		name   string
		layer  *repeat
		limits Limits
		most   int64 // bytes read
		want   string
	}{
		{"ten million entries", &repeat{data: header}, entries, entries.defaults().Entries*512 + 512 + readahead.Blocks*aheadSize, fmt.Sprintf("entries: %d, want at most", entries.defaults().Entries+1)},
		{"zeros behind the end mark", &repeat{data: make([]byte, 4096)}, Limits{Bytes: 64 << 20}, 65<<20 + readahead.Blocks*aheadSize, "bytes of the layers"},
		{"one PAX header after the other", &repeat{data: paxHeader("comment=" + strings.Repeat("x", 60000))}, Limits{Bytes: 64 << 20}, 65<<20 + readahead.Blocks*aheadSize, "bytes of the layers"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Read(t.Context(), row.layer, io.Discard, NewBudget(row.limits))
			var limit *LimitError
			if !errors.As(err, &limit) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want a LimitError with %q", err, row.want)
			}
			if row.layer.total > row.most {
				t.Errorf("%d bytes read, want at most %d", row.layer.total, row.most)
			}
		})
	}
}

// TestSparseBomb has files that cost nothing to send.
func TestSparseBomb(t *testing.T) {
	bomb := func(size int64) []byte {
		return rawTar(paxHeader(fmt.Sprintf("GNU.sparse.size=%d", size), "GNU.sparse.numblocks=1", fmt.Sprintf("GNU.sparse.map=%d,0", size), "GNU.sparse.name=x"), rawHeader("0", '0', 0, nil))
	}
	for _, size := range []int64{64<<30 + 1, 1 << 40, 1<<63 - 1} {
		var limit *LimitError
		if _, err := apply(Limits{}, bomb(size)); !errors.As(err, &limit) {
			t.Errorf("%d bytes: got %v", size, err)
		}
	}
	var kept *LimitError
	if _, err := apply(Limits{Kept: 1 << 16}, bomb(64<<20)); !errors.As(err, &kept) || kept.Got != 8*(64<<20)/BlockSize {
		t.Errorf("list of holes: got %v", err)
	}
	full := NewBudget(Limits{Bytes: 1<<63 - 1})
	full.bytes.Store(1<<63 - 2)
	var limit *LimitError
	if _, err := Read(t.Context(), bytes.NewReader(pack(t, file("x", "more"))), io.Discard, full); !errors.As(err, &limit) {
		t.Errorf("sum beyond 2^63: got %v", err)
	}
	m := mustApply(t, bomb(1<<30))
	if n := m.inodes()["x"]; n.size != 1<<30 || len(m.content[0]) != 0 || n.data() || len(m.tree.Devices()) != 0 {
		t.Errorf("size %d, %d bytes of content", n.size, len(m.content[0]))
	}
	if image := m.image(t); len(image) > 2*BlockSize {
		t.Errorf("image of %d bytes", len(image))
	}
}

// counted is a layer that a decompressor gives.
type counted struct {
	repeat
	ratio int64
}

func (c *counted) CompressedBytes() int64 { return c.total / c.ratio }

func TestRatio(t *testing.T) {
	for _, row := range []struct {
		ratio int64
		bad   bool
	}{{900, false}, {1100, true}} {
		layer := &counted{repeat{data: make([]byte, 4096)}, row.ratio}
		_, err := Read(t.Context(), layer, io.Discard, NewBudget(Limits{Bytes: 40 << 20}))
		if bad := strings.Contains(fmt.Sprint(err), "bytes of tar per compressed byte"); bad != row.bad {
			t.Errorf("ratio %d: got %v", row.ratio, err)
		}
		if row.bad && layer.total > 17<<20 {
			t.Errorf("ratio %d: %d bytes read", row.ratio, layer.total)
		}
	}
}

// TestNoSpace has no room for the content, or for the tree.
func TestNoSpace(t *testing.T) {
	layer := pack(t, file("large", strings.Repeat("x", 3<<20)))
	full := errors.New("no space: 1 bytes needed")
	if _, err := Read(t.Context(), bytes.NewReader(layer), refusing{full}, NewBudget(Limits{})); !errors.Is(err, full) {
		t.Errorf("content: got %v", err)
	}
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		testenv.Missing(t, "mount", err.Error())
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := mustApply(t, layer).extract(dir); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), `make file "large"`) {
		t.Errorf("tree: got %v", err)
	}
}

type refusing struct{ err error }

func (r refusing) Write([]byte) (int, error) { return 0, r.err }
