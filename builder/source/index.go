package source

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"pault.ag/go/debian/dependency"
	"pault.ag/go/debian/version"

	"github.com/plinth-os/plinth/internal/cas"
)

// An index is one Packages file: where its stanzas lie. A suite has 70 000 of
// them and a build needs a hundred, so only those are ever parsed.
type index struct {
	r      io.ReaderAt
	source *openSource
}

// A location is one stanza.
type location struct {
	index *index
	at    int64 // offset in the index
	size  int64 // bytes
}

// A catalog finds packages over all indexes.
type catalog struct {
	arch     string
	names    map[string][]location // by package name
	provides map[string][]location // by the name of a virtual package
	parsed   map[location]*candidate
}

func newCatalog(arch string) *catalog {
	return &catalog{arch, map[string][]location{}, map[string][]location{}, map[location]*candidate{}}
}

const maxLine = 1 << 20 // of a Packages file, bytes

// add reads an index once, from start to end, and notes its stanzas.
func (c *catalog) add(ix *index, r io.Reader) error {
	in := bufio.NewReaderSize(r, maxLine)
	var name string
	var provides []string
	var at, start int64
	note := func(end int64) {
		l := location{ix, start, end - start}
		if name != "" {
			c.names[name] = append(c.names[name], l)
		}
		for _, p := range provides {
			c.provides[p] = append(c.provides[p], l)
		}
		name, provides = "", provides[:0]
	}
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("line of more than %d bytes at offset %#x", maxLine, at)
		}
		if err != nil && err != io.EOF {
			return err
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			note(at)
			start = at + int64(len(line))
		} else if v, ok := bytes.CutPrefix(line, []byte("Package:")); ok {
			name = string(bytes.TrimSpace(v))
		} else if v, ok := bytes.CutPrefix(line, []byte("Provides:")); ok {
			for p := range strings.SplitSeq(string(v), ",") {
				provided, _, _ := strings.Cut(strings.TrimSpace(p), " ")
				provides = append(provides, provided)
			}
		}
		at += int64(len(line))
		if err == io.EOF {
			note(at)
			return nil
		}
	}
}

// A candidate is a package that could be chosen.
type candidate struct {
	Package
	source   *openSource
	origin   string // name of the source package
	version  version.Version
	priority int // 0 required to 4 extra: the order in which apt prefers providers
	provides []dependency.Possibility
	depends  []dependency.Relation // Pre-Depends first
	against  []dependency.Relation // Conflicts and Breaks
}

var priorities = []string{"required", "important", "standard", "optional"}

// at parses the stanza at a location; nil without error means that it is for
// another architecture.
func (c *catalog) at(l location) (*candidate, error) {
	if p, ok := c.parsed[l]; ok {
		return p, nil
	}
	p, err := c.parse(l)
	if err != nil {
		return nil, fmt.Errorf("source: %s: Packages at offset %#x: %w", l.index.source.label(), l.at, err)
	}
	c.parsed[l] = p
	return p, nil
}

func (c *catalog) parse(l location) (*candidate, error) {
	b := make([]byte, l.size)
	if _, err := io.ReadFull(io.NewSectionReader(l.index.r, l.at, l.size), b); err != nil {
		return nil, err
	}
	s, err := parseStanza(b)
	if err != nil {
		return nil, err
	}
	if a := s.get("Architecture"); a != c.arch && a != "all" {
		return nil, nil
	}
	src := l.index.source
	p := &candidate{source: src, origin: s.get("Package"), Package: Package{
		Name: s.get("Package"), Version: s.get("Version"), Arch: s.get("Architecture"),
		Source: src.Name, Suite: src.Suite, InRelease: src.inRelease,
	}}
	if o := s.words("Source"); len(o) > 0 {
		p.origin = o[0]
	}
	p.priority = len(priorities)
	if i := slices.Index(priorities, s.get("Priority")); i >= 0 {
		p.priority = i
	}
	return p, cmp.Or(p.parseFile(s), p.parseRelations(s))
}

