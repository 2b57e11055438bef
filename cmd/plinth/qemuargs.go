package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/qemu"
)

// maxQEMUArgs is more than ParseCommandLine takes, and little.
const maxQEMUArgs = 1 << 20

// readQEMUArgs reads the file of --qemu-args.
func readQEMUArgs(path string) (*qemu.CommandLine, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxQEMUArgs))
	if err != nil {
		return nil, err
	}
	l, err := qemu.ParseCommandLine(text)
	if err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	if l.IGVM != "" {
		return nil, unsupportedError{fmt.Errorf("%s: igvm-cfg: what is measured comes from the IGVM file %s, not from the firmware", path, l.IGVM)}
	}
	return l, nil
}

// unsupportedError is a combination that plinth does not have; exit code 3.
type unsupportedError struct{ err error }

func (e unsupportedError) Error() string        { return e.err.Error() }
func (e unsupportedError) Is(target error) bool { return target == profiles.ErrUnsupported }

// guestOf returns the confidential guest of a command line, which must be of the
// command's platform.
func guestOf(path string, l *qemu.CommandLine, platform string) (*qemu.GuestObject, error) {
	if l.Guest == nil {
		return nil, usagef("%s: it starts no confidential guest: no confidential-guest-support= in -machine", path)
	}
	got := ""
	switch l.Guest.Type {
	case "sev-snp-guest":
		got = measure.PlatformSNP
	case "tdx-guest":
		got = measure.PlatformTDX
	case "sev-guest":
		policy, _, err := l.Guest.Uint("policy")
		if err != nil {
			return nil, usagef("%s: %w", path, err)
		}
		got = measure.PlatformSEV
		if policy&policyES != 0 {
			got = measure.PlatformSEVES
		}
	}
	if got != platform {
		hint := ""
		if got != "" {
			hint = fmt.Sprintf(`; see "plinth measure %s"`, got)
		}
		return nil, usagef("%s: it starts a %s guest%s", path, l.Guest.Type, hint)
	}
	return l.Guest, nil
}

// policyES is the bit of SEV's policy that asks for SEV-ES: AMD SEV API (55766),
// guest policy.
const policyES = 1 << 2

// fromQEMU fills in what no flag says from the command line of --qemu-args.
func (f *launchFlags) fromQEMU() error {
	l, err := readQEMUArgs(f.qemuArgs)
	if err != nil {
		return err
	}
	g, err := guestOf(f.qemuArgs, l, f.platform)
	if err != nil {
		return err
	}
	user := f.given
	taken := map[string]bool{}
	f.given = func(flag string) bool { return user(flag) || taken[flag] }
	set := func(flag string, to *string, value string) {
		if value != "" && !user(flag) {
			*to, taken[flag] = value, true
		}
	}
	if !user("ovmf-seed") {
		set("ovmf", &f.ovmf, l.Firmware)
	}
	if f.platform != measure.PlatformSEV {
		if !user("vcpus") {
			f.vcpus = []int{l.VCPUs}
		}
		if err := f.typeFromQEMU(l, taken); err != nil {
			return err
		}
	}
	hashes, err := g.Bool("kernel-hashes")
	switch {
	case err != nil:
		return usagef("%s: %w", f.qemuArgs, err)
	case hashes && !user("kernel"):
		set("kernel", &f.kernel, l.Kernel)
		set("initrd", &f.initrd, l.Initrd)
		if l.Append != nil && l.Kernel != "" && !user("append") {
			f.cmdline, taken["append"] = *l.Append, true
		}
	case l.Kernel != "" && !user("kernel"):
		f.note("-kernel is not measured: no kernel-hashes=on")
	}
	if f.platform == measure.PlatformSNP {
		if err := f.guestFromQEMU(g, set); err != nil {
			return usagef("%s: %w", f.qemuArgs, err)
		}
		if err := f.verifyBlock(g); err != nil {
			return err
		}
	}
	f.noteRest(l, g)
	return nil
}

func (f *launchFlags) note(format string, a ...any) {
	f.notes = append(f.notes, f.qemuArgs+": "+fmt.Sprintf(format, a...))
}

// hostModels are QEMU's names for what the host has.
var hostModels = []string{"host", "max"}

