package measure

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/plinth-os/plinth/internal/fat"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/pcr"
	"github.com/plinth-os/plinth/uki"
)

// errRefused is returned when Secure Boot is on and will not start the image.
var errRefused = errors.New("measure: Secure Boot: no certificate in db is that of the image's signer")

// payload is what the firmware starts, as digests of its parts.
type payload struct {
	stub    *uki.Version // nil: a kernel without a stub
	release string       // of the kernel
	gpt     []byte       // UEFI_GPT_DATA of the disk; nil: not booted from one

	cmdline   string // as the kernel's EFI stub finds it in its load options
	authority []byte // EFI_SIGNATURE_DATA of db; nil without Secure Boot

	image    []eventlog.Digest  // nil: not known
	sections [][]eventlog.Event // of the stub, by section
	inner    []eventlog.Digest  // of the kernel in a UKI; only where it is measured
	initrd   []eventlog.Digest  // nil: none
}

// digest identifies what is booted: SHA-256, in hex, over the SHA-256 digests of
// the image, the command line and the initrd. It is "" when the image is not
// known.
func (o *payload) digest() string {
	if o.image == nil {
		return ""
	}
	parts := eventlog.SHA256.Sum([]byte(o.cmdline))
	for _, digests := range [][]eventlog.Digest{o.image, o.initrd} {
		e := eventlog.Event{Digests: digests}
		parts = append(parts, e.Digest(eventlog.SHA256)...)
	}
	return hex.EncodeToString(eventlog.SHA256.Sum(parts))
}

// open reads what is started and hashes it, on all processors.
func (p *predictor) open() (*payload, error) {
	switch {
	case p.Kernel != nil:
		return p.openKernel()
	case p.UKI != nil:
		return p.openUKI(p.UKI)
	}
	image, err := bootFile(p.Disk)
	if err != nil {
		return nil, err
	}
	o, err := p.openUKI(image)
	if err != nil {
		return nil, err
	}
	o.gpt, err = gpt.EventData(p.Disk, p.Disk.Size())
	return o, err
}

func (p *predictor) openKernel() (*payload, error) {
	o := &payload{cmdline: directLoadOptions(p.Cmdline, p.Initrd != nil, p.Firmware.does(initrdPrefix))}
	var err error
	if o.release, err = KernelRelease(p.Kernel, p.Kernel.Size()); err != nil {
		return nil, err
	}
	tasks, err := p.kernelImage(o)
	if err != nil {
		return nil, err
	}
	if p.Initrd != nil {
		tasks = append(tasks, func() (err error) {
			o.initrd, err = pcr.Digests(p.banks, io.NewSectionReader(p.Initrd, 0, p.Initrd.Size()))
			return err
		})
	}
	return o, parallel(tasks)
}

// kernelImage returns the tasks that hash the kernel as the firmware gets it, and
// none when that is not known.
func (p *predictor) kernelImage(o *payload) ([]func() error, error) {
	image := p.Kernel
	switch patchedHeader, known := p.headerPatched(); {
	case !known:
		return nil, nil
	case patchedHeader:
		var err error
		if image, err = patched(p.Kernel, p.Initrd, p.Cmdline, &p.m); err != nil {
			return nil, err
		}
	}
	f, err := pe.Parse(image, image.Size())
	if err != nil {
		return nil, fmt.Errorf("measure: kernel: %w", err)
	}
	return p.imageTasks(o, image, f), nil
}

// headerPatched tells whether the firmware gets the kernel as QEMU has changed it
// for its own loader. Newer versions have the file unchanged beside that, for
// firmware that looks there.
func (p *predictor) headerPatched() (patched, known bool) {
	v := p.vmmVersion()
	switch {
	case v == "":
		return false, false
	case p.TD != nil && behaviour(plainKernel).holds(v):
		return false, true
	}
	return behaviour(setupHeader).holds(v) && !(behaviour(unpatchedKernel).holds(v) && p.Firmware.does(namedKernel)), true
}

func (p *predictor) vmmVersion() string { return strings.TrimPrefix(p.m.VMM, "qemu ") }

