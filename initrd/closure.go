package initrd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/levenshtein"
)

// A Module is a module to be loaded.
type Module struct {
	Name    string                 // as lsmod shows it
	Path    string                 // in the module directory
	Params  string                 // for finit_module(2)
	Content func() ([]byte, error) // the ELF file, unpacked; its signature is kept
}

// An UnknownModuleError is returned for a name that the kernel has neither as a
// module nor built in.
type UnknownModuleError struct {
	Name        string
	Suggestions []string // names that are alike, the nearest first
}

func (e *UnknownModuleError) Error() string {
	s := fmt.Sprintf("initrd: module %q: this kernel has none of that name", e.Name)
	if len(e.Suggestions) > 0 {
		s += "; did you mean " + strings.Join(e.Suggestions, ", ") + "?"
	}
	return s
}

// Closure returns the named modules and what they need, in the order in which
// to load them: dependencies, then what a soft dependency wants before, the
// module, then what one wants after. The order follows from the names and the
// kernel alone.
//
// A name is a module's or an alias, with - or _; parameters may follow it after
// spaces, as on modprobe's command line; the last that are given count. What is built in is left out. A leading
// "?" lets the kernel lack it; otherwise the error is an *UnknownModuleError.
// Modules that need each other are refused. Unknown soft dependencies are left
// out, as modprobe does it.
//
// An alias that no module of a like name carries is looked for in all modules,
// which takes seconds for a kernel with compressed ones; an optional name is not.
func (m *Modules) Closure(names []string) ([]Module, error) {
	c := closure{m: m, state: map[string]state{}, params: map[string]string{}}
	for _, name := range names {
		name, optional := strings.CutPrefix(strings.TrimSpace(name), "?")
		name, params, _ := strings.Cut(name, " ")
		params = strings.TrimSpace(params)
		modules, builtin, err := m.lookup(name, !optional)
		if err != nil {
			return nil, fmt.Errorf("initrd: module %q: %w", name, err)
		}
		if len(modules) == 0 && !builtin && !optional {
			return nil, &UnknownModuleError{Name: name, Suggestions: m.suggest(name)}
		}
		for _, mod := range modules {
			if err := c.visit(mod); err != nil {
				return nil, fmt.Errorf("initrd: module %q: %w", name, err)
			}
			if params != "" {
				c.params[mod] = params
			}
		}
		if builtin && params != "" {
			return nil, fmt.Errorf("initrd: module %q: is built in: parameters go on the command line", name)
		}
	}
	for i := range c.order {
		c.order[i].Params = c.params[c.order[i].Name]
	}
	return c.order, nil
}

type state int

const (
	visiting state = 1 + iota
	visited
)

type closure struct {
	m      *Modules
	state  map[string]state
	params map[string]string
	order  []Module
}

// visit appends a module that is a file, and what it needs, to the order.
func (c *closure) visit(name string) error {
	switch c.state[name] {
	case visited:
		return nil
	case visiting:
		return fmt.Errorf("%s needs itself", name)
	}
	c.state[name] = visiting
	paths := c.m.files[name]
	if len(paths) > 1 {
		return fmt.Errorf("%s is there %d times: %s", name, len(paths), strings.Join(paths, ", "))
	}
	body, info, err := c.m.load(paths[0])
	if err != nil {
		return err
	}
	for _, dep := range info.depends {
		if c.m.builtin[dep] && len(c.m.files[dep]) == 0 {
			continue
		}
		if len(c.m.files[dep]) == 0 {
			return fmt.Errorf("%s needs %s, which is not there", name, dep)
		}
		if err := c.visit(dep); err != nil {
			return fmt.Errorf("%s needs %w", name, err)
		}
	}
	if err := c.soft(name, info.pre); err != nil {
		return err
	}
	c.order = append(c.order, Module{
		Name:    name,
		Path:    paths[0],
		Content: func() ([]byte, error) { return body, nil },
	})
	c.state[name] = visited
	return c.soft(name, info.post)
}

// soft visits soft dependencies of a module. One that is being visited is left
// out: the order that it asks for cannot be had.
func (c *closure) soft(name string, wants []string) error {
	for _, want := range wants {
		modules, _, err := c.m.lookup(want, true)
		if err != nil {
			return err
		}
		for _, mod := range modules {
			if c.state[mod] == visiting {
				continue
			}
			if err := c.visit(mod); err != nil {
				return fmt.Errorf("%s wants %w", name, err)
			}
		}
	}
	return nil
}

const maxSuggestions = 3

// suggest returns the module names that are most like name.
func (m *Modules) suggest(name string) []string {
	name = canonical(name)
	type near struct {
		name string
		d    int
	}
	var all []near
	for other := range m.files {
		if d := levenshtein.Distance(name, other); d <= 1+len(name)/4 {
			all = append(all, near{other, d})
		}
	}
	slices.SortFunc(all, func(a, b near) int {
		if a.d != b.d {
			return a.d - b.d
		}
		return strings.Compare(a.name, b.name)
	})
	var out []string
	for _, n := range all[:min(len(all), maxSuggestions)] {
		out = append(out, n.name)
	}
	return out
}
