// Package initdata reads and writes initdata, what a confidential guest is given
// at launch and proves by its evidence: configuration of the attestation agent
// and the data hub, and the policy of the container agent. Nothing of it is
// secret; the host carries it, and cannot change it unseen.
//
// Initdata Specification 0.1.0 (confidential-containers/trustee,
// kbs/docs/initdata.md), in its TOML encoding, which is the one that Kata
// Containers and Trustee read.
package initdata

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"

	"github.com/plinth-os/plinth/internal/levenshtein"
)

// Version is the only version of the format.
const Version = "0.1.0"

// MaxSize is that of a document, in bytes, in whatever form it comes.
const MaxSize = 4 << 20

// maxMarks bounds the keys and values of a document: see marks.
const maxMarks = 4096

// Algorithm hashes a document.
type Algorithm string

// The algorithms.
const (
	SHA256 Algorithm = "sha256"
	SHA384 Algorithm = "sha384"
	SHA512 Algorithm = "sha512"
)

// Algorithms are all of them.
var Algorithms = []Algorithm{SHA256, SHA384, SHA512}

// ParseAlgorithm takes the name as programs write it, and as the specification
// does: sha-256.
func ParseAlgorithm(s string) (Algorithm, error) {
	a := Algorithm(s)
	if rest, ok := strings.CutPrefix(s, "sha-"); ok {
		a = Algorithm("sha" + rest)
	}
	if !slices.Contains(Algorithms, a) {
		return "", fmt.Errorf("initdata: algorithm %q: want sha256, sha384 or sha512", s)
	}
	return a, nil
}

// Sum is the digest of b.
func (a Algorithm) Sum(b []byte) []byte {
	switch a {
	case SHA384:
		s := sha512.Sum384(b)
		return s[:]
	case SHA512:
		s := sha512.Sum512(b)
		return s[:]
	}
	s := sha256.Sum256(b)
	return s[:]
}

// Size is that of a digest, in bytes.
func (a Algorithm) Size() int { return len(a.Sum(nil)) }

// The keys of data that guests know.
const (
	AgentConfig = "aa.toml"     // of the attestation agent
	HubConfig   = "cdh.toml"    // of the confidential data hub
	Policy      = "policy.rego" // of the container agent
)

// Keys are those that guests know. What stands under another one no guest may
// write to a file of that name: the host chose it.
var Keys = []string{AgentConfig, HubConfig, Policy}

// A Document is initdata as it is delivered.
type Document struct {
	Raw       []byte // what the digest is over
	Algorithm Algorithm
	Data      map[string]string

	// Unknown are the keys that guests pass over, sorted, as a TOML file would
	// name them: data."other.toml".
	Unknown []string
	// Remarks say what is allowed, and yet likely not to do what was meant.
	Remarks []string
}

// Digest is the one that evidence is bound to: over the bytes as delivered, never
// over what a parser made of them.
func (d *Document) Digest() []byte { return d.Algorithm.Sum(d.Raw) }

// required are the keys of a document.
var required = []string{"version", "algorithm", "data"}

// Parse reads a document. It refuses what Kata's agent or Trustee would refuse.
func Parse(raw []byte) (*Document, error) {
	top, err := decode(raw)
	if err != nil {
		return nil, fmt.Errorf("initdata: %w", err)
	}
	d := &Document{Raw: raw, Data: map[string]string{}}
	for _, key := range slices.Sorted(maps.Keys(top)) {
		if !slices.Contains(required, key) {
			d.unknown("", key, required)
		}
	}
	for _, key := range required {
		if _, ok := top[key]; !ok {
			return nil, fmt.Errorf("initdata: no %s", key)
		}
	}
	if v, ok := top["version"].(string); !ok || v != Version {
		return nil, fmt.Errorf("initdata: version %v: want the string %q", top["version"], Version)
	}
	name, ok := top["algorithm"].(string)
	if !ok {
		return nil, fmt.Errorf("initdata: algorithm %v: want a string", top["algorithm"])
	}
	if err := d.setAlgorithm(name); err != nil {
		return nil, err
	}
	table, ok := top["data"].(map[string]any)
	if !ok {
		return nil, errors.New("initdata: data: want a table")
	}
	if err := d.setData(table); err != nil {
		return nil, err
	}
	d.Remarks = append(d.Remarks, remarks(d.Data)...)
	return d, nil
}

