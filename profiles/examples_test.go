package profiles

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// Every example is a whole profile under any name, and gets a seed of its own.
func TestExamples(t *testing.T) {
	names := Examples()
	if !slices.IsSorted(names) || !slices.Contains(names, "azure") {
		t.Errorf("examples: %q", names)
	}
	for _, name := range names {
		text, err := Example(name, "mine")
		if err != nil {
			t.Fatal(err)
		}
		p, err := load(string(text), Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Seed != "mine" {
			t.Errorf("%s: seed is %q", name, p.Seed)
		}
		plain, err := examples.ReadFile("examples/" + name + ".toml")
		if err != nil {
			t.Fatal(err)
		}
		if n := len(seedLine.FindAll(plain, -1)); n != 1 {
			t.Errorf("%s: %d lines with a seed, want 1", name, n)
		}
		if !bytes.HasPrefix(plain, []byte("# ")) || bytes.Contains(plain, []byte("\t")) {
			t.Errorf("%s: want a comment first, and no tabs", name)
		}
	}
	for _, name := range []string{"", "azur", "../vtpm", "azure.toml"} {
		if _, err := Example(name, "mine"); err == nil || !strings.Contains(err.Error(), `"aws", "azure"`) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
