package source

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"strings"
)

// A stanza is one paragraph in deb822(5) form. Keys are in lower case, because
// case does not count; the lines of a folded value are joined by "\n", without
// their leading blank.
type stanza map[string]string

func (s stanza) get(field string) string { return s[strings.ToLower(field)] }

// words returns a value split at white space.
func (s stanza) words(field string) []string { return strings.Fields(s.get(field)) }

var errNoField = errors.New("line without a field name")

// parseStanza parses one paragraph. A field that occurs twice is an error: two
// readers of such a file may see two packages.
func parseStanza(b []byte) (stanza, error) {
	s := stanza{}
	last := ""
	for line := range bytes.Lines(b) {
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case len(line) == 0 || line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if last == "" {
				return nil, errNoField
			}
			s[last] += "\n" + string(line[1:])
		default:
			name, value, ok := bytes.Cut(line, []byte(":"))
			if !ok || !validFieldName(name) {
				return nil, fmt.Errorf("%w: %.40q", errNoField, line)
			}
			last = strings.ToLower(string(name))
			if _, dup := s[last]; dup {
				return nil, fmt.Errorf("field %q occurs twice", name)
			}
			s[last] = string(bytes.TrimSpace(value))
		}
	}
	return s, nil
}

// validFieldName holds to Debian Policy 5.1: printable ASCII but space and colon.
func validFieldName(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(b) > 0 && b[0] != '-'
}

// paragraphs yields the parts of b that blank lines separate.
func paragraphs(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		start, end := 0, 0
		for line := range bytes.Lines(b) {
			blank := len(bytes.TrimSpace(line)) == 0
			if blank && end > start && !yield(b[start:end]) {
				return
			}
			end += len(line)
			if blank {
				start = end
			}
		}
		if end > start {
			yield(b[start:end])
		}
	}
}
