package refvalue

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The table is one: every name has a kind, every kind a condition, and a name is
// compared in one way for a TEE.
func TestConditionsTable(t *testing.T) {
	seen := map[string]bool{}
	for _, tee := range TEEs {
		ops := map[string]string{}
		for _, c := range Conditions(tee) {
			if _, ok := Unmet[c.Trust]; !ok || !Affirming(c.Vector) {
				t.Errorf("%s, %s: %s = %d", tee, c.Claim, c.Trust, c.Vector)
			}
			if !strings.HasPrefix(c.Claim, string(tee)+".") || (c.Reference == "") == (c.Want == nil) {
				t.Errorf("%s: %+v", tee, c)
			}
			if c.Reference == "" {
				continue
			}
			seen[c.Reference] = true
			if _, ok := names[c.Reference]; !ok {
				t.Errorf("%s: no kind", c.Reference)
			}
			if op, ok := ops[c.Reference]; ok && op != c.Op {
				t.Errorf("%s: compared with %s and %s", c.Reference, op, c.Op)
			}
			ops[c.Reference] = c.Op
		}
	}
	if want := slices.Sorted(maps.Keys(names)); !slices.Equal(slices.Sorted(maps.Keys(seen)), want) {
		t.Errorf("conditions for %v\nkinds for %v", slices.Sorted(maps.Keys(seen)), want)
	}
	Conditions(SNP)[0].Vector = 99
	if Conditions(SNP)[0].Vector == 99 {
		t.Error("the table can be written to")
	}
}

// complete is a set that meets every condition of the TEE, as a hand would write it.
func complete(tee TEE) *Set {
	values := map[kind]any{hex8: sum(8, 1), hex32: sum(32, 1), hex48: sum(48, 1), number: int64(1), truth: true, key: "TUlJQg==",
		base48: strings.Repeat("WXYZ", 16), numberText: "1", truthText: "true"}
	s := &Set{TEE: tee}
	for _, name := range Names(tee) {
		s.put(name, scalar(tee, name), values[names[name]], From{Register: "given"})
	}
	return s
}

func (s *Set) edit(name string, f func(*Value)) {
	i := slices.IndexFunc(s.Values, func(v Value) bool { return v.Name == name })
	f(&s.Values[i])
}

// Each name of each TEE: without it, with the wrong form, with the wrong type.
func TestCheckEachName(t *testing.T) {
	best := map[TEE]map[string]int{}
	for _, tee := range TEEs {
		r := Check(complete(tee))
		if !r.OK() {
			t.Fatalf("%s: a complete set fails: %+v", tee, r)
		}
		best[tee] = r.Vector
	}
	want := map[TEE]map[string]int{
		SNP: {Hardware: 2, Executables: 3, Configuration: 2}, TDX: {Hardware: 2, Executables: 3, Configuration: 2},
		AzSNP: {Hardware: 2, Executables: 3, Configuration: 2}, AzTDX: {Hardware: 2, Executables: 3, Configuration: 2},
		TPM: {Hardware: 2, Executables: 3, Configuration: 0},
	}
	if !reflect.DeepEqual(best, want) {
		t.Errorf("best vectors %v", best)
	}
	for _, tee := range TEEs {
		for _, name := range Names(tee) {
			for what, row := range map[string]struct {
				spoil   func(*Set)
				verdict Verdict
			}{
				"absent": {func(s *Set) { s.Values = slices.DeleteFunc(s.Values, func(v Value) bool { return v.Name == name }) }, Missing},
				"form":   {func(s *Set) { s.edit(name, func(v *Value) { v.Scalar = !v.Scalar }) }, Unfit},
				"empty":  {func(s *Set) { s.edit(name, func(v *Value) { v.Any = nil }) }, Unfit},
				"type":   {func(s *Set) { s.edit(name, func(v *Value) { v.Any = []any{"neither hex nor base64!"} }) }, Unfit},
			} {
				s := complete(tee)
				row.spoil(s)
				r := Check(s)
				worse := false
				for _, e := range Elements {
					worse = worse || r.Vector[e] != best[tee][e]
				}
				i := slices.IndexFunc(r.Conditions, func(c Result) bool { return c.Reference == name })
				if r.Conditions[i].Verdict != row.verdict || !worse || r.Conditions[i].Why == "" {
					t.Errorf("%s, %s, %s: %s (%s), vector %v", tee, name, what, r.Conditions[i].Verdict, r.Conditions[i].Why, r.Vector)
				}
				if (row.verdict == Missing) != slices.Contains(r.Missing(), name) || row.verdict == Unfit && r.OK() {
					t.Errorf("%s, %s, %s: missing %v, ok %v", tee, name, what, r.Missing(), r.OK())
				}
			}
		}
	}
}

