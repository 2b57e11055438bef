package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// checkResult is what the tests read of plinth boot --check --json.
type checkResult struct {
	Registers []struct {
		Register, Bank, Phase, Verdict, Reason string
		Differences                            []struct{ Kind, Name string }
	}
}

var bootTools = []string{"qemu-system-x86_64", "swtpm"}

// prepared returns a directory in which the stock profile is built with a
// platform record for this machine's QEMU. It is made once.
func prepared(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(shared.work, "prepared")
	if _, err := os.Stat(filepath.Join(dir, "out/vtpm/SHA256SUMS")); err == nil {
		return dir
	}
	write(t, filepath.Join(dir, "vtpm.lock"), read(t, filepath.Join(workdir(t), "vtpm.lock")))
	must(t, dir, "boot", "vtpm", "--record", "--check", "--set", "machine.vcpus=[1]")
	return dir
}

// TestBootCheck: every register of a real boot is accounted for and was predicted.
func TestBootCheck(t *testing.T) {
	needs(t, bootTools...)
	r := must(t, prepared(t), "boot", "out/vtpm", "--check", "--json")
	allPredicted(t, r.stdout)
}

// allPredicted fails for a register without a verdict, or with a bad one.
func allPredicted(t *testing.T, text string) {
	t.Helper()
	var c checkResult
	decode(t, text, &c)
	seen := map[string]bool{}
	for _, x := range c.Registers {
		seen[x.Register] = true
		switch x.Verdict {
		case "match", "unused", "one of":
		default:
			t.Errorf("%s %s %q: %s: %s %v", x.Register, x.Bank, x.Phase, x.Verdict, x.Reason, x.Differences)
		}
	}
	for n := range 24 {
		if !seen[fmt.Sprintf("pcr%d", n)] {
			t.Errorf("pcr%d is not in the result", n)
		}
	}
}

// TestTamper changes one thing by hand after the build; the check must exit 7
// and name the event.
func TestTamper(t *testing.T) {
	needs(t, bootTools...)
	for _, c := range []struct {
		name, file string
		change     func(t *testing.T, path string)
		want       string // in stdout
	}{
		{"disk GUID", "image.raw", changeGPT, "partition table"},
		{"kernel", "image.raw", changeKernel, "BOOTX64.EFI"},
		{"section", "image.raw", changeUname, ".uname"},
		{"variable", "firmware.vars.fd", addVariable, "dbx"},
		{"firmware", "firmware.fd", changeFirmware, "DXEFV"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := filepath.Join(prepared(t), "out/vtpm")
			dir := filepath.Join(t.TempDir(), "vtpm")
			if out, err := exec.Command("cp", "-a", src, dir).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			c.change(t, filepath.Join(dir, c.file))
			r := plinth(t, t.TempDir(), "boot", dir, "--check")
			if r.code != 7 || !strings.Contains(r.stdout, c.want) {
				t.Errorf("exit %d, want 7 and %q in\n%s%s", r.code, c.want, r.stdout, r.stderr)
			}
		})
	}
}

// TestOwnService: a static program of the user's runs in the guest.
func TestOwnService(t *testing.T) {
	needs(t, bootTools...)
	dir := workdir(t)
	write(t, filepath.Join(dir, "hello.go"), []byte("package main\n\nimport \"time\"\n\nfunc main() { time.Sleep(time.Hour) }\n"))
	build := exec.Command("go", "build", "-o", "hello", "hello.go")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write(t, filepath.Join(dir, "mine.toml"), []byte(`schema  = 1
extends = "vtpm"

[[files]]
path   = "/usr/bin/hello"
source = "hello"
mode   = "0755"

[[services]]
name = "hello"
exec = ["/usr/bin/hello"]
`))
	must(t, dir, "build", "./mine.toml")
	var report struct {
		Services []struct {
			Name, State string
			PID         int
		}
	}
	decode(t, must(t, dir, "boot", "out/mine", "--json").stdout, &report)
	if len(report.Services) != 1 || report.Services[0].State != "running" || report.Services[0].PID <= 1 {
		t.Errorf("services: %+v", report.Services)
	}
}
