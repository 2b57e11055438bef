package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/tdx"
	"github.com/plinth-os/plinth/qemu"
)

const measureTDXLong = `Computes MRTD, the digest of a trust domain's firmware, and with what is booted the
run-time registers RTMR 0 to 3, under QEMU and OVMF. What is booted is one of:
--disk FILE (a GPT disk whose ESP has EFI/BOOT/BOOTX64.EFI), --uki FILE (a UKI given
to QEMU as -kernel), or --kernel FILE with --initrd and --append.

MRTD depends on the firmware file alone, and on whether the VMM measures each page
as it adds it or all pages of a section after it has added them. --order says which,
or --vmm from which it is known; else both values are given.

RTMR 0 covers memory size, variables, and the ACPI tables that QEMU makes. These are
read from --acpi-loader, --acpi-rsdp and --acpi-tables (etc/table-loader,
etc/acpi/rsdp and etc/acpi/tables of fw_cfg, as the firmware read them), or asked of
--qemu BINARY with a machine as "plinth boot" gives it, which is paused and runs no
guest, or taken from a platform record. Without any of them RTMR 0 is not known, and
firmware since edk2 2025.05 has the SMBIOS tables in it too, from a record. RTMR 1
covers boot programs and partitions, RTMR 2 command line, initrd and the sections of
a UKI; RTMR 3 is zero until the guest extends it.

--expect mrtd=DIGEST or rtmr1=DIGEST compares (exit code 7). --qemu-args FILE reads
firmware, kernel, machine, processors and memory from a QEMU command line; flags
beat it, and a disk is named by --disk.`

const measureTDXExample = `  plinth measure tdx --ovmf OVMF.inteltdx.fd
  plinth measure tdx --ovmf OVMF.inteltdx.fd --disk image.raw --vcpus 2 --memory 2048 --vmm 'qemu 10.1.0' --explain
  plinth measure tdx --qemu-args guest.sh --qemu qemu-system-x86_64 --json
  plinth measure tdx --ovmf OVMF.inteltdx.fd --expect mrtd="$(cat mrtd-of-the-quote)"`

// tdFlags are the flags of measure tdx.
type tdFlags struct {
	given func(flag string) bool

	ovmf, disk, uki, kernel, initrd, cmdline string
	machine, vmm, order                      string
	vcpus                                    []int
	memory                                   int
	loader, rsdp, tables, qemu, records      string
	qemuArgs                                 string
	expect                                   []string
	explain                                  bool

	facts *measure.TDXFacts // from a QEMU command line
	notes []string
}