func (p *predictor) openUKI(image *io.SectionReader) (*payload, error) {
	f, err := pe.Parse(image, image.Size())
	if err != nil {
		return nil, fmt.Errorf("measure: UKI: %w", err)
	}
	v, err := uki.StubVersion(f)
	if err != nil {
		return nil, fmt.Errorf("measure: UKI: %w", err)
	}
	s, ok := f.Section(".linux")
	if !ok {
		return nil, errors.New("measure: UKI: no section .linux")
	}
	linux := f.Data(s)
	o := &payload{stub: &v}
	if o.release, err = KernelRelease(linux, linux.Size()); err != nil {
		return nil, err
	}
	cmdline, _, err := pcr.Cmdline(v.Major, f)
	if err != nil {
		return nil, err
	}
	o.cmdline = passedOn(cmdline, &v, &p.m)
	return o, parallel(slices.Concat(p.imageTasks(o, image, f), p.stubTasks(o, f, linux)))
}

// imageTasks hash the image that the firmware starts, and find what lets it.
func (p *predictor) imageTasks(o *payload, image *io.SectionReader, f *pe.File) []func() error {
	tasks := []func() error{func() (err error) {
		o.image, err = pcr.Authenticode(p.banks, f)
		return err
	}}
	if p.vars.enforced(p.Firmware) {
		tasks = append(tasks, func() (err error) {
			o.authority, err = p.vars.authority(image)
			return err
		})
	}
	return tasks
}

// stubTasks hash what the stub measures and hands on, one task a section: .linux
// and .initrd are what is large.
func (p *predictor) stubTasks(o *payload, f *pe.File, linux *io.SectionReader) []func() error {
	order := uki.MeasuredOrder(*o.stub)
	o.sections = make([][]eventlog.Event, len(order))
	var tasks []func() error
	for i := range order {
		tasks = append(tasks, func() (err error) {
			o.sections[i], err = pcr.Sections(p.banks, order[i:i+1], f)
			return err
		})
	}
	if p.innerMeasured(o.stub) {
		tasks = append(tasks, func() error {
			kernel, err := pe.Parse(linux, linux.Size())
			if err != nil {
				return fmt.Errorf("measure: section .linux: %w", err)
			}
			o.inner, err = pcr.Authenticode(p.banks, kernel)
			return err
		})
	}
	return append(tasks, func() error {
		r, err := pcr.Initrd(o.stub.Major, f)
		if err != nil || r == nil {
			return err
		}
		c := &counter{r: r}
		digests, err := pcr.Digests(p.banks, c)
		if c.n > 0 { // of an empty initrd nothing is measured
			o.initrd = digests
		}
		return err
	})
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// bootFile opens the loader on the disk's EFI system partition.
func bootFile(disk *io.SectionReader) (*io.SectionReader, error) {
	const path = "EFI/BOOT/BOOTX64.EFI"
	t, err := gpt.Read(disk, disk.Size())
	if err != nil {
		return nil, fmt.Errorf("measure: disk: %w", err)
	}
	var esp *io.SectionReader
	for _, part := range t.Partitions {
		if part.Type != espType {
			continue
		}
		if esp != nil {
			return nil, errors.New("measure: disk: several EFI system partitions")
		}
		sector := int64(t.SectorSize)
		esp = io.NewSectionReader(disk, int64(part.First)*sector, int64(part.Last-part.First+1)*sector)
	}
	if esp == nil {
		return nil, errors.New("measure: disk: no EFI system partition")
	}
	volume, err := fat.Open(esp, esp.Size())
	if err != nil {
		return nil, fmt.Errorf("measure: EFI system partition: %w", err)
	}
	f, err := volume.Open(path)
	if err != nil {
		return nil, fmt.Errorf("measure: EFI system partition: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r, ok := f.(io.ReaderAt)
	if !ok {
		return nil, fmt.Errorf("measure: EFI system partition: %s: is a directory", path)
	}
	return io.NewSectionReader(r, 0, info.Size()), nil
}

var espType = mustGUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")

// parallel runs tasks, as many at once as there are processors, and returns the
// error of the first in their order.
func parallel(tasks []func() error) error {
	errs := make([]error, len(tasks))
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i, task := range tasks {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = task()
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
