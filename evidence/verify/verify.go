// Package verify checks what a confidential guest shows: an SNP report or a TDX
// quote, its chain of signatures up to the maker of the processor, and each value
// in it against what is expected. It reads bytes and asks nobody: certificates,
// revocation lists and other collateral are arguments, and so is the time.
//
// The chains are checked here and, where they can read the evidence, by
// go-sev-guest and go-tdx-guest as well: all have to agree. Foreign bytes reach
// those modules only after the parsers of this package took them, because theirs
// trust lengths.
package verify

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
)

// Verdict is the outcome of one check.
type Verdict string

// The verdicts.
const (
	OK         Verdict = "ok"
	Failed     Verdict = "failed"
	NotChecked Verdict = "not checked" // for Reason; never as good as OK
)

// Check is one check and what it found.
type Check struct {
	Name     string  `json:"name"`
	Verdict  Verdict `json:"verdict"`
	Required bool    `json:"required"` // evidence is refused when this was not checked
	Got      string  `json:"got"`
	Want     string  `json:"want"`
	Reason   string  `json:"reason"`
}

// Result is the outcome of all of them, in a fixed order.
type Result struct {
	Platform string  `json:"platform"` // snp or tdx
	Evidence string  `json:"evidence"` // for people: "report version 3, signed by the VCEK of a Milan"
	OK       bool    `json:"ok"`       // none failed, and none that is required was left out
	Checks   []Check `json:"checks"`
}

// Failures names the checks that keep the evidence from being accepted.
func (r *Result) Failures() (out []string) {
	for _, c := range r.Checks {
		switch {
		case c.Verdict == Failed:
			out = append(out, c.Name)
		case c.Verdict != OK && c.Required:
			out = append(out, c.Name+" (not checked)")
		}
	}
	return out
}

// Value is one value that a register may hold.
type Value struct {
	Digest []byte
	Name   string // what it is for: "4 vCPUs, EPYC-v4"
}

// Register is all that is expected of one register.
type Register struct {
	Values []Value
	Reason string // why there are none
}

// MalformedError is evidence that no firmware writes.
type MalformedError struct {
	Object  string // "report"
	Offset  int    // in bytes
	Problem string
}

func (e *MalformedError) Error() string {
	return fmt.Sprintf("verify: %s: offset %#x: %s", e.Object, e.Offset, e.Problem)
}

func malformed(object string, offset int, format string, a ...any) error {
	return &MalformedError{object, offset, fmt.Sprintf(format, a...)}
}

// checks collects.
type checks []Check

func (c *checks) result(platform, evidence string) *Result {
	r := &Result{Platform: platform, Evidence: evidence, Checks: *c}
	r.OK = len(r.Failures()) == 0
	return r
}

// add records a check that was made.
func (c *checks) add(name, got, want string, ok bool) *Check {
	v := Failed
	if ok {
		v = OK
	}
	*c = append(*c, Check{Name: name, Verdict: v, Got: got, Want: want})
	return &(*c)[len(*c)-1]
}

// skip records one that was not.
func (c *checks) skip(name, got, reason string) *Check {
	*c = append(*c, Check{Name: name, Verdict: NotChecked, Got: got, Reason: reason})
	return &(*c)[len(*c)-1]
}

// fault records a check whose outcome is an error.
func (c *checks) fault(name, got, want string, err error) *Check {
	x := c.add(name, got, want, err == nil)
	if err != nil {
		x.Reason = err.Error()
	}
	return x
}

// equal compares bytes. Without an expectation it says why nothing was compared.
func (c *checks) equal(name string, got, want []byte, missing string) *Check {
	if want == nil {
		return c.skip(name, hex.EncodeToString(got), missing)
	}
	return c.add(name, hex.EncodeToString(got), hex.EncodeToString(want), bytes.Equal(got, want))
}

// flags compares a number whose bits have names.
func (c *checks) flags(name string, got uint64, want *uint64, describe func(uint64) string, missing string) *Check {
	text := fmt.Sprintf("%#x (%s)", got, describe(got))
	if want == nil {
		return c.skip(name, text, missing)
	}
	return c.add(name, text, fmt.Sprintf("%#x (%s)", *want, describe(*want)), got == *want)
}

// register compares a measurement with every value it may have and names those
// that it has.
func (c *checks) register(name string, got []byte, want Register, required bool) {
	text := hex.EncodeToString(got)
	var x *Check
	switch matching := want.matching(got); {
	case len(want.Values) == 0:
		reason := want.Reason
		if reason == "" {
			reason = "no value is expected"
		}
		x = c.skip(name, text, reason)
	case len(matching) > 0:
		x = c.add(name, text, text, true)
		x.Reason = strings.Join(matching, "; ")
	default:
		x = c.add(name, text, want.String(), false)
		x.Reason = want.Reason
	}
	x.Required = required
}

func (r *Register) matching(got []byte) (names []string) {
	for _, v := range r.Values {
		if bytes.Equal(v.Digest, got) {
			names = append(names, v.Name)
		}
	}
	return names
}

// String lists the values, one that several names share only once.
func (r *Register) String() string {
	var order []string
	names := map[string][]string{}
	for _, v := range r.Values {
		d := hex.EncodeToString(v.Digest)
		if names[d] == nil {
			order = append(order, d)
		}
		names[d] = append(names[d], v.Name)
	}
	for i, d := range order {
		if n := strings.Join(names[d], "; "); n != "" {
			order[i] = fmt.Sprintf("%s (%s)", d, n)
		}
	}
	return strings.Join(order, " or ")
}

// bitNames lists the names of the bits that are set, lowest first.
func bitNames(v uint64, names map[int]string) (out []string) {
	for i := range 64 {
		if v>>i&1 == 0 {
			continue
		}
		name := names[i]
		if name == "" {
			name = fmt.Sprintf("bit %d", i)
		}
		out = append(out, name)
	}
	return out
}

// notZero returns the index of the first byte that is not zero, -1 for none.
func notZero(b []byte) int {
	for i, x := range b {
		if x != 0 {
			return i
		}
	}
	return -1
}
