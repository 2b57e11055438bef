package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
	"github.com/plinth-os/plinth/measure/tdx"
)

// expected reads --against and returns the directory that it is in.
func (f *evidenceFlags) expected() (m *measure.Measurements, dir string, err error) {
	if fi, err := os.Stat(f.against); err == nil && fi.IsDir() {
		m, err := readMeasurements(f.against)
		return m, f.against, err
	}
	b, err := os.ReadFile(f.against)
	if err != nil {
		return nil, "", err
	}
	if m, err = measure.ParseMeasurements(b); err != nil {
		return nil, "", mismatchError{fmt.Errorf("%s: %w", f.against, err)}
	}
	return m, filepath.Dir(f.against), nil
}

// register collects what a document says of a register in a guest that runs: with
// its workloads where they are measured into it, and else when userspace has extended
// nothing. A guest that has not measured them shows the latter, and is not what is
// expected.
func register(m *measure.Measurements, platform, name string) (out verify.Register, found bool) {
	of := func(v measure.Value) bool { return v.Platform == platform && v.Register == name }
	phase := ""
	if slices.ContainsFunc(m.Values, func(v measure.Value) bool { return of(v) && v.Phase == measure.PhaseWorkloads }) {
		phase = measure.PhaseWorkloads
	}
	var reasons []string
	for i := range m.Values {
		v := &m.Values[i]
		if !of(*v) || v.Phase != phase {
			continue
		}
		found = true
		if v.Reason != "" {
			reasons = append(reasons, v.Reason)
		}
		digests := v.OneOf
		if digests == nil && v.Value != "" {
			digests = []string{v.Value}
		}
		for j, d := range digests {
			b, _ := hex.DecodeString(d) // ParseMeasurements has looked
			out.Values = append(out.Values, verify.Value{Digest: b, Name: valueName(v, j, len(digests))})
		}
	}
	out.Reason = strings.Join(distinct(reasons), "; ")
	if !found {
		out.Reason = "the measurements have no value for it"
	}
	return out, found
}

// valueName says what the n-th of several digests of a value is for.
func valueName(v *measure.Value, n, of int) string {
	var parts []string
	if v.Shape != nil {
		parts = append(parts, plural(v.Shape.VCPUs, "vCPU"))
		if v.Platform == measure.PlatformTDX {
			parts = append(parts, fmt.Sprintf("%d MiB", v.Shape.MemoryMiB))
		}
	}
	if v.CPU != "" {
		parts = append(parts, v.CPU)
	}
	if of > 1 {
		parts = append(parts, oneOfName(v, n, of))
	}
	return strings.Join(parts, ", ")
}

// oneOfName names an alternative. Those of MRTD are the orders in which VMMs add
// and measure pages.
func oneOfName(v *measure.Value, n, of int) string {
	if v.Register == "mrtd" && of == len(tdx.Orders) {
		return string(tdx.Orders[n]) + " order"
	}
	return fmt.Sprintf("alternative %d of %d", n+1, of)
}

func distinct(in []string) (out []string) {
	seen := map[string]bool{}
	for _, s := range in {
		if !seen[s] {
			out = append(out, s)
		}
		seen[s] = true
	}
	return out
}

// expectSNP takes over what a document says of an SNP guest.
func expectSNP(o *verify.SNPOptions, m *measure.Measurements) error {
	var found bool
	if o.Measurement, found = register(m, measure.PlatformSNP, "launch_digest"); !found {
		return usagef("--against has no launch digest of an SNP guest")
	}
	if m.SNP == nil {
		return nil
	}
	policy, err := measure.ParseBits(m.SNP.Policy)
	if err != nil {
		return err
	}
	o.Policy = &policy
	if m.SNP.GuestSVN > 0 {
		o.MinGuestSVN = &m.SNP.GuestSVN
	}
	o.FamilyID, o.ImageID, o.HostData = hexOrNil(m.SNP.FamilyID), hexOrNil(m.SNP.ImageID), hexOrNil(m.SNP.HostData)
	return nil
}

// expectTDX takes over what a document says of a trust domain.
func expectTDX(o *verify.TDXOptions, m *measure.Measurements) error {
	var found bool
	if o.MRTD, found = register(m, measure.PlatformTDX, "mrtd"); !found {
		return usagef("--against has no MRTD")
	}
	for i := range o.RTMR {
		o.RTMR[i], _ = register(m, measure.PlatformTDX, fmt.Sprintf("rtmr%d", i))
	}
	if m.TDX == nil {
		return nil
	}
	for _, x := range []struct {
		text string
		to   **uint64
	}{{m.TDX.Attributes, &o.Attributes}, {m.TDX.XFAM, &o.XFAM}} {
		if x.text == "" {
			continue
		}
		n, err := measure.ParseBits(x.text)
		if err != nil {
			return err
		}
		*x.to = &n
	}
	o.MRConfigID, o.MROwner, o.MROwnerConfig = hexOrNil(m.TDX.MRConfigID), hexOrNil(m.TDX.MROwner), hexOrNil(m.TDX.MROwnerConfig)
	return nil
}

