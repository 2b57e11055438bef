package measure

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
)

var threeEvents = []WorkloadEvent{{Name: "Policy", Data: []byte("a")}, {Name: "Workload web", Data: []byte("b")}, {Name: "Separator", Data: []byte("c")}}

// measuredWorkloads is what a register of bank sha256 comes to, by hand.
func measuredWorkloads(events []WorkloadEvent) string {
	value := make([]byte, sha256.Size)
	for _, e := range events {
		d := sha256.Sum256(e.Data)
		next := sha256.Sum256(slices.Concat(value, d[:]))
		value = next[:]
	}
	return hex.EncodeToString(value)
}

func valueOf(t *testing.T, m *Measurements, register, bank, phase string) *Value {
	t.Helper()
	for i := range m.Values {
		if v := &m.Values[i]; v.Register == register && v.Bank == bank && v.Phase == phase {
			return v
		}
	}
	t.Fatalf("no %s in bank %s, phase %q", register, bank, phase)
	return nil
}

// booted is a boot without phases, its document and its report.
func booted(t *testing.T) (*Measurements, *Observed) {
	t.Helper()
	b := newTestFiles(t, "trixie", "257.13").boot(t, "disk")
	b.Phases = nil
	p := mustPredict(t, b)
	return document(t, p), reportOf(t, p)
}

func TestAddWorkloads(t *testing.T) {
	m, _ := booted(t)
	n := len(m.Values)
	if err := m.AddWorkloads(threeEvents, 14, 23); err != nil {
		t.Fatal(err)
	}
	for _, register := range []string{"pcr14", "pcr23"} {
		v := valueOf(t, m, register, "sha256", PhaseWorkloads)
		if v.Value != measuredWorkloads(threeEvents) || v.Provenance != Predicted || strings.Contains(v.Reason, "can reset it") != (register == "pcr23") {
			t.Errorf("%s: %+v, want %s", register, v, measuredWorkloads(threeEvents))
		}
		if len(v.Events) != 3 || v.Events[1].Name != "Workload web" || v.Events[1].Type != "EV_EVENT_TAG" || !v.Events[1].Unlogged {
			t.Errorf("%s: events %+v", register, v.Events)
		}
		if before := valueOf(t, m, register, "sha256", ""); before.Value != strings.Repeat("0", 64) || len(before.Events) != 0 {
			t.Errorf("%s before: %+v", register, before)
		}
	}
	banks := len(banksOf(m))
	if len(m.Values) != n+2*banks {
		t.Errorf("%d values, want %d more than %d", len(m.Values), 2*banks, n)
	}
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseMeasurements(b); err != nil {
		t.Error(err)
	}
	if err := m.AddWorkloads(threeEvents, 14); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("twice: %v", err)
	}

	one, other := slices.Clone(threeEvents), slices.Clone(threeEvents)
	other[0], other[1] = other[1], other[0]
	one[1].Data = []byte("B")
	for _, events := range [][]WorkloadEvent{one, other} {
		x, _ := booted(t)
		if err := x.AddWorkloads(events, 14); err != nil {
			t.Fatal(err)
		}
		if valueOf(t, x, "pcr14", "sha256", PhaseWorkloads).Value == measuredWorkloads(threeEvents) {
			t.Error("other events, and the same value")
		}
	}
}

func TestAddUnknownWorkloads(t *testing.T) {
	m, o := booted(t)
	events := slices.Clone(threeEvents)
	events[1] = WorkloadEvent{Name: "Workload web", Reason: "a tag"}
	if err := m.AddWorkloads(events, 14); err != nil {
		t.Fatal(err)
	}
	v := valueOf(t, m, "pcr14", "sha256", PhaseWorkloads)
	if v.Provenance != Volatile || v.Value != "" || v.Reason != "a tag" || v.Events[0].Digest == "" || v.Events[1].Digest != "" || v.Events[2].Digest == "" {
		t.Errorf("%+v", v)
	}
	for bank := range o.After {
		o.After[bank][14] = strings.Repeat("ab", len(o.Before[bank][14])/2)
	}
	r := mustCheck(t, m, o)
	if !r.OK() || verdictOn(r, "pcr14", "sha256", PhaseWorkloads) != NotPredicted {
		t.Errorf("%q", found(r, "sha256"))
	}
}

func verdictOn(r *CheckResult, register, bank, phase string) Verdict {
	for _, x := range r.Registers {
		if x.Register == register && x.Bank == bank && x.Phase == phase {
			return x.Verdict
		}
	}
	return ""
}

// extendAll extends a register of the report in every bank.
func extendAll(t *testing.T, o *Observed, register int, events []WorkloadEvent) {
	t.Helper()
	for bank, values := range o.After {
		alg, err := eventlog.ParseAlg(bank)
		if err != nil {
			t.Fatal(err)
		}
		v, err := hex.DecodeString(values[register])
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			v = eventlog.Extend(alg, v, alg.Sum(e.Data))
		}
		values[register] = hex.EncodeToString(v)
	}
}

func TestCheckWorkloads(t *testing.T) {
	for _, tt := range []struct {
		name   string
		events []WorkloadEvent
		also   int // register that is extended besides
		want   Verdict
		ok     bool
	}{
		{"as predicted", threeEvents, 0, Match, true},
		{"none", nil, 0, Mismatch, false},
		{"one is missing", threeEvents[:2], 0, Mismatch, false},
		{"one more", append(slices.Clone(threeEvents), WorkloadEvent{Data: []byte("d")}), 0, Mismatch, false},
		{"in another register, too", threeEvents, 15, Match, false},
	} {
		m, o := booted(t)
		if err := m.AddWorkloads(threeEvents, 14); err != nil {
			t.Fatal(err)
		}
		extendAll(t, o, 14, tt.events)
		if tt.also > 0 {
			extendAll(t, o, tt.also, tt.events)
		}
		r := mustCheck(t, m, o)
		if got := verdictOn(r, "pcr14", "sha384", PhaseWorkloads); got != tt.want || r.OK() != tt.ok {
			t.Errorf("%s: %s, ok is %v: want %s, %v\n%q", tt.name, got, r.OK(), tt.want, tt.ok, found(r, "sha384"))
		}
	}
}

