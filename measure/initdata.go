package measure

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// PhaseInitdata is when a guest has extended PCR 8 by the digest of its initdata,
// before it uses any of it.
const PhaseInitdata = "initdata"

const registerInitdata = "pcr8"

// ExtendInitdata adds what PCR 8 holds once a guest has extended it by the digest
// of its initdata, 32 bytes, in bank sha256; the other banks stay as they are. The
// values without a phase stay too: a guest that is given none extends nothing.
// Initdata Specification 0.1.0, "Integrity Binding for Different TEEs".
func (m *Measurements) ExtendInitdata(digest []byte) error {
	return m.extendInitdata(EventRef{Name: "initdata", Source: initdataMaybe}, digest)
}

// RequireInitdata does the same for a guest whose agent looks for initdata, and so
// always extends the register.
func (m *Measurements) RequireInitdata(digest []byte) error {
	return m.extendInitdata(EventRef{Name: "initdata", Source: initdataAlways}, digest)
}

// UnknownInitdata is for such a guest whose initdata is not known, for a reason: it
// may be given any, or none, for which it extends a marker.
func (m *Measurements) UnknownInitdata(reason string) error {
	event := EventRef{Name: "initdata", Source: initdataAlways, Type: eventlog.IPL.String(), Unlogged: true, Provenance: Volatile}
	return m.afterInitdata(func(v Value) Value {
		v.Phase, v.Events = PhaseInitdata, append(slices.Clone(v.Events), event)
		v.Provenance, v.Value, v.OneOf, v.Reason = Volatile, "", nil, reason
		return v
	})
}

// Sources of an event that not every guest extends, and of one that each does.
const (
	initdataMaybe  = "initdata, by the guest"
	initdataAlways = "initdata, by the agent"
)

func (m *Measurements) extendInitdata(event EventRef, digest []byte) error {
	if n := eventlog.SHA256.Size(); len(digest) != n {
		return fmt.Errorf("measure: initdata: digest of %d bytes: want %d", len(digest), n)
	}
	return m.afterInitdata(func(v Value) Value { return v.extended(event, digest) })
}

// afterInitdata adds what the register holds after the initdata to what it holds
// before.
func (m *Measurements) afterInitdata(after func(Value) Value) error {
	var out []Value
	for _, v := range m.Values {
		out = append(out, v)
		if v.Platform != PlatformTPM || v.Register != registerInitdata || v.Bank != eventlog.SHA256.String() {
			continue
		}
		if v.Phase != "" {
			return fmt.Errorf("measure: initdata: %s has a phase %q already", v.Register, v.Phase)
		}
		out = append(out, after(v))
	}
	if len(out) == len(m.Values) {
		return errors.New("measure: initdata: no value for pcr8 in bank sha256")
	}
	m.Values = out
	return nil
}

// extended is v after the digest of the initdata.
func (v Value) extended(event EventRef, digest []byte) Value {
	event.Type, event.Digest, event.Unlogged = eventlog.IPL.String(), hex.EncodeToString(digest), true
	v.Phase, v.Events = PhaseInitdata, append(slices.Clone(v.Events), event)
	v.fold(eventlog.SHA256, digest)
	switch {
	case v.Provenance == Volatile:
	case len(v.Events) > 1:
		v.Reason = "something else extends it first: a verifier that expects the digest alone refuses it"
	default:
		v.Reason = ""
	}
	return v
}

// withoutInitdata tells whether a value after the initdata is checked of a guest
// that was given none: it left the register alone.
func (c *checker) withoutInitdata(v *Value, register int) bool {
	before := c.o.Before[v.Bank][register]
	after, ok := c.o.After[v.Bank][register]
	maybe := slices.ContainsFunc(v.Events, func(e EventRef) bool { return e.Source == initdataMaybe })
	return v.Phase == PhaseInitdata && maybe && before != "" && (!ok || after == before)
}
