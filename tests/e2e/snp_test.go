package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// guestCheck is what the tests read of plinth boot --check --json for an image
// that boots under its generic firmware.
type guestCheck struct {
	OK        bool
	Registers []struct {
		Register, Bank, Verdict, Reason string
		Differences                     []struct{ Kind, Name string }
	}
}

// verdicts are those of one row, in all banks.
func (c *guestCheck) verdicts(register string) (out []string) {
	for _, x := range c.Registers {
		if x.Register == register && !slices.Contains(out, x.Verdict) {
			out = append(out, x.Verdict)
		}
	}
	return out
}

// guestDir returns a directory in which a stock profile of another platform is
// built. It is made once, and its lock serves other tests.
func guestDir(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(shared.work, "stock-"+name)
	if r := plinth(t, shared.work, "verify", filepath.Join(dir, "out", name)); r.code == 0 {
		return dir
	}
	write(t, filepath.Join(dir, "README"), nil) // makes it
	must(t, dir, "build", name)
	return dir
}

// lockedDir is an empty directory with the lock of a stock profile, under the name
// of a profile that extends it.
func lockedDir(t *testing.T, stock, name string) string {
	t.Helper()
	dir := t.TempDir()
	lock := read(t, filepath.Join(guestDir(t, stock), stock+".lock"))
	write(t, filepath.Join(dir, name+".lock"), lock)
	return dir
}

// TestSNPImage: the stock profile has every combination of number and model of
// vCPUs, and its packages are those that the profile means.
func TestSNPImage(t *testing.T) {
	needs(t)
	dir := guestDir(t, "snp")
	var m struct {
		Values []struct {
			Platform, Register, CPU, Provenance, Value string
			Shape                                      struct{ VCPUs int }
		}
	}
	decode(t, string(read(t, filepath.Join(dir, "out/snp/measurements.json"))), &m)
	seen := map[string]bool{}
	for _, v := range m.Values {
		if v.Platform != "snp" || v.Register != "launch_digest" || v.Provenance != "predicted" || len(v.Value) != 96 {
			t.Errorf("%+v", v)
		}
		seen[fmt.Sprint(v.Shape.VCPUs, v.CPU)] = true
	}
	if len(seen) != len(m.Values) || len(seen) != 16 {
		t.Errorf("%d values, %d combinations: want 4 numbers of 4 models", len(m.Values), len(seen))
	}
	var lock struct {
		Packages []struct {
			Name, Suite string
			Why         []string
		}
	}
	decode(t, string(read(t, filepath.Join(dir, "snp.lock"))), &lock)
	for _, p := range lock.Packages {
		if fromTesting := p.Suite == "forky"; fromTesting != (p.Name == "ovmf-amdsev") {
			t.Errorf("%s comes from %s", p.Name, p.Suite)
		}
	}
}

// TestSNPBoot: the files that the launch digest covers start under the generic
// firmware and are measured as they should be; the digest itself is never called
// confirmed.
func TestSNPBoot(t *testing.T) {
	needs(t, bootTools...)
	dir := guestDir(t, "snp")
	r := boots(t, dir, "boot", "out/snp", "--check", "--json")
	if r.code != 0 || !strings.Contains(r.stderr, "AMD SEV-SNP, which plinth boot does not start") {
		t.Fatalf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	var c guestCheck
	decode(t, r.stdout, &c)
	for register, want := range map[string]string{
		"kernel": "match", "initrd": "match", "cmdline": "match", "pcr4": "match", "pcr9": "match", "pcr12": "unused", "launch_digest": "not checked",
	} {
		if got := c.verdicts(register); !slices.Equal(got, []string{want}) {
			t.Errorf("%s: %q, want %s", register, got, want)
		}
	}
	// The agent has no TPM to do without here: it reports the one that there is.
	var report struct {
		Banks   []string
		Extends []json.RawMessage
	}
	decode(t, boots(t, dir, "boot", "out/snp", "--json").stdout, &report)
	if len(report.Banks) == 0 || len(report.Extends) != 0 {
		t.Errorf("%+v", report)
	}
}

// TestSNPTamper: another initrd boots just as well, and is not what the launch
// digest covers.
func TestSNPTamper(t *testing.T) {
	needs(t, bootTools...)
	dir := lockedDir(t, "snp", "snp")
	must(t, dir, "build", "snp", "--set", "initrd.compression=gzip", "--out", "other", "--lock", "other.lock") // it leads to the same root
	must(t, dir, "build", "snp")
	write(t, filepath.Join(dir, "out/snp/initrd"), read(t, filepath.Join(dir, "other/initrd")))
	r := boots(t, dir, "boot", "out/snp", "--check")
	if r.code != 7 || !strings.Contains(r.stdout, "initrd") || !strings.Contains(r.stdout, "mismatch") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// boots runs a boot. An emulated guest with several processors now and then dies
// in early boot; a second death in a row would be news.
func boots(t *testing.T, dir string, args ...string) result {
	t.Helper()
	r := plinth(t, dir, args...)
	if r.code == 8 {
		t.Logf("again, for the guest did not come up:\n%s", r.stderr)
		r = plinth(t, dir, args...)
	}
	return r
}
