package builder

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/workload"
)

var attestationRules = []string{"sample-tee", "plain-broker", "no-broker", "granted-key", "granted-evidence", "wide-grant", "initdata-broker", "volume-integrity"}

func TestLintAttestation(t *testing.T) {
	const web = "[workloads]\nfrom = \"image\"\n[[workload]]\nname = \"web\"\nimage = \"docker://registry.example.com/app:1\"\n"
	const broker = "[attestation]\nbrokers = [{ url = \"https://kbs.example.com\" }]\n"
	for _, tt := range []struct{ name, profile, want string }{
		{"nothing to find", broker + web + "api = { resources = [\"kbs:///web/\"], token = true }\n", ""},
		{"no attestation", web, ""},
		{"sample", "[attestation]\ntee = \"sample\"\n[agent]\ndebug = true\n", "error sample-tee attestation.tee"},
		{"without TLS", "[attestation]\nbrokers = [{ url = \"http://kbs.example.com\" }, { url = \"https://kbs.example.com\" }]\n[agent]\ndebug = true\n", "error plain-broker attestation.brokers"},
		{"keys of nobody", strings.Replace(web, "[[", "admit = [\"encrypted+signed\"]\n[[", 1), "error no-broker workloads.admit"},
		{"keys of a broker", broker + strings.Replace(web, "[[", "admit = [\"encrypted+signed\"]\n[[", 1), ""},
		{"both kinds", strings.Replace(web, "[[", "admit = [\"encrypted+signed\", \"plain+signed\"]\n[[", 1), ""},
		{"private key", broker + web + "api = { token = true, tee_key = true }\n", "warning granted-key workload web: api.tee_key"},
		{"evidence", broker + web + "api = { resources = [\"kbs:///web/\"], evidence = true }\n", "warning granted-evidence workload web: api.evidence"},
		{"all resources", broker + web + "api = { resources = [\"kbs:///\"] }\n", "warning wide-grant workload web: api.resources"},
		{"a disk's key", broker + web + "api = { resources = [\"kbs:///web/\", \"kbs:///default/\"] }\n[[volume]]\nname = \"v\"\ndisk = \"v0\"\nkey = \"kbs:///default/volume/v\"\nintegrity = true\n", "warning wide-grant workload web: api.resources"},
		{"credentials", broker + strings.Replace(web, "[[", "auth = \"kbs:///a/b/c\"\n[[", 1) + "api = { resources = [\"kbs:///a/b/c\"] }\n", "warning wide-grant workload web: api.resources"},
		{"volume", "[[volume]]\nname = \"v\"\ndisk = \"v0\"\n[[volume]]\nname = \"w\"\ndisk = \"w0\"\nintegrity = true\n", "notice volume-integrity volume v: integrity"},
	} {
		text := "schema = 1\nextends = \"vtpm\"\nseed = \"s\"\nnetwork.dhcp = true\n" + tt.profile
		p, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte(text)}}, "x.toml", profiles.Options{})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		rep, err := Lint(p, nil, nil, othersThan(attestationRules...))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range rep.Findings {
			got = append(got, f.Severity+" "+f.ID+" "+f.Where)
			if f.What == "" || f.Do == "" {
				t.Errorf("%s: %+v", tt.name, f)
			}
		}
		if strings.Join(got, "; ") != tt.want || len(rep.NotChecked) > 0 {
			t.Errorf("%s: got %q, want %q; not checked %v", tt.name, got, tt.want, rep.NotChecked)
		}
	}
}

// What the initdata asks of a broker is looked at where the initdata is known.
func TestLintInitdataBroker(t *testing.T) {
	text := "schema = 1\nextends = \"vtpm\"\nseed = \"s\"\nworkloads.from = \"initdata\"\n"
	brokered, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte(text + "network.dhcp = true\nattestation.from_initdata = true\n")}}, "x.toml", profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := Lint(brokered, nil, nil, othersThan("initdata-broker"))
	if err != nil || len(rep.Findings) != 1 || rep.Findings[0].Severity != LintWarning {
		t.Errorf("%+v, %v", rep, err)
	}
	p, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte(text)}}, "x.toml", profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	doc := `{"schema":1,"policy_from":"kbs:///a/policy/b","workloads":[{"name":"web","image":"docker://registry.example.com/app:1"}]}`
	raw, err := initdata.Build(initdata.SHA256, map[string]string{workload.DataKey: doc})
	if err != nil {
		t.Fatal(err)
	}
	m := &Manifest{Artefacts: []Artefact{{InitdataName, cas.Ref{Digest: cas.Sum(raw), Size: int64(len(raw))}}}}
	rep, err = Lint(p, m, fstest.MapFS{InitdataName: {Data: raw}}, othersThan("no-broker"))
	if err != nil || len(rep.Findings) != 1 || rep.Findings[0].Where != "policy_from" {
		t.Errorf("%+v, %v", rep, err)
	}
}
