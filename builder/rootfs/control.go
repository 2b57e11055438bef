package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"strings"

	"pault.ag/go/debian/dependency"
	"pault.ag/go/debian/version"
)

// A stanza is one paragraph in deb822(5) form, with its keys in lower case. The
// lines of a folded value are joined by "\n", without their first blank.
type stanza map[string]string

var errNoField = errors.New("line without a field name")

// stanzas yields the paragraphs of a file.
func stanzas(text []byte) iter.Seq2[stanza, error] {
	return func(yield func(stanza, error) bool) {
		s, last := stanza{}, ""
		for line := range bytes.Lines(text) {
			line = bytes.TrimRight(line, " \t\r\n")
			switch {
			case len(line) == 0:
				if len(s) > 0 && !yield(s, nil) {
					return
				}
				s, last = stanza{}, ""
			case line[0] == '#':
			case line[0] == ' ' || line[0] == '\t':
				if last == "" {
					yield(nil, errNoField)
					return
				}
				s[last] += "\n" + string(line[1:])
			default:
				name, value, ok := bytes.Cut(line, []byte(":"))
				if !ok || bytes.ContainsAny(name, " \t") {
					yield(nil, fmt.Errorf("%w: %.40q", errNoField, line))
					return
				}
				last = strings.ToLower(string(name))
				s[last] = string(bytes.TrimSpace(value))
			}
		}
		if len(s) > 0 {
			yield(s, nil)
		}
	}
}

// readControl parses the control file of a package, which may be absent.
func readControl(p Package) (stanza, error) {
	for s, err := range stanzas(p.Control["control"]) {
		if err == nil && s["package"] != p.Name {
			err = fmt.Errorf("its own name is %q", s["package"])
		}
		if err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
		return s, nil
	}
	return stanza{}, nil
}

// source returns the source package and its version.
func (p *pkg) source() (name, ver string) {
	text := p.Source
	if text == "" {
		text = p.control["source"]
	}
	if text == "" {
		text = p.Name
	}
	name, rest, _ := strings.Cut(text, " ")
	ver = strings.Trim(strings.TrimSpace(rest), "()")
	if ver == "" {
		ver = p.Version
	}
	return name, ver
}

// relations returns the packages that a field of the control file names.
func (p *pkg) relations(field string) []dependency.Possibility {
	d, err := dependency.Parse(strings.ReplaceAll(p.control[field], "\n", " "))
	if err != nil {
		return nil // the solver has refused it where it matters
	}
	return d.GetAllPossibilities()
}

// replaces reports whether the package may take files of the other one.
func (p *pkg) replaces(other *pkg) bool {
	v, err := version.Parse(other.Version)
	if err != nil {
		return false
	}
	for _, r := range p.relations("replaces") {
		if r.Name == other.Name && (r.Version == nil || r.Version.SatisfiedBy(v)) {
			return true
		}
	}
	return false
}
