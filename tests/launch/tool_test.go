package launch

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/snp"
)

// ssm runs the sev-snp-measure of the checkout that PLINTH_SSM names.
func ssm(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := os.Getenv("PLINTH_SSM")
	if dir == "" {
		testenv.Missing(t, "sev-snp-measure", "PLINTH_SSM names no checkout")
	}
	testenv.Need(t, "python3")
	cmd := exec.Command("python3", append([]string{filepath.Join(dir, "sev-snp-measure.py")}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONUTF8=1")
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sev-snp-measure %q: %v: %s", args, err, problem.String())
	}
	digest, err := hex.DecodeString(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatalf("sev-snp-measure %q: %q", args, out)
	}
	return digest
}

// TestTool compares measure/snp with sev-snp-measure 0.0.13 on random
// combinations that it takes, for every mode and VMM.
func TestTool(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an interpreter for each")
	}
	seed := newSeed()
	t.Logf("repeat with: go test ./tests/launch -run TestTool -args -seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	files := realFirmware(t)
	for n := 0; n < 40; {
		c := randomCase(r, files)
		c.era, c.guest.MXCSR, c.guest.FCW, c.guest.ESBits = snp.Eras[0], snp.Eras[0].MXCSR, snp.Eras[0].FCW, 0
		if _, err := c.guest.SNP(); err != nil || c.guest.Direct != nil && !utf8.ValidString(c.guest.Direct.Cmdline) {
			continue
		}
		mode := []string{"snp", "snp/ec2", "snp/gce", "seves", "sev"}[n%5]
		n++
		got, err := c.digest(mode)
		if err != nil {
			t.Fatalf("seed %d: %s: %s: %v", seed, mode, c, err)
		}
		if want := ssm(t, c.arguments(t, mode)...); hex.EncodeToString(got) != hex.EncodeToString(want) {
			t.Fatalf("seed %d: %s: %s: %x, sev-snp-measure says %x", seed, mode, c, got, want)
		}
	}
}

func vector(t *testing.T, name string) string {
	t.Helper()
	return filepath.Join(testenv.Vectors(t), "measure", "sev-snp-measure", "fixtures", name)
}

// digest is what measure/snp says.
func (c testCase) digest(mode string) ([]byte, error) {
	h, err := c.hashes()
	if err != nil {
		return nil, err
	}
	v := snp.VCPUs{Count: c.guest.VCPUs, Signature: c.guest.Signature, Features: c.guest.Features}
	switch mode {
	case "sev":
		d, err := snp.SEV(c.guest.Firmware, h)
		return d[:], err
	case "seves":
		v.Features = 0
		d, err := snp.SEVES(c.guest.Firmware, h, v)
		return d[:], err
	}
	vmm := map[string]snp.VMM{"snp": snp.QEMU, "snp/ec2": snp.EC2, "snp/gce": snp.GCE}[mode]
	if vmm != snp.QEMU {
		v.Signature = 0 // the same for all there
	}
	l, err := snp.NewLaunch(snp.Params{VMM: vmm, Firmware: c.guest.Firmware, Hashes: h})
	if err != nil {
		return nil, err
	}
	d, err := l.Digest(v)
	return d[:], err
}

// arguments are the tool's for the same guest.
func (c testCase) arguments(t *testing.T, mode string) []string {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mode, vmm, _ := strings.Cut(mode, "/")
	args := []string{
		"--mode", mode, "--vcpus", fmt.Sprint(c.guest.VCPUs), "--vcpu-sig", fmt.Sprintf("%#x", c.guest.Signature),
		"--guest-features", fmt.Sprintf("%#x", c.guest.Features), "--ovmf", file("ovmf.fd", c.guest.Firmware),
	}
	if vmm != "" {
		args = append(args, "--vmm-type", vmm)
	}
	if d := c.guest.Direct; d != nil {
		args = append(args, "--kernel", file("kernel", d.Kernel))
		if c.initrd {
			args = append(args, "--initrd", file("initrd", d.Initrd))
		}
		if c.cmdline {
			args = append(args, "--append="+d.Cmdline)
		}
	}
	return args
}

// TestToolSeed compares what stands for a firmware.
func TestToolSeed(t *testing.T) {
	want := ssm(t, "--mode", "snp:ovmf-hash", "--ovmf", vector(t, "svsm_ovmf.fd"))
	b, err := os.ReadFile(vector(t, "svsm_ovmf.fd"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := snp.NewLaunch(snp.Params{Firmware: b})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Seed().Digest(); hex.EncodeToString(got[:]) != hex.EncodeToString(want) {
		t.Errorf("%x, sev-snp-measure says %x", got, want)
	}
}

// TestToolSVSM compares guests with an SVSM below the firmware.
func TestToolSVSM(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(vector(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, vars := range []int{0x1000, 540672, 0x200000} {
		l, err := snp.NewLaunch(snp.Params{Firmware: read("svsm_ovmf.fd"), SVSM: read("svsm.bin"), VarsSize: vars})
		if err != nil {
			t.Fatal(err)
		}
		for _, vcpus := range []int{1, 3} {
			want := ssm(t, "--mode", "snp:svsm", "--vcpus", fmt.Sprint(vcpus), "--vcpu-type", "EPYC-Milan", "--ovmf", vector(t, "svsm_ovmf.fd"),
				"--svsm", vector(t, "svsm.bin"), "--vars-size", fmt.Sprint(vars))
			got, err := l.Digest(snp.VCPUs{Count: vcpus, Signature: signature(cpus["EPYC-Milan"])})
			if err != nil || hex.EncodeToString(got[:]) != hex.EncodeToString(want) {
				t.Errorf("%d vCPUs, variables of %d bytes: %x, %v; sev-snp-measure says %x", vcpus, vars, got, err, want)
			}
		}
	}
}
