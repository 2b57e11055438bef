package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/guestapi"
	"github.com/plinth-os/plinth/agent/imageservice"
	"github.com/plinth-os/plinth/agent/imageservice/api"
	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/workload"
)

// sealer seals secrets, and gives the broker what opens them.
func sealer(t *testing.T, f *fakeSite) func(secret string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := kbs.SealedKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	f.secrets["kbs:///default/keys/signer"] = string(jwk)
	sign := func(message []byte) ([]byte, error) {
		sum := sha256.Sum256(message)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), err
	}
	return func(uri string) string {
		secret, err := kbs.NewVault(uri)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := secret.Seal("kbs:///default/keys/signer", sign)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
}

// newSecrets is a guest whose broker is a fake, and whose workload wants secrets.
func newSecrets(t *testing.T, spoil func(*config.Config, func(string) string)) (*State, *fakeSite) {
	t.Helper()
	keep := &fakeSite{secrets: map[string]string{
		"kbs:///default/web/file": "canary in a file", "kbs:///default/web/sealed": "canary in a variable",
	}}
	seal := sealer(t, keep)
	s, _, f := newWorkloads(t, func(c *config.Config) {
		c.Attestation = attested()
		c.Workloads.Workloads = c.Workloads.Workloads[:1]
		w := &c.Workloads.Workloads[0]
		w.Env = map[string]string{"TOKEN": seal("kbs:///default/web/sealed")}
		w.Mounts = []workload.Mount{{Path: "/etc/secret", Secret: "kbs:///default/web/file"}, {Path: "/etc/other", Secret: w.Env["TOKEN"]}}
		w.Restart = workload.RestartAlways
		if spoil != nil {
			spoil(c, seal)
		}
	})
	f.secrets = keep.secrets
	s.work.fleet.delay = time.Millisecond
	return s, f
}

// Secrets are opened behind the measurements and before the containers; what a run
// gets is not what is measured, printed or kept.
func TestSecrets(t *testing.T) {
	s, f := newSecrets(t, nil)
	s.work.site.prepare = prepareWith("IMAGE=sealed.a.b.c")
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	run := f.run(t, 1)
	for _, want := range []string{"TOKEN=canary in a variable", "IMAGE=sealed.a.b.c"} {
		if !slices.Contains(run.spec.Effective.Env, want) {
			t.Errorf("variables are %q, want %q", run.spec.Effective.Env, want)
		}
	}
	if run.files["/etc/secret"] != "canary in a file" || run.files["/etc/other"] != "canary in a variable" {
		t.Errorf("files are %q", run.files)
	}
	for at, b := range run.spec.Secrets {
		if strings.Trim(string(b), "\x00") != "" {
			t.Errorf("%s is still in memory", at)
		}
	}
	lines := f.lines()
	if i, j := slices.Index(lines, "fetch "+image("web")), slices.Index(lines, "secret kbs:///default/web/file"); i < 0 || j < i {
		t.Errorf("secrets are asked for too early: %q", lines)
	}
	log, err := s.readWorkloadLog()
	if err != nil {
		t.Fatal(err)
	}
	report, err := json.Marshal(s.Report)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"console": s.console.(*lockedBuffer).String(), "log": string(log), "report": string(report)} {
		if strings.Contains(text, "canary in") {
			t.Errorf("the %s has a secret", what)
		}
	}
	// The next run gets what the broker has by then.
	f.mu.Lock()
	f.secrets["kbs:///default/web/file"] = "another"
	f.mu.Unlock()
	run.ended <- exited0
	if got := f.run(t, 2).files["/etc/secret"]; got != "another" {
		t.Errorf("the second run got %q", got)
	}
}

// prepareWith gives images a variable.
func prepareWith(variable string) func(context.Context, *imagepull.Puller, policy.Name) (*imagepull.Prepared, error) {
	return func(_ context.Context, _ *imagepull.Puller, n policy.Name) (*imagepull.Prepared, error) {
		im := fakeImage(n.String())
		im.Settings.Config.Env = append(im.Settings.Config.Env, variable)
		return &imagepull.Prepared{Image: im.Image, Settings: im.Settings}, nil
	}
}

// Who gets a key may clear it.
func TestTestKeys(t *testing.T) {
	s, _ := newGuest(t, config.Config{Debug: true, TestKeys: map[string][]byte{"kbs:///a/b/c": []byte("canary")}})
	b, err := s.key(t.Context(), "kbs:///a/b/c")
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
	if b, err = s.key(t.Context(), "kbs:///a/b/c"); err != nil || string(b) != "canary" {
		t.Errorf("the key is %q, %v after somebody cleared what he got", b, err)
	}
}

