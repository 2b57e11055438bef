package main

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/workload"
)

// registerReport compares registers with a document. nil compares nothing.
type registerReport struct {
	*measure.CheckResult
	needed []string // without which nobody knows what runs, or those of --pcrs: refused when there is nothing to compare them with
}

// bankShown is the bank of evidence.
const bankShown = eventlog.SHA256

func (r *registerReport) failures() (out []string) {
	if r == nil {
		return nil
	}
	for _, x := range r.Registers {
		if slices.Contains(r.needed, x.Register) && (x.Verdict == measure.NotPredicted || x.Verdict == measure.NotChecked) {
			out = append(out, fmt.Sprintf("%s (%s)", x.Register, x.Verdict))
		}
		if !differs(x) {
			continue
		}
		name := x.Register
		if len(x.Differences) > 0 {
			name += " (" + x.Differences[0].String() + ")"
		}
		out = append(out, name)
	}
	return out
}

// hint says what to do about a register that is needed and not known.
func (r *registerReport) hint() string {
	if r == nil {
		return ""
	}
	for _, x := range r.Registers {
		switch {
		case !slices.Contains(r.needed, x.Register):
		case x.Register == fmt.Sprintf("pcr%d", initdata.PCR) && x.Verdict == measure.NotPredicted:
			return "give the initdata that the guest has to have with --initdata"
		case x.Register == bootRegister && x.Verdict == measure.NotChecked:
			return "--pcrs names the registers that count; without PCR 4 whoever boots another system there can extend the others alike"
		}
	}
	return ""
}

func differs(x measure.RegisterCheck) bool {
	return x.Verdict == measure.Mismatch || x.Verdict == measure.LogMismatch
}

// imageRegisters are those that the image decides alone, under any firmware: Azure's is
// not the one that a document is for. bootRegister says what was booted: without it, any
// other system may have extended those by the same digests.
var imageRegisters = []string{"pcr8", "pcr9", "pcr11", "pcr12", "pcr13", "pcr14", "pcr15"}

const bootRegister = "pcr4"

// checkRegisters compares the registers of a TPM with what m says of a guest that has
// come as far as this one.
func checkRegisters(m *measure.Measurements, st *verify.TPMState, s *shown) (*registerReport, error) {
	m = inBank(m)
	if len(m.Values) == 0 {
		return nil, usagef("--against has no values of a TPM in bank %v", bankShown)
	}
	var best *registerReport
	for _, shape := range m.Machines {
		r, err := (&registerCheck{m: m, shape: shape, st: st, shown: s}).run()
		if err != nil {
			return nil, err
		}
		// Evidence does not say in which machine a guest runs.
		if best == nil || len(r.failures()) < len(best.failures()) {
			best = r
		}
	}
	return best, nil
}

// inBank is m with the values that evidence can be compared with.
func inBank(m *measure.Measurements) *measure.Measurements {
	out := *m
	out.Values = slices.DeleteFunc(slices.Clone(m.Values), func(v measure.Value) bool {
		return v.Platform != measure.PlatformTPM || v.Bank != bankShown.String()
	})
	return &out
}

// registerCheck compares them in one machine shape.
type registerCheck struct {
	m     *measure.Measurements
	shape measure.Shape
	st    *verify.TPMState
	shown *shown

	phases map[string]string // how far the guest has come, by register
	behind map[string]string // what followed that nothing predicts, by register
	needed []string          // without which nobody knows what runs
}

func (c *registerCheck) run() (*registerReport, error) {
	c.phases, c.behind = map[string]string{}, map[string]string{}
	m := *c.m
	m.Machine, m.Machines, m.Values, m.Notes = c.shape, []measure.Shape{c.shape}, nil, nil
	for i := range evidence.Registers {
		name := fmt.Sprintf("pcr%d", i)
		if values := c.of(name); len(values) > 0 {
			m.Values = append(m.Values, c.settle(i, values))
		}
	}
	r, err := c.compare(&m)
	if err != nil {
		return nil, err
	}
	if c.shown.tee != evidence.TEETPM {
		otherFirmware(r)
		c.needed = append(c.needed, bootRegister)
	}
	for i := range r.Registers {
		x := &r.Registers[i]
		x.Phase = c.phases[x.Register]
		if b := c.behind[x.Register]; b != "" && !differs(*x) {
			x.Verdict, x.Reason = measure.NotPredicted, b
		}
		c.nameEvents(x)
	}
	return &registerReport{CheckResult: r, needed: c.needed}, nil
}

// only leaves out registers that --pcrs does not name.
func (r *registerReport) only(pcrs []int) {
	if r == nil || len(pcrs) == 0 {
		return
	}
	r.needed = nil
	for _, n := range pcrs {
		r.needed = append(r.needed, fmt.Sprintf("pcr%d", n))
	}
	for i := range r.Registers {
		if x := &r.Registers[i]; differs(*x) && !slices.Contains(r.needed, x.Register) {
			x.Verdict, x.Reason = measure.NotChecked, "--pcrs does not name it"
		}
	}
}