// typeFromQEMU takes the processors' type from -cpu.
func (f *launchFlags) typeFromQEMU(l *qemu.CommandLine, taken map[string]bool) error {
	for _, flag := range []string{"vcpu-type", "vcpu-sig", "vcpu-family", "vcpu-model", "vcpu-stepping"} {
		if f.given(flag) {
			return nil
		}
	}
	s := l.Signature
	all := s.Family >= 0 && s.Model >= 0 && s.Stepping >= 0
	switch {
	case all:
	case l.CPU == "":
		return usagef("%s: no -cpu: give --vcpu-type", f.qemuArgs)
	case slices.Contains(hostModels, l.CPU):
		return usagef("%s: -cpu %s: its signature is the host's: give --vcpu-sig, CPUID Fn1 EAX of the host", f.qemuArgs, l.CPU)
	}
	if !all {
		cpu, err := snp.FindCPU(l.CPU)
		if err != nil {
			return usagef("%s: -cpu: %w", f.qemuArgs, err)
		}
		if s == (qemu.CPUSignature{Family: -1, Model: -1, Stepping: -1}) {
			f.types, taken["vcpu-type"] = []string{cpu.Name}, true
			return nil
		}
		family, model, stepping := signatureParts(cpu.Signature)
		s = qemu.CPUSignature{Family: either(s.Family, family), Model: either(s.Model, model), Stepping: either(s.Stepping, stepping)}
	}
	f.family, f.model, f.stepping = s.Family, s.Model, s.Stepping
	taken["vcpu-family"], taken["vcpu-model"], taken["vcpu-stepping"] = true, true, true
	return nil
}

func either(property, ofModel int) int {
	if property >= 0 {
		return property
	}
	return ofModel
}

// signatureParts splits CPUID Fn1 EAX: APM volume 3, appendix E.
func signatureParts(sig uint32) (family, model, stepping int) {
	family = int(sig>>8&0xf + sig>>20&0xff)
	return family, int(sig>>4&0xf | sig>>16&0xf<<4), int(sig & 0xf)
}

// Properties of sev-snp-guest that are in SEV_FEATURES, and what they set there:
// APM volume 2, table B-4.
var featureProperties = []struct {
	name string
	bit  uint64
}{{"debug-swap", 1 << 5}, {"secure-tsc", 1 << 9}}

// guestFromQEMU takes what the guest's object says of an SNP guest.
func (f *launchFlags) guestFromQEMU(g *qemu.GuestObject, set func(flag string, to *string, value string)) error {
	if policy, ok, err := g.Uint("policy"); err != nil {
		return err
	} else if ok {
		set("policy", &f.block.policyText, fmt.Sprintf("%#x", policy))
	}
	const active = 1 // bit 0: SNP
	features := uint64(active)
	for _, p := range featureProperties {
		on, err := g.Bool(p.name)
		if err != nil {
			return err
		}
		if on {
			features |= p.bit
		}
	}
	if features != active {
		set("guest-features", &f.features, fmt.Sprintf("%#x", features))
	}
	if text, ok := g.Text("host-data"); ok {
		host, err := snp.ParseHostData(text)
		if err != nil {
			return err
		}
		f.note("host data, as the report shows it: %s", host)
	}
	return f.blockFromQEMU(g, set)
}

// blockFromQEMU takes what the report will show from the ID block, and keeps the
// block to compare its digest.
func (f *launchFlags) blockFromQEMU(g *qemu.GuestObject, set func(flag string, to *string, value string)) error {
	raw, err := g.Bytes("id-block")
	if err != nil || raw == nil {
		return err
	}
	if f.block.given, err = snp.ParseIDBlock(raw); err != nil {
		return err
	}
	b := f.block.given
	set("family-id", &f.block.familyID, fmt.Sprintf("%x", b.FamilyID))
	set("image-id", &f.block.imageID, fmt.Sprintf("%x", b.ImageID))
	if !f.given("guest-svn") {
		f.block.svn = b.SVN
	}
	return nil
}

// verifyBlock checks the signature of the ID block, as the processor will.
func (f *launchFlags) verifyBlock(g *qemu.GuestObject) error {
	auth, err := g.Bytes("id-auth")
	switch {
	case err != nil:
		return usagef("%s: %w", f.qemuArgs, err)
	case auth == nil || f.block.given == nil:
		return nil
	}
	if err := snp.VerifyIDAuth(f.block.given, auth); err != nil {
		return mismatchError{fmt.Errorf("%s: %w", f.qemuArgs, err)}
	}
	return nil
}

// launchProperties are those of SEV guests that are taken, or that no digest
// depends on.
var launchProperties = []string{
	"policy", "kernel-hashes", "host-data", "id-block", "id-auth", "debug-swap", "secure-tsc", "tsc-frequency", "author-key-enabled",
	"vcek-disabled", "cbitpos", "reduced-phys-bits", "sev-device", "guest-visible-workarounds", "dh-cert-file", "session-file", "handle",
	"legacy-vm-type",
}

// noteRest says what of the command line was not looked at.
func (f *launchFlags) noteRest(l *qemu.CommandLine, g *qemu.GuestObject) {
	if u := g.Unknown(launchProperties...); len(u) > 0 {
		slices.Sort(u)
		f.note("%s: not known: %s", g.Type, strings.Join(u, ", "))
	}
	if names := optionNames(l.Rest); len(names) > 0 {
		f.note("not looked at, for the digest does not depend on it: %s", strings.Join(names, " "))
	}
}

