package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/tests/synthetic"
	"github.com/plinth-os/plinth/workload"
)

// withWorkloads is everything with a source of workloads.
func withWorkloads() *Spec {
	s := everything()
	s.Profile.Workloads.From = profiles.FromImage
	s.Lock.Files = append(s.Lock.Files,
		source.File{Path: policyKey, SHA256: [32]byte{2}}, source.File{Path: registriesDKey + "[0]", SHA256: [32]byte{3}},
		source.File{Path: policyFileKey, SHA256: [32]byte{5}},
		source.File{Path: "workload a docker://r.example/a:1 manifest", SHA256: [32]byte{4}})
	return s
}

// What containers are told is in the initrd, wherever the root is; the command line
// says only where it comes from.
func TestKeysOfWorkloads(t *testing.T) {
	const told = "initrd uki disk measure"
	paths := []string{"workloads.policy", "workloads.policy_file", "workloads.registries", "workloads.registries_d", "workloads.cas", "workload.archive"}
	special := map[string]string{
		"workloads.from": "initrd uki disk workloads measure",
		"machine.memory": told, // half of it is for images
		"network.mtu":    "", "network.dns": "", "network.gateways": "",
	}
	leaves(reflect.ValueOf(everything().Profile).Elem(), "", func(key string, _ reflect.Value) {
		want, ok := special[key]
		switch {
		case ok:
		case slices.Contains(paths, key): // their content is in the lock
			want = ""
		case strings.HasPrefix(key, "workload"):
			want = told
		default:
			want = movedBy[key]
		}
		s := withWorkloads()
		leaves(reflect.ValueOf(s.Profile).Elem(), "", func(k string, v reflect.Value) {
			if k == key {
				change(v, 1000)
			}
		})
		if got := moved(t, withWorkloads(), s); got != want {
			t.Errorf("%s: moves %q, want %q", key, got, want)
		}
	})
	for _, c := range []struct{ key, want string }{
		{policyKey, told}, {registriesDKey + "[0]", told},
		{"workload a docker://r.example/a:1 manifest", "initrd uki disk workloads measure"},
		{"initdata", "workloads measure"}, {policyFileKey, "workloads measure"},
	} {
		s := withWorkloads()
		file(c.key)(s)
		if got := moved(t, withWorkloads(), s); got != c.want {
			t.Errorf("%s: moves %q, want %q", c.key, got, c.want)
		}
	}
}

// A registry is one that serves what was put into it: a repository "app" alone.
type fakeRegistry struct {
	*httptest.Server
	content map[string][]byte // by path behind /v2/app/
	asked   []string
}

func newFakeRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	r := &fakeRegistry{content: map[string][]byte{}}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		name := strings.TrimPrefix(q.URL.Path, "/v2/app/")
		r.asked = append(r.asked, name)
		b, ok := r.content[name]
		if !ok {
			http.NotFound(w, q)
			return
		}
		if strings.HasPrefix(name, "manifests/") {
			w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		}
		_, _ = w.Write(b)
	}))
	t.Cleanup(r.Close)
	return r
}

// push puts an image of one command under a tag, and returns its manifest's digest.
func (r *fakeRegistry) push(t *testing.T, tag string, command ...string) string {
	t.Helper()
	manifest, config := testImage(t, command...)
	d := digest.FromBytes(manifest).String()
	r.content["manifests/"+tag], r.content["manifests/"+d] = manifest, manifest
	r.content["blobs/"+digest.FromBytes(config).String()] = config
	return d
}

func (r *fakeRegistry) name() string { return strings.TrimPrefix(r.URL, "https://") + "/app" }