// of returns the values of a register in the shape, that without a phase first.
func (c *registerCheck) of(name string) (out []measure.Value) {
	for _, v := range c.m.Values {
		if v.Register == name && (v.Shape == nil || *v.Shape == c.shape) {
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b measure.Value) int { return cmp.Compare(a.Phase, b.Phase) })
	return out
}

func (c *registerCheck) got(register int) string { return hex.EncodeToString(c.st.PCRs[register][:]) }

// events are those of the log in a register; nil without a log.
func (c *registerCheck) events(register int) (out []eventlog.Event) {
	if c.st.Log == nil {
		return nil
	}
	for _, e := range c.st.Log.Events {
		if e.Register == register && e.Type != eventlog.NoAction {
			out = append(out, e)
		}
	}
	return out
}

// settle picks the value that a register ought to have by now, and says of it how far
// the guest has come.
func (c *registerCheck) settle(register int, values []measure.Value) measure.Value {
	base, last := values[0], values[len(values)-1]
	var v measure.Value
	switch {
	case register == initdata.PCR:
		v = c.settleInitdata(base, last)
	case last.Phase == measure.PhaseWorkloads:
		v = c.settleWorkloads(register, base, last)
	case last.Phase != "":
		v = c.settlePhases(register, base, last)
	default:
		v = base
	}
	c.phases[v.Register], v.Phase = v.Phase, ""
	c.logged(register, &v)
	return v
}

// logged marks the events that the guest's own log has, which are all where there is one;
// the kernel's IMA alone writes another.
func (c *registerCheck) logged(register int, v *measure.Value) {
	const ima = 10
	if c.st.Log == nil || register == ima && len(c.events(register)) == 0 {
		return
	}
	v.Events = slices.Clone(v.Events)
	for i := range v.Events {
		v.Events[i].Unlogged = false
	}
}

// settlePhases finds the boot phase that the guest is in: each extends the register once.
func (c *registerCheck) settlePhases(register int, base, last measure.Value) measure.Value {
	words := strings.Split(last.Phase, ":")
	at := base
	for i := 0; ; i++ {
		here := slices.Contains(values(&at), c.got(register))
		if here || len(at.Events) >= len(last.Events) || len(at.Events) == len(c.events(register)) {
			return at
		}
		at = afterEvent(at, last.Events[len(at.Events)])
		at.Phase = strings.Join(words[:min(i+1, len(words))], ":")
	}
}

// values are those that v may have.
func values(v *measure.Value) []string {
	if v.Value != "" {
		return []string{v.Value}
	}
	return v.OneOf
}

// afterEvent is v after one more event. Without its digest there is no value.
func afterEvent(v measure.Value, e measure.EventRef) measure.Value {
	v.Events = append(slices.Clone(v.Events), e)
	digest, err := hex.DecodeString(e.Digest)
	if err != nil || len(digest) == 0 {
		v.Provenance, v.Value, v.OneOf = measure.Volatile, "", nil
		v.Reason = cmp.Or(v.Reason, e.Name+" is not known")
		return v
	}
	next := func(h string) string {
		b, _ := hex.DecodeString(h) // ParseMeasurements has looked
		return hex.EncodeToString(eventlog.Extend(bankShown, b, digest))
	}
	if v.Value != "" {
		v.Value = next(v.Value)
	}
	v.OneOf = slices.Clone(v.OneOf)
	for i := range v.OneOf {
		v.OneOf[i] = next(v.OneOf[i])
	}
	return v
}

// settleWorkloads: a guest has measured all its workloads or none. What containers were
// let to measure follows, and no document knows it.
func (c *registerCheck) settleWorkloads(register int, base, last measure.Value) measure.Value {
	got := c.events(register)
	if c.got(register) == base.Value || c.st.Log != nil && len(got) == len(base.Events) {
		return base
	}
	if len(got) <= len(last.Events) {
		return last
	}
	for i, want := range last.Events {
		if want.Digest != "" && want.Digest != hex.EncodeToString(got[i].Digest(bankShown)) {
			return last
		}
	}
	var names []string
	v := last
	for _, e := range got[len(last.Events):] {
		names = append(names, e.Name)
		v = afterEvent(v, measure.EventRef{Name: e.Name, Type: e.Type.String(), Source: "containers", Digest: hex.EncodeToString(e.Digest(bankShown))})
	}
	c.behind[v.Register] = fmt.Sprintf("as predicted, and then extended by containers: %s", strings.Join(names, "; "))
	return v
}