// A secret that cannot be had, or that is not what it must be, ends the boot before a
// container is made.
func TestSecretsFail(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(s *State, f *fakeSite)
	}{
		{"file", "secrets: web: mount /etc/secret: ", func(_ *State, f *fakeSite) { delete(f.secrets, "kbs:///default/web/file") }},
		{"sealed", "secrets: web: variable TOKEN: ", func(_ *State, f *fakeSite) { delete(f.secrets, "kbs:///default/web/sealed") }},
		{"signer", "secrets: web: variable TOKEN: ", func(_ *State, f *fakeSite) { delete(f.secrets, "kbs:///default/keys/signer") }},
		{"NUL", "not the value of a variable", func(_ *State, f *fakeSite) { f.secrets["kbs:///default/web/sealed"] = "canary\x00" }},
		{"no text", "not the value of a variable", func(_ *State, f *fakeSite) { f.secrets["kbs:///default/web/sealed"] = "canary\xff" }},
		{"too long", "not the value of a variable", func(_ *State, f *fakeSite) {
			f.secrets["kbs:///default/web/sealed"] = strings.Repeat("canary", 1<<17/6)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, f := newSecrets(t, nil)
			tt.spoil(s, f)
			err := bootWorkloads(t, s)
			wantError(t, err, tt.want)
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("the error has the secret: %v", err)
			}
			if slices.Contains(f.lines(), "create web") {
				t.Error("a container was made")
			}
		})
	}
}

// A policy of the broker's is what images are judged by, and what is measured.
func TestPolicyFrom(t *testing.T) {
	const own = `{"default":[{"type":"insecureAcceptAnything"}]}`
	make := func(policy string) (*State, *fakeSite) {
		s, _, f := newWorkloads(t, func(c *config.Config) {
			c.Attestation = attested()
			c.Workloads.Policy, c.Workloads.PolicyFrom = nil, "kbs:///default/policy/images"
		})
		f.secrets = map[string]string{"kbs:///default/policy/images": policy}
		return s, f
	}
	s, _ := make(own)
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	s2, _, _ := newWorkloads(t, func(c *config.Config) { c.Workloads.Policy = json.RawMessage(own) })
	if err := bootWorkloads(t, s2); err != nil {
		t.Fatal(err)
	}
	got, err1 := s.readWorkloadLog()
	want, err2 := s2.readWorkloadLog()
	if err1 != nil || err2 != nil || string(got) != string(want) {
		t.Errorf("a policy of the broker's is measured as %q, want %q", got, want)
	}
	s, f := make("canary")
	err := bootWorkloads(t, s)
	if err == nil || strings.Contains(err.Error(), "canary") || slices.Contains(f.lines(), "create web") {
		t.Errorf("got %v", err)
	}
}

