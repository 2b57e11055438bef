package initrd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
)

// A modinfo is what the .modinfo section of a module says that matters here.
type modinfo struct {
	depends   []string // module names
	pre, post []string // of softdep: names or aliases
	aliases   []string // patterns; fnmatch(3)
}

// parseModinfo reads the .modinfo section of a module.
func parseModinfo(elf []byte) (*modinfo, error) {
	section, err := elfSection(elf, ".modinfo")
	if err != nil {
		return nil, err
	}
	info := &modinfo{}
	for field := range bytes.SplitSeq(section, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		info.add(key, value)
	}
	return info, nil
}

// add takes a "key=value" of the section; linux/module.h has the keys. weakdep
// is left out on purpose: it names what a module may use and runs without.
func (info *modinfo) add(key, value string) {
	switch key {
	case "depends":
		for name := range strings.SplitSeq(value, ",") {
			if name != "" {
				info.depends = append(info.depends, canonical(name))
			}
		}
	case "alias":
		info.aliases = append(info.aliases, canonicalAlias(value))
	case "softdep":
		// "pre: a b post: c"; kmod, libkmod-config.c. Names before either count for
		// nothing there.
		var list *[]string
		for word := range strings.FieldsSeq(value) {
			switch {
			case word == "pre:":
				list = &info.pre
			case word == "post:":
				list = &info.post
			case list != nil:
				*list = append(*list, canonicalAlias(word))
			}
		}
	}
}

// canonical spells a module name as the kernel does.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// canonicalAlias does so with an alias, in which - within brackets is a range.
func canonicalAlias(alias string) string {
	b := []byte(alias)
	inside := false
	for i, c := range b {
		switch {
		case c == '[':
			inside = true
		case c == ']':
			inside = false
		case c == '-' && !inside:
			b[i] = '_'
		}
	}
	return string(b)
}

// The ELF header and section headers of 64 bits, little-endian; System V ABI,
// chapter 4. debug/elf would do, but says itself that it is not made for hostile
// files.
type elfHeader struct {
	Ident      [16]byte // 7f E L F, class, data, version
	Type       uint16
	Machine    uint16
	Version    uint32
	Entry      uint64
	ProgramOff uint64
	SectionOff uint64
	Flags      uint32
	HeaderSize uint16
	_          [4]byte
	EntrySize  uint16 // bytes of a section header
	Sections   uint16
	NameIndex  uint16 // the section that holds names
}

type elfSectionHeader struct {
	Name   uint32 // offset in the section of names
	Type   uint32
	Flags  uint64
	Addr   uint64
	Offset uint64
	Size   uint64 // bytes
	_      [24]byte
}

const elfIdent = "\x7fELF\x02\x01\x01"

// elfSection returns the content of the first section of that name.
func elfSection(elf []byte, name string) ([]byte, error) {
	var h elfHeader
	n, err := binary.Decode(elf, binary.LittleEndian, &h)
	if err != nil || !bytes.HasPrefix(elf, []byte(elfIdent)) {
		return nil, fmt.Errorf("not an ELF file of 64 bits, little-endian")
	}
	size := binary.Size(elfSectionHeader{})
	if int(h.EntrySize) != size || h.SectionOff < uint64(n) {
		return nil, fmt.Errorf("ELF: section headers of %d bytes at %#x", h.EntrySize, h.SectionOff)
	}
	table, err := within(elf, h.SectionOff, uint64(h.Sections)*uint64(size))
	if err != nil {
		return nil, fmt.Errorf("ELF: section headers: %w", err)
	}
	section := func(i int) (s elfSectionHeader, body []byte, err error) {
		if i >= int(h.Sections) {
			return s, nil, fmt.Errorf("ELF: section %d of %d", i, h.Sections)
		}
		binary.Decode(table[i*size:], binary.LittleEndian, &s) // table is long enough
		if s.Type == 8 {                                       // SHT_NOBITS
			return s, nil, nil
		}
		body, err = within(elf, s.Offset, s.Size)
		if err != nil {
			err = fmt.Errorf("ELF: section %d: %w", i, err)
		}
		return s, body, err
	}
	_, names, err := section(int(h.NameIndex))
	if err != nil {
		return nil, err
	}
	for i := 1; i < int(h.Sections); i++ {
		s, body, err := section(i)
		if err != nil {
			return nil, err
		}
		if uint64(s.Name) < uint64(len(names)) && bytes.HasPrefix(names[s.Name:], append([]byte(name), 0)) {
			return body, nil
		}
	}
	return nil, fmt.Errorf("ELF: no section %s", name)
}

// within returns n bytes of b from off on.
func within(b []byte, off, n uint64) ([]byte, error) {
	if off > uint64(len(b)) || n > uint64(len(b))-off {
		return nil, fmt.Errorf("%d bytes at %#x of a file of %d", n, off, len(b))
	}
	return b[off:][:n:n], nil
}