// settleInitdata: a guest that looks for initdata extends the register before it uses any,
// by the digest of what it was given or by a marker for none. What comes with the evidence
// is the host's to choose: it may explain the register, and does not say what is right.
func (c *registerCheck) settleInitdata(base, last measure.Value) measure.Value {
	switch {
	case c.shown.expected:
		return c.withInitdata(base, c.shown.given)
	case last.Phase == "": // it does not look
		return base
	case !required(last) && slices.Contains(values(&base), c.got(initdata.PCR)):
		return base
	case last.Provenance != measure.Volatile:
		return last
	}
	none := afterInitdata(base, "no initdata", workload.NoInitdata())
	if slices.Contains(values(&none), c.got(initdata.PCR)) {
		return none
	}
	c.needed = append(c.needed, base.Register)
	if c.shown.given == nil {
		return last
	}
	c.behind[base.Register] = "the initdata that came with the evidence; nothing here says that it is the right one: give --initdata"
	return c.withInitdata(base, c.shown.given)
}

// initdataAlways is the source of an event that no guest leaves out: package measure.
const initdataAlways = "initdata, by the agent"

// required tells whether the agent always extends the register: then a guest that shows it
// untouched has no such agent.
func required(v measure.Value) bool {
	return len(v.Events) > 0 && v.Events[len(v.Events)-1].Source == initdataAlways
}

// withInitdata is the register after a document.
func (c *registerCheck) withInitdata(base measure.Value, doc *initdata.Document) measure.Value {
	digest, err := doc.Extend()
	if err != nil { // no guest extends by it, and --initdata was refused
		digest = nil
	}
	return afterInitdata(base, "initdata", digest)
}

func afterInitdata(base measure.Value, name string, digest []byte) measure.Value {
	v := afterEvent(base, measure.EventRef{Name: name, Type: eventlog.IPL.String(), Source: "initdata, by the guest", Digest: hex.EncodeToString(digest), Unlogged: true})
	v.Phase = measure.PhaseInitdata
	return v
}

// compare compares the registers by their events or, without a log, by their values.
func (c *registerCheck) compare(m *measure.Measurements) (*measure.CheckResult, error) {
	o := &measure.Observed{Machine: measure.Machine{Type: c.shape.Type, VCPUs: c.shape.VCPUs, MemoryMiB: c.shape.MemoryMiB}, Log: c.st.Log}
	regs := map[int]string{}
	for i := range c.st.PCRs {
		regs[i] = c.got(i)
	}
	o.Before = map[string]map[int]string{bankShown.String(): regs}
	if o.Log != nil && slices.Contains(o.Log.Algs, bankShown) {
		return measure.Check(m, o)
	}
	r := &measure.CheckResult{Profile: m.Profile, Machine: c.shape, Passed: true, Notes: []string{"without an event log nobody knows by which event a register differs"}}
	for i := range evidence.Registers {
		name := fmt.Sprintf("pcr%d", i)
		k := slices.IndexFunc(m.Values, func(v measure.Value) bool { return v.Register == name })
		if k < 0 {
			m.Values = append(m.Values, measure.Value{Register: name, Bank: bankShown.String(), Reason: "the document has no value for it"})
			k = len(m.Values) - 1
		}
		r.Registers = append(r.Registers, byValue(&m.Values[k], regs[i]))
	}
	return r, nil
}

// byValue compares a register without knowing its events.
func byValue(v *measure.Value, got string) measure.RegisterCheck {
	x := measure.RegisterCheck{Register: v.Register, Bank: v.Bank, Provenance: v.Provenance, Want: values(v), Got: got, Reason: v.Reason,
		Verdict: measure.Mismatch, Differences: []measure.EventDifference{}}
	x.Index = slices.Index(x.Want, x.Got)
	switch {
	case v.Provenance == measure.Volatile:
		x.Verdict, x.Want = measure.NotPredicted, []string{}
	case x.Index >= 0 && v.Provenance == measure.OneOf:
		x.Verdict = measure.OneOfMatch
	case x.Index >= 0 && len(v.Events) == 0:
		x.Verdict = measure.Unused
	case x.Index >= 0:
		x.Verdict = measure.Match
	}
	return x
}

// otherFirmware leaves out what another firmware measures otherwise.
func otherFirmware(r *measure.CheckResult) {
	for i := range r.Registers {
		x := &r.Registers[i]
		if !slices.Contains(imageRegisters, x.Register) && differs(*x) {
			x.Verdict, x.Reason = measure.NotChecked, "the values are for another firmware"
		}
	}
}

// nameEvents says of an event that differs what it is now, where its name alone does not
// tell: many have the same.
func (c *registerCheck) nameEvents(x *measure.RegisterCheck) {
	var register int
	if _, err := fmt.Sscanf(x.Register, "pcr%d", &register); err != nil {
		return
	}
	for i := range x.Differences {
		d := &x.Differences[i]
		for _, e := range c.events(register) {
			if d.Kind == eventlog.Changed && d.Got == hex.EncodeToString(e.Digest(bankShown)) && e.Name != d.Name {
				d.Source = strings.TrimPrefix(d.Source+", now "+e.Name, ", ")
			}
		}
	}
}
