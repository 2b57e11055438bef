package network

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// modules are what a guest needs for a network with containers, besides what these
// need themselves. The kernel asks for none: there is no modprobe.
var modules = []string{"virtio_pci", "virtio_net", "veth", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq"}

// TestBootNetwork does in booted guests, with a virtio network card and QEMU's own
// DHCP server, what the other tests do in namespaces.
func TestBootNetwork(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel")
	}
	testenv.Need(t, "qemu-system-x86_64", "go")
	program := filepath.Join(t.TempDir(), "guest")
	build := exec.Command("go", "build", "-o", program, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	booted := 0
	for _, kernel := range filepath.SplitList(os.Getenv("PLINTH_VMLINUZ")) {
		_, release, _ := strings.Cut(filepath.Base(kernel), "-")
		for _, dir := range filepath.SplitList(os.Getenv("PLINTH_MODULES")) {
			if filepath.Base(dir) == release {
				booted++
				t.Run(release, func(t *testing.T) { bootNetwork(t, kernel, guestInitrd(t, program, dir)) })
			}
		}
	}
	if booted == 0 {
		testenv.Missing(t, "vmlinuz", "PLINTH_VMLINUZ and PLINTH_MODULES name no kernel with its modules")
	}
}

func guestInitrd(t *testing.T, program, modulesDir string) string {
	t.Helper()
	index, err := initrd.IndexModules(os.DirFS(modulesDir))
	if err != nil {
		t.Fatal(err)
	}
	closure, err := index.Closure(modules)
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	files := []tree.Entry{tree.File("init", 0o755, tree.Bytes(body)), tree.CharDev("dev/console", 0o600, 5, 1)}
	for i, m := range closure {
		b, err := m.Content()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, tree.File(fmt.Sprintf("m/%03d-%s.ko", i, m.Name), 0o644, tree.Bytes(b)))
	}
	path := filepath.Join(t.TempDir(), "initrd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(initrd.Write(f, nil, files, initrd.Params{Compression: "none", Epoch: 1767225600}), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func bootNetwork(t *testing.T, kernel, initrd string) {
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	go accepting(outside, "the host's page")
	free, err := net.Listen("tcp", "127.0.0.1:0") // a port that nobody has
	if err != nil {
		t.Fatal(err)
	}
	published := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	_, port, _ := net.SplitHostPort(outside.Addr().String())
	// Without cx16: see package initrd's TestBoot.
	c := exec.CommandContext(ctx, testenv.Tool("qemu-system-x86_64"), "-accel", "tcg", "-cpu", "max,-cx16", "-m", "512", "-nodefaults", "-nographic",
		"-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet plinth.port="+port,
		"-netdev", "user,id=n,hostfwd=tcp:"+published+"-:8080", "-device", "virtio-net-pci,netdev=n,romfile=")
	out, err1 := c.StdoutPipe()
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := errors.Join(err1, c.Start()); err != nil {
		t.Fatal(err)
	}
	var console strings.Builder
	page := ""
	for s := bufio.NewScanner(out); s.Scan(); {
		line := strings.TrimRight(s.Text(), "\r")
		console.WriteString(line + "\n")
		if strings.Contains(line, "guest: serves") {
			page = fetch(published)
		}
	}
	if err := c.Wait(); err != nil {
		t.Errorf("qemu: %v: %s", err, &stderr)
	}
	if page != "the container's page" {
		t.Errorf("the published port gives %q", page)
	}
	for _, want := range []string{
		"guest: seed: RD", `guest: up: [10.0.2.15/24`, `"nameserver 10.0.2.3\n" MTU 1500`,
		"guest: guest to the outside: the host's page to 127.0.0.1 <nil>", "guest: container is 10.213.0.1",
		"guest: container to the outside: the host's page to 127.0.0.1 <nil>", "guest: end: <nil>",
	} {
		if !strings.Contains(console.String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() || strings.Contains(console.String(), "guest: error") {
		t.Errorf("console:\n%s", &console)
	}
}

// fetch reads what a server sends.
func fetch(address string) string {
	c, err := net.DialTimeout("tcp", address, answerTime)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
