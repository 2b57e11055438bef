package measure

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// genericBoot is a boot of small files under a generic firmware, as a guest
// without phases reports it.
func genericBoot(t *testing.T, path string, change func(*testFiles)) (*Prediction, *Observed) {
	t.Helper()
	f := newTestFiles(t, "trixie", "257.13")
	if change != nil {
		change(f)
	}
	b := f.boot(t, path)
	b.Phases = nil
	p := mustPredict(t, b)
	return p, reportOf(t, p)
}

// rtmrDocument is a document of a trust domain that boots what p does. Its
// registers are built here from the list that the specification gives: TCG PFP
// and UEFI 2.10, section 38.4.1.
func rtmrDocument(p *Prediction) *Measurements {
	rtmr := map[int]int{2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 8: 2, 9: 2, 11: 2, 12: 2, 13: 2, 14: 2, 15: 2}
	m := &Measurements{Schema: documentSchema, Profile: "td", Machine: p.Machine.shape(), Machines: []Shape{p.Machine.shape()}, Versions: Versions{Kernel: "6.16.3"},
		Notes: []string{}, Inputs: []Input{{"firmware", strings.Repeat("00", 32), 1}, {"disk", strings.Repeat("11", 32), 1}}}
	for _, name := range []string{"mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"} {
		v := Value{Platform: PlatformTDX, Register: name, Bank: "sha384", Provenance: Predicted, Events: []EventRef{}}
		value, separated := make([]byte, 48), false
		for _, e := range p.Events {
			n, ok := rtmr[e.Register]
			if !ok || e.Unlogged || fmt.Sprintf("rtmr%d", n) != name || e.Type == eventlog.Separator && separated {
				continue
			}
			separated = separated || e.Type == eventlog.Separator
			value = eventlog.Extend(eventlog.SHA384, value, e.Digest(eventlog.SHA384))
			v.Events = append(v.Events, reference(e, eventlog.SHA384))
		}
		v.Value = hex.EncodeToString(value)
		m.Values = append(m.Values, v)
	}
	return m
}

var diskGiven = []Input{{Name: "disk", SHA256: strings.Repeat("11", 32)}}

// rows are the verdicts, in order.
func rows(r *CheckResult) (out []string) {
	for _, x := range r.Registers {
		s := x.Register + " " + string(x.Verdict)
		for _, d := range x.Differences {
			s += ", " + d.String()
		}
		out = append(out, s)
	}
	return out
}

func mustCheckGeneric(t *testing.T, m *Measurements, booted []Input, p *Prediction, o *Observed) *CheckResult {
	t.Helper()
	r, err := CheckGeneric(m, booted, p, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCheckTrustDomain(t *testing.T) {
	p, o := genericBoot(t, "disk", nil)
	m := rtmrDocument(p)
	r := mustCheckGeneric(t, m, diskGiven, nil, o)
	want := []string{"disk match", "mrtd not checked", "rtmr0 not checked", "rtmr1 match", "rtmr2 match", "rtmr3 not checked"}
	if got := rows(r); !slices.Equal(got, want) || !r.OK() {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, tt := range []struct {
		name   string
		change func(*testFiles)
		want   string
	}{
		{"command line", func(f *testFiles) { f.cmdline += " x" }, "rtmr2 mismatch, changed: section .cmdline (.cmdline), changed: load options (command line)"},
		{"disk GUID", func(f *testFiles) { f.diskID = 9 }, "rtmr1 mismatch, changed: partition table of disk 00000001"},
		{"stub", func(f *testFiles) { f.stub = "262.1" }, "missing: kernel inside the UKI (section .linux)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, o := genericBoot(t, "disk", tt.change)
			r := mustCheckGeneric(t, m, diskGiven, p, o)
			if got := strings.Join(rows(r), "\n"); !strings.Contains(got, tt.want) || r.OK() {
				t.Errorf("OK is %v, got\n%s\nwant %q", r.OK(), got, tt.want)
			}
		})
	}
}

func TestCheckTrustDomainDoubts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(m *Measurements, o *Observed)
		booted []Input
		want   string
	}{
		{"another disk", func(m *Measurements, _ *Observed) { m.Inputs[1].SHA256 = strings.Repeat("12", 32) }, diskGiven, "disk mismatch"},
		{"no disk", nil, nil, "disk mismatch"},
		{"a log that the TPM denies", func(_ *Measurements, o *Observed) { o.Before["sha384"][9] = strings.Repeat("00", 48) }, diskGiven, "pcr9 log mismatch"},
		{"an extend by the guest", func(_ *Measurements, o *Observed) { o.After["sha256"][11] = strings.Repeat("00", 32) }, diskGiven, "pcr11 mismatch"},
		{"a value that its events do not give", func(m *Measurements, _ *Observed) { m.Values[3].Value = strings.Repeat("00", 48) }, diskGiven, "rtmr2 mismatch"},
		{"an event out of place", func(m *Measurements, _ *Observed) {
			e := m.Values[2].Events
			e[0], e[1] = e[1], e[0]
		}, diskGiven, "rtmr1 mismatch, moved: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, o := genericBoot(t, "disk", nil)
			m := rtmrDocument(p)
			if tt.change != nil {
				tt.change(m, o)
			}
			r := mustCheckGeneric(t, m, tt.booted, p, o)
			if got := strings.Join(rows(r), "\n"); !strings.Contains(got, tt.want) || r.OK() {
				t.Errorf("OK is %v, got\n%s\nwant %q", r.OK(), got, tt.want)
			}
		})
	}
	p, o := genericBoot(t, "disk", nil)
	m := rtmrDocument(p)
	v := &m.Values[3]
	v.Provenance, v.Value, v.Reason, v.Events[0].Digest = Volatile, "", "for a test", ""
	if r := mustCheckGeneric(t, m, diskGiven, p, o); !r.OK() || r.Registers[4].Verdict != NotPredicted {
		t.Errorf("a volatile value: %q", rows(r))
	}
}

