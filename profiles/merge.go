package profiles

import "slices"

// merge lays over on base, both judged by check, and returns a new node: tables go deep, other values replace,
// and a list may be changed with append and remove. Either may be nil. Faults are changes that do not fit.
func merge(k *key, base, over *node, faults *faultList) *node {
	if over == nil {
		return base
	}
	switch k.kind {
	case kindTable, kindMap:
		return mergeTable(k, base, over, faults)
	case kindTables:
		return mergeTables(k, base, over, faults)
	case kindList:
		if over.kind == nodeTable {
			return changeList(k, base, over, faults)
		}
	}
	return over
}

func mergeTable(k *key, base, over *node, faults *faultList) *node {
	merged := newTable(over.origin, over.opened)
	merged.keyAt = over.keyAt
	if base != nil {
		for _, name := range base.keys {
			if !over.excludes(k.child(name)) {
				merged.set(name, base.table[name])
			}
		}
	}
	for _, name := range over.keys {
		merged.set(name, merge(k.child(name), merged.table[name], over.table[name], faults))
	}
	return merged
}

// child returns the key of that name below k, a table.
func (k *key) child(name string) *key {
	if k.kind == kindMap {
		return k.elem
	}
	return k.field(name)
}

// excludes is true when n gives a key that cannot stand beside k.
func (n *node) excludes(k *key) bool {
	return slices.ContainsFunc(n.keys, func(name string) bool { return k.excludes[name] })
}

// mergeTables changes entries of base by those of over that have the same id, and adds the others.
func mergeTables(k *key, base, over *node, faults *faultList) *node {
	merged := copyList(base, over)
	added := over
	if over.kind == nodeTable {
		removeEach(k, merged, over.table["remove"], faults)
		if added = over.table["append"]; added == nil {
			return merged
		}
	}
	index := map[string]int{}
	for i, e := range merged.list {
		index[e.id(k)] = i
	}
	for _, e := range added.list {
		if i, ok := index[e.id(k)]; ok {
			merged.list[i] = merge(k.elem, merged.list[i], e, faults)
		} else {
			merged.list = append(merged.list, merge(k.elem, nil, e, faults))
		}
	}
	return merged
}

// changeList applies { append, remove } to base or, without one, to the default.
func changeList(k *key, base, over *node, faults *faultList) *node {
	if base == nil {
		base = k.fallback
	}
	merged := copyList(base, over)
	removeEach(k, merged, over.table["remove"], faults)
	if added := over.table["append"]; added != nil {
		merged.list = append(merged.list, added.list...)
	}
	return merged
}

// copyList returns a list with the elements of base, which may be nil, at the place of over.
func copyList(base, over *node) *node {
	merged := &node{kind: nodeArray, origin: over.origin, keyAt: over.keyAt}
	if base != nil {
		merged.list = slices.Clone(base.list)
	}
	return merged
}

// removeEach takes what remove names from list and reports what is not there.
func removeEach(k *key, list, remove *node, faults *faultList) {
	if remove == nil {
		return
	}
	for _, r := range remove.list {
		i := slices.IndexFunc(list.list, func(e *node) bool { return e.id(k) == r.scalar() })
		if i >= 0 {
			list.list = slices.Delete(list.list, i, i+1)
		} else if faults.sound(k.path) {
			have := make([]string, len(list.list))
			for i, e := range list.list {
				have[i] = e.id(k)
			}
			faults.add(r.origin, k.path, didYouMean(r.scalar(), have), "cannot remove %s: the list has no such entry", r.toml())
		}
	}
}

// id returns what tells n, an element of k, from the others.
func (n *node) id(k *key) string {
	if k.kind == kindTables {
		return n.table[k.idField().name].text
	}
	return n.scalar()
}
