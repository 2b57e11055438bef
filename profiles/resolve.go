package profiles

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// fill adds the defaults of keys that n, a value of k, has not, but for those that a given key excludes.
func fill(k *key, n *node) {
	switch k.kind {
	case kindTable:
		for _, f := range k.fields {
			child := n.table[f.name]
			if child == nil && f.kind == kindTable {
				child = newTable(n.origin, byParent)
			}
			switch {
			case child != nil:
				fill(f, child)
				if f.kind != kindTable || len(child.keys) > 0 {
					n.set(f.name, child)
				}
			case f.fallback != nil && !n.excludes(f):
				n.set(f.name, f.fallback)
			}
		}
	case kindMap, kindTables:
		for _, e := range n.children() {
			fill(k.elem, e)
		}
	}
}

// children returns the values of a list, or those of a table in order of its keys.
func (n *node) children() []*node {
	if n.kind == nodeArray {
		return n.list
	}
	list := make([]*node, len(n.keys))
	for i, name := range n.keys {
		list[i] = n.table[name]
	}
	return list
}

// judge reports what only the merged profile shows: keys that are missing, lists that are empty or hold a value
// twice, and, in unsupported, values that this version cannot build.
func judge(k *key, n *node, at string, faults, unsupported *faultList) {
	switch k.kind {
	case kindTable:
		for _, f := range k.fields {
			if child := n.table[f.name]; child != nil {
				judge(f, child, join(at, f.name), faults, unsupported)
			} else if (f.required || f.nonempty) && faults.sound(f.path) {
				faults.add(n.origin, join(at, f.name), "", "is missing: %s", f.doc)
			}
		}
	case kindMap:
		for _, name := range n.keys {
			judge(k.elem, n.table[name], join(at, name), faults, unsupported)
		}
	case kindList, kindTables:
		judgeList(k, n, at, faults, unsupported)
	case kindString:
		if len(k.only) > 0 && !slices.Contains(k.only, n.text) {
			unsupported.add(n.origin, at, "", "%s is not supported yet: want %s", quote(n.text), oneOf(k.only))
		}
	}
}

func judgeList(k *key, n *node, at string, faults, unsupported *faultList) {
	if k.nonempty && len(n.list) == 0 && faults.sound(k.path) {
		faults.add(n.origin, at, "", "is empty")
	}
	seen := map[string]*node{}
	for i, e := range n.list {
		judge(k.elem, e, fmt.Sprintf("%s[%d]", at, i), faults, unsupported)
		if k.unique {
			if first := seen[e.scalar()]; first != nil {
				faults.add(e.origin, at, "keep one of the two", "%s is in the list already: %s", e.toml(), first.origin)
			}
			seen[e.scalar()] = e
		}
	}
}

// decode writes n, a sound value of k, to v.
func decode(k *key, n *node, v reflect.Value) {
	switch k.kind {
	case kindTable:
		for _, f := range k.fields {
			if child := n.table[f.name]; child != nil {
				decode(f, child, v.Field(f.index))
			}
		}
	case kindMap:
		v.Set(reflect.MakeMap(v.Type()))
		for name, child := range maps.All(n.table) {
			e := reflect.New(v.Type().Elem()).Elem()
			decode(k.elem, child, e)
			if s, ok := e.Addr().Interface().(*Source); ok {
				s.Name = name
			}
			v.SetMapIndex(reflect.ValueOf(name), e)
		}
	case kindList, kindTables:
		v.Set(reflect.MakeSlice(v.Type(), len(n.list), len(n.list)))
		for i, e := range n.list {
			decode(k.elem, e, v.Index(i))
		}
	case kindInteger:
		v.SetInt(n.num)
	case kindBool:
		v.SetBool(n.on)
	default:
		v.SetString(n.text)
		if n.host != "" {
			v.SetString(n.host)
		}
	}
}
