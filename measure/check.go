package measure

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// Observed is what a guest reported.
type Observed struct {
	Machine Machine       // that it ran in
	Log     *eventlog.Log // the firmware's

	// The registers before and after the guest's own extends: bank -> register
	// -> hex. After may be nil when the guest extended nothing.
	Before, After map[string]map[int]string
}

// Verdict is the outcome for one register.
type Verdict string

// The verdicts.
const (
	Match        Verdict = "match"
	OneOfMatch   Verdict = "one of"        // Index says which
	Unused       Verdict = "unused"        // nothing extends it, as predicted
	NotPredicted Verdict = "not predicted" // for Reason; the events that are known are as predicted
	Mismatch     Verdict = "mismatch"
	LogMismatch  Verdict = "log mismatch" // the log does not account for the register
	NotChecked   Verdict = "not checked"  // this boot cannot tell, for Reason
)

// CheckResult is the comparison of a boot with its prediction.
type CheckResult struct {
	Schema    int             `json:"schema"`
	Profile   string          `json:"profile"`
	Machine   Shape           `json:"machine"`
	Passed    bool            `json:"ok"`
	Notes     []string        `json:"notes"`
	Registers []RegisterCheck `json:"registers"`
}

// RegisterCheck is the verdict on one register in one bank at one time.
type RegisterCheck struct {
	Register    string            `json:"register"` // "pcr4"
	Bank        string            `json:"bank"`
	Phase       string            `json:"phase"`
	Verdict     Verdict           `json:"verdict"`
	Provenance  Provenance        `json:"provenance"`
	Index       int               `json:"index"` // in want
	Want        []string          `json:"want"`  // hex
	Got         string            `json:"got"`   // hex
	Reason      string            `json:"reason"`
	Differences []EventDifference `json:"differences"`
}

// EventDifference is one event that is not as predicted.
type EventDifference struct {
	Index  int    `json:"index"` // among the register's events
	Kind   string `json:"kind"`  // missing, extra, changed, moved: package eventlog
	Name   string `json:"name"`
	Type   string `json:"type"`
	Source string `json:"source"` // of what was predicted
	Want   string `json:"want"`   // digest, hex
	Got    string `json:"got"`
}

// String names the event: "changed: section .linux".
func (d EventDifference) String() string {
	s := d.Kind + ": " + d.Name
	if d.Source != "" {
		s += " (" + d.Source + ")"
	}
	return s
}

const checkSchema = 1

// Check compares a boot with m as it was written.
func Check(m *Measurements, o *Observed) (*CheckResult, error) {
	shape := o.Machine.shape()
	if !slices.Contains(m.Machines, shape) {
		return nil, fmt.Errorf("measure: check: no prediction for %s with %d vCPUs and %d MiB", shape.Type, shape.VCPUs, shape.MemoryMiB)
	}
	if o.Log == nil {
		return nil, errors.New("measure: check: the guest reported no event log")
	}
	for i := range m.Values {
		if p := m.Values[i].Platform; p != PlatformTPM {
			return nil, fmt.Errorf("measure: check: the document is for platform %s: registers of a TPM do not tell about it", p)
		}
	}
	c := newChecker(o)
	r := &CheckResult{Schema: checkSchema, Profile: m.Profile, Machine: shape, Passed: true, Notes: notes(m, o), Registers: []RegisterCheck{}}
	done := map[[2]string]bool{}
	for i := range m.Values {
		v := &m.Values[i]
		if v.Shape != nil && *v.Shape != shape {
			continue
		}
		x, err := c.check(v)
		if err != nil {
			return nil, err
		}
		r.add(x)
		done[[2]string{v.Register, v.Bank}] = true
	}
	for _, bank := range banksOf(m) {
		for i := range registers {
			if name := fmt.Sprintf("pcr%d", i); !done[[2]string{name, bank}] {
				r.add(RegisterCheck{Register: name, Bank: bank, Verdict: Mismatch, Reason: "the document has no value for it", Got: o.Before[bank][i]})
			}
		}
	}
	c.settled(m, r)
	return r, nil
}

