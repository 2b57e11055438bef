package refvalue

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/measure"
)

// phased is an image whose PCR 11 has one event of its own, and then one a phase: what
// systemd-pcrphase extends, computed here.
func phased(t *testing.T, phases ...string) (m *measure.Measurements, at map[string]string) {
	t.Helper()
	value := make([]byte, 32)
	extend := func(text string) (digest string) {
		d := sha256.Sum256([]byte(text))
		next := sha256.Sum256(append(value, d[:]...))
		value = next[:]
		return hex.EncodeToString(d[:])
	}
	v := measure.Value{Platform: "tpm", Register: "pcr11", Bank: "sha256", Events: []measure.EventRef{event("EV_IPL", "section .linux", extend("kernel"))}}
	v.Value = hex.EncodeToString(value)
	at = map[string]string{"": v.Value}
	values := []measure.Value{v}
	v.Events = slices.Clone(v.Events)
	for n, p := range phases {
		e := event("EV_IPL", "phase "+p, extend(p))
		e.Unlogged = true
		v.Events = append(v.Events, e)
		v.Phase, v.Value = strings.Join(phases[:n+1], ":"), hex.EncodeToString(value)
		at[v.Phase] = v.Value
	}
	if len(phases) > 0 {
		values = append(values, v)
	}
	return parsed(t, document(t, values...)), at
}

// A guest with a broker shows PCR 11 at two points: to the agent's own questions, and
// to those of programs. A document has the last.
func TestAsks(t *testing.T) {
	const left = "enter-initrd:leave-initrd"
	for _, tt := range []struct {
		phases, phase string
		want          []string
	}{
		{ready, "", []string{left, ready}},
		{ready, ready, []string{ready}},
		{ready, left, []string{left}},
		{ready, NoPhase, []string{""}},
		{"sysinit:ready", "", []string{"", "sysinit:ready"}},
		{"leave-initrd:ready", "", []string{"leave-initrd", "leave-initrd:ready"}},
		{left, "", []string{left}},
		{"enter-initrd", "", []string{"enter-initrd"}},
		{"", "", []string{""}},
	} {
		m, at := phased(t, strings.FieldsFunc(tt.phases, func(r rune) bool { return r == ':' })...)
		before, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		s := mustNew(t, TPM, nil, Image{Label: "i", Measurements: m, Asks: true, Phase: tt.phase})
		var want []any
		for _, p := range tt.want {
			want = append(want, at[p])
		}
		slices.SortFunc(want, compareAny)
		v, _ := s.Value("tpm_pcr11")
		if !reflect.DeepEqual(v.Any, want) {
			t.Errorf("%q at %q: got %v, want %v", tt.phases, tt.phase, v.Any, want)
		}
		for _, f := range v.From {
			if at[f.Phase] != f.Value {
				t.Errorf("%q at %q: %+v", tt.phases, tt.phase, f)
			}
		}
		if after, err := m.Marshal(); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%q: the document was changed: %v", tt.phases, err)
		}
	}
	m, _ := phased(t, "enter-initrd", "leave-initrd", "ready")
	if _, err := New(TPM, []Image{{Label: "i", Measurements: m, Phase: "leave-initrd"}}, nil, time.Time{}); !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), `"enter-initrd:leave-initrd"`) {
		t.Errorf("a phase that is not there: %v", err)
	}
	m.Values[1].Events[1].Digest = sum(32, 1)
	if _, err := New(TPM, []Image{{Label: "i", Measurements: m, Asks: true}}, nil, time.Time{}); err == nil || !strings.Contains(err.Error(), "contradicts itself") {
		t.Errorf("a document that contradicts itself: %v", err)
	}
}

// ownImage has registers before and after what the guest's agent does to them.
func ownImage(t *testing.T) *measure.Measurements {
	value := func(n, phase string, v byte) measure.Value {
		return measure.Value{Platform: "tpm", Register: "pcr" + n, Bank: "sha256", Phase: phase, Value: sum(32, v), Events: []measure.EventRef{event("EV_IPL", "event", sum(32, 7))}}
	}
	unset := func(n string) measure.Value {
		return measure.Value{Platform: "tpm", Register: "pcr" + n, Bank: "sha256", Value: zero32}
	}
	four := measure.Value{Platform: "tpm", Register: "pcr4", Bank: "sha256", Provenance: measure.OneOf, OneOf: []string{sum(32, 0x41), sum(32, 0x42)}, Reason: "a retry",
		Events: []measure.EventRef{event("EV_EFI_ACTION", "x", sum(32, 7))}}
	return parsed(t, document(t,
		measure.Value{Platform: "tpm", Register: "pcr1", Bank: "sha256", Provenance: measure.Volatile, Reason: "a MAC address is in it"},
		four, unset("8"), value("8", measure.PhaseInitdata, 0x80), value("11", "", 0x10), value("11", ready, 0x11), unset("12"),
		unset("14"), value("14", measure.PhaseWorkloads, 0xe0)))
}

