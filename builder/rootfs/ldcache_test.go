package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// elfLibrary makes the smallest shared object that a dynamic linker's tools read:
// a program header for the dynamic section, and a name.
func elfLibrary(machine elf.Machine, class elf.Class, soname string, isa uint32) []byte {
	le := binary.LittleEndian
	strtab := "\x00" + soname + "\x00"
	const header, program, count = 64, 56, 3
	dynamic := uint64(header + program*count)
	note := dynamic + 4*16
	names := note + 32
	var b []byte
	b = append(b, elf.ELFMAG...)
	b = append(b, byte(class), 1, 1, 0)
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint16(b, uint16(elf.ET_DYN))
	b = le.AppendUint16(b, uint16(machine))
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, header)
	b = le.AppendUint64(b, 0) // no sections
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{header, program, count, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	size := names + uint64(len(strtab))
	for _, p := range []struct {
		kind      uint32
		off, size uint64
	}{{uint32(elf.PT_LOAD), 0, size}, {uint32(elf.PT_DYNAMIC), dynamic, 4 * 16}, {0x6474e553, note, 32}} {
		b = le.AppendUint32(b, p.kind)
		b = le.AppendUint32(b, 4)
		for _, v := range []uint64{p.off, p.off, p.off, p.size, p.size, 8} {
			b = le.AppendUint64(b, v)
		}
	}
	tag := elf.DT_SONAME
	if soname == "" {
		tag = elf.DT_DEBUG
	}
	for _, d := range [][2]uint64{{uint64(tag), 1}, {uint64(elf.DT_STRTAB), names}, {uint64(elf.DT_STRSZ), uint64(len(strtab))}, {0, 0}} {
		b = le.AppendUint64(b, d[0])
		b = le.AppendUint64(b, d[1])
	}
	for _, v := range []uint32{4, 16, 5, 0x554e47, 0xc0008002, 4, isa, 0} { // NT_GNU_PROPERTY_TYPE_0 of "GNU"
		b = le.AppendUint32(b, v)
	}
	return append(b, strtab...)
}

func lib(name, soname string) tree.Entry {
	return tree.File(name, 0o644, tree.Bytes(elfLibrary(elf.EM_X86_64, elf.ELFCLASS64, soname, 1)))
}

// readCache reads ld.so.cache as the dynamic linker does: by offsets.
func readCache(t *testing.T, b []byte) (lines []string) {
	t.Helper()
	le := binary.LittleEndian
	str := func(at uint32) string {
		s, _, ok := bytes.Cut(b[at:], []byte{0})
		if !ok {
			t.Fatalf("string at %#x has no end", at)
		}
		return string(s)
	}
	if string(b[:20]) != "glibc-ld.so.cache1.1" || b[28] != 2 {
		t.Fatalf("header % x", b[:48])
	}
	ext := b[le.Uint32(b[32:]):]
	if le.Uint32(ext) != 0xeaa42174 {
		t.Fatalf("extensions % x", ext)
	}
	caps := map[uint32]string{}
	for i := range int(le.Uint32(ext[4:])) {
		s := ext[8+16*i:]
		at, size := le.Uint32(s[8:]), le.Uint32(s[12:])
		switch le.Uint32(s) {
		case 0:
			if got := string(b[at:][:size]); got != "plinth" || int(at+size) != len(b) {
				t.Errorf("generator %q ends at %d of %d", got, at+size, len(b))
			}
		case 1:
			for j := range size / 4 {
				caps[j] = str(le.Uint32(b[at+4*j:]))
			}
		default:
			t.Errorf("extension %d", le.Uint32(s))
		}
	}
	for i := range int(le.Uint32(b[20:])) {
		e := b[48+24*i:]
		line := fmt.Sprintf("%s %#x %s", str(le.Uint32(e[4:])), le.Uint32(e), str(le.Uint32(e[8:])))
		if h := le.Uint64(e[16:]); h != 0 {
			line += fmt.Sprintf(" %s %#x", caps[uint32(h)], h>>32)
		}
		lines = append(lines, line)
	}
	return lines
}

