package source

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"pault.ag/go/debian/dependency"
	"pault.ag/go/debian/version"
)

// A solver chooses one version of each package that is needed. It takes the
// first good choice and never goes back: relations that leave a choice wait until
// all that leave none are settled. Conflicts and Breaks are checked at the end.
type solver struct {
	arch    string
	catalog *catalog         // nil when the previous lock holds all that is wanted
	kept    map[string]*node // from the previous lock, by name
	chosen  map[string]*node
	queue   []step // leave no choice
	later   []step // alternatives and virtual packages
}

// A node is a package that is chosen or could be.
type node struct {
	Package
	version version.Version
	stanza  *candidate      // nil for a kept package that no index has any more
	like    *candidate      // then another version of it: what it provides is likely the same
	needs   []string        // names that a kept package depended on when it was chosen
	why     map[string]bool // as Package.Why
	walked  bool            // its dependencies within its source package are queued
	closure bool            // all its dependencies are
}

// A step is a relation of a package that must be satisfied.
type step struct {
	from    *node
	rel     []dependency.Possibility
	closure bool
}

const dependencyOf = "dependency of "

// keep makes nodes of what prev has and req does not update.
func keep(prev *Lock, req Request) map[string]*node {
	kept := map[string]*node{}
	if prev == nil || req.UpdateAll || prev.Arch != req.Arch {
		return kept
	}
	for _, p := range prev.Packages {
		v, err := version.Parse(p.Version)
		if err != nil || slices.Contains(req.Update, p.Name) || !slices.ContainsFunc(req.Sources, p.from) {
			continue
		}
		kept[p.Name] = &node{Package: p, version: v, why: map[string]bool{}}
	}
	for _, p := range prev.Packages {
		for _, why := range p.Why {
			parent, ok := strings.CutPrefix(why, dependencyOf)
			if n := kept[parent]; ok && n != nil {
				n.needs = append(n.needs, p.Name)
			}
		}
	}
	return kept
}

// from reports whether s is where the package comes from.
func (p *Package) from(s Source) bool { return p.Source == s.Name && p.Suite == s.Suite }

