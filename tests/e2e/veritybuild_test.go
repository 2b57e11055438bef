package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/qemu"
)

// verityProfile is the stock one with a console, so that a test sees what the
// kernel says, and with content of which the boot reads a small part: the tree has
// three levels.
const verityProfile = `schema  = 1
extends = "vtpm"
cmdline = { append = ["console=ttyS0"] }

[[files]]
path   = "/usr/bin/probe"
source = "probe"
mode   = "0755"

[[files]]
path   = "/content"
source = "content"

[[services]]
name = "probe"
exec = ["/usr/bin/probe"]

[machine]
vcpus = [1]
`

// verityDir returns a directory in which that profile is built with a platform
// record for this machine's QEMU, and booted. It is made once.
func verityDir(t *testing.T) string {
	t.Helper()
	needs(t, append([]string{"go"}, bootTools...)...)
	dir := filepath.Join(shared.work, "verity")
	if shared.verity != "" {
		return dir
	}
	write(t, filepath.Join(dir, "root.lock"), read(t, filepath.Join(workdir(t), "vtpm.lock")))
	write(t, filepath.Join(dir, "root.toml"), []byte(verityProfile))
	write(t, filepath.Join(dir, "probe"), program(t, "./tests/e2e/testdata/probe"))
	write(t, filepath.Join(dir, "content"), noise(1, 70<<20))
	shared.verity = boots(t, dir, "boot", "./root.toml", "--record", "--check", "--json").stdout
	return dir
}

// builtVerity is the image of that profile.
func builtVerity(t *testing.T) *verityImage {
	t.Helper()
	return imageIn(t, filepath.Join(verityDir(t), "out/root"))
}

// imageIn is the image that a build has written to dir.
func imageIn(t *testing.T, dir string) *verityImage {
	t.Helper()
	img := machineIn(t, dir)
	return openVerity(t, img.machine, img.cmdline)
}

// machineIn is the same for a guest with any root.
func machineIn(t *testing.T, dir string) *verityImage {
	t.Helper()
	m, err := builder.ParseManifest(read(t, filepath.Join(dir, "manifest.json")))
	if err != nil {
		t.Fatal(err)
	}
	return &verityImage{cmdline: m.Cmdline, machine: qemu.Machine{
		Type: m.Machine.Type, CPU: m.Machine.CPU, MemoryMiB: m.Machine.Memory, TPM: true, ReportPort: config.ReportPort,
		Disk: filepath.Join(dir, builder.DiskName), Firmware: filepath.Join(dir, builder.FirmwareName), Vars: filepath.Join(dir, builder.VarsName),
	}}
}

// TestVerityBuild: an image out of packages comes up from its root; every register
// and the root are as predicted.
func TestVerityBuild(t *testing.T) {
	verityDir(t)
	allPredicted(t, shared.verity)
	var c struct{ Root builder.RootCheck }
	decode(t, shared.verity, &c)
	if !c.Root.OK || !strings.Contains(c.Root.Got, " verity 1 ") {
		t.Errorf("root: %+v", c.Root)
	}
	img := builtVerity(t)
	g := img.boot(t)
	g.mustReport(t)
	img.checkRoot(t, g.report)
	if got, want := g.ask(t, "device"), g.report.RootDevice+" plinth-root"; got != want {
		t.Errorf("/ is on %q, want %q", got, want)
	}
	if got := g.ask(t, "write"); got != "EROFS" {
		t.Errorf("a write to the root: %q, want EROFS", got)
	}
}
