package eventlog

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// schema is the version of the JSON form.
const schema = 1

// jsonLog is the JSON form of a log: eventlog.json. Digests are in hex, by bank;
// data is in hex.
type jsonLog struct {
	Schema          int         `json:"schema"`
	Banks           []string    `json:"banks"`
	CC              bool        `json:"cc,omitempty"`
	Legacy          bool        `json:"legacy,omitempty"`
	StartupLocality uint8       `json:"startup_locality"`
	Events          []jsonEvent `json:"events"`
}

type jsonEvent struct {
	Register int               `json:"register"`
	Type     string            `json:"type"`
	Name     string            `json:"name"`
	Source   string            `json:"source,omitempty"`
	Digests  map[string]string `json:"digests"`
	Data     string            `json:"data"`
}

// MarshalJSON writes the log with the names and sources of its events. Equal
// logs give equal bytes. The Spec ID and the order of an event's digests are not
// kept: they do not enter a register.
func (l *Log) MarshalJSON() ([]byte, error) {
	j := jsonLog{Schema: schema, CC: l.CC, Legacy: l.Legacy, StartupLocality: l.StartupLocality, Banks: []string{}, Events: []jsonEvent{}}
	for _, a := range l.Algs {
		j.Banks = append(j.Banks, a.String())
	}
	for i := range l.Events {
		e := &l.Events[i]
		if err := l.fits(e); err != nil {
			return nil, fmt.Errorf("eventlog: event %d: %w", i, err)
		}
		je := jsonEvent{Register: e.Register, Type: e.Type.String(), Name: e.Name, Source: e.Source, Digests: map[string]string{}, Data: hex.EncodeToString(e.Data)}
		for _, d := range e.Digests {
			je.Digests[d.Alg.String()] = hex.EncodeToString(d.Value)
		}
		j.Events = append(j.Events, je)
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes, and nothing else.
func (l *Log) UnmarshalJSON(b []byte) error {
	var j jsonLog
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return fmt.Errorf("eventlog: %w", err)
	}
	if j.Schema != schema {
		return fmt.Errorf("eventlog: schema %d: want %d", j.Schema, schema)
	}
	out := Log{CC: j.CC, Legacy: j.Legacy, StartupLocality: j.StartupLocality, Spec: EDK2}
	for _, name := range j.Banks {
		a, err := ParseAlg(name)
		if err != nil {
			return err
		}
		out.Algs = append(out.Algs, a)
	}
	for i, je := range j.Events {
		e, err := je.event(out.Algs)
		if err == nil {
			err = out.fits(&e)
		}
		if err != nil {
			return fmt.Errorf("eventlog: event %d: %w", i, err)
		}
		out.Events = append(out.Events, e)
	}
	*l = out
	return nil
}

func (j *jsonEvent) event(banks []Alg) (Event, error) {
	e := Event{Register: j.Register, Name: j.Name, Source: j.Source}
	var err error
	if e.Type, err = ParseType(j.Type); err != nil {
		return e, err
	}
	if e.Data, err = hex.DecodeString(j.Data); err != nil {
		return e, fmt.Errorf("data: %w", err)
	}
	for _, a := range banks {
		text, ok := j.Digests[a.String()]
		if !ok {
			continue
		}
		v, err := hex.DecodeString(text)
		if err != nil {
			return e, fmt.Errorf("%v digest: %w", a, err)
		}
		e.Digests = append(e.Digests, Digest{a, v})
	}
	if len(e.Digests) != len(j.Digests) {
		return e, fmt.Errorf("%d digests, %d of them in the log's banks", len(j.Digests), len(e.Digests))
	}
	return e, nil
}

// ParseType returns the type of a name that String gives.
func ParseType(name string) (Type, error) {
	for t, n := range typeNames {
		if n == name {
			return t, nil
		}
	}
	if number, ok := strings.CutPrefix(name, "EV_0x"); ok {
		if n, err := strconv.ParseUint(number, 16, 32); err == nil {
			return Type(n), nil
		}
	}
	return 0, fmt.Errorf("eventlog: event type %q", name)
}
