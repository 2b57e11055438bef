package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/qemu"
)

// bootFlags are what plinth boot takes beyond the common flags.
type bootFlags struct {
	check, record, repredict, console bool
	accel, qemu, path                 string
	vcpus, memory                     int
	timeout                           time.Duration
	devices                           deviceFlags
}

func newBoot(c *common) *cobra.Command {
	f := &bootFlags{}
	cmd := &cobra.Command{
		Use:   "boot DIR|PROFILE",
		Short: "Boot an image under QEMU with OVMF and swtpm, and compare it with its prediction",
		Long: `Boots the image in DIR (or out/PROFILE) with a software TPM. The guest
reports its registers, its event log and its root file system over a virtio-serial
port.

--check compares them with measurements.json, register by register and event by
event, and the root file system with the image's; exit 7 names what differs. --record first boots a different image of the
same profile and writes the events that only this firmware, QEMU and machine
shape decide into NAME.platform.json, then builds again.

An image of platform snp or tdx boots under the generic OVMF of its profile, with
the same kernel, initrd, command line and UKI. --check compares what does not
depend on the firmware: the digests of a direct boot, the events of RTMR 1 and 2.
A guest with a network gets QEMU's own: an address by DHCP, and ports by --publish.
A launch digest or MRTD only the hardware can confirm; plinth verify checks its
report. --record asks QEMU for a trust domain's ACPI tables and boots nothing.`,
		Example: "  plinth boot out/vtpm --check\n  plinth boot vtpm --record --check\n  plinth boot out/tdx --check\n  plinth boot out/vtpm --console",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, a []string) error { return c.boot(cmd.Context(), a[0], f) },
	}
	c.profileFlags(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&f.check, "check", false, "compare with measurements.json")
	fl.BoolVar(&f.record, "record", false, "learn the platform's events from a boot of another image first")
	fl.BoolVar(&f.repredict, "repredict", false, "compare with a prediction made now from the files in DIR, not with measurements.json")
	fl.BoolVar(&f.console, "console", false, "show the guest's console on stderr, send it the lines typed, and keep it running until interrupted")
	fl.StringVar(&f.accel, "accel", "auto", "auto, kvm or tcg")
	fl.StringVar(&f.qemu, "qemu", "", "QEMU to run (PLINTH_QEMU; default: qemu-system-x86_64)")
	fl.StringVar(&f.path, "path", "", "how the guest is started: disk, uki (the UKI by -kernel) or kernel (bzImage by -kernel) (default: the profile's)")
	fl.IntVar(&f.vcpus, "vcpus", 0, "virtual CPUs (default: the profile's first)")
	fl.IntVar(&f.memory, "memory", 0, "memory in MiB (default: the profile's)")
	fl.StringArrayVar(&f.devices.publish, "publish", nil, "let a port of 127.0.0.1 lead to one of the guest: [HOST:]GUEST[/udp]")
	fl.StringArrayVar(&f.devices.disks, "disk", nil, "attach a raw file as a disk: SERIAL=FILE[:rw]")
	fl.StringVar(&f.devices.tpm, "tpm-state", "", "keep the TPM's keys in this directory, so that a broker knows the machine again (default: a TPM of its own for each boot)")
	fl.DurationVar(&f.timeout, "timeout", 3*time.Minute, "give up after this time")
	return cmd
}

// validate refuses what no machine can be.
func (f *bootFlags) validate() error {
	switch f.path {
	case "", profiles.PathDisk, profiles.PathUKI, profiles.PathKernel:
	default:
		return usagef("--path is %q: want disk, uki or kernel", f.path)
	}
	switch f.accel {
	case "auto", "kvm", "tcg":
	default:
		return usagef("--accel is %q: want auto, kvm or tcg", f.accel)
	}
	return nil
}

func (c *common) boot(ctx context.Context, target string, f *bootFlags) error {
	if err := f.validate(); err != nil {
		return err
	}
	r, err := c.newReporter()
	if err != nil {
		return err
	}
	dir, err := c.bootDir(ctx, target, f, r)
	if err != nil {
		return err
	}
	img, err := c.image(dir, f)
	if err != nil {
		return err
	}
	report, machine, err := c.runImage(ctx, img, f, r)
	if err != nil {
		return err
	}
	if !f.check {
		if c.json {
			return printJSON(c.env.stdout, report)
		}
		return c.printReport(report)
	}
	return c.check(img, f, machine, report)
}

// bootDir finds the image directory, after --record has built it again.
func (c *common) bootDir(ctx context.Context, target string, f *bootFlags, r *reporter) (string, error) {
	_, err := os.Stat(filepath.Join(target, export.ManifestName))
	isDir := err == nil
	if isDir && !f.record {
		return target, nil
	}
	name := target
	var built []byte // the profile that the directory was built from
	if isDir {
		img, err := openImage(target)
		if err != nil {
			return "", err
		}
		name, c.out, built = img.manifest.Name, target, img.profile.Canonical()
	}
	p, err := c.loadProfile(name, r)
	if err != nil {
		return "", err
	}
	if built != nil && !bytes.Equal(built, p.Canonical()) {
		return "", usagef("%s was not built from profile %s as it is now: name the profile instead, with the options that it was built with", target, name)
	}
	if !f.record {
		return c.outDir(p), nil
	}
	if err := c.record(ctx, p, f, r); err != nil {
		return "", err
	}
	b, err := c.build(ctx, p, r)
	if err != nil {
		return "", err
	}
	return b.dir, nil
}

