package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/qemu"
	"github.com/plinth-os/plinth/tests/kbs"
	"github.com/plinth-os/plinth/tests/registry"
	"github.com/plinth-os/plinth/tests/swtpm"
)

// A deployment is what an operator of guests has: a registry, a broker that knows
// what guests must be, a machine whose TPM the broker knows, and an encrypted and
// signed image.
type deployment struct {
	dir      string
	broker   *kbs.Broker
	url      string
	registry *registry.Server
	image    string            // "docker://.../asker@sha256:..."
	secrets  map[string]string // by "default/type/tag"
	tpm      string            // directory of the TPM's seeds
	disks    []qemu.Disk

	mu  sync.Mutex
	log []string // the broker's
}

const imageKey = "default/key/asker"

// deploy sets one up.
func deploy(t *testing.T, server *registry.Server) *deployment {
	t.Helper()
	needs(t, append([]string{"tar", "go"}, bootTools...)...)
	d := &deployment{dir: workdir(t), registry: server, secrets: map[string]string{"default/web/secret": secret(t, "web")}, broker: &kbs.Broker{}}
	key := make([]byte, 32)
	rand.Read(key)
	d.secrets[imageKey] = string(key)
	d.serve(t)

	l := &layout{dir: t.TempDir(), config: v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}}
	l.files(t, map[string]string{"bin/asker": string(program(t, "./tests/e2e/testdata/asker"))})
	plain, _ := l.finish(t, v1.ImageConfig{Entrypoint: []string{"/bin/asker"}})
	write(t, d.path("key"), key)
	must(t, d.dir, "image", "encrypt", "oci:"+plain+":web", "oci:"+d.path("encrypted")+":web",
		"--recipient", "provider:attestation-agent:keyid=kbs:///"+imageKey+":keypath=key")
	d.registry.Push(t, "oci:"+d.path("encrypted")+":web", "asker:1")
	digest := manifestDigest(t, d.path("encrypted"))
	sign(t, d.dir, d.registry, "asker@"+digest)
	d.image = "docker://registry.example.com/asker@" + digest

	write(t, d.path("registries.conf"), mirrored(server))
	write(t, d.path("registry.crt"), d.registry.CA)
	write(t, d.path("policy.json"), d.policy(t, "asker"))

	// The machine's owner tells the broker by which key its TPM signs.
	d.tpm = d.path("tpm")
	write(t, d.path("ak.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: swtpm.AK(t, d.tpm)}))
	return d
}

func (d *deployment) path(name string) string { return filepath.Join(d.dir, name) }

// policy wants a signature for images of a repository.
func (d *deployment) policy(t *testing.T, repository string) []byte {
	t.Helper()
	return fmt.Appendf(nil, `{"default": [{"type": "reject"}], "transports": {"docker": {"registry.example.com/asker": [{"type": "sigstoreSigned", "keyData": %q}],
	"registry.example.com/%s/none": [{"type": "reject"}]}}}`, base64.StdEncoding.EncodeToString(read(t, d.path("cosign.pub"))), repository)
}

// serve starts the broker where this machine and its guests reach it.
func (d *deployment) serve(t *testing.T) {
	t.Helper()
	d.broker.Documented = true
	d.broker.Log = func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.log = append(d.log, line)
	}
	d.broker.Resources = map[string]kbs.Resource{}
	for name, value := range d.secrets {
		d.broker.Resources[name] = kbs.Resource{Value: []byte(value)}
	}
	server := kbs.Serve(t, d.broker)
	d.url = server.Guest()
	write(t, d.path("broker.crt"), server.CA)
}

// said returns the broker's log.
func (d *deployment) said() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// A variant is what can differ between two images.
type variant struct {
	cmdline, motd string
	args          []string
	policy        string // file
	auth          string // what the broker calls the registry's credentials; "": none are wanted
	initdata      string // file; "": the workloads are in the image
	api, process  string // of the container
	more          string // of the profile
	flags         []string
}

