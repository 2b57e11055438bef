package eventlog

import (
	"fmt"
	"slices"
)

// Replay folds the log's events in one bank into the values that the registers
// end with. Only registers with events are in the result. Registers start from
// zeros, PCR 0 of a TPM with the startup locality in its last byte, or with 4
// there when an H-CRTM measured before the startup.
func (l *Log) Replay(alg Alg) (map[int][]byte, error) {
	if alg.Hash() == 0 || !slices.Contains(l.Algs, alg) {
		return nil, fmt.Errorf("eventlog: replay in %v: the log has %v", alg, l.Algs)
	}
	values := map[int][]byte{}
	for i := range l.Events {
		e := &l.Events[i]
		if e.Type == NoAction {
			continue
		}
		d := e.Digest(alg)
		if len(d) != alg.Size() {
			return nil, fmt.Errorf("eventlog: event %d: %v digest of %d bytes, want %d", i, alg, len(d), alg.Size())
		}
		v := values[e.Register]
		if v == nil {
			v = l.start(e, alg)
		}
		values[e.Register] = Extend(alg, v, d)
	}
	return values, nil
}

// start is what the register of its first event e begins with.
func (l *Log) start(e *Event, alg Alg) []byte {
	v := make([]byte, alg.Size())
	switch last := len(v) - 1; {
	case l.CC || e.Register != 0:
	case e.Type == HCRTM:
		v[last] = 4
	default:
		v[last] = l.StartupLocality
	}
	return v
}
