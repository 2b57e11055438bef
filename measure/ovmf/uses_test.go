package ovmf

import (
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// find returns the row of a platform and a path.
func find(t *testing.T, uses []Use, platform, path string) Use {
	t.Helper()
	for _, u := range uses {
		if u.Platform == platform && u.Path == path {
			return u
		}
	}
	t.Fatalf("no row of %s and %s in %v", platform, path, uses)
	return Use{}
}

func TestUses(t *testing.T) {
	drivers := func(names ...string) *Firmware {
		f := &Firmware{}
		for _, n := range names {
			f.Modules = append(f.Modules, Module{Name: n})
		}
		return f
	}
	const loader = "QemuKernelLoaderFsDxe"
	checking := func(f *Firmware) *Firmware { f.ChecksHashes = true; return f }
	sev := func(change func(*Metadata)) *Metadata {
		m := mustMetadata(t, ovmftest.AmdSevTail().Bytes())
		change(m)
		return m
	}
	tdx := func(change func(*Metadata)) *Metadata {
		m := mustMetadata(t, ovmftest.IntelTDX(""))
		change(m)
		return m
	}
	asIs := func(*Metadata) {}
	for _, tt := range []struct {
		name           string
		f              *Firmware // nil: metadata alone
		m              *Metadata
		platform, path string
		ok             bool
		why            string
	}{
		{"TPM", drivers("Tcg2Dxe"), sev(asIs), "vtpm", "disk", true, "PCR 4"},
		{"no TPM", drivers("TcgDxe"), sev(asIs), "vtpm", "disk", false, "no driver for a TPM (Tcg2Dxe)"},
		{"TPM and -kernel", drivers("Tcg2Dxe", loader), sev(asIs), "vtpm", "kernel", true, "PCR 4"},
		{"TPM without -kernel", drivers("Tcg2Dxe"), sev(asIs), "vtpm", "kernel", false, "no driver for -kernel"},
		{"hashes outside SEV", checking(drivers("Tcg2Dxe", loader)), sev(asIs), "vtpm", "kernel", false, "only what the SEV hash table names"},
		{"variables", nil, &Metadata{}, "snp", "disk", false, "no table at its end"},
		{"SVSM", nil, sev(func(m *Metadata) { m.SVSM = ptr(uint32(0)) }), "snp", "kernel", false, "an SVSM"},
		{"SEV, no driver", drivers("Tcg2Dxe"), sev(asIs), "sev", "disk", false, "no driver for SEV (AmdSevDxe)"},
		{"SNP disk", drivers("AmdSevDxe"), sev(asIs), "snp", "disk", false, "nothing but the firmware is measured"},
		{"SNP disk by metadata", nil, sev(asIs), "snp", "disk", false, "nothing but the firmware is measured"},
		{"SNP hashes", checking(drivers("AmdSevDxe", loader)), sev(asIs), "snp", "kernel", true, "and the firmware compares them"},
		{"SNP hashes by metadata", nil, sev(asIs), "snp", "kernel", true, "its metadata does not say"},
		{"SNP hashes not compared", drivers("AmdSevDxe", loader), sev(asIs), "snp", "kernel", false, "the host can pass another kernel; use the amdsev build"},
		{"SNP without loader", checking(drivers("AmdSevDxe")), sev(asIs), "snp", "kernel", false, "no driver for -kernel"},
		{"no area", nil, sev(func(m *Metadata) { m.Hashes = nil }), "snp", "kernel", false, "no kernel-hashes area: direct boot will not be measured; use the amdsev build"},
		{"no area, SEV", nil, sev(func(m *Metadata) { m.Hashes = nil }), "sev", "kernel", false, "no kernel-hashes area"},
		{"small area", nil, sev(func(m *Metadata) { m.Hashes.Size = 175 }), "seves", "kernel", false, "area of 175 bytes: want 176"},
		{"area of the right size", nil, sev(func(m *Metadata) { m.Hashes.Size = 176 }), "seves", "kernel", true, ""},
		{"no section", nil, sev(func(m *Metadata) { m.SEV[6].Size = 0 }), "snp", "kernel", false, "no kernel-hashes section: direct boot will not be measured; use the amdsev build"},
		{"no section, SEV", nil, sev(func(m *Metadata) { m.SEV[6].Size = 0 }), "sev", "kernel", true, ""},
		{"area elsewhere", nil, sev(func(m *Metadata) { m.Hashes.Base = 0x811000 }), "snp", "kernel", false, "area at 0x811000 is in no kernel-hashes section"},
		{"area before", nil, sev(func(m *Metadata) { m.Hashes.Base = 0x80ffff }), "snp", "kernel", false, "area at 0x80ffff is in no kernel-hashes section"},
		{"area across the end", nil, sev(func(m *Metadata) { m.Hashes.Base = 0x811000 - 175 }), "snp", "kernel", false, "is in no kernel-hashes section"},
		{"area up to the end", nil, sev(func(m *Metadata) { m.Hashes.Base = 0x811000 - 176 }), "snp", "kernel", true, ""},
		{"no reset block", nil, sev(func(m *Metadata) { m.Reset = nil }), "seves", "kernel", false, "no SEV-ES reset block"},
		{"no reset block, SEV", nil, sev(func(m *Metadata) { m.Reset = nil }), "sev", "kernel", true, ""},
		{"no secrets", nil, sev(func(m *Metadata) { m.SEV[2].Size = 0 }), "snp", "kernel", false, "no secrets section in SEV metadata"},
		{"no CPUID", nil, sev(func(m *Metadata) { m.SEV[3].Type = SEVMemory }), "snp", "kernel", false, "no CPUID section in SEV metadata"},
		{"no secrets, ES", nil, sev(func(m *Metadata) { m.SEV = nil }), "seves", "kernel", true, ""},
		{"unknown section", nil, sev(func(m *Metadata) { m.SEV[4].Type = 0x77 }), "snp", "kernel", false, "section 4: type 0x77: what it asks"},
		{"TDX", drivers("TdxDxe", "TdTcg2Dxe"), tdx(asIs), "tdx", "disk", true, "RTMR 1 and 2"},
		{"TDX by metadata", nil, tdx(asIs), "tdx", "disk", true, "RTMR 1 and 2"},
		{"TDX -kernel", drivers("TdxDxe", "TdTcg2Dxe", loader), tdx(asIs), "tdx", "kernel", true, "initrd"},
		{"TDX without -kernel", drivers("TdxDxe", "TdTcg2Dxe"), tdx(asIs), "tdx", "kernel", false, "no driver for -kernel"},
		{"TDX, hashes", checking(drivers("TdxDxe", "TdTcg2Dxe", loader)), tdx(asIs), "tdx", "kernel", false, "SEV guests alone"},
		{"TDX, no driver", drivers("TdTcg2Dxe"), tdx(asIs), "tdx", "disk", false, "no driver for TDX (TdxDxe)"},
		{"TDX, no registers", drivers("TdxDxe"), tdx(asIs), "tdx", "disk", false, "TdTcg2Dxe"},
		{"no TDX", nil, sev(asIs), "tdx", "disk", false, "no TDX metadata"},
		{"BFV not measured", nil, tdx(func(m *Metadata) { m.TDX[0].Attributes = 0 }), "tdx", "disk", false, "no BFV section that MRTD covers"},
		{"BFV empty", nil, tdx(func(m *Metadata) { m.TDX[0].Size = 0 }), "tdx", "disk", false, "no BFV section"},
		{"no TD HOB", nil, tdx(func(m *Metadata) { m.TDX[4].MemSize = 0 }), "tdx", "disk", false, "no TD HOB section"},
		{"TDX, unknown section", nil, tdx(func(m *Metadata) { m.TDX[2].Type = 7 }), "tdx", "disk", false, "section 2: type 0x7"},
		{"TDX, code alone", nil, tdx(func(m *Metadata) { m.Size -= 0x20000 }), "tdx", "disk", false, "the code alone"},
	} {
		uses := tt.m.Uses()
		if tt.f != nil {
			uses = tt.f.Uses(tt.m)
		}
		got := find(t, uses, tt.platform, tt.path)
		if got.OK != tt.ok || !strings.Contains(got.Why, tt.why) {
			t.Errorf("%s: %v: want %v, %q", tt.name, got, tt.ok, tt.why)
		}
	}
	if n, all := len(sev(asIs).Uses()), len(drivers().Uses(sev(asIs))); n != 8 || all != 10 {
		t.Errorf("%d rows by metadata, %d with drivers", n, all)
	}
}

// The parts that a real firmware's rows depend on are found in its file.
func TestUsesOfFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		file []byte
		ok   string
	}{
		"AmdSev":   {ovmftest.AmdSev("2026.08-1"), "vtpm disk, sev kernel, seves kernel, snp kernel"},
		"IntelTDX": {ovmftest.IntelTDX("2026.08-1"), "tdx disk, tdx kernel"},
		"generic":  {append(blankVars(0x20000), testImage(testVolumes("2026.08-1"))...), ""},
	} {
		f, err := Parse(tt.file)
		if err != nil {
			t.Fatal(err)
		}
		if f.Version != "2026.08-1" || f.ChecksHashes != (name == "AmdSev") {
			t.Errorf("%s: version %q, compares hashes %v", name, f.Version, f.ChecksHashes)
		}
		if got := serves(f.Uses(mustMetadata(t, tt.file))); got != tt.ok {
			t.Errorf("%s serves %q, want %q", name, got, tt.ok)
		}
	}
}

