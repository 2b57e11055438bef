package main

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
)

// A report of another host kernel, type or number of processors is told from one
// of other files.
func TestLaunchHint(t *testing.T) {
	firmware, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "measure", "sev-snp-measure", "fixtures", "ovmf_AmdSev_suffix.bin"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "firmware.fd"), firmware, 0o644); err != nil {
		t.Fatal(err)
	}
	cpu := func(name string) snp.CPU {
		c, err := snp.FindCPU(name)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	hashes := &snp.Hashes{Kernel: [32]byte{1}, Initrd: [32]byte{2}, Cmdline: [32]byte{3}}
	m, err := measure.NewSNPMeasurements("p", &measure.SNPGuest{
		Params: snp.Params{Firmware: firmware, Hashes: hashes}, Machines: []measure.Shape{{Type: "q35", VCPUs: 2, MemoryMiB: 1024}}, CPUs: []snp.CPU{cpu("EPYC-v4")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		era    snp.Era
		vcpus  snp.VCPUs
		kernel byte
		want   []string
	}{
		{snp.Eras[1], snp.VCPUs{Count: 2, Signature: cpu("EPYC-v4").Signature}, 1, []string{"the digest is that of 2 vCPUs", snp.Eras[1].Name, snp.Eras[1].Hosts}},
		{snp.Eras[0], snp.VCPUs{Count: 5, Signature: cpu("EPYC-Genoa").Signature}, 1, []string{"5 vCPUs", "EPYC-Genoa", snp.Eras[0].Name}},
		{snp.Eras[0], snp.VCPUs{Count: 2, Signature: cpu("EPYC-v4").Signature}, 9, []string{"firmware, kernel, initrd or command line is another"}},
	} {
		other := *hashes
		other.Kernel[0] = c.kernel
		l, err := snp.NewLaunch(snp.Params{Firmware: firmware, Hashes: &other, Era: c.era})
		if err != nil {
			t.Fatal(err)
		}
		digest, err := l.Digest(c.vcpus)
		if err != nil {
			t.Fatal(err)
		}
		got := (&evidenceFlags{}).launchHint(hex.EncodeToString(digest[:]), m, dir)
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("got %q, want %q in it", got, want)
			}
		}
	}
	for _, f := range []*evidenceFlags{{ovmf: filepath.Join(dir, "nowhere")}, {ovmf: "verify.go"}} {
		if got := f.launchHint(strings.Repeat("00", 48), m, dir); !strings.Contains(got, "plinth measure snp --expect") {
			t.Errorf("got %q", got)
		}
	}
}
