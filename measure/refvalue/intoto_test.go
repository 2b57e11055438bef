package refvalue

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure"
)

func someMeasurements() *measure.Measurements {
	shape := measure.Shape{Type: "q35", VCPUs: 1, MemoryMiB: 1024}
	return &measure.Measurements{
		Schema: 1, Profile: "a<b", Machine: shape, Machines: []measure.Shape{shape}, Notes: []string{},
		Values: []measure.Value{{Platform: "tpm", Register: "pcr11", Bank: "sha256", Provenance: measure.Predicted,
			Value: strings.Repeat("07", 32), Events: []measure.EventRef{}}},
	}
}

var (
	twoFiles = []Resource{{Name: "vmlinuz", SHA256: strings.Repeat("AB", 32)}, {Name: "initrd", SHA256: strings.Repeat("cd", 32)}}
	aBuild   = Build{Profile: "vtpm", Parameters: []byte(`{"b":1,"a":"<&>"}`), Version: "1.0", Dependencies: []Resource{
		{Name: "bash_5.2", SHA256: strings.Repeat("01", 32), URI: "pkg:deb/debian/bash@5.2?arch=amd64"},
		{Name: "/etc/motd", SHA256: strings.Repeat("02", 32)},
	}}
)

// TestStatement compares with a document written by hand from in-toto's
// specification, as values: in the predicate every byte is measurements.json's.
func TestStatement(t *testing.T) {
	m := someMeasurements()
	b, err := Statement(twoFiles, m)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"_type": "https://in-toto.io/Statement/v1",
		"subject": [{"name": "initrd", "digest": {"sha256": "` + strings.Repeat("cd", 32) + `"}}, {"name": "vmlinuz", "digest": {"sha256": "` + strings.Repeat("ab", 32) + `"}}],
		"predicateType": "https://github.com/plinth-os/plinth/measurements/v1", "predicate": ` + string(doc) + `}`
	sameJSON(t, b, want)
	var got struct{ Predicate json.RawMessage }
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	back, err := measure.ParseMeasurements(got.Predicate)
	if err != nil || !reflect.DeepEqual(back.Values, m.Values) {
		t.Errorf("%+v, %v", back, err)
	}
	again, _ := Statement([]Resource{twoFiles[1], twoFiles[0]}, m)
	if !bytes.Equal(b, again) {
		t.Error("the order of subjects shows")
	}
	if bytes.Contains(b, []byte(`\u003c`)) {
		t.Error("escapes for HTML")
	}
}

func TestProvenance(t *testing.T) {
	b, err := Provenance(twoFiles[:1], aBuild)
	if err != nil {
		t.Fatal(err)
	}
	sameJSON(t, b, `{"_type": "https://in-toto.io/Statement/v1",
		"subject": [{"name": "vmlinuz", "digest": {"sha256": "`+strings.Repeat("ab", 32)+`"}}],
		"predicateType": "https://slsa.dev/provenance/v1",
		"predicate": {
			"buildDefinition": {
				"buildType": "https://github.com/plinth-os/plinth/image/v1",
				"externalParameters": {"name": "vtpm", "profile": {"b": 1, "a": "<&>"}},
				"resolvedDependencies": [
					{"name": "/etc/motd", "digest": {"sha256": "`+strings.Repeat("02", 32)+`"}},
					{"name": "bash_5.2", "uri": "pkg:deb/debian/bash@5.2?arch=amd64", "digest": {"sha256": "`+strings.Repeat("01", 32)+`"}}]},
			"runDetails": {"builder": {"id": "https://github.com/plinth-os/plinth/builder/local", "version": {"plinth": "1.0"}}}}}`)
	again := aBuild
	again.Dependencies = slices.Clone(aBuild.Dependencies)
	slices.Reverse(again.Dependencies)
	if c, err := Provenance(twoFiles[:1], again); err != nil || !bytes.Equal(b, c) {
		t.Errorf("the order of dependencies shows: %v", err)
	}
	again.Builder = "https://ci.example.com/runner"
	if c, err := Provenance(twoFiles[:1], again); err != nil || !strings.Contains(string(c), `"id": "https://ci.example.com/runner"`) {
		t.Errorf("%s, %v", c, err)
	}
}

func sameJSON(t *testing.T, got []byte, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestStatementRefuses(t *testing.T) {
	m, good := someMeasurements(), twoFiles[0]
	for name, row := range map[string]struct {
		subjects []Resource
		want     string
	}{
		"no subject":   {nil, "none"},
		"no name":      {[]Resource{{SHA256: good.SHA256}}, "no name"},
		"short digest": {[]Resource{{Name: "a", SHA256: "ab"}}, "64 hex digits"},
		"no hex":       {[]Resource{{Name: "a", SHA256: strings.Repeat("g", 64)}}, "64 hex digits"},
		"twice":        {[]Resource{good, good}, "twice"},
	} {
		if _, err := Statement(row.subjects, m); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Statement(twoFiles, nil); err == nil {
		t.Error("a statement of nothing")
	}
	for name, b := range map[string]Build{
		"no profile":     {Parameters: []byte("{}")},
		"no parameters":  {Profile: "p"},
		"a list":         {Profile: "p", Parameters: []byte("[]")},
		"not JSON":       {Profile: "p", Parameters: []byte("{")},
		"bad dependency": {Profile: "p", Parameters: []byte("{}"), Dependencies: []Resource{{Name: "a"}}},
	} {
		if _, err := Provenance(twoFiles, b); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}