// The table's GUIDs in another module are not those of the loader.
func TestChecksHashes(t *testing.T) {
	for name, want := range map[string]bool{"QemuKernelLoaderFsDxe": true, "AmdSevDxe": false} {
		pei, _ := testVolumes("")
		f, err := Parse(testImage(pei, putVolume(dxeGUID, 0, ovmftest.Module(fileDriver, name, putPE(kernelHashGUID[:])))))
		if err != nil || f.ChecksHashes != want {
			t.Errorf("%s: %v, %v", name, f.ChecksHashes, err)
		}
	}
}

// serves lists the uses that are right.
func serves(uses []Use) string {
	var ok []string
	for _, u := range uses {
		if u.OK {
			ok = append(ok, u.Platform+" "+u.Path)
		}
	}
	return strings.Join(ok, ", ")
}

func TestFlashVolumes(t *testing.T) {
	strange := putVolume(GUID{7}, 0)
	nameless := putVolume(GUID{}, 0)
	flash := append(append(append(ovmftest.AmdSev(""), make([]byte, 0x2000)...), strange...), nameless...)
	got, err := FlashVolumes(flash)
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for i, v := range got {
		text = append(text, v.Name)
		if i > 0 && v.Offset < got[i-1].Offset+got[i-1].Size {
			t.Errorf("%s at %#x is inside %s", v.Name, v.Offset, got[i-1].Name)
		}
	}
	want := "variables FVMAIN_COMPACT SECFV 00000007-0000-0000-0000-000000000000 8c8ce578-8a3d-4f1c-9935-896185c32dd3"
	if strings.Join(text, " ") != want {
		t.Errorf("volumes %v, want %s", text, want)
	}
	if len(got) > 0 && (got[0].Size != 0x20000 || got[1].Offset != 0x20000) {
		t.Errorf("the first are %v", got[:2])
	}
	flash[0x20032]++ // the checksum of the second
	got, err = FlashVolumes(flash)
	if len(got) != 1 || err == nil || !strings.Contains(err.Error(), "offset 0x20000") {
		t.Errorf("damaged: %v, %v", got, err)
	}
	if _, err := FlashVolumes(make([]byte, maxFlash+1)); err == nil {
		t.Error("a flash of 16 MiB and a byte")
	}
}
