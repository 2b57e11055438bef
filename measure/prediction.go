package measure

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// Prediction is what one boot will measure.
type Prediction struct {
	Platform string // PlatformTPM or PlatformTDX
	Machine  Machine
	Versions Versions
	Notes    []string // what a reader should know: versions that no boot has proved
	Banks    []eventlog.Alg
	Events   []Event // in the order of the log, then those that no log has; of a trust domain with the registers of a CC log
	Values   []Value // by register, bank and phase

	key   Key    // of the platform record that would fit
	image string // what is booted, as in Record
}

// Event is one predicted event.
type Event struct {
	eventlog.Event            // without digests when they are not known
	Provenance     Provenance // Predicted, Recorded or Volatile
	Reason         string     // why it is Volatile
	Unlogged       bool       // extended by the kernel or by userspace: the firmware's log has it not
}

// Log returns the predicted events as an event log. Events whose digest is not
// known, and those that no log has, are not in it.
func (p *Prediction) Log() *eventlog.Log {
	l := &eventlog.Log{Algs: slices.Clone(p.Banks), Spec: eventlog.EDK2, CC: p.Platform == PlatformTDX}
	for _, e := range p.Events {
		if !e.Unlogged && e.Provenance != Volatile {
			l.Events = append(l.Events, e.Event)
		}
	}
	return l
}

const (
	registers = 24 // of a PC client TPM

	registerPhases = 11
)

func (p *predictor) prediction() *Prediction {
	out := &Prediction{Platform: PlatformTPM, Machine: p.m, Versions: p.versions, Notes: p.notes, Banks: p.Banks, key: p.key(), image: p.os.digest()}
	if p.TD != nil {
		out.Platform, out.Values = PlatformTDX, p.valuesTD()
	} else {
		out.Values = p.values()
	}
	out.Events = slices.Concat(p.events, p.variant(registerIMA, 0), p.phases())
	for i := range out.Events {
		e := &out.Events[i]
		e.Digests = slices.DeleteFunc(slices.Clone(e.Digests), func(d eventlog.Digest) bool { return !slices.Contains(p.Banks, d.Alg) })
	}
	return out
}

// values returns those of all PCRs.
func (p *predictor) values() (out []Value) {
	for r := range registers {
		for _, bank := range p.Banks {
			v := Value{Platform: PlatformTPM, Register: fmt.Sprintf("pcr%d", r), Bank: bank.String()}
			out = append(out, p.value(v, r, bank, p.lists(r)))
			if r == registerPhases && len(p.Phases) > 0 {
				v.Phase = strings.Join(p.Phases, ":")
				out = append(out, p.value(v, r, bank, [][]Event{slices.Concat(p.lists(r)[0], p.phases())}))
			}
		}
	}
	return out
}

// lists returns the possible lists of a register's events, the likeliest first.
func (p *predictor) lists(register int) [][]Event {
	if v, ok := p.variants[register]; ok {
		return v
	}
	var events []Event
	for _, e := range p.events {
		if e.Register == register {
			events = append(events, e)
		}
	}
	return [][]Event{events}
}

// variant returns one of the variants of a register, nothing if it has none.
func (p *predictor) variant(register, i int) []Event {
	if v := p.variants[register]; i < len(v) {
		return v[i]
	}
	return nil
}

// value completes v by what the possible lists of a register's events come to.
func (p *predictor) value(v Value, register int, bank eventlog.Alg, lists [][]Event) Value {
	v.Provenance, v.Events = Predicted, []EventRef{}
	for _, e := range lists[0] {
		v.Events = append(v.Events, reference(e, bank))
	}
	if reasons := volatileReasons(lists); len(reasons) > 0 {
		v.Provenance, v.Reason = Volatile, strings.Join(reasons, "; ")
		return v
	}
	var values []string
	for _, l := range lists {
		if folded := hex.EncodeToString(fold(bank, register, l)); !slices.Contains(values, folded) {
			values = append(values, folded)
		}
		for _, e := range l {
			if e.Provenance == Recorded {
				v.Provenance = Recorded
			}
		}
	}
	if len(lists[0]) == 0 && len(values) == 1 {
		v.Reason = p.unusedReason(register)
	}
	if len(values) > 1 {
		v.Provenance, v.OneOf, v.Reason = OneOf, values, p.variantReason(register)
		return v
	}
	v.Value = values[0]
	return v
}

func reference(e Event, bank eventlog.Alg) EventRef {
	r := EventRef{Name: e.Name, Type: e.Type.String(), Digest: hex.EncodeToString(e.Digest(bank)), Source: e.Source, Unlogged: e.Unlogged}
	if e.Provenance != Predicted {
		r.Provenance = e.Provenance
	}
	return r
}

func volatileReasons(lists [][]Event) (out []string) {
	for _, l := range lists {
		for _, e := range l {
			if e.Provenance == Volatile && !slices.Contains(out, e.Reason) {
				out = append(out, e.Reason)
			}
		}
	}
	return out
}

// fold extends a register, from its value after a reset, with events.
func fold(bank eventlog.Alg, register int, events []Event) []byte {
	value := resetValue(bank, register)
	for _, e := range events {
		if e.Type != eventlog.NoAction {
			value = eventlog.Extend(bank, value, e.Digest(bank))
		}
	}
	return value
}

// resetValue is what a register holds after TPM2_Startup: zeros, or ones in the
// registers of a dynamic launch (TCG PC Client Platform TPM Profile 1.05,
// section 4.6.2).
func resetValue(bank eventlog.Alg, register int) []byte {
	v := make([]byte, bank.Size())
	if register >= 17 && register <= 22 {
		for i := range v {
			v[i] = 0xff
		}
	}
	return v
}

func (p *predictor) unusedReason(register int) string {
	switch {
	case p.TD != nil:
		return "not used: nothing extends it before the agent runs"
	case register >= 17 && register <= 22:
		return "not used: of a dynamic launch, which does not happen"
	case register == 16 || register == 23:
		return "not used: for debugging and applications"
	}
	return "not used: nothing in this boot extends it"
}