func newMeasureTDX(c *common) *cobra.Command {
	f := &tdFlags{}
	cmd := &cobra.Command{
		Use:     "tdx",
		Short:   "Compute MRTD and the RTMRs of a trust domain",
		Long:    measureTDXLong,
		Example: measureTDXExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.measureTDX(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	f.given = fl.Changed
	fl.StringVar(&f.ovmf, "ovmf", "", "firmware file, the whole of it, with TDX metadata")
	fl.StringVar(&f.disk, "disk", "", "raw disk that is booted")
	fl.StringVar(&f.uki, "uki", "", "UKI that QEMU gets as -kernel")
	fl.StringVar(&f.kernel, "kernel", "", "bzImage that QEMU gets as -kernel")
	fl.StringVar(&f.initrd, "initrd", "", "initrd that QEMU gets as -initrd")
	fl.StringVar(&f.cmdline, "append", "", "command line that QEMU gets as -append")
	fl.StringVar(&f.machine, "machine", "q35", "QEMU machine type")
	fl.StringVar(&f.vmm, "vmm", "", `VMM and version, as "qemu 10.1.0" or "gce"`)
	fl.StringVar(&f.order, "order", "", "order of adding and measuring pages: single-pass or two-pass (default: that of --vmm, else both)")
	fl.IntSliceVar(&f.vcpus, "vcpus", []int{1}, "number of virtual CPUs; a list, repeatable")
	fl.IntVar(&f.memory, "memory", 1024, "memory in MiB")
	fl.StringVar(&f.loader, "acpi-loader", "", "QEMU's etc/table-loader")
	fl.StringVar(&f.rsdp, "acpi-rsdp", "", "QEMU's etc/acpi/rsdp")
	fl.StringVar(&f.tables, "acpi-tables", "", "QEMU's etc/acpi/tables")
	fl.StringVar(&f.qemu, "qemu", "", "QEMU to ask for these three files")
	fl.StringVar(&f.records, "platform", "", "file of platform records")
	fl.StringVar(&f.qemuArgs, "qemu-args", "", "file with a QEMU command line to take all of this from")
	fl.StringArrayVar(&f.expect, "expect", nil, "REGISTER=DIGEST in hex or base64; repeatable")
	fl.BoolVar(&f.explain, "explain", false, "print the sections or events behind each value")
	refuseFlags(cmd, map[string]string{
		"vcpu-type": noType, "vcpu-sig": noType, "vcpu-family": noType, "vcpu-model": noType, "vcpu-stepping": noType,
		"vmm-type": "use --vmm", "guest-features": notTDX, "snp-ovmf-hash": notTDX, "svsm": notTDX, "dump-vmsa": notTDX, "host-era": notTDX,
		"policy": notTDX, "mode": noMode,
	})
	return cmd
}

const (
	noType = "no register of a trust domain depends on the processors' type"
	notTDX = "only AMD's platforms have that"
)

func (c *common) measureTDX(ctx context.Context, f *tdFlags) error {
	if f.qemuArgs != "" {
		if err := f.fromQEMU(); err != nil {
			return err
		}
	}
	if err := f.check(); err != nil {
		return err
	}
	expected, err := parseExpected(f.expect)
	if err != nil {
		return err
	}
	code, err := os.ReadFile(f.ovmf)
	if err != nil {
		return err
	}
	m, err := f.document(ctx, c, code)
	if err != nil {
		return err
	}
	if err := c.printTD(f, m); err != nil {
		return err
	}
	return f.expectation(code, m, expected)
}

func (f *tdFlags) booted() bool { return f.disk != "" || f.uki != "" || f.kernel != "" }

// check refuses what makes no sense together. It comes after --qemu-args.
func (f *tdFlags) check() error {
	if f.ovmf == "" {
		return usagef("--ovmf is needed")
	}
	if f.order != "" && !slices.Contains(tdx.Orders, tdx.Order(f.order)) {
		return usagef("--order is %q: want one of %q", f.order, tdx.Orders)
	}
	one := 0
	for _, s := range []string{f.disk, f.uki, f.kernel} {
		if s != "" {
			one++
		}
	}
	if one > 1 {
		return usagef("one of --disk, --uki and --kernel is wanted, not %d", one)
	}
	if f.kernel == "" && (f.given("initrd") || f.given("append")) {
		return usagef("--initrd and --append go with --kernel; a UKI has its own")
	}
	if !f.booted() {
		for _, name := range []string{"vcpus", "memory", "machine", "acpi-loader", "acpi-rsdp", "acpi-tables", "qemu", "platform"} {
			if f.given(name) {
				return usagef("--%s goes with --disk, --uki or --kernel: MRTD does not depend on it", name)
			}
		}
	}
	return f.checkTables()
}

func (f *tdFlags) checkTables() error {
	files := 0
	for _, s := range []string{f.loader, f.rsdp, f.tables} {
		if s != "" {
			files++
		}
	}
	switch {
	case files != 0 && files != 3:
		return usagef("--acpi-loader, --acpi-rsdp and --acpi-tables go together")
	case files != 0 && f.qemu != "":
		return usagef("--qemu and --acpi-tables exclude each other")
	case files != 0 && len(f.vcpus) > 1:
		return usagef("--acpi-tables are of one number of --vcpus")
	}
	return nil
}

// document computes MRTD, and the RTMRs if it is said what is booted.
func (f *tdFlags) document(ctx context.Context, c *common, code []byte) (m *measure.Measurements, err error) {
	inputs := &inputList{wanted: c.json}
	inputs.bytes("firmware", code)
	if f.booted() {
		m, err = f.predict(ctx, code, inputs)
	} else {
		m, err = f.onlyMRTD(code)
	}
	if err != nil {
		return nil, err
	}
	m.Inputs, m.TDX = inputs.all, f.facts
	m.Notes = append(m.Notes, f.notes...)
	return m, nil
}

// onlyMRTD is the document for a firmware that starts nothing in particular.
func (f *tdFlags) onlyMRTD(code []byte) (*measure.Measurements, error) {
	orders := f.orders()
	v := measure.Value{Platform: measure.PlatformTDX, Register: "mrtd", Bank: "sha384", Provenance: measure.Predicted, Events: []measure.EventRef{}}
	for _, o := range orders {
		ranges, err := tdx.ExplainMRTD(code, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.ovmf, err)
		}
		v.OneOf = append(v.OneOf, hex.EncodeToString(ranges[len(ranges)-1].Digest[:]))
		if f.explain && o == orders[0] {
			v.Events = sectionEvents(ranges)
		}
	}
	if len(orders) == 1 {
		v.Value, v.OneOf = v.OneOf[0], nil
	} else {
		v.Provenance, v.Reason = measure.OneOf, fmt.Sprintf("%s, or %s: it depends on the VMM", orders[0], orders[1])
	}
	m := &measure.Measurements{Schema: 1, Machines: []measure.Shape{{}}, Notes: []string{}, Values: []measure.Value{v}}
	m.Versions.VMM = f.vmm
	return m, nil
}

func (f *tdFlags) orders() []tdx.Order {
	if f.order != "" {
		return []tdx.Order{tdx.Order(f.order)}
	}
	if o, known := tdx.OrderFor(f.vmm); known {
		return []tdx.Order{o}
	}
	return tdx.Orders
}

// sectionEvents are the sections behind MRTD, each with the digest after it.
func sectionEvents(ranges []tdx.PageRange) (out []measure.EventRef) {
	for _, r := range ranges {
		out = append(out, measure.EventRef{
			Name: fmt.Sprintf("%#x, %d pages", r.GPA, r.Pages), Type: string(r.Treatment), Digest: hex.EncodeToString(r.Digest[:]),
			Source: fmt.Sprintf("TDX metadata %d: %v", r.Section, r.Type),
		})
	}
	return out
}

// predict folds the events of the boot, for each number of processors.
func (f *tdFlags) predict(ctx context.Context, code []byte, inputs *inputList) (*measure.Measurements, error) {
	b := measure.Boot{Vars: code, Banks: []eventlog.Alg{eventlog.SHA384}, Cmdline: f.cmdline}
	meta, err := ovmf.ReadMetadata(code)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.ovmf, err)
	}
	if b.Firmware, err = measure.DigestFirmware(code, b.Banks); err != nil {
		return nil, fmt.Errorf("%s: %w", f.ovmf, err)
	}
	b.TD = &measure.TD{Metadata: meta, Firmware: code, Order: tdx.Order(f.order)}
	if f.records != "" {
		r, err := builder.ReadRecords(f.records)
		if err != nil {
			return nil, err
		}
		if b.Records, err = measure.ParseRecords(r); err != nil {
			return nil, err
		}
	}
	i := &image{}
	defer i.close()
	if err := f.open(i, &b, inputs); err != nil {
		return nil, err
	}
	var all []*measure.Prediction
	for _, n := range f.vcpus {
		if b.TD.Tables, err = f.acpi(ctx, n, inputs); err != nil {
			return nil, err
		}
		b.Machine = builder.MeasuredMachine(builder.Machine{Type: f.machine, VCPUs: []int{n}, Memory: f.memory}, n)
		b.Machine.VMM = f.vmm
		p, err := measure.Predict(&b)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return measure.NewMeasurements("", all...)
}

