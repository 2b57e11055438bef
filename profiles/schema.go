package profiles

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// object is a JSON object; encoding/json writes its members sorted.
type object = map[string]any

// Schema returns the JSON Schema (draft 2020-12) of a profile's file, for editors. It says what one file can hold. What
// a profile must have once its bases are merged in, only Load knows.
func Schema() []byte {
	s := table().schema()
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "plinth profile"
	s["required"] = []string{"schema"}
	s["anyOf"] = []object{
		{"required": []string{"extends"}},
		{"required": table().requiredNames()},
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		panic("profiles: schema: " + err.Error()) // made of maps, slices and strings above
	}
	return append(b, '\n')
}

func (k *key) requiredNames() []string {
	var names []string
	for _, f := range k.fields {
		if f.required {
			names = append(names, f.name)
		}
	}
	return names
}

// schema describes a value of k.
func (k *key) schema() object {
	s := object{}
	switch k.kind {
	case kindTable:
		s = k.tableSchema()
	case kindMap:
		s = object{"type": "object", "propertyNames": k.format.schema(), "additionalProperties": k.elem.schema()}
	case kindList, kindTables:
		s = k.listSchema()
	case kindInteger:
		s = object{"type": "integer", "minimum": k.min, "maximum": k.max}
	case kindBool:
		s = object{"type": "boolean"}
	case kindString:
		s = k.format.schema()
		s["type"] = "string"
		if k.enum != nil {
			s["enum"] = k.enum
		}
	}
	if k.name != "" {
		s["description"] = k.describe()
	}
	if k.fallback != nil {
		s["default"] = canonical(k, k.fallback)
	}
	return s
}

// describe is the documentation of k, with the values that are not built yet.
func (k *key) describe() string {
	if k.only != nil {
		return k.doc + " This version supports " + strings.Join(k.only, ", ") + "."
	}
	return k.doc
}

func (f format) schema() object {
	if f.pattern == nil {
		return object{}
	}
	return object{"pattern": f.pattern.String()}
}

func (k *key) tableSchema() object {
	properties := object{}
	var apart []object
	for _, f := range k.fields {
		properties[f.name] = f.schema()
		for _, other := range slices.Sorted(maps.Keys(f.excludes)) {
			if f.name < other {
				apart = append(apart, object{"not": object{"required": []string{f.name, other}}})
			}
		}
	}
	s := object{"type": "object", "properties": properties, "additionalProperties": false}
	if apart != nil {
		s["allOf"] = apart
	}
	return s
}

// listSchema allows a list, or the changes to one.
func (k *key) listSchema() object {
	item := k.elem.schema()
	if k.kind == kindTables {
		item["required"] = []string{k.idField().name}
	}
	list := object{"type": "array", "items": item}
	if k.nonempty {
		list["minItems"] = 1
	}
	if k.unique {
		list["uniqueItems"] = true
	}
	change := object{
		"type": "object",
		"properties": object{
			"append": object{"type": "array", "items": item, "description": "Elements to add to the list of the extended profile."},
			"remove": object{"type": "array", "items": k.removable().schema(), "description": "Elements to take out of it."},
		},
		"additionalProperties": false,
	}
	return object{"anyOf": []object{list, change}}
}
