package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/qemu"
)

// An image is an output directory and the machine that it is to run in.
type image struct {
	dir      string
	manifest *builder.Manifest
	firmware *measure.Firmware // what the firmware file measures; from its digest in the manifest
	vcpus    int
	path     string // disk, uki or kernel
	opened   []*os.File
}

func openImage(dir string) (*image, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	return &image{dir: dir, manifest: m, vcpus: m.Machine.VCPUs[0], path: "disk"}, nil
}

// image opens the image in dir for a boot, real or predicted, as the flags want it.
func (c *common) image(dir string, f *bootFlags) (*image, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	i, err := openImage(dir)
	if err != nil {
		return nil, err
	}
	i.shape(f)
	st, err := c.store()
	if err != nil {
		return nil, err
	}
	return i, i.loadFirmware(st)
}

// shape applies the flags that change the machine.
func (i *image) shape(f *bootFlags) {
	if f.vcpus > 0 {
		i.vcpus = f.vcpus
	}
	if f.memory > 0 {
		i.manifest.Machine.Memory = f.memory
	}
	i.path = f.path
}

func (i *image) file(name string) string { return filepath.Join(i.dir, name) }

// profilePart decodes what the commands need of the resolved profile.
func (i *image) profilePart() (p struct {
	Agent struct {
		Phases []string `json:"phases"`
	} `json:"agent"`
}, err error) {
	err = json.Unmarshal(i.manifest.Profile, &p)
	return p, err
}

// qemu is the machine that runs.
func (i *image) qemu(f *bootFlags) qemu.Machine {
	m := qemu.Machine{
		Binary:     f.qemu,
		Type:       i.manifest.Machine.Type,
		CPU:        i.manifest.Machine.CPU,
		VCPUs:      i.vcpus,
		MemoryMiB:  i.manifest.Machine.Memory,
		Firmware:   i.file("firmware.fd"),
		Vars:       i.file("firmware.vars.fd"),
		TPM:        true,
		ReportPort: config.ReportPort,
	}
	switch i.path {
	case "disk":
		m.Disk = i.file("image.raw")
	case "uki":
		m.Kernel = i.file("image.efi")
	case "kernel":
		m.Kernel, m.Initrd, m.Append = i.file("vmlinuz"), i.file("initrd"), i.manifest.Cmdline
	}
	if i.firmware != nil {
		m.SMM = i.firmware.SMM
	}
	return m
}

// machine is the machine that is predicted, and vm the one that ran.
func (i *image) machine(vm *qemu.VM) measure.Machine {
	m := builder.MeasuredMachine(i.manifest.Machine, i.vcpus)
	m.VMM, m.Accel = "qemu "+vm.Version(), vm.Accel()
	return m
}

// loadFirmware digests the firmware file; the result is kept in the store, for
// unpacking it takes longer than everything else in a prediction.
func (i *image) loadFirmware(st *cas.Store) error {
	code, err := os.ReadFile(i.file("firmware.fd"))
	if err != nil {
		return err
	}
	i.firmware, err = builder.CachedFirmware(st, code)
	return err
}

// boot says what the prediction needs to know. The caller closes the image.
func (i *image) boot(records []byte) (b measure.Boot, err error) {
	p, err := i.profilePart()
	if err != nil {
		return b, err
	}
	b = measure.Boot{Firmware: i.firmware, Phases: p.Agent.Phases, Banks: builder.Banks}
	if b.Vars, err = os.ReadFile(i.file("firmware.vars.fd")); err != nil {
		return b, err
	}
	if b.Records, err = measure.ParseRecords(records); err != nil {
		return b, err
	}
	packed, err := i.section("initrd")
	if err == nil {
		b.Modules, err = builder.LoadedModules(packed)
	}
	if err != nil {
		return b, fmt.Errorf("%s: %w", i.file("initrd"), err)
	}
	switch i.path {
	case "disk":
		b.Disk, err = i.section("image.raw")
	case "uki":
		b.UKI, err = i.section("image.efi")
	case "kernel":
		b.Cmdline = i.manifest.Cmdline
		if b.Kernel, err = i.section("vmlinuz"); err == nil {
			b.Initrd, err = i.section("initrd")
		}
	}
	return b, err
}

func (i *image) section(name string) (*io.SectionReader, error) {
	f, size, err := openSized(i.file(name))
	if err != nil {
		return nil, err
	}
	i.opened = append(i.opened, f)
	return io.NewSectionReader(f, 0, size), nil
}

func (i *image) close() {
	for _, f := range i.opened {
		f.Close()
	}
}

// predict computes the measurements from the files in the directory.
func (i *image) predict(records []byte, banks []eventlog.Alg) (*measure.Measurements, error) {
	b, err := i.boot(records)
	if err != nil {
		return nil, err
	}
	defer i.close()
	b.Banks = banks
	shape := i.manifest.Machine
	if i.vcpus != shape.VCPUs[0] {
		shape.VCPUs = []int{i.vcpus}
	}
	m, _, err := builder.PredictShapes(i.manifest.Name, b, shape)
	return m, err
}

// readMeasurements reads DIR/measurements.json.
func readMeasurements(dir string) (*measure.Measurements, error) {
	path := filepath.Join(dir, "measurements.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, err := measure.ParseMeasurements(b)
	if err != nil {
		return nil, mismatchError{fmt.Errorf("%s: %w", path, err)}
	}
	return m, nil
}
