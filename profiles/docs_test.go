package profiles

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the reference in docs/profiles.md anew")

const (
	docs  = "../docs/profiles.md"
	begin = "<!-- reference: go test ./profiles -run TestDocs -update -->\n"
)

// TestDocs holds the reference in docs/profiles.md, its end, to the table of keys.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	intro, have, ok := bytes.Cut(text, []byte(begin))
	if !ok {
		t.Fatalf("%s: no line %q", docs, begin)
	}
	want := reference()
	if *update {
		if err := os.WriteFile(docs, append(append(intro, begin...), want...), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(have) != want {
		t.Errorf("%s: the reference is not that of the table of keys: run go test ./profiles -run TestDocs -update", docs)
	}
	for _, k := range leaves() {
		if !strings.Contains(want, "| `"+k.name+"` |") {
			t.Errorf("%s: no row", k.path)
		}
	}
}

// reference is a table for each table of the format, in Markdown.
func reference() string {
	var b strings.Builder
	b.WriteString("\n### Top level\n")
	rows(&b, table())
	table().walk(func(k *key) {
		switch {
		case k.name == "" || k.kind == kindList || k.kind == kindMap && k.elem.kind == kindString:
		case k.kind == kindTable:
			fmt.Fprintf(&b, "\n### `[%s]`\n\n%s\n", strings.ReplaceAll(k.path, "[]", ""), k.doc)
			rows(&b, k)
		case k.kind == kindMap:
			fmt.Fprintf(&b, "\n### `[%s.NAME]`\n\n%s\n", k.path, k.doc)
			rows(&b, k.elem)
		case k.kind == kindTables:
			fmt.Fprintf(&b, "\n### `[[%s]]`\n\n%s\n", strings.ReplaceAll(k.path, "[]", ""), k.doc)
			rows(&b, k.elem)
		}
	})
	return b.String()
}

func rows(b *strings.Builder, k *key) {
	b.WriteString("\n| key | holds | default | meaning |\n| --- | --- | --- | --- |\n")
	for _, f := range k.fields {
		if f.kind == kindTable || f.kind == kindTables || f.kind == kindMap && f.elem.kind == kindTable {
			continue
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", f.name, holds(f), fallback(f), f.describe()+exclusions(f))
	}
}

// holds says what values f takes.
func holds(f *key) string {
	switch f.kind {
	case kindList:
		return "list of: " + holds(f.elem)
	case kindMap:
		return "table of strings"
	case kindInteger:
		return fmt.Sprintf("integer, %d to %d", f.min, f.max)
	case kindBool:
		return "boolean"
	}
	if f.enum != nil {
		return "`" + strings.Join(f.enum, "`, `") + "`"
	}
	if f.format.says != "" {
		return f.format.says
	}
	return "string"
}

func fallback(f *key) string {
	switch {
	case f.fallback == nil && f.required:
		return "required"
	case f.fallback == nil && (f.id || f.nonempty):
		return "required"
	case f.fallback == nil:
		return ""
	case f.kind == kindList:
		var parts []string
		for _, e := range f.fallback.list {
			parts = append(parts, e.toml())
		}
		return "`[" + strings.Join(parts, ", ") + "]`"
	}
	return "`" + f.fallback.toml() + "`"
}

func exclusions(f *key) string {
	var names []string
	for _, other := range slices.Sorted(maps.Keys(f.excludes)) {
		names = append(names, "`"+other+"`")
	}
	if names == nil {
		return ""
	}
	return " Not beside " + strings.Join(names, ", ") + "."
}
