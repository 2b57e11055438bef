package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

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
}

func newBoot(c *common) *cobra.Command {
	f := &bootFlags{}
	cmd := &cobra.Command{
		Use:   "boot DIR|PROFILE",
		Short: "Boot an image under QEMU with OVMF and swtpm, and compare it with its prediction",
		Long: `Boots the image in DIR (or out/PROFILE) with a fresh software TPM. The guest
reports its registers and its event log over a virtio-serial port.

--check compares them with measurements.json, register by register and event by
event; exit 7 names what differs. --record first boots a different image of the
same profile and writes the events that only this firmware, QEMU and machine
shape decide into NAME.platform.json, then builds again.`,
		Example: "  plinth boot out/vtpm --check\n  plinth boot vtpm --record --check\n  plinth boot out/vtpm --console",
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
	fl.StringVar(&f.path, "path", "disk", "how the guest is started: disk, uki (the UKI by -kernel) or kernel (bzImage by -kernel)")
	fl.IntVar(&f.vcpus, "vcpus", 0, "virtual CPUs (default: the profile's first)")
	fl.IntVar(&f.memory, "memory", 0, "memory in MiB (default: the profile's)")
	fl.DurationVar(&f.timeout, "timeout", 3*time.Minute, "give up after this time")
	return cmd
}

// validate refuses what no machine can be.
func (f *bootFlags) validate() error {
	switch f.path {
	case "disk", "uki", "kernel":
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
	if isDir {
		m, err := readManifest(target)
		if err != nil {
			return "", err
		}
		name, c.out = m.Name, target
	}
	p, err := c.loadProfile(name, r)
	if err != nil {
		return "", err
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
	vm, err := qemu.Start(ctx, img.qemu(f), qemu.Options{Accel: f.accel, Console: console, Timeout: f.timeout, Logf: r.notice})
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
	result, err := builder.Check(m, machine, report)
	if err != nil {
		return mismatchError{err}
	}
	if c.json {
		err = printJSON(c.env.stdout, result)
	} else {
		err = c.printCheck(result)
	}
	if err != nil {
		return err
	}
	if !result.OK() {
		return mismatchError{fmt.Errorf("%s: the TPM measured something else than predicted", img.dir)}
	}
	return nil
}

// record boots an image that differs from p's in everything but firmware and
// machine, once a shape, and keeps the events that only the platform decides.
func (c *common) record(ctx context.Context, p *profiles.Profile, f *bootFlags, r *reporter) error {
	tmp, err := os.MkdirTemp("", "plinth-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	probe := *c
	probe.out, probe.lock = tmp, c.lockPath(p)
	b, err := probe.build(ctx, builder.ProbeProfile(p), r)
	if err != nil {
		return err
	}
	st, err := c.store()
	if err != nil {
		return err
	}
	records := &measure.Records{}
	shapes := b.manifest.Machine.VCPUs
	if f.vcpus > 0 {
		shapes = []int{f.vcpus}
	}
	for _, n := range shapes {
		img, err := probe.image(tmp, f)
		if err != nil {
			return err
		}
		img.vcpus = n
		report, machine, err := c.runImage(ctx, img, f, r)
		if err != nil {
			return err
		}
		rec, err := img.record(report, machine)
		if err != nil {
			return err
		}
		records.Add(rec)
	}
	doc, err := records.Marshal()
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

// record takes the platform's events out of a report.
func (i *image) record(report *evidence.Report, machine measure.Machine) (*measure.Record, error) {
	b, err := i.boot(nil)
	if err != nil {
		return nil, err
	}
	defer i.close()
	b.Machine = machine
	r, err := builder.NewRecord(&b, report)
	if err != nil {
		return nil, mismatchError{err}
	}
	return r, nil
}
