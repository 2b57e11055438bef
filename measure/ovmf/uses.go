package ovmf

import "fmt"

// Use says whether a firmware serves a platform by a boot path.
type Use struct {
	Platform string // vtpm, sev, seves, snp, tdx
	Path     string // disk: a boot program on it; kernel: a kernel or UKI that the VMM passes by -kernel
	OK       bool   // it runs there, and the platform's evidence covers what it starts
	Why      string // what is missing; for one that serves, what the evidence covers
}

// Uses tells what a firmware can serve as far as its metadata says. Rows that
// need a look at its drivers are missing; Firmware.Uses has those too.
func (m *Metadata) Uses() []Use { return m.uses(nil) }

// Uses tells what a firmware, whose metadata is m, can serve.
func (f *Firmware) Uses(m *Metadata) []Use { return m.uses(f) }

func (m *Metadata) uses(f *Firmware) []Use {
	var out []Use
	add := func(platform, path, covered, missing string) {
		out = append(out, Use{platform, path, missing == "", firstOf(missing, covered)})
	}
	if f != nil {
		add("vtpm", "disk", "PCR 4 and on cover the boot program", firstOf(m.noFirmware(), f.noTPM()))
		add("vtpm", "kernel", "PCR 4 and on cover kernel, initrd and command line", firstOf(m.noFirmware(), f.noTPM(), f.noKernel(), f.onlyHashed()))
	}
	const unmeasured = "it starts, but nothing but the firmware is measured"
	for _, platform := range []string{"sev", "seves", "snp"} {
		cannot := firstOf(m.noFirmware(), f.noDriver("AmdSevDxe", "SEV"), m.noSEV(platform))
		add(platform, "disk", "", firstOf(cannot, unmeasured))
		add(platform, "kernel", f.compared(),
			firstOf(cannot, m.noHashes(platform), f.noKernel(), f.unchecked()))
	}
	cannot := firstOf(m.noFirmware(), f.noDriver("TdxDxe", "TDX"), m.noTDX(), f.noRTMR())
	add("tdx", "disk", "RTMR 1 and 2 cover the boot program", cannot)
	add("tdx", "kernel", "RTMR 1 and 2 cover kernel, initrd and command line", firstOf(cannot, f.noKernel(), f.onlyHashed()))
	return out
}

// Each of these methods returns what speaks against a use, "" if nothing does. A
// nil Firmware is one whose drivers are not known.

func (m *Metadata) noFirmware() string {
	switch {
	case m.SVSM != nil:
		return "an SVSM, which needs a firmware beside it"
	case m.Table == nil:
		return "no table at its end: not the code of a firmware, or one that says nothing to the VMM"
	}
	return ""
}

func (m *Metadata) noSEV(platform string) string {
	if platform == "sev" {
		return "" // a VMM needs to know nothing
	}
	if m.Reset == nil {
		return "no SEV-ES reset block: only one processor would start"
	}
	if platform == "seves" {
		return ""
	}
	for _, t := range []SEVType{SEVSecrets, SEVCPUID} {
		if !m.HasSEV(t) {
			return fmt.Sprintf("no %v section in SEV metadata", t)
		}
	}
	for i, s := range m.SEV {
		if !s.Type.known() {
			return fmt.Sprintf("SEV metadata section %d: %v: what it asks of the VMM is not known", i, s.Type)
		}
	}
	return ""
}

// hashTableSize is what QEMU writes into the hash table, in bytes.
const hashTableSize = 176

func (m *Metadata) noHashes(platform string) string {
	const hint = "direct boot will not be measured; use the amdsev build"
	switch {
	case m.Hashes == nil:
		return "no kernel-hashes area: " + hint
	case m.Hashes.Size < hashTableSize:
		return fmt.Sprintf("kernel-hashes area of %d bytes: want %d: %s", m.Hashes.Size, hashTableSize, hint)
	case platform != "snp":
		return ""
	case !m.HasSEV(SEVKernelHashes):
		return "no kernel-hashes section: " + hint
	}
	for _, s := range m.SEV {
		if s.Type == SEVKernelHashes && m.Hashes.Base >= s.GPA && m.Hashes.Base-s.GPA+hashTableSize <= s.Size {
			return ""
		}
	}
	return fmt.Sprintf("kernel-hashes area at %#x is in no kernel-hashes section: %s", m.Hashes.Base, hint)
}

func (m *Metadata) noTDX() string {
	if m.TDX == nil {
		return "no TDX metadata"
	}
	code, hob := false, false
	for i, s := range m.TDX {
		switch {
		case !s.Type.known():
			return fmt.Sprintf("TDX metadata section %d: %v: what it asks of the VMM is not known", i, s.Type)
		case s.Type == TDXBFV && s.Attributes&TDXExtend != 0 && s.Size > 0:
			code = true
		case s.Type == TDXHOB && s.MemSize > 0:
			hob = true
		}
	}
	switch {
	case !code:
		return "no BFV section that MRTD covers"
	case !hob:
		return "no TD HOB section: the guest cannot learn of its memory"
	case m.Whole > m.Size:
		return "the code alone: a trust domain gets code and variables in one file"
	}
	return ""
}

func (f *Firmware) noDriver(module, platform string) string {
	if f == nil || f.Has(module) {
		return ""
	}
	return fmt.Sprintf("no driver for %s (%s)", platform, module)
}

func (f *Firmware) noTPM() string { return f.noDriver("Tcg2Dxe", "a TPM") }

func (f *Firmware) noRTMR() string {
	if f == nil || f.Has("TdTcg2Dxe") {
		return ""
	}
	return "no driver for the run-time registers (TdTcg2Dxe): nothing but the firmware is measured"
}

func (f *Firmware) noKernel() string { return f.noDriver("QemuKernelLoaderFsDxe", "-kernel") }

func (f *Firmware) onlyHashed() string {
	if f == nil || !f.ChecksHashes {
		return ""
	}
	return "its loader takes only what the SEV hash table names, which there is in SEV guests alone"
}

func (f *Firmware) compared() string {
	const covered = "the launch digest covers the digests of kernel, initrd and command line"
	if f == nil {
		return covered + "; that the firmware compares them its metadata does not say"
	}
	return covered + ", and the firmware compares them"
}

func (f *Firmware) unchecked() string {
	if f == nil || f.ChecksHashes {
		return ""
	}
	return "the launch digest covers a hash table, but the firmware compares nothing with it: the host can pass another kernel; use the amdsev build"
}

func firstOf(reasons ...string) string {
	for _, r := range reasons {
		if r != "" {
			return r
		}
	}
	return ""
}
