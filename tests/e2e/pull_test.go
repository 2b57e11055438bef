package e2e

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/qemu"
	"github.com/plinth-os/plinth/tests/registry"
)

// pulls are the sizes of images that guests pull. PLINTH_PULL=full adds the large
// one.
func pulls() []pull {
	all := []pull{{"40 MiB", webPackages, 40 << 20, 512, 2048, 10 * time.Minute}}
	if os.Getenv("PLINTH_PULL") == "full" {
		all = append(all, pull{"300 MiB", append(slices.Clone(webPackages), morePackages...), 300 << 20, 2048, 4096, 20 * time.Minute})
	}
	return all
}

type pull struct {
	name     string
	packages []string
	least    int64 // bytes of layers
	store    int   // MiB
	memory   int   // MiB
	patience time.Duration
}

// TestPull: a guest pulls an encrypted and signed image of Debian packages from a
// registry that wants TLS, under an authority of its own, and a password; it
// measures it as predicted and runs the web server in it.
func TestPull(t *testing.T) {
	needs(t, append([]string{"skopeo", "docker-registry", "dpkg-deb", "apt-get"}, bootTools...)...)
	for _, p := range pulls() {
		t.Run(p.name, p.fromRegistry)
	}
}

func (p pull) fromRegistry(t *testing.T) {
	server := registry.Start(t)
	dir := workdir(t)
	page, key := secret(t, "page"), make([]byte, 32)
	rand.Read(key)
	plain := p.image(t, page)
	write(t, filepath.Join(dir, "key"), key)
	const keyID = "kbs:///default/key/web"
	must(t, dir, "image", "encrypt", "oci:"+plain+":web", "oci:"+filepath.Join(dir, "encrypted")+":web",
		"--recipient", "provider:attestation-agent:keyid="+keyID+":keypath=key")
	wantEncrypted(t, plain, filepath.Join(dir, "encrypted"), page)
	server.Push(t, "oci:"+filepath.Join(dir, "encrypted")+":web", "web:1")
	digest := manifestDigest(t, filepath.Join(dir, "encrypted"))
	sign(t, dir, server, "web@"+digest)

	write(t, filepath.Join(dir, "registries.conf"), mirrored(server))
	write(t, filepath.Join(dir, "ca.crt"), server.CA)
	write(t, filepath.Join(dir, "auth.json"), server.AuthFile())
	write(t, filepath.Join(dir, "policy.json"), fmt.Appendf(nil, `{"default": [{"type": "reject"}], "transports": {"docker": {"registry.example.com/web": [
	{"type": "sigstoreSigned", "keyData": %q}]}}}`, base64.StdEncoding.EncodeToString(read(t, filepath.Join(dir, "cosign.pub")))))
	write(t, filepath.Join(dir, "web.toml"), []byte(p.profile(map[string][]byte{keyID: key, "kbs:///default/credential/registry": server.AuthFile()})+`
[network]
dhcp = true

[workloads]
from       = "image"
policy     = "policy.json"
registries = "registries.conf"
cas        = "ca.crt"
auth       = "kbs:///default/credential/registry"
memory     = `+strconv.Itoa(p.store)+`

[[workload]]
name  = "web"
image = "docker://registry.example.com/web@`+digest+`"
ports = ["80:8080"]
`))
	env := []string{"REGISTRY_AUTH_FILE=" + filepath.Join(dir, "auth.json")}
	if r := command(t, dir, env, "build", "./web.toml"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}

	out := filepath.Join(dir, "out/web")
	port, capture := freePort(t), filepath.Join(dir, "network.pcap")
	img := imageIn(t, out)
	img.machine.MemoryMiB, img.patience = p.memory, p.patience
	img.machine.Network = &qemu.Network{Forward: []qemu.Forward{{Protocol: "tcp", Host: port, Guest: 80}}}
	g := img.boot(t, "-object", "filter-dump,id=dump,netdev=net,file="+capture)
	g.mustReport(t)
	g.checkWorkloads(t, out, "web")
	if got := fetchPage(t, port); got != page {
		t.Errorf("the page is %q, want %q\n%s", got, page, g.vm.ConsoleTail())
	}
	g.close(t)
	absent(t, g.console, append(spellings(key), page, server.Password)...)
	// The test fetched the page in the clear, over the same interface.
	absent(t, capture, append(spellings(key), server.Password, base64.StdEncoding.EncodeToString([]byte(server.User+":"+server.Password)))...)
	if err := filepath.WalkDir(server.Data, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			absent(t, path, append(spellings(key), page)...)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// mirrored is a registries.conf that serves builder and guest: the guest finds nobody at
// the mirror, which is its own loopback interface, and goes on to where QEMU shows it
// the host.
func mirrored(server *registry.Server) []byte {
	return fmt.Appendf(nil, `[[registry]]
prefix = "registry.example.com"
location = %q
[[registry.mirror]]
location = %q
`, server.Guest(), server.Host())
}

// image makes the web server's image of Debian packages.
func (p pull) image(t *testing.T, page string) string {
	t.Helper()
	l := newLayout(t, p.packages, 6)
	l.files(t, webFiles(page))
	dir, size := l.finish(t, webConfig())
	t.Logf("%d layers, %d bytes", len(l.layers), size)
	if size < p.least || len(l.layers) < 5 {
		t.Errorf("%d layers of %d bytes: want 5 of %d", len(l.layers), size, p.least)
	}
	return dir
}

// profile is what all guests of these tests have. Until keys come from a broker, they
// are in the image.
func (p pull) profile(keys map[string][]byte) string {
	var b strings.Builder
	b.WriteString(`schema  = 1
extends = "vtpm"
cmdline = { append = ["console=ttyS0"] }

[root]
packages = ["crun"]

[agent]
debug = true

[agent.test_keys]
`)
	for name, key := range keys {
		fmt.Fprintf(&b, "%q = %q\n", name, base64.StdEncoding.EncodeToString(key))
	}
	fmt.Fprintf(&b, "\n[machine]\nvcpus  = [1]\nmemory = %d\n", p.memory)
	return b.String()
}

// TestPullDisk: the same from an OCI archive that is the whole of a disk, without a
// network; the images are kept on another disk, which shows nothing of them.
func TestPullDisk(t *testing.T) {
	needs(t, append([]string{"dpkg-deb", "apt-get", "tar"}, bootTools...)...)
	t.Parallel()
	dir := workdir(t)
	p := pulls()[0]
	page, key := secret(t, "page"), make([]byte, 32)
	rand.Read(key)
	l := newLayout(t, p.packages, 6)
	l.files(t, webFiles(page))
	plain, _ := l.finish(t, v1.ImageConfig{Entrypoint: []string{"/usr/bin/sha256sum"}, Cmd: []string{"/srv/page/index.html"}})
	write(t, filepath.Join(dir, "key"), key)
	const keyID = "kbs:///default/key/web"
	must(t, dir, "image", "encrypt", "oci:"+plain+":web", "oci:"+filepath.Join(dir, "encrypted")+":web",
		"--recipient", "provider:attestation-agent:keyid="+keyID+":keypath=key")
	wantEncrypted(t, plain, filepath.Join(dir, "encrypted"), page)
	tar := archive(t, filepath.Join(dir, "encrypted"))
	write(t, filepath.Join(dir, "image.tar"), read(t, tar))
	pad(t, filepath.Join(dir, "image.tar"))
	write(t, filepath.Join(dir, "policy.json"), []byte(`{"default": [{"type": "reject"}], "transports": {"oci-archive": {"/dev/disk/by-id/virtio-app": [{"type": "insecureAcceptAnything"}]}}}`))
	write(t, filepath.Join(dir, "web.toml"), []byte(p.profile(map[string][]byte{keyID: key})+`
[workloads]
from   = "image"
policy = "policy.json"
admit  = ["encrypted+unsigned"]
disk   = "scratch"

[[workload]]
name    = "sum"
image   = "oci-archive:/dev/disk/by-id/virtio-app"
archive = "image.tar"
network = "none"
output  = "console"
`))
	must(t, dir, "build", "./web.toml")
	out := filepath.Join(dir, "out/web")
	scratch := filepath.Join(dir, "scratch")
	if err := os.WriteFile(scratch, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(scratch, 1<<30); err != nil {
		t.Fatal(err)
	}
	img := imageIn(t, out)
	img.machine.MemoryMiB, img.patience = 1024, 10*time.Minute
	img.machine.Disks = []qemu.Disk{{Path: filepath.Join(dir, "image.tar"), Serial: "app"}, {Path: scratch, Serial: "scratch", Writable: true}}
	g := img.boot(t)
	g.mustReport(t)
	g.checkWorkloads(t, out, "sum")
	want := hexOf([]byte(page)) + "  /srv/page/index.html"
	for deadline := time.Now().Add(time.Minute); !strings.Contains(g.vm.ConsoleTail(), want); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q on the console\n%s", want, g.vm.ConsoleTail())
		}
	}
	g.close(t)
	hidden := append(spellings(key), page)
	absent(t, g.console, hidden...)
	absent(t, scratch, append(hidden, "Welcome to nginx", "/usr/bin/sha256sum")...)
	absent(t, filepath.Join(dir, "image.tar"), hidden...)
}

// pad makes a file whole sectors, as a disk is.
func pad(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, (fi.Size()+1<<20)&^511); err != nil {
		t.Fatal(err)
	}
}