// runImage boots an image once and returns the guest's report and the machine
// that it ran in.
func (c *common) runImage(ctx context.Context, img *image, f *bootFlags, r *reporter) (*evidence.Report, measure.Machine, error) {
	var console io.Writer
	if f.console {
		console = c.env.stderr
	}
	m, err := img.qemu(f)
	if err != nil {
		return nil, measure.Machine{}, err
	}
	if img.elsewhere() {
		r.notice("%s is a guest for %s, which plinth boot does not start: the same files run under the generic firmware here", img.dir, platformNames[img.manifest.Platform])
	}
	vm, err := qemu.Start(ctx, m, qemu.Options{Accel: f.accel, Console: console, Timeout: f.timeout, Logf: r.notice})
	if err != nil {
		return nil, measure.Machine{}, bootFailure(err)
	}
	defer vm.Close()
	if f.console {
		go typeLines(vm, c.env.stdin)
	}
	b, err := vm.Report(ctx)
	if err != nil {
		return nil, measure.Machine{}, bootFailure(err)
	}
	report, err := evidence.ParseReport(b)
	if err != nil {
		return nil, measure.Machine{}, bootError{err}
	}
	r.notice("%s booted under QEMU %s (%s): kernel %s", img.dir, vm.Version(), vm.Accel(), report.Kernel)
	if f.console {
		vm.Wait(ctx) // until the guest or the user ends it; the report is there
	}
	return report, img.machine(vm), vm.Close()
}

// typeLines sends what a person types, line by line, to the guest's console. It
// ends with the input or the guest.
func typeLines(vm *qemu.VM, in io.Reader) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if vm.Type(append(lines.Bytes(), '\n')) != nil {
			return
		}
	}
}

// bootFailure keeps a missing tool (exit 4) and an interrupt apart from a guest
// that did not come up (exit 8).
func bootFailure(err error) error {
	var missing *qemu.MissingToolError
	if errors.As(err, &missing) || errors.Is(err, context.Canceled) {
		return err
	}
	return bootError{err}
}

// check compares the report with the prediction and prints the result.
func (c *common) check(img *image, f *bootFlags, machine measure.Machine, report *evidence.Report) error {
	m, err := readMeasurements(img.dir)
	if f.repredict {
		m, err = img.predict(img.manifest.Records, builder.Banks)
	}
	if err != nil {
		return err
	}
	var result *measure.CheckResult
	if img.elsewhere() {
		result, err = img.checkElsewhere(m, machine, report)
	} else if result, err = builder.Check(m, machine, report); err != nil {
		err = mismatchError{err}
	}
	if err != nil {
		return err
	}
	root, err := img.manifest.CheckRoot(report)
	if err != nil {
		return err
	}
	if c.json {
		err = printJSON(c.env.stdout, bootCheck{result, root})
	} else {
		err = c.printCheck(result, root)
	}
	switch {
	case err != nil:
		return err
	case !result.OK():
		return mismatchError{fmt.Errorf("%s: the TPM measured something else than predicted", img.dir)}
	case !root.OK:
		return mismatchError{fmt.Errorf("%s: the guest has another root file system than the image", img.dir)}
	}
	return nil
}

// A bootCheck is what --check says with --json.
type bootCheck struct {
	*measure.CheckResult
	Root *builder.RootCheck `json:"root"`
}

// printRoot adds a row for the root file system to those of the registers.
func printRoot(w io.Writer, r *builder.RootCheck) {
	if r.OK {
		fmt.Fprintf(w, "root\tmatch\tpredicted\t\t%s\n", r.Got)
		return
	}
	fmt.Fprintf(w, "root\t%s\tpredicted\t\t\n\t  want %s\n\t  got  %s\n", measure.Mismatch, r.Want, cmp.Or(r.Got, "none"))
}

// checkElsewhere compares what a boot under the generic firmware can tell.
func (i *image) checkElsewhere(m *measure.Measurements, machine measure.Machine, report *evidence.Report) (*measure.CheckResult, error) {
	p, err := i.predictTPM(machine)
	if err != nil {
		return nil, err
	}
	booted, err := i.booted()
	if err != nil {
		return nil, err
	}
	result, err := builder.CheckGeneric(m, booted, p, machine, report, builder.WorkloadPCRs(i.profile)...)
	if err != nil {
		return nil, mismatchError{err}
	}
	return result, nil
}

