package evidence

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// sample is a small report with every field set.
func sample() *Report {
	zero, one := strings.Repeat("00", 32), strings.Repeat("11", 32)
	return &Report{
		Schema:   ReportSchema,
		Agent:    "devel",
		Kernel:   "6.12.107+deb13-cloud-amd64",
		Cmdline:  "lockdown=integrity panic=-1",
		Root:     "initrd",
		Banks:    []string{"sha1", "sha256"},
		Before:   PCRs{"sha256": {0: zero, 11: zero, 23: zero}, "sha1": {0: strings.Repeat("ab", 20)}},
		After:    PCRs{"sha256": {0: zero, 11: one, 23: zero}},
		EventLog: []byte{0, 1, 2, 0xff},
		Extends:  []Extend{{PCR: 11, What: "enter-initrd", Digests: map[string]string{"sha256": one}}},
		Services: []Service{{Name: "echo", PID: 77, State: Running}},
		Stages:   []Stage{{Name: "kernel", MS: 900}, {Name: "ready", MS: 1200}},

		Attestation: &Attested{TEE: TEETPM, Brokers: []string{"kbs.example.com:8443"}},
		Memory:      20 << 10,
	}
}

func TestRoundTrip(t *testing.T) {
	var b bytes.Buffer
	if err := WriteReport(&b, sample()); err != nil {
		t.Fatal(err)
	}
	if got, want := binary.BigEndian.Uint32(b.Bytes()), uint32(b.Len()-4); got != want {
		t.Errorf("length is %d, want %d", got, want)
	}
	b.WriteString("what the port carries next")
	got, err := ReadReport(&b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sample()) {
		t.Errorf("got %+v, want %+v", got, sample())
	}
	if got, want := b.String(), "what the port carries next"; got != want {
		t.Errorf("behind the report: got %q, want %q", got, want)
	}
}

// A report of a guest without a TPM, as only a debug build makes one.
func TestEmptyReport(t *testing.T) {
	var b bytes.Buffer
	if err := WriteReport(&b, &Report{Schema: ReportSchema}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadReport(&b); err != nil {
		t.Error(err)
	}
}

func TestWriteBound(t *testing.T) {
	var b bytes.Buffer
	err := WriteReport(&b, &Report{Schema: ReportSchema, EventLog: make([]byte, MaxReport)})
	if err == nil || b.Len() != 0 {
		t.Errorf("got error %v and %d bytes, want an error and none", err, b.Len())
	}
}

// The largest event log must fit with everything else.
func TestMaxEventLogFits(t *testing.T) {
	r := sample()
	r.EventLog = make([]byte, MaxEventLog)
	var b bytes.Buffer
	if err := WriteReport(&b, r); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadReport(&b); err != nil {
		t.Error(err)
	}
}

func TestReadRefuses(t *testing.T) {
	var whole bytes.Buffer
	if err := WriteReport(&whole, sample()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want string
		in         []byte
	}{
		{"nothing", "length", nil},
		{"half a length", "length", []byte{0, 0}},
		{"length without a document", "0 of 16777216 bytes: unexpected EOF", []byte{1, 0, 0, 0}},
		{"length over the bound", "want at most 16777216", []byte{1, 0, 0, 1}},
		{"truncated", "unexpected EOF", whole.Bytes()[:whole.Len()-1]},
		{"empty document", "unexpected EOF", []byte{0, 0, 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ReadReport(bytes.NewReader(tt.in))
			wantError(t, err, tt.want)
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*Report)
	}{
		{"other schema", "schema is 2, want 1", func(r *Report) { r.Schema = 2 }},
		{"event log over the bound", "event_log", func(r *Report) { r.EventLog = make([]byte, MaxEventLog+1) }},
		{"unknown bank", `"sm3_256": unknown`, func(r *Report) { r.Banks = append(r.Banks, "sm3_256") }},
		{"bank twice", `"sha1": twice`, func(r *Report) { r.Banks = append(r.Banks, "sha1") }},
		{"bank that is not active", `before: bank "sha384"`, func(r *Report) { r.Before["sha384"] = map[int]string{0: ""} }},
		{"PCR 24", "PCR 24", func(r *Report) { r.After["sha256"][24] = r.After["sha256"][0] }},
		{"PCR -1", "PCR -1", func(r *Report) { r.After["sha256"][-1] = r.After["sha256"][0] }},
		{"short value", "want 64 lower-case", func(r *Report) { r.Before["sha256"][0] = "00" }},
		{"value of another bank", "want 40 lower-case", func(r *Report) { r.Before["sha1"][0] = r.Before["sha256"][0] }},
		{"capitals", "want 64 lower-case", func(r *Report) { r.Before["sha256"][0] = strings.Repeat("AB", 32) }},
		{"not hexadecimal", "want 64 lower-case", func(r *Report) { r.Before["sha256"][0] = strings.Repeat("0g", 32) }},
		{"extend of a bad register", "extends[0]: sha256: PCR 99", func(r *Report) { r.Extends[0].PCR = 99 }},
		{"extend with a short digest", "extends[0]: sha256", func(r *Report) { r.Extends[0].Digests["sha256"] = "00" }},
		{"unknown state", "services[0]", func(r *Report) { r.Services[0].State = "happy" }},
		{"unknown TEE", `attestation: tee "sgx"`, func(r *Report) { r.Attestation.TEE = "sgx" }},
		{"broker that is none", "attestation: brokers[0]", func(r *Report) { r.Attestation.Brokers[0] = "kbs.example.com" }},
		{"many brokers", "attestation: 65 brokers", func(r *Report) { r.Attestation.Brokers = make([]string, 65) }},
		{"negative memory", "memory: -1 KiB", func(r *Report) { r.Memory = -1 }},
		{"negative process", "services[0]", func(r *Report) { r.Services[0].PID = -1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := sample()
			tt.change(r)
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			_, err = ParseReport(b)
			wantError(t, err, tt.want)
		})
	}
}

func TestParseIsStrict(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"unknown key", `{"schema":1,"secret":"x"}`, "secret: unknown key"},
		{"duplicate key", `{"schema":1,"kernel":"a","kernel":"b"}`, "kernel: duplicate key"},
		{"two registers of one number", `{"schema":1,"banks":["sha1"],"before":{"sha1":{"1":"","01":""}}}`, "before.sha1"},
		{"data behind", `{"schema":1} {}`, "data after"},
		{"not JSON", `hello`, "invalid character"},
		{"null", `null`, "schema is 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseReport([]byte(tt.in))
			wantError(t, err, tt.want)
		})
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %q", err, want)
	}
}

// FuzzReadReport: a report that is accepted is written back and read as the same.
func FuzzReadReport(f *testing.F) {
	for _, r := range []*Report{sample(), {Schema: ReportSchema}} {
		var b bytes.Buffer
		if err := WriteReport(&b, r); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := ReadReport(bytes.NewReader(in))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := WriteReport(&b, r); err != nil {
			t.Fatal(err)
		}
		again, err := ReadReport(&b)
		if err != nil {
			t.Fatalf("written back: %v", err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("got %+v, want %+v", again, r)
		}
	})
}
