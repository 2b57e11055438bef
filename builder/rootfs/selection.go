package rootfs

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// A Selection says what is taken of an archive, and where it goes.
type Selection struct {
	patterns []*pattern
	strip    int
	to       string
}

// NewSelection takes what patterns name, those of Params.Exclude over the paths of
// the archive, or everything when there are none. strip leading parts of a path
// are taken off, and the rest starts from the directory to, "" for the root.
func NewSelection(patterns []string, strip int, to string) (*Selection, error) {
	s := &Selection{strip: strip, to: strings.Trim(to, "/")}
	for _, text := range patterns {
		p := &pattern{text: text, parts: split(text)} // unlike in newPattern, /bin is where the archive has it
		for _, part := range p.parts {
			if _, err := path.Match(part, ""); err != nil {
				return nil, fmt.Errorf("rootfs: %q: %w", text, err)
			}
		}
		s.patterns = append(s.patterns, p)
	}
	return s, nil
}

// Place tells whether a path of the archive is taken, and where it goes. What has
// no parts left is not: the root of the archive, for one.
func (s *Selection) Place(name string) (string, bool) {
	parts := split(name)
	matched := len(s.patterns) == 0
	for _, p := range s.patterns { // each, so that it is known which were of use
		matched = p.match(name) || matched
	}
	if !matched || len(parts) <= s.strip {
		return "", false
	}
	return path.Join(s.to, path.Join(parts[s.strip:]...)), true
}

// Check fails for a pattern that nothing matched so far.
func (s *Selection) Check() error {
	for _, p := range s.patterns {
		if !p.used {
			return fmt.Errorf("rootfs: %s: there is no such path", p.text)
		}
	}
	return nil
}

// own are the paths that no package may bring: the agent's, and what the kernel
// would run in its place.
var own = []string{"init", "etc/plinth", "usr/lib/plinth", ".extra"}

// keepOff refuses packages that would take the place of the agent, or lead the
// paths to it elsewhere.
func (b *build) keepOff() error {
	for _, n := range b.nodes {
		if n.pkg == nil {
			continue
		}
		above := n.Type() != tree.TypeDir && slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, n.Path+"/") })
		if above || owned(n.Path) {
			return fmt.Errorf("rootfs: %s: /%s belongs to the agent", n.owner(), n.Path)
		}
	}
	return nil
}

// owned tells whether a path is one of own, or below one.
func owned(name string) bool {
	return slices.ContainsFunc(own, func(o string) bool { return name == o || strings.HasPrefix(name, o+"/") })
}

// admits tells whether something can be made at a path.
func (b *build) admits(name string) error {
	if owned(name) {
		return fmt.Errorf("/%s belongs to the agent", name)
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if n := b.at[dir]; n != nil && n.Type() != tree.TypeDir {
			return fmt.Errorf("/%s is no directory", dir)
		}
	}
	return nil
}

// Name makes the files of that content, which no package brought, those of a
// component: what the profile took from an address.
func (v *Inventory) Name(c Component) {
	found := false
	for i := range v.Files {
		if f := &v.Files[i]; f.Package == "" && f.SHA256 == c.SHA256 {
			f.Package, found = c.Name, true
		}
	}
	if found {
		v.Components = append(v.Components, c)
		slices.SortFunc(v.Components, func(x, y Component) int { return strings.Compare(x.Name, y.Name) })
	}
}
