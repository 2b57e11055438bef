package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// nodeKind is the TOML type of a node.
type nodeKind int

const (
	nodeString nodeKind = iota
	nodeInteger
	nodeBool
	nodeArray
	nodeTable
	nodeOther // floats, dates and times: no key holds one
)

var nodeNames = [...]string{"a string", "an integer", "a boolean", "a list", "a table", "a float or date"}

// opened is what made a table, because TOML lets some tables be written in several places and others not.
type opened int

const (
	byValue  opened = iota // { } or [ ]: complete as it stands
	byParent               // the a of [a.b]: may still get a header of its own
	byHeader               // [a] or [[a]]
	byDots                 // the a of a.b = 1: may get more dotted keys, no header
)

// node is a value of a profile and where it stands.
type node struct {
	kind   nodeKind
	origin Origin
	keyAt  Origin // where its key stands, when it has one
	text   string // of a string; the source text of a number
	num    int64
	on     bool
	list   []*node
	table  map[string]*node
	keys   []string // of table, in order of the text
	opened opened

	// host is the path that a string of a "file" format stands for, see Profile.
	host string
}

func newTable(at Origin, by opened) *node {
	return &node{kind: nodeTable, origin: at, opened: by, table: map[string]*node{}}
}

func (n *node) set(key string, v *node) {
	if _, ok := n.table[key]; !ok {
		n.keys = append(n.keys, key)
	}
	n.table[key] = v
}

// keep takes from a table what is not sound. kept are the sound keys that stand before name.
func (n *node) keep(sound func(name string, kept []string) bool) {
	kept := n.keys[:0]
	for _, name := range n.keys {
		if sound(name, kept) {
			kept = append(kept, name)
		} else {
			delete(n.table, name)
		}
	}
	n.keys = kept
}

// maxNesting bounds lists and tables within each other. No key holds a value so deep: it is reported as what it is not.
const maxNesting = 16

// maxSyntaxFaults ends the search for the next readable line in something that is not TOML at all.
const maxSyntaxFaults = 20

// document turns the text of one file into nodes. go-toml's parser does the lexical work, expression by expression;
// what TOML forbids across expressions (keys and tables given twice) is judged here, to have every fault and its place.
type document struct {
	data   []byte
	base   int // offset in data of what parser reads
	starts []int
	at     Origin // Source, and the place of everything when it has no lines
	faults *faultList
	parser unstable.Parser

	root, current *node
	path          string // of current, dotted
	nesting       int    // of the value that is converted

	lastOffset int // of the last call of origin, and its result: long lines are not counted again and again
	last       Origin
}

// parse reads data, at most maxSize bytes. It reports syntax errors and duplicates, and goes on behind them.
// Values take at's Source, and lines and columns unless at.Source is one without (at.Line 0).
func parse(data []byte, at Origin, faults *faultList) *node {
	d := &document{data: data, at: at, faults: faults, starts: []int{0}}
	for i, c := range data {
		if c == '\n' {
			d.starts = append(d.starts, i+1)
		}
	}
	d.root = newTable(d.origin(0), byHeader)
	d.current = d.root
	for range maxSyntaxFaults {
		d.parser.Reset(data[d.base:])
		for d.parser.NextExpression() {
			d.expression(d.parser.Expression())
		}
		if d.parser.Error() == nil || !d.resume(d.parser.Error()) {
			break
		}
	}
	return d.root
}

// origin returns the place of a byte of data.
func (d *document) origin(offset int) Origin {
	if d.at.Line == 0 {
		return d.at
	}
	for range utf8.UTFMax - 1 { // an error at the end of the text may point into a character
		if offset > 0 && offset < len(d.data) && !utf8.RuneStart(d.data[offset]) {
			offset--
		}
	}
	line, ok := slices.BinarySearch(d.starts, offset)
	if !ok {
		line--
	}
	from, column := d.starts[line], 1
	if d.last.Line == line+1 && d.lastOffset <= offset {
		from, column = d.lastOffset, d.last.Column
	}
	d.lastOffset, d.last = offset, Origin{d.at.Source, line + 1, column + utf8.RuneCount(d.data[from:offset])}
	return d.last
}

// place returns the place of a node that has a range in the text.
func (d *document) place(n *unstable.Node) Origin { return d.origin(d.base + int(n.Raw.Offset)) }

// resumable matches the start of a line that reads like a table's header or a key.
var resumable = regexp.MustCompile(`(?m)^[ \t]*(\[\[?[ \t]*[A-Za-z0-9_."-]+[ \t]*\]|[A-Za-z0-9_-]+[ \t]*(\.[ \t]*[A-Za-z0-9_-]+[ \t]*)*=)`)

// resume reports a syntax error and moves on to the next line that can be read without what was lost.
// It returns false when there is none.
func (d *document) resume(err error) bool {
	offset := len(d.data)
	if e := (*unstable.ParserError)(nil); errors.As(err, &e) && e.Highlight != nil {
		// Both slices end where the backing array ends, so their capacities tell the offset.
		offset = min(offset, d.base+cap(d.data[d.base:])-cap(e.Highlight))
	}
	d.faults.incomplete = true
	d.faults.add(d.origin(offset), "", "", "%s", err)
	end := bytes.IndexByte(d.data[offset:], '\n')
	if end < 0 {
		return false
	}
	start := offset + end + 1
	next := resumable.FindIndex(d.data[start:])
	if next == nil {
		return false
	}
	if line := bytes.TrimLeft(d.line(offset), " \t"); len(line) > 0 && line[0] == '[' {
		// Of the table whose header was lost nothing is known: what follows goes nowhere.
		d.path, d.current = "", newTable(d.origin(offset), byHeader)
	}
	d.base = start + next[0]
	return true
}

