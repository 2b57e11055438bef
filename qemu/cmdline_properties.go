package qemu

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// properties are the value of an option: "type=q35,smm=on", or JSON. A key of a
// nested JSON object has the outer key before it, with a dot, as in QEMU's own
// flat form; numbers and booleans are as in that form.
type properties map[string]string

// maxProperties bounds what one option holds.
const maxProperties = 64

// parseProperties reads the value of an option; implied is the key of a first
// item that has none, "" where QEMU knows none.
func parseProperties(s, implied string) (properties, error) {
	p := properties{}
	if strings.HasPrefix(s, "{") {
		return p, p.mergeJSON(s)
	}
	return p, p.merge(s, implied)
}

// merge adds the items of a flat list. A later key beats an earlier one.
func (p properties) merge(s, implied string) error {
	for first := true; s != ""; first = false {
		var item string
		item, s = cutItem(s)
		key, value, ok := strings.Cut(item, "=")
		switch {
		case ok:
		case first && implied != "":
			key, value = implied, item
		case strings.HasPrefix(key, "no") && len(key) > 2: // an old way to say off
			key, value = key[2:], "off"
		default:
			value = "on"
		}
		if len(p) == maxProperties {
			return fmt.Errorf("more than %d properties", maxProperties)
		}
		p[key] = value
	}
	return nil
}

// cutItem splits at the first comma that is not doubled, and makes one comma of
// each doubled one.
func cutItem(s string) (item, rest string) {
	for at := 0; at < len(s); at++ {
		switch {
		case s[at] != ',':
		case at+1 < len(s) && s[at+1] == ',':
			at++
		default:
			return strings.ReplaceAll(s[:at], ",,", ","), s[at+1:]
		}
	}
	return strings.ReplaceAll(s, ",,", ","), ""
}

// maxNesting is how deep JSON may go; QEMU's block nodes need three.
const maxNesting = 8

// mergeJSON adds the members of one JSON object.
func (p properties) mergeJSON(s string) error {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	if _, err := d.Token(); err != nil { // the brace
		return err
	}
	err := p.members(d, "", 1)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("JSON: offset %d: %w", d.InputOffset(), err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("JSON: offset %d: more after its end", d.InputOffset())
	}
	return nil
}

// members reads an object up to its closing brace.
func (p properties) members(d *json.Decoder, prefix string, depth int) error {
	if depth > maxNesting {
		return fmt.Errorf("nested deeper than %d", maxNesting)
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("%v: want a key", t)
		}
		if err := p.member(d, prefix+key, depth); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func (p properties) member(d *json.Decoder, key string, depth int) error {
	if _, twice := p[key]; twice {
		return fmt.Errorf("%q is there twice", key)
	}
	if len(p) == maxProperties {
		return fmt.Errorf("more than %d properties", maxProperties)
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	switch v := t.(type) {
	case string:
		p[key] = v
	case json.Number:
		p[key] = v.String()
	case bool:
		p[key] = map[bool]string{true: "on", false: "off"}[v]
	case json.Delim:
		if v == '{' {
			return p.members(d, key+".", depth+1)
		}
		return skipList(d)
	}
	return nil
}

// skipList reads past a list: none of what a launch measures is in one.
func skipList(d *json.Decoder) error {
	for depth := 1; depth > 0; {
		t, err := d.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('['), json.Delim('{'):
			depth++
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
	}
	return nil
}

// Text returns a property, and whether it is there.
func (g *GuestObject) Text(name string) (string, bool) {
	v, ok := g.properties[name]
	return v, ok
}

// Uint returns a number as QEMU reads it: decimal, 0x or octal.
func (g *GuestObject) Uint(name string) (v uint64, ok bool, err error) {
	s, ok := g.properties[name]
	if !ok {
		return 0, false, nil
	}
	if v, err = strconv.ParseUint(s, 0, 64); err != nil {
		return 0, true, fmt.Errorf("qemu: %s: %s=%q: want a number", g.Type, name, s)
	}
	return v, true, nil
}

// Bool returns a switch; false when it is not there.
func (g *GuestObject) Bool(name string) (bool, error) {
	switch s, ok := g.properties[name]; {
	case !ok:
		return false, nil
	case s == "on" || s == "yes" || s == "true" || s == "y":
		return true, nil
	case s == "off" || s == "no" || s == "false" || s == "n":
		return false, nil
	default:
		return false, fmt.Errorf("qemu: %s: %s=%q: want on or off", g.Type, name, s)
	}
}

// Bytes returns what is there in base64; nil when it is not there.
func (g *GuestObject) Bytes(name string) ([]byte, error) {
	s, ok := g.properties[name]
	if !ok {
		return nil, nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("qemu: %s: %s: want base64: %w", g.Type, name, err)
	}
	return b, nil
}

// Unknown returns the properties that are not among known, in no order.
func (g *GuestObject) Unknown(known ...string) (out []string) {
	seen := map[string]bool{"qom-type": true, "id": true}
	for _, k := range known {
		seen[k] = true
	}
	for k := range g.properties {
		if !seen[k] {
			out = append(out, k)
		}
	}
	return out
}

// maxVCPUs is beyond what any x86 machine type of QEMU has.
const maxVCPUs = 4096

// topology are the levels of -smp.
var topology = []string{"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"}

// vcpus is how many start with the machine: what is said, else all that -smp
// makes room for. QEMU, hw/core/machine-smp.c.
func vcpus(smp properties) (int, error) {
	product := uint64(1)
	for _, level := range topology {
		n, err := smp.count(level)
		if err != nil {
			return 0, err
		}
		product *= max(n, 1)
		if product > maxVCPUs {
			return 0, fmt.Errorf("more than %d vCPUs", maxVCPUs)
		}
	}
	for _, key := range []string{"cpus", "maxcpus"} {
		n, err := smp.count(key)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			return int(n), nil
		}
	}
	return max(int(product), defaultVCPUs), nil
}

// count is a property of -smp; 0 when it is not there.
func (p properties) count(key string) (uint64, error) {
	s, ok := p[key]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxVCPUs {
		return 0, fmt.Errorf("%s=%q: want a number up to %d", key, s, maxVCPUs)
	}
	return n, nil
}

// suffixes are QEMU's units of size, in bytes.
var suffixes = map[byte]float64{'B': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40, 'P': 1 << 50, 'E': 1 << 60}

// memoryMiB reads the size of -m, which is in MiB where no unit is said.
func memoryMiB(m properties) (int, error) {
	s, ok := m["size"]
	if !ok {
		return defaultMemoryMiB, nil
	}
	if s == "" {
		return 0, errors.New("no size")
	}
	number, unit := s, suffixes['M']
	if u, ok := suffixes[s[len(s)-1]&^0x20]; ok { // either case
		number, unit = s[:len(s)-1], u
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v > 0) || strings.ContainsAny(number, "xXpP_ni") {
		return 0, fmt.Errorf("%q: want a size such as 2048 or 2G", s)
	}
	mib := v * unit / (1 << 20)
	switch {
	case mib > math.MaxInt32:
		return 0, fmt.Errorf("%q: more than %d MiB", s, math.MaxInt32)
	case mib != math.Trunc(mib):
		return 0, fmt.Errorf("%q: not a whole number of MiB", s)
	}
	return int(mib), nil
}
