package measure

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// RegisterChange is a value in which two documents differ.
type RegisterChange struct {
	Register string   `json:"register"`
	CPU      string   `json:"cpu,omitempty"`
	Bank     string   `json:"bank"`
	Phase    string   `json:"phase"`
	Events   []string `json:"events"` // what differs, by name
}

// Compare lists the registers that move from a to b, and the events that move
// them. Values for a shape are compared with those for the same shape.
func Compare(a, b *Measurements) []RegisterChange {
	out := []RegisterChange{}
	for _, shape := range a.Machines {
		for i := range a.Values {
			va := &a.Values[i]
			if va.Shape == nil && shape != a.Machine || va.Shape != nil && *va.Shape != shape {
				continue
			}
			vb := b.find(va, shape)
			if vb != nil && reflect.DeepEqual(va.values(), vb.values()) && va.Provenance == vb.Provenance {
				continue
			}
			c := change(va, vb)
			if vb != nil && (va.Register == launchDigest || va.Register == mrtd) {
				c.Events = c.Events[:min(1, len(c.Events))] // it moves all that follow
			}
			if vb != nil && va.Register == launchDigest {
				c.Events = slices.Concat(changedInputs(a, b), c.Events)
			}
			out = append(out, c)
		}
	}
	return out
}

// changedInputs names what a launch digest was computed from otherwise.
func changedInputs(a, b *Measurements) (out []string) {
	for _, in := range a.Inputs {
		i := slices.IndexFunc(b.Inputs, func(o Input) bool { return o.Name == in.Name })
		switch {
		case i < 0:
			out = append(out, "missing: "+in.Name)
		case b.Inputs[i].SHA256 != in.SHA256:
			out = append(out, "changed: "+in.Name)
		}
	}
	for _, in := range b.Inputs {
		if !slices.ContainsFunc(a.Inputs, func(o Input) bool { return o.Name == in.Name }) {
			out = append(out, "extra: "+in.Name)
		}
	}
	if a.SNP != nil && b.SNP != nil {
		for _, f := range []struct{ name, a, b string }{
			{"VMM", a.SNP.VMM, b.SNP.VMM}, {"era of host kernels", a.SNP.Era, b.SNP.Era}, {"guest features", a.SNP.GuestFeatures, b.SNP.GuestFeatures},
		} {
			if f.a != f.b {
				out = append(out, fmt.Sprintf("changed: %s %s, now %s", f.name, f.a, f.b))
			}
		}
	}
	return out
}

// find returns m's value of the register, bank and phase of v in a shape.
func (m *Measurements) find(v *Value, shape Shape) *Value {
	for i := range m.Values {
		x := &m.Values[i]
		if x.Platform == v.Platform && x.Register == v.Register && x.Bank == v.Bank && x.Phase == v.Phase && x.CPU == v.CPU && (x.Shape == nil || *x.Shape == shape) {
			return x
		}
	}
	return nil
}

func change(a, b *Value) RegisterChange {
	c := RegisterChange{Register: a.Register, CPU: a.CPU, Bank: a.Bank, Phase: a.Phase, Events: []string{}}
	if b == nil {
		c.Events = append(c.Events, "no longer predicted")
		return c
	}
	register, alg, err := a.register()
	if err != nil {
		return c
	}
	for _, d := range eventlog.Diff(all(a, register, alg), all(b, register, alg), alg) {
		c.Events = append(c.Events, difference(d, alg).String())
	}
	if a.Provenance != b.Provenance {
		c.Events = append(c.Events, fmt.Sprintf("%s, now %s", a.Provenance, b.Provenance))
	}
	return c
}

// all returns a value's events, those that no log has too.
func all(v *Value, register int, alg eventlog.Alg) []eventlog.Event {
	x := *v
	x.Events = nil
	for _, e := range v.Events {
		e.Unlogged = false
		x.Events = append(x.Events, e)
	}
	return x.logged(register, alg)
}
