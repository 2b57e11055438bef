package measure

import (
	"strings"
	"testing"
)

// snpDocument is a small document for an SNP guest, every key of which is set.
const snpDocument = `{
  "schema": 1,
  "profile": "snp",
  "machine": {"type": "q35", "vcpus": 1, "memory_mib": 1024},
  "machines": [{"type": "q35", "vcpus": 1, "memory_mib": 1024}, {"type": "q35", "vcpus": 2, "memory_mib": 1024}],
  "versions": {"edk2": "2026.08-1", "stub": "", "kernel": "6.12", "vmm": ""},
  "notes": [],
  "values": [
    {"platform": "snp", "register": "launch_digest", "bank": "sha384", "phase": "", "shape": {"type": "q35", "vcpus": 1, "memory_mib": 1024}, "cpu": "EPYC-v4",
     "provenance": "predicted", "value": "H48", "one_of": null, "reason": "for hosts", "events": []},
    {"platform": "snp", "register": "launch_digest", "bank": "sha384", "phase": "", "shape": {"type": "q35", "vcpus": 1, "memory_mib": 1024}, "cpu": "EPYC-Milan",
     "provenance": "predicted", "value": "H48", "one_of": null, "reason": "", "events": []},
    {"platform": "seves", "register": "launch_digest", "bank": "sha256", "phase": "", "provenance": "predicted", "value": "H32", "one_of": null, "reason": "", "events": []},
    {"platform": "tdx", "register": "mrtd", "bank": "sha384", "phase": "", "provenance": "one-of", "value": "", "one_of": ["H48", "h48"], "reason": "", "events": []},
    {"platform": "tdx", "register": "rtmr3", "bank": "sha384", "phase": "", "provenance": "predicted", "value": "H48", "one_of": null, "reason": "", "events": []}
  ],
  "inputs": [{"name": "firmware", "sha256": "H32", "size": 4194304}, {"name": "kernel", "sha256": "H32", "size": 0}],
  "snp": {"policy": "0x30000", "guest_features": "0x1", "vmm": "qemu", "era": "linux-6.10", "family_id": "", "image_id": "H16", "guest_svn": 1,
          "kernel_hashes": {"kernel": "H32", "initrd": "H32", "cmdline": "H32"}},
  "tdx": {"attributes": "0x10000000", "xfam": "", "mr_config_id": "", "mr_owner": "H48", "mr_owner_config": ""}
}
`

func filled(text string) string {
	return strings.NewReplacer("H48", strings.Repeat("a1", 48), "h48", strings.Repeat("a2", 48),
		"H32", strings.Repeat("b1", 32), "H16", strings.Repeat("c1", 16)).Replace(text)
}

func TestFacts(t *testing.T) {
	m, err := ParseMeasurements([]byte(filled(snpDocument)))
	if err != nil {
		t.Fatal(err)
	}
	first, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseMeasurements(first)
	if err != nil {
		t.Fatal(err)
	}
	if second, _ := again.Marshal(); string(second) != string(first) {
		t.Error("reading and writing changes the document")
	}
}

func TestFactsRefuse(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"platform", `"platform": "snp"`, `"platform": "cca"`, `platform "cca": want one of`},
		{"register of another platform", `"register": "launch_digest"`, `"register": "pcr1"`, `register "pcr1": want launch_digest`},
		{"register of TDX", `"register": "rtmr3"`, `"register": "rtmr4"`, `want mrtd or rtmr0 to rtmr3`},
		{"bank of SNP", `"bank": "sha384"`, `"bank": "sha256"`, `bank "sha256": want sha384`},
		{"bank of SEV", `"bank": "sha256"`, `"bank": "sha384"`, `bank "sha384": want sha256`},
		{"CPU of a register", `"register": "mrtd",`, `"register": "mrtd", "cpu": "EPYC",`, `only a launch digest has one`},
		{"the same CPU twice", `"cpu": "EPYC-Milan"`, `"cpu": "EPYC-v4"`, "is there twice"},
		{"input without a name", `"name": "kernel"`, `"name": ""`, "input 1"},
		{"input twice", `"name": "kernel"`, `"name": "firmware"`, "input 1"},
		{"size of an input", `"size": 0`, `"size": -1`, "input 1"},
		{"digest of an input", `"sha256": "H32", "size": 0`, `"sha256": "H48", "size": 0`, "input kernel"},
		{"policy", `"policy": "0x30000"`, `"policy": "30000"`, "snp: policy"},
		{"policy with a zero in front", `"policy": "0x30000"`, `"policy": "0x030000"`, "snp: policy"},
		{"no policy", `"policy": "0x30000"`, `"policy": ""`, "snp: policy"},
		{"features", `"guest_features": "0x1"`, `"guest_features": "0x10000000000000000"`, "snp: guest_features"},
		{"image ID", `"image_id": "H16"`, `"image_id": "H32"`, "snp: image_id"},
		{"kernel hash", `"initrd": "H32"`, `"initrd": ""`, "snp: kernel_hashes.initrd"},
		{"attributes", `"attributes": "0x10000000"`, `"attributes": "1"`, "tdx: attributes"},
		{"owner", `"mr_owner": "H48"`, `"mr_owner": "A1"`, "tdx: mr_owner"},
		{"unknown key", `"era":`, `"Era2":`, "unknown field"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(snpDocument, tt.old, tt.new, 1)
			if bad == snpDocument {
				t.Fatal("nothing to change")
			}
			_, err := ParseMeasurements([]byte(filled(bad)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBits(t *testing.T) {
	for _, v := range []uint64{0, 1, 0x30000, 1 << 63, ^uint64(0)} {
		if got, err := ParseBits(Bits(v)); err != nil || got != v {
			t.Errorf("%#x: got %#x, %v", v, got, err)
		}
	}
	for _, bad := range []string{"", "0x", "1", "0X1", "0x00", "0xG", "0xA", "0x1_0", "-0x1", "0x11111111111111111"} {
		if v, err := ParseBits(bad); err == nil {
			t.Errorf("%q: got %#x", bad, v)
		}
	}
}
