package refvalue

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Verdict is what a set makes of one condition.
type Verdict string

// The verdicts.
const (
	Met      Verdict = "met"      // by a value of the set, or by what the images fix
	Missing  Verdict = "missing"  // the set has no such value: the policy compares with null
	Unfit    Verdict = "unfit"    // it has one that no claim can equal: a list for ==, a text for a number
	Broken   Verdict = "broken"   // an image fixes the claim to what the policy refuses
	Evidence Verdict = "evidence" // the guest's evidence decides: no reference value has a part in it
)

// A Report says what the policy will make of guests that a set describes.
type Report struct {
	TEE        TEE      `json:"tee"`
	Policy     string   `json:"policy"` // commit
	Conditions []Result `json:"conditions"`

	// Vector is the best that a guest of the images can come to, by element of the
	// trust vector, where its evidence is genuine and its platform as the set says.
	Vector map[string]int `json:"vector"`

	Unknown []Unknown `json:"unknown"` // names that the policy does not read
	Own     []Own     `json:"own"`     // those of them that are for a policy of one's own
	Trivial []Nothing `json:"trivial"` // values that say nothing of an image
}

// A Result is one condition and what meets it.
type Result struct {
	Condition
	Verdict Verdict `json:"verdict"`
	Why     string  `json:"why"` // for people: what meets it, or what is wrong
	Value   *Value  `json:"value,omitempty"`
}

// An Unknown is a name that the policy does not read for the TEE.
type Unknown struct {
	Name    string `json:"name"`
	For     []TEE  `json:"for,omitempty"`     // those for which it is read
	Suggest string `json:"suggest,omitempty"` // the nearest name that is read
}

// Nothing is a value that says nothing of an image.
type Nothing struct {
	Name string `json:"name"`
	Why  string `json:"why"`
	Weak bool   `json:"weak"` // it does say which firmware runs, or what the images have in common
}

// OK tells whether the policy accepts the guests: no element of the trust vector
// warns, no name is unknown, no value unfit, and none that says nothing is there.
func (r *Report) OK() bool {
	for _, v := range r.Vector {
		if v >= 32 {
			return false
		}
	}
	return len(r.Unknown) == 0 &&
		!slices.ContainsFunc(r.Conditions, func(c Result) bool { return c.Verdict == Unfit || c.Verdict == Broken }) &&
		!slices.ContainsFunc(r.Trivial, func(n Nothing) bool { return !n.Weak })
}

// Missing returns the names that the policy reads and the set does not have.
func (r *Report) Missing() (out []string) {
	for _, c := range r.Conditions {
		if c.Verdict == Missing && !slices.Contains(out, c.Reference) {
			out = append(out, c.Reference)
		}
	}
	return out
}

// Check holds a set against the conditions of the policy. Of a set that does not
// say which TEE it is for, it is taken to be the one whose names it has most of.
func Check(s *Set) *Report {
	r := &Report{TEE: s.TEE, Policy: PolicyCommit, Conditions: []Result{}, Vector: map[string]int{}, Unknown: []Unknown{}, Own: []Own{}, Trivial: []Nothing{}}
	if r.TEE == "" {
		r.TEE = Guess(s)
	}
	for _, c := range Conditions(r.TEE) {
		r.Conditions = append(r.Conditions, s.result(c))
	}
	for _, e := range Elements {
		r.Vector[e] = r.element(e)
	}
	read := Names(r.TEE)
	for _, v := range s.Values {
		if o, ok := own(r.TEE, v); ok {
			r.Own = append(r.Own, o)
			r.nothing(v, true)
			continue
		}
		if !slices.Contains(read, v.Name) {
			r.Unknown = append(r.Unknown, unknown(v.Name, read))
		}
		r.nothing(v, false)
	}
	return r
}

// Guess returns the TEE most of whose names the set has.
func Guess(s *Set) TEE {
	best, most := SNP, -1
	for _, t := range TEEs {
		read, n := Names(t), 0
		for _, v := range s.Values {
			if slices.Contains(read, v.Name) {
				n++
			}
		}
		if n > most || n == most && len(read) < len(Names(best)) {
			best, most = t, n
		}
	}
	return best
}