// libraries is a tree with everything that ldconfig makes a difference of.
func libraries() []tree.Entry {
	const dir = "usr/lib/x86_64-linux-gnu"
	caps := func(level string, isa uint32, soname string) tree.Entry {
		return tree.File(dir+"/glibc-hwcaps/"+level+"/libhw.so.1.0", 0o644, tree.Bytes(elfLibrary(elf.EM_X86_64, elf.ELFCLASS64, soname, isa)))
	}
	return []tree.Entry{
		f("etc/ld.so.conf", "# first\ninclude /etc/ld.so.conf.d/*.conf\n"),
		f("etc/ld.so.conf.d/a.conf", "/usr/local/lib\n/lib/x86_64-linux-gnu # a comment\n/no/such\n"),
		f("etc/ld.so.conf.d/b.conf", "  /opt/lib/ \n/usr/lib/x86_64-linux-gnu\n"),
		f("etc/ld.so.conf.d/c.txt", "/srv/lib\n"),
		f("etc/ld.so.conf.d/.hidden.conf", "/srv/lib\n"),
		lib(dir+"/libone.so.1.2", "libone.so.1"), tree.Symlink(dir+"/libone.so.1", "libone.so.1.2"), tree.Symlink(dir+"/libone.so", "libone.so.1"),
		lib(dir+"/libtwo.so.2.1", "libtwo.so.2"), lib(dir+"/libtwo.so.2.2", "libtwo.so.2"), lib(dir+"/libtwo.so.2.10", "libtwo.so.2"), // no link, and which is the newest?
		lib(dir+"/libalone.so.3.0", "libalone.so.3"), // its link is missing
		lib(dir+"/libnoname-1.so", ""),
		lib(dir+"/ld-linux-x86-64.so.2", "ld-linux-x86-64.so.2"),
		lib("opt/lib/libone.so.1", "libone.so.1"),
		lib("usr/local/lib/libten.so.10", "libten.so.10"), lib("usr/local/lib/libten.so.9", "libten.so.9"),
		lib("usr/lib/libsys.so.1", "libsys.so.1"),
		lib("srv/lib/libsrv.so.1", "libsrv.so.1"),
		lib(dir+"/plugin.so", "plugin.so"),
		f(dir+"/libtext.so", "GROUP ( libone.so.1 )"),
		f(dir+"/libempty.so", ""),
		tree.Symlink(dir+"/libdangling.so.1", "gone"),
		tree.Dir(dir+"/libdir.so.1", 0o755),
		lib(dir+"/libhw.so.1.0", "libhw.so.1"), tree.Symlink(dir+"/libhw.so.1", "libhw.so.1.0"),
		caps("x86-64-v3", 4, "libhw.so.1"), caps("x86-64-v2", 2, "libhw.so.1"), caps("custom", 1, "libhw.so.1"),
		tree.File(dir+"/lib32bit.so.1", 0o644, tree.Bytes(elfLibrary(elf.EM_ARM, elf.ELFCLASS64, "lib32bit.so.1", 1))),
	}
}

func TestLinkerCache(t *testing.T) {
	got := mustBuild(t, []Package{deb("p", libraries()...)}, nil, Params{})
	want := strings.Split(strings.TrimSpace(`
libtwo.so.2 0x303 /lib/x86_64-linux-gnu/libtwo.so.2
libten.so.10 0x303 /usr/local/lib/libten.so.10
libten.so.9 0x303 /usr/local/lib/libten.so.9
libsys.so.1 0x303 /lib/libsys.so.1
libone.so.1 0x303 /lib/x86_64-linux-gnu/libone.so.1
libone.so.1 0x303 /opt/lib/libone.so.1
libone.so 0x303 /lib/x86_64-linux-gnu/libone.so
libnoname-1.so 0x303 /lib/x86_64-linux-gnu/libnoname-1.so
libhw.so.1 0x303 /lib/x86_64-linux-gnu/glibc-hwcaps/custom/libhw.so.1.0 custom 0x40000000
libhw.so.1 0x303 /lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2/libhw.so.1.0 x86-64-v2 0x40000001
libhw.so.1 0x303 /lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v3/libhw.so.1.0 x86-64-v3 0x40000002
libhw.so.1 0x303 /lib/x86_64-linux-gnu/libhw.so.1
libalone.so.3 0x303 /lib/x86_64-linux-gnu/libalone.so.3
ld-linux-x86-64.so.2 0x303 /lib/x86_64-linux-gnu/ld-linux-x86-64.so.2`), "\n")
	lines := readCache(t, []byte(content(t, got, linkerCacheFile)))
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if e := entry(t, got.Entries, "usr/lib/x86_64-linux-gnu/libalone.so.3"); e.Target != "libalone.so.3.0" {
		t.Errorf("no link for a library without one: %+v", e)
	}
	if e := entry(t, got.Entries, "usr/lib/x86_64-linux-gnu/libtwo.so.2"); e.Target != "libtwo.so.2.10" {
		t.Errorf("the link is not to the newest: %+v", e)
	}
	if got := mustBuild(t, []Package{deb("p", libraries()...)}, []tree.Entry{f(linkerCacheFile, "own")}, Params{}); content(t, got, linkerCacheFile) != "own" {
		t.Error("the profile's own cache is gone")
	}
}

// TestLinkerCacheAsLdconfig compares with the ldconfig of this machine, byte for
// byte up to the name of the writer.
func TestLinkerCacheAsLdconfig(t *testing.T) {
	if testing.Short() {
		t.Skip("runs ldconfig")
	}
	testenv.Need(t, "ldconfig")
	got := mustBuild(t, []Package{deb("p", libraries()...)}, nil, Params{})
	dir := t.TempDir()
	unpack(t, dir, got.Entries)
	compareLdconfig(t, dir, []byte(content(t, got, linkerCacheFile)))
}