// A launch digest is never called confirmed: what QEMU hashed for it is what was
// booted, and the firmware measured just that.
func TestCheckLaunch(t *testing.T) {
	p, o := genericBoot(t, "kernel", nil)
	m := launchDocument(t, snpGuest(t))
	m.Inputs = append(m.Inputs, Input{"initrd", strings.Repeat("22", 32), 1})
	given := []Input{{Name: "kernel", SHA256: strings.Repeat("00", 32)}, {Name: "initrd", SHA256: strings.Repeat("22", 32)}}
	r := mustCheckGeneric(t, m, given, p, o)
	want := []string{"kernel match", "initrd match", "pcr4 match", "pcr9 match", "pcr11 unused", "pcr12 unused", "pcr13 unused", "launch_digest not checked"}
	if got := slices.Compact(rows(r)); !slices.Equal(got, want) || !r.OK() { // a row a bank
		t.Errorf("got %q, want %q", got, want)
	}
	_, o = genericBoot(t, "kernel", func(f *testFiles) { f.initrd += "x" })
	r = mustCheckGeneric(t, m, given[:1], p, o)
	got := strings.Join(rows(r), "\n")
	if r.OK() || !strings.Contains(got, "initrd mismatch") || !strings.Contains(got, "pcr9 mismatch, changed: initrd") {
		t.Errorf("another initrd: %s", got)
	}
}

func TestCheckGenericRefuses(t *testing.T) {
	p, o := genericBoot(t, "disk", nil)
	tpm := document(t, p)
	for _, tt := range []struct {
		name   string
		change func(m *Measurements, o *Observed) *Measurements
		want   string
	}{
		{"a document of a TPM", func(*Measurements, *Observed) *Measurements { return tpm }, `platform "tpm"`},
		{"no values", func(m *Measurements, _ *Observed) *Measurements { m.Values = nil; return m }, "no values"},
		{"another shape", func(m *Measurements, o *Observed) *Measurements { o.Machine.VCPUs = 7; return m }, "with 7 vCPUs"},
		{"no log", func(m *Measurements, o *Observed) *Measurements { o.Log = nil; return m }, "no event log"},
		{"no bank for RTMRs", func(m *Measurements, o *Observed) *Measurements {
			l := *o.Log
			l.Algs, o.Log = []eventlog.Alg{eventlog.SHA256}, &l
			return m
		}, "sha384"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := *o
			m := tt.change(rtmrDocument(p), &seen)
			if _, err := CheckGeneric(m, diskGiven, p, &seen); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := CheckGeneric(launchDocument(t, snpGuest(t)), diskGiven, nil, o); err == nil || !strings.Contains(err.Error(), "no prediction") {
		t.Errorf("a launch digest without a prediction: %v", err)
	}
	if _, err := Check(rtmrDocument(p), o); err == nil || !strings.Contains(err.Error(), "platform tdx") {
		t.Errorf("Check on a trust domain's document: %v", err)
	}
}