// predictTPM says what the TPM of a boot under the generic firmware measures. The
// events of a trust domain are in its own document: the result is nil then.
func (i *image) predictTPM(machine measure.Machine) (*measure.Prediction, error) {
	if i.profile.Platform == profiles.PlatformTDX {
		return nil, nil
	}
	defer i.close()
	b, err := i.files(nil).TPMBoot(builder.Banks)
	if err != nil {
		return nil, err
	}
	b.Machine = machine
	return measure.Predict(&b)
}

// platformNames are what people call the hardware.
var platformNames = map[string]string{profiles.PlatformSNP: "AMD SEV-SNP", profiles.PlatformTDX: "Intel TDX"}

// record learns what only firmware, VMM and machine decide, and writes it where
// the next build finds it.
func (c *common) record(ctx context.Context, p *profiles.Profile, f *bootFlags, r *reporter) error {
	var records *measure.Records
	var err error
	switch p.Platform {
	case profiles.PlatformSNP:
		r.notice("a launch digest needs no platform record: nothing of it depends on a boot")
		return nil
	case profiles.PlatformTDX:
		records, err = c.recordTables(ctx, p, f, r)
	default:
		records, err = c.recordBoots(ctx, p, f, r)
	}
	if err != nil {
		return err
	}
	doc, err := records.Marshal()
	if err != nil {
		return err
	}
	st, err := c.store()
	if err != nil {
		return err
	}
	w, err := c.workplace(p, st, r)
	if err != nil {
		return err
	}
	r.notice("platform record written to %s", w.RecordPath())
	return builder.WriteFile(w.RecordPath(), doc)
}

// recordBoots boots an image that differs from p's in everything but firmware and
// machine, once a shape, and keeps the events that only the platform decides.
func (c *common) recordBoots(ctx context.Context, p *profiles.Profile, f *bootFlags, r *reporter) (*measure.Records, error) {
	tmp, err := os.MkdirTemp("", "plinth-probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	probe := *c
	probe.out, probe.lock = tmp, c.lockPath(p)
	b, err := probe.build(ctx, builder.ProbeProfile(p), r)
	if err != nil {
		return nil, err
	}
	records := &measure.Records{}
	for _, n := range f.shapes(b.manifest) {
		img, err := probe.image(tmp, f)
		if err != nil {
			return nil, err
		}
		img.vcpus = n
		report, machine, err := c.runImage(ctx, img, f, r)
		if err != nil {
			return nil, err
		}
		rec, err := img.record(report, machine)
		if err != nil {
			return nil, err
		}
		records.Add(rec)
	}
	return records, nil
}

// recordTables asks QEMU, once a shape, for the ACPI tables that it would make for
// the trust domain. No guest runs.
func (c *common) recordTables(ctx context.Context, p *profiles.Profile, f *bootFlags, r *reporter) (*measure.Records, error) {
	b, err := c.build(ctx, p, r)
	if err != nil {
		return nil, err
	}
	records := &measure.Records{}
	for _, n := range f.shapes(b.manifest) {
		img, err := c.image(b.dir, f)
		if err != nil {
			return nil, err
		}
		img.vcpus = n
		rec, err := img.tablesRecord(ctx, f)
		if err != nil {
			return nil, err
		}
		records.Add(rec)
	}
	return records, nil
}

// tablesRecord asks for the tables of one shape.
func (i *image) tablesRecord(ctx context.Context, f *bootFlags) (*measure.Record, error) {
	defer i.close()
	b, err := i.files(nil).TDBoot()
	if err != nil {
		return nil, err
	}
	m := i.vmm(f)
	m.Firmware, m.ReportPort = i.file(builder.FirmwareName), config.ReportPort
	if m.Binary, err = qemu.Find(m.Binary); err != nil {
		return nil, err
	}
	version, err := qemu.Version(ctx, m.Binary)
	if err != nil {
		return nil, err
	}
	t := &measure.Tables{Source: "QEMU " + version + " asked by qtest"}
	if t.Loader, t.RSDP, t.Tables, err = qemu.Tables(ctx, m, qemu.Layout{TD: true}); err != nil {
		return nil, err
	}
	b.Machine = builder.MeasuredMachine(i.manifest.Machine, i.vcpus)
	b.Machine.VMM, b.Machine.Accel = "qemu "+version, "kvm" // a trust domain has no other
	return measure.NewTablesRecord(&b, t)
}

// shapes are the numbers of vCPUs to record.
func (f *bootFlags) shapes(m *builder.Manifest) []int {
	if f.vcpus > 0 {
		return []int{f.vcpus}
	}
	return m.Machine.VCPUs
}

// record takes the platform's events out of a report.
func (i *image) record(report *evidence.Report, machine measure.Machine) (*measure.Record, error) {
	defer i.close()
	b, err := i.files(nil).TPMBoot(builder.Banks)
	if err != nil {
		return nil, err
	}
	b.Machine = machine
	r, err := builder.NewRecord(&b, report)
	if err != nil {
		return nil, mismatchError{err}
	}
	return r, nil
}
