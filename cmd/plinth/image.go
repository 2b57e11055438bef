package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/qemu"
)

// An image is an output directory and the machine that it is to run in.
type image struct {
	dir      string
	manifest *builder.Manifest
	profile  *profiles.Profile // that the manifest carries
	store    *cas.Store
	vcpus    int
	initdata string // file that the guest is given, instead of the image's own
	opened   []*os.File
}

func openImage(dir string) (*image, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	p, err := profiles.ParseCanonical(m.Profile)
	if err != nil {
		return nil, mismatchError{fmt.Errorf("%s: profile: %w", filepath.Join(dir, export.ManifestName), err)}
	}
	return &image{dir: dir, manifest: m, profile: p, vcpus: m.Machine.VCPUs[0]}, nil
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
	i.store, err = c.store()
	return i, err
}

// shape applies the flags that change the machine.
func (i *image) shape(f *bootFlags) {
	if f.vcpus > 0 {
		i.vcpus = f.vcpus
	}
	if f.memory > 0 {
		i.manifest.Machine.Memory = f.memory
	}
	if f.path != "" {
		i.manifest.Machine.Path = f.path
	}
}

func (i *image) file(name string) string { return filepath.Join(i.dir, name) }

// elsewhere tells whether the image is for hardware that boot does without: it
// runs under its generic firmware then.
func (i *image) elsewhere() bool { return i.profile.Combined() }

// firmware names the files that the image boots with here.
func (i *image) firmware() (code, vars string, err error) {
	if !i.elsewhere() {
		return builder.FirmwareName, builder.VarsName, nil
	}
	if !i.manifest.Has(builder.GenericName) {
		return "", "", hostLacksError{
			fmt.Sprintf("%s: plinth boot does not start %s guests, and the image has no firmware for other machines", i.dir, i.manifest.Platform),
			"add [firmware.generic] to the profile, as the stock profiles have it",
		}
	}
	return builder.GenericName, builder.GenericVarsName, nil
}

// qemu is the machine that runs.
func (i *image) qemu(f *bootFlags) (qemu.Machine, error) {
	code, vars, err := i.firmware()
	if err != nil {
		return qemu.Machine{}, err
	}
	m := i.vmm(f)
	m.Firmware, m.Vars, m.TPM, m.ReportPort = i.file(code), i.file(vars), true, config.ReportPort
	b, err := os.ReadFile(m.Firmware)
	if err != nil {
		return m, err
	}
	// The result is kept in the store, for unpacking takes longer than everything
	// else in a prediction.
	fw, err := builder.CachedFirmware(i.store, b)
	if err != nil {
		return m, fmt.Errorf("%s: %w", m.Firmware, err)
	}
	m.SMM = fw.SMM
	err = f.devices.attach(&m, i.profile.HasNetwork())
	return m, err
}

// vmm is a machine of the image's shape that is given what the image starts, and
// has no firmware yet.
func (i *image) vmm(f *bootFlags) qemu.Machine {
	m := qemu.Machine{
		Binary:    f.qemu,
		Type:      i.manifest.Machine.Type,
		CPU:       i.manifest.Machine.CPU,
		VCPUs:     i.vcpus,
		MemoryMiB: i.manifest.Machine.Memory,
	}
	path := i.manifest.Machine.BootPath()
	if path == profiles.PathDisk || i.manifest.Root != nil {
		m.Disk = i.file(builder.DiskName)
	}
	switch path {
	case profiles.PathUKI:
		m.Kernel = i.file(builder.UKIName)
	case profiles.PathKernel:
		m.Kernel, m.Initrd, m.Append = i.file(builder.KernelName), i.file(builder.InitrdName), i.manifest.Cmdline
	}
	return m
}

// booted are the digests of what such a machine is given, by the names that a
// measurement has for them.
func (i *image) booted() ([]measure.Input, error) {
	kernel, names := i.file(builder.KernelName), map[string]string{}
	switch i.manifest.Machine.BootPath() {
	case profiles.PathDisk:
		names["disk"] = i.file(builder.DiskName)
	case profiles.PathUKI:
		kernel = i.file(builder.UKIName)
		names["uki"], names["kernel"] = kernel, kernel
	case profiles.PathKernel:
		names["kernel"], names["initrd"] = kernel, i.file(builder.InitrdName)
	}
	var out []measure.Input
	for _, name := range slices.Sorted(maps.Keys(names)) {
		digest, err := fileDigest(names[name])
		if err != nil {
			return nil, err
		}
		out = append(out, measure.Input{Name: name, SHA256: digest})
	}
	if i.manifest.Machine.BootPath() == profiles.PathKernel {
		out = append(out, measure.Input{Name: "cmdline", SHA256: hexDigest([]byte(i.manifest.Cmdline))})
	}
	return out, nil
}

// machine is the machine that is predicted, and vm the one that ran.
func (i *image) machine(vm *qemu.VM) measure.Machine {
	m := builder.MeasuredMachine(i.manifest.Machine, i.vcpus)
	m.VMM, m.Accel = "qemu "+vm.Version(), vm.Accel()
	return m
}

// files is what predictions read, with one of the machine's shapes unless the
// machine is the image's own. The caller closes the image.
func (i *image) files(records []byte) *builder.Image {
	shape := i.manifest.Machine
	if i.vcpus != shape.VCPUs[0] {
		shape.VCPUs = []int{i.vcpus}
	}
	return &builder.Image{Profile: i.profile, Machine: shape, Records: records, Store: i.store, Open: i.artefact}
}

func (i *image) artefact(name string) (*io.SectionReader, error) { return i.section(i.file(name)) }

// section opens a file, by its path.
func (i *image) section(path string) (*io.SectionReader, error) {
	f, size, err := openSized(path)
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
	defer i.close()
	given, err := i.given()
	if err != nil {
		return nil, err
	}
	files := i.files(records)
	files.Initdata = given
	m, _, err := files.Predict(banks)
	return m, err
}

// given is the initdata that the guest is to be given, nil if none is known.
func (i *image) given() ([]byte, error) {
	switch {
	case i.initdata != "":
		return builder.ReadInitdata(i.initdata)
	case i.manifest.Has(builder.InitdataName):
		return builder.ReadInitdata(i.file(builder.InitdataName))
	}
	return nil, nil
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
