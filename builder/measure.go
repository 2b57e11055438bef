package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/profiles"
)

// Banks are the PCR banks that a build predicts.
var Banks = []eventlog.Alg{eventlog.SHA1, eventlog.SHA256, eventlog.SHA384}

// runMeasure makes measurements.json and, where the platform has an event log,
// eventlog.json. The artefacts that it reads are of the steps that it needs, or
// that those need.
func runMeasure(_ context.Context, w *work) error {
	defer w.closeOpened()
	i := &Image{Profile: w.Profile, Machine: shape(w.Profile.Machine), Records: w.Records, Store: w.Store, Open: w.artefact}
	if err := w.initdata(i); err != nil {
		return err
	}
	m, log, err := i.Predict(Banks)
	if err != nil {
		return err
	}
	doc, err := m.Marshal()
	if err != nil {
		return err
	}
	if err := w.put("measurements.json", doc); err != nil || log == nil {
		return err
	}
	return w.putJSON("eventlog.json", log)
}

// artefact opens an artefact, which closeOpened closes.
func (w *work) artefact(name string) (*io.SectionReader, error) {
	for _, a := range artefacts {
		if a.name != name {
			continue
		}
		return w.section(a.step, a.output)
	}
	return nil, fmt.Errorf("no artefact %s", name)
}

// section opens an output of a step that this one needs; closeOpened closes it.
func (w *work) section(step, output string) (*io.SectionReader, error) {
	f, size, err := w.open(step, output)
	if err != nil {
		return nil, err
	}
	w.opened = append(w.opened, f)
	return io.NewSectionReader(f, 0, size), nil
}

func (w *work) closeOpened() {
	for _, f := range w.opened {
		f.Close() // read only
	}
}

// unpackFirmware digests the firmware's volumes, which the store keeps for the
// predictions: it is the slow part of them, and the same for every image. A launch
// digest is over the file as it is, so there a firmware may be packed in any way.
func (w *work) unpackFirmware() error {
	code, err := w.Store.ReadFile(w.out["code"].Digest)
	if err != nil {
		return err
	}
	if _, err = CachedFirmware(w.Store, code); w.Profile.Platform == profiles.PlatformSNP {
		return nil
	}
	return err
}

// diskSlot is where qemu.Args puts the disk: device 1 of the root bus.
const diskSlot = 1

// PredictShapes predicts one boot in each of a machine's shapes. The log is the
// first shape's.
func PredictShapes(name string, b measure.Boot, m Machine) (*measure.Measurements, *eventlog.Log, error) {
	var all []*measure.Prediction
	for _, n := range m.VCPUs {
		b.Machine = MeasuredMachine(m, n)
		p, err := measure.Predict(&b)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, p)
	}
	doc, err := measure.NewMeasurements(name, all...)
	if err != nil {
		return nil, nil, err
	}
	return doc, all[0].Log(), nil
}

// MeasuredMachine maps the machine that runs to the one that is predicted. The
// VMM and its acceleration are those of the platform record.
func MeasuredMachine(m Machine, vcpus int) measure.Machine {
	return measure.Machine{Type: m.Type, VCPUs: vcpus, MemoryMiB: m.Memory, CPU: m.CPU, DiskSlot: diskSlot}
}

// observed is a guest's report as measure takes it.
func observed(machine measure.Machine, r *evidence.Report) (*measure.Observed, error) {
	log, err := eventlog.Parse(r.EventLog)
	if err != nil {
		return nil, fmt.Errorf("the guest's event log: %w", err)
	}
	return &measure.Observed{Machine: machine, Log: log, Before: r.Before, After: r.After}, nil
}

// NewRecord takes the platform's events out of the report of a boot.
func NewRecord(b *measure.Boot, r *evidence.Report) (*measure.Record, error) {
	o, err := observed(b.Machine, r)
	if err != nil {
		return nil, err
	}
	return measure.NewRecord(b, o)
}

// Check compares what a guest reported with a prediction as it was written.
func Check(m *measure.Measurements, machine measure.Machine, r *evidence.Report) (*measure.CheckResult, error) {
	o, err := observed(machine, r)
	if err != nil {
		return nil, err
	}
	return measure.Check(m, o)
}

// CheckGeneric compares what a guest for other hardware reported of a boot under
// its generic firmware: see measure.CheckGeneric.
func CheckGeneric(m *measure.Measurements, booted []measure.Input, p *measure.Prediction, machine measure.Machine, r *evidence.Report, workloads ...int) (*measure.CheckResult, error) {
	o, err := observed(machine, r)
	if err != nil {
		return nil, err
	}
	return measure.CheckGeneric(m, booted, p, o, workloads...)
}

// ReadRecords returns the platform records in a file, nil when there is none.
func ReadRecords(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if _, err := measure.ParseRecords(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// ProbeProfile is p for another image on the same platform: what a platform
// record is taken from must not be the image that it will vouch for.
func ProbeProfile(p *profiles.Profile) *profiles.Profile {
	probe := *p
	probe.Seed = p.Seed + " probe"
	probe.Cmdline = append(append([]string{}, p.Cmdline...), "plinth.probe=1")
	return &probe
}

// CachedFirmware digests a firmware file, or takes the result of an earlier
// time from the store.
func CachedFirmware(st *cas.Store, code []byte) (*measure.Firmware, error) {
	key := cas.Sum([]byte("firmware volumes " + cas.Sum(code).String()))
	if b, err := st.LoadResult(key); err == nil {
		if f, err := measure.ParseFirmware(b); err == nil {
			return f, nil
		}
	}
	f, err := measure.DigestFirmware(code, Banks)
	if err != nil {
		return nil, err
	}
	b, err := f.Marshal()
	if err != nil {
		return nil, err
	}
	return f, st.SaveResult(key, b)
}