// asks are what the container asks for, with the answer's status: what its entry
// grants, and what it does not.
var asks = []string{
	"GET /cdh/resource/default/web/secret", "GET /cdh/resource/default/key/asker", "GET /aa/token?token_type=kbs", "GET /aa/evidence?runtime_data=abc",
	"POST /aa/aael {\"domain\":\"example.com\",\"operation\":\"note\",\"content\":\"x\"}",
}

func stock() variant {
	return variant{cmdline: "plinth.note=a", motd: "a", args: asks[:2], policy: "policy.json", api: `{ resources = ["kbs:///default/web/"] }`}
}

// build makes an image.
func (d *deployment) build(t *testing.T, name string, v variant) (out string) {
	t.Helper()
	args, err := json.Marshal(v.args)
	if err != nil {
		t.Fatal(err)
	}
	initdata, workloads, process := "", "", ""
	if v.initdata != "" {
		initdata, workloads = fmt.Sprintf("initdata = %q\n", v.initdata), `from   = "initdata"`
	} else {
		workloads = fmt.Sprintf(`from       = "image"
registries = "registries.conf"
cas        = "registry.crt"
policy     = %q
`, v.policy)
		if v.auth != "" {
			workloads += fmt.Sprintf("auth       = %q\n", v.auth)
		}
		process = fmt.Sprintf(`
[[workload]]
name   = "asker"
image  = %q
args   = %s
output = "console"
api    = %s
%s`, d.image, args, v.api, v.process)
	}
	write(t, d.path(name+".toml"), fmt.Appendf(nil, `schema  = 1
extends = "vtpm"
cmdline = { append = ["console=ttyS0", "quiet", %q] }
%s
[root]
packages = ["crun"]

[[files]]
path = "/etc/motd"
text = %q

[initrd]
compression = "none"

[network]
dhcp = true

[attestation]
brokers = [{ url = %q, cas = "broker.crt" }]

[workloads]
memory     = 64
%s%s
[machine]
vcpus = [1]
%s`, v.cmdline, initdata, v.motd, d.url, workloads, process, v.more))
	write(t, d.path("auth.json"), d.registry.AuthFile())
	r := command(t, d.dir, []string{"REGISTRY_AUTH_FILE=" + d.path("auth.json")}, append([]string{"build", "./" + name + ".toml"}, v.flags...)...)
	if r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	return filepath.Join(d.dir, "out", name)
}

// trust exports an image's values, and the broker imports them.
func (d *deployment) trust(t *testing.T, out string) {
	t.Helper()
	file := out + ".rvps"
	must(t, d.dir, "export", out, "--to", "rvps", "--pcrs", "4,8,9,11,14", "--ak", "ak.pem", "-o", file)
	if err := d.broker.Load("rvps", read(t, file)); err != nil {
		t.Fatal(err)
	}
}

// start boots an image on the machine that the broker knows.
func (d *deployment) start(t *testing.T, out string) *guest {
	t.Helper()
	img := imageIn(t, out)
	img.machine.MemoryMiB, img.patience = 1024, 5*time.Minute
	img.machine.Network = &qemu.Network{}
	img.machine.TPMState = d.tpm
	img.machine.Disks = append(img.machine.Disks, d.disks...)
	if disk := out + ".disk"; exists(disk) {
		img.machine.Disks = append(img.machine.Disks, qemu.Disk{Path: disk, Serial: "initdata"})
	}
	return img.boot(t, "-object", "filter-dump,id=dump,netdev=net,file="+out+".pcap")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// answers waits for what the container prints last, and returns what it printed of each
// request.
func (g *guest) answers(t *testing.T) map[string]string {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(g.vm.ConsoleTail(), "asker: end"); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the container does not come to its end\n%s", g.vm.ConsoleTail())
		}
	}
	out := map[string]string{}
	for line := range strings.Lines(g.vm.ConsoleTail()) {
		if _, text, ok := strings.Cut(strings.TrimSpace(line), "asker: asker: "); ok {
			ask, answer, _ := strings.Cut(text, " => ")
			out[ask] = answer
		}
	}
	return out
}

