package main

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
)

// measureLaunch is measure snp, seves and sev.
func (c *common) measureLaunch(f *launchFlags) error {
	if f.qemuArgs != "" {
		if err := f.fromQEMU(); err != nil {
			return err
		}
	}
	if err := f.check(); err != nil {
		return err
	}
	expected, err := parseDigests(f.expect, f.digestSize())
	if err != nil {
		return err
	}
	l, err := f.load(c.json)
	if err != nil {
		return err
	}
	m, err := f.document(l)
	if err != nil {
		return err
	}
	if err := f.writeFiles(l, m); err != nil {
		return err
	}
	if err := c.printLaunch(f, m); err != nil {
		return err
	}
	return errorsOf(f.expectation(l, m, expected), f.block.verify(m))
}

// errorsOf returns the first error: a second one has nothing to add.
func errorsOf(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *launchFlags) digestSize() int {
	if f.platform == measure.PlatformSNP {
		return 48
	}
	return 32
}

// document computes all values.
func (f *launchFlags) document(l *launch) (*measure.Measurements, error) {
	var shapes []measure.Shape
	for _, n := range f.vcpus {
		shapes = append(shapes, measure.Shape{VCPUs: n})
	}
	m, err := f.values(l, shapes)
	if err != nil {
		return nil, err
	}
	m.Inputs = l.inputs.all
	m.Notes = append(m.Notes, f.notes...)
	m.Notes = append(m.Notes, f.block.notes...)
	return m, nil
}

func (f *launchFlags) values(l *launch, shapes []measure.Shape) (*measure.Measurements, error) {
	if f.platform == measure.PlatformSNP {
		return f.snpValues(l, shapes)
	}
	m := &measure.Measurements{Schema: 1, Notes: []string{}, Values: []measure.Value{}}
	if f.platform == measure.PlatformSEV {
		m.Machines = []measure.Shape{{}}
		digest, err := snp.SEV(l.firmware, l.hashes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.ovmf, err)
		}
		m.Values = append(m.Values, launchDigest(f.platform, digest[:]))
		return m, nil
	}
	m.Machine, m.Machines = shapes[0], shapes
	for i := range shapes {
		for _, p := range l.processors {
			digest, err := l.era.SEVES(l.firmware, l.hashes, snp.VCPUs{Count: shapes[i].VCPUs, Signature: p.signature})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.ovmf, err)
			}
			v := launchDigest(f.platform, digest[:])
			v.Shape, v.CPU, v.Reason = &shapes[i], p.name, "for host kernels "+l.era.Hosts
			m.Values = append(m.Values, v)
		}
	}
	return m, nil
}

// launchDigest is the value of SEV or SEV-ES.
func launchDigest(platform string, digest []byte) measure.Value {
	return measure.Value{
		Platform: platform, Register: "launch_digest", Bank: "sha256",
		Provenance: measure.Predicted, Value: hex.EncodeToString(digest), Events: []measure.EventRef{},
	}
}

func (f *launchFlags) snpValues(l *launch, shapes []measure.Shape) (*measure.Measurements, error) {
	g := &measure.SNPGuest{
		Params:   snp.Params{VMM: l.vmm, Seed: l.snp.Seed(), Hashes: l.hashes, Era: l.era, Product: f.product},
		Machines: shapes,
		Features: l.features,
		Explain:  f.explain,
		Policy:   f.block.policy,
		FamilyID: f.block.family,
		ImageID:  f.block.image,
		GuestSVN: f.block.svn,
	}
	for _, p := range l.processors {
		g.CPUs = append(g.CPUs, snp.CPU{Name: p.name, Signature: p.signature})
	}
	m, err := measure.NewSNPMeasurements("", g)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmp.Or(f.ovmf, f.seed), err)
	}
	if l.vmm != snp.QEMU {
		elsewhere(m, l.vmm)
	}
	return m, nil
}

// elsewhere takes out what is said of host kernels, which only QEMU's guests
// depend on, and says what is known of a VMM instead.
func elsewhere(m *measure.Measurements, vmm snp.VMM) {
	reason := ""
	if vmm != snp.GCE {
		reason = snp.NotConfirmable
		m.Notes = append(m.Notes, reason)
	}
	for i := range m.Values {
		m.Values[i].Reason = reason
	}
	m.SNP.Era = ""
}

// printLaunch prints one value bare, and several with what each is for.
func (c *common) printLaunch(f *launchFlags, m *measure.Measurements) error {
	if c.json {
		return c.printMeasurements(m, nil, f.explain)
	}
	c.printNotes(m)
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for _, v := range m.Values {
		fmt.Fprint(t, f.encode(v.Value))
		if len(m.Values) > 1 {
			fmt.Fprintf(t, "\t%s\t%s", plural(v.Shape.VCPUs, "vCPU"), v.CPU)
		}
		fmt.Fprintln(t)
		for _, e := range v.Events {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", f.encode(e.Digest), e.Type, e.Name, e.Source)
		}
	}
	return t.Flush()
}

// printNotes prints what is for people on stderr.
func (c *common) printNotes(m *measure.Measurements) {
	if c.quiet {
		return
	}
	for _, n := range m.Notes {
		fmt.Fprintf(c.env.stderr, "plinth: note: %s\n", n)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// encode writes a digest, which the document has in hex, as the user wants it.
func (f *launchFlags) encode(digest string) string {
	if f.format != "base64" {
		return digest
	}
	b, _ := hex.DecodeString(digest) // ours
	return base64.StdEncoding.EncodeToString(b)
}

// writeFiles writes what the flags ask for besides the values.
func (f *launchFlags) writeFiles(l *launch, m *measure.Measurements) error {
	if f.dumpHashes != "" {
		if err := builder.WriteFile(f.dumpHashes, l.snp.HashPage()); err != nil {
			return err
		}
	}
	if f.dumpVMSA != "" {
		if err := f.writeVMSA(l); err != nil {
			return err
		}
	}
	return f.block.write(l, m)
}

// vmsaNames are the files that --dump-vmsa writes.
var vmsaNames = []string{"vmsa-bsp.bin", "vmsa-ap.bin"}

// writeVMSA writes the pages of the largest machine: all others have the same, or
// lack the second.
func (f *launchFlags) writeVMSA(l *launch) error {
	if len(l.processors) > 1 {
		return usagef("--dump-vmsa goes with one --vcpu-type")
	}
	pages, err := l.snp.VMSA(snp.VCPUs{Count: slices.Max(f.vcpus), Signature: l.processors[0].signature, Features: l.features})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dumpVMSA, 0o755); err != nil {
		return err
	}
	for i, p := range pages {
		if err := builder.WriteFile(filepath.Join(f.dumpVMSA, vmsaNames[i]), p); err != nil {
			return err
		}
	}
	return nil
}
