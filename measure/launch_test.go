package measure

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
	"github.com/plinth-os/plinth/measure/snp"
)

func snpGuest(t *testing.T) *SNPGuest {
	t.Helper()
	cmdline := "console=tty0"
	hashes, err := snp.HashDirectBoot(strings.NewReader("kernel"), strings.NewReader("initrd"), &cmdline)
	if err != nil {
		t.Fatal(err)
	}
	g := &SNPGuest{
		Params:   snp.Params{VMM: snp.QEMU, Firmware: ovmftest.AmdSev("2026.08-1"), Hashes: hashes},
		Machines: []Shape{{"q35", 1, 1024}, {"q35", 4, 1024}},
		Policy:   0x30000,
		Inputs:   []Input{{"firmware", strings.Repeat("00", 32), 1}, {"kernel", strings.Repeat("00", 32), 1}},
		Explain:  true,
	}
	for _, name := range []string{"EPYC-v4", "EPYC-Milan"} {
		cpu, err := snp.FindCPU(name)
		if err != nil {
			t.Fatal(err)
		}
		g.CPUs = append(g.CPUs, cpu)
	}
	return g
}

func launchDocument(t *testing.T, g *SNPGuest) *Measurements {
	t.Helper()
	m, err := NewSNPMeasurements("test", g)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Every number of vCPUs with every model, in the form that is read back.
func TestNewSNPMeasurements(t *testing.T) {
	g := snpGuest(t)
	m := launchDocument(t, g)
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = ParseMeasurements(b); err != nil {
		t.Fatal(err)
	}
	l, err := snp.NewLaunch(g.Params)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	seen := map[string]bool{}
	for i, v := range m.Values {
		got = append(got, fmt.Sprintf("%d %s", v.Shape.VCPUs, v.CPU))
		want, err := l.Digest(snp.VCPUs{Count: v.Shape.VCPUs, Signature: g.CPUs[i%2].Signature})
		if err != nil {
			t.Fatal(err)
		}
		if v.Value != hex.EncodeToString(want[:]) || seen[v.Value] {
			t.Errorf("%s: %s", got[i], v.Value)
		}
		seen[v.Value] = true
		if n := len(v.Events); n == 0 || v.Events[n-1].Digest != v.Value {
			t.Errorf("%s: %d events do not lead to the value", got[i], n)
		}
		if !strings.Contains(v.Reason, snp.Eras[0].Hosts) {
			t.Errorf("reason %q does not say for which hosts", v.Reason)
		}
	}
	if want := []string{"1 EPYC-v4", "1 EPYC-Milan", "4 EPYC-v4", "4 EPYC-Milan"}; !slices.Equal(got, want) {
		t.Errorf("values for %q, want %q", got, want)
	}
	f := m.SNP
	if f.Policy != "0x30000" || f.GuestFeatures != "0x1" || f.VMM != "qemu" || f.Era != snp.Eras[0].Name || f.FamilyID+f.ImageID != "" {
		t.Errorf("facts %+v", f)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256([]byte("console=tty0\x00"))); f.KernelHashes.Cmdline != want {
		t.Errorf("command line: %s, want %s", f.KernelHashes.Cmdline, want)
	}
}

// One page by hand: the first of the firmware, from a digest of zeros. AMD's ABI
// (56860), table 67, PAGE_INFO.
func TestFirstPage(t *testing.T) {
	g := snpGuest(t)
	g.Params.Firmware = g.Params.Firmware[len(g.Params.Firmware)-0x1000:]
	page, b := sha512.Sum384(g.Params.Firmware), make([]byte, 0x70)
	copy(b[48:], page[:])
	binary.LittleEndian.PutUint16(b[96:], 0x70)
	b[98] = 1 // normal
	binary.LittleEndian.PutUint64(b[104:], 1<<32-0x1000)
	want := sha512.Sum384(b)
	if got := launchDocument(t, g).Values[0].Events[0].Digest; got != hex.EncodeToString(want[:]) {
		t.Errorf("got %s, want %x", got, want)
	}
}

// What moves a launch digest is named.
func TestCompareLaunch(t *testing.T) {
	a := launchDocument(t, snpGuest(t))
	if got := Compare(a, a); len(got) != 0 {
		t.Errorf("equal documents: %v", got)
	}
	for _, tt := range []struct {
		name   string
		change func(*SNPGuest)
		want   string
	}{
		{"kernel", func(g *SNPGuest) {
			g.Params.Hashes.Kernel[0] ^= 1
			g.Inputs[1].SHA256 = strings.Repeat("01", 32)
		}, "changed: kernel, changed: 0x810000, 1 pages (SEV metadata 6: "},
		{"firmware", func(g *SNPGuest) {
			g.Params.Firmware = bytes.Clone(g.Params.Firmware)
			g.Params.Firmware[0] ^= 1
			g.Inputs[0].SHA256 = strings.Repeat("01", 32)
		}, "changed: firmware, changed: 0xff"},
		{"features", func(g *SNPGuest) { g.Features = 0x21 }, "changed: guest features 0x1, now 0x21, changed: 0xfffffffff000, 1 pages (vCPU 0"},
		{"era", func(g *SNPGuest) { g.Params.Era = snp.Eras[2] }, "changed: era of host kernels linux-6.10, now linux-5.19, changed: 0xfffffffff000, 1 pages (vCPU 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := snpGuest(t)
			tt.change(g)
			changes := Compare(a, launchDocument(t, g))
			if len(changes) != 4 || changes[1].CPU != "EPYC-Milan" || changes[1].Register != "launch_digest" {
				t.Fatalf("%d changes: %+v", len(changes), changes)
			}
			for _, c := range changes {
				if got := strings.Join(c.Events, ", "); !strings.HasPrefix(got, tt.want) || len(c.Events) != 2 {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
		})
	}
	g := snpGuest(t)
	g.Inputs = append(g.Inputs[:1], Input{"initrd", strings.Repeat("00", 32), 1})
	g.CPUs = g.CPUs[:1]
	b := launchDocument(t, g)
	for i := range b.Values {
		b.Values[i].Value = strings.Repeat("00", 48)
	}
	if got := Compare(a, b); len(got) != 4 || got[0].Events[0] != "missing: kernel" || got[0].Events[1] != "extra: initrd" || got[1].Events[0] != "no longer predicted" {
		t.Errorf("got %+v", got)
	}
}

func TestNewSNPMeasurementsRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*SNPGuest)
		want   string
	}{
		{"no shape", func(g *SNPGuest) { g.Machines = nil }, "no number"},
		{"no model", func(g *SNPGuest) { g.CPUs = nil }, "no number"},
		{"no vCPUs", func(g *SNPGuest) { g.Machines[1].VCPUs = 0 }, "0 vCPUs, EPYC-v4: "},
		{"no firmware", func(g *SNPGuest) { g.Params.Firmware = nil }, "snp: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := snpGuest(t)
			tt.change(g)
			if _, err := NewSNPMeasurements("test", g); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