// checkWorkloads compares the registers of workloads with their prediction, and
// insists that the containers run, or ran well.
func (g *guest) checkWorkloads(t *testing.T, out string, names ...string) {
	t.Helper()
	m, err := measure.ParseMeasurements(read(t, filepath.Join(out, "measurements.json")))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, v := range m.Values {
		if v.Register != "pcr14" || v.Phase != measure.PhaseWorkloads {
			continue
		}
		seen++
		got := g.report.After[v.Bank][14]
		if v.Provenance != measure.Predicted || v.Value != got || strings.Trim(got, "0") == "" {
			t.Errorf("PCR 14, %s: %s %s, the guest has %s", v.Bank, v.Provenance, v.Value, got)
		}
	}
	if seen != len(g.report.Banks) {
		t.Errorf("PCR 14 is predicted in %d banks, the guest has %v", seen, g.report.Banks)
	}
	var ran []string
	for _, w := range g.report.Workloads {
		if w.State == evidence.Running || w.State == evidence.Exited {
			ran = append(ran, w.Name)
		}
	}
	if !slices.Equal(ran, names) {
		t.Fatalf("containers %+v, want %q running\n%s", g.report.Workloads, names, g.vm.ConsoleTail())
	}
}

func manifestDigest(t *testing.T, layout string) string {
	t.Helper()
	var index v1.Index
	if err := json.Unmarshal(read(t, filepath.Join(layout, "index.json")), &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%s: %v, %d manifests", layout, err, len(index.Manifests))
	}
	return index.Manifests[0].Digest.String()
}

