package profiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pelletier/go-toml/v2"
)

// ParseCanonical reads what Canonical wrote, with every check of Load. Paths of the building host are taken from the
// working directory.
func ParseCanonical(b []byte) (*Profile, error) {
	if len(b) > maxSize {
		return nil, fmt.Errorf("profiles: canonical form: %d bytes, want at most %d", len(b), maxSize)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("profiles: canonical form: %w", err)
	}
	name, _ := v["name"].(string)
	if name == "" {
		return nil, errors.New("profiles: canonical form: no name")
	}
	delete(v, "name")
	data, err := toml.Marshal(integers(v))
	if err != nil {
		return nil, fmt.Errorf("profiles: canonical form: %w", err)
	}
	l := &loader{}
	t := &text{name: name, origin: "canonical form of " + name, data: data}
	l.parse(t)
	return l.resolve([]*text{t}, Options{})
}

// integers replaces the numbers of a JSON document, which are all integers in a profile.
func integers(v any) any {
	switch x := v.(type) {
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n
		}
		return x.String()
	case map[string]any:
		for k, e := range x {
			x[k] = integers(e)
		}
	case []any:
		for i, e := range x {
			x[i] = integers(e)
		}
	}
	return v
}
