package profiles

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func seeds(f *testing.F) {
	for _, name := range Builtin() {
		f.Add(stock(name).data)
	}
	f.Add(Template("x"))
	f.Add([]byte(everything))
	for _, c := range faultRows {
		f.Add([]byte(withHead(c.text)))
	}
}

// FuzzLoad: whatever the text, Load gives a profile, faults or an unsupported error. Every fault has a place in the text.
// A profile renders in one way, and its canonical form reads back as itself.
func FuzzLoad(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := load(string(text), Options{})
		var faults *Faults
		var unsupported *UnsupportedError
		switch {
		case errors.As(err, &faults):
			checkPlaces(t, text, faults.Faults)
		case errors.As(err, &unsupported):
			checkPlaces(t, text, unsupported.Faults)
		case err != nil:
			if !errors.Is(err, fs.ErrInvalid) { // extends names a path that fstest.MapFS refuses
				t.Fatal(err)
			}
		default:
			again, err := load(string(text), Options{})
			if err != nil || string(again.Canonical()) != string(p.Canonical()) {
				t.Fatalf("second time: %v", err)
			}
			p.Explain()
			back, err := ParseCanonical(p.Canonical())
			if err != nil || string(back.Canonical()) != string(p.Canonical()) {
				t.Fatalf("%s\nread back: %v", p.Canonical(), err)
			}
		}
	})
}

func checkPlaces(t *testing.T, text []byte, faults []Fault) {
	if len(faults) == 0 {
		t.Fatal("an error without faults")
	}
	rows := strings.Split(string(text), "\n")
	for _, f := range faults {
		if f.Source == "p.toml" && f.Line != 0 && (f.Line > len(rows) || f.Column < 1 || f.Column > len([]rune(rows[f.Line-1]))+1) {
			t.Fatalf("%s: there are %d lines", f, len(rows))
		}
	}
}

// FuzzParse compares the tree with what go-toml's own decoder makes of the text: both take it, with equal values, or neither.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		var faults faultList
		tree := parse(text, Origin{"x", 1, 1}, &faults)
		if odd(tree) {
			t.Skip("dates, floats and integers above 64 bits are never valid values")
		}
		var want map[string]any
		err := toml.Unmarshal(text, &want)
		if (err == nil) != (len(faults.list) == 0) {
			t.Fatalf("%q: go-toml says %v, plinth %s", text, err, lines(faults.list))
		}
		if err == nil && !same(tree, want) {
			t.Fatalf("%q: go-toml has %v", text, want)
		}
	})
}

// odd is true when n holds what FuzzParse does not compare.
func odd(n *node) bool {
	if n.kind == nodeOther || n.kind == nodeInteger && (n.num == 1<<63-1 || n.num == -1<<63) {
		return true
	}
	return slices.ContainsFunc(n.children(), odd)
}

func same(n *node, want any) bool {
	switch w := want.(type) {
	case string:
		return n.kind == nodeString && n.text == w
	case int64:
		return n.kind == nodeInteger && n.num == w
	case bool:
		return n.kind == nodeBool && n.on == w
	case []any:
		for i, e := range w {
			if len(n.list) != len(w) || !same(n.list[i], e) {
				return false
			}
		}
		return n.kind == nodeArray && len(n.list) == len(w)
	case map[string]any:
		for name, e := range w {
			if n.table[name] == nil || !same(n.table[name], e) {
				return false
			}
		}
		return n.kind == nodeTable && len(n.table) == len(w) && len(n.keys) == len(w)
	}
	return false
}
