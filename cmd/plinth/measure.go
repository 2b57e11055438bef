package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
)

func newMeasure(c *common) *cobra.Command {
	return group(&cobra.Command{
		Use:   "measure",
		Short: "Predict what a boot will measure, from files alone",
	}, newMeasureSNP(c), newMeasureSEVES(c), newMeasureSEV(c), newMeasureTDX(c), newMeasurePCR(c), newMeasureImage(c), newMeasureLog(c), newMeasureHash(c))
}

// pcrFlags name the files of a boot that no profile describes.
type pcrFlags struct {
	ovmf, nvram, uki, kernel, initrd, cmdline, disk, records string
	machine, vmm                                             string
	vcpus, memory                                            int
	banks, phases                                            []string
	explain                                                  bool
}

func newMeasurePCR(c *common) *cobra.Command {
	f := &pcrFlags{}
	cmd := &cobra.Command{
		Use:   "pcr",
		Short: "Predict TPM PCRs from firmware, variables and what is booted",
		Long: `Predicts every PCR of a boot under QEMU and OVMF. What is booted is one of:
--disk FILE (a GPT disk whose ESP has EFI/BOOT/BOOTX64.EFI), --uki FILE (a UKI
given to QEMU as -kernel), or --kernel FILE with --initrd and --append.`,
		Example: "  plinth measure pcr --ovmf OVMF_CODE_4M.fd --nvram OVMF_VARS_4M.fd --disk image.raw\n  plinth measure pcr --ovmf CODE.fd --nvram VARS.fd --kernel vmlinuz --initrd initrd --append 'quiet' --memory 2048 --bank sha384",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return c.measurePCR(f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.ovmf, "ovmf", "", "firmware code file")
	fl.StringVar(&f.nvram, "nvram", "", "firmware variables file")
	fl.StringVar(&f.disk, "disk", "", "raw disk that is booted")
	fl.StringVar(&f.uki, "uki", "", "UKI that QEMU gets as -kernel")
	fl.StringVar(&f.kernel, "kernel", "", "bzImage that QEMU gets as -kernel")
	fl.StringVar(&f.initrd, "initrd", "", "initrd that QEMU gets as -initrd")
	fl.StringVar(&f.cmdline, "append", "", "command line that QEMU gets as -append")
	fl.StringVar(&f.machine, "machine", "q35", "QEMU machine type")
	fl.StringVar(&f.vmm, "vmm", "", `VMM and version, as "qemu 7.2.22"`)
	fl.IntVar(&f.vcpus, "vcpus", 1, "virtual CPUs")
	fl.IntVar(&f.memory, "memory", 1024, "memory in MiB")
	fl.StringArrayVar(&f.banks, "bank", []string{"sha256"}, "PCR bank: sha1, sha256, sha384 or sha512; repeatable")
	fl.StringArrayVar(&f.phases, "phase", nil, "boot phase that the guest extends into PCR 11; repeatable, in order")
	fl.StringVar(&f.records, "platform", "", "file of platform records")
	fl.BoolVar(&f.explain, "explain", false, "print the events behind each value")
	return cmd
}

func (c *common) measurePCR(f *pcrFlags) error {
	i := &image{}
	defer i.close()
	b, err := f.boot(c, i)
	if err != nil {
		return err
	}
	p, err := measure.Predict(&b)
	if err != nil {
		return err
	}
	m, err := measure.NewMeasurements("", p)
	if err != nil {
		return err
	}
	return c.printMeasurements(m, f.banks, f.explain)
}

// boot checks that the flags name one boot and opens its files.
func (f *pcrFlags) boot(c *common, i *image) (b measure.Boot, err error) {
	booted := 0
	for _, s := range []string{f.disk, f.uki, f.kernel} {
		if s != "" {
			booted++
		}
	}
	switch {
	case f.ovmf == "" || f.nvram == "":
		return b, usagef("--ovmf and --nvram are needed")
	case booted != 1:
		return b, usagef("one of --disk, --uki and --kernel is needed")
	case f.kernel == "" && (f.initrd != "" || f.cmdline != ""):
		return b, usagef("--initrd and --append go with --kernel; a UKI has its own")
	}
	if b.Banks, err = parseBanks(f.banks); err != nil {
		return b, err
	}
	code, err := os.ReadFile(f.ovmf)
	if err != nil {
		return b, err
	}
	if b.Firmware, err = measure.DigestFirmware(code, b.Banks); err != nil {
		return b, fmt.Errorf("%s: %w", f.ovmf, err)
	}
	if b.Vars, err = os.ReadFile(f.nvram); err != nil {
		return b, err
	}
	if f.records != "" {
		r, err := builder.ReadRecords(f.records)
		if err != nil {
			return b, err
		}
		if b.Records, err = measure.ParseRecords(r); err != nil {
			return b, err
		}
	}
	m := builder.Machine{Type: f.machine, VCPUs: []int{f.vcpus}, Memory: f.memory}
	b.Machine = builder.MeasuredMachine(m, f.vcpus)
	b.Machine.VMM = f.vmm
	b.Phases, b.Cmdline = f.phases, f.cmdline
	return b, f.open(i, &b)
}

func (f *pcrFlags) open(i *image, b *measure.Boot) (err error) {
	switch {
	case f.disk != "":
		b.Disk, err = i.section(f.disk)
	case f.uki != "":
		b.UKI, err = i.section(f.uki)
	default:
		if b.Kernel, err = i.section(f.kernel); err == nil && f.initrd != "" {
			b.Initrd, err = i.section(f.initrd)
		}
	}
	return err
}

func newMeasureImage(c *common) *cobra.Command {
	var banks []string
	var explain bool
	var initdata string
	f := &bootFlags{accel: "auto"}
	cmd := &cobra.Command{
		Use:   "image DIR|PROFILE",
		Short: "Predict the registers of a built image from its files",
		Long:  "Predicts from the files in DIR (or out/PROFILE) as they are now, not from measurements.json.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			algs, err := imageBanks(banks)
			if err != nil {
				return err
			}
			dir := a[0]
			if _, err := os.Stat(filepath.Join(dir, export.ManifestName)); err != nil {
				dir = filepath.Join("out", a[0])
			}
			img, err := c.image(dir, f)
			if err != nil {
				return err
			}
			img.initdata = initdata
			m, err := img.predict(img.manifest.Records, algs)
			if err != nil {
				return err
			}
			return c.printMeasurements(m, banks, explain)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&banks, "bank", []string{"sha256"}, "PCR bank to print; repeatable")
	fl.BoolVar(&explain, "explain", false, "print the events behind each value")
	fl.StringVar(&f.path, "path", "", "how the guest is started: disk, uki or kernel (default: the profile's)")
	fl.IntVar(&f.vcpus, "vcpus", 0, "virtual CPUs (default: the profile's)")
	fl.IntVar(&f.memory, "memory", 0, "memory in MiB (default: the profile's)")
	fl.StringVar(&initdata, "initdata", "", "initdata that the guest is given: says PCR 8, HOSTDATA or MRCONFIGID (default: the profile's)")
	return cmd
}

func parseBanks(names []string) ([]eventlog.Alg, error) {
	var banks []eventlog.Alg
	for _, name := range names {
		bank, err := eventlog.ParseAlg(name)
		if err != nil {
			return nil, usageError{err}
		}
		banks = append(banks, bank)
	}
	return banks, nil
}

// imageBanks are those of an image whose firmware's digests are in the store.
func imageBanks(names []string) ([]eventlog.Alg, error) {
	banks, err := parseBanks(names)
	for _, b := range banks {
		if !slices.Contains(builder.Banks, b) {
			return nil, usagef("--bank is %q: an image has sha1, sha256 and sha384", b)
		}
	}
	return banks, err
}

func newMeasureLog(c *common) *cobra.Command {
	var cc bool
	cmd := &cobra.Command{
		Use:   "eventlog FILE",
		Short: "Print an event log, the registers that it replays to, and what they hold",
		Long: `Prints the events of a TCG log (/sys/kernel/security/tpm0/binary_bios_measurements)
or of a CC log (/sys/firmware/acpi/tables/data/CCEL), the registers that they lead
to from a reset, and what each register stands for.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			v, err := readLog(a[0], cc)
			if err != nil {
				return fmt.Errorf("%s: %w", a[0], err)
			}
			if c.json {
				return printJSON(c.env.stdout, v)
			}
			return v.text(c.env.stdout)
		},
	}
	cmd.Flags().BoolVar(&cc, "cc", false, "read it as a CC log, which td-shim's does not show by itself")
	return cmd
}

func readLog(path string, cc bool) (viewer, error) {
	f, size, err := openSized(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !cc {
		return inspectLog(f, size)
	}
	b, err := readAll(f, size, maxLogFile)
	if err != nil {
		return nil, err
	}
	l, err := eventlog.ParseCC(b)
	if err != nil {
		return nil, err
	}
	return viewLog(l)
}

// printMeasurements prints the values, of a TPM those of the given banks.
func (c *common) printMeasurements(m *measure.Measurements, banks []string, explain bool) error {
	if c.json {
		b, err := m.Marshal()
		if err != nil {
			return err
		}
		_, err = c.env.stdout.Write(b)
		return err
	}
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for _, v := range m.Values {
		if v.Platform == measure.PlatformTPM && !slices.Contains(banks, v.Bank) {
			continue
		}
		value := v.Value
		if value == "" {
			value = strings.Join(v.OneOf, " or ")
		}
		if value == "" {
			value = "(" + v.Reason + ")"
		}
		if v.Phase != "" {
			value += "\tafter " + v.Phase
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", where(&v), v.Provenance, value)
		if explain {
			for _, e := range v.Events {
				fmt.Fprintf(t, "\t\t  %s  %s\n", short(e.Digest), strings.TrimSpace(e.Name+"  "+e.Source))
			}
		}
	}
	printFacts(t, m)
	return t.Flush()
}

// printFacts prints what the host sets at launch and evidence repeats, where it is
// known.
func printFacts(w io.Writer, m *measure.Measurements) {
	if m.SNP != nil && m.SNP.HostData != "" {
		fmt.Fprintf(w, "host_data\t%s\t%s\n", measure.Predicted, m.SNP.HostData)
	}
	if m.TDX != nil && m.TDX.MRConfigID != "" {
		fmt.Fprintf(w, "mr_config_id\t%s\t%s\n", measure.Predicted, m.TDX.MRConfigID)
	}
}

// where names a register, and the machine shape when the value is only for one.
func where(v *measure.Value) string {
	switch {
	case v.Shape == nil:
		return v.Register
	case v.CPU != "": // a launch digest does not depend on the memory
		return fmt.Sprintf("%s (%d vCPU, %s)", v.Register, v.Shape.VCPUs, v.CPU)
	}
	return fmt.Sprintf("%s (%d vCPU, %d MiB)", v.Register, v.Shape.VCPUs, v.Shape.MemoryMiB)
}

// printMeasurementsOf prints what a build predicted, in the bank that policies use.
func (c *common) printMeasurementsOf(b *built) error {
	m, err := readMeasurements(b.dir)
	if err != nil {
		return err
	}
	return c.printMeasurements(m, []string{"sha256"}, c.verbose)
}

// printReport prints the registers that a guest reported.
func (c *common) printReport(r *evidence.Report) error {
	for reg := range 24 {
		if v, ok := r.After["sha256"][reg]; ok {
			fmt.Fprintf(c.env.stdout, "pcr%-3d %s\n", reg, v)
		}
	}
	for _, s := range r.Services {
		fmt.Fprintf(c.env.stdout, "service %s: %s (pid %d)\n", s.Name, s.State, s.PID)
	}
	return nil
}

// printCheck prints a line a register and phase, with the banks that share the
// verdict, and under one that differs the events.
func (c *common) printCheck(r *measure.CheckResult, root *builder.RootCheck) error {
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for i := 0; i < len(r.Registers); {
		x := r.Registers[i]
		banks := []string{x.Bank}
		for i++; i < len(r.Registers) && sameVerdict(x, r.Registers[i]); i++ {
			banks = append(banks, r.Registers[i].Bank)
		}
		note := x.Reason
		if x.Phase != "" {
			note = strings.TrimSpace("after " + x.Phase + "  " + note)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", x.Register, x.Verdict, x.Provenance, strings.Join(banks, " "), note)
		for _, d := range x.Differences {
			fmt.Fprintf(t, "\t  %s\n", d)
		}
		if x.Verdict == measure.Mismatch || x.Verdict == measure.LogMismatch {
			fmt.Fprintf(t, "\t  want %s\n\t  got  %s\n", strings.Join(x.Want, " or "), x.Got)
		}
	}
	printRoot(t, root)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintf(c.env.stdout, "note: %s\n", n)
	}
	return nil
}

// sameVerdict tells whether two rows are the same register in two banks, with
// nothing to tell them apart but the digests.
func sameVerdict(a, b measure.RegisterCheck) bool {
	good := a.Verdict != measure.Mismatch && a.Verdict != measure.LogMismatch
	return good && a.Register == b.Register && a.Phase == b.Phase && a.Verdict == b.Verdict
}