// decode reads TOML within bounds.
func decode(raw []byte) (map[string]any, error) {
	switch {
	case len(raw) > MaxSize:
		return nil, fmt.Errorf("%d bytes: want at most %d", len(raw), MaxSize)
	case !utf8.Valid(raw):
		return nil, errors.New("not UTF-8")
	case bytes.HasPrefix(bytes.TrimLeft(raw, " \t\r\n"), []byte("{")):
		return nil, errors.New("JSON: want TOML, which is what guests and verifiers read")
	}
	if n := marks(raw); n > maxMarks {
		return nil, fmt.Errorf("more than %d keys and values", maxMarks)
	}
	var top map[string]any
	if err := toml.Unmarshal(raw, &top); err != nil {
		return nil, fmt.Errorf("TOML: %s", place(err))
	}
	return top, nil
}

// place adds line and column to a decoder's error.
func place(err error) string {
	text := strings.TrimPrefix(err.Error(), "toml: ")
	if e, ok := err.(*toml.DecodeError); ok {
		line, column := e.Position()
		return fmt.Sprintf("line %d, column %d: %s", line, column, text)
	}
	return text
}

func (d *Document) setAlgorithm(name string) (err error) {
	if d.Algorithm, err = ParseAlgorithm(name); err == nil && name != string(d.Algorithm) {
		d.Remarks = append(d.Remarks, fmt.Sprintf("algorithm %q: the specification's spelling; guests and verifiers want %q", name, d.Algorithm))
	}
	return err
}

func (d *Document) setData(table map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(table)) {
		text, ok := table[key].(string)
		if !ok {
			hint := ""
			if _, nested := table[key].(map[string]any); nested {
				hint = fmt.Sprintf(`; a key with a dot needs quotes, as in "%s.toml"`, key)
			}
			return fmt.Errorf("initdata: data.%s: want a string%s", quoteKey(key), hint)
		}
		d.Data[key] = text
		if !slices.Contains(Keys, key) {
			d.unknown("data.", key, Keys)
		}
	}
	return nil
}

// unknown lists a key, with the one that was probably meant.
func (d *Document) unknown(table, key string, known []string) {
	name := table + quoteKey(key)
	d.Unknown = append(d.Unknown, name)
	for _, k := range known {
		if n := levenshtein.Distance(clip(key), k); n > 0 && n <= 2 {
			d.Remarks = append(d.Remarks, fmt.Sprintf("%s: guests pass over it; is %s%s meant?", name, table, quoteKey(k)))
		}
	}
}

// clip keeps a hostile name from costing time.
func clip(s string) string { return s[:min(len(s), 64)] }

// quoteKey writes a key as a TOML file needs it.
func quoteKey(key string) string {
	bare := func(r rune) bool {
		return r < utf8.RuneSelf && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
	}
	if key != "" && strings.IndexFunc(key, func(r rune) bool { return !bare(r) }) < 0 {
		return key
	}
	return `"` + escape(key, false) + `"`
}

// remarks judges the known parts, which guests and verifiers read on their own:
// Trustee leaves out, without a word, the claims of a part that does not parse.
func remarks(data map[string]string) (out []string) {
	for _, key := range []string{AgentConfig, HubConfig} {
		if text, ok := data[key]; ok {
			if _, err := decode([]byte(text)); err != nil {
				out = append(out, fmt.Sprintf("data.%s: %v", quoteKey(key), err))
			}
		}
	}
	if text, ok := data[Policy]; ok && !declares(text, "agent_policy") {
		out = append(out, fmt.Sprintf("data.%s: no line \"package agent_policy\", which Kata's agent asks for", quoteKey(Policy)))
	}
	return out
}

// declares tells whether a Rego module is of a package.
func declares(module, pkg string) bool {
	for line := range strings.Lines(module) {
		code, _, _ := strings.Cut(line, "#")
		if f := strings.Fields(code); len(f) > 0 {
			return len(f) == 2 && f[0] == "package" && f[1] == pkg
		}
	}
	return false
}

// marks counts what keys and values are told apart by, outside strings and
// comments: an upper bound of what a TOML parser has to keep. The time that
// go-toml takes is quadratic in the number of keys, minutes for a file of 4 MiB.
func marks(raw []byte) (n int) {
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; c {
		case '=', ',', '.', '[', '{':
			n++
		case '#':
			for i+1 < len(raw) && raw[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			i = closing(raw, i)
		}
	}
	return n
}

// closing returns the index of the last byte of the string that begins at raw[i].
// One that does not end on its line, ends there: that is an error for the parser.
func closing(raw []byte, i int) int {
	quote, long := raw[i], false
	if bytes.HasPrefix(raw[i:], bytes.Repeat([]byte{quote}, 3)) {
		long, i = true, i+2
	}
	for i++; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '\\' && quote == '"':
			i++
		case c == '\n' && !long:
			return i
		case c == quote && !long:
			return i
		case c == quote && bytes.HasPrefix(raw[i:], bytes.Repeat([]byte{quote}, 3)):
			for i += 2; i+1 < len(raw) && raw[i+1] == quote; { // up to two more belong to the text
				i++
			}
			return i
		}
	}
	return i
}
