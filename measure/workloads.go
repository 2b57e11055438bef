package measure

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// PhaseWorkloads is when a guest has measured all its workloads, and none of them
// has started.
const PhaseWorkloads = "workloads"

// A WorkloadEvent is one that the guest's agent extends.
type WorkloadEvent struct {
	Name   string // for people
	Data   []byte // what is hashed: the tagged event
	Reason string // why Data is not known
}

// Registers of workloads that are something special.
const (
	registerWorkloads = "rtmr3" // of a trust domain
	registerCopy      = "pcr23"
)

// ExtendsRTMR tells whether a kernel lets programs of a trust domain extend RTMR 3.
// Linux, Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest.
func ExtendsRTMR(release string) bool { return compareVersions(release, "6.16") >= 0 }

// AddWorkloads adds what registers hold once the guest has measured its workloads:
// the given PCRs in every bank, RTMR 3 of a trust domain whose kernel lets it. The
// values without a phase stay. An SNP guest has neither, and gets no value.
func (m *Measurements) AddWorkloads(events []WorkloadEvent, pcrs ...int) error {
	var names []string
	if ExtendsRTMR(m.Versions.Kernel) {
		names = append(names, registerWorkloads)
	}
	for _, n := range pcrs {
		names = append(names, fmt.Sprintf("pcr%d", n))
	}
	var out []Value
	for _, v := range m.Values {
		out = append(out, v)
		if !slices.Contains(names, v.Register) {
			continue
		}
		if v.Phase != "" {
			return fmt.Errorf("measure: workloads: %s has a phase %q already", v.Register, v.Phase)
		}
		after, err := v.withWorkloads(events)
		if err != nil {
			return err
		}
		out = append(out, after)
	}
	m.Values = out
	return nil
}

// withWorkloads is v after the events. With one that is not known there is no value.
func (v Value) withWorkloads(events []WorkloadEvent) (Value, error) {
	bank, err := eventlog.ParseAlg(v.Bank)
	if err != nil {
		return v, err
	}
	var reasons []string
	v.Phase, v.Events = PhaseWorkloads, slices.Clone(v.Events)
	if v.Provenance != Volatile {
		v.Reason = ""
	}
	for _, e := range events {
		ref := EventRef{Name: e.Name, Type: eventlog.EventTag.String(), Source: "workloads, by the guest", Unlogged: true}
		if e.Data != nil {
			digest := bank.Sum(e.Data)
			ref.Digest = hex.EncodeToString(digest)
			v.fold(bank, digest)
		} else {
			ref.Provenance = Volatile
			if !slices.Contains(reasons, e.Reason) {
				reasons = append(reasons, e.Reason)
			}
		}
		v.Events = append(v.Events, ref)
	}
	switch {
	case len(reasons) > 0:
		v.Provenance, v.Value, v.OneOf, v.Reason = Volatile, "", nil, strings.Join(reasons, "; ")
	case v.Register == registerCopy && v.Provenance != Volatile:
		v.Reason = "whoever reaches the TPM in the guest can reset it: a copy for tools that look there"
	}
	return v, nil
}

// fold extends what v may be by a digest.
func (v *Value) fold(bank eventlog.Alg, digest []byte) {
	next := func(h string) string {
		b, _ := hex.DecodeString(h) // written by a prediction
		return hex.EncodeToString(eventlog.Extend(bank, b, digest))
	}
	v.OneOf = slices.Clone(v.OneOf)
	for i := range v.OneOf {
		v.OneOf[i] = next(v.OneOf[i])
	}
	if v.Value != "" {
		v.Value = next(v.Value)
	}
}
