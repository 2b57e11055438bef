package profiles

import (
	"embed"
	"fmt"
	"regexp"
	"strings"
)

//go:embed examples/*.toml
var examples embed.FS

// Examples returns the names of the profiles that "plinth init" can start from, sorted.
func Examples() []string {
	entries, _ := examples.ReadDir("examples") // embedded: cannot fail
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), ".toml")
	}
	return names
}

// seedLine is where an example says its seed, in the first table.
var seedLine = regexp.MustCompile(`(?m)^(seed +=) "[^"\n]*"`)

// Example returns the text of a new profile called name, see CheckName: the example of that name, with a seed of its own.
func Example(example, name string) ([]byte, error) {
	b, err := examples.ReadFile("examples/" + example + ".toml")
	if err != nil {
		return nil, fmt.Errorf("profiles: no example %s: want %s%s", quote(example), oneOf(Examples()), suggested(example))
	}
	return seedLine.ReplaceAll(b, []byte(`$1 "`+name+`"`)), nil
}

func suggested(example string) string {
	if s := didYouMean(example, Examples()); s != "" {
		return "; " + s
	}
	return ""
}