// testImage is an image without layers.
func testImage(t *testing.T, command ...string) (manifest, config []byte) {
	t.Helper()
	config, err := json.Marshal(v1.Image{
		Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
		Config:   v1.ImageConfig{Cmd: command, Env: []string{"PATH=/bin"}, User: "nobody"},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := v1.Manifest{
		MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{},
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
	}
	m.SchemaVersion = 2
	if manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return manifest, config
}

const testPolicy = `{"default": [{"type": "insecureAcceptAnything"}]}`

// containers prepares a site with a kernel and a runtime for containers.
func containers(t *testing.T) *site {
	t.Helper()
	return containersOn(t, "6.12.98")
}

func containersOn(t *testing.T, release string) *site {
	t.Helper()
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(t.TempDir(), "none"))
	s := newSite(t)
	dir := "usr/lib/modules/" + release + "/"
	files := map[string][]byte{
		"boot/vmlinuz-" + release:       synthetic.Kernel(release),
		dir + "modules.builtin":         []byte("kernel/sha256_generic.ko\nkernel/hmac.ko\nkernel/virtio_pci.ko\nkernel/ext4.ko\n"),
		dir + "modules.builtin.modinfo": []byte("sha256_generic.alias=crypto-sha256\x00hmac.alias=crypto-hmac\x00"),
	}
	for _, m := range []string{"leaf", "dm-verity", "erofs", "overlay", "virtio_net", "virtio_blk", "veth", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq", "loop", "dm-crypt", "dm-integrity", "xts"} {
		files[dir+"kernel/"+m+".ko"] = synthetic.Module("depends=")
	}
	s.write("debs/linux-image-containers_1_amd64.deb", synthetic.Deb("linux-image-containers", "1", "", files))
	s.write("debs/crun_1_amd64.deb", synthetic.Deb("crun", "1", "", map[string][]byte{"usr/bin/crun": []byte("crun\n")}))
	s.write("policy.json", []byte(testPolicy))
	return s
}

// with are the values that every profile with containers has here.
func with(set ...string) []string {
	return append([]string{`kernel.package="linux-image-containers"`, `root.packages=["motd", "crun"]`}, set...)
}

// told reads what the agent in an image is told.
func (s *site) told(results map[string]Outputs) *config.Config {
	s.t.Helper()
	_, c, err := readAgent(bytes.NewReader(s.output(results, "initrd", "initrd")))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) measurements(results map[string]Outputs) *measure.Measurements {
	s.t.Helper()
	m, err := measure.ParseMeasurements(s.output(results, "measure", "measurements.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// after is what a register holds once workloads were measured.
func after(t *testing.T, m *measure.Measurements, register, bank, phase string) *measure.Value {
	t.Helper()
	for i := range m.Values {
		if v := &m.Values[i]; v.Register == register && v.Bank == bank && v.Phase == phase {
			return v
		}
	}
	t.Fatalf("no value for %s in bank %s, phase %q", register, bank, phase)
	return nil
}

// extended is a register from zero after texts as tagged events of the AAEL, made
// here by hand.
func extended(texts ...string) string {
	value := make([]byte, 32)
	for _, s := range texts {
		d := sha256.Sum256([]byte("LEAA" + string([]byte{byte(len(s)), byte(len(s) >> 8), 0, 0}) + s))
		next := sha256.Sum256(append(value, d[:]...))
		value = next[:]
	}
	return hex.EncodeToString(value)
}

func hexOf(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func TestWorkloads(t *testing.T) {
	s, r := containers(t), newFakeRegistry(t)
	d := r.push(t, "1", "/app", "serve")
	s.write("ca.pem", pemOf(r))
	text := fmt.Sprintf(`
[network]
dhcp = true
[workloads]
from = "image"
policy = "policy.json"
cas = "ca.pem"
pcr_23 = true
[[workload]]
name = "web"
image = "docker://%s@%s"
env = { TOKEN = "canary" }
ports = ["80:8080", "53:53/udp"]
mounts = [{ path = "/cache", tmpfs = 8 }]
`, r.name(), d)
	results, err := s.run(s.profile(text, with()...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := s.told(results)
	if from, err := config.WorkloadsFrom(c.Cmdline); err != nil || from != workload.FromImage || !strings.HasSuffix(c.Cmdline, " plinth.workloads=image") {
		t.Errorf("command line %q, %v", c.Cmdline, err)
	}
	if c.Network == nil || !c.Network.DHCP || c.Storage.MemoryMiB != 512 || c.Epoch != 1767225600 || *c.Events != (config.Events{PCR: 14, PCR23: true}) || c.TestKeys != nil {
		t.Errorf("told: %+v", c)
	}
	want := workload.Process{
		Name: "web", Image: "docker://" + r.name() + "@" + d, Env: map[string]string{"TOKEN": "canary"},
		Mounts: []workload.Mount{{Path: "/cache", TmpfsMiB: 8}},
		Ports:  []workload.Port{{Guest: 80, Container: 8080}, {Protocol: "udp", Guest: 53, Container: 53}},
	}
	if got := c.Workloads.Workloads; len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("told:\n%+v\nwant\n%+v", got, want)
	}
	if c.Workloads.CAs != string(pemOf(r)) {
		t.Errorf("authorities %q", c.Workloads.CAs)
	}
	var names []string
	for _, m := range c.Modules {
		names = append(names, m.Name())
	}
	for _, m := range []string{"virtio_net", "loop", "veth", "nf_tables", "nft_masq", "overlay", "erofs", "dm_verity"} {
		if !slices.Contains(names, m) {
			t.Errorf("module %s is not loaded", m)
		}
	}

	// The events and their digests, written down by hand from the documents.
	effective := `{"args":["/app","serve"],"dir":"/","env":["PATH=/bin","TOKEN=canary"],"mounts":[{"path":"/cache","tmpfs_mib":8}],"network":"nat",` +
		`"ports":[{"container":8080,"guest":80,"protocol":"tcp"},{"container":53,"guest":53,"protocol":"udp"}],"resources":{"pids":1024},"scratch_mib":64,"stop_signal":"SIGTERM","user":"nobody"}`
	events := []string{
		`github.com/plinth-os/plinth Policy {"policy":"sha256:` + hexOf([]byte(`{"default":[{"type":"insecureAcceptAnything"}]}`)) + `"}`,
		`github.com/confidential-containers PullImage {"digest":"` + d + `","image":"` + r.name() + "@" + d + `"}`,
		`github.com/plinth-os/plinth Workload {"configuration":"sha256:` + hexOf([]byte(effective)) + `","env":["PATH","TOKEN"],"image":"` + d + `","name":"web"}`,
		`github.com/plinth-os/plinth Separator {"workloads":1}`,
	}
	m := s.measurements(results)
	for _, register := range []string{"pcr14", "pcr23"} {
		v := after(t, m, register, "sha256", measure.PhaseWorkloads)
		if v.Value != extended(events...) || v.Provenance != measure.Predicted || (v.Reason != "") != (register == "pcr23") {
			t.Errorf("%s: got %+v, want %s", register, v, extended(events...))
		}
		if v := after(t, m, register, "sha256", ""); v.Value != strings.Repeat("0", 64) {
			t.Errorf("%s before: %+v", register, v)
		}
	}
	v := after(t, m, "pcr14", "sha384", measure.PhaseWorkloads)
	var got []string
	for _, e := range v.Events {
		got = append(got, e.Name)
		if !e.Unlogged || len(e.Digest) != 2*crypto.SHA384.Size() {
			t.Errorf("%+v", e)
		}
	}
	if want := []string{"Policy", "PullImage web", "Workload web", "Separator"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if strings.Contains(string(s.output(results, "measure", "measurements.json")), "canary") {
		t.Error("the value of a variable is in measurements.json")
	}
	if mm := after(t, m, "pcr8", "sha256", ""); mm.Value != strings.Repeat("0", 64) {
		t.Errorf("pcr8: %+v", mm)
	}

	// What is locked needs no registry any more.
	r.Close()
	s.Client.Offline = true
	if again, err := s.run(s.profile(text, with()...), Options{}); err != nil || again["measure"]["measurements.json"] != results["measure"]["measurements.json"] {
		t.Errorf("offline: %v", err)
	}
}

func pemOf(r *fakeRegistry) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
}

// A tag may move: the lock keeps what it led to, and nothing of it is relied upon.
func TestWorkloadByTag(t *testing.T) {
	s, r := containers(t), newFakeRegistry(t)
	first := r.push(t, "1", "/one")
	s.write("ca.pem", pemOf(r))
	text := fmt.Sprintf("[network]\ndhcp = true\n[workloads]\nfrom = \"image\"\npolicy = \"policy.json\"\ncas = \"ca.pem\"\n[[workload]]\nname = \"web\"\nimage = \"docker://%s:1\"\n", r.name())
	p := s.profile(text, with()...)
	results, err := s.run(p, Options{})
	if err != nil {
		t.Fatal(err)
	}
	locked := func() string {
		t.Helper()
		l, err := ReadLock(s.LockPath)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range l.Files {
			if f.Path == "workload web docker://"+r.name()+":1 manifest" {
				return "sha256:" + f.SHA256.String()
			}
		}
		t.Fatalf("no entry for the image in %+v", l.Files)
		return ""
	}
	if got := locked(); got != first {
		t.Errorf("locked %s, want %s", got, first)
	}
	v := after(t, s.measurements(results), "pcr14", "sha256", measure.PhaseWorkloads)
	if v.Provenance != measure.Volatile || v.Value != "" || !strings.Contains(v.Reason, ":1: a tag may lead to another image tomorrow") {
		t.Errorf("%+v", v)
	}
	if v.Events[0].Digest == "" || v.Events[1].Digest != "" || v.Events[2].Digest != "" || v.Events[3].Digest == "" {
		t.Errorf("events %+v: want those of the image without digests", v.Events)
	}
	if c := s.told(results); c.Workloads.Workloads[0].Digest != "" {
		t.Error("the guest is told the digest of a tag")
	}

	second := r.push(t, "1", "/two")
	if _, err := s.run(p, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := locked(); got != first {
		t.Errorf("after the tag moved: locked %s, want %s", got, first)
	}
	// Another checkout has the lock and not the store: by digest it gets the same.
	other := containers(t)
	if err := copyFile(s.LockPath, other.LockPath); err != nil {
		t.Fatal(err)
	}
	other.write("ca.pem", pemOf(r))
	text1 := s.lockText()
	if _, err := other.run(other.profile(text, with()...), Options{}); err != nil {
		t.Error(err)
	}
	if got := other.lockText(); got != text1 {
		t.Errorf("another checkout changed the lock:\n%s", got)
	}
	for _, update := range []struct {
		names []string
		all   bool
		want  string
	}{{[]string{"motd"}, false, first}, {[]string{"web"}, false, second}} {
		if _, _, err := s.Relock(context.Background(), p, update.names, update.all); err != nil {
			t.Fatal(err)
		}
		if got := locked(); got != update.want {
			t.Errorf("update %q: locked %s, want %s", update.names, got, update.want)
		}
	}
}

// A name may be a package's and a workload's: both are updated.
func TestPackagesOf(t *testing.T) {
	files := []source.File{{Path: "workload web docker://r.example/a:1 manifest"}, {Path: "workload crun docker://r.example/b:1 manifest"}}
	old := &source.Lock{Packages: []source.Package{{Name: "crun"}, {Name: "motd"}}}
	if got, want := packagesOf([]string{"web", "crun", "motd", "nobody"}, files, old), []string{"crun", "motd", "nobody"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := packagesOf([]string{"web"}, files, nil); got != nil {
		t.Errorf("without a lock: %q", got)
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// An archive on a disk is known by its digest, which the guest is told.
func TestWorkloadInArchive(t *testing.T) {
	s := containers(t)
	manifest, image := testImage(t, "/app")
	d := digest.FromBytes(manifest)
	s.write("app.tar", layoutOf(t, manifest, image))
	text := "[workloads]\nfrom = \"image\"\npolicy = \"policy.json\"\ndisk = \"scratch\"\n[[workload]]\nname = \"app\"\nimage = \"oci-archive:/dev/disk/by-id/virtio-app\"\narchive = \"app.tar\"\n"
	results, err := s.run(s.profile(text, with()...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := s.told(results)
	if p := c.Workloads.Workloads[0]; p.Digest != d.String() || p.Wanted() != d.String() {
		t.Errorf("told %+v, want digest %s", p, d)
	}
	if err := c.Workloads.Pinned(); err != nil {
		t.Error(err)
	}
	if c.Network != nil || c.Storage.Disk != "scratch" || c.Storage.MemoryMiB != 0 {
		t.Errorf("told %+v %+v", c.Network, c.Storage)
	}
	if v := after(t, s.measurements(results), "pcr14", "sha256", measure.PhaseWorkloads); v.Provenance != measure.Predicted {
		t.Errorf("%+v", v)
	}
	// Another file is another image: the lock follows it, as any local file.
	manifest, image = testImage(t, "/other")
	s.write("app.tar", layoutOf(t, manifest, image))
	if results, err = s.run(s.profile(text, with()...), Options{}); err != nil {
		t.Fatal(err)
	}
	if p := s.told(results).Workloads.Workloads[0]; p.Digest != digest.FromBytes(manifest).String() {
		t.Errorf("another archive: told %+v", p)
	}
	for _, m := range []string{"dm_crypt", "dm_integrity", "xts", "virtio_blk"} {
		if !slices.ContainsFunc(c.Modules, func(x config.Module) bool { return x.Name() == m }) {
			t.Errorf("module %s is not loaded", m)
		}
	}
}

// PCR 8 shows the initdata, or that there was none.
func TestWorkloadsFromInitdata(t *testing.T) {
	s, r := containers(t), newFakeRegistry(t)
	d := r.push(t, "1", "/app")
	cas, err := json.Marshal(string(pemOf(r)))
	if err != nil {
		t.Fatal(err)
	}
	doc := fmt.Sprintf(`{"schema":1,"cas":%s,"policy":%s,"workloads":[{"name":"web","image":"docker://%s@%s"},{"name":"disk","image":"oci-archive:/dev/disk/by-id/virtio-a"}]}`, cas, testPolicy, r.name(), d)
	raw, err := initdata.Build(initdata.SHA256, map[string]string{workload.DataKey: doc})
	if err != nil {
		t.Fatal(err)
	}
	path := s.write("initdata.toml", raw)
	text := "[network]\ndhcp = true\n[workloads]\nfrom = \"initdata\"\n"
	without, err := s.run(s.profile(text, with()...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for register, phase := range map[string]string{"pcr8": measure.PhaseInitdata, "pcr14": measure.PhaseWorkloads} {
		if v := after(t, s.measurements(without), register, "sha256", phase); v.Provenance != measure.Volatile || v.Value != "" || v.Reason != unknownInitdata {
			t.Errorf("without initdata: %+v", v)
		}
	}
	if c := s.told(without); c.Workloads != nil || !strings.HasSuffix(c.Cmdline, "plinth.workloads=initdata") {
		t.Errorf("told %+v", c)
	}

	given, err := s.run(s.profile(text, with("initdata="+path)...), Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := s.measurements(given)
	if v, want := after(t, m, "pcr8", "sha256", measure.PhaseInitdata), extendedBy(sum(raw)); v.Value != want {
		t.Errorf("with initdata: %+v, want %s", v, want)
	}
	v := after(t, m, "pcr14", "sha256", measure.PhaseWorkloads)
	if v.Provenance != measure.Volatile || !strings.Contains(v.Reason, "virtio-a: not in the lock of this image") || v.Events[1].Digest == "" || v.Events[3].Digest != "" {
		t.Errorf("with initdata: %+v", v)
	}
}

// A digest in the initdata that changes is another image, however often the name stays.
func TestWorkloadOfAnotherDigest(t *testing.T) {
	s, r := containers(t), newFakeRegistry(t)
	cas, err := json.Marshal(string(pemOf(r)))
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"/one", "/two"} {
		d := r.push(t, "1", command)
		doc := fmt.Sprintf(`{"schema":1,"cas":%s,"policy":%s,"workloads":[{"name":"web","image":"docker://%s","digest":"%s"}]}`, cas, testPolicy, r.name(), d)
		raw, err := initdata.Build(initdata.SHA256, map[string]string{workload.DataKey: doc})
		if err != nil {
			t.Fatal(err)
		}
		text := "[network]\ndhcp = true\n[workloads]\nfrom = \"initdata\"\n"
		results, err := s.run(s.profile(text, with("initdata="+s.write("initdata.toml", raw))...), Options{})
		if err != nil {
			t.Fatal(err)
		}
		pull := `github.com/confidential-containers PullImage {"digest":"` + d + `","image":"` + r.name() + `"}`
		want := hexOf([]byte("LEAA" + string([]byte{byte(len(pull)), 0, 0, 0}) + pull))
		if v := after(t, s.measurements(results), "pcr14", "sha256", measure.PhaseWorkloads); v.Provenance != measure.Predicted || v.Events[1].Digest != want {
			t.Errorf("%s: %+v, want %s of %s", command, v, want, pull)
		}
	}
}

// Nor does a lock vouch for an image that the guest wants by another digest.
func TestPredictByDigest(t *testing.T) {
	a, b, index := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64), "sha256:"+strings.Repeat("c", 64)
	for _, tt := range []struct {
		locked, manifest, want string
		known                  bool
	}{{"", a, a, true}, {index, a, index, true}, {a, a, a, true}, {a, a, b, false}, {"", a, b, false}, {index, a, "", false}} {
		p := workload.Process{Name: "web", Image: "docker://r.example/app", Digest: tt.want}
		l := LockedImage{Name: p.Name, Image: p.Image, Digest: tt.locked, Manifest: tt.manifest, Config: v1.ImageConfig{Cmd: []string{"/app"}}}
		events, err := predictEvents(&workload.Config{Schema: workload.Schema, Workloads: []workload.Process{p}}, map[string]LockedImage{"web": l})
		if err != nil {
			t.Fatal(err)
		}
		if known := events[1].Data != nil; known != tt.known {
			t.Errorf("%+v: known is %v: %s", tt, known, events[1].Reason)
		}
	}
}

func sum(b []byte) []byte {
	d := sha256.Sum256(b)
	return d[:]
}

func extendedBy(digest []byte) string {
	sum := sha256.Sum256(append(make([]byte, 32), digest...))
	return hex.EncodeToString(sum[:])
}

// layoutOf is an OCI archive of one image.
func layoutOf(t *testing.T, manifest, config []byte) []byte {
	t.Helper()
	d := digest.FromBytes(manifest)
	return layoutTar(t, map[string][]byte{
		"oci-layout":                  []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json":                  fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, v1.MediaTypeImageManifest, d, len(manifest)),
		"blobs/sha256/" + d.Encoded(): manifest,
		"blobs/sha256/" + digest.FromBytes(config).Encoded(): config,
	})
}

// layoutTar is a tar of files.
func layoutTar(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What a guest could not run, and what would be refused there, fails here.
func TestWorkloadsRefused(t *testing.T) {
	s := containers(t)
	manifest, image := testImage(t, "/app")
	s.write("app.tar", layoutOf(t, manifest, image))
	s.write("bad.json", []byte(`{"default": [{"type": "reject", "more": 1}]}`))
	const head, tail = "[workloads]\nfrom = \"image\"\n", "[[workload]]\nname = \"app\"\nimage = \"oci-archive:/dev/disk/by-id/virtio-app\"\narchive = \"app.tar\"\n"
	for _, c := range []struct {
		name, text, want string
		set              []string
	}{
		{"no runtime", head + tail, `no /usr/bin/crun in the root file system, which runs the containers: add "crun"`, []string{`root.packages=["motd"]`}},
		{"policy with an unknown key", head + "policy = \"bad.json\"\n" + tail, policyKey + ": ", nil},
		{"mount over what the runner mounts", head + tail + "mounts = [{ path = \"/proc/x\", tmpfs = 1 }]\n", "/proc/x: there is what every container gets", nil},
		{"module that the kernel lacks", head + tail, "veth", []string{`kernel.package="linux-image-synthetic"`}},
	} {
		p := s.profile(c.text, append(with(), c.set...)...)
		_ = os.Remove(s.LockPath) // of the row before
		if _, err := s.run(p, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	s.Client.Offline = true
	p := s.profile("[network]\ndhcp = true\n"+head+"[[workload]]\nname = \"app\"\nimage = \"docker://registry.example.com/app:1\"\n", with()...)
	if _, err := s.Spec(context.Background(), p, Guest{}); err == nil || !strings.Contains(err.Error(), "workload app: ") || !strings.Contains(err.Error(), "registry.example.com/app:1") {
		t.Errorf("offline: %v", err)
	}
}

// A network means name servers that only the guest knows.
func TestResolvConf(t *testing.T) {
	s := containers(t)
	for text, want := range map[string]string{
		"": "", "[network]\ndhcp = true\n": "/run/plinth/resolv.conf",
		"[network]\ndhcp = true\n[[files]]\npath = \"/etc/resolv.conf\"\nlink = \"/etc/mine\"\n": "/etc/mine",
	} {
		_ = os.Remove(s.LockPath)
		results, err := s.run(s.profile(text, with()...), Options{})
		if err != nil {
			t.Fatal(err)
		}
		files, _, err := readAgent(bytes.NewReader(s.output(results, "initrd", "initrd")))
		if err != nil {
			t.Fatal(err)
		}
		if e := files["/etc/resolv.conf"]; e.Target != want {
			t.Errorf("%q: /etc/resolv.conf leads to %q, want %q", text, e.Target, want)
		}
	}
}

// Those who log in to a registry by podman or docker need not do it again.
func TestAuthFiles(t *testing.T) {
	env := map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1"}
	get := func(k string) string { return env[k] }
	if got, want := authFiles(get), []string{"/run/user/1/containers/auth.json", "/home/u/.config/containers/auth.json", "/home/u/.docker/config.json"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	env["XDG_CONFIG_HOME"], env["DOCKER_CONFIG"] = "/c", "/d"
	if got, want := authFiles(get), []string{"/run/user/1/containers/auth.json", "/c/containers/auth.json", "/d/config.json"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	env["REGISTRY_AUTH_FILE"] = "/a"
	if got := authFiles(get); !slices.Equal(got, []string{"/a"}) {
		t.Errorf("got %q", got)
	}
}

// Where workloads are measured is the platform's.
func TestWorkloadsOnPlatforms(t *testing.T) {
	r := newFakeRegistry(t)
	d := r.push(t, "1", "/app")
	events := func(from string) []string {
		return []string{
			`github.com/plinth-os/plinth Policy {"policy":"sha256:` + hexOf([]byte(`{"default":[{"type":"insecureAcceptAnything"}]}`)) + `"}`,
			`github.com/confidential-containers PullImage {"digest":"` + d + `","image":"` + from + `"}`,
		}
	}
	for _, tt := range []struct {
		release, profile, register, bank string
		events                           *config.Events
	}{
		{"6.16.1", synthetic.SNPProfile, "", "", nil},
		{"6.12.98", synthetic.TDXProfile, "", "", nil}, // its kernel cannot
		{"6.16.1", synthetic.TDXProfile, "rtmr3", "sha384", nil},
		{"6.16.1", synthetic.TDXProfile + "[workloads]\nevent_pcr = 15\n", "rtmr3", "sha384", &config.Events{PCR: 15}},
		{"6.12.98", synthetic.Profile, "pcr14", "sha256", &config.Events{PCR: 14}},
	} {
		s := containersOn(t, tt.release)
		s.write("ca.pem", pemOf(r))
		image := r.name() + "@" + d
		text := "[network]\naddresses = [\"192.0.2.7/24\"]\ngateways = [\"192.0.2.1\"]\n[[workload]]\nname = \"web\"\nimage = \"docker://" + image + "\"\n"
		p := s.guest(tt.profile+text, with("workloads.from=image", "workloads.cas="+s.dir+"/ca.pem", "workloads.policy="+s.dir+"/policy.json")...)
		_, results, m := s.mustBuild(p)
		c := s.told(results)
		if !reflect.DeepEqual(c.Events, tt.events) || !slices.Equal(c.Network.Gateways, []string{"192.0.2.1"}) {
			t.Errorf("%s: told %+v, %+v, want %+v", p.Platform, c.Events, c.Network, tt.events)
		}
		if err := c.Workloads.Pinned(); err != nil {
			t.Error(err)
		}
		var found []string
		for i := range m.Values {
			v := &m.Values[i]
			if v.Phase != measure.PhaseWorkloads {
				continue
			}
			if found = append(found, v.Register); v.Register != tt.register || v.Bank != tt.bank {
				continue
			}
			for n, text := range events(image) {
				alg, err := eventlog.ParseAlg(v.Bank)
				if err != nil {
					t.Fatal(err)
				}
				want := alg.Sum([]byte("LEAA" + string([]byte{byte(len(text)), byte(len(text) >> 8), 0, 0}) + text))
				if v.Events[n].Digest != hex.EncodeToString(want) {
					t.Errorf("%s: event %+v, want %x of %s", p.Platform, v.Events[n], want, text)
				}
			}
		}
		if slices.Contains(found, tt.register) != (tt.register != "") || tt.register == "" && found != nil {
			t.Errorf("%s: values of %q, want %q", p.Platform, found, tt.register)
		}
	}
}

// What check and repredict read of an image's directory is enough to predict
// again, without the profile's files and the store.
func TestWorkloadsPredictedAgain(t *testing.T) {
	s, r := containers(t), newFakeRegistry(t)
	d := r.push(t, "1", "/app")
	s.write("ca.pem", pemOf(r))
	text := fmt.Sprintf("[network]\ndhcp = true\n[workloads]\nfrom = \"image\"\npolicy = \"policy.json\"\ncas = \"ca.pem\"\n[[workload]]\nname = \"web\"\nimage = \"docker://%s@%s\"\n", r.name(), d)
	p := s.profile(text, with()...)
	m, results, want := s.mustBuild(p)
	if !m.Has(WorkloadsName) || !strings.HasSuffix(m.Cmdline, "plinth.workloads=image") {
		t.Errorf("manifest: %+v", m)
	}
	for _, name := range []string{"policy.json", "ca.pem"} {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	read, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		t.Fatal(err)
	}
	i := &Image{Profile: read, Machine: m.Machine, Store: s.Store, Open: func(name string) (*io.SectionReader, error) {
		b, err := s.Store.ReadFile(m.Artefact(name).Digest)
		return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), err
	}}
	got, _, err := i.Predict(Banks)
	if err != nil {
		t.Fatal(err)
	}
	a, err1 := got.Marshal()
	b, err2 := want.Marshal()
	if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Errorf("predicted again: %v %v\n%s", err1, err2, a)
	}
	var locked []LockedImage
	if err := json.Unmarshal(s.output(results, "workloads", workloadsOutput), &locked); err != nil || len(locked) != 1 || locked[0].Manifest != d || !slices.Equal(locked[0].Config.Cmd, []string{"/app"}) {
		t.Errorf("workloads.json: %+v, %v", locked, err)
	}
}
