package measure

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/tdx"
)

// CheckGeneric compares a boot under a generic firmware and a TPM with m, which
// is for an SNP guest or a trust domain. booted is what the machine was given,
// and p what the TPM was to measure of it: the events of a trust domain are in m,
// and p may be nil. workloads are the PCRs that the guest was told to measure its
// workloads into, as RTMR 3.
//
// Such a boot shows that the artefacts behind m start, and that what does not
// depend on the firmware is measured as predicted. What the hardware measures of
// the firmware it cannot show: those values are NotChecked, whatever else holds.
func CheckGeneric(m *Measurements, booted []Input, p *Prediction, o *Observed, workloads ...int) (*CheckResult, error) {
	shape := o.Machine.shape()
	switch {
	case len(m.Values) == 0:
		return nil, errors.New("measure: check: no values")
	case !slices.Contains(m.Machines, shape):
		return nil, fmt.Errorf("measure: check: no prediction for %s with %d vCPUs and %d MiB", shape.Type, shape.VCPUs, shape.MemoryMiB)
	case o.Log == nil:
		return nil, errors.New("measure: check: the guest reported no event log")
	}
	g := &genericCheck{checker: newChecker(o), m: m, p: p, workloads: workloads,
		r: &CheckResult{Schema: checkSchema, Profile: m.Profile, Machine: shape, Passed: true, Notes: notes(m, o), Registers: []RegisterCheck{}}}
	g.inputs(booted)
	var err error
	switch platform := m.Values[0].Platform; platform {
	case PlatformSNP:
		err = g.launch()
	case PlatformTDX:
		err = g.trustDomain(shape)
	default:
		err = fmt.Errorf("measure: check: platform %q: want %s or %s", platform, PlatformSNP, PlatformTDX)
	}
	if err != nil {
		return nil, err
	}
	g.settledAll()
	return g.r, nil
}

type genericCheck struct {
	*checker
	m *Measurements
	p *Prediction
	r *CheckResult

	workloads []int // PCRs
}

// inputs holds what was booted to what the document was computed from.
func (g *genericCheck) inputs(booted []Input) {
	for _, in := range g.m.Inputs {
		if in.Name == "firmware" {
			continue
		}
		x := RegisterCheck{Register: in.Name, Bank: "sha256", Provenance: Predicted, Want: []string{in.SHA256}, Verdict: Mismatch, Reason: "not booted"}
		for _, b := range booted {
			if b.Name == in.Name {
				x.Got, x.Reason = b.SHA256, "what was booted is not what the values are for"
			}
		}
		if x.Got == in.SHA256 {
			x.Verdict, x.Reason = Match, "booted, and what the values are for"
		}
		g.r.add(x)
	}
}

// launchRegisters are those in which a TPM finds what a launch digest covers by
// the digests of a direct boot: the image, what the kernel's stub and systemd's
// measure, and what a loader would have been given besides.
var launchRegisters = []string{"pcr4", "pcr9", "pcr11", "pcr12", "pcr13"}

// launch checks what QEMU was given, as far as firmware measures it.
func (g *genericCheck) launch() error {
	if g.p == nil {
		return errors.New("measure: check: no prediction for the TPM")
	}
	for i := range g.p.Values {
		v := &g.p.Values[i]
		if !slices.Contains(launchRegisters, v.Register) || v.Phase != "" {
			continue
		}
		x, err := g.check(v)
		if err != nil {
			return err
		}
		g.r.add(x)
	}
	g.r.add(RegisterCheck{Register: launchDigest, Bank: "sha384", Verdict: NotChecked, Provenance: Predicted,
		Reason: "only SEV-SNP measures it: this boot had another firmware and a software TPM"})
	return nil
}

// trustDomain checks the events behind RTMR 1 and 2.
func (g *genericCheck) trustDomain(shape Shape) error {
	got, err := g.mapped()
	if err != nil {
		return err
	}
	for i := range g.m.Values {
		v := &g.m.Values[i]
		if v.Shape != nil && *v.Shape != shape {
			continue
		}
		n, alg, err := v.register()
		if err != nil {
			return err
		}
		switch v.Register {
		case "rtmr1", "rtmr2":
			g.r.add(sameEvents(v, n, alg, got))
		case registerWorkloads:
			g.r.add(g.sameWorkloads(v))
		default:
			g.r.add(RegisterCheck{Register: v.Register, Bank: v.Bank, Verdict: NotChecked, Provenance: v.Provenance,
				Reason: "only TDX measures it: this boot had another firmware and a software TPM"})
		}
	}
	return nil
}

