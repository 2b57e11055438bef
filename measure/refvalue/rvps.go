package refvalue

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// Trustee's Reference Value Provider Service: rvps/src/lib.rs,
// reference_value.rs and extractors/sample/mod.rs at PolicyCommit.
const (
	rvpsVersion = "0.1.0" // of messages and of stored values: others are refused there
	rvpsSample  = "sample"
	rvpsTime    = "2006-01-02T15:04:05Z"
)

// MaxRVPS bounds what ParseRVPS reads, in bytes.
const MaxRVPS = 16 << 20

// message is what RVPS registers. Nothing in it is signed.
type message struct {
	Version string `json:"version"`
	Type    string `json:"type"`
	Payload string `json:"payload"`
}

// stored is a value as RVPS keeps it.
type stored struct {
	Version    string          `json:"version"`
	Name       string          `json:"name"`
	Expiration string          `json:"expiration"`
	Value      json.RawMessage `json:"value"`
}

// Sample returns the values by name, a list or a scalar as the policy compares
// them: the payload of the message. It has no room for Expires, and RVPS gives
// what it reads twelve months.
func (s *Set) Sample() ([]byte, error) {
	out := map[string]any{}
	for _, v := range s.Values {
		if err := v.sound(); err != nil {
			return nil, err
		}
		out[v.Name] = v.Compared()
	}
	return strictjson.Marshal(out)
}

// RVPS returns the message that registers the values.
func (s *Set) RVPS() ([]byte, error) {
	payload, err := s.Sample()
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(message{Version: rvpsVersion, Type: rvpsSample, Payload: base64.StdEncoding.EncodeToString(payload)})
}

// Stored returns the values as RVPS keeps them, in a list by name. Each has to
// say when it expires: Expires is needed.
func (s *Set) Stored() ([]byte, error) {
	if s.Expires.IsZero() {
		return nil, errors.New("refvalue: this form says when a value expires: no time is given")
	}
	out := []stored{}
	for _, v := range s.Values {
		if err := v.sound(); err != nil {
			return nil, err
		}
		b, err := json.Marshal(v.Compared())
		if err != nil {
			return nil, err
		}
		out = append(out, stored{rvpsVersion, v.Name, s.Expires.UTC().Format(rvpsTime), b})
	}
	return strictjson.Marshal(out)
}

// sound refuses what no form can say.
func (v *Value) sound() error {
	switch {
	case v.Name == "":
		return errors.New("refvalue: a value has no name")
	case len(v.Any) == 0:
		return fmt.Errorf("refvalue: %s: no value", v.Name)
	case v.Scalar && len(v.Any) > 1:
		return fmt.Errorf("refvalue: %s: %d values: the policy compares it with ==, so that there can be one", v.Name, len(v.Any))
	}
	return nil
}

// ParseRVPS reads a message of type sample, the payload of one, or a list of
// values as RVPS keeps them. It does not know which TEE they are for.
func ParseRVPS(b []byte) (*Set, error) {
	if len(b) > MaxRVPS {
		return nil, fmt.Errorf("refvalue: RVPS: %d bytes: want at most %d", len(b), MaxRVPS)
	}
	s, err := parseRVPS(b)
	if err != nil {
		return nil, fmt.Errorf("refvalue: RVPS: %w", err)
	}
	return s, nil
}

func parseRVPS(b []byte) (*Set, error) {
	if bytes.HasPrefix(bytes.TrimLeft(b, " \t\r\n"), []byte("[")) {
		return parseStored(b)
	}
	var payload map[string]json.RawMessage
	if err := strictjson.Unmarshal(b, &payload); err != nil {
		return nil, err
	}
	if !isMessage(payload) {
		return newSet(payload)
	}
	var m message
	if err := strictjson.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	if m.Version != "" && m.Version != rvpsVersion {
		return nil, fmt.Errorf("version %q: want %s", m.Version, rvpsVersion)
	}
	if m.Type != rvpsSample {
		return nil, fmt.Errorf("a message of type %q: want %s", m.Type, rvpsSample)
	}
	inner, err := base64.StdEncoding.DecodeString(m.Payload)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	payload = nil
	if err := strictjson.Unmarshal(inner, &payload); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return newSet(payload)
}

// ParsePlatform reads a Platform as people keep one in a file: a JSON object of
// values by name, each alone or in a list.
func ParsePlatform(b []byte) (Platform, error) {
	if len(b) > MaxRVPS {
		return nil, fmt.Errorf("refvalue: platform: %d bytes: want at most %d", len(b), MaxRVPS)
	}
	var payload map[string]json.RawMessage
	err := strictjson.Unmarshal(b, &payload)
	if err != nil {
		return nil, fmt.Errorf("refvalue: platform: %w", err)
	}
	s, err := newSet(payload)
	if err != nil {
		return nil, fmt.Errorf("refvalue: platform: %w", err)
	}
	p := Platform{}
	for _, v := range s.Values {
		p[v.Name] = v.Any
	}
	return p, nil
}

// isMessage tells a message from a payload, whose names are anybody's.
func isMessage(m map[string]json.RawMessage) bool {
	text := func(key string) bool { return strings.HasPrefix(string(m[key]), `"`) }
	return text("type") && text("payload")
}

func parseStored(b []byte) (*Set, error) {
	var list []stored
	if err := strictjson.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	payload := map[string]json.RawMessage{}
	var expires time.Time
	for i, x := range list {
		if _, ok := payload[x.Name]; ok {
			return nil, fmt.Errorf("%q is there twice", x.Name)
		}
		if x.Version != "" && x.Version != rvpsVersion {
			return nil, fmt.Errorf("%q: version %q: want %s", x.Name, x.Version, rvpsVersion)
		}
		t, err := time.Parse(rvpsTime, x.Expiration)
		if err != nil {
			return nil, fmt.Errorf("%q: expiration %q: want a time as %s", x.Name, x.Expiration, rvpsTime)
		}
		if i == 0 || t.Before(expires) {
			expires = t
		}
		payload[x.Name] = x.Value
	}
	s, err := newSet(payload)
	if err != nil {
		return nil, err
	}
	s.Expires = expires
	return s, nil
}

// newSet makes a set of decoded values.
func newSet(payload map[string]json.RawMessage) (*Set, error) {
	s := &Set{Values: []Value{}, Left: []Left{}, Facts: []Fact{}}
	for _, name := range slices.Sorted(maps.Keys(payload)) {
		v, err := newValue(name, payload[name])
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		s.Values = append(s.Values, v)
	}
	return s, nil
}

func newValue(name string, raw json.RawMessage) (Value, error) {
	if name == "" {
		return Value{}, errors.New("no name")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var x any
	if err := d.Decode(&x); err != nil {
		return Value{}, err
	}
	list, isList := x.([]any)
	if !isList {
		list = []any{x}
	}
	v := Value{Name: name, Scalar: !isList, Any: []any{}, From: []From{}}
	for _, e := range list {
		if n, ok := e.(json.Number); ok {
			i, err := n.Int64()
			if err != nil {
				return Value{}, fmt.Errorf("%s: want a whole number", n)
			}
			e = i
		}
		switch e.(type) {
		case string, int64, bool:
		default:
			return Value{}, fmt.Errorf("%v: want a text, a whole number or a boolean", e)
		}
		if i, ok := slices.BinarySearchFunc(v.Any, e, compareAny); !ok {
			v.Any = slices.Insert(v.Any, i, e)
		}
	}
	return v, nil
}