// leaks looks for secrets where the host sees something.
func (d *deployment) leaks(t *testing.T, out string, g *guest) {
	t.Helper()
	var all []string
	for _, s := range d.secrets {
		all = append(all, spellings([]byte(s))...)
	}
	for _, path := range []string{g.console, out + ".pcap"} {
		absent(t, path, all...)
	}
	for _, r := range d.broker.Requests() {
		for _, s := range all {
			if bytes.Contains(r.Body, []byte(s)) {
				t.Errorf("%s %s has %q", r.Method, r.Path, s)
			}
		}
	}
}

// TestKBS: a broker that has an image's reference values gives a guest of that image,
// and no other, the key of the container's layers. Every other image differs in one
// byte; what the broker says of it, and what "plinth verify" does, names register and
// event.
func TestKBS(t *testing.T) {
	t.Parallel()
	d := deploy(t, registry.StartOpen(t))
	base := d.build(t, "base", stock())
	d.trust(t, base)
	t.Run("unchanged", func(t *testing.T) { d.accepted(t, base) })
	if t.Failed() {
		return
	}

	for _, tt := range []struct {
		name     string
		make     func(t *testing.T) string
		register string
		event    string
	}{
		{"agent", d.rebuilt("agent", func(t *testing.T, v *variant) {
			agent := flip(t, read(t, filepath.Join(testenv.Root(t), "cmd/plinth/guest/plinth-agent")), "neither a TPM that the guest needs")
			write(t, d.path("agent.elf"), agent)
			v.flags = []string{"--agent", d.path("agent.elf")}
		}), "pcr11", ".initrd"},
		{"command line", d.rebuilt("cmdline", func(_ *testing.T, v *variant) { v.cmdline = "plinth.note=b" }), "pcr11", ".cmdline"},
		{"initrd", func(t *testing.T) string { return d.edited(t, base, "initrd") }, "pcr11", ".initrd"},
		{"root", d.rebuilt("root", func(_ *testing.T, v *variant) { v.motd = "b" }), "pcr11", ".cmdline"},
		{"arguments", d.rebuilt("args", func(_ *testing.T, v *variant) { v.args = []string{asks[0], asks[1] + "s"} }), "pcr14", "Workload"},
		{"policy", d.rebuilt("policy", func(t *testing.T, v *variant) {
			write(t, d.path("other.json"), d.policy(t, "askes"))
			v.policy = "other.json"
		}), "pcr14", "Policy"},
	} {
		t.Run(tt.name, func(t *testing.T) { d.refused(t, base, tt.make(t), tt.register, tt.event) })
	}
}

// rebuilt makes an image that differs in what change does.
func (d *deployment) rebuilt(name string, change func(*testing.T, *variant)) func(*testing.T) string {
	return func(t *testing.T) string {
		v := stock()
		change(t, &v)
		return d.build(t, name, v)
	}
}

// edited copies an image and flips one bit of its disk: of the time in the last header
// of the initrd, which the kernel does not look at.
func (d *deployment) edited(t *testing.T, base, name string) string {
	t.Helper()
	out := filepath.Join(d.dir, "out", name)
	if err := os.CopyFS(out, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(out, "image.raw"), func(b []byte) []byte {
		i := bytes.LastIndex(b, []byte("TRAILER!!!\x00"))
		const header, mtime = 110, 46 // newc: kernel, early-userspace/buffer-format
		if i < header || !bytes.HasPrefix(b[i-header:], []byte("070701")) {
			t.Fatal("the initrd is not there to be read")
		}
		b[i-header+mtime+7] ^= 1
		return b
	})
	return out
}

// flip changes one bit of a text that is in b.
func flip(t *testing.T, b []byte, text string) []byte {
	t.Helper()
	i := bytes.Index(b, []byte(text))
	if i < 0 {
		t.Fatalf("no %q", text)
	}
	b[i] ^= 0x20
	return b
}