// Rules with a weaker one behind them.
func TestSecondRule(t *testing.T) {
	without := func(tee TEE, name string) *Report {
		s := complete(tee)
		s.Values = slices.DeleteFunc(s.Values, func(v Value) bool { return v.Name == name })
		return Check(s)
	}
	if r := without(SNP, "snp_smt_enabled"); r.Vector[Configuration] != 3 || !r.OK() {
		t.Errorf("snp: %v", r.Vector)
	}
	if r := without(TDX, "tdvfkernel"); r.Vector[Executables] != 4 || !r.OK() {
		t.Errorf("tdx: %v", r.Vector)
	}
	for tee, row := range map[TEE]struct {
		name, trust string
		unmet       int
	}{
		SNP: {"snp_bootloader", Hardware, 97}, TDX: {"xfam", Configuration, 36}, AzSNP: {"smt_enabled", Configuration, 36},
		AzTDX: {"tdx_pcr11", Executables, 33}, TPM: {"trusted_aks", Executables, 33},
	} {
		if r := without(tee, row.name); r.Vector[row.trust] != row.unmet || r.OK() {
			t.Errorf("%s without %s: %v", tee, row.name, r.Vector)
		}
	}
}

func TestFacts(t *testing.T) {
	debug := snpImage(t, 1)
	debug.SNP.Policy = "0xb0000"
	images := []Image{{Label: "good", Measurements: snpImage(t, 5)}, {Label: "debug", Measurements: debug}}
	r := Check(mustNew(t, SNP, nil, images...))
	i := slices.IndexFunc(r.Conditions, func(c Result) bool { return c.Claim == "snp.policy_debug_allowed" })
	if c := r.Conditions[i]; c.Verdict != Broken || !strings.Contains(c.Why, "image debug has it true") || r.Vector[Configuration] != 36 || r.OK() {
		t.Errorf("%+v, %v", c, r.Vector)
	}
	migrate := snpImage(t, 1)
	migrate.SNP.Policy = "0x70000"
	if r := Check(mustNew(t, SNP, nil, Image{Label: "i", Measurements: migrate})); r.Vector[Configuration] != 36 {
		t.Errorf("a migration agent: %v", r.Vector)
	}
	td := tdxImage(t, 1, 0x20)
	td.TDX.Attributes = "0x10000001"
	if r := Check(mustNew(t, TDX, nil, Image{Label: "i", Measurements: td})); r.Vector[Configuration] != 36 || r.OK() {
		t.Errorf("a trust domain with debugging: %v", r.Vector)
	}
}

func TestUnknownNames(t *testing.T) {
	s := complete(SNP)
	s.put("snp_launch_measurment", false, sum(48, 1), From{})
	s.put("SNP_Bootloader", false, int64(1), From{})
	s.put("tpm_pcr11", false, sum(32, 1), From{})
	s.put("entirely_something_else", false, "x", From{})
	r := Check(s)
	want := []Unknown{
		{Name: "SNP_Bootloader", Suggest: "snp_bootloader"},
		{Name: "entirely_something_else"},
		{Name: "snp_launch_measurment", Suggest: "snp_launch_measurement"},
		{Name: "tpm_pcr11", For: []TEE{TPM}},
	}
	if !reflect.DeepEqual(r.Unknown, want) || r.OK() {
		t.Errorf("%+v, ok %v", r.Unknown, r.OK())
	}
}

func TestGuess(t *testing.T) {
	for _, tee := range TEEs {
		s := complete(tee)
		s.TEE = ""
		if r := Check(s); r.TEE != tee || !r.OK() {
			t.Errorf("%s: taken for %s", tee, r.TEE)
		}
	}
}

// A published recipe pins PCR 3 and PCR 8 of a guest.
func TestPinnedByHand(t *testing.T) {
	const separator = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969" // SHA-256(0^32, SHA-256(0^4))
	for _, value := range []string{separator, zero32} {
		s := complete(TPM)
		s.edit("tpm_pcr11", func(v *Value) { v.Any = []any{value} })
		r := Check(s)
		if r.OK() || len(r.Trivial) != 1 || r.Trivial[0].Name != "tpm_pcr11" || r.Trivial[0].Weak {
			t.Errorf("%s: %+v", value, r.Trivial)
		}
	}
	// What is the same for two images is said, and is no fault.
	r := Check(mustNew(t, TDX, nil, Image{Label: "a", Measurements: tdxImage(t, 0x20, 0x30)}, Image{Label: "b", Measurements: tdxImage(t, 0x40, 0x50)}))
	if !r.OK() || len(r.Trivial) != 1 || !r.Trivial[0].Weak || r.Trivial[0].Name != "mr_td" {
		t.Errorf("%v: %+v", r.OK(), r.Trivial)
	}
}

func TestDiff(t *testing.T) {
	old, now := complete(SNP), complete(SNP)
	if d := Diff(old, now); len(d) != 0 {
		t.Errorf("equal sets: %v", d)
	}
	now.put("snp_launch_measurement", false, sum(48, 2), From{})
	old.edit("snp_bootloader", func(v *Value) { v.Any = []any{int64(1), int64(2)} })
	now.edit("snp_smt_enabled", func(v *Value) { v.Scalar = false })
	now.put("added", false, "x", From{})
	old.put("removed", true, "y", From{})
	want := []Change{
		{Name: "added", What: Added, Added: []any{"x"}, Removed: []any{}},
		{Name: "removed", What: Removed, Added: []any{}, Removed: []any{"y"}},
		{Name: "snp_bootloader", What: Changed, Added: []any{}, Removed: []any{int64(2)}},
		{Name: "snp_launch_measurement", What: Changed, Added: []any{sum(48, 2)}, Removed: []any{}},
		{Name: "snp_smt_enabled", What: Shape, Added: []any{}, Removed: []any{}, Note: "a list, was a scalar"},
	}
	if got := Diff(old, now); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