// Registers that the default policy does not read have its way of naming, and the
// values that they have once the agent is done with them.
func TestOwnRegisters(t *testing.T) {
	s := mustNew(t, TPM, Platform{"trusted_aks": {"TUlJQg=="}}, Image{Label: "i", Measurements: ownImage(t), PCRs: []int{1, 4, 8, 11, 12, 14}})
	want := map[string][]any{
		"tpm_pcr04": {sum(32, 0x41), sum(32, 0x42)}, "tpm_pcr08": {sum(32, 0x80)}, "tpm_pcr11": {sum(32, 0x11)}, "tpm_pcr12": {zero32}, "tpm_pcr14": {sum(32, 0xe0)},
		"trusted_aks": {"TUlJQg=="},
	}
	got := map[string][]any{}
	for _, v := range s.Values {
		got[v.Name] = v.Any
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if len(s.Left) != 1 || s.Left[0].Name != "tpm_pcr01" || s.Left[0].Reason != "a MAC address is in it" {
		t.Errorf("left out: %+v", s.Left)
	}
	var names []string
	for _, o := range s.Owns() {
		names = append(names, o.Name)
	}
	if !slices.Equal(names, []string{"tpm_pcr04", "tpm_pcr08", "tpm_pcr12", "tpm_pcr14"}) {
		t.Errorf("own: %q", names)
	}
	o := s.Owns()[0]
	if o.Attestation != `input.tpm.pcr04 in query_reference_value("tpm_pcr04")` ||
		o.Resource != `input.submods.cpu0["ear.veraison.annotated-evidence"].tpm.pcr04 in {"`+sum(32, 0x41)+`", "`+sum(32, 0x42)+`"}` {
		t.Errorf("%+v", o)
	}
	r := Check(s)
	if !r.OK() || len(r.Unknown) > 0 || len(r.Own) != 4 {
		t.Errorf("%+v", r)
	}
	for _, n := range r.Trivial {
		if n.Name != "tpm_pcr12" || !n.Weak {
			t.Errorf("%+v", n)
		}
	}
	corim, err := s.CoRIMNames()
	if err != nil || !slices.ContainsFunc(corim, func(n CoRIMName) bool {
		return n.Name == "tpm_pcr04" && strings.Contains(n.RVPS, "/PCR4/") && n.Why == ""
	}) {
		t.Errorf("%+v, %v", corim, err)
	}
	// A set that was read is judged alike: names and spelling say enough.
	b, err := s.RVPS()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseRVPS(b)
	if err != nil {
		t.Fatal(err)
	}
	if r := Check(again); !r.OK() || len(r.Own) != 4 {
		t.Errorf("%+v", r)
	}
	if d := Diff(again, s); len(d) > 0 {
		t.Errorf("%+v", d)
	}
}

// Behind Azure's paravisor, only some registers are what was predicted.
func TestOwnRegistersOfAzure(t *testing.T) {
	for tee, want := range map[TEE]string{
		AzSNP: `input["az-snp-vtpm"].tpm.pcr14 in query_reference_value("snp_pcr14")`, AzTDX: `input["az-tdx-vtpm"].tpm.pcr14 in query_reference_value("tdx_pcr14")`,
	} {
		s := mustNew(t, tee, nil, Image{Label: "i", Measurements: ownImage(t), PCRs: []int{14}})
		if o := s.Owns(); len(o) != 1 || o[0].Attestation != want || !strings.HasPrefix(o[0].Resource, `input.submods.cpu0["ear.veraison.annotated-evidence"]["`+string(tee)+`"].tpm.pcr14 in {"e0`) {
			t.Errorf("%s: %+v", tee, o)
		}
		_, err := New(tee, []Image{{Label: "i", Measurements: ownImage(t), PCRs: []int{4}}}, nil, time.Time{})
		if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), "Azure's firmware fills it") {
			t.Errorf("%s: %v", tee, err)
		}
	}
}

func TestOwnRegistersRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		tee   TEE
		m     *measure.Measurements
		pcr   int
		wants string
	}{
		"no TPM":       {SNP, snpImage(t, 1), 4, `PCR 4 of a guest of TEE "snp"`},
		"no such PCR":  {TPM, ownImage(t), 24, "PCR 24"},
		"below 0":      {TPM, ownImage(t), -1, "PCR -1"},
		"not measured": {TPM, ownImage(t), 10, "pcr10, sha256"},
	} {
		_, err := New(tt.tee, []Image{{Label: "i", Measurements: tt.m, PCRs: []int{tt.pcr}}}, nil, time.Time{})
		if !errors.Is(err, ErrUnfit) || !strings.Contains(err.Error(), tt.wants) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := kindOf("tpm_pcr04").check("ABCD"); err == nil {
		t.Error("anything is a register's value")
	}
}
