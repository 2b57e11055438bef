package builder

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/tests/synthetic"
	"github.com/plinth-os/plinth/workload"
)

var workloadRules = []string{"test-keys", "workload-unmeasured", "workload-unsigned", "workload-console", "workload-exec", "resettable-pcr"}

func TestLintWorkloads(t *testing.T) {
	const byTag, byDigest = "docker://registry.example.com/app:1", "docker://registry.example.com/app@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	text := func(platform, workloads, image, more string) string {
		s := "schema = 1\nextends = \"" + platform + "\"\nseed = \"s\"\nnetwork.dhcp = true\n[workloads]\nfrom = \"image\"\n" + workloads
		return s + "[[workload]]\nname = \"web\"\nimage = \"" + image + "\"\n" + more
	}
	for _, tt := range []struct{ name, profile, want string }{
		{"no workloads", "schema = 1\nextends = \"vtpm\"\nseed = \"s\"\n", ""},
		{"nothing to find", text("vtpm", "", byTag, ""), ""},
		{"test keys", text("vtpm", "", byTag, "[agent]\ndebug = true\ntest_keys = { \"kbs:///a/b/c\" = \"AA==\" }\n"), "error test-keys agent.test_keys"},
		{"tag on SNP", text("snp", "", byTag, ""), "error workload-unmeasured workload web: image"},
		{"digest on SNP", text("snp", "", byDigest, ""), ""},
		{"archive on SNP", text("snp", "", "oci-archive:/dev/disk/by-id/virtio-a", "archive = \"a\"\n"), ""},
		{"image service on SNP", text("snp", "image_service = true\n", byDigest, ""), "error workload-unmeasured workloads.image_service"},
		{"digest on TDX", text("tdx", "", byDigest, ""), ""},
		{"unsigned", text("vtpm", "admit = [\"encrypted+unsigned\", \"plain+signed\"]\n", byTag, ""), "warning workload-unsigned workloads.admit"},
		{"console", text("vtpm", "", byTag, "output = \"console\"\n"), "warning workload-console workload web: output"},
		{"exec", text("vtpm", "", byTag, "exec = true\n"), "warning workload-exec workload web: exec"},
		{"PCR 23", text("vtpm", "pcr_23 = true\n", byTag, ""), "warning resettable-pcr workloads.pcr_23"},
	} {
		p, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte(tt.profile)}}, "x.toml", profiles.Options{})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		rep, err := Lint(p, nil, nil, othersThan(workloadRules...))
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

// Whether a tag may be in a trust domain is for the kernel's version to say.
func TestLintRegisterOfTrustDomain(t *testing.T) {
	text := "schema = 1\nextends = \"tdx\"\nseed = \"s\"\nnetwork.dhcp = true\nworkloads.from = \"image\"\n[[workload]]\nname = \"web\"\nimage = \"docker://registry.example.com/app:1\"\n"
	p, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte(text)}}, "x.toml", profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var unchecked *uncheckedError
	if found, err := workloadUnmeasured(&lintImage{Profile: p}); len(found) > 0 || !errors.As(err, &unchecked) {
		t.Errorf("without a kernel: %+v, %v", found, err)
	}
	for release, want := range map[string]string{"6.12.99": "Linux 6.12.99 lets no program extend RTMR 3, so the agent takes no image by a tag", "6.16.0": ""} {
		found, err := workloadUnmeasured(&lintImage{Profile: p, read: map[string][]byte{KernelName: synthetic.Kernel(release)}})
		if err != nil || len(found) > 0 != (want != "") || want != "" && found[0].what != want {
			t.Errorf("%s: %+v, %v, want %q", release, found, err, want)
		}
	}
}

// Workloads in initdata are looked at where the initdata is known.
func TestLintInitdataWorkloads(t *testing.T) {
	p, err := profiles.Load(fstest.MapFS{"x.toml": {Data: []byte("schema = 1\nextends = \"vtpm\"\nseed = \"s\"\nworkloads.from = \"initdata\"\n")}}, "x.toml", profiles.Options{})
	if err != nil {
		t.Fatal(err)
	}
	skip := othersThan("workload-console", "workload-unsigned")
	rep, err := Lint(p, nil, nil, skip)
	if err != nil || len(rep.NotChecked) != 2 {
		t.Errorf("without initdata: %+v, %v", rep, err)
	}
	doc := `{"schema":1,"admit":["plain+unsigned"],"workloads":[{"name":"web","image":"docker://registry.example.com/app:1","output":"console"}]}`
	raw, err := initdata.Build(initdata.SHA256, map[string]string{workload.DataKey: doc})
	if err != nil {
		t.Fatal(err)
	}
	m := &Manifest{Artefacts: []Artefact{{InitdataName, cas.Ref{Digest: cas.Sum(raw), Size: int64(len(raw))}}}}
	rep, err = Lint(p, m, fstest.MapFS{InitdataName: {Data: raw}}, skip)
	if want := []string{"workload-unsigned", "workload-console"}; err != nil || !slices.Equal(ids(rep), want) {
		t.Errorf("with initdata: %+v, %v, want %q", rep, err, want)
	}
}