// line returns the line around offset.
func (d *document) line(offset int) []byte {
	start := bytes.LastIndexByte(d.data[:offset], '\n') + 1
	line, _, _ := bytes.Cut(d.data[start:], []byte("\n"))
	return line
}

// name is one part of a dotted key.
type name struct {
	text string
	at   Origin
}

func (d *document) names(it unstable.Iterator) []name {
	var names []name
	for it.Next() {
		names = append(names, name{string(it.Node().Data), d.place(it.Node())})
	}
	return names
}

// dotted joins names to the path of the table that they stand in.
func dotted(path string, names []name) string {
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = n.text
	}
	return join(path, strings.Join(parts, "."))
}

func (d *document) expression(e *unstable.Node) {
	names := d.names(e.Key())
	switch e.Kind {
	case unstable.KeyValue:
		d.keyValue(d.current, d.path, names, e)
	case unstable.Table:
		d.path, d.current = dotted("", names), d.header(names, nodeTable)
	case unstable.ArrayTable:
		d.path, d.current = dotted("", names), d.header(names, nodeArray)
	}
}

// header opens [names] or [[names]] and returns the table that the lines below it fill.
func (d *document) header(names []name, want nodeKind) *node {
	parent := d.root
	for i, n := range names[:len(names)-1] {
		child := parent.table[n.text]
		switch {
		case child == nil:
			child = newTable(n.at, byParent)
			child.keyAt = n.at
			parent.set(n.text, child)
		case child.kind == nodeArray && child.opened == byHeader:
			child = child.list[len(child.list)-1]
		case child.kind != nodeTable || child.opened == byValue:
			return d.again(names[:i+1], child)
		}
		parent = child
	}
	last := names[len(names)-1]
	child := parent.table[last.text]
	if want == nodeArray {
		return d.arrayHeader(parent, child, names)
	}
	switch {
	case child == nil:
		child = newTable(last.at, byHeader)
		child.keyAt = last.at
		parent.set(last.text, child)
	case child.kind == nodeTable && child.opened == byParent:
		child.opened, child.origin, child.keyAt = byHeader, last.at, last.at
	default:
		return d.again(names, child)
	}
	return child
}

func (d *document) arrayHeader(parent, child *node, names []name) *node {
	last := names[len(names)-1]
	if child == nil {
		child = &node{kind: nodeArray, origin: last.at, keyAt: last.at, opened: byHeader}
		parent.set(last.text, child)
	} else if child.kind != nodeArray || child.opened != byHeader {
		return d.again(names, child)
	}
	t := newTable(last.at, byHeader)
	child.list = append(child.list, t)
	return t
}

// again reports names given a second time. What follows is still read, to find its own faults.
func (d *document) again(names []name, first *node) *node {
	d.twice("", names, first)
	if first.kind == nodeTable {
		return first
	}
	return newTable(names[0].at, byHeader)
}

func (d *document) twice(path string, names []name, first *node) {
	suggestion := "keep one of the two"
	if line := first.keyAt.Line; line > 0 {
		suggestion += fmt.Sprintf(", the first is in line %d", line)
	}
	d.faults.add(names[len(names)-1].at, dotted(path, names), suggestion, "given twice")
}

// keyValue puts the value of e below parent, whose dotted key is path.
func (d *document) keyValue(parent *node, path string, names []name, e *unstable.Node) {
	last := len(names) - 1
	for i, n := range names[:last] {
		child := parent.table[n.text]
		if child == nil {
			child = newTable(n.at, byDots)
			child.keyAt = n.at
			parent.set(n.text, child)
		} else if child.kind != nodeTable || child.opened != byDots {
			d.twice(path, names[:i+1], child)
			return
		}
		parent = child
	}
	if first := parent.table[names[last].text]; first != nil {
		d.twice(path, names, first)
		return
	}
	v := d.value(e.Value(), d.valueAt(e), dotted(path, names))
	v.keyAt = names[last].at
	parent.set(names[last].text, v)
}

// valueAt returns the place of the value of e. The parser gives arrays no range, so it is found behind the key.
func (d *document) valueAt(e *unstable.Node) Origin {
	var end int
	for it := e.Key(); it.Next(); {
		end = d.base + int(it.Node().Raw.Offset+it.Node().Raw.Length)
	}
	rest := d.data[end:]
	return d.origin(end + len(rest) - len(bytes.TrimLeft(rest, " \t=")))
}

// value converts v, the value of path. It stands at or, when it has a range of its own, there.
func (d *document) value(v *unstable.Node, at Origin, path string) *node {
	if v.Raw.Length > 0 {
		at = d.place(v)
	}
	n := &node{kind: nodeOther, origin: at, text: string(v.Data)}
	if d.nesting == maxNesting {
		return n
	}
	d.nesting++
	defer func() { d.nesting-- }()
	switch v.Kind {
	case unstable.String:
		n.kind = nodeString
	case unstable.Bool:
		n.kind, n.on = nodeBool, n.text == "true"
	case unstable.Integer:
		// What does not fit 64 bits becomes the nearest that does, which is out of the bounds of every key.
		n.kind = nodeInteger
		n.num, _ = strconv.ParseInt(strings.ReplaceAll(n.text, "_", ""), 0, 64)
	case unstable.Array:
		n.kind = nodeArray
		for it := v.Children(); it.Next(); {
			n.list = append(n.list, d.value(it.Node(), at, path))
		}
	case unstable.InlineTable:
		n = newTable(at, byValue)
		for it := v.Children(); it.Next(); {
			d.keyValue(n, path, d.names(it.Node().Key()), it.Node())
		}
	}
	return n
}
