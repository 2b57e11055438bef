package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// A CoCo is what the configuration of CoCo's attestation-agent and
// confidential-data-hub say of the broker.
type CoCo struct {
	URL string       // "" where neither names one
	CAs string       // PEM, unchecked; "": the system's
	Key KeyAlgorithm // "": the default

	// Ignored are the settings that mean nothing here, such as "cdh.toml: image.work_dir":
	// what images are taken, and what is measured, the measured image says.
	Ignored []string
}

// maxCoCo bounds each document.
const maxCoCo = 1 << 20

// ParseCoCo reads aa.toml and cdh.toml as guests of CoCo get them; either may be empty.
// A setting that asks for less protection than is given here, or for a broker that is
// none, is an error, and so are two documents that disagree.
func ParseCoCo(aaTOML, cdhTOML string) (*CoCo, error) {
	aa, err := parseSettings("aa.toml", aaTOML)
	if err != nil {
		return nil, err
	}
	cdh, err := parseSettings("cdh.toml", cdhTOML)
	if err != nil {
		return nil, err
	}
	var c CoCo
	if c.URL, err = agree("broker", aa.text("token_configs.kbs.url"), cdh.text("kbc.url")); err != nil {
		return nil, err
	}
	if c.CAs, err = agree("certificate", aa.text("token_configs.kbs.cert"), cdh.text("kbc.kbs_cert")); err != nil {
		return nil, err
	}
	c.Key = KeyAlgorithm(aa.text("token_configs.kbs.tee_key_algorithm"))
	if err := c.Key.check(); err != nil {
		return nil, aa.fail("token_configs.kbs.tee_key_algorithm", err)
	}
	if name := cdh.text("kbc.name"); name != "" && name != "cc_kbc" {
		return nil, cdh.fail("kbc.name", fmt.Errorf("%.40q: only cc_kbc is a broker that attests", name))
	}
	if cdh.flag("skip_sealed_secret_verification") {
		return nil, cdh.fail("skip_sealed_secret_verification", errors.New("signatures are always checked"))
	}
	if err := errors.Join(aa.err, cdh.err); err != nil {
		return nil, err
	}
	c.Ignored = slices.Concat(aa.rest(), cdh.rest())
	return &c, nil
}

// agree returns the one value that both give, or one of them.
func agree(what, aa, cdh string) (string, error) {
	if aa != "" && cdh != "" && strings.TrimSpace(aa) != strings.TrimSpace(cdh) {
		return "", fmt.Errorf("kbs: aa.toml and cdh.toml name two %ss", what)
	}
	if aa == "" {
		return cdh, nil
	}
	return aa, nil
}

// A settings is a document, and what of it was asked for.
type settings struct {
	name string
	tree map[string]any
	used map[string]bool
	err  error // the first that has the wrong type
}

// parseSettings reads TOML, or JSON, which CoCo's programs take as well.
func parseSettings(name, text string) (*settings, error) {
	s := &settings{name: name, tree: map[string]any{}, used: map[string]bool{}}
	if len(text) > maxCoCo {
		return nil, fmt.Errorf("kbs: %s: %d bytes, want at most %d", name, len(text), maxCoCo)
	}
	read := toml.Unmarshal
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		read = json.Unmarshal
	}
	if err := read([]byte(text), &s.tree); err != nil {
		return nil, fmt.Errorf("kbs: %s: %w", name, plain(err))
	}
	return s, nil
}

func (s *settings) fail(path string, err error) error {
	return fmt.Errorf("kbs: %s: %s: %w", s.name, path, err)
}

// value returns what stands at a path, nil if nothing does.
func (s *settings) value(path string) any {
	s.used[path] = true
	var v any = s.tree
	for _, key := range strings.Split(path, ".") {
		table, ok := v.(map[string]any)
		if v != nil && !ok && s.err == nil {
			s.err = s.fail(path, errors.New("want a table around it"))
		}
		v = table[key]
	}
	return v
}

func (s *settings) text(path string) string {
	v := s.value(path)
	text, ok := v.(string)
	if v != nil && !ok && s.err == nil {
		s.err = s.fail(path, errors.New("want text"))
	}
	return text
}

func (s *settings) flag(path string) bool {
	v := s.value(path)
	b, ok := v.(bool)
	if v != nil && !ok && s.err == nil {
		s.err = s.fail(path, errors.New("want true or false"))
	}
	return b
}

// rest lists what was not asked for, by the document's name and path.
func (s *settings) rest() []string {
	var out []string
	var walk func(prefix string, table map[string]any)
	walk = func(prefix string, table map[string]any) {
		for key, v := range table {
			if t, ok := v.(map[string]any); ok {
				walk(prefix+key+".", t)
			} else if !s.used[prefix+key] {
				out = append(out, printable(s.name+": "+prefix+key))
			}
		}
	}
	walk("", s.tree)
	slices.Sort(out)
	return out
}
