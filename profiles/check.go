package profiles

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// checker judges one document against the table of keys: what is there, not what is missing.
// What is wrong is reported and taken out, so that merge and decode see sound values only.
type checker struct {
	faults *faultList
	dir    string // that relative paths start from
}

// check judges n, the value of k. at is the dotted key as the profile has it. It returns false when n is of no use.
func (c *checker) check(n *node, k *key, at string) bool {
	ok := false
	switch k.kind {
	case kindTable:
		ok = c.is(n, nodeTable, at) && c.table(n, k, at)
	case kindMap:
		ok = c.is(n, nodeTable, at) && c.entries(n, k, at)
	case kindList, kindTables:
		ok = c.list(n, k, at)
	case kindString:
		ok = c.is(n, nodeString, at) && c.text(n, k, at)
	case kindInteger:
		ok = c.is(n, nodeInteger, at) && c.number(n, k, at)
	case kindBool:
		ok = c.is(n, nodeBool, at)
	}
	if !ok {
		c.faults.drop(k)
	}
	return ok
}

// is reports a value of another type.
func (c *checker) is(n *node, want nodeKind, at string) bool {
	if n.kind != want {
		c.faults.add(n.origin, at, retyped(n, want), "is %s: want %s", nodeNames[n.kind], nodeNames[want])
	}
	return n.kind == want
}

// retyped writes n as the type that is wanted, where that is obvious.
func retyped(n *node, want nodeKind) string {
	text := n.text
	switch {
	case want == nodeString && n.kind == nodeInteger && strings.HasPrefix(text, "0o"):
		text = quote("0" + text[2:])
	case want == nodeString && (n.kind == nodeInteger || n.kind == nodeBool || n.kind == nodeOther):
		text = quote(text)
	case want == nodeArray && n.kind == nodeString:
		text = "[" + quote(text) + "]"
	case want == nodeArray && n.kind == nodeInteger:
		text = "[" + text + "]"
	case want == nodeBool && n.kind == nodeString && (text == "true" || text == "false"):
	case want == nodeInteger && n.kind == nodeString:
		if _, err := strconv.ParseInt(text, 10, 64); err != nil {
			return ""
		}
	default:
		return ""
	}
	return "write " + text
}

// table reports keys that k has not, and pairs of keys that exclude each other.
func (c *checker) table(n *node, k *key, at string) bool {
	n.keep(func(name string, kept []string) bool {
		child, field := n.table[name], k.field(name)
		if field == nil {
			c.unknown(child, name, k, at)
			return false
		}
		if !c.check(child, field, join(at, name)) {
			return false
		}
		i := slices.IndexFunc(kept, func(before string) bool { return field.excludes[before] })
		if i >= 0 {
			c.faults.add(child.keyAt, join(at, name), "keep one of the two", "cannot stand beside %s", join(at, kept[i]))
			c.faults.drop(field)
		}
		return i < 0
	})
	return true
}

// unknown reports the key called name. The key that was probably meant is not reported as missing.
func (c *checker) unknown(child *node, name string, k *key, at string) {
	suggestion := ""
	if near := nearest(name, k.names()); near != "" {
		suggestion = fmt.Sprintf("did you mean %q?", near)
		c.faults.drop(k.field(near))
	} else if others := elsewhere(name); len(others) > 0 {
		suggestion = "did you mean " + strings.Join(others, " or ") + "?"
		if !strings.Contains(others[0], ".") {
			suggestion += " It belongs above the first [table]"
		}
	}
	c.faults.add(child.keyAt, join(at, name), suggestion, "unknown key")
}

// elsewhere returns the keys of that name in any table.
func elsewhere(name string) []string {
	var found []string
	table().walk(func(k *key) {
		if k.name == name && name != "" {
			found = append(found, k.path)
		}
	})
	return found
}

