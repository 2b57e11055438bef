// Package jcs writes JSON in the one form of RFC 8785, so that equal documents
// have equal digests.
package jcs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds how deep arrays and objects may lie in each other.
const maxDepth = 1000

// Marshal writes v as package encoding/json does, in canonical form. Text in v
// must be UTF-8: encoding/json writes U+FFFD for what is not.
func Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("jcs: %w", err)
	}
	return Transform(b)
}

// Transform writes one JSON text in canonical form. It refuses what I-JSON (RFC
// 7493) does not have: a key twice in an object, invalid UTF-8, half of a
// surrogate pair, a number beyond what a double holds.
func Transform(b []byte) ([]byte, error) {
	p := parser{in: b}
	p.space()
	if err := p.value(0); err != nil {
		return nil, fmt.Errorf("jcs: offset %d: %w", p.at, err)
	}
	if p.space(); p.at != len(p.in) {
		return nil, fmt.Errorf("jcs: offset %d: data after the document", p.at)
	}
	return p.out, nil
}

// A parser reads JSON (RFC 8259) and writes its canonical form as it goes.
type parser struct {
	in  []byte
	at  int
	out []byte
}

func (p *parser) peek() byte {
	if p.at < len(p.in) {
		return p.in[p.at]
	}
	return 0
}

func (p *parser) space() {
	for p.at < len(p.in) && bytes.IndexByte([]byte(" \t\r\n"), p.in[p.at]) >= 0 {
		p.at++
	}
}

var errSyntax = errors.New("not JSON")

func (p *parser) take(c byte) error {
	if p.at >= len(p.in) || p.in[p.at] != c {
		return errSyntax
	}
	p.at++
	return nil
}

func (p *parser) value(depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d levels", maxDepth)
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		s, err := p.text()
		p.out = appendText(p.out, s)
		return err
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	}
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(p.in[p.at:], []byte(word)) {
			p.at += len(word)
			p.out = append(p.out, word...)
			return nil
		}
	}
	return errSyntax
}

func (p *parser) array(depth int) error {
	p.at++
	p.out = append(p.out, '[')
	for p.space(); p.peek() != ']'; p.space() {
		if err := p.value(depth + 1); err != nil {
			return err
		}
		if p.space(); p.peek() == ']' {
			break
		}
		if err := p.take(','); err != nil {
			return err
		}
		if p.space(); p.peek() == ']' {
			return errSyntax
		}
		p.out = append(p.out, ',')
	}
	p.out = append(p.out, ']')
	return p.take(']')
}

// member is one of an object's: its key, and where its value was written.
type member struct {
	key         []uint16
	text        string
	value, past int
}

// object writes the members as they come, then once more in order.
func (p *parser) object(depth int) error {
	p.at++
	start := len(p.out)
	var members []member
	for p.space(); p.peek() != '}'; p.space() {
		m, err := p.member(depth)
		if err != nil {
			return err
		}
		members = append(members, m)
		if p.space(); p.peek() == '}' {
			break
		}
		if err := p.take(','); err != nil {
			return err
		}
		if p.space(); p.peek() == '}' {
			return errSyntax
		}
	}
	// RFC 8785, section 3.2.3: by UTF-16 code units.
	slices.SortFunc(members, func(a, b member) int { return slices.Compare(a.key, b.key) })
	values := bytes.Clone(p.out[start:])
	p.out = append(p.out[:start], '{')
	for i, m := range members {
		if i > 0 {
			if m.text == members[i-1].text {
				return fmt.Errorf("key %.100q: twice", m.text)
			}
			p.out = append(p.out, ',')
		}
		p.out = append(appendText(p.out, m.text), ':')
		p.out = append(p.out, values[m.value-start:m.past-start]...)
	}
	p.out = append(p.out, '}')
	return p.take('}')
}

func (p *parser) member(depth int) (m member, err error) {
	if m.text, err = p.text(); err != nil {
		return m, err
	}
	m.key = utf16.Encode([]rune(m.text))
	p.space()
	if err := p.take(':'); err != nil {
		return m, err
	}
	p.space()
	m.value = len(p.out)
	err = p.value(depth + 1)
	m.past = len(p.out)
	return m, err
}

// number writes what ECMAScript writes for the double that is meant (RFC 8785,
// section 3.2.2.3).
func (p *parser) number() error {
	end := p.at
	for end < len(p.in) && bytes.IndexByte([]byte("+-.eE0123456789"), p.in[end]) >= 0 {
		end++
	}
	if !json.Valid(p.in[p.at:end]) {
		return errSyntax
	}
	f, err := strconv.ParseFloat(string(p.in[p.at:end]), 64)
	if err != nil {
		return fmt.Errorf("number %.100q: more than a double holds", p.in[p.at:end])
	}
	p.at = end
	p.out = appendNumber(p.out, f)
	return nil
}

func appendNumber(b []byte, f float64) []byte {
	abs := math.Abs(f)
	switch {
	case f == 0:
		return append(b, '0') // also the negative one
	case 1e-6 <= abs && abs < 1e21:
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	if n := len(b); b[n-4] == 'e' && b[n-2] == '0' { // Go writes at least two digits of an exponent
		b = append(b[:n-2], b[n-1])
	}
	return b
}

// text reads a string and returns what it means.
func (p *parser) text() (string, error) {
	if err := p.take('"'); err != nil {
		return "", err
	}
	var out []byte
	for p.at < len(p.in) {
		switch c := p.in[p.at]; {
		case c == '"':
			p.at++
			return string(out), nil
		case c == '\\':
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			out = utf8.AppendRune(out, r)
		case c < ' ':
			return "", errSyntax
		default:
			r, n := utf8.DecodeRune(p.in[p.at:])
			if r == utf8.RuneError && n == 1 {
				return "", errors.New("not UTF-8")
			}
			out = append(out, p.in[p.at:p.at+n]...)
			p.at += n
		}
	}
	return "", errSyntax
}

const (
	escaped = "\"\\/bfnrt"
	meant   = "\"\\/\b\f\n\r\t"
)

func (p *parser) escape() (rune, error) {
	if p.at++; p.peek() == 'u' {
		return p.unicode()
	}
	i := bytes.IndexByte([]byte(escaped), p.peek())
	if p.at >= len(p.in) || i < 0 {
		return 0, errSyntax
	}
	p.at++
	return rune(meant[i]), nil
}

// unicode reads "uXXXX", and behind the first half of a surrogate pair the second.
func (p *parser) unicode() (rune, error) {
	r, err := p.unit()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	if !bytes.HasPrefix(p.in[p.at:], []byte(`\u`)) {
		return 0, errors.New("half of a surrogate pair")
	}
	p.at++
	low, err := p.unit()
	if err != nil {
		return 0, err
	}
	if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
		return 0, errors.New("half of a surrogate pair")
	}
	return r, nil
}

// unit reads "uXXXX".
func (p *parser) unit() (rune, error) {
	if p.at+5 > len(p.in) {
		return 0, errSyntax
	}
	n, err := strconv.ParseUint(string(p.in[p.at+1:p.at+5]), 16, 16)
	if err != nil {
		return 0, errSyntax
	}
	p.at += 5
	return rune(n), nil
}

// appendText writes a string: RFC 8785, section 3.2.2.2.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		c := s[i]
		switch short := bytes.IndexByte([]byte(meant), c); {
		case c == '/':
			b = append(b, c)
		case short >= 0:
			b = append(b, '\\', escaped[short])
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
