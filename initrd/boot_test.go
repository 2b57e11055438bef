package initrd

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// The last word has the kernel: PLINTH_VMLINUZ names one or more, separated by
// colons.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a kernel")
	}
	testenv.Need(t, "qemu-system-x86_64", "go")
	kernels := filepath.SplitList(os.Getenv("PLINTH_VMLINUZ"))
	if len(kernels) == 0 {
		testenv.Missing(t, "vmlinuz", "PLINTH_VMLINUZ names no kernel")
	}
	program := filepath.Join(t.TempDir(), "init")
	build := exec.Command("go", "build", "-o", program, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	data := text(3 << 20)
	link := tree.File("a-link", 0o4751, tree.Bytes([]byte("linked")))
	link.UID = 1000
	main := []tree.Entry{
		tree.File("init", 0o755, tree.Bytes(body)),
		tree.File("data", 0o644, tree.Bytes(data)),
		tree.CharDev("dev/console", 0o600, 5, 1),
		tree.CharDev("far", 0o600, 511, 70000),
		link, {Path: "link", Link: "a-link"},
	}
	first := []tree.Entry{tree.File("early", 0o400, tree.Bytes([]byte("early\n")))}
	want := []string{
		fmt.Sprintf("init: data: %x <nil>", sha256.Sum256(data)),
		"init: /link: mode 104751, device 0x0, links 2, uid 1000, time 1767225600, <nil>",
		// makedev(3): the minor's low byte, the major, the rest of the minor
		fmt.Sprintf("init: /far: mode 20600, device %#x, links 1, uid 0, time 1767225600, <nil>", 70000&0xff|511<<8|70000&^0xff<<12),
		"init: /early: mode 100400, device 0x0, links 1, uid 0, time 1767225600, <nil>",
		"init: done",
	}
	for _, kernel := range kernels {
		for _, compression := range compressions {
			t.Run(filepath.Base(kernel)+"/"+compression, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "initrd")
				if err := os.WriteFile(path, write(t, first, main, Params{Compression: compression, Epoch: epoch}), 0o600); err != nil {
					t.Fatal(err)
				}
				console := boot(t, kernel, path)
				for _, line := range want {
					if !strings.Contains(console, line) {
						t.Errorf("the console does not say %q", line)
					}
				}
				if t.Failed() {
					t.Log(console)
				}
			})
		}
	}
}

// boot runs a kernel until it reboots and returns its console.
func boot(t *testing.T, kernel, initrd string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	// Without cx16: QEMU 7.2 hands the kernel broken flags after cmpxchg16b, and one
	// boot in ten of 6.12 dies of them.
	out, err := exec.CommandContext(ctx, testenv.Tool("qemu-system-x86_64"), "-accel", "tcg", "-cpu", "max,-cx16", "-m", "512",
		"-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1").CombinedOutput()
	if err != nil {
		t.Errorf("qemu: %v", err)
	}
	return string(out)
}
