package oracle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/types"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/refvalue"
)

// policySum is the SHA-256 of the policy at refvalue.PolicyCommit.
const policySum = "1435d1f79d18e4e6d3defac9e246b35ba124b88bef4dc9cd07a07051a09bbb66"

// policyText returns Trustee's default policy for CPUs from PLINTH_TRUSTEE, a
// checkout of the repository or its git directory.
func policyText(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("PLINTH_TRUSTEE")
	if dir == "" {
		testenv.Missing(t, "trustee", "PLINTH_TRUSTEE names no checkout of github.com/confidential-containers/trustee")
	}
	b, err := os.ReadFile(filepath.Join(dir, refvalue.PolicyPath))
	if err != nil {
		b, err = exec.Command("git", "--git-dir="+dir, "show", refvalue.PolicyCommit+":"+refvalue.PolicyPath).Output()
	}
	if err != nil {
		t.Fatalf("PLINTH_TRUSTEE: %s: neither a checkout nor a git directory with %s", dir, refvalue.PolicyCommit)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(b)); sum != policySum {
		t.Logf("the policy in %s is not that of %s: its sha256 is %s", dir, refvalue.PolicyCommit, sum)
	}
	return string(b)
}

// A judge runs the policy as Trustee's attestation service does: the reference
// value of a name that is not there is null.
type judge struct {
	query  rego.PreparedEvalQuery
	values map[string]any // of the set that is judged by
}

func newJudge(t *testing.T) *judge {
	t.Helper()
	j := &judge{}
	query := rego.New(
		rego.Query("data.policy.trust_claims"),
		rego.Module("policy.rego", policyText(t)),
		rego.Function1(&rego.Function{Name: "query_reference_value", Decl: types.NewFunction(types.Args(types.S), types.A)},
			func(_ rego.BuiltinContext, name *ast.Term) (*ast.Term, error) {
				var s string
				if err := ast.As(name.Value, &s); err != nil {
					return nil, err
				}
				v, err := ast.InterfaceToValue(j.values[s])
				return ast.NewTerm(v), err
			}),
	)
	var err error
	if j.query, err = query.PrepareForEval(context.Background()); err != nil {
		t.Fatal(err)
	}
	return j
}

// vector returns the elements of the trust vector that the table knows.
func (j *judge) vector(t *testing.T, s *refvalue.Set, evidence map[string]any) map[string]int {
	t.Helper()
	j.values = map[string]any{}
	for _, v := range s.Values {
		if j.values[v.Name] = any(v.Any); v.Scalar {
			j.values[v.Name] = v.Any[0]
		}
	}
	result, err := j.query.Eval(context.Background(), rego.EvalInput(evidence))
	if err != nil || len(result) != 1 {
		t.Fatalf("policy: %v, %v", result, err)
	}
	claims := result[0].Expressions[0].Value.(map[string]any)
	out := map[string]int{}
	for _, e := range refvalue.Elements {
		if _, err := fmt.Sscan(fmt.Sprint(claims[e]), new(int)); err != nil {
			t.Fatalf("%s is %v", e, claims[e])
		}
		n := 0
		fmt.Sscan(fmt.Sprint(claims[e]), &n)
		out[e] = n
	}
	return out
}

// A guest is what the evidence of one shows, by the claim of the table.
type guest struct {
	tee    refvalue.TEE
	claims map[string]any
}

// newGuest draws claims that meet each constant of the policy.
func newGuest(r *rand.Rand, tee refvalue.TEE) *guest {
	g := &guest{tee, map[string]any{}}
	for _, c := range refvalue.Conditions(tee) {
		if c.Reference == "" {
			g.claims[c.Claim] = c.Want
		} else if _, ok := g.claims[c.Claim]; !ok {
			g.claims[c.Claim] = draw(r, tee, c.Reference)
		}
	}
	return g
}

// draw returns a value as the verifier for the TEE spells the claim. It is written
// from the verifiers' source, not from the table of refvalue.
func draw(r *rand.Rand, tee refvalue.TEE, name string) any {
	digest := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return hex.EncodeToString(b)
	}
	var v any
	switch {
	case name == "xfam":
		return digest(8)
	case strings.HasSuffix(name, "_pcr11"):
		return digest(32)
	case name == "measurement":
		return "/" + strings.Repeat("WxYz", 15) + string(rune('A'+r.IntN(26))) + "yz"
	case name == "trusted_aks":
		return fmt.Sprintf("MII%c", 'B'+r.IntN(20))
	case name == "snp_launch_measurement", strings.HasPrefix(name, "mr_"), strings.HasPrefix(name, "rtmr_"), strings.HasPrefix(name, "tdvf"):
		return digest(48)
	case strings.Contains(name, "smt"), strings.Contains(name, "tsme"), strings.Contains(name, "single_socket"):
		v = r.IntN(2) == 0
	default:
		v = int64(r.IntN(256))
	}
	if tee == refvalue.AzSNP {
		return fmt.Sprint(v)
	}
	return v
}