// entries judges a table whose keys the profile chooses.
func (c *checker) entries(n *node, k *key, at string) bool {
	n.keep(func(name string, _ []string) bool {
		child, ok := n.table[name], k.format.ok(name)
		if !ok {
			c.faults.add(child.keyAt, join(at, name), "", "bad name: want %s", k.format.says)
			c.faults.drop(k)
		}
		return c.check(child, k.elem, join(at, name)) && ok
	})
	return true
}

// list judges a list, or the table { append, remove } that changes the list of an extended profile.
func (c *checker) list(n *node, k *key, at string) bool {
	if n.kind != nodeTable {
		return c.is(n, nodeArray, at) && c.elements(n, k, k.elem, at)
	}
	n.keep(func(name string, _ []string) bool {
		child, ok := n.table[name], false
		switch name {
		case "append":
			ok = c.is(child, nodeArray, join(at, name)) && c.elements(child, k, k.elem, join(at, name))
		case "remove":
			ok = c.is(child, nodeArray, join(at, name)) && c.elements(child, k, k.removable(), join(at, name))
		default:
			c.faults.add(child.keyAt, join(at, name), didYouMean(name, []string{"append", "remove"}), "unknown key: want a list, or a table with append and remove")
		}
		if !ok {
			c.faults.drop(k)
		}
		return ok
	})
	return true
}

// elements judges the elements of a list of k.
func (c *checker) elements(n *node, k, elem *key, at string) bool {
	ids := map[string]*node{}
	sound := n.list[:0]
	for i, e := range n.list {
		where := at
		if elem.kind == kindTable {
			where = fmt.Sprintf("%s[%d]", at, i)
		}
		if !c.check(e, elem, where) {
			c.faults.drop(k)
		} else if elem.kind != kindTable || c.identified(e, k, ids, where) {
			sound = append(sound, e)
		}
	}
	n.list = sound
	return true
}

// identified reports a table of a list that nothing tells from the others.
func (c *checker) identified(e *node, k *key, ids map[string]*node, at string) bool {
	field := k.idField()
	id := e.table[field.name]
	if id == nil {
		if c.faults.sound(field.path) {
			c.faults.add(e.origin, at, "", "%s is missing", field.name)
		}
		return false
	}
	first := ids[id.text]
	if first != nil {
		c.faults.add(id.origin, join(at, field.name), "keep one of the two", "%s is in the list already: %s", quote(id.text), first.origin)
		return false
	}
	ids[id.text] = id
	return true
}

// removable is the key of the elements of remove: for a list of tables, what identifies one.
func (k *key) removable() *key {
	if k.kind == kindTables {
		return k.idField()
	}
	return k.elem
}

func (c *checker) text(n *node, k *key, at string) bool {
	switch {
	case len(k.enum) > 0 && !slices.Contains(k.enum, n.text):
		c.faults.add(n.origin, at, didYouMean(n.text, k.enum), "%s: want %s", quote(n.text), oneOf(k.enum))
	case !k.format.ok(n.text):
		c.faults.add(n.origin, at, "", "%s: want %s", quote(n.text), k.format.says)
	default:
		if k.format.host && !brokered(n.text) {
			n.host = hostPath(c.dir, n.text)
		}
		return true
	}
	return false
}

func (c *checker) number(n *node, k *key, at string) bool {
	ok := k.min <= n.num && n.num <= k.max
	if !ok {
		want := strconv.FormatInt(k.min, 10)
		if k.min != k.max {
			want += " to " + strconv.FormatInt(k.max, 10)
		}
		c.faults.add(n.origin, at, "", "%s: want %s", n.text, want)
	}
	return ok
}

// hostPath returns the path that a profile in dir means by p.
func hostPath(dir, p string) string {
	if filepath.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(dir, p)
}

// oneOf lists words for a message.
func oneOf(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quote(w)
	}
	if n := len(quoted) - 1; n > 0 {
		return strings.Join(quoted[:n], ", ") + " or " + quoted[n]
	}
	return quoted[0]
}