// A key that a policy names may be the broker's.
func TestTrustedByBroker(t *testing.T) {
	s, f := newSecrets(t, nil)
	s.work.attestation.brokers = f
	if b, err := s.readTrusted(t.Context(), "kbs:///default/web/file"); err != nil || string(b) != "canary in a file" {
		t.Errorf("got %q, %v", b, err)
	}
	_, err := s.readTrusted(t.Context(), "kbs:///default/web/none")
	if !errors.Is(err, kbs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// The broker may be the one that initdata names, and nothing but that document.
func TestBrokerFromInitdata(t *testing.T) {
	const aa = "[token_configs.kbs]\nurl = \"https://kbs.example.org:8080\"\n"
	for _, tt := range []struct {
		name    string
		data    map[string]string
		brokers []string
		want    string
	}{
		{"aa.toml", map[string]string{"aa.toml": aa}, []string{"kbs.example.org:8080"}, ""},
		{"cdh.toml", map[string]string{"cdh.toml": "[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs.example.net\"\n"}, []string{"kbs.example.net:443"}, ""},
		{"none", map[string]string{}, nil, ""},
		{"two that disagree", map[string]string{"aa.toml": aa, "cdh.toml": "[kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs.example.net\"\n"}, nil, "attestation: initdata: "},
		{"plain http", map[string]string{"aa.toml": strings.Replace(aa, "https", "http", 1)}, nil, "attestation: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _, f := newInitdata(t, func(c *config.Config) { c.Attestation = &config.Attestation{TEE: evidence.TEETPM, FromInitdata: true} })
			s.work.site.brokers = func(clients ...*kbs.Client) (broker, error) {
				f.clients = clients
				return kbs.NewBrokers(clients...)
			}
			tt.data[workload.DataKey] = `{"schema":1,"policy":{"default":[{"type":"insecureAcceptAnything"}]},"workloads":[{"name":"web","image":"` + image("web") + `"}]}`
			raw, err := initdata.Build(initdata.SHA256, tt.data)
			if err != nil {
				t.Fatal(err)
			}
			device, err := initdata.Encode(raw, initdata.Device)
			if err != nil {
				t.Fatal(err)
			}
			giveDisk(t, s, "vda", "", device)
			err = bootWorkloads(t, s)
			wantError(t, err, tt.want)
			if err != nil {
				return
			}
			if got := s.Report.Attestation.Brokers; !slices.Equal(got, tt.brokers) {
				t.Errorf("brokers are %q, want %q", got, tt.brokers)
			}
			for _, c := range f.clients {
				if c.InitData == nil || c.InitData.Body != string(raw) || c.InitData.Format != "toml" {
					t.Errorf("the broker is sent %+v", c.InitData)
				}
			}
		})
	}
}

// Disks are opened behind the measurements and mounted where containers get them; a
// guest that stops closes them, the last first.
func TestVolumes(t *testing.T) {
	s, _, f := newWorkloads(t, func(c *config.Config) {
		c.Attestation = attested()
		c.Volumes = []config.Volume{{Name: "data", Disk: "data0", Key: "kbs:///default/disk/data"}, {Name: "tmp", Disk: "tmp0"}}
		c.Workloads.Workloads = c.Workloads.Workloads[:1]
		c.Workloads.Workloads[0].Mounts = []workload.Mount{{Path: "/data", Volume: "data"}}
	})
	giveDisk(t, s, "vda", "data0", nil)
	giveDisk(t, s, "vdb", "tmp0", nil)
	f.secrets = map[string]string{"kbs:///default/disk/data": "canary"}
	measured := 0
	f.hold = map[string]func(){"secret kbs:///default/disk/data": func() { measured = len(s.Extender.Done()) }}
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	lines := f.lines()
	want := []string{
		"secret kbs:///default/disk/data", `open data vda "canary"`, "mount volume data at data, read-only false",
		`open tmp vdb ""`, "mount volume tmp at tmp, read-only false", "fetch " + image("web"),
	}
	if i := slices.Index(lines, want[0]); i < 0 || !slices.Equal(lines[i:][:len(want)], want) {
		t.Errorf("got %q, want %q", lines, want)
	}
	if want := 2 + 2*4; measured != want { // phases; policy, image, container and separator in two registers
		t.Errorf("the key is asked for after %d extends, want %d", measured, want)
	}
	if got := f.run(t, 1).spec.Volumes["data"]; got != s.path(volumeMounts+"/data") {
		t.Errorf("the container gets %q", got)
	}
	s.stopContainers(0)
	s.closeVolumes(time.Minute)
	if got := f.lines(); !slices.Equal(got[len(got)-2:], []string{"close volume tmp", "close volume data"}) {
		t.Errorf("got %q", got)
	}
	if err := s.keepVolume(fakeVolume{f, "late"}); !errors.Is(err, errStopping) {
		t.Errorf("got %v", err)
	}
	if got := f.lines(); got[len(got)-1] != "close volume late" {
		t.Errorf("got %q", got)
	}
}

// A program of the root file system uses the services of CoCo's guests.
func TestServices(t *testing.T) {
	s, m, f := newWorkloads(t, func(c *config.Config) {
		c.Attestation = attested()
		c.Attestation.Services = true
	})
	m.tpm = newFakeTPM("sha1", "sha256")
	f.secrets = map[string]string{"kbs:///a/b/c": "canary"}
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	dial := func(socket string) *ttrpc.Client {
		conn, err := net.Dial("unix", s.path(socket))
		if err != nil {
			t.Fatal(err)
		}
		client := ttrpc.NewClient(conn)
		t.Cleanup(func() { client.Close() })
		return client
	}
	hub, agent := dial(imageservice.Socket), dial(guestapi.AttestationAgent)
	r, err := api.NewGetResourceServiceClient(hub).GetResource(t.Context(), &api.GetResourceRequest{ResourcePath: "kbs:///a/b/c"})
	if err != nil || string(r.Resource) != "canary" {
		t.Errorf("got %v, %v", r, err)
	}
	tee, err := api.NewAttestationAgentServiceClient(agent).GetTeeType(t.Context(), &api.GetTeeTypeRequest{})
	if err != nil || tee.Tee != evidence.TEETPM {
		t.Errorf("it is %v, %v", tee, err)
	}
	giveDisk(t, s, "vda", "", nil)
	mount := &api.SecureMountRequest{VolumeType: "block-device", MountPoint: "/run/kata-containers/data", Options: map[string]string{
		"devicePath": "/dev/vda", "sourceType": "empty", "targetType": "fileSystem", "encryptionType": "luks2", "key": "kbs:///a/b/c", "mapperName": "data",
	}}
	mounts := api.NewSecureMountServiceClient(hub)
	if _, err := mounts.SecureMount(t.Context(), mount); err != nil {
		t.Error(err)
	}
	for at, want := range map[string]string{"/run/plinth/x": "that is the agent's", "/etc": "the guest's own", "/run/link/data": "too many levels"} {
		if err := os.MkdirAll(s.path("/run/there"), 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Symlink("there", s.path("/run/link"))
		mount.MountPoint = at
		_, err := mounts.SecureMount(t.Context(), mount)
		wantError(t, err, want)
	}
	// A broker that gives nothing does not turn a volume into one of a random key.
	f.secrets["kbs:///a/b/empty"] = ""
	mount.Options["key"], mount.MountPoint = "kbs:///a/b/empty", "/run/kata-containers/empty"
	_, err = mounts.SecureMount(t.Context(), mount)
	wantError(t, err, "want a key")
	mount.Options["key"] = "kbs:///a/b/c"
	mount.Options["targetType"], mount.MountPoint = "device", "/run/kata-containers/device"
	if _, err := mounts.SecureMount(t.Context(), mount); err != nil {
		t.Error(err)
	}
	if got, err := os.Readlink(s.path(mount.MountPoint)); err != nil || got != "/dev/dm-9" {
		t.Errorf("the device is %q, %v", got, err)
	}
	mount.MountPoint = "/run/link/device"
	_, err = mounts.SecureMount(t.Context(), mount)
	wantError(t, err, "too many levels")
	if left, err := os.ReadDir(s.path("/run/there")); err != nil || len(left) != 0 {
		t.Errorf("behind a link there is %v, %v", left, err)
	}
	s.closeVolumes(time.Minute)
	lines := f.lines()
	if n := strings.Count(strings.Join(lines, "\n"), "close volume data"); n != 4 || strings.Contains(s.console.(*lockedBuffer).String(), "canary") {
		t.Errorf("%d closed, want 4: %q", n, lines)
	}
}

// A container that asks the guest has a window in each of its runs, and no longer.
func TestWindow(t *testing.T) {
	s, f := newSecrets(t, func(c *config.Config, _ func(string) string) {
		c.Workloads.Workloads[0].API = &workload.API{Resources: []string{"kbs:///default/web/"}}
	})
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	lines := f.lines()
	if i := slices.Index(lines, "create web"); i < 0 || !slices.Equal(lines[i:][:3], []string{"create web", "listen 101", "start web"}) {
		t.Errorf("got %q", lines)
	}
	first := f.at()
	f.run(t, 1).ended <- exited0
	eventually(t, "it listens again", func() bool { return slices.Contains(f.lines(), "listen 102") })
	eventually(t, "the first window is closed", func() bool {
		c, err := net.Dial("tcp", first)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	s2, f2 := newSecrets(t, func(c *config.Config, _ func(string) string) {
		c.Workloads.Workloads[0].API, c.Workloads.Workloads[0].Restart = &workload.API{Token: true}, ""
	})
	if err := bootWorkloads(t, s2); err != nil {
		t.Fatal(err)
	}
	f2.run(t, 1).ended <- exited0
	<-s2.work.fleet.all[0].over
	eventually(t, "the window of what has ended is closed", func() bool {
		c, err := net.Dial("tcp", f2.at())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	// Without a window there is no container.
	f.mu.Lock()
	f.fail["listen 103"] = errors.New("boom")
	f.mu.Unlock()
	f.run(t, 2).ended <- exited0
	eventually(t, "it is tried again", func() bool { return slices.Contains(f.lines(), "listen 104") })
	lines = f.lines()
	if i := slices.Index(lines, "listen 103"); lines[i+1] != "delete web" {
		t.Errorf("got %q", lines[i:])
	}
}

// Who asks before the boot is over waits for that: the registers are those of the last
// phase then.
func TestSettled(t *testing.T) {
	s, f := newSecrets(t, nil)
	var mu sync.Mutex
	var phases [][]string // at which the file was asked for
	asked := make(chan error, 1)
	f.hold = map[string]func(){
		"secret kbs:///default/web/file": func() {
			mu.Lock()
			defer mu.Unlock()
			var done []string
			for _, e := range s.Extender.Done() {
				if e.PCR == phasePCR {
					done = append(done, e.What)
				}
			}
			phases = append(phases, done)
		},
		"start web": func() {
			go func() {
				_, err := guest{s}.Resource(t.Context(), "kbs:///default/web/file")
				asked <- err
			}()
			time.Sleep(50 * time.Millisecond)
		},
	}
	if err := bootWorkloads(t, s); err != nil {
		t.Fatal(err)
	}
	wantError(t, <-asked, "")
	mu.Lock()
	defer mu.Unlock()
	if len(phases) != 2 || !slices.Equal(phases[0], config.Phases[:2]) || !slices.Equal(phases[1], config.Phases) {
		t.Errorf("asked at %q, want before the containers and after the last phase", phases)
	}
	s2, _ := newSecrets(t, nil)
	s2.work.attestation.ready = make(chan struct{})
	if _, err := (guest{s2}).Resource(short(t), "kbs:///default/web/file"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
