package registry

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/pelletier/go-toml/v2"
)

// maxConf bounds a registries.conf, bytes.
const maxConf = 1 << 20

// A Config says where images really come from: version 2 of registries.conf,
// containers-registries.conf(5). Short names and their aliases are read and have no
// effect: an image is asked for by its whole name.
type Config struct {
	Registries []Registry `toml:"registry"`

	Unqualified   []string          `toml:"unqualified-search-registries"`
	ShortNameMode string            `toml:"short-name-mode"`
	Aliases       map[string]string `toml:"aliases"`
	Helpers       []string          `toml:"credential-helpers"` // programs; none is run
}

// A Registry says what is done with names that begin with its prefix.
type Registry struct {
	Prefix   string   `toml:"prefix"`   // host[:port][/path], or *.host; absent: location
	Location string   `toml:"location"` // what takes the place of the prefix; absent: nothing does
	Insecure bool     `toml:"insecure"`
	Blocked  bool     `toml:"blocked"`
	Mirrors  []Mirror `toml:"mirror"` // tried first, in order

	DigestOnly bool `toml:"mirror-by-digest-only"` // mirrors serve images by digest alone
}

// A Mirror is another place for the same images.
type Mirror struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
	Pull     string `toml:"pull-from-mirror"` // all (or absent), digest-only, tag-only
}

// ParseConfig reads registries.conf. Version 1, and what is unknown, is refused.
func ParseConfig(b []byte) (*Config, error) {
	if len(b) > maxConf {
		return nil, fmt.Errorf("registries.conf: %d bytes: want at most %d", len(b), maxConf)
	}
	c := &Config{}
	if err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, fmt.Errorf("registries.conf: unknown: %s", strings.TrimSpace(strict.String()))
		}
		return nil, fmt.Errorf("registries.conf: %w", err)
	}
	for i := range c.Registries {
		if err := c.Registries[i].check(); err != nil {
			return nil, fmt.Errorf("registries.conf: registry %d: %w", i, err)
		}
	}
	return c, c.check()
}

func (c *Config) check() error {
	seen := map[string]*Registry{}
	for i := range c.Registries {
		r := &c.Registries[i]
		if before := seen[r.Prefix]; before != nil && (before.Blocked != r.Blocked || before.Insecure != r.Insecure) {
			return fmt.Errorf("registries.conf: %s: there twice, once blocked or insecure and once not", r.Prefix)
		}
		seen[r.Prefix] = r
	}
	switch c.ShortNameMode {
	case "", "enforcing", "permissive", "disabled":
	default:
		return fmt.Errorf("registries.conf: short-name-mode %q", c.ShortNameMode)
	}
	for _, host := range c.Unqualified {
		if strings.Contains(host, "/") {
			return fmt.Errorf("registries.conf: unqualified-search-registries: %q: want a host", host)
		}
	}
	for name, full := range c.Aliases {
		if strings.ContainsAny(name, ":@") || full != "" && !plainName(full) {
			return fmt.Errorf("registries.conf: alias %q of %q: want names without tag and digest", name, full)
		}
	}
	return nil
}

// plainName tells whether s is a host and a path, without tag and digest.
func plainName(s string) bool {
	n, err := reference.ParseNormalizedNamed(s)
	return err == nil && n.String() == s && n.Name() == s
}

func (r *Registry) check() error {
	var err error
	if r.Location, err = location(r.Location); err != nil {
		return err
	}
	if r.Prefix, err = location(r.Prefix); err != nil {
		return err
	}
	if r.Prefix == "" {
		r.Prefix = r.Location
	}
	wild := strings.HasPrefix(r.Prefix, "*.")
	switch {
	case r.Prefix == "":
		return errors.New("neither prefix nor location")
	case strings.Contains(r.Prefix[1:], "*") || strings.HasPrefix(r.Prefix, "*") && !wild:
		return fmt.Errorf("prefix %q: * stands only for the first part of a host", r.Prefix)
	case wild && strings.ContainsAny(r.Prefix, "/:@"):
		return fmt.Errorf("prefix %q: want *. and a host", r.Prefix)
	case r.Location == "" && !wild:
		return fmt.Errorf("prefix %q: no location", r.Prefix)
	}
	for i := range r.Mirrors {
		if err := r.Mirrors[i].check(r.DigestOnly); err != nil {
			return fmt.Errorf("mirror %d: %w", i, err)
		}
	}
	return nil
}

func (m *Mirror) check(digestOnly bool) (err error) {
	if m.Location, err = location(m.Location); err != nil {
		return err
	}
	switch {
	case m.Location == "":
		return errors.New("no location")
	case digestOnly && m.Pull != "":
		return errors.New("pull-from-mirror beside mirror-by-digest-only")
	case m.Pull != "" && m.Pull != "all" && m.Pull != "digest-only" && m.Pull != "tag-only":
		return fmt.Errorf("pull-from-mirror %q: want all, digest-only or tag-only", m.Pull)
	}
	return nil
}

func location(s string) (string, error) {
	if strings.Contains(s, "://") {
		return "", fmt.Errorf("location %q: want no scheme", s)
	}
	return strings.TrimRight(s, "/"), nil
}

// A Source is one place to get an image from.
type Source struct {
	Ref      reference.Named
	Insecure bool // a certificate is not checked, and plain HTTP will do
}

// ErrBlocked is the error of a name that registries.conf blocks.
var ErrBlocked = errors.New("blocked by registries.conf")

// Sources returns where to look for an image, in this order: the mirrors, the
// registry. A nil Config has neither.
func (c *Config) Sources(ref reference.Named) ([]Source, error) {
	r, n := c.find(ref.String())
	if r == nil {
		return []Source{{Ref: ref}}, nil
	}
	if r.Blocked {
		return nil, fmt.Errorf("%s: %w", ref, ErrBlocked)
	}
	_, byDigest := ref.(reference.Digested)
	var out []Source
	for _, m := range r.Mirrors {
		if !byDigest && (r.DigestOnly || m.Pull == "digest-only") || byDigest && m.Pull == "tag-only" {
			continue
		}
		s, err := replaced(ref, n, m.Location, m.Insecure)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	if r.Location == "" {
		return append(out, Source{ref, r.Insecure}), nil
	}
	s, err := replaced(ref, n, r.Location, r.Insecure)
	return append(out, s), err
}

// replaced puts a location in the place of the first n bytes of a name.
func replaced(ref reference.Named, n int, location string, insecure bool) (Source, error) {
	text := location + ref.String()[n:]
	to, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return Source{}, fmt.Errorf("registries.conf: %s becomes %q: %w", ref, text, err)
	}
	return Source{to, insecure}, nil
}

// find returns the registry with the longest prefix of a name, and how many bytes
// of the name that is.
func (c *Config) find(name string) (found *Registry, n int) {
	if c == nil {
		return nil, 0
	}
	longest := -1
	for i := range c.Registries {
		r := &c.Registries[i]
		if m := matches(r.Prefix, name); m >= 0 && len(r.Prefix) > longest {
			found, n, longest = r, m, len(r.Prefix)
		}
	}
	return found, n
}

// matches returns how many bytes of a name a prefix stands for, -1 if it is none.
func matches(prefix, name string) int {
	n := len(prefix)
	if suffix, wild := strings.CutPrefix(prefix, "*"); wild {
		host := name[:strings.IndexAny(name+"/", "/:@")]
		if !strings.HasSuffix(host, suffix) {
			return -1
		}
		return len(host)
	}
	if !strings.HasPrefix(name, prefix) || n < len(name) && !strings.ContainsRune("/:@", rune(name[n])) {
		return -1
	}
	return n
}
