package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/qemu"
)

// TestInitdataWorkloads: a guest whose list of workloads is in the initdata runs what
// the document says, and PCR 8 has the document, as predicted; without one it runs
// nothing, and PCR 8 says that.
func TestInitdataWorkloads(t *testing.T) {
	needs(t, append([]string{"tar", "go"}, bootTools...)...)
	t.Parallel()
	dir := workdir(t)
	l := &layout{dir: t.TempDir(), config: v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}}
	l.files(t, map[string]string{"bin/probe": string(program(t, "./agent/runner/testdata/probe"))})
	plain, _ := l.finish(t, v1.ImageConfig{Entrypoint: []string{"/bin/probe"}})
	tar := archive(t, plain)
	pad(t, tar)
	write(t, filepath.Join(dir, "workloads.json"), fmt.Appendf(nil, `{"schema": 1, "policy": {"default": [{"type": "insecureAcceptAnything"}]}, "admit": ["plain+unsigned"],
	"workloads": [{"name": "probe", "image": "oci-archive:/dev/disk/by-id/virtio-app", "digest": %q, "network": "none", "output": "console", "args": ["report"]}]}`,
		manifestDigest(t, plain)))
	must(t, dir, "initdata", "build", "--data", "workloads.json=workloads.json", "-o", "initdata.toml")
	must(t, dir, "initdata", "build", "initdata.toml", "--form", "device", "-o", "initdata.disk")
	write(t, filepath.Join(dir, "web.toml"), []byte(`schema   = 1
extends  = "vtpm"
cmdline  = { append = ["console=ttyS0", "quiet"] }
initdata = "initdata.toml"

[root]
packages = ["crun"]

[workloads]
from   = "initdata"
memory = 64

[machine]
vcpus = [1]
`))
	must(t, dir, "build", "./web.toml")
	out := filepath.Join(dir, "out/web")
	pcr8 := predicted(t, out, "pcr8", measure.PhaseInitdata)

	img := imageIn(t, out)
	img.machine.Disks = []qemu.Disk{{Path: tar, Serial: "app"}, {Path: filepath.Join(dir, "initdata.disk"), Serial: "initdata"}}
	g := img.boot(t)
	g.mustReport(t)
	if got := g.report.After["sha256"][8]; got != pcr8 || strings.Trim(got, "0") == "" {
		t.Errorf("PCR 8 is %s, predicted %s", got, pcr8)
	}
	if len(g.report.Workloads) != 1 || g.report.Workloads[0].Name != "probe" {
		t.Errorf("containers %+v\n%s", g.report.Workloads, g.vm.ConsoleTail())
	}
	g.found(t)
	g.close(t)

	img.machine.Disks = img.machine.Disks[:1]
	g = img.boot(t)
	g.mustReport(t)
	if got := g.report.After["sha256"][8]; got == pcr8 || strings.Trim(got, "0") == "" || len(g.report.Workloads) != 0 {
		t.Errorf("without a document PCR 8 is %s, containers %+v", got, g.report.Workloads)
	}
	g.close(t)

	// Other bytes, whatever they come to, are another register.
	doc := read(t, filepath.Join(dir, "initdata.toml"))
	write(t, filepath.Join(dir, "other.toml"), append(doc, "# one comment more\n"...))
	must(t, dir, "initdata", "build", "other.toml", "--form", "device", "-o", "other.disk")
	img.machine.Disks = append(img.machine.Disks, qemu.Disk{Path: filepath.Join(dir, "other.disk"), Serial: "initdata"})
	g = img.boot(t)
	g.mustReport(t)
	if got := g.report.After["sha256"][8]; got == pcr8 {
		t.Error("PCR 8 does not show another document")
	}
}

// predicted is the value of a register in bank sha256 at a phase.
func predicted(t *testing.T, out, register, phase string) string {
	t.Helper()
	m, err := measure.ParseMeasurements(read(t, filepath.Join(out, "measurements.json")))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range m.Values {
		if v.Register == register && v.Phase == phase && v.Bank == "sha256" && v.Provenance == measure.Predicted {
			return v.Value
		}
	}
	t.Fatalf("no prediction of %s at %q", register, phase)
	return ""
}
