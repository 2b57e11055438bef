package profiles

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrUnsupported is matched by an *UnsupportedError.
var ErrUnsupported = errors.New("unsupported")

// Origin is where a value stands.
type Origin struct {
	// Source is a path, "built-in profile NAME", "--set KEY=VALUE", "SOURCE_DATE_EPOCH" or "default".
	Source string `json:"source"`
	// Line counts from 1; 0 where a source has no lines.
	Line int `json:"line,omitempty"`
	// Column counts characters from 1.
	Column int `json:"column,omitempty"`
}

func (o Origin) String() string {
	if o.Line == 0 {
		return o.Source
	}
	return fmt.Sprintf("%s:%d:%d", o.Source, o.Line, o.Column)
}

// Fault is one thing wrong with a profile.
type Fault struct {
	Origin
	// Key is the dotted key that is meant, empty when the text could not be read so far.
	Key string `json:"key,omitempty"`
	// Message says what is wrong, Suggestion what to write instead; it may be empty.
	Message    string `json:"message"`
	Suggestion string `json:"suggestion,omitempty"`
}

func (f Fault) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", f.Origin)
	if f.Key != "" {
		fmt.Fprintf(&b, "%s: ", f.Key)
	}
	b.WriteString(f.Message)
	if f.Suggestion != "" {
		fmt.Fprintf(&b, "; %s", f.Suggestion)
	}
	return b.String()
}

// Faults is the error of Load for a profile that is wrong: every fault, in the order of the profile's chain and of the text.
type Faults struct {
	Faults []Fault `json:"faults"`
}

// Error returns a line for each fault.
func (f *Faults) Error() string { return lines(f.Faults) }

// UnsupportedError is the error of Load for a profile without faults that wants what this version cannot build.
type UnsupportedError struct {
	Faults []Fault `json:"unsupported"`
}

// Error returns a line for each value that is not supported.
func (e *UnsupportedError) Error() string { return lines(e.Faults) }

// Is makes errors.Is(e, ErrUnsupported) true.
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }

func lines(faults []Fault) string {
	text := make([]string, len(faults))
	for i, f := range faults {
		text[i] = f.String()
	}
	return strings.Join(text, "\n")
}

// faultList collects faults while a chain of profiles is read.
type faultList struct {
	list  []Fault
	order map[string]int // of a Source: when it was first read
	// incomplete is true once a text could not be read whole: what is missing is not judged then.
	incomplete bool
	// suspect holds the paths of keys that were given and dropped: they are not reported as missing.
	suspect map[string]bool
}

// drop notes that a value of k was given, but is not used.
func (l *faultList) drop(k *key) {
	if l.suspect == nil {
		l.suspect = map[string]bool{}
	}
	l.suspect[k.path] = true
}

// sound is false when a value of one of the keys, or one that holds them, was dropped: nothing can be said about them then.
func (l *faultList) sound(keys ...string) bool {
	for path := range l.suspect {
		for _, k := range keys {
			if rest, ok := strings.CutPrefix(k, path); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
				return false
			}
		}
	}
	return true
}

// read notes that source comes next in the order of the report.
func (l *faultList) read(source string) {
	if l.order == nil {
		l.order = map[string]int{}
	}
	if _, ok := l.order[source]; !ok {
		l.order[source] = len(l.order)
	}
}

func (l *faultList) add(at Origin, key, suggestion, format string, args ...any) {
	l.list = append(l.list, Fault{at, key, fmt.Sprintf(format, args...), suggestion})
}

func (l *faultList) sorted() []Fault {
	slices.SortStableFunc(l.list, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(l.order[a.Source], l.order[b.Source]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return l.list
}

// didYouMean names the candidate nearest to name, or nothing when none is near.
func didYouMean(name string, candidates []string) string {
	if near := nearest(name, candidates); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return ""
}

// nearest returns the candidate with the smallest edit distance to name, the first of equals; empty when even that
// one differs in more than about a quarter of its letters.
func nearest(name string, candidates []string) string {
	best, limit := "", 0
	for _, c := range candidates {
		most := (utf8.RuneCountInString(c) + 2) / 4
		if abs(len(c)-len(name)) > 4*most { // far apart in bytes is far apart in letters: spare the table
			continue
		}
		if d := editDistance(strings.ToLower(name), c); d <= most && (best == "" || d < limit) {
			best, limit = c, d
		}
	}
	return best
}

func abs(n int) int { return max(n, -n) }

// editDistance counts insertions, deletions, substitutions and swaps of neighbours that make a into b
// (optimal string alignment).
func editDistance(a, b string) int {
	s, t := []rune(a), []rune(b)
	before, last, row := make([]int, len(t)+1), make([]int, len(t)+1), make([]int, len(t)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(s); i++ {
		row[0] = i
		for j := 1; j <= len(t); j++ {
			change := 1
			if s[i-1] == t[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(t)]
}
