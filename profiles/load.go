package profiles

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// maxSize bounds a profile's text, in bytes.
const maxSize = 1 << 20

// maxDepth bounds a chain of extends. Links in the file system can make one endless without a file coming up twice.
const maxDepth = 16

//go:embed vtpm.toml vtpm-debug.toml snp.toml tdx.toml
var builtin embed.FS

// Host opens files of this machine. Unlike os.DirFS it takes any path, absolute ones and those with .. included.
var Host fs.FS = hostFS{}

type hostFS struct{}

func (hostFS) Open(name string) (fs.File, error) { return os.Open(name) }

// Options are the values that override a profile's own.
type Options struct {
	// Set holds "key=value" overrides in order: a dotted key and a TOML value, whose quotes a string may leave out.
	// A single string or number stands for a list of one. Relative paths start from the working directory.
	Set []string
	// SourceDateEpoch is the value of the environment variable of that name; empty when it is not set.
	// It beats the profile's epoch, and an epoch in Set beats it.
	SourceDateEpoch string
}

// Builtin returns the names of the built-in profiles, sorted.
func Builtin() []string {
	entries, _ := builtin.ReadDir(".") // embedded: cannot fail
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".toml")
	}
	return names
}

// Load reads the profile called name, with what it extends, and applies o. A name with a slash or the suffix .toml is a
// path; any other means profiles/NAME.toml or, where there is none, the built-in profile.
//
// Errors are a *Faults with everything that is wrong, an *UnsupportedError when nothing is wrong but this version cannot
// build it, or the error of fsys, wrapped.
func Load(fsys fs.FS, name string, o Options) (*Profile, error) {
	l := &loader{fsys: fsys}
	chain, err := l.chain(name)
	if err != nil {
		return nil, err
	}
	return l.resolve(chain, o)
}

// resolve makes a profile of a chain of texts.
func (l *loader) resolve(chain []*text, o Options) (*Profile, error) {
	tree := l.merge(chain, o)
	if tree == nil {
		return nil, &Faults{l.faults.sorted()}
	}
	p := &Profile{Name: chain[0].name, Origin: chain[0].origin, Dir: chain[0].dir, Stock: chain[0].stock, tree: tree}
	fill(table(), tree)
	var unsupported faultList
	unsupported.order = l.faults.order
	judge(table(), tree, "", &l.faults, &unsupported)
	decode(table(), tree, reflect.ValueOf(p).Elem())
	(&rules{p, &l.faults}).judge()
	if len(l.faults.list) > 0 {
		return nil, &Faults{l.faults.sorted()}
	}
	if len(unsupported.list) > 0 {
		return nil, &UnsupportedError{unsupported.sorted()}
	}
	return p, nil
}

// loader reads one profile.
type loader struct {
	fsys   fs.FS
	faults faultList
}

// text is one file of a chain of profiles.
type text struct {
	name, origin, dir string
	data              []byte
	stock             bool
	tree              *node
}

// chain reads the profile called name and those it extends, the last one of which extends nothing.
func (l *loader) chain(name string) ([]*text, error) {
	t, err := l.find(name)
	if err != nil {
		return nil, err
	}
	var chain []*text
	for {
		chain = append(chain, t)
		l.parse(t)
		extends := t.tree.table["extends"]
		if extends == nil {
			return chain, nil
		}
		if t, err = l.base(t, extends, chain); err != nil {
			return nil, err
		}
		if t == nil {
			l.faults.incomplete = true
			return chain, nil
		}
	}
}

// find reads the profile that the user calls name.
func (l *loader) find(name string) (*text, error) {
	fault := Fault{Origin: Origin{Source: name}, Message: "no such profile"}
	file := name
	if !isPath(name) {
		file = path.Join("profiles", name+".toml")
	}
	t, err := l.open(file)
	if t != nil || err != nil {
		return t, err
	}
	if isPath(name) {
		fault.Message = "no such file"
		return nil, &Faults{[]Fault{fault}}
	}
	if t := stock(name); t != nil {
		return t, nil
	}
	fault.Message += fmt.Sprintf(": there is no %s, and built in are %s", file, strings.Join(Builtin(), ", "))
	fault.Suggestion = didYouMean(name, Builtin())
	return nil, &Faults{[]Fault{fault}}
}

// isPath tells a path from a name.
func isPath(name string) bool {
	return strings.Contains(name, "/") || strings.HasSuffix(name, ".toml")
}

// base reads the profile that t extends. A name means the file of that name beside t, unless that is t itself, or the
// built-in profile. The result is nil after a fault.
func (l *loader) base(t *text, extends *node, chain []*text) (*text, error) {
	var next *text
	var err error
	switch name := extends.text; {
	case isPath(name):
		next, err = l.open(hostPath(t.dir, name))
	case t.dir != "" && name != t.name:
		next, err = l.open(path.Join(t.dir, name+".toml"))
	}
	if next == nil && err == nil && !isPath(extends.text) {
		next = stock(extends.text)
	}
	switch {
	case err != nil:
		return nil, err
	case next == nil:
		l.faults.add(extends.origin, "extends", didYouMean(extends.text, Builtin()), "no profile %s", quote(extends.text))
		return nil, nil
	case slices.ContainsFunc(chain, func(c *text) bool { return c.origin == next.origin }):
		l.faults.add(extends.origin, "extends", "", "goes round in a circle: %s", circle(chain, next))
		return nil, nil
	case len(chain) == maxDepth:
		l.faults.add(extends.origin, "extends", "", "more than %d profiles deep", maxDepth)
		return nil, nil
	}
	return next, nil
}