// other returns a value of the same kind that is not v.
func other(r *rand.Rand, tee refvalue.TEE, name string, v any) any {
	for {
		if o := draw(r, tee, name); o != v {
			return o
		}
	}
}

// evidence builds the input of the policy.
func (g *guest) evidence() map[string]any {
	root := map[string]any{string(g.tee): map[string]any{}}
	var log []any
	for claim, v := range g.claims {
		path, what, isEvent := strings.Cut(claim, ": ")
		if isEvent {
			log = append(log, logEvent(what, v))
			continue
		}
		at := root
		parts := strings.Split(path, ".")
		for _, p := range parts[:len(parts)-1] {
			if at[p] == nil {
				at[p] = map[string]any{}
			}
			at = at[p].(map[string]any)
		}
		at[parts[len(parts)-1]] = v
	}
	if log != nil {
		root["tdx"].(map[string]any)["uefi_event_logs"] = log
	}
	return root
}

// logEvent is one event as Trustee's verifier for TDX shows it.
func logEvent(what string, digest any) map[string]any {
	details := map[string]any{"string": "LOADED_IMAGE::LoadOptions"}
	typ, _, _ := strings.Cut(what, " ")
	if strings.Contains(what, "File(kernel)") {
		details = map[string]any{"device_paths": []any{"VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7,)", "File(kernel)"}}
	}
	return map[string]any{"type_name": typ, "details": details, "index": 2, "digests": []any{map[string]any{"alg": "SHA-384", "digest": digest}}}
}

// accepting returns a set that accepts the guest in every line of the policy.
func (g *guest) accepting() *refvalue.Set {
	s := &refvalue.Set{TEE: g.tee}
	for _, name := range refvalue.Names(g.tee) {
		i := slices.IndexFunc(refvalue.Conditions(g.tee), func(c refvalue.Condition) bool { return c.Reference == name })
		c := refvalue.Conditions(g.tee)[i]
		s.Values = append(s.Values, refvalue.Value{Name: name, Scalar: c.Op == refvalue.Equal, Any: []any{g.claims[c.Claim]}})
	}
	return s
}

// claimOf returns the claim that a reference value is compared with.
func claimOf(tee refvalue.TEE, name string) string {
	for _, c := range refvalue.Conditions(tee) {
		if c.Reference == name {
			return c.Claim
		}
	}
	return ""
}

// seen returns the set as it counts for the guest: what does not have the guest's
// value is as good as missing. What the constants compare with becomes a fact.
func (g *guest) seen(s *refvalue.Set) *refvalue.Set {
	out := &refvalue.Set{TEE: s.TEE}
	for _, v := range s.Values {
		if slices.Contains(v.Any, g.claims[claimOf(g.tee, v.Name)]) {
			out.Values = append(out.Values, v)
		}
	}
	for _, c := range refvalue.Conditions(g.tee) {
		if c.Reference == "" {
			out.Facts = append(out.Facts, refvalue.Fact{Image: "guest", Claim: c.Claim, Value: g.claims[c.Claim]})
		}
	}
	return out
}

// agree compares the policy with the table.
func (j *judge) agree(t *testing.T, what string, g *guest, s *refvalue.Set) map[string]int {
	t.Helper()
	got, want := refvalue.Check(g.seen(s)).Vector, j.vector(t, s, g.evidence())
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s, %s: the table comes to %v, the policy to %v\nset %+v\nevidence %v", g.tee, what, got, want, s.Values, g.claims)
	}
	return want
}

const policySeed = 20260821

