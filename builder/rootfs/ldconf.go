package rootfs

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

const (
	linkerConf      = "etc/ld.so.conf"
	linkerCacheFile = "etc/ld.so.cache"
	linkerCaps      = "glibc-hwcaps" // directories of libraries for newer processors
)

// systemLibraries are searched after what ld.so.conf names. Debian's glibc has
// them by architecture.
var systemLibraries = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"}

// A libraryDir is searched for libraries; caps is the name below glibc-hwcaps.
type libraryDir struct{ path, caps string }

// linkerCache writes ld.so.cache as ldconfig(8) does, and the links from the name
// that a library gives itself to its file where a package has none. A tree
// without the dynamic linker's configuration and without libraries gets none.
func (b *build) linkerCache() error {
	dirs, err := b.libraryDirs()
	if err != nil {
		return err
	}
	var c cache
	for _, d := range dirs {
		if err := b.searchDir(d, &c); err != nil {
			return err
		}
	}
	if len(c.entries) == 0 {
		return nil
	}
	b.make(tree.File(linkerCacheFile, 0o644, tree.Bytes(c.encode())))
	return nil
}

// libraryDirs returns the directories in the order in which they are searched,
// each with those for newer processors behind it.
func (b *build) libraryDirs() ([]libraryDir, error) {
	named, err := b.linkerConf(linkerConf, 0)
	if err != nil {
		return nil, err
	}
	var out []libraryDir
	seen := map[string]bool{}
	add := func(d libraryDir) bool {
		where, err := b.links.resolve(d.path)
		if err != nil || seen[where] || !b.isDir(d.path) {
			return false
		}
		seen[where] = true
		out = append(out, d)
		return true
	}
	for _, dir := range append(named, systemLibraries...) {
		if !add(libraryDir{path: dir}) {
			continue
		}
		for _, name := range b.list(path.Join(dir, linkerCaps)) {
			if name[0] != '.' && !strings.Contains(name, ":") {
				add(libraryDir{path.Join(dir, linkerCaps, name), name})
			}
		}
	}
	return out, nil
}

// maxInclude bounds how deep files of ld.so.conf include each other.
const maxInclude = 10

// linkerConf returns the directories that a file in the form of ld.so.conf names.
func (b *build) linkerConf(name string, depth int) ([]string, error) {
	if depth > maxInclude {
		return nil, fmt.Errorf("rootfs: /%s: more than %d files include each other", name, maxInclude)
	}
	text, err := b.read(name)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "hwcap" {
			continue
		}
		if words[0] != "include" {
			dir, _, _ := strings.Cut(strings.TrimSpace(line), "=")
			out = append(out, strings.TrimRight(strings.TrimSpace(dir), "/"))
			continue
		}
		for _, glob := range words[1:] {
			if !path.IsAbs(glob) {
				glob = "/" + path.Join(path.Dir(name), glob)
			}
			for _, found := range b.glob(strings.TrimPrefix(glob, "/")) {
				more, err := b.linkerConf(found, depth+1)
				if err != nil {
					return nil, err
				}
				out = append(out, more...)
			}
		}
	}
	return out, nil
}

// glob expands a pattern in the last name of a path.
func (b *build) glob(pattern string) []string {
	var out []string
	dir, base := cut(pattern)
	for _, name := range b.list(dir) {
		if ok, err := path.Match(base, name); err == nil && ok && name[0] != '.' {
			out = append(out, dir+"/"+name)
		}
	}
	return out
}

// A library is a file of a library directory, by the name that programs ask for.
type library struct {
	name, soname string
	flags        uint32
	isa          uint32 // levels of x86-64 that it needs, the exponent
	link         bool
}

// searchDir adds the libraries of a directory: of several that give themselves
// one name the newest, a file before a link.
func (b *build) searchDir(d libraryDir, c *cache) error {
	found := map[string]*library{}
	var order []string
	for _, name := range b.list(d.path) {
		l, err := b.library(path.Join(d.path, name))
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		old := found[l.soname]
		if old == nil {
			order = append(order, l.soname)
		}
		if old == nil || !l.link && old.link || l.link == old.link && compareLibraries(old.name, l.name) < 0 {
			found[l.soname] = l
		}
	}
	for _, soname := range order {
		l := found[soname]
		file := l.soname
		if d.caps != "" {
			file = l.name
		} else if !l.link {
			if err := b.linkLibrary(d.path, l); err != nil {
				return err
			}
		}
		c.add(cacheEntry{soname: l.soname, path: d.path + "/" + file, flags: l.flags, isa: l.isa, caps: d.caps})
	}
	return nil
}

// linkLibrary makes the link from the name of a library to its file.
func (b *build) linkLibrary(dir string, l *library) error {
	name := path.Join(dir, l.soname)
	if b.get(name) != nil {
		return nil // a package's own, to whatever it likes
	}
	where, err := b.links.place(strings.TrimPrefix(name, "/"))
	if err != nil {
		return err
	}
	b.make(tree.Symlink(where, l.name))
	return nil
}

// library reads the file at a path if it is a library for this architecture.
func (b *build) library(name string) (*library, error) {
	base := path.Base(name)
	if !isLibrary(base) {
		return nil, nil
	}
	n := b.get(name)
	if n == nil || n.Type() != tree.TypeFile {
		return nil, nil
	}
	place, err := b.links.place(strings.TrimPrefix(name, "/"))
	if err != nil {
		return nil, err
	}
	l, err := n.inode.library()
	if err != nil {
		b.note(n.pkgName(), "%s is not in ld.so.cache: %v", name, err)
	}
	if err != nil || l == nil {
		return nil, nil
	}
	if l.soname == "" {
		l.soname = base
	}
	l.name = base
	// A link named as the library, or as a linker wants it ("libx.so" to
	// "libx.so.1"), is one; under any other name it counts as a file.
	if b.at[place].Type() == tree.TypeSymlink && (base == l.soname || strings.HasSuffix(base, ".so") && strings.HasPrefix(l.soname, base)) {
		l.link, l.soname = true, base
	}
	return l, nil
}