// open opens what is booted.
func (f *tdFlags) open(i *image, b *measure.Boot, inputs *inputList) (err error) {
	section := func(name, path string) (s *io.SectionReader, err error) {
		if s, err = i.section(path); err == nil {
			err = inputs.section(name, s)
		}
		return s, err
	}
	switch {
	case f.disk != "":
		b.Disk, err = section("disk", f.disk)
	case f.uki != "":
		b.UKI, err = section("uki", f.uki)
	default:
		if b.Kernel, err = section("kernel", f.kernel); err == nil && f.initrd != "" {
			b.Initrd, err = section("initrd", f.initrd)
		}
		if f.given("append") {
			inputs.bytes("cmdline", []byte(f.cmdline))
		}
	}
	return err
}

// acpi returns QEMU's files from where the flags say; nil without any.
func (f *tdFlags) acpi(ctx context.Context, vcpus int, inputs *inputList) (*measure.Tables, error) {
	var t measure.Tables
	switch {
	case f.qemu != "":
		m := qemu.Machine{Binary: f.qemu, Type: f.machine, VCPUs: vcpus, MemoryMiB: f.memory, Disk: f.disk, Kernel: f.kernel, Initrd: f.initrd, Append: f.cmdline}
		if f.uki != "" {
			m.Kernel = f.uki
		}
		var err error
		t.Loader, t.RSDP, t.Tables, err = qemu.Tables(ctx, m, qemu.Layout{TD: true})
		t.Source = f.qemu + " asked by qtest"
		return &t, err
	case f.tables == "":
		return nil, nil
	}
	t.Source = f.tables
	for _, file := range []struct {
		name, path string
		to         *[]byte
	}{{"acpi-loader", f.loader, &t.Loader}, {"acpi-rsdp", f.rsdp, &t.RSDP}, {"acpi-tables", f.tables, &t.Tables}} {
		b, err := os.ReadFile(file.path)
		if err != nil {
			return nil, err
		}
		*file.to = b
		inputs.bytes(file.name, b)
	}
	return &t, nil
}

