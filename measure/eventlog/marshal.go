package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Marshal writes the log in its form, without padding. Parse reads l back from
// it, but for Name and Source, which no log has. It fails when an event does
// not fit the log's banks or when StartupLocality is not what its event says.
func (l *Log) Marshal() ([]byte, error) {
	var b []byte
	if !l.Legacy {
		id, err := l.specID()
		if err != nil {
			return nil, err
		}
		b = appendLegacy(b, &id)
	} else if len(l.Algs) != 1 || l.Algs[0] != SHA1 {
		return nil, fmt.Errorf("eventlog: SHA-1 log with banks %v", l.Algs)
	}
	checked := Log{CC: l.CC}
	for i := range l.Events {
		e := &l.Events[i]
		if err := l.fits(e); err != nil {
			return nil, fmt.Errorf("eventlog: event %d: %w", i, err)
		}
		checked.Events = l.Events[:i]
		if err := checked.check(e); err != nil {
			return nil, fmt.Errorf("eventlog: event %d: %w", i, err)
		}
		if l.Legacy {
			b = appendLegacy(b, e)
		} else {
			b = appendAgile(b, e)
		}
	}
	if checked.StartupLocality != l.StartupLocality {
		return nil, fmt.Errorf("eventlog: startup locality %d, its event says %d", l.StartupLocality, checked.StartupLocality)
	}
	return b, nil
}

// fits tells whether e has at most one digest a bank, each of the bank's size.
func (l *Log) fits(e *Event) error {
	if l.Legacy && len(e.Digests) != 1 {
		return fmt.Errorf("%d digests: want one", len(e.Digests))
	}
	for i, d := range e.Digests {
		twice := slices.ContainsFunc(e.Digests[:i], func(o Digest) bool { return o.Alg == d.Alg })
		if twice || !slices.Contains(l.Algs, d.Alg) || len(d.Value) != d.Alg.Size() {
			return fmt.Errorf("digest %d is %d bytes of %v: want each of %v once", i, len(d.Value), d.Alg, l.Algs)
		}
	}
	return nil
}

func (l *Log) specID() (Event, error) {
	if len(l.Algs) == 0 || len(l.Spec.VendorInfo) > 255 {
		return Event{}, errors.New("eventlog: Spec ID event: want a bank and at most 255 bytes of vendor information")
	}
	s, le := l.Spec, binary.LittleEndian
	b := le.AppendUint32(slices.Clone(specID03), s.PlatformClass)
	b = append(b, s.Minor, s.Major, s.Errata, s.UintnSize)
	b = le.AppendUint32(b, uint32(len(l.Algs)))
	for _, a := range l.Algs {
		b = le.AppendUint16(b, uint16(a))
		b = le.AppendUint16(b, uint16(a.Size()))
	}
	b = append(append(b, uint8(len(s.VendorInfo))), s.VendorInfo...)
	zero := Digest{SHA1, make([]byte, SHA1.Size())}
	return Event{Register: l.specRegister(), Type: NoAction, Digests: []Digest{zero}, Data: b}, nil
}

// specRegister is the register that the Spec ID event names: 0, or what takes
// its place in a TD, RTMR 0.
func (l *Log) specRegister() int {
	if l.CC && !l.Spec.ZeroRegister {
		return 1
	}
	return 0
}

func appendLegacy(b []byte, e *Event) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Register))
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Type))
	b = append(b, e.Digests[0].Value...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
	return append(b, e.Data...)
}

func appendAgile(b []byte, e *Event) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(e.Register))
	b = le.AppendUint32(b, uint32(e.Type))
	b = le.AppendUint32(b, uint32(len(e.Digests)))
	for _, d := range e.Digests {
		b = le.AppendUint16(b, uint16(d.Alg))
		b = append(b, d.Value...)
	}
	b = le.AppendUint32(b, uint32(len(e.Data)))
	return append(b, e.Data...)
}