// Every condition, with a twin that fails in it alone.
func TestPolicyConditions(t *testing.T) {
	j := newJudge(t)
	r := rand.New(rand.NewPCG(policySeed, 1))
	for _, tee := range refvalue.TEEs {
		g := newGuest(r, tee)
		best := j.agree(t, "all met", g, g.accepting())
		for e, n := range best {
			if !refvalue.Affirming(n) && !(tee == refvalue.TPM && e == refvalue.Configuration && n == 0) {
				t.Errorf("%s: a set that meets everything leaves %s at %d", tee, e, n)
			}
		}
		for _, c := range refvalue.Conditions(tee) {
			if c.Reference == "" {
				bad := &guest{tee, maps.Clone(g.claims)}
				if bad.claims[c.Claim] = "other"; c.Want == false {
					bad.claims[c.Claim] = true
				}
				if reflect.DeepEqual(j.agree(t, c.Claim, bad, bad.accepting()), best) {
					t.Errorf("%s: %s makes no difference", tee, c.Claim)
				}
				continue
			}
			for what, spoil := range map[string]func(*refvalue.Value){
				"another value": func(v *refvalue.Value) { v.Any = []any{other(r, tee, c.Reference, v.Any[0])} },
				"another form":  func(v *refvalue.Value) { v.Scalar = !v.Scalar },
				"absent":        func(v *refvalue.Value) { v.Name = "absent" },
				"misspelt":      func(v *refvalue.Value) { v.Name = strings.Replace(v.Name, "_", "-", 1) + "s" },
				"another type": func(v *refvalue.Value) {
					if s, ok := v.Any[0].(string); ok {
						v.Any[0] = strings.ToLower(s) + " "
					} else {
						v.Any[0] = fmt.Sprint(v.Any[0])
					}
				},
			} {
				s := g.accepting()
				i := slices.IndexFunc(s.Values, func(v refvalue.Value) bool { return v.Name == c.Reference })
				spoil(&s.Values[i])
				slices.SortFunc(s.Values, func(a, b refvalue.Value) int { return strings.Compare(a.Name, b.Name) })
				if reflect.DeepEqual(j.agree(t, c.Reference+", "+what, g, s), best) {
					t.Errorf("%s: %s: %s makes no difference", tee, c.Reference, what)
				}
			}
		}
	}
}

// 200 sets with any of their values absent, of another guest, one of several, or
// in the wrong form.
func TestPolicyOverSets(t *testing.T) {
	j := newJudge(t)
	r := rand.New(rand.NewPCG(policySeed, 2))
	counted := map[string]int{}
	for n := range 200 {
		tee := refvalue.TEEs[n%len(refvalue.TEEs)]
		g := newGuest(r, tee)
		if r.IntN(4) == 0 {
			spoilConstant(r, g)
		}
		s := g.accepting()
		odds := 1 + r.IntN(40)
		s.Values = slices.DeleteFunc(s.Values, func(refvalue.Value) bool { return r.IntN(odds) == 0 && odds > 5 })
		for i := range s.Values {
			v := &s.Values[i]
			switch r.IntN(odds) {
			case 0:
				v.Any = []any{other(r, tee, v.Name, v.Any[0])}
			case 1:
				v.Scalar = !v.Scalar
			default:
				if !v.Scalar {
					v.Any = append(v.Any, other(r, tee, v.Name, v.Any[0]))
				}
			}
		}
		counted[fmt.Sprint(j.agree(t, fmt.Sprint("set ", n), g, s))]++
	}
	if len(counted) < 8 {
		t.Errorf("only %d different vectors: %v", len(counted), counted)
	}
	t.Logf("seed %d: %v", policySeed, counted)
}

func spoilConstant(r *rand.Rand, g *guest) {
	var constants []refvalue.Condition
	for _, c := range refvalue.Conditions(g.tee) {
		if c.Reference == "" {
			constants = append(constants, c)
		}
	}
	if len(constants) == 0 {
		return
	}
	c := constants[r.IntN(len(constants))]
	if g.claims[c.Claim] = "other"; c.Want == false {
		g.claims[c.Claim] = true
	}
}

var queried = regexp.MustCompile(`(?m)^[^#\n]*query_reference_value\("([^"]+)"\)`)

// The policy reads no name that the table does not have, sample evidence aside.
func TestPolicyNames(t *testing.T) {
	var read, known []string
	for _, m := range queried.FindAllStringSubmatch(policyText(t), -1) {
		read = append(read, m[1])
	}
	known = append(known, "launch_digest", "svn", "major_version", "minimum_minor_version") // of Trustee's sample TEE
	for _, tee := range refvalue.TEEs {
		known = append(known, refvalue.Names(tee)...)
	}
	for _, list := range []*[]string{&read, &known} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if !slices.Equal(read, known) {
		t.Errorf("the policy reads %v\nthe table has    %v", read, known)
	}
}