// An agent that looks for initdata extends its digest: a register that it left alone
// is not what was predicted. Of initdata that is not known nothing is.
func TestRequireInitdata(t *testing.T) {
	digest := slices.Repeat([]byte{7}, 32)
	for _, tt := range []struct {
		name     string
		known    bool
		extended []byte
		want     Verdict
	}{
		{"the digest", true, digest, Match},
		{"nothing", true, nil, Mismatch},
		{"another digest", true, make([]byte, 32), Mismatch},
		{"not known", false, digest, NotPredicted},
	} {
		m, o := booted(t)
		err := m.RequireInitdata(digest)
		if !tt.known {
			m, o = booted(t)
			err = m.UnknownInitdata("nobody said")
		}
		if err != nil {
			t.Fatal(err)
		}
		if tt.extended != nil {
			v := sha256.Sum256(slices.Concat(make([]byte, 32), tt.extended))
			o.After["sha256"][8] = hex.EncodeToString(v[:])
		}
		r := mustCheck(t, m, o)
		if got := verdictOn(r, "pcr8", "sha256", PhaseInitdata); got != tt.want || r.OK() != (tt.want != Mismatch) {
			t.Errorf("%s: %s, ok is %v, want %s: %q", tt.name, got, r.OK(), tt.want, found(r, "sha256"))
		}
		b, err := m.Marshal()
		if err == nil {
			_, err = ParseMeasurements(b)
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A trust domain extends RTMR 3; under the generic firmware its agent may have a
// register of the TPM to extend in its place.
func TestWorkloadsOfTrustDomain(t *testing.T) {
	for _, tt := range []struct {
		name     string
		told     []int // PCRs
		register int
		events   []WorkloadEvent
		want     Verdict
		ok       bool
	}{
		{"told nothing, does nothing", nil, 0, nil, NotChecked, true},
		{"told nothing", nil, 14, threeEvents, NotChecked, false},
		{"the same events", []int{14}, 14, threeEvents, Match, true},
		{"left alone", []int{14}, 0, nil, Mismatch, false},
		{"not in the copy", []int{14, 23}, 14, threeEvents, Mismatch, false},
		{"another register", []int{14}, 15, threeEvents, Mismatch, false},
		{"other events", []int{14}, 14, threeEvents[:2], Mismatch, false},
		{"register of nobody", nil, 13, threeEvents, NotChecked, false},
	} {
		p, o := genericBoot(t, "disk", nil)
		m := rtmrDocument(p)
		if err := m.AddWorkloads(threeEvents, 14); err != nil {
			t.Fatal(err)
		}
		v := valueOf(t, m, "rtmr3", "sha384", PhaseWorkloads)
		value := make([]byte, 48)
		for _, e := range threeEvents {
			value = eventlog.SHA384.Sum(value, eventlog.SHA384.Sum(e.Data))
		}
		if v.Value != hex.EncodeToString(value) {
			t.Errorf("RTMR 3: %+v, want %x", v, value)
		}
		if tt.register > 0 {
			extendAll(t, o, tt.register, tt.events)
		}
		r, err := CheckGeneric(m, diskGiven, nil, o, tt.told...)
		if err != nil {
			t.Fatal(err)
		}
		if got := verdictOn(r, "rtmr3", "sha384", PhaseWorkloads); got != tt.want || r.OK() != tt.ok {
			t.Errorf("%s: %s, ok is %v: want %s, %v\n%q", tt.name, got, r.OK(), tt.want, tt.ok, rows(r))
		}
	}
}

// A kernel that cannot extend RTMR 3 leaves it as it is.
func TestWorkloadsOfOldTrustDomain(t *testing.T) {
	p, _ := genericBoot(t, "disk", nil)
	for kernel, want := range map[string]int{"6.12.107+deb13-cloud-amd64": 0, "6.15.9": 0, "": 0, "6.16": 1, "7.0.2": 1} {
		m := rtmrDocument(p)
		m.Versions.Kernel = kernel
		n := len(m.Values)
		if err := m.AddWorkloads(threeEvents); err != nil || len(m.Values) != n+want {
			t.Errorf("Linux %s: %d more values, %v, want %d", kernel, len(m.Values)-n, err, want)
		}
	}
}

// A guest that has no workloads has no business in their registers.
func TestNoWorkloadsOfTrustDomain(t *testing.T) {
	p, o := genericBoot(t, "disk", nil)
	extendAll(t, o, 14, threeEvents)
	r, err := CheckGeneric(rtmrDocument(p), diskGiven, nil, o)
	if err != nil || r.OK() {
		t.Errorf("%q, %v", rows(r), err)
	}
}

// SNP has no register for it.
func TestWorkloadsOfSNP(t *testing.T) {
	v := Value{Platform: PlatformSNP, Register: launchDigest, Bank: "sha384", Provenance: Predicted, Value: strings.Repeat("00", 48)}
	m := &Measurements{Values: []Value{v}}
	if err := m.AddWorkloads(threeEvents, 14); err != nil || len(m.Values) != 1 {
		t.Errorf("%+v, %v", m.Values, err)
	}
}