// mapped returns the log's events by the RTMR that a trust domain would extend,
// RTMR 1 and 2, after checking that the TPM's registers account for them. A trust
// domain ends its firmware's events in a register with one separator, a TPM those
// of each PCR.
func (g *genericCheck) mapped() (out []eventlog.Event, err error) {
	alg := eventlog.SHA384
	separated := map[int]bool{}
	for _, e := range g.described.Events {
		n, ok := tdx.RTMR(e.Register)
		if !ok || n == 0 || e.Type == eventlog.NoAction || e.Type == eventlog.Separator && separated[n] {
			continue
		}
		separated[n] = separated[n] || e.Type == eventlog.Separator
		e.Register = n
		out = append(out, e)
	}
	for pcr := range registers {
		n, ok := tdx.RTMR(pcr)
		if !ok || n == 0 || pcr == registerIMA {
			continue // IMA's are not in the firmware's log
		}
		logged, err := g.replay(alg, pcr)
		if err != nil {
			return nil, err
		}
		if got := g.o.Before[alg.String()][pcr]; got != logged {
			g.r.add(RegisterCheck{Register: fmt.Sprintf("pcr%d", pcr), Bank: alg.String(), Verdict: LogMismatch, Provenance: Predicted,
				Got: got, Reason: "the log ends with " + logged})
		}
	}
	return out, nil
}

// sameEvents compares the events behind a value with those of a boot.
func sameEvents(v *Value, register int, alg eventlog.Alg, got []eventlog.Event) RegisterCheck {
	got = slices.DeleteFunc(slices.Clone(got), func(e eventlog.Event) bool { return e.Register != register })
	value := resetValue(alg, register)
	for _, e := range got {
		value = eventlog.Extend(alg, value, e.Digest(alg))
	}
	x := RegisterCheck{Register: v.Register, Bank: v.Bank, Provenance: v.Provenance, Want: v.values(), Got: fmt.Sprintf("%x", value)}
	for _, d := range eventlog.Diff(fillUnknown(v.logged(register, alg), got, alg), got, alg) {
		x.Differences = append(x.Differences, difference(d, alg))
	}
	x.Index = slices.Index(x.Want, x.Got)
	switch {
	case len(x.Differences) > 0:
		x.Verdict = Mismatch
	case v.Provenance == Volatile:
		x.Verdict, x.Reason = NotPredicted, v.Reason
	case x.Index < 0:
		x.Verdict, x.Reason = Mismatch, "the events do not lead to the value"
	default:
		x.Verdict, x.Reason = Match, "the same events under the generic firmware"
	}
	return x
}

// sameWorkloads looks for what RTMR 3 would hold in the TPM, in each register that
// the guest was told to measure its workloads into.
func (g *genericCheck) sameWorkloads(v *Value) RegisterCheck {
	x := RegisterCheck{Register: v.Register, Bank: v.Bank, Phase: v.Phase, Provenance: v.Provenance, Verdict: NotChecked,
		Reason: "only TDX has it: this boot had another firmware and a software TPM"}
	if v.Phase != PhaseWorkloads {
		return x
	}
	for _, n := range g.workloads {
		x.Want, x.Got = v.values(), g.o.After[v.Bank][n]
		x.Verdict, x.Reason = Mismatch, fmt.Sprintf("PCR %d, which has the same events under the generic firmware", n)
		if x.Index = slices.Index(x.Want, x.Got); x.Index >= 0 {
			x.Verdict = Match
			continue
		}
		if v.Provenance == Volatile {
			x.Verdict, x.Reason = NotPredicted, v.Reason
		}
		return x
	}
	return x
}

// settledAll checks that the guest extended no register of the TPM, but those of
// workloads: it was not built for one.
func (g *genericCheck) settledAll() {
	for _, bank := range slices.Sorted(maps.Keys(g.o.Before)) {
		before := g.o.Before[bank]
		for n := range registers {
			if slices.Contains(g.workloads, n) {
				continue
			}
			if after, ok := g.o.After[bank][n]; ok && after != before[n] {
				g.r.add(RegisterCheck{Register: fmt.Sprintf("pcr%d", n), Bank: bank, Phase: "after", Verdict: Mismatch, Provenance: Predicted,
					Want: []string{before[n]}, Got: after, Reason: "extended by the guest, which was to leave it alone"})
			}
		}
	}
}
