package profiles

import (
	_ "embed"
	"fmt"
	"strings"
)

//go:embed template.toml.in
var template string

// CheckName returns an error when name cannot be that of a profile.
func CheckName(name string) error {
	if !formats["name"].ok(name) || strings.HasSuffix(name, ".toml") {
		return fmt.Errorf("profiles: name of a profile: got %q, want %s, without .toml", name, formats["name"].says)
	}
	return nil
}

// Template returns the text of a new profile called name, see CheckName: vtpm with its own seed, and comments that show
// what can be changed.
func Template(name string) []byte {
	return []byte(strings.ReplaceAll(template, "NAME", name))
}