func newSolver(arch string, kept map[string]*node, c *catalog) (*solver, error) {
	s := &solver{arch: arch, catalog: c, kept: kept, chosen: map[string]*node{}}
	if c == nil {
		return s, nil
	}
	for _, n := range kept {
		same, err := c.named(n.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range same {
			n.like = p
			if p.SHA256 == n.SHA256 {
				n.stanza = p
				break
			}
		}
	}
	return s, nil
}

// solve returns the chosen packages, sorted by name.
func (s *solver) solve(wants []Want) ([]*node, error) {
	for _, w := range wants {
		n, err := s.want(w)
		if err != nil {
			return nil, err
		}
		n.why[w.Role] = true
		if err := s.walk(n, w.Closure); err != nil {
			return nil, err
		}
	}
	for len(s.queue)+len(s.later) > 0 {
		next := &s.queue
		if len(s.queue) == 0 {
			next = &s.later
		}
		st := (*next)[0]
		*next = (*next)[1:]
		if err := s.satisfy(st); err != nil {
			return nil, err
		}
	}
	nodes := sortedNodes(s.chosen)
	return nodes, s.verify(nodes)
}

func sortedNodes(m map[string]*node) []*node {
	return slices.SortedFunc(maps.Values(m), func(a, b *node) int { return cmp.Compare(a.Name, b.Name) })
}

// want chooses the package that the profile names.
func (s *solver) want(w Want) (*node, error) {
	if n := s.chosen[w.Package]; n != nil {
		if !w.allows(&n.Package) {
			return nil, &ResolveError{What: w.Role, Problem: fmt.Sprintf("package %s is chosen from %s %s already, and one image has one version", n.Name, n.Source, n.Suite)}
		}
		return n, nil
	}
	if n := s.kept[w.Package]; n != nil && w.allows(&n.Package) {
		return s.choose(n), nil
	}
	if s.catalog == nil { // lock and profile agree, so only a lock edited by hand comes here
		return nil, &LockError{Problem: fmt.Sprintf("wants %s, but has no such package", w.Package)}
	}
	found, err := s.catalog.named(w.Package)
	if err != nil {
		return nil, err
	}
	for _, p := range found {
		if w.allows(&p.Package) {
			return s.choose(p.node()), nil
		}
	}
	return nil, s.missing(w, found)
}

func (w *Want) allows(p *Package) bool {
	return (w.Source == "" || w.Source == p.Source) && (w.Suite == "" || w.Suite == p.Suite)
}

// missing explains why nothing suits a want.
func (s *solver) missing(w Want, elsewhere []*candidate) error {
	e := &ResolveError{What: w.Role, Problem: fmt.Sprintf("no source has a package %q", w.Package)}
	if len(elsewhere) > 0 {
		e.Problem = fmt.Sprintf("package %q is not in %s, but in %s", w.Package,
			strings.TrimSpace(w.Source+" "+w.Suite), elsewhere[0].source.label())
		return e
	}
	providers, err := s.catalog.providers(w.Package)
	if err != nil {
		return err
	}
	for _, p := range providers {
		e.Problem = fmt.Sprintf("package %q is virtual", w.Package)
		e.Similar = append(e.Similar, p.Name)
	}
	if len(providers) == 0 {
		e.Similar = s.catalog.similar(w.Package)
	}
	e.Similar = e.Similar[:min(len(e.Similar), 3)]
	return e
}

func (c *candidate) node() *node {
	return &node{Package: c.Package, version: c.version, stanza: c, like: c, why: map[string]bool{}}
}

func (s *solver) choose(n *node) *node {
	s.chosen[n.Name] = n
	return n
}

// walk queues the dependencies of a package: all for a closure, otherwise those
// that are built from the same source package.
func (s *solver) walk(n *node, closure bool) error {
	if n.closure || n.walked && !closure {
		return nil
	}
	n.walked, n.closure = true, closure
	if n.stanza == nil {
		return s.walkKept(n, closure)
	}
	for _, r := range n.stanza.depends {
		st := step{n, r.Possibilities, closure}
		if !closure {
			var err error
			if st.rel, err = s.sameOrigin(n, r.Possibilities); err != nil {
				return err
			}
		}
		switch {
		case len(st.rel) == 0:
		case len(st.rel) == 1 && len(s.catalog.provides[st.rel[0].Name]) == 0:
			s.queue = append(s.queue, st)
		default:
			s.later = append(s.later, st)
		}
	}
	return nil
}

// walkKept follows what the lock says about a package that has left the archive.
func (s *solver) walkKept(n *node, closure bool) error {
	for _, name := range n.needs {
		to := s.chosen[name]
		if to == nil {
			to = s.kept[name]
		}
		if to == nil { // it is updated: any version of it must do
			st := step{n, []dependency.Possibility{{Name: name}}, closure}
			s.queue = append(s.queue, st)
			continue
		}
		if err := s.link(n, to, closure); err != nil {
			return err
		}
	}
	return nil
}

func (s *solver) sameOrigin(n *node, rel []dependency.Possibility) (same []dependency.Possibility, err error) {
	for _, p := range rel {
		found, err := s.catalog.named(p.Name)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 && found[0].origin == n.stanza.origin {
			same = append(same, p)
		}
	}
	return same, nil
}

func (s *solver) link(from, to *node, closure bool) error {
	s.choose(to)
	if from != to {
		to.why[dependencyOf+from.Name] = true
	}
	return s.walk(to, closure)
}

// satisfy settles a relation: by what is chosen, then by what the previous lock
// has, then by the archive; within each in the order of the alternatives.
func (s *solver) satisfy(st step) error {
	for _, nodes := range []map[string]*node{s.chosen, s.kept} {
		if to := s.among(nodes, st.rel); to != nil {
			return s.link(st.from, to, st.closure)
		}
	}
	if s.catalog != nil {
		// What comes along with a package must be of the same build: it comes
		// from the same suite if that has it.
		var near *openSource
		if !st.closure && st.from.stanza != nil {
			near = st.from.stanza.source
		}
		for _, rel := range st.rel {
			to, err := s.find(rel, near)
			if err != nil {
				return err
			}
			if to != nil {
				return s.link(st.from, to, st.closure)
			}
		}
	}
	return &ResolveError{What: st.from.Name + " " + st.from.Version, Problem: "depends on " + s.describe(st.rel)}
}

// among finds a package that satisfies one of the alternatives. A kept package
// of which another version is chosen does not count.
func (s *solver) among(nodes map[string]*node, rel []dependency.Possibility) *node {
	for _, r := range rel {
		if n := nodes[r.Name]; n != nil && n.meets(r, s.arch) && s.free(n) {
			return n
		}
	}
	for _, r := range rel {
		for _, n := range sortedNodes(nodes) {
			if n.like != nil && n.like.stands(r, s.arch) && s.free(n) {
				return n
			}
		}
	}
	return nil
}

// free reports whether choosing n would not replace another version of it.
func (s *solver) free(n *node) bool {
	other := s.chosen[n.Name]
	return other == nil || other == n
}

func (n *node) meets(rel dependency.Possibility, arch string) bool {
	return n.Name == rel.Name && archFits(rel, arch) && (rel.Version == nil || rel.Version.SatisfiedBy(n.version))
}

// find looks for a package in the archive, by name and then among providers;
// packages by that name in near, which may be nil, go first.
func (s *solver) find(rel dependency.Possibility, near *openSource) (*node, error) {
	named, err := s.catalog.named(rel.Name)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(named, func(a, b *candidate) int { return boolCompare(a.source != near, b.source != near) })
	for _, p := range named {
		if n := p.node(); n.meets(rel, s.arch) && s.free(n) {
			return n, nil
		}
	}
	providers, err := s.catalog.providers(rel.Name)
	if err != nil {
		return nil, err
	}
	for _, p := range providers {
		if n := p.node(); p.stands(rel, s.arch) && s.free(n) {
			return n, nil
		}
	}
	return nil, nil
}

// describe prints alternatives, with the version that is chosen where it is in the way.
func (s *solver) describe(rel []dependency.Possibility) string {
	var parts []string
	for _, r := range rel {
		part := r.Name
		if r.Version != nil {
			part += fmt.Sprintf(" (%s %s)", r.Version.Operator, r.Version.Number)
		}
		if n := s.chosen[r.Name]; n != nil {
			part += ", of which " + n.Version + " is chosen"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " | ")
}

// verify checks a closure as a whole. It matters when the previous lock holds one
// package at a version that an updated one does not fit.
func (s *solver) verify(nodes []*node) error {
	for _, n := range nodes {
		if !n.closure || n.stanza == nil {
			continue
		}
		for _, r := range n.stanza.depends {
			if s.among(s.chosen, r.Possibilities) == nil {
				return &ResolveError{What: n.Name + " " + n.Version, Problem: "depends on " + s.describe(r.Possibilities)}
			}
		}
		for _, r := range n.stanza.against {
			for _, o := range nodes {
				if o != n && o.closure && slices.ContainsFunc(r.Possibilities, func(p dependency.Possibility) bool {
					return o.meets(p, s.arch) || o.stanza != nil && o.stanza.stands(p, s.arch)
				}) {
					return &ResolveError{What: n.Name + " " + n.Version, Problem: "conflicts with " + o.Name + " " + o.Version}
				}
			}
		}
	}
	return nil
}