// sign makes a key pair in dir and signs an image of the registry with cosign.
func sign(t *testing.T, dir string, server *registry.Server, image string) {
	t.Helper()
	path := testenv.Tool("cosign")
	if path == "" {
		path = filepath.Join(testenv.Root(t), ".test/bin/cosign")
	}
	if _, err := os.Stat(path); err != nil {
		testenv.Missing(t, "cosign", "not installed: see tests/setup")
	}
	write(t, filepath.Join(dir, "ca.crt"), server.CA)
	args := []string{"sign", "--key", "cosign.key", "--registry-cacert", "ca.crt", "--use-signing-config=false", "--tlog-upload=false", "--new-bundle-format=true"}
	if server.User != "" {
		args = append(args, "--registry-username", server.User, "--registry-password", server.Password)
	}
	for _, args := range [][]string{{"generate-key-pair"}, append(args, server.Host()+"/"+image)} {
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=", "COSIGN_YES=true", "HOME="+dir, "TUF_ROOT="+filepath.Join(dir, "tuf"), "SSL_CERT_FILE="+filepath.Join(dir, "ca.crt"))
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cosign %s: %v\n%s", args[0], err, b)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// fetchPage asks the guest's web server, which may not be there at once.
func fetchPage(t *testing.T, port int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		page, err := getPage(ctx, port)
		if err == nil {
			return page
		}
		select {
		case <-ctx.Done():
			t.Errorf("no page: %v", err)
			return ""
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func getPage(ctx context.Context, port int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(b), err
}