// hexOrNil decodes what the document's parser has looked at; "" is nil.
func hexOrNil(s string) []byte {
	if s == "" {
		return nil
	}
	b, _ := hex.DecodeString(s)
	return b
}

// hint says what to do about the first failure that has an answer.
func (f *evidenceFlags) hint(r *verify.Result, m *measure.Measurements, dir string) string {
	for _, x := range r.Checks {
		switch {
		case x.Name == "certificate chain" && x.Verdict == verify.NotChecked:
			return "give the certificate with --certs; the host has it, and AMD for a VCEK"
		case x.Name == "attestation key trusted" && x.Verdict == verify.NotChecked:
			return "give the attestation key of the machine's TPM with --ak, or its certificate's root with --root"
		case x.Name == "measurement" && x.Verdict == verify.Failed:
			return f.launchHint(x.Got, m, dir)
		case (x.Name == "MRTD" || strings.HasPrefix(x.Name, "RTMR")) && x.Verdict == verify.Failed:
			return "plinth measure tdx --explain lists what is measured; the guest's CC event log, with plinth measure eventlog, what was"
		}
	}
	return ""
}

// launchHint names the inputs that would give the digest of a report, when the
// firmware is there to try.
func (f *evidenceFlags) launchHint(got string, m *measure.Measurements, dir string) string {
	const how = `"plinth measure snp --expect DIGEST", with the firmware and what it boots, names the host kernels and processors that would give another digest`
	path := f.ovmf
	if path == "" {
		path = filepath.Join(dir, "firmware.fd")
	}
	firmware, err := os.ReadFile(path)
	if err != nil || m.SNP == nil {
		return how
	}
	close, err := closest(got, m, firmware)
	if err != nil {
		return fmt.Sprintf("%s; %s: %v", how, path, err)
	}
	if len(close) == 0 {
		return "no host kernel, number or type of processors gives this digest: firmware, kernel, initrd or command line is another"
	}
	var lines []string
	for _, x := range close {
		lines = append(lines, launchInputs(x))
	}
	return "the digest is that of " + strings.Join(lines, "; or of ")
}

// launchInputs writes what gives a launch digest.
func launchInputs(x snp.Candidate) string {
	parts := []string{plural(x.Count, "vCPU")}
	if i := slices.IndexFunc(snp.CPUs, func(cpu snp.CPU) bool { return cpu.Signature == x.Signature }); i >= 0 {
		parts = append(parts, "of type "+snp.CPUs[i].Name)
	}
	if x.Era.Name != "" {
		parts = append(parts, fmt.Sprintf("on %s (host era %s)", x.Era.Hosts, x.Era.Name))
	}
	parts = append(parts, fmt.Sprintf("features %#x", x.Features))
	if !x.Hashes {
		parts = append(parts, "no kernel hashes: kernel, initrd and command line are not measured")
	}
	return strings.Join(parts, ", ")
}

// closest returns what would give a digest, with the kernel of a document.
func closest(got string, m *measure.Measurements, firmware []byte) ([]snp.Candidate, error) {
	want, err := hex.DecodeString(got)
	if err != nil || len(want) != 48 {
		return nil, fmt.Errorf("%q is no launch digest", got)
	}
	p := snp.Params{VMM: snp.VMM(m.SNP.VMM), Firmware: firmware}
	if p.Era, err = snp.FindEra(m.SNP.Era); err != nil {
		return nil, err
	}
	if h := m.SNP.KernelHashes; h != nil {
		p.Hashes = &snp.Hashes{Kernel: [32]byte(hexOrNil(h.Kernel)), Initrd: [32]byte(hexOrNil(h.Initrd)), Cmdline: [32]byte(hexOrNil(h.Cmdline))}
	}
	l, err := snp.NewLaunch(p)
	if err != nil {
		return nil, err
	}
	v := snp.VCPUs{Count: m.Machine.VCPUs}
	if v.Features, err = measure.ParseBits(m.SNP.GuestFeatures); err != nil {
		return nil, err
	}
	for i := range m.Values {
		if cpu, err := snp.FindCPU(m.Values[i].CPU); err == nil {
			v.Signature = cpu.Signature
			break
		}
	}
	return l.Candidates([48]byte(want), v)
}