// accepted boots an image that the broker knows.
func (d *deployment) accepted(t *testing.T, out string) {
	t.Helper()
	g := d.start(t, out)
	if g.report == nil {
		s := d.evidence(t, out)
		t.Fatalf("%v\n%s\n%s%s", g.why, g.vm.ConsoleTail(), s.stdout, s.stderr)
	}
	t.Logf("the agent has %d KiB of memory", g.report.Memory)
	got := g.answers(t)
	if want := "200 " + hexOf([]byte(d.secrets["default/web/secret"])); got[asks[0]] != want {
		t.Errorf("%s: %q, want %q\n%s", asks[0], got[asks[0]], want, g.vm.ConsoleTail())
	}
	if !strings.HasPrefix(got[asks[1]], "403 ") {
		t.Errorf("%s: %q, want 403", asks[1], got[asks[1]])
	}
	g.close(t)
	d.leaks(t, out, g)
	if s := d.evidence(t, out); s.code != 0 {
		t.Errorf("plinth verify: exit %d\n%s%s", s.code, s.stdout, s.stderr)
	}
}

// refused boots one that it does not.
func (d *deployment) refused(t *testing.T, base, out, register, event string) {
	t.Helper()
	before := len(d.said())
	g := d.start(t, out)
	if g.report != nil {
		t.Fatalf("the guest goes on\n%s", g.vm.ConsoleTail())
	}
	log := strings.Join(d.said()[before:], "\n")
	if log == "" {
		t.Fatalf("the guest did not ask\n%s", g.vm.ConsoleTail())
	}
	if !names(log, register, event) {
		t.Errorf("the broker does not name %s and %s:\n%s", register, event, log)
	}
	g.close(t)
	d.leaks(t, out, g)
	if strings.Contains(g.vm.ConsoleTail(), "asker: asker: ") {
		t.Error("the container ran")
	}
	s := d.evidence(t, base)
	if s.code != 7 {
		t.Errorf("plinth verify: exit %d, want 7\n%s%s", s.code, s.stdout, s.stderr)
	}
	if !names(s.stdout, register, event) {
		t.Errorf("plinth verify does not name %s and %s:\n%s", register, event, s.stdout)
	}
}

// names tells whether a text says the event of the register: between its name and that
// of the next.
func names(text, register, event string) bool {
	at := regexp.MustCompile(`\bpcr\d+\b`).FindAllStringIndex(text, -1)
	for i, x := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		if text[x[0]:x[1]] == register && strings.Contains(text[x[1]:end], event) {
			return true
		}
	}
	return false
}

// evidence judges what the broker was shown last by an image's measurements.
func (d *deployment) evidence(t *testing.T, against string) result {
	t.Helper()
	all := d.broker.Attestations()
	if len(all) == 0 {
		t.Fatal("no evidence")
	}
	write(t, d.path("evidence.json"), all[len(all)-1])
	return plinth(t, d.dir, "verify", "--evidence", "evidence.json", "--against", against, "--ak", "ak.pem", "--pcrs", "4,8,9,11,14")
}

// TestKBSInitdata: the same where initdata says what runs.
func TestKBSInitdata(t *testing.T) {
	t.Parallel()
	d := deploy(t, registry.StartOpen(t))
	write(t, d.path("workloads.json"), fmt.Appendf(nil, `{"schema": 1, "policy": %s, "registries": %q, "cas": %q,
	"workloads": [{"name": "asker", "image": %q, "args": [%q, %q], "output": "console", "api": {"resources": ["kbs:///default/web/"]}}]}`,
		read(t, d.path("policy.json")), read(t, d.path("registries.conf")), d.registry.CA, d.image, asks[0], asks[1]))
	must(t, d.dir, "initdata", "build", "--data", "workloads.json=workloads.json", "-o", "initdata.toml")
	v := stock()
	v.initdata = "initdata.toml"
	base := d.build(t, "base", v)
	must(t, d.dir, "initdata", "build", "initdata.toml", "--form", "device", "-o", base+".disk")
	d.trust(t, base)
	t.Run("unchanged", func(t *testing.T) { d.accepted(t, base) })
	if t.Failed() {
		return
	}
	t.Run("one byte", func(t *testing.T) {
		doc := append(read(t, d.path("initdata.toml")), "#\n"...)
		write(t, d.path("other.toml"), doc)
		other := filepath.Join(d.dir, "out", "other")
		if err := os.CopyFS(other, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		must(t, d.dir, "initdata", "build", "other.toml", "--form", "device", "-o", other+".disk")
		d.refused(t, base, other, "pcr8", "initdata")
	})
}