// result is the verdict on one condition.
func (s *Set) result(c Condition) Result {
	if c.Reference == "" {
		return s.fixed(c)
	}
	v, ok := s.Value(c.Reference)
	if !ok {
		return Result{Condition: c, Verdict: Missing, Why: s.whyMissing(c)}
	}
	r := Result{Condition: c, Verdict: Met, Value: &v}
	switch {
	case len(v.Any) == 0:
		r.Verdict, r.Why = Unfit, "the list is empty"
	case c.Op == Equal && !v.Scalar:
		r.Verdict, r.Why = Unfit, "a list: the policy compares with ==, which wants the value alone"
	case c.Op == In && v.Scalar:
		r.Verdict, r.Why = Unfit, "not a list: the policy looks in one"
	default:
		if bad := misspelt(c.Reference, v.Any); bad != "" {
			r.Verdict, r.Why = Unfit, bad
			break
		}
		r.Why = v.origin()
	}
	return r
}

// misspelt names the first value that no claim can equal.
func misspelt(name string, values []any) string {
	for _, x := range values {
		if err := kindOf(name).check(x); err != nil {
			return err.Error()
		}
	}
	return ""
}

// fixed is the verdict on a condition without a reference value.
func (s *Set) fixed(c Condition) Result {
	r := Result{Condition: c, Verdict: Evidence, Why: "the guest's evidence decides"}
	for _, f := range s.Facts {
		if f.Claim != c.Claim {
			continue
		}
		if f.Value != c.Want {
			r.Verdict, r.Why = Broken, fmt.Sprintf("image %s has it %v", f.Image, f.Value)
			break
		}
		r.Verdict, r.Why = Met, "the images say so"
	}
	return r
}

// whyMissing says why there is no value for c, and who knows it.
func (s *Set) whyMissing(c Condition) string {
	var out []string
	for _, l := range s.Left {
		if l.Name == c.Reference {
			out = append(out, strings.TrimPrefix(l.Image+": "+l.Reason, ": "))
		}
	}
	if len(out) > 0 {
		return strings.Join(out, "; ")
	}
	if from := whence(c); from != "" {
		return "no image decides it: " + from
	}
	return "no image gives it"
}

// origin says where the values come from, each image and register once.
func (v *Value) origin() string {
	var out []string
	for _, f := range v.From {
		text := f.Register
		if f.Image != "" {
			text = f.Image + ": " + f.Register
		}
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	if len(out) == 0 {
		return "as it was read"
	}
	return strings.Join(out, ", ")
}

// element returns what one element of the trust vector becomes: the first rule
// whose conditions hold decides.
func (r *Report) element(trust string) int {
	if v, ok := given[r.TEE][trust]; ok {
		return v
	}
	holds, order := map[int]bool{}, []int{}
	for _, c := range r.Conditions {
		if c.Trust != trust {
			continue
		}
		if _, ok := holds[c.Vector]; !ok {
			holds[c.Vector], order = true, append(order, c.Vector)
		}
		if c.Verdict != Met && c.Verdict != Evidence {
			holds[c.Vector] = false
		}
	}
	for _, v := range order {
		if holds[v] {
			return v
		}
	}
	return Unmet[trust]
}

func unknown(name string, read []string) Unknown {
	u := Unknown{Name: name}
	for _, t := range TEEs {
		if slices.Contains(Names(t), name) {
			u.For = append(u.For, t)
		}
	}
	if u.For == nil {
		u.Suggest = suggest(name, read)
	}
	if u.For == nil && u.Suggest == "" {
		u.Suggest = suggest(name, slices.Sorted(maps.Keys(names)))
	}
	return u
}

// nothing notes a value that says nothing. own is for a policy of one's own, which may
// want just that: a register that nothing extends.
func (r *Report) nothing(v Value, own bool) {
	if v.Trivial != "" {
		r.Trivial = append(r.Trivial, Nothing{Name: v.Name, Why: v.Trivial, Weak: own || strings.HasPrefix(v.Trivial, sameForAll)})
		return
	}
	for _, x := range v.Any {
		text, _ := x.(string)
		for _, bank := range []string{"sha1", "sha256", "sha384", "sha512"} {
			if why := TrivialDigest(bank, strings.ToLower(text)); why != "" {
				r.Trivial = append(r.Trivial, Nothing{Name: v.Name, Why: why, Weak: own})
				return
			}
		}
	}
}
