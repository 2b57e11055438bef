package measure

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

// given is the document of a prediction, with initdata, and the report of a boot
// that is as predicted.
func given(t *testing.T) (*Measurements, *Observed, []byte) {
	t.Helper()
	p := mustPredict(t, newTestFiles(t, "trixie", "257.13").boot(t, "disk"))
	m := document(t, p)
	digest := sha256.Sum256([]byte("document"))
	if err := m.ExtendInitdata(digest[:]); err != nil {
		t.Fatal(err)
	}
	return m, reportOf(t, p), digest[:]
}

func pcr8(m *Measurements, phase string) *Value {
	for i := range m.Values {
		if v := &m.Values[i]; v.Register == "pcr8" && v.Bank == "sha256" && v.Phase == phase {
			return v
		}
	}
	return nil
}

func TestExtendInitdata(t *testing.T) {
	m, _, digest := given(t)
	value := sha256.Sum256(append(make([]byte, 32), digest...))
	v := pcr8(m, PhaseInitdata)
	if v == nil || v.Value != hex.EncodeToString(value[:]) || v.Provenance != Predicted || len(v.Events) != 1 || !v.Events[0].Unlogged || v.Reason != "" {
		t.Fatalf("got %+v, want %x", v, value)
	}
	if before := pcr8(m, ""); before == nil || before.Value != strings.Repeat("0", 64) {
		t.Errorf("without initdata: %+v", before)
	}
	var others int
	for _, v := range m.Values {
		if v.Phase == PhaseInitdata {
			others++
		}
	}
	if others != 1 {
		t.Errorf("%d values after the initdata, want 1: bank sha256 alone is extended", others)
	}
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseMeasurements(b); err != nil {
		t.Error(err)
	}
	if err := m.ExtendInitdata(digest); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("twice: %v", err)
	}
	if err := m.ExtendInitdata(digest[:31]); err == nil || !strings.Contains(err.Error(), "31 bytes: want 32") {
		t.Errorf("31 bytes: %v", err)
	}
	if err := (&Measurements{}).ExtendInitdata(digest); err == nil || !strings.Contains(err.Error(), "no value for pcr8") {
		t.Errorf("no values: %v", err)
	}
}

// TestCheckInitdataSilent: a guest that extends nothing at all reports its
// registers once.
func TestCheckInitdataSilent(t *testing.T) {
	b := newTestFiles(t, "trixie", "257.13").boot(t, "disk")
	b.Phases = nil
	p := mustPredict(t, b)
	m, o := document(t, p), reportOf(t, p)
	if err := m.ExtendInitdata(make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	o.After = nil
	if r := mustCheck(t, m, o); !r.OK() {
		t.Errorf("%q", found(r, "sha256"))
	}
}

// TestExtendInitdataBehind: what stands in the register before is not forgotten.
func TestExtendInitdataBehind(t *testing.T) {
	digest := make([]byte, 32)
	first, other := strings.Repeat("11", 32), strings.Repeat("22", 32)
	after := func(h string) string {
		b, _ := hex.DecodeString(h)
		s := sha256.Sum256(append(b, digest...))
		return hex.EncodeToString(s[:])
	}
	base := Value{Platform: PlatformTPM, Register: "pcr8", Bank: "sha256", Events: []EventRef{{Name: "grub_cmd"}}}
	one, several, unknown := base, base, base
	one.Provenance, one.Value = Predicted, first
	several.Provenance, several.OneOf = OneOf, []string{first, other}
	unknown.Provenance, unknown.Reason = Volatile, "a boot loader's menu"
	for _, v := range []Value{one, several, unknown} {
		m := &Measurements{Values: []Value{v}}
		if err := m.ExtendInitdata(digest); err != nil {
			t.Fatal(err)
		}
		got := m.Values[1]
		switch v.Provenance {
		case Predicted:
			if got.Value != after(first) || !strings.Contains(got.Reason, "a verifier that expects the digest alone") {
				t.Errorf("%+v", got)
			}
		case OneOf:
			if want := []string{after(first), after(other)}; !slices.Equal(got.OneOf, want) || m.Values[0].OneOf[0] != first {
				t.Errorf("%+v, want %q", got, want)
			}
		case Volatile:
			if got.Value != "" || got.Reason != v.Reason {
				t.Errorf("%+v", got)
			}
		}
		if len(got.Events) != 2 || len(m.Values[0].Events) != 1 {
			t.Errorf("events %+v", got.Events)
		}
	}
}

func TestCheckInitdata(t *testing.T) {
	verdict := func(change func(o *Observed, after string)) (RegisterCheck, *CheckResult) {
		t.Helper()
		m, o, _ := given(t)
		change(o, pcr8(m, PhaseInitdata).Value)
		r := mustCheck(t, m, o)
		for _, x := range r.Registers {
			if x.Phase == PhaseInitdata {
				return x, r
			}
		}
		t.Fatal("no row for the initdata")
		panic("unreachable")
	}
	if x, r := verdict(func(*Observed, string) {}); x.Verdict != NotChecked || x.Reason != "this guest was given no initdata" || !r.OK() {
		t.Errorf("none given: %+v, ok %v", x, r.OK())
	}
	if x, r := verdict(func(o *Observed, after string) { o.After["sha256"][8] = after }); x.Verdict != Match || !r.OK() {
		t.Errorf("given: %+v, ok %v", x, r.OK())
	}
	if x, r := verdict(func(o *Observed, _ string) { o.After["sha256"][8] = strings.Repeat("ab", 32) }); x.Verdict != Mismatch || r.OK() {
		t.Errorf("another: %+v, ok %v", x, r.OK())
	}
	if _, r := verdict(func(o *Observed, _ string) { o.After["sha384"][8] = strings.Repeat("ab", 48) }); r.OK() {
		t.Error("bank sha384 moved, and the check passed")
	}
}
