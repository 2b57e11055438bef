package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/profiles"
)

// An Image is what a prediction reads: a profile, and the artefacts that were
// made of it, in the store or in a directory.
type Image struct {
	Profile *profiles.Profile
	Machine Machine // shapes, and the way the guest is started
	Records []byte  // platform records; may be empty
	Store   *cas.Store

	Initdata []byte // that the guest is given; nil: not said

	// Open opens an artefact by its name, FirmwareName for instance. Who
	// implements it closes what it opened.
	Open func(artefact string) (*io.SectionReader, error)
}

// Predict computes what will be measured, in banks where there are several. The
// log is nil where the platform has none, else that of the first shape.
func (i *Image) Predict(banks []eventlog.Alg) (*measure.Measurements, *eventlog.Log, error) {
	m, log, err := i.predict(banks)
	if err == nil {
		err = i.giveInitdata(m)
	}
	if err == nil {
		err = i.measureWorkloads(m)
	}
	if err != nil {
		return nil, nil, err
	}
	m.Notes = append(m.Notes, cloudNotes(i.Profile)...)
	return m, log, nil
}

func (i *Image) predict(banks []eventlog.Alg) (*measure.Measurements, *eventlog.Log, error) {
	switch i.Profile.Platform {
	case profiles.PlatformSNP:
		m, err := i.predictLaunch()
		return m, nil, err
	case profiles.PlatformTDX:
		return i.predictTD()
	}
	b, err := i.TPMBoot(banks)
	if err != nil {
		return nil, nil, err
	}
	return PredictShapes(i.Profile.Name, b, i.Machine)
}

// TPMBoot says what the prediction of a boot with a TPM needs to know, all but
// the machine's shape. For a platform without one it is the boot under the
// generic firmware.
func (i *Image) TPMBoot(banks []eventlog.Alg) (b measure.Boot, err error) {
	code, vars := FirmwareName, VarsName
	if i.Profile.Combined() {
		code, vars = GenericName, GenericVarsName
	}
	firmware, err := i.read(code)
	if err != nil {
		return b, err
	}
	b = measure.Boot{Phases: i.Profile.Agent.Phases, Banks: banks}
	if b.Firmware, err = CachedFirmware(i.Store, firmware); err != nil {
		return b, err
	}
	if b.Vars, err = i.read(vars); err != nil {
		return b, err
	}
	return b, i.fill(&b)
}

// fill adds what is the same whoever measures: records, modules, and what the
// firmware starts.
func (i *Image) fill(b *measure.Boot) (err error) {
	if b.Records, err = measure.ParseRecords(i.Records); err != nil {
		return err
	}
	packed, err := i.Open(InitrdName)
	if err != nil {
		return err
	}
	if b.Modules, err = LoadedModules(packed); err != nil {
		return fmt.Errorf("%s: %w", InitrdName, err)
	}
	switch i.Machine.BootPath() {
	case profiles.PathUKI:
		b.UKI, err = i.Open(UKIName)
	case profiles.PathKernel:
		var cmdline []byte
		if cmdline, err = i.read(CmdlineName); err != nil {
			return err
		}
		b.Cmdline = string(cmdline)
		if b.Kernel, err = i.Open(KernelName); err == nil {
			b.Initrd, err = i.Open(InitrdName)
		}
	default:
		b.Disk, err = i.Open(DiskName)
	}
	return err
}

// read returns a small artefact whole.
func (i *Image) read(name string) ([]byte, error) {
	r, err := i.Open(name)
	if err != nil {
		return nil, err
	}
	b := make([]byte, r.Size())
	_, err = io.ReadFull(r, b)
	return b, err
}

// inputs digests artefacts, each under the name that it has in a measurement.
func (i *Image) inputs(names ...[2]string) (out []measure.Input, err error) {
	for _, n := range names {
		r, err := i.Open(n[1])
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return nil, err
		}
		out = append(out, measure.Input{Name: n[0], SHA256: hex.EncodeToString(h.Sum(nil)), Size: r.Size()})
	}
	return out, nil
}

// shapes are those of the machine, one for each number of vCPUs.
func (m Machine) shapes() (out []measure.Shape) {
	for _, n := range m.VCPUs {
		out = append(out, measure.Shape{Type: m.Type, VCPUs: n, MemoryMiB: m.Memory})
	}
	return out
}