// parseFile takes what says where the .deb is.
func (p *candidate) parseFile(s stanza) (err error) {
	if p.version, err = version.Parse(p.Version); err != nil {
		return fmt.Errorf("package %q: version %q: %w", p.Name, p.Version, err)
	}
	if p.SHA256, err = cas.ParseDigest(s.get("SHA256")); err != nil {
		return fmt.Errorf("package %q: %w", p.Name, err)
	}
	if p.Size, err = strconv.ParseInt(s.get("Size"), 10, 64); err != nil || p.Size < 0 {
		return fmt.Errorf("package %q: size %q", p.Name, s.get("Size"))
	}
	p.Filename = strings.TrimPrefix(s.get("Filename"), "./")
	if !fs.ValidPath(p.Filename) {
		return fmt.Errorf("package %q: file name %q", p.Name, p.Filename)
	}
	return nil
}

// parseRelations takes the fields of Debian Policy, chapter 7.
func (p *candidate) parseRelations(s stanza) error {
	for _, f := range []struct {
		name string
		to   *[]dependency.Relation
	}{{"Pre-Depends", &p.depends}, {"Depends", &p.depends}, {"Conflicts", &p.against}, {"Breaks", &p.against}} {
		d, err := dependency.Parse(s.get(f.name))
		if err != nil {
			return fmt.Errorf("package %q: %s: %w", p.Name, f.name, err)
		}
		*f.to = append(*f.to, d.Relations...)
	}
	d, err := dependency.Parse(s.get("Provides"))
	if err != nil {
		return fmt.Errorf("package %q: Provides: %w", p.Name, err)
	}
	p.provides = d.GetAllPossibilities()
	return nil
}

// stands reports whether the package satisfies a relation by a virtual package.
// A relation with a version needs a provided version, Debian Policy 7.5.
func (p *candidate) stands(rel dependency.Possibility, arch string) bool {
	return archFits(rel, arch) && slices.ContainsFunc(p.provides, func(v dependency.Possibility) bool {
		if v.Name != rel.Name || rel.Version == nil {
			return v.Name == rel.Name
		}
		if v.Version == nil || v.Version.Operator != "=" {
			return false
		}
		provided, err := version.Parse(v.Version.Number)
		return err == nil && rel.Version.SatisfiedBy(provided)
	})
}

// archFits refuses what only another architecture's package would satisfy.
func archFits(rel dependency.Possibility, arch string) bool {
	return rel.Arch == nil || rel.Arch.CPU == "any" || rel.Arch.CPU == "native" || rel.Arch.CPU == arch
}

// named returns the packages of that name, the preferred one first: those that
// need no request, then the highest version, then the earlier source.
func (c *catalog) named(name string) ([]*candidate, error) {
	return c.sorted(c.names[name], func(a, b *candidate) int { return 0 })
}

// providers returns the packages that provide a virtual package, in the order
// in which apt takes them.
func (c *catalog) providers(name string) ([]*candidate, error) {
	return c.sorted(c.provides[name], func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.Name, b.Name))
	})
}

func (c *catalog) sorted(ls []location, first func(a, b *candidate) int) ([]*candidate, error) {
	var ps []*candidate
	for _, l := range ls {
		p, err := c.at(l)
		if err != nil {
			return nil, err
		}
		if p != nil {
			ps = append(ps, p)
		}
	}
	slices.SortStableFunc(ps, func(a, b *candidate) int {
		return cmp.Or(boolCompare(a.source.onRequest, b.source.onRequest), first(a, b), version.Compare(b.version, a.version))
	})
	return ps, nil
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// similar returns up to three names that a person may have meant.
func (c *catalog) similar(name string) []string {
	var found []string
	for n := range c.names {
		if strings.Contains(n, name) || len(n) > 3 && strings.Contains(name, n) {
			found = append(found, n)
		}
	}
	slices.SortFunc(found, func(a, b string) int {
		distance := func(s string) int { return max(len(s)-len(name), len(name)-len(s)) }
		return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(a, b))
	})
	return found[:min(3, len(found))]
}
