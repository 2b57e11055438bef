package rootfs

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
)

// The file ld.so.cache, glibc sysdeps/generic/dl-cache.h: a header, an entry for
// each library, strings, and extensions.
const (
	cacheMagic        = "glibc-ld.so.cache1.1"
	cacheHeaderSize   = 48
	cacheEntrySize    = 24
	cacheLittleEndian = 2

	extensionMagic = 0xeaa42174
	// capsBit says in an entry's hardware capabilities that it is of a directory
	// below glibc-hwcaps, whose number is in the lower half.
	capsBit  = 1 << 62
	isaShift = 32

	extensionGenerator = 0 // text: what wrote the file
	extensionCaps      = 1 // offsets of the directories' names
)

// generator is what the cache says of its writer.
const generator = "plinth"

// A cache is what the dynamic linker looks libraries up in.
type cache struct{ entries []cacheEntry }

type cacheEntry struct {
	soname, path string
	flags        uint32
	isa          uint32
	caps         string // directory below glibc-hwcaps, "" for none
}

func (c *cache) add(e cacheEntry) { c.entries = append(c.entries, e) }

// compareLibraries orders names with the numbers in them by value.
func compareLibraries(x, y string) int {
	for x != "" && y != "" {
		nx, ny := digits(x), digits(y)
		switch {
		case nx > 0 && ny > 0:
			if c := compareNumbers(x[:nx], y[:ny]); c != 0 {
				return c
			}
			x, y = x[nx:], y[ny:]
		case nx > 0:
			return 1
		case ny > 0:
			return -1
		case x[0] != y[0]:
			return int(x[0]) - int(y[0])
		default:
			x, y = x[1:], y[1:]
		}
	}
	return len(x) - len(y)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func compareNumbers(x, y string) int {
	x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
	if len(x) != len(y) {
		return len(x) - len(y)
	}
	return strings.Compare(x, y)
}

// sorted returns the entries in the order of the binary search of the dynamic
// linker: names downwards, and of one name those for newer processors first.
// Entries that do not differ stay in the order of their directories.
func (c *cache) sorted() []cacheEntry {
	out := slices.Clone(c.entries)
	slices.SortStableFunc(out, func(x, y cacheEntry) int {
		if n := compareLibraries(y.soname, x.soname); n != 0 {
			return n
		}
		if x.flags != y.flags {
			return int(y.flags) - int(x.flags)
		}
		switch {
		case x.caps != "" && y.caps != "":
			return strings.Compare(x.caps, y.caps)
		case x.caps != "":
			return -1
		case y.caps != "":
			return 1
		}
		return 0
	})
	return out
}

// encode returns the file.
func (c *cache) encode() []byte {
	entries := c.sorted()
	var caps []string
	var t stringTable
	for _, e := range entries {
		t.add(e.soname)
		t.add(e.path)
		if e.caps != "" && !slices.Contains(caps, e.caps) {
			caps = append(caps, e.caps)
			t.add(e.caps)
		}
	}
	slices.Sort(caps)
	start := cacheHeaderSize + cacheEntrySize*len(entries)
	text := t.layout(uint32(start))
	le := binary.LittleEndian
	out := []byte(cacheMagic)
	out = le.AppendUint32(out, uint32(len(entries)))
	out = le.AppendUint32(out, uint32(len(text)))
	out = append(out, cacheLittleEndian, 0, 0, 0)
	out = le.AppendUint32(out, uint32(align4(start+len(text)))) // where the extensions are
	out = append(out, make([]byte, 12)...)
	for _, e := range entries {
		out = le.AppendUint32(out, e.flags)
		out = le.AppendUint32(out, t.at[e.soname])
		out = le.AppendUint32(out, t.at[e.path])
		out = le.AppendUint32(out, 0) // was the version of the kernel
		var hwcap uint64
		if e.caps != "" {
			hwcap = capsBit | uint64(e.isa)<<isaShift | uint64(slices.Index(caps, e.caps))
		}
		out = le.AppendUint64(out, hwcap)
	}
	out = append(out, text...)
	out = append(out, make([]byte, align4(len(out))-len(out))...)
	return appendExtensions(out, caps, &t)
}

func align4(n int) int { return (n + 3) &^ 3 }

// appendExtensions appends the directory of the extensions and what it points at.
func appendExtensions(out []byte, caps []string, t *stringTable) []byte {
	le := binary.LittleEndian
	sections := uint32(1)
	if len(caps) > 0 {
		sections = 2
	}
	at := uint32(len(out)) + 8 + 16*sections
	out = le.AppendUint32(out, extensionMagic)
	out = le.AppendUint32(out, sections)
	section := func(tag, offset, size uint32) {
		for _, v := range []uint32{tag, 0, offset, size} {
			out = le.AppendUint32(out, v)
		}
	}
	names := uint32(4 * len(caps))
	section(extensionGenerator, at+names, uint32(len(generator)))
	if len(caps) > 0 {
		section(extensionCaps, at, names)
	}
	for _, c := range caps {
		out = le.AppendUint32(out, t.at[c])
	}
	return append(out, generator...)
}

// A stringTable holds each string once; one that ends another lies in its tail.
type stringTable struct {
	strings []string
	at      map[string]uint32 // after layout
}

func (t *stringTable) add(s string) { t.strings = append(t.strings, s) }

// layout places the strings from offset on and returns them, each with its NUL.
func (t *stringTable) layout(offset uint32) []byte {
	slices.SortFunc(t.strings, compareTails)
	t.strings = slices.Compact(t.strings)
	t.at = make(map[string]uint32, len(t.strings))
	var out bytes.Buffer
	last := ""
	for _, s := range t.strings {
		if strings.HasSuffix(last, s) && last != "" {
			t.at[s] = t.at[last] + uint32(len(last)-len(s))
		} else {
			t.at[s] = offset + uint32(out.Len())
			out.WriteString(s)
			out.WriteByte(0)
		}
		last = s
	}
	return out.Bytes()
}

// compareTails orders strings by their bytes from the last to the first,
// downwards: a string comes right behind those that it ends.
func compareTails(x, y string) int {
	for i := 1; i <= min(len(x), len(y)); i++ {
		if cx, cy := x[len(x)-i], y[len(y)-i]; cx != cy {
			return int(cy) - int(cx)
		}
	}
	return len(y) - len(x)
}
