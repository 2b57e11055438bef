// Package refvalue turns predictions into the reference values that a verifier's
// policy reads, and says beforehand what the policy makes of them.
//
// The policy is Trustee's default one for CPUs: conditions.go holds its conditions.
// Nothing here asks a verifier, and what a signature, a collateral or a genuine
// device decides is said to be so, never assumed.
package refvalue

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/plinth-os/plinth/measure"
)

// Errors that a caller may want to tell apart.
var (
	ErrUnfit    = errors.New("the image has no such measurements") // a TEE that it is not for
	ErrVolatile = errors.New("not to be relied upon")              // a register without which the policy accepts nothing
	ErrTrivial  = errors.New("says nothing of the image")          // the same, with a value that every image has
	ErrPlatform = errors.New("not a value of the platform")        // a name or value in Platform
)

// An Image is one built image whose values are wanted.
type Image struct {
	Label        string // names it in a Set: "vtpm", "vtpm@1.2"
	Measurements *measure.Measurements

	// Phase is when PCR 11 is read: the phases passed, joined by ":", as
	// measurements.json has them. "" is the last point that the agent comes to,
	// NoPhase the one before it starts.
	Phase string

	// Asks tells that the guest asks a broker for secrets: the agent as soon as it has
	// left the initrd, programs once the boot is over. PCR 11 is read at both points,
	// where Phase says no other.
	Asks bool
	// PCRs are registers that a policy of one's own will ask for.
	PCRs []int
}

// NoPhase is the point at which userspace has extended nothing.
const NoPhase = "none"

// Platform is what no image decides, by the name of the reference value: TCB
// versions, SMT, attestation keys. Values are string, int64 or bool.
type Platform map[string][]any

// A Set is what a verifier is to accept.
type Set struct {
	TEE     TEE       `json:"tee"` // "" when it was read from a form that does not say
	Expires time.Time `json:"expires,omitzero"`
	Values  []Value   `json:"values"` // by name
	Left    []Left    `json:"left"`   // what is not in it, by name and image
	Facts   []Fact    `json:"facts"`  // of the images, by claim
}

// A Value is one named reference value.
type Value struct {
	Name    string `json:"name"`
	Scalar  bool   `json:"scalar"`            // the policy compares it with ==; else it looks in a list
	Any     []any  `json:"any"`               // string, int64 or bool; sorted, each once
	From    []From `json:"from"`              // in the order of the images; none for what was read
	Trivial string `json:"trivial,omitempty"` // why it says nothing of the image; "" when it does
}

// From says where one value comes from.
type From struct {
	Image    string `json:"image"`           // label; "" is the platform
	Register string `json:"register"`        // "pcr11", or what else of measurements.json: "snp.policy"
	Bank     string `json:"bank"`            // "" for what is not a digest
	Phase    string `json:"phase,omitempty"` // of PCR 11
	For      string `json:"for,omitempty"`   // machine shape and vCPU model, where they matter
	Value    string `json:"value"`           // as text
}

// Left is a value that an image cannot give.
type Left struct {
	Name     string `json:"name"`
	Image    string `json:"image"` // label; "" when no single one is the reason
	Register string `json:"register"`
	Reason   string `json:"reason"`
}

// A Fact is what an image fixes of a claim that the policy compares with a
// constant: whether a debugger may look into the guest.
type Fact struct {
	Image string `json:"image"`
	Claim string `json:"claim"`
	Value any    `json:"value"`
}

// New returns what a verifier is to accept so that guests of these images, and of
// no others, pass. Several images make one set, for the time in which one
// replaces the other. Expires is said along where a form has room for it.
//
// Of a register that is one of several, all go in. One that cannot be relied upon
// is left out; where the policy accepts no guest without it, that is ErrVolatile.
func New(tee TEE, images []Image, p Platform, expires time.Time) (*Set, error) {
	if _, err := ParseTEE(string(tee)); err != nil {
		return nil, err
	}
	if len(images) == 0 {
		return nil, errors.New("refvalue: no image")
	}
	b := &gatherer{set: &Set{TEE: tee, Expires: expires, Values: []Value{}, Left: []Left{}, Facts: []Fact{}}}
	for i, image := range images {
		switch {
		case image.Label == "":
			return nil, fmt.Errorf("refvalue: image %d has no label", i)
		case image.Measurements == nil:
			return nil, fmt.Errorf("refvalue: %s: no measurements", image.Label)
		case slices.ContainsFunc(images[:i], func(o Image) bool { return o.Label == image.Label }):
			return nil, fmt.Errorf("refvalue: two images are called %q", image.Label)
		}
		if err := b.image(image); err != nil {
			return nil, fmt.Errorf("refvalue: %s: %w", image.Label, err)
		}
	}
	if err := b.platform(p); err != nil {
		return nil, fmt.Errorf("refvalue: %w", err)
	}
	if err := b.finish(images); err != nil {
		return nil, fmt.Errorf("refvalue: %w", err)
	}
	return b.set, nil
}

// Value returns the named one.
func (s *Set) Value(name string) (Value, bool) {
	i, ok := slices.BinarySearchFunc(s.Values, name, func(v Value, n string) int { return strings.Compare(v.Name, n) })
	if !ok {
		return Value{}, false
	}
	return s.Values[i], true
}

// Compared returns what the policy gets for v: the scalar, or the list.
func (v Value) Compared() any {
	if v.Scalar && len(v.Any) == 1 {
		return v.Any[0]
	}
	return v.Any
}

// put adds one value under its name.
func (s *Set) put(name string, scalar bool, value any, from From) {
	i, ok := slices.BinarySearchFunc(s.Values, name, func(v Value, n string) int { return strings.Compare(v.Name, n) })
	if !ok {
		s.Values = slices.Insert(s.Values, i, Value{Name: name, Scalar: scalar, Any: []any{}, From: []From{}})
	}
	v := &s.Values[i]
	if !slices.Contains(v.From, from) {
		v.From = append(v.From, from)
	}
	if j, ok := slices.BinarySearchFunc(v.Any, value, compareAny); !ok {
		v.Any = slices.Insert(v.Any, j, value)
	}
}

// compareAny orders values: booleans, numbers, texts.
func compareAny(a, b any) int {
	if c := cmp.Compare(rank(a), rank(b)); c != 0 {
		return c
	}
	switch a := a.(type) {
	case int64:
		return cmp.Compare(a, b.(int64))
	case string:
		return strings.Compare(a, b.(string))
	case bool:
		return cmp.Compare(asInt(a), asInt(b.(bool)))
	}
	return 0
}

func rank(v any) int {
	switch v.(type) {
	case bool:
		return 0
	case int64:
		return 1
	}
	return 2
}

func asInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