// OK tells whether no register holds anything but what was predicted. A register
// that is not predicted does not count against it.
func (r *CheckResult) OK() bool { return r.Passed }

func (r *CheckResult) add(x RegisterCheck) {
	if x.Want == nil {
		x.Want = []string{}
	}
	if x.Differences == nil {
		x.Differences = []EventDifference{}
	}
	r.Passed = r.Passed && x.Verdict != Mismatch && x.Verdict != LogMismatch
	r.Registers = append(r.Registers, x)
}

// notes are what a reader should know besides the verdicts.
func notes(m *Measurements, o *Observed) []string {
	out := slices.Clone(m.Notes)
	if m.Versions.VMM != "" && o.Machine.VMM != "" && m.Versions.VMM != o.Machine.VMM {
		out = append(out, fmt.Sprintf("predicted for %s, ran in %s", m.Versions.VMM, o.Machine.VMM))
	}
	for _, f := range o.Log.Inconsistent() {
		out = append(out, "the event log contradicts itself: "+f.String())
	}
	if out == nil {
		out = []string{}
	}
	return out
}

func banksOf(m *Measurements) (out []string) {
	for i := range m.Values {
		if b := m.Values[i].Bank; !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	return out
}

// checker compares values with one report.
type checker struct {
	o         *Observed
	described eventlog.Log // with names
	replays   map[string]map[int][]byte
}

func newChecker(o *Observed) *checker {
	c := &checker{o: o, described: *o.Log, replays: map[string]map[int][]byte{}}
	c.described.Events = slices.Clone(o.Log.Events)
	c.described.Describe()
	return c
}

func (c *checker) check(v *Value) (RegisterCheck, error) {
	register, alg, err := v.register()
	if err != nil {
		return RegisterCheck{}, err
	}
	x := RegisterCheck{Register: v.Register, Bank: v.Bank, Phase: v.Phase, Provenance: v.Provenance, Want: v.values(), Reason: v.Reason}
	if c.withoutInitdata(v, register) {
		x.Got, x.Verdict, x.Reason = c.o.Before[v.Bank][register], NotChecked, "this guest was given no initdata"
		return x, nil
	}
	reported := c.o.Before
	if v.Phase != "" {
		reported = c.o.After
	}
	var ok bool
	if x.Got, ok = reported[v.Bank][register]; !ok {
		return x, fmt.Errorf("measure: check: the guest did not report %s of bank %s, phase %q", v.Register, v.Bank, v.Phase)
	}
	logged, err := c.replay(alg, register)
	if err != nil {
		return x, err
	}
	x.Index = slices.Index(x.Want, x.Got)
	switch {
	case v.firmwareOnly() && x.Got != logged:
		x.Verdict, x.Reason = LogMismatch, fmt.Sprintf("the log ends with %s", logged)
	case x.Index >= 0 && v.Provenance == OneOf:
		x.Verdict = OneOfMatch
	case x.Index >= 0 && len(v.Events) == 0:
		x.Verdict = Unused
	case x.Index >= 0:
		x.Verdict = Match
	default:
		c.explain(&x, v, register, alg)
	}
	return x, nil
}

// explain finds the events behind a value that is not as predicted, or was not
// predicted.
func (c *checker) explain(x *RegisterCheck, v *Value, register int, alg eventlog.Alg) {
	want, got := v.logged(register, alg), c.events(register)
	for _, d := range eventlog.Diff(fillUnknown(want, got, alg), got, alg) {
		x.Differences = append(x.Differences, difference(d, alg))
	}
	if v.Provenance == Volatile && len(x.Differences) == 0 {
		x.Verdict = NotPredicted
		return
	}
	x.Verdict = Mismatch
	if len(x.Differences) == 0 {
		x.Reason = "extended otherwise than predicted after the firmware's log: " + strings.Join(v.unlogged(), ", ")
	}
}

func (c *checker) events(register int) (out []eventlog.Event) {
	for _, e := range c.described.Events {
		if e.Register == register {
			out = append(out, e)
		}
	}
	return out
}

// replay returns what the log makes of a register.
func (c *checker) replay(alg eventlog.Alg, register int) (string, error) {
	values, ok := c.replays[alg.String()]
	if !ok {
		var err error
		if values, err = c.o.Log.Replay(alg); err != nil {
			return "", fmt.Errorf("measure: check: %w", err)
		}
		c.replays[alg.String()] = values
	}
	if values[register] == nil {
		return hex.EncodeToString(resetValue(alg, register)), nil
	}
	return hex.EncodeToString(values[register]), nil
}

// settled checks that a register without phases is the same after the guest's
// own extends. One that is volatile may move.
func (c *checker) settled(m *Measurements, r *CheckResult) {
	moves := map[[2]string]bool{}
	for i := range m.Values {
		if v := &m.Values[i]; v.Phase != "" || v.Provenance == Volatile {
			moves[[2]string{v.Register, v.Bank}] = true
		}
	}
	for _, bank := range banksOf(m) {
		for i := range registers {
			name := fmt.Sprintf("pcr%d", i)
			after, ok := c.o.After[bank][i]
			if !ok || moves[[2]string{name, bank}] || after == c.o.Before[bank][i] {
				continue
			}
			r.add(RegisterCheck{Register: name, Bank: bank, Phase: "after", Verdict: Mismatch,
				Want: []string{c.o.Before[bank][i]}, Got: after, Reason: "extended by the guest, which was to leave it alone"})
		}
	}
}

// register returns the number of the register, 0 for one without a number.
func (v *Value) register() (int, eventlog.Alg, error) {
	alg, err := eventlog.ParseAlg(v.Bank)
	if err != nil {
		return 0, 0, err
	}
	digits := strings.TrimLeft(v.Register, "abcdefghijklmnopqrstuvwxyz_")
	if digits == "" {
		return 0, alg, nil
	}
	n, err := strconv.Atoi(digits)
	return n, alg, err
}

// firmwareOnly tells whether the firmware's log has all of the register's events.
func (v *Value) firmwareOnly() bool {
	return !slices.ContainsFunc(v.Events, func(e EventRef) bool { return e.Unlogged })
}

func (v *Value) unlogged() (out []string) {
	for _, e := range v.Events {
		if e.Unlogged {
			out = append(out, e.Name)
		}
	}
	return out
}

// fillUnknown gives the events of want whose digest is not known that of an
// event of got with the same type and name, so that a comparison shows only what
// differs from what is known. One that is named by its type alone stands for all
// events of that type.
func fillUnknown(want, got []eventlog.Event, alg eventlog.Alg) []eventlog.Event {
	taken := make([]bool, len(got))
	for _, w := range want {
		i := slices.IndexFunc(got, func(g eventlog.Event) bool {
			return w.Digests != nil && string(g.Digest(alg)) == string(w.Digest(alg))
		})
		if i >= 0 {
			taken[i] = true
		}
	}
	var out []eventlog.Event
	for _, w := range want {
		if w.Digests != nil {
			out = append(out, w)
			continue
		}
		all, found := w.Name == w.Type.String(), false
		for i, g := range got {
			if !taken[i] && g.Type == w.Type && (all || g.Name == w.Name) && (all || !found) {
				taken[i], found = true, true
				g.Source = w.Source
				out = append(out, g)
			}
		}
		if !found {
			out = append(out, w)
		}
	}
	return out
}

func difference(d eventlog.Difference, alg eventlog.Alg) EventDifference {
	out := EventDifference{Index: d.Index, Kind: d.Kind}
	if d.Got != nil {
		out.Name, out.Type, out.Got = d.Got.Name, d.Got.Type.String(), hex.EncodeToString(d.Got.Digest(alg))
	}
	if d.Want != nil {
		out.Name, out.Type, out.Want, out.Source = d.Want.Name, d.Want.Type.String(), hex.EncodeToString(d.Want.Digest(alg)), d.Want.Source
	}
	return out
}
