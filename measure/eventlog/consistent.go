package eventlog

import (
	"bytes"
	"fmt"
	"slices"
)

// Fault is an event that contradicts itself or its log.
type Fault struct {
	Index  int // in Log.Events
	Reason string
}

func (f Fault) String() string { return fmt.Sprintf("event %d: %s", f.Index, f.Reason) }

var (
	errorSeparator = []byte{1, 0, 0, 0}
	zeroSeparator  = []byte{0, 0, 0, 0}
	onesSeparator  = []byte{0xff, 0xff, 0xff, 0xff}
)

// Inconsistent returns the events that a truthful firmware does not log: those
// whose digest ought to be over their data and is not, and a second separator in
// one register, which would hide what ran before the first. Old firmware of trust
// domains did log one: its reason says so. Data of other types only describes
// what was measured and cannot be checked here: no finding is no proof of truth.
func (l *Log) Inconsistent() []Fault {
	var faults []Fault
	separators := l.separators()
	seen := map[int]bool{}
	for i := range l.Events {
		e := &l.Events[i]
		if d := foreignDigest(e); d != nil {
			faults = append(faults, Fault{i, fmt.Sprintf("%v digest %x is not that of the event's data", d.Alg, d.Value)})
		}
		if e.Type == Separator && seen[e.Register] {
			faults = append(faults, Fault{i, "second separator in " + l.RegisterName(e.Register) + l.oldFirmware(separators)})
		}
		seen[e.Register] = seen[e.Register] || e.Type == Separator
	}
	return faults
}

// separators counts them by register.
func (l *Log) separators() map[int]int {
	n := map[int]int{}
	for i := range l.Events {
		if l.Events[i].Type == Separator {
			n[l.Events[i].Register]++
		}
	}
	return n
}

// oldFirmware names the edk2 that logs just these separators: it put the one that
// PCR 1 to 6 get before the boot into RTMR 0, where that of PCR 7 was, and none
// into RTMR 1 (fixed by edk2 efaf8931bb).
func (l *Log) oldFirmware(separators map[int]int) string {
	if l.CC && separators[1] == 2 && separators[2] == 0 {
		return ", as edk2 before 202411 logs it; it is missing in rtmr1"
	}
	return ""
}

// foreignDigest returns the first digest of e that is over none of what it may be
// over, nil if all are right or e cannot be checked.
func foreignDigest(e *Event) *Digest {
	candidates := hashedData(e)
	if candidates == nil {
		return nil
	}
	for i := range e.Digests {
		d := &e.Digests[i]
		if d.Alg.Hash() != 0 && !slices.ContainsFunc(candidates, func(b []byte) bool { return bytes.Equal(d.Value, d.Alg.Sum(b)) }) {
			return d
		}
	}
	return nil
}

// hashedData returns what e's digests may be over, nil where that does not
// follow from its data.
func hashedData(e *Event) [][]byte {
	switch e.Type {
	case Action, EFIAction, SCRTMVersion, OmitBootDevices, VariableDriver, VariableBoot2, GPTEvent, GPTEvent2:
		return [][]byte{e.Data}
	case Separator:
		if bytes.Equal(e.Data, zeroSeparator) || bytes.Equal(e.Data, onesSeparator) {
			return [][]byte{e.Data}
		}
		// After an error the data says which one and the digest is over 1.
		return [][]byte{errorSeparator}
	case VariableAuthority:
		// shim up to 15.4 logs one byte more than it hashes.
		return [][]byte{e.Data, e.Data[:max(len(e.Data)-1, 0)]}
	case VariableBoot:
		// edk2 hashes the variable's data alone, other firmware all of it.
		if v, err := ParseVariable(e.Data); err == nil {
			return [][]byte{v.Data, e.Data}
		}
		return [][]byte{e.Data}
	}
	return nil
}
