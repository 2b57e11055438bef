package snp

import (
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
)

// TestAgainstSEVSNPMeasure runs the checkout of sev-snp-measure that PLINTH_SSM
// names, on a whole firmware with the tail of the AmdSev build.
func TestAgainstSEVSNPMeasure(t *testing.T) {
	checkout := os.Getenv("PLINTH_SSM")
	if checkout == "" {
		testenv.Missing(t, "sev-snp-measure", "PLINTH_SSM names no checkout")
	}
	testenv.Need(t, "python3")
	image := readVector(t, "sev-snp-measure", "fixtures", "svsm_ovmf.fd")
	tail := readVector(t, "sev-snp-measure", "fixtures", "ovmf_AmdSev_suffix.bin")
	copy(image[len(image)-len(tail):], tail)
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ovmf, kernel, initrd := file("ovmf", image), file("kernel", image[:10000]), file("initrd", image[10000:30001])
	const cmdline = "console=ttyS0 größe=1"
	h := hashes(t, string(image[:10000]), string(image[10000:30001]), cmdline)
	for _, row := range []struct {
		mode, vmm string
		count     int
		features  uint64
		hashes    *Hashes
	}{
		{"snp", "QEMU", 1, 1, nil}, {"snp", "QEMU", 5, 0x21, h}, {"snp", "gce", 3, 1, h}, {"snp", "ec2", 2, 1, nil}, {"snp", "ec2", 2, 0x21, h},
		{"seves", "QEMU", 4, 0, h}, {"seves", "QEMU", 1, 0, nil}, {"sev", "QEMU", 0, 0, h}, {"sev", "QEMU", 0, 0, nil},
	} {
		args := []string{"sev-snp-measure.py", "--mode", row.mode, "--ovmf", ovmf}
		if row.count > 0 {
			args = append(args, "--vcpus", strconv.Itoa(row.count), "--vcpu-type", "EPYC-Milan", "--vmm-type", row.vmm)
		}
		if row.features > 0 {
			args = append(args, "--guest-features", "0x"+strconv.FormatUint(row.features, 16))
		}
		if row.hashes != nil {
			args = append(args, "--kernel", kernel, "--initrd", initrd, "--append", cmdline)
		}
		cmd := exec.CommandContext(t.Context(), "python3", args...)
		cmd.Dir = checkout
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		got, err := measureMode(row.mode, row.vmm, image, row.hashes, VCPUs{row.count, 0xa00f11, row.features})
		if want := strings.TrimSpace(string(out)); err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%+v: %x, %v, want %s", row, got, err, want)
		}
	}
}

func measureMode(mode, vmm string, image []byte, h *Hashes, v VCPUs) ([]byte, error) {
	switch mode {
	case "sev":
		d, err := SEV(image, h)
		return d[:], err
	case "seves":
		d, err := SEVES(image, h, v)
		return d[:], err
	}
	m, err := FindVMM(vmm)
	if err != nil {
		return nil, err
	}
	l, err := NewLaunch(Params{VMM: m, Firmware: image, Hashes: h})
	if err != nil {
		return nil, err
	}
	d, err := l.Digest(v)
	return d[:], err
}