func circle(chain []*text, next *text) string {
	var names []string
	for _, t := range append(chain, next) {
		names = append(names, t.origin)
	}
	return strings.Join(names, " extends ")
}

// stock returns the built-in profile called name, or nil.
func stock(name string) *text {
	data, err := builtin.ReadFile(name + ".toml")
	if err != nil {
		return nil
	}
	return &text{name: name, origin: "built-in profile " + name, data: data, stock: true}
}

// open reads a profile's file. The result is nil when there is none.
func (l *loader) open(file string) (*text, error) {
	file = filepath.ToSlash(filepath.Clean(file))
	f, err := l.fsys.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("profiles: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("profiles: %s: %w", file, err)
	}
	t := &text{name: strings.TrimSuffix(path.Base(file), ".toml"), origin: file, dir: path.Dir(file), data: data}
	if s := stock(t.name); s != nil {
		t.stock = bytes.Equal(s.data, data)
	}
	return t, nil
}

// parse reads and judges one file.
func (l *loader) parse(t *text) {
	start := Origin{t.origin, 1, 1}
	l.faults.read(t.origin)
	t.tree = newTable(start, byHeader)
	if len(t.data) > maxSize {
		l.faults.incomplete = true
		l.faults.add(start, "", "", "more than %d bytes", maxSize)
		return
	}
	t.tree = parse(t.data, start, &l.faults)
	if !formats["name"].ok(t.name) {
		l.faults.add(Origin{Source: t.origin}, "", "", "bad name of a profile: want %s, and .toml", formats["name"].says)
	}
	if t.tree.table["schema"] == nil && !l.faults.incomplete {
		l.faults.add(start, "schema", "write schema = 1", "is missing")
	}
	(&checker{&l.faults, t.dir}).check(t.tree, table(), "")
}

// merge lays the files of a chain and the overrides on each other. The result is nil when a part of the chain could not
// be read, and what is missing therefore means nothing.
func (l *loader) merge(chain []*text, o Options) *node {
	var tree *node
	for _, t := range slices.Backward(chain) {
		tree = merge(table(), tree, t.tree, &l.faults)
	}
	tree.origin = chain[0].tree.origin
	if o.SourceDateEpoch != "" {
		value := o.SourceDateEpoch
		if strings.Trim(value, "0123456789") != "" {
			value = quote(value) // no number: check says so
		}
		tree = l.override(tree, "epoch = "+value, "SOURCE_DATE_EPOCH")
	}
	for _, s := range o.Set {
		if text := l.assignment(s); text != "" {
			tree = l.override(tree, text, "--set "+s)
		}
	}
	if l.faults.incomplete {
		return nil
	}
	return tree
}

// override lays text, which comes from source, on tree.
func (l *loader) override(tree *node, text, source string) *node {
	l.faults.read(source)
	over := parse([]byte(text), Origin{Source: source}, &l.faults)
	(&checker{&l.faults, ""}).check(over, table(), "")
	origin := tree.origin
	tree = merge(table(), tree, over, &l.faults)
	tree.origin = origin
	return tree
}

// assignment turns a --set argument into TOML: a string needs no quotes, and a list of one no brackets.
// The result is empty after a fault.
func (l *loader) assignment(set string) string {
	l.faults.read("--set " + set)
	name, value, ok := strings.Cut(set, "=")
	name = strings.TrimSpace(name)
	at := Origin{Source: "--set " + set}
	if !ok || name == "" {
		l.faults.add(at, "", "", "want KEY=VALUE")
		return ""
	}
	if name == "extends" || name == "schema" {
		l.faults.add(at, name, "", "only a file can say this")
		return ""
	}
	k := table().find(strings.Split(name, "."))
	if k == nil {
		return name + " = " + bare(value) // an unknown key, which check reports
	}
	if k.kind == kindList && !strings.HasPrefix(value, "[") && !strings.HasPrefix(value, "{") {
		return name + " = [" + k.elem.literal(value) + "]"
	}
	return name + " = " + k.literal(value)
}

// find returns the key at a path below k, or nil.
func (k *key) find(path []string) *key {
	for _, name := range path {
		if k.kind != kindTable && k.kind != kindMap {
			return nil
		}
		if k = k.child(strings.TrimSpace(name)); k == nil {
			return nil
		}
	}
	return k
}

// literal writes value as TOML for k: as it is, but for a string without quotes.
func (k *key) literal(value string) string {
	if k.kind == kindString {
		return bare(value)
	}
	return value
}

// bare quotes value unless it has quotes.
func bare(value string) string {
	if len(value) > 1 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
		return value
	}
	return quote(value)
}
