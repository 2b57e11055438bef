package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/plinth-os/plinth/measure/refvalue"
)

// A judgement is what --check and --diff say with --json.
type judgement struct {
	Check *refvalue.Report  `json:"check,omitempty"`
	Diff  []refvalue.Change `json:"diff,omitempty"`
}

// judge prints what --check and --diff ask for, to stderr where stdout has the
// form. It fails when the policy would not accept the guests.
func (c *common) judge(v *valueSet, f *exportFlags) error {
	if !f.check { // which says the same
		c.remark(v)
	}
	if !f.check && f.diff == "" {
		return nil
	}
	var j judgement
	if f.check {
		j.Check = refvalue.Check(v.Set)
	}
	if f.diff != "" {
		old, err := readOld(f.diff)
		if err != nil {
			return err
		}
		j.Diff = refvalue.Diff(old, v.Set)
	}
	w := c.env.stdout
	if f.to != "" {
		w = c.env.stderr
	}
	if err := c.printJudgement(w, &j, f); err != nil {
		return err
	}
	if j.Check != nil && !j.Check.OK() {
		return notAccepted(j.Check)
	}
	return nil
}

// remark says on stderr what is not in the set, and what in it says nothing.
func (c *common) remark(v *valueSet) {
	if c.quiet {
		return
	}
	for _, l := range v.Left {
		fmt.Fprintf(c.env.stderr, "plinth: left out: %s: %s\n", l.Name, strings.TrimPrefix(l.Image+": "+l.Reason, ": "))
	}
	for _, x := range v.Values {
		if x.Trivial != "" {
			fmt.Fprintf(c.env.stderr, "plinth: %s: %s\n", x.Name, x.Trivial)
		}
	}
	for _, o := range v.Owns() {
		printOwn(c.env.stderr, "plinth: ", o)
	}
}

// printOwn says how a policy asks for a value that the default one does not read.
func printOwn(w io.Writer, before string, o refvalue.Own) {
	fmt.Fprintf(w, "%s%s: the default policy does not read it; one's own does by\n", before, o.Name)
	fmt.Fprintf(w, "  in an attestation policy: %s\n", o.Attestation)
	fmt.Fprintf(w, "  in a resource policy, which has no reference values: %s\n", o.Resource)
}

// readOld reads an older set.
func readOld(path string) (*refvalue.Set, error) {
	b, err := readLimited(path, maxValues)
	if err != nil {
		return nil, err
	}
	s, err := refvalue.ParseRVPS(b)
	if err != nil {
		return nil, usageError{fmt.Errorf("--diff %s: %w", path, err)}
	}
	return s, nil
}

// notAccepted says in one line what is wrong.
func notAccepted(r *refvalue.Report) error {
	e := &policyError{missing: missed(r)}
	var parts []string
	if len(e.missing) > 0 {
		parts = append(parts, "no value for "+strings.Join(e.missing, ", "))
	}
	for _, x := range r.Conditions {
		if x.Verdict == refvalue.Unfit || x.Verdict == refvalue.Broken {
			parts = append(parts, fmt.Sprintf("%s: %s", cmp.Or(x.Reference, x.Claim), x.Why))
		}
	}
	for _, u := range r.Unknown {
		parts = append(parts, "nobody reads "+u.Name)
	}
	for _, n := range r.Trivial {
		if !n.Weak {
			parts = append(parts, fmt.Sprintf("%s says nothing of the image: %s", n.Name, n.Why))
		}
	}
	e.error = fmt.Errorf("the default policy of Trustee would not accept the guests: %s", strings.Join(parts, "; "))
	return mismatchError{e}
}

// missed are the names without a value that keep an element of the trust vector
// from affirming; one may do so by a rule that asks for less.
func missed(r *refvalue.Report) (out []string) {
	for _, x := range r.Conditions {
		if x.Verdict == refvalue.Missing && !refvalue.Affirming(r.Vector[x.Trust]) && !slices.Contains(out, x.Reference) {
			out = append(out, x.Reference)
		}
	}
	return out
}

// policyError is a set that the policy does not accept.
type policyError struct {
	error
	missing []string
}

// Hint says what to do.
func (e *policyError) Hint() string {
	if len(e.missing) == 0 {
		return ""
	}
	if slices.Equal(e.missing, []string{akName}) {
		return "the attestation key of a guest's TPM is given with --ak FILE, or with --platform-value NAME=VALUE"
	}
	return "what no image decides is given with --platform-value NAME=VALUE or --platform-values FILE"
}

func (c *common) printJudgement(w io.Writer, j *judgement, f *exportFlags) error {
	if c.json {
		return printJSON(w, j)
	}
	if j.Check != nil {
		if err := printPolicy(w, j.Check); err != nil {
			return err
		}
	}
	if f.diff != "" {
		return printChanges(w, j.Diff)
	}
	return nil
}

// printPolicy prints a row for each condition, then what becomes of the guest.
func printPolicy(w io.Writer, r *refvalue.Report) error {
	fmt.Fprintf(w, "%s, by Trustee's default policy at %.12s\n\n", r.TEE, r.Policy)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range r.Conditions {
		against := cmp.Or(x.Reference, fmt.Sprint(x.Want))
		fmt.Fprintf(t, "%s\t%s %d\t%s %s %s\t%s\n", x.Verdict, x.Trust, x.Vector, x.Claim, x.Op, against, x.Why)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, u := range r.Unknown {
		fmt.Fprintf(w, "unknown: %s: %s\n", u.Name, whyUnknown(r.TEE, u))
	}
	for _, o := range r.Own {
		printOwn(w, "your own: ", o)
	}
	for _, n := range r.Trivial {
		fmt.Fprintf(w, "says nothing: %s: %s\n", n.Name, n.Why)
	}
	var vector []string
	for _, e := range refvalue.Elements {
		vector = append(vector, fmt.Sprintf("%s %d", e, r.Vector[e]))
	}
	_, err := fmt.Fprintf(w, "\ntrust vector at best: %s\n", strings.Join(vector, ", "))
	return err
}

func whyUnknown(tee refvalue.TEE, u refvalue.Unknown) string {
	var others []string
	for _, t := range u.For {
		if t != tee {
			others = append(others, string(t))
		}
	}
	switch {
	case len(others) > 0:
		return "read for " + strings.Join(others, ", ") + " only"
	case u.Suggest != "":
		return "the policy reads no such name; did you mean " + u.Suggest + "?"
	}
	return "the policy reads no such name"
}

// printChanges prints a line for each value that came or went.
func printChanges(w io.Writer, changes []refvalue.Change) error {
	if len(changes) == 0 {
		_, err := fmt.Fprintln(w, "the same values")
		return err
	}
	for _, x := range changes {
		head := strings.TrimPrefix(x.Name+": "+x.What, ": ")
		if x.Note != "" {
			head += ": " + x.Note
		}
		fmt.Fprintln(w, head)
		for _, side := range []struct {
			sign   string
			values []any
		}{{"-", x.Removed}, {"+", x.Added}} {
			for _, value := range side.values {
				fmt.Fprintf(w, "  %s %v\n", side.sign, value)
			}
		}
	}
	return nil
}
