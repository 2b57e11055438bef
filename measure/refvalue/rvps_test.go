package refvalue

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestMessage(t *testing.T) {
	s := &Set{Values: []Value{
		{Name: "a", Any: []any{"x", "y"}},
		{Name: "b", Scalar: true, Any: []any{true}},
		{Name: "c", Any: []any{int64(3)}},
	}}
	payload, err := s.Sample()
	if err != nil {
		t.Fatal(err)
	}
	const want = "{\n  \"a\": [\n    \"x\",\n    \"y\"\n  ],\n  \"b\": true,\n  \"c\": [\n    3\n  ]\n}\n"
	if string(payload) != want {
		t.Errorf("payload %q", payload)
	}
	b, err := s.RVPS()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]string // as RVPS decodes it: three texts
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(payload)}; !reflect.DeepEqual(m, want) {
		t.Errorf("message %v", m)
	}
	for _, form := range [][]byte{b, payload} {
		got, err := ParseRVPS(form)
		if err != nil || len(Diff(s, got)) > 0 || len(got.Values) != 3 || got.TEE != "" {
			t.Errorf("read back: %+v, %v", got, err)
		}
	}
}

// The message of Trustee's rvps/README.md, made as it says there.
func TestPublishedMessage(t *testing.T) {
	const sample = `{
    "test-binary-1": [
        "reference-value-1",
        "reference-value-2"
    ],
    "test-binary-2": [
        "reference-value-3",
        "reference-value-4"
    ]
}
`
	message := `{
    "version" : "0.1.0",
    "type": "sample",
    "payload": "` + base64.StdEncoding.EncodeToString([]byte(sample)) + `"
}
`
	s, err := ParseRVPS([]byte(message))
	if err != nil {
		t.Fatal(err)
	}
	v, _ := s.Value("test-binary-2")
	if len(s.Values) != 2 || v.Scalar || !reflect.DeepEqual(v.Any, []any{"reference-value-3", "reference-value-4"}) {
		t.Errorf("%+v", s.Values)
	}
}

func TestStored(t *testing.T) {
	s := &Set{Values: []Value{{Name: "a", Any: []any{"x"}}, {Name: "b", Scalar: true, Any: []any{int64(1)}}}}
	if _, err := s.Stored(); err == nil {
		t.Error("a form that needs a time is written without")
	}
	s.Expires = time.Date(2027, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	b, err := s.Stored()
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{
		{"version": "0.1.0", "name": "a", "expiration": "2027-01-02T02:04:05Z", "value": []any{"x"}},
		{"version": "0.1.0", "name": "b", "expiration": "2027-01-02T02:04:05Z", "value": 1.0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	back, err := ParseRVPS(b)
	if err != nil || len(Diff(s, back)) != 1 || Diff(s, back)[0].What != Expiry { // fractions of a second are lost
		t.Errorf("%+v, %v", Diff(s, back), err)
	}
	earliest, err := ParseRVPS([]byte(`[
		{"version": "0.1.0", "name": "a", "expiration": "2027-01-02T00:00:00Z", "value": 1},
		{"version": "0.1.0", "name": "b", "expiration": "2026-01-02T00:00:00Z", "value": 1}]`))
	if err != nil || earliest.Expires.Year() != 2026 {
		t.Errorf("%v, %v", earliest, err)
	}
}

func TestParseRVPSRefuses(t *testing.T) {
	payload := func(s string) string {
		return `{"version": "0.1.0", "type": "sample", "payload": "` + base64.StdEncoding.EncodeToString([]byte(s)) + `"}`
	}
	for name, row := range map[string]struct{ text, says string }{
		"empty":            {"", "EOF"},
		"text":             {"hello", "invalid character"},
		"version":          {strings.Replace(payload("{}"), "0.1.0", "0.2.0", 1), "version"},
		"type":             {strings.Replace(payload("{}"), "sample", "corim", 1), `type "corim"`},
		"base64":           {`{"type": "sample", "payload": "***"}`, "payload"},
		"inner":            {payload(`[1]`), "payload"},
		"key":              {strings.Replace(payload("{}"), `{"ver`, `{"more": "", "ver`, 1), "more"},
		"twice":            {`{"a": 1, "a": 2}`, "duplicate"},
		"null":             {`{"a": null}`, "whole number or a boolean"},
		"fraction":         {`{"a": 1.5}`, "whole number"},
		"too large":        {`{"a": 9223372036854775808}`, "whole number"},
		"nested":           {`{"a": [[1]]}`, "whole number or a boolean"},
		"object":           {`{"a": {"b": 1}}`, "whole number or a boolean"},
		"no name":          {`{"": 1}`, "no name"},
		"stored twice":     {`[{"name": "a", "expiration": "2027-01-02T00:00:00Z", "value": 1}, {"name": "a", "expiration": "2027-01-02T00:00:00Z", "value": 2}]`, "twice"},
		"stored time":      {`[{"name": "a", "expiration": "2027-01-02", "value": 1}]`, "expiration"},
		"stored version":   {`[{"version": "9", "name": "a", "expiration": "2027-01-02T00:00:00Z", "value": 1}]`, "version"},
		"stored, no value": {`[{"name": "a", "expiration": "2027-01-02T00:00:00Z"}]`, "EOF"},
		"size":             {`{"a": "` + strings.Repeat("x", MaxRVPS) + `"}`, "at most"},
	} {
		if _, err := ParseRVPS([]byte(row.text)); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What has no one reading is not written.
func TestUnsound(t *testing.T) {
	for name, v := range map[string]Value{
		"two for ==": {Name: "a", Scalar: true, Any: []any{"x", "y"}},
		"none":       {Name: "a"},
		"no name":    {Any: []any{"x"}},
	} {
		s := &Set{Values: []Value{v}, Expires: time.Unix(1, 0)}
		for form, write := range map[string]func() ([]byte, error){"sample": s.Sample, "rvps": s.RVPS, "stored": s.Stored} {
			if _, err := write(); err == nil {
				t.Errorf("%s: %s: no error", name, form)
			}
		}
	}
}

func FuzzParseRVPS(f *testing.F) {
	s := &Set{Values: []Value{{Name: "a", Any: []any{"x"}}, {Name: "b", Scalar: true, Any: []any{int64(-1)}}}, Expires: time.Unix(1e9, 0)}
	for _, write := range []func() ([]byte, error){s.Sample, s.RVPS, s.Stored} {
		b, err := write()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseRVPS(b)
		if err != nil {
			return
		}
		Check(s)
		first, err := s.RVPS()
		if err != nil {
			return // an empty list
		}
		again, err := ParseRVPS(first)
		if err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
		second, err := again.RVPS()
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%q, then %q, %v", first, second, err)
		}
	})
}
