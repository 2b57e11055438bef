package measure

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// shapes predicts one UKI with one and with two processors, with records for
// both: values that differ carry their shape.
func TestShapes(t *testing.T) {
	f := newTestFiles(t, "trixie", "257.13")
	b := f.boot(t, "disk")
	one := mustPredict(t, b)
	b.Machine.VCPUs = 2
	two := mustPredict(t, b)

	m := document(t, one, two)
	if len(m.Values) != len(one.Values) || slices.ContainsFunc(m.Values, func(v Value) bool { return v.Shape != nil }) {
		t.Errorf("equal predictions: %d values, want %d without shape", len(m.Values), len(one.Values))
	}
	b.Machine.VCPUs, b.Machine.DiskSlot = 4, 3
	b.Records = nil
	b.Vars = nvramFlash(t, true) // moves PCR 7
	four := mustPredict(t, b)
	m = document(t, one, two, four)
	if want := []Shape{{"q35", 1, 1024}, {"q35", 2, 1024}, {"q35", 4, 1024}}; !slices.Equal(m.Machines, want) || m.Machine != want[0] {
		t.Errorf("machines %v, want %v", m.Machines, want)
	}
	n := 0
	for _, v := range m.Values {
		if v.Shape != nil && v.Bank == "sha256" && v.Register == "pcr7" {
			n++
		}
		if v.Shape != nil && v.Register == "pcr4" {
			t.Error("PCR 4 differs by shape")
		}
	}
	if n != 3 {
		t.Errorf("PCR 7 is there %d times, want 3", n)
	}
	for _, p := range []*Prediction{one, two, four} {
		if r := mustCheck(t, m, reportOf(t, p)); !r.OK() {
			t.Errorf("%d vCPUs: %v", p.Machine.VCPUs, found(r, "sha256"))
		}
	}
	wrong := reportOf(t, four)
	wrong.Machine.VCPUs = 1
	if r := mustCheck(t, m, wrong); r.OK() {
		t.Error("values of another shape were taken")
	}
	if _, err := NewMeasurements("x", one, one); err == nil {
		t.Error("two predictions for one shape were taken")
	}
	f.stub = "252.39"
	b = f.boot(t, "disk")
	b.Machine.VCPUs = 2
	if _, err := NewMeasurements("x", one, mustPredict(t, b)); err == nil {
		t.Error("predictions of two images were joined")
	}
}

func TestMarshal(t *testing.T) {
	f := newTestFiles(t, "sid", "262.1")
	b := f.boot(t, "disk")
	b.Machine.DiskWritable = true
	m := document(t, mustPredict(t, b))
	first, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, _ := document(t, mustPredict(t, f.boot(t, "disk"))).Marshal()
	if bytes.Equal(first, again) {
		t.Error("a disk that can be written to changes nothing")
	}
	parsed, err := ParseMeasurements(first)
	if err != nil {
		t.Fatal(err)
	}
	if second, _ := parsed.Marshal(); !bytes.Equal(first, second) {
		t.Error("reading and writing changes the document")
	}
	repeated, _ := document(t, mustPredict(t, b)).Marshal()
	if !bytes.Equal(first, repeated) {
		t.Error("the same prediction gives other bytes")
	}
}

func TestParseMeasurementsRefuses(t *testing.T) {
	f := newTestFiles(t, "trixie", "257.13")
	b := f.boot(t, "disk")
	b.Machine.DiskWritable = true
	doc, err := document(t, mustPredict(t, b)).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	good := string(doc)
	tests := []struct{ name, old, new, want string }{
		{"schema", `"schema": 1`, `"schema": 2`, "schema 2"},
		{"unknown key", `"profile"`, `"Profil"`, "unknown field"},
		{"machine", `"vcpus": 1`, `"vcpus": 2`, "not the first of machines"},
		{"register", `"register": "pcr0"`, `"register": "pcr24"`, `register "pcr24"`},
		{"platform", `"platform": "tpm"`, `"platform": "tdx"`, `platform "tdx", register "pcr0"`},
		{"shape of no machine", `"phase": "",`, `"phase": "", "shape": {"type": "q35", "vcpus": 3, "memory_mib": 1},`, "not one of machines"},
		{"bank", `"bank": "sha1"`, `"bank": "md5"`, "md5"},
		{"provenance", `"provenance": "predicted",`, `"provenance": "guessed",`, `provenance "guessed"`},
		{"volatile with a value", `"provenance": "predicted",`, `"provenance": "volatile",`, "want a reason and no value"},
		{"predicted without a value", `"provenance": "one-of",`, `"provenance": "predicted",`, "with one_of"},
		{"one of none", `"provenance": "predicted",`, `"provenance": "one-of",`, "want no value and several"},
		{"upper case", `"digest": "96a2`, `"digest": "96A2`, "lower-case hex"},
		{"shorter digest", `"digest": "`, `"digest": "00`, "bytes in lower-case hex"},
		{"value twice", `"register": "pcr1"`, `"register": "pcr0"`, "is there twice"},
		{"more", "\n}\n", "\n}\n[]", "more than one document"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(good, tt.old, tt.new, 1)
			if tt.name == "upper case" { // a digest with letters, whichever it is
				i := strings.Index(good, `"digest": "`) + len(`"digest": "`)
				bad = good[:i] + strings.ToUpper(good[i:i+40]) + good[i+40:]
			}
			if bad == good {
				t.Fatal("nothing was changed")
			}
			if _, err := ParseMeasurements([]byte(bad)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzParseMeasurements(f *testing.F) {
	b := newTestFiles(f, "trixie", "257.13").boot(f, "uki")
	b.Banks = []eventlog.Alg{eventlog.SHA1}
	m := document(f, mustPredict(f, b))
	m.Values = append(m.Values[10:11], m.Values[:2]...) // of every provenance; a large seed is slow to vary
	doc, err := m.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(filled(snpDocument)))
	f.Add([]byte(`{"schema":1,"machine":{"type":"","vcpus":0,"memory_mib":0},"machines":[{"type":"","vcpus":0,"memory_mib":0}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMeasurements(b)
		if err != nil {
			return
		}
		first, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseMeasurements(first)
		if err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
		if second, _ := again.Marshal(); !bytes.Equal(first, second) {
			t.Error("reading and writing changes the document")
		}
	})
}

func FuzzParseRecords(f *testing.F) {
	digests := map[string]string{"sha1": strings.Repeat("ab", 20)}
	records := &Records{}
	records.Add(&Record{Key: Key{Firmware: "f"}, Image: strings.Repeat("cd", 32), Events: []RecordedEvent{
		{recordPEIFV, "00", digests}, {recordSMBIOS, "", digests}, {recordBootVariable, "00", digests},
	}})
	doc, err := records.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRecords(b)
		if err != nil {
			return
		}
		for i := range r.Records { // nothing else gets in
			for _, e := range r.Records[i].Events {
				switch e.Kind {
				case recordPEIFV, recordACPI, recordSMBIOS, recordBootVariable:
				default:
					t.Errorf("kind %q", e.Kind)
				}
			}
			r.Records[i].event(recordACPI, 2, allBanks)
		}
		first, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRecords(first); err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
	})
}