// isLibrary is how the dynamic linker's files are named.
func isLibrary(base string) bool {
	return (strings.HasPrefix(base, "lib") || strings.HasPrefix(base, "ld-")) && strings.Contains(base, ".so") ||
		strings.HasPrefix(base, "ld.so.") || strings.HasPrefix(base, "ld64.so.")
}

// maxLibrary bounds a library, in bytes.
const maxLibrary = 1 << 30

// library returns nil for what is no shared object: a linker script, say.
func (i *inode) library() (*library, error) {
	r, done, err := i.readerAt()
	if err != nil {
		return nil, err
	}
	defer done()
	var magic [4]byte
	if n, _ := r.ReadAt(magic[:], 0); n < 4 || string(magic[:]) != elf.ELFMAG {
		return nil, nil
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, err
	}
	if f.Type != elf.ET_DYN {
		return nil, nil
	}
	l := &library{flags: libraryFlags(f)}
	if l.flags == 0 {
		return nil, nil
	}
	if l.soname, err = soname(f); err != nil {
		return nil, err
	}
	if l.soname == noDynamic {
		return nil, nil
	}
	if strings.ContainsAny(l.soname, "/\x00") {
		return nil, fmt.Errorf("calls itself %q", l.soname)
	}
	l.isa = isaLevel(f)
	return l, nil
}

// noDynamic is what no library can be called.
const noDynamic = "/"

// maxDynamic and maxSoname bound what is read of a library, in bytes.
const (
	maxDynamic = 1 << 20
	maxSoname  = 4096
)

// soname returns the name that a library gives itself, "" for none, noDynamic when
// it has no dynamic section. It goes by the program headers, as the dynamic linker
// does: a library works without sections.
func soname(f *elf.File) (string, error) {
	entries, err := dynamic(f)
	if err != nil || entries == nil {
		return noDynamic, err
	}
	name, ok := entries[elf.DT_SONAME]
	if !ok {
		return "", nil
	}
	at := entries[elf.DT_STRTAB] + name
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || at < p.Vaddr || at-p.Vaddr >= p.Filesz {
			continue
		}
		text := make([]byte, min(maxSoname, p.Filesz-(at-p.Vaddr)))
		if _, err := p.ReadAt(text, int64(at-p.Vaddr)); err != nil {
			return "", err
		}
		text, _, ok = bytes.Cut(text, []byte{0})
		if !ok || len(text) == 0 {
			return "", fmt.Errorf("its name at %#x is empty or has no end", at)
		}
		return string(text), nil
	}
	return "", fmt.Errorf("its name at %#x is in no segment", at)
}

// dynamic returns the dynamic section by tags, nil when there is none.
func dynamic(f *elf.File) (map[elf.DynTag]uint64, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_DYNAMIC {
			continue
		}
		if p.Filesz > maxDynamic {
			return nil, fmt.Errorf("dynamic section of %d bytes, want at most %d", p.Filesz, maxDynamic)
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return nil, fmt.Errorf("dynamic section: %w", err)
		}
		out := map[elf.DynTag]uint64{}
		word := func(at int) uint64 { return f.ByteOrder.Uint64(b[at:]) }
		size := 8
		if f.Class == elf.ELFCLASS32 {
			word, size = func(at int) uint64 { return uint64(f.ByteOrder.Uint32(b[at:])) }, 4
		}
		for at := 0; at+2*size <= len(b); at += 2 * size {
			tag := elf.DynTag(word(at))
			if tag == elf.DT_NULL {
				break
			}
			out[tag] = word(at + size)
		}
		return out, nil
	}
	return nil, nil
}

// The kinds of libraries, sysdeps/generic/ldconfig.h: all are for glibc, and for
// what an x86-64 processor runs.
const (
	flagGlibc = 0x0003
	flagX8664 = 0x0300
	flagX32   = 0x0800
)

func libraryFlags(f *elf.File) uint32 {
	switch {
	case f.Machine == elf.EM_X86_64 && f.Class == elf.ELFCLASS64:
		return flagGlibc | flagX8664
	case f.Machine == elf.EM_X86_64:
		return flagGlibc | flagX32
	case f.Machine == elf.EM_386:
		return flagGlibc
	}
	return 0
}

// isaLevel reads the property GNU_PROPERTY_X86_ISA_1_NEEDED, x86-64 psABI: a bit
// for each level, of which the cache has the highest.
func isaLevel(f *elf.File) uint32 {
	const property, needed = 0x6474e553, 0xc0008002 // PT_GNU_PROPERTY
	for _, p := range f.Progs {
		if uint32(p.Type) != property || p.Filesz > 1<<16 || p.Filesz < 16 {
			continue
		}
		note := make([]byte, p.Filesz)
		if _, err := p.ReadAt(note, 0); err != nil {
			return 0
		}
		for at := note[16:]; len(at) >= 8; {
			kind, size := f.ByteOrder.Uint32(at), f.ByteOrder.Uint32(at[4:])
			at = at[8:]
			if uint64(size) > uint64(len(at)) {
				return 0
			}
			if kind == needed && size == 4 {
				var level uint32
				for bits := f.ByteOrder.Uint32(at); bits > 1; bits >>= 1 {
					level++
				}
				return level
			}
			at = at[min(len(at), int(size+7)&^7):]
		}
	}
	return 0
}
