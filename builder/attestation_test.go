package builder

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/workload"
)

const brokerPEM = `-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIUfakecertificatefortestsonly
-----END CERTIFICATE-----
`

// What a profile says of attestation, volumes and secrets is what the agent is told,
// every key of it.
func TestAttestation(t *testing.T) {
	s, r := containers(t), newFakeRegistry(t)
	d := r.push(t, "1", "/app")
	s.write("ca.pem", pemOf(r))
	text := fmt.Sprintf(`
[network]
dhcp = true
[attestation]
brokers = [{ url = "https://kbs.example.com:8443", cas = "ca.pem" }, { url = "https://[2001:db8::1]", cas = "ca.pem" }]
key = "RSA-OAEP-256"
hashes = ["sha512", "sha256"]
ak_handle = "0x81010003"
services = true
[[volume]]
name = "data"
disk = "data0"
key = "kbs:///default/volume/data"
integrity = true
filesystem = "ext4"
format = true
[[volume]]
name = "tmp"
disk = "tmp0"
[workloads]
from = "image"
policy = "kbs:///default/policy/web"
policy_file = "policy.json"
cas = "ca.pem"
auth = "kbs:///default/registry/auth"
[[workload]]
name = "web"
image = "docker://%s@%s"
env = { TOKEN = "sealed.e30.e30.AA" }
mounts = [
  { path = "/data", volume = "data" },
  { path = "/etc/key", secret = "kbs://kbs.example.com:8443/default/key/web" },
  { path = "/etc/sealed", secret = "sealed.e30.e30.AA" },
]
api = { resources = ["kbs:///default/key/web", "kbs:///web/"], evidence = true, token = true, tee_key = true, measure = true }
`, r.name(), d)
	results, err := s.run(s.profile(text, with()...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := s.told(results)
	if want := (&config.Attestation{
		TEE:     "tpm",
		Brokers: []config.Broker{{URL: "https://kbs.example.com:8443", CAs: string(pemOf(r))}, {URL: "https://[2001:db8::1]", CAs: string(pemOf(r))}},
		Key:     "RSA-OAEP-256", Hashes: []string{"sha512", "sha256"}, AKHandle: 0x81010003, Services: true,
	}); !reflect.DeepEqual(c.Attestation, want) {
		t.Errorf("told %+v, want %+v", c.Attestation, want)
	}
	if want := []config.Volume{
		{Name: "data", Disk: "data0", Key: "kbs:///default/volume/data", Integrity: true, Filesystem: "ext4", Format: true}, {Name: "tmp", Disk: "tmp0"},
	}; !reflect.DeepEqual(c.Volumes, want) {
		t.Errorf("told %+v, want %+v", c.Volumes, want)
	}
	w := c.Workloads
	if w.Policy != nil || w.PolicyFrom != "kbs:///default/policy/web" {
		t.Errorf("policy %s from %q", w.Policy, w.PolicyFrom)
	}
	if got, want := w.Workloads[0].API, (&workload.API{Resources: []string{"kbs:///default/key/web", "kbs:///web/"}, Evidence: true, Token: true, TEEKey: true, Measure: true}); !reflect.DeepEqual(got, want) {
		t.Errorf("api %+v, want %+v", got, want)
	}
	if got, want := w.Workloads[0].Mounts, []workload.Mount{
		{Path: "/data", Volume: "data"}, {Path: "/etc/key", Secret: "kbs://kbs.example.com:8443/default/key/web"}, {Path: "/etc/sealed", Secret: "sealed.e30.e30.AA"},
	}; !reflect.DeepEqual(got, want) {
		t.Errorf("mounts %+v, want %+v", got, want)
	}
	var names []string
	for _, m := range c.Modules {
		names = append(names, m.Name())
	}
	for _, m := range []string{"dm_crypt", "dm_integrity", "xts", "virtio_blk"} {
		if !slices.Contains(names, m) {
			t.Errorf("module %s is not loaded", m)
		}
	}

	// The event of the policy is that of its content, whoever has it.
	m := s.measurements(results)
	v := after(t, m, "pcr14", "sha256", measure.PhaseWorkloads)
	if v.Provenance != measure.Predicted || v.Events[0].Name != "Policy" {
		t.Errorf("%+v", v)
	}
	event := `github.com/plinth-os/plinth Policy {"policy":"sha256:` + hexOf([]byte(`{"default":[{"type":"insecureAcceptAnything"}]}`)) + `"}`
	if want := hexOf([]byte("LEAA" + string([]byte{byte(len(event)), 0, 0, 0}) + event)); v.Events[0].Digest != want {
		t.Errorf("policy's event %+v, want %s", v.Events[0], want)
	}
	if _, ok := results["workloads"][policyOutput]; !ok {
		t.Error("the policy is no artefact")
	}

	// Without the file, nobody knows what the broker will say.
	results, err = s.run(s.profile(strings.Replace(text, `policy_file = "policy.json"`, "", 1), with()...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	v = after(t, s.measurements(results), "pcr14", "sha256", measure.PhaseWorkloads)
	if v.Provenance != measure.Volatile || v.Value != "" || !strings.Contains(v.Reason, "the broker has the policy, kbs:///default/policy/web") {
		t.Errorf("without the file: %+v", v)
	}
	if v := after(t, s.measurements(results), "pcr14", "sha256", ""); v.Value != strings.Repeat("0", 64) || v.Provenance != measure.Predicted {
		t.Errorf("before: %+v", v)
	}
}

// A policy that the guest would refuse fails here, and so does a broker's file that
// has no certificate.
func TestAttestationFiles(t *testing.T) {
	s, r := containers(t), newFakeRegistry(t)
	d := r.push(t, "1", "/app")
	s.write("ca.pem", pemOf(r))
	s.write("bad.json", []byte(`{"default": []}`))
	s.write("bad.pem", []byte(brokerPEM))
	s.write("empty.pem", nil)
	for _, tt := range []struct{ cas, policy, want string }{
		{"", "policy.json", "attestation.brokers: no authorities in the root file system"},
		{"bad.pem", "policy.json", "attestation: brokers[0]: https://kbs.example.com: cas: want certificates in PEM"},
		{"empty.pem", "policy.json", "attestation.brokers[0].cas: the file is empty"},
		{"ca.pem", "bad.json", "workloads.policy_file: "},
	} {
		cas := ""
		if tt.cas != "" {
			cas = fmt.Sprintf(", cas = %q", tt.cas)
		}
		text := fmt.Sprintf(`
[network]
dhcp = true
[attestation]
brokers = [{ url = "https://kbs.example.com"%s }]
[workloads]
from = "image"
policy = "kbs:///default/policy/web"
policy_file = "%s"
cas = "ca.pem"
[[workload]]
name = "web"
image = "docker://%s@%s"
`, cas, tt.policy, r.name(), d)
		if _, err := s.run(s.profile(text, with()...), Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got error %v, want %q", err, tt.want)
		}
	}
}

// A guest that takes its broker from initdata reads it for its workloads, too.
func TestAttestationFromInitdata(t *testing.T) {
	s := containers(t)
	results := s.mustRun("[network]\ndhcp = true\n[attestation]\nfrom_initdata = true\n[workloads]\nfrom = \"initdata\"\n", with()...)
	if c := s.told(results); c.Attestation == nil || !c.Attestation.FromInitdata || !c.HasBroker() || c.Epoch == 0 {
		t.Errorf("told %+v", c)
	}
}

// A policy that is expected of the broker is one that the initdata asks for.
func TestPolicyOfInitdata(t *testing.T) {
	s := containers(t)
	for from, want := range map[string]string{`"policy_from":"kbs:///a/policy/b",`: "", "": "workloads.policy_file: the initdata asks no broker for a policy"} {
		raw, err := initdata.Build(initdata.SHA256, map[string]string{workload.DataKey: `{"schema":1,` + from + `"image_service":true,"workloads":[]}`})
		if err != nil {
			t.Fatal(err)
		}
		path := s.write("initdata.toml", raw)
		text := "[workloads]\nfrom = \"initdata\"\npolicy_file = \"policy.json\"\n"
		results, err := s.run(s.profile(text, with(fmt.Sprintf("initdata=%q", path))...), Options{})
		if want != "" {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got error %v, want %q", err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if v := after(t, s.measurements(results), "pcr14", "sha256", measure.PhaseWorkloads); v.Provenance != measure.Predicted {
			t.Errorf("%+v", v)
		}
	}
}

// Real kernels have what volumes and reports of platforms need, as modules or built in.
func TestAttestationModulesOfRealKernels(t *testing.T) {
	dirs := filepath.SplitList(os.Getenv("PLINTH_MODULES"))
	if len(dirs) == 0 {
		testenv.Missing(t, "modules", "PLINTH_MODULES names no module directory of a kernel")
	}
	for _, dir := range dirs {
		index, err := initrd.IndexModules(os.DirFS(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []*profiles.Profile{
			{Platform: profiles.PlatformVTPM, Volume: []profiles.Volume{{}}},
			{Platform: profiles.PlatformVTPM, Volume: []profiles.Volume{{Integrity: true}}},
			{Platform: profiles.PlatformVTPM, Attestation: profiles.Attestation{Services: true}},
			{Platform: profiles.PlatformSNP, Attestation: profiles.Attestation{Services: true}},
			{Platform: profiles.PlatformTDX, Attestation: profiles.Attestation{Services: true}},
		} {
			if p.Platform != profiles.PlatformVTPM && strings.HasPrefix(filepath.Base(dir), "6.1.") {
				continue // which has no drivers for them
			}
			mods, err := index.Closure(containerModules(p))
			if err != nil {
				t.Errorf("%s: %v", dir, err)
				continue
			}
			var names []string
			for _, m := range mods {
				names = append(names, m.Name)
			}
			if want := map[string]string{profiles.PlatformSNP: "sev_guest", profiles.PlatformTDX: "tdx_guest"}[p.Platform]; want != "" && !slices.Contains(names, want) {
				t.Errorf("%s: no %s among %q", filepath.Base(dir), want, names)
			}
			integrity := p.Attestation.Services || p.Volume[0].Integrity
			if !slices.Contains(names, "dm_crypt") || slices.Contains(names, "dm_integrity") != integrity {
				t.Errorf("%s: %q", filepath.Base(dir), names)
			}
		}
	}
}
