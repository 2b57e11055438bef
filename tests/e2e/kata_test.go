package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/qemu"
)

// A call is what testdata/standin says of itself.
type call struct {
	Name string
	Args []string
	PID  int
	Env  string
	Net  string
	Lo   bool
	Addr string
}

// exampleDir is a directory with an example profile and stand-ins for the programs
// that it names.
func exampleDir(t *testing.T, dir, name string) {
	t.Helper()
	text := read(t, filepath.Join(testenv.Root(t), "profiles/examples", name+".toml"))
	write(t, filepath.Join(dir, name+".toml"), text)
	standin := program(t, "./tests/e2e/testdata/standin")
	programs := regexp.MustCompile(`(?m)^source = "(bin/[a-z-]+)"$`).FindAllSubmatch(text, -1)
	if len(programs) < 5 {
		t.Fatalf("the profile names %q", programs)
	}
	for _, m := range programs {
		write(t, filepath.Join(dir, string(m[1])), standin)
	}
	write(t, filepath.Join(dir, "policy.rego"), []byte("package agent_policy\n"))
}

// TestPodVM builds the example, with stand-ins for the programs, and sees that they
// run as cloud-api-adaptor's units run them: podvm/files/etc/systemd/system.
func TestPodVM(t *testing.T) {
	needs(t, append([]string{"go"}, bootTools...)...)
	t.Parallel() // a boot keeps one core busy
	dir := workdir(t)
	exampleDir(t, dir, "podvm")
	r := boots(t, dir, "boot", "./podvm.toml", "--record", "--check", "--json")
	allPredicted(t, r.stdout)
	must(t, dir, "lint", "out/podvm")

	img := imageIn(t, filepath.Join(dir, "out/podvm"))
	g := img.boot(t, "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
	g.mustReport(t)
	calls := map[string][]call{}
	var order []string
	for len(calls) < 6 || len(calls["process-user-data"]) < 2 {
		var c call
		decode(t, g.line(t), &c)
		calls[c.Name] = append(calls[c.Name], c)
		order = append(order, c.Name)
	}
	for name, want := range map[string]string{
		"process-user-data":        "/usr/local/bin/process-user-data provision-files",
		"attestation-agent":        "/usr/local/bin/attestation-agent -c /run/peerpod/aa.toml",
		"confidential-data-hub":    "/usr/local/bin/confidential-data-hub",
		"kata-agent":               "/usr/local/bin/kata-agent --config /etc/agent-config.toml",
		"api-server-rest":          "/usr/local/bin/api-server-rest --features all",
		"agent-protocol-forwarder": "/usr/local/bin/agent-protocol-forwarder -pod-namespace /run/netns/podns -kata-agent-socket /run/kata-containers/agent.sock",
	} {
		c := calls[name]
		if len(c) == 0 || strings.Join(c[0].Args, " ") != want {
			t.Fatalf("%s: %+v, want %s", name, c, want)
		}
		if own := c[0].Net != calls["kata-agent"][0].Net; own != (name == "api-server-rest") || !c[0].Lo {
			t.Errorf("%s: network namespace %s, loopback %v", name, c[0].Net, c[0].Lo)
		}
	}
	if got := calls["confidential-data-hub"][0].Env; got != "/etc/ocicrypt_config.json" {
		t.Errorf("the data hub's OCICRYPT_KEYPROVIDER_CONFIG is %q", got)
	}
	if got := calls["process-user-data"][1].Addr; got != "10.0.2.15/24" { // QEMU's own DHCP server gives it
		t.Errorf("the address is %q", got)
	}
	// The first attempt at the user data fails. What waits for a socket comes after
	// what opens it.
	want := []string{"process-user-data", "process-user-data", "attestation-agent", "confidential-data-hub", "kata-agent", "agent-protocol-forwarder"}
	if got := slices.DeleteFunc(slices.Clone(order), func(name string) bool { return name == "api-server-rest" }); !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

// TestKata builds the example, with stand-ins for the programs, and starts its disk
// in the way of Kata's runtime: without plinth's initrd.
func TestKata(t *testing.T) {
	needs(t, append([]string{"go", "veritysetup"}, bootTools...)...)
	t.Parallel() // a boot keeps one core busy
	dir := lockedDir(t, "snp", "kata")
	exampleDir(t, dir, "kata")
	must(t, dir, "lock", "--update", "./kata.toml")
	must(t, dir, "build", "./kata.toml")
	out := filepath.Join(dir, "out/kata")
	must(t, dir, "lint", "out/kata")
	must(t, dir, "export", "out/kata", "--to", "kata")
	r := boots(t, dir, "boot", "out/kata", "--check", "--json")
	var c guestCheck
	decode(t, r.stdout, &c)
	if r.code != 0 || !c.OK {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}

	m, err := builder.ParseManifest(read(t, filepath.Join(out, "manifest.json")))
	if err != nil {
		t.Fatal(err)
	}
	params := kataParams(t, m.Root.KataParams)
	veritysetupTakes(t, filepath.Join(out, export.KataDiskName), params)
	bootKata(t, out, m, params)
}

// kataParams reads kernel_verity_params as Kata's runtime does: all five, and
// nothing else; src/runtime/virtcontainers/hypervisor.go, ParseKernelVerityParams.
func kataParams(t *testing.T, text string) map[string]string {
	t.Helper()
	params := map[string]string{}
	for _, word := range strings.Split(text, ",") {
		k, v, _ := strings.Cut(word, "=")
		params[k] = v
	}
	for _, k := range []string{"root_hash", "salt", "data_blocks", "data_block_size", "hash_block_size"} {
		if params[k] == "" || len(params) != 5 {
			t.Fatalf("kernel_verity_params %q", text)
		}
	}
	return params
}

// veritysetupTakes asks for a second opinion on the first two partitions, with what
// Kata's image builder gives to veritysetup format: --no-superblock alone.
func veritysetupTakes(t *testing.T, disk string, params map[string]string) {
	t.Helper()
	raw := read(t, disk)
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := gpt.Read(f, int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for i, p := range table.Partitions[:2] {
		path := filepath.Join(t.TempDir(), fmt.Sprint("part", i+1))
		write(t, path, raw[p.First*512:(p.Last+1)*512])
		parts = append(parts, path)
	}
	verify := func(hash string) error {
		cmd := exec.Command(testenv.Tool("veritysetup"), "verify", "--no-superblock", "--data-blocks="+params["data_blocks"], "--salt="+params["salt"],
			"--data-block-size="+params["data_block_size"], "--hash-block-size="+params["hash_block_size"], parts[0], parts[1], hash)
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, b)
		}
		return nil
	}
	if err := verify(params["root_hash"]); err != nil {
		t.Error(err)
	}
	if verify(strings.Repeat("0", 64)) == nil {
		t.Error("veritysetup takes any root hash")
	}
}

// bootKata starts the disk with the command line that Kata's runtime makes of the
// parameters: GetKernelRootParams. testdata/dminit does what Kata's kernel would.
func bootKata(t *testing.T, out string, m *builder.Manifest, params map[string]string) {
	t.Helper()
	blocks, err := strconv.ParseUint(params["data_blocks"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	size, err := strconv.ParseUint(params["data_block_size"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	table := fmt.Sprintf("dm-verity,,,ro,0 %d verity 1 /dev/vda1 /dev/vda2 %s %s %s 0 sha256 %s %s",
		size/512*blocks, params["data_block_size"], params["hash_block_size"], params["data_blocks"], params["root_hash"], params["salt"])
	vm := qemu.Machine{
		MemoryMiB: m.Machine.Memory, Disk: filepath.Join(out, export.KataDiskName), Kernel: filepath.Join(out, builder.KernelName),
		Initrd:   filepath.Join(t.TempDir(), "initrd"),
		Append:   fmt.Sprintf(`console=ttyS0 panic=-1 dm-mod.create="%s" root=/dev/dm-0 rootflags=ro rootfstype=erofs`, table),
		Firmware: filepath.Join(out, builder.GenericName), Vars: filepath.Join(out, builder.GenericVarsName),
	}
	writeTo(t, vm.Initrd, func(f *os.File) error {
		return initrd.Write(f, nil, kataInitrd(t, filepath.Join(out, builder.InitrdName)), initrd.Params{Compression: "zstd"})
	})
	g, err := qemu.Start(t.Context(), vm, qemu.Options{Timeout: 3 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	var said []string
	for end := time.Now().Add(2 * time.Minute); len(said) < 2 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		said = nil
		for lines := bufio.NewScanner(strings.NewReader(g.ConsoleTail())); lines.Scan(); {
			if _, text, ok := strings.Cut(lines.Text(), "standin: "); ok {
				said = append(said, strings.TrimSpace(text))
			}
		}
	}
	if len(said) < 2 || !strings.HasSuffix(said[0], " <nil>") || said[1] != "write: open /written: read-only file system" {
		t.Fatalf("kata-agent says %q\n%s", said, g.ConsoleTail())
	}
	var c call
	if err := json.Unmarshal([]byte(strings.TrimSuffix(said[0], " <nil>")), &c); err != nil || c.PID != 1 || !slices.Equal(c.Args, []string{"/sbin/init"}) {
		t.Errorf("%v: kata-agent says %q", err, said[0])
	}
}

// kataInitrd is dminit with the modules of another initrd, in the same order.
func kataInitrd(t *testing.T, path string) []tree.Entry {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := initrd.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	var config struct{ Modules []struct{ Path string } }
	files := map[string]tree.Blob{}
	for _, e := range entries {
		files["/"+e.Path] = e.Content
	}
	var text strings.Builder
	if err := files["/etc/plinth/agent.json"].Copy(&text); err != nil {
		t.Fatal(err)
	}
	decode(t, text.String(), &config)
	all := []tree.Entry{
		tree.CharDev("dev/console", 0o600, 5, 1), tree.CharDev("dev/null", 0o666, 1, 3),
		tree.File("init", 0o755, tree.Bytes(program(t, "./tests/e2e/testdata/dminit"))),
	}
	for i, m := range config.Modules {
		all = append(all, tree.File(fmt.Sprintf("modules/%03d.ko", i), 0o644, files[m.Path]))
	}
	all, err = tree.Normalize(all)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