// optionNames lists each option once.
func optionNames(options []qemu.Option) (out []string) {
	for _, o := range options {
		name := "-" + o.Name
		if o.Name == "" {
			name = fmt.Sprintf("%q", o.Value)
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// fromQEMU fills in what no flag says from the command line of --qemu-args.
func (f *tdFlags) fromQEMU() error {
	l, err := readQEMUArgs(f.qemuArgs)
	if err != nil {
		return err
	}
	g, err := guestOf(f.qemuArgs, l, measure.PlatformTDX)
	if err != nil {
		return err
	}
	user := f.given
	taken := map[string]bool{}
	f.given = func(flag string) bool { return user(flag) || taken[flag] }
	if !user("ovmf") {
		f.ovmf = l.Firmware
	}
	if l.Kernel != "" && !f.booted() {
		f.kernelFromQEMU(l, taken)
	}
	if f.booted() {
		f.shapeFromQEMU(l)
	} else {
		f.note("no -kernel: the RTMRs need --disk, the disk that the guest boots from as a raw file")
	}
	if err := f.factsFromQEMU(g); err != nil {
		return usagef("%s: %w", f.qemuArgs, err)
	}
	f.noteRest(l, g)
	return nil
}

func (f *tdFlags) note(format string, a ...any) {
	f.notes = append(f.notes, f.qemuArgs+": "+fmt.Sprintf(format, a...))
}

// kernelFromQEMU takes what -kernel boots, which is a UKI or a bzImage.
func (f *tdFlags) kernelFromQEMU(l *qemu.CommandLine, taken map[string]bool) {
	if l.Initrd == "" && l.Append == nil && isUKI(l.Kernel) {
		f.uki = l.Kernel
		return
	}
	f.kernel = l.Kernel
	if l.Initrd != "" && !f.given("initrd") {
		f.initrd, taken["initrd"] = l.Initrd, true
	}
	if l.Append != nil && !f.given("append") {
		f.cmdline, taken["append"] = *l.Append, true
	}
}

// isUKI tells a unified kernel image from a bare kernel by its .linux section. A
// file that cannot be read is neither; who opens it next says why.
func isUKI(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		return false
	}
	f, err := pe.Parse(file, fi.Size())
	return err == nil && slices.ContainsFunc(f.Sections, func(s pe.Section) bool { return s.Name == ".linux" })
}

func (f *tdFlags) shapeFromQEMU(l *qemu.CommandLine) {
	if !f.given("vcpus") {
		f.vcpus = []int{l.VCPUs}
	}
	if !f.given("memory") {
		f.memory = l.MemoryMiB
	}
	if !f.given("machine") && l.Machine != "" {
		f.machine = l.Machine
	}
}

// septVEDisable is the bit of a trust domain's attributes that QEMU has a
// property for.
const septVEDisable = 1 << 28

// factsFromQEMU takes what a quote will show of the guest's object.
func (f *tdFlags) factsFromQEMU(g *qemu.GuestObject) error {
	f.facts = &measure.TDXFacts{}
	for _, id := range []struct {
		property string
		to       *string
	}{{"mrconfigid", &f.facts.MRConfigID}, {"mrowner", &f.facts.MROwner}, {"mrownerconfig", &f.facts.MROwnerConfig}} {
		b, err := g.Bytes(id.property)
		switch {
		case err != nil:
			return err
		case b != nil && len(b) != 48:
			return fmt.Errorf("%s: %d bytes: want 48", id.property, len(b))
		case b != nil:
			*id.to = fmt.Sprintf("%x", b)
		}
	}
	attributes, said, err := g.Uint("attributes")
	if err != nil {
		return err
	}
	if _, ok := g.Text("sept-ve-disable"); ok {
		on, err := g.Bool("sept-ve-disable")
		if err != nil {
			return err
		}
		if attributes &^= septVEDisable; on {
			attributes |= septVEDisable
		}
	}
	if said {
		f.facts.Attributes = measure.Bits(attributes)
	}
	return nil
}

// noteRest says what of the command line was not looked at.
func (f *tdFlags) noteRest(l *qemu.CommandLine, g *qemu.GuestObject) {
	unknown := g.Unknown("mrconfigid", "mrowner", "mrownerconfig", "attributes", "sept-ve-disable")
	unknown = slices.DeleteFunc(unknown, func(s string) bool { return strings.HasPrefix(s, "quote-generation-") })
	if len(unknown) > 0 {
		slices.Sort(unknown)
		f.note("%s: not known: %s", g.Type, strings.Join(unknown, ", "))
	}
	if names := optionNames(l.Rest); len(names) > 0 && f.booted() {
		f.note("not looked at, though devices are in the ACPI tables and boot entries that RTMR 0 covers: %s", strings.Join(names, " "))
	}
}
