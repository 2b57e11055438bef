package profiles

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// quote writes s as a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// scalar writes n, a string, integer or boolean, without quotes and in one way for equal values.
func (n *node) scalar() string {
	switch n.kind {
	case nodeInteger:
		return strconv.FormatInt(n.num, 10)
	case nodeBool:
		return strconv.FormatBool(n.on)
	}
	return n.text
}

// toml writes a scalar as TOML.
func (n *node) toml() string {
	if n.kind == nodeString {
		return quote(n.text)
	}
	return n.scalar()
}

// Value is one value of a resolved profile.
type Value struct {
	// Key is the dotted key; an element of a list has its index behind it.
	Key string `json:"key"`
	// Value is the value in TOML. Paths are as the profile writes them.
	Value string `json:"value"`
	// Origin is where the value was given.
	Origin Origin `json:"origin"`
}

// Explain returns every value of p with its origin, in the order of the format: for each element of a list its own.
func (p *Profile) Explain() []Value {
	var values []Value
	explain(table(), p.tree, "", &values)
	return values
}

func explain(k *key, n *node, at string, values *[]Value) {
	switch k.kind {
	case kindTable:
		for _, f := range k.fields {
			if child := n.table[f.name]; child != nil {
				explain(f, child, join(at, f.name), values)
			}
		}
	case kindMap:
		for _, name := range n.keys {
			explain(k.elem, n.table[name], join(at, name), values)
		}
	case kindList, kindTables:
		for i, e := range n.list {
			explain(k.elem, e, fmt.Sprintf("%s[%d]", at, i), values)
		}
		if len(n.list) == 0 {
			*values = append(*values, Value{at, "[]", n.origin})
		}
	default:
		*values = append(*values, Value{at, n.toml(), n.origin})
	}
}

// Canonical returns p as JSON with sorted keys: equal for profiles that mean the same, however they are written.
// Bases are merged in and defaults filled in; what is empty, zero or false without a default that says otherwise is left out. Paths of the building host are as
// the profile writes them, so that the place of a checkout does not matter; their content is not part of it.
func (p *Profile) Canonical() []byte {
	v := canonical(table(), p.tree).(map[string]any)
	delete(v, "extends")
	v["name"] = p.Name
	b := &bytes.Buffer{}
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("profiles: canonical form: " + err.Error()) // maps, slices, strings, numbers and booleans always encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// canonical returns n as encoding/json takes it.
func canonical(k *key, n *node) any {
	switch k.kind {
	case kindTable, kindMap:
		m := map[string]any{}
		for _, name := range n.keys {
			child := k.child(name)
			if v := canonical(child, n.table[name]); k.kind == kindMap || !child.needless(v) {
				m[name] = v
			}
		}
		return m
	case kindList, kindTables:
		list := make([]any, len(n.list))
		for i, e := range n.list {
			list[i] = canonical(k.elem, e)
		}
		return list
	case kindInteger:
		return n.num
	case kindBool:
		return n.on
	}
	return n.text
}

// needless is true for a value of k that is as good as none: zero or empty, and not in place of a default.
func (k *key) needless(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0 && k.fallback == nil
	}
	return v == false && (k.fallback == nil || !k.fallback.on) || v == int64(0) && k.fallback == nil
}