func (c *common) printTD(f *tdFlags, m *measure.Measurements) error {
	if !c.json {
		c.printNotes(m)
	}
	return c.printMeasurements(m, []string{"sha384"}, f.explain)
}

// registerDigest is what --expect of measure tdx names.
type registerDigest struct{ register, digest string }

func parseExpected(texts []string) (out []registerDigest, err error) {
	for _, s := range texts {
		register, digest, ok := strings.Cut(s, "=")
		if !ok || !slices.Contains(tdRegisters, register) {
			return nil, usagef("--expect is %q: want REGISTER=DIGEST, and one of %q", s, tdRegisters)
		}
		d, err := parseDigests([]string{digest}, 48)
		if err != nil {
			return nil, err
		}
		out = append(out, registerDigest{register, d[0]})
	}
	return out, nil
}

var tdRegisters = []string{"mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"}

// expectation compares the values with what --expect names.
func (f *tdFlags) expectation(code []byte, m *measure.Measurements, expected []registerDigest) error {
	var all []error
	for _, e := range expected {
		found := slices.ContainsFunc(m.Values, func(v measure.Value) bool {
			return v.Register == e.register && (v.Value == e.digest || slices.Contains(v.OneOf, e.digest))
		})
		if !found {
			all = append(all, fmt.Errorf("%s is not the expected %s%s", e.register, e.digest, f.whyNot(code, e)))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return mismatchError{errors.Join(all...)}
}

// whyNot looks for the order in which the expected MRTD was made.
func (f *tdFlags) whyNot(code []byte, e registerDigest) string {
	if e.register != "mrtd" {
		if !f.booted() {
			return ": it is not computed without --disk, --uki or --kernel"
		}
		return ""
	}
	for _, o := range tdx.Orders {
		if d, err := tdx.MRTD(code, o); err == nil && hex.EncodeToString(d[:]) == e.digest {
			return fmt.Sprintf("; it is that of --order %s", o)
		}
	}
	return "; it is not that of the other order either: the firmware is another"
}