// TestHostLibraries does so with libraries of this machine, in other directories.
func TestHostLibraries(t *testing.T) {
	if testing.Short() {
		t.Skip("runs ldconfig")
	}
	testenv.Need(t, "ldconfig")
	names, err := filepath.Glob("/usr/lib/x86_64-linux-gnu/lib[a-k]*.so.*")
	if err != nil || len(names) == 0 {
		testenv.Missing(t, "libraries", "none in /usr/lib/x86_64-linux-gnu")
	}
	r := rand.New(rand.NewPCG(1, 2))
	var entries []tree.Entry
	taken := map[string]bool{}
	for _, name := range names {
		if len(entries) == 150 {
			break
		}
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			continue
		}
		b, err := os.ReadFile(real)
		if err != nil || len(b) > 4<<20 {
			continue
		}
		to := []string{"usr/lib/", "usr/local/lib/", "opt/x/", "usr/lib/x86_64-linux-gnu/"}[r.IntN(4)] + filepath.Base(name)
		if r.IntN(8) == 0 {
			to = "usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v" + string('2'+rune(r.IntN(3))) + "/" + filepath.Base(name)
		}
		if !taken[to] {
			taken[to] = true
			entries = append(entries, f(to, string(b)))
		}
	}
	entries = append(entries, f("etc/ld.so.conf", "/opt/x\n/usr/local/lib\n"))
	got := mustBuild(t, []Package{deb("p", entries...)}, nil, Params{})
	dir := t.TempDir()
	unpack(t, dir, got.Entries)
	compareLdconfig(t, dir, []byte(content(t, got, linkerCacheFile)))
}

// Kinds of libraries by one name: downwards.
func TestCacheOrder(t *testing.T) {
	c := cache{[]cacheEntry{{soname: "a", path: "/1", flags: flagGlibc}, {soname: "a", path: "/2", flags: flagGlibc | flagX32}, {soname: "a", path: "/3", flags: flagGlibc | flagX8664}}}
	lines := readCache(t, c.encode())
	if want := []string{"a 0x803 /2", "a 0x303 /3", "a 0x3 /1"}; !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q", lines, want)
	}
}

func TestCompareLibraries(t *testing.T) {
	for _, tt := range []struct {
		x, y string
		want int
	}{{"liba.so.9", "liba.so.10", -1}, {"liba.so.10", "liba.so.10", 0}, {"liba1", "liba", 1}, {"liba", "libb", -1}, {"lib1", "liba", 1}, {"lib09", "lib9", 0}, {"a", "a.1", -1}} {
		if got := compareLibraries(tt.x, tt.y); got < 0 != (tt.want < 0) || got > 0 != (tt.want > 0) {
			t.Errorf("%s, %s: %d, want %d", tt.x, tt.y, got, tt.want)
		}
	}
}

func TestLinkerCacheRefuses(t *testing.T) {
	if _, err := Build(nil, []tree.Entry{f("etc/ld.so.conf", "include ld.so.conf\n")}, Params{}); err == nil || !strings.Contains(err.Error(), "include each other") {
		t.Error(err)
	}
}

// What cannot be read as a library is said and left out.
func TestNoLibrary(t *testing.T) {
	good := elfLibrary(elf.EM_X86_64, elf.ELFCLASS64, "libx.so.1", 0)
	set := func(at int, v uint64) string {
		b := slices.Clone(good)
		binary.LittleEndian.PutUint64(b[at:], v)
		return string(b)
	}
	const dynamicHeader, dynamicAt = 64 + 56, 64 + 3*56
	for _, tt := range []struct{ name, content, want string }{
		{"path", string(elfLibrary(elf.EM_X86_64, elf.ELFCLASS64, "../x", 0)), `calls itself "../x"`},
		{"truncated", string(good[:100]), "EOF"},
		{"large dynamic section", set(dynamicHeader+32, 1<<21), "dynamic section of 2097152 bytes"},
		{"dynamic section behind the end", set(dynamicHeader+8, 1<<20), "dynamic section: EOF"},
		{"name in no segment", set(dynamicAt+8, 1<<20), "is in no segment"},
		{"name without an end", string(good[:len(good)-1]) + "x", "has no end"},
		{"no name", set(dynamicAt+8, 0), "is empty"},
	} {
		got := mustBuild(t, nil, []tree.Entry{f("usr/lib/libx.so.1", tt.content)}, Params{})
		if has(got.Entries, linkerCacheFile) || !noted(got, ": /lib/libx.so.1 is not in ld.so.cache: ") || !noted(got, tt.want) {
			t.Errorf("%s: want %q in %v", tt.name, tt.want, got.Notes)
		}
	}
	executable := set(16, 0x1003e0002) // ET_EXEC
	static := set(dynamicHeader, 6)    // PT_PHDR in its place
	for _, content := range []string{executable, static, "\x7fEL"} {
		if got := mustBuild(t, nil, []tree.Entry{f("usr/lib/libx.so.1", content)}, Params{}); has(got.Entries, linkerCacheFile) || len(got.Notes) > 0 {
			t.Errorf("% x: %v", content[:4], got.Notes)
		}
	}
}

func FuzzLibrary(f *testing.F) {
	f.Add(elfLibrary(elf.EM_X86_64, elf.ELFCLASS64, "libx.so.1", 1))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := (&inode{blob: tree.Bytes(b)}).library()
		if err == nil && l != nil && strings.ContainsAny(l.soname, "/\x00") {
			t.Errorf("name %q", l.soname)
		}
	})
}
