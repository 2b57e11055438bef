package measure

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// A platform record holds what only the firmware, the VMM and the machine's
// shape decide and what cannot be computed from files: the firmware volume that
// PEI modules alter in memory, the ACPI tables that QEMU makes, the SMBIOS
// tables and, for an NVRAM with boot options, those that the firmware makes of
// them. It is read from a boot of another image than the one whose registers
// are predicted with it, and nothing else of that boot's log is kept.

// Key says for which boots a platform record holds.
type Key struct {
	Firmware  string `json:"firmware"` // SHA-256 of the firmware file, hex
	Vars      string `json:"vars"`     // SHA-256 of the NVRAM, hex, when it has boot options; else ""
	VMM       string `json:"vmm"`      // "qemu 7.2.22"
	Accel     string `json:"accel"`    // "tcg" or "kvm": decides the processor that a guest sees, with
	CPU       string `json:"cpu"`      // the model; "" is the default
	Machine   string `json:"machine"`  // "q35"
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
	Path      string `json:"path"` // "disk", with the disk attached, or "kernel"
	TPM       string `json:"tpm"`  // "tpm-tis"; "none" in a trust domain
}

// recordKind names what may be recorded.
type recordKind string

const (
	recordPEIFV        recordKind = "peifv"
	recordACPI         recordKind = "acpi"
	recordSMBIOS       recordKind = "smbios"
	recordBootVariable recordKind = "boot-variable"
)

// Record is a platform record.
type Record struct {
	Key    Key             `json:"key"`
	Image  string          `json:"image"`            // what was booted for it: SHA-256, hex, over digests of image, command line and initrd; "" when nothing was
	Source string          `json:"source,omitempty"` // where it is from when nothing was booted
	Events []RecordedEvent `json:"events"`           // in the order of the log
}

// RecordedEvent is one event of a record.
type RecordedEvent struct {
	Kind    recordKind        `json:"kind"`
	Data    string            `json:"data"`    // of the event, hex; "" where it holds an address
	Digests map[string]string `json:"digests"` // bank -> hex
}

// Records are platform records: the file beside a lock.
type Records struct {
	Schema  int      `json:"schema"`
	Records []Record `json:"records"`
}

const recordsSchema = 1

// key returns the key of the record for a boot.
func (p *predictor) key() Key {
	k := Key{
		Firmware:  p.Firmware.SHA256,
		Vars:      p.vars.bootOptions(),
		VMM:       p.Machine.VMM,
		Accel:     p.Machine.Accel,
		CPU:       p.Machine.CPU,
		Machine:   p.Machine.Type,
		VCPUs:     p.Machine.VCPUs,
		MemoryMiB: p.Machine.MemoryMiB,
		Path:      p.path(),
		TPM:       p.Machine.TPM,
	}
	switch {
	case p.TD != nil:
		k.TPM = noTPM
	case k.TPM == "":
		k.TPM = "tpm-tis"
	}
	return k
}

// NewRecord takes the recordable events out of what a guest reported of boot b.
// It refuses a log that the registers do not confirm, and one that is not of b's
// firmware and image.
func NewRecord(b *Boot, o *Observed) (*Record, error) {
	switch {
	case b.TD != nil:
		return nil, errors.New("measure: record: of a trust domain only the ACPI tables can be recorded")
	case b.Machine.VMM == "" || b.Machine.Accel == "":
		return nil, errors.New("measure: record: VMM or acceleration is not known")
	}
	without := *b
	without.Records = nil
	p, err := Predict(&without)
	if err != nil {
		return nil, err
	}
	return p.record(b.Firmware, o)
}

// record takes the recordable events out of a report of the boot that p predicts.
func (p *Prediction) record(f *Firmware, o *Observed) (*Record, error) {
	banks, err := confirmed(o)
	if err != nil {
		return nil, err
	}
	if err := sameBoot(p, o.Log); err != nil {
		return nil, err
	}
	r := &Record{Key: p.key, Image: p.image, Events: []RecordedEvent{}}
	for i := range o.Log.Events {
		e := &o.Log.Events[i]
		if kind, ok := recordable(e, f); ok {
			r.Events = append(r.Events, recorded(kind, e, banks))
		}
	}
	return r, r.check()
}

// confirmed returns the banks in which the guest reported its registers, after
// checking that the log accounts for those that firmware extends. One of the
// banks must be sha256.
func confirmed(o *Observed) (banks []eventlog.Alg, err error) {
	if o.Log == nil {
		return nil, errors.New("measure: record: no event log")
	}
	for _, alg := range o.Log.Algs {
		before, ok := o.Before[alg.String()]
		if !ok {
			continue
		}
		values, err := o.Log.Replay(alg)
		if err != nil {
			return nil, fmt.Errorf("measure: record: %w", err)
		}
		for r := range 8 {
			if got := before[r]; got != hex.EncodeToString(values[r]) {
				return nil, fmt.Errorf("measure: record: PCR %d of bank %v is %s: the log ends with %x", r, alg, got, values[r])
			}
		}
		banks = append(banks, alg)
	}
	if !slices.Contains(banks, eventlog.SHA256) {
		return nil, errors.New("measure: record: no registers, or no log, of bank sha256")
	}
	return banks, nil
}

// sameBoot checks that a log is of the boot that p predicts: every predicted
// event of the firmware's own code, its version, the image, its command line and
// its initrd is in it.
func sameBoot(p *Prediction, l *eventlog.Log) error {
	for _, want := range p.Events {
		if want.Provenance != Predicted || want.Register != 0 && want.Register != 4 && want.Register != 9 {
			continue
		}
		found := slices.ContainsFunc(l.Events, func(got eventlog.Event) bool {
			d := got.Digest(eventlog.SHA256)
			return got.Register == want.Register && got.Type == want.Type && d != nil && bytes.Equal(d, want.Digest(eventlog.SHA256))
		})
		if !found {
			return fmt.Errorf("measure: record: the log lacks %s: it is of another boot", want.Name)
		}
	}
	return nil
}

// recordable tells whether an event may be recorded, and as what.
func recordable(e *eventlog.Event, f *Firmware) (recordKind, bool) {
	switch {
	case e.Register == 0 && e.Type == eventlog.FirmwareBlob:
		return recordPEIFV, bytes.Equal(e.Data, f.Volumes[0].blob())
	case e.Register == 1 && e.Type == eventlog.PlatformConfig:
		return recordACPI, string(e.Data) == acpiData
	case e.Register == 1 && e.Type == eventlog.HandoffTables:
		return recordSMBIOS, len(e.Data) == tablePointers && bytes.Equal(e.Data[8:24], smbiosTable[:])
	case e.Register == 1 && e.Type == eventlog.VariableBoot:
		return recordBootVariable, true
	}
	return "", false
}

func recorded(kind recordKind, e *eventlog.Event, banks []eventlog.Alg) RecordedEvent {
	out := RecordedEvent{Kind: kind, Data: hex.EncodeToString(e.Data), Digests: map[string]string{}}
	if kind == recordSMBIOS {
		out.Data = "" // an address, which depends on the image
	}
	for _, bank := range banks {
		out.Digests[bank.String()] = hex.EncodeToString(e.Digest(bank))
	}
	return out
}

// check holds a record to what a prediction assumes of it.
func (r *Record) check() error {
	n := map[recordKind]int{}
	for i, e := range r.Events {
		switch e.Kind {
		case recordPEIFV, recordACPI, recordSMBIOS, recordBootVariable:
		default:
			return fmt.Errorf("measure: record: event %d: kind %q: may not be recorded", i, e.Kind)
		}
		if _, err := e.event(slices.Collect(algsOf(e.Digests))); err != nil {
			return fmt.Errorf("measure: record: event %d: %w", i, err)
		}
		n[e.Kind]++
	}
	if r.Key.TPM == noTPM {
		return r.checkTD(n)
	}
	if n[recordPEIFV] != 1 || n[recordSMBIOS] > 1 || n[recordACPI] != 0 && n[recordACPI] != len(acpiFiles) {
		return fmt.Errorf("measure: record: %d PEIFV, %d ACPI and %d SMBIOS events: want 1, 0 or %d, and 0 or 1",
			n[recordPEIFV], n[recordACPI], n[recordSMBIOS], len(acpiFiles))
	}
	if b, err := hex.DecodeString(r.Image); err != nil || len(b) != eventlog.SHA256.Size() {
		return fmt.Errorf("measure: record: image %q: want a SHA-256 digest", r.Image)
	}
	return nil
}

func algsOf(digests map[string]string) func(yield func(eventlog.Alg) bool) {
	return func(yield func(eventlog.Alg) bool) {
		for _, name := range slices.Sorted(maps.Keys(digests)) {
			alg, err := eventlog.ParseAlg(name)
			if err != nil {
				alg = 0
			}
			if !yield(alg) {
				return
			}
		}
	}
}

// event returns e with digests in banks. It fails when one is missing or
// malformed.
func (e *RecordedEvent) event(banks []eventlog.Alg) (out eventlog.Event, err error) {
	if out.Data, err = hex.DecodeString(e.Data); err != nil {
		return out, err
	}
	if len(out.Data) == 0 {
		out.Data = nil
	}
	for _, bank := range banks {
		d, err := hex.DecodeString(e.Digests[bank.String()])
		if err != nil || bank.Size() == 0 || len(d) != bank.Size() {
			return out, fmt.Errorf("digest in bank %v: %q", bank, e.Digests[bank.String()])
		}
		out.Digests = append(out.Digests, eventlog.Digest{Alg: bank, Value: d})
	}
	return out, nil
}

// event returns the i-th event of a kind; ok is false when the record, which may
// be nil, does not have it in all banks.
func (r *Record) event(kind recordKind, i int, banks []eventlog.Alg) (e eventlog.Event, ok bool) {
	if r == nil {
		return e, false
	}
	for j := range r.Events {
		if r.Events[j].Kind != kind {
			continue
		}
		if i == 0 {
			e, err := r.Events[j].event(banks)
			return e, err == nil
		}
		i--
	}
	return e, false
}

// count returns the number of events of a kind.
func (r *Record) count(kind recordKind) (n int) {
	if r == nil {
		return 0
	}
	for _, e := range r.Events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// ParseRecords reads records; no bytes are no records.
func ParseRecords(b []byte) (*Records, error) {
	if len(b) == 0 {
		return &Records{Schema: recordsSchema}, nil
	}
	var r Records
	if err := decodeStrict(b, &r); err != nil {
		return nil, fmt.Errorf("measure: platform records: %w", err)
	}
	if r.Schema != recordsSchema {
		return nil, fmt.Errorf("measure: platform records: schema %d: want %d", r.Schema, recordsSchema)
	}
	for i := range r.Records {
		if err := r.Records[i].check(); err != nil {
			return nil, err
		}
		if i > 0 && compareKeys(r.Records[i-1].Key, r.Records[i].Key) >= 0 {
			return nil, fmt.Errorf("measure: platform records: record %d: not in the order of keys, or twice", i)
		}
	}
	return &r, nil
}

// Marshal writes records, in the order of their keys.
func (r *Records) Marshal() ([]byte, error) { return strictjson.Marshal(r) }

// Add puts a record in, in place of one of the same key.
func (r *Records) Add(x *Record) {
	r.Schema = recordsSchema
	i, found := slices.BinarySearchFunc(r.Records, x.Key, func(a Record, k Key) int { return compareKeys(a.Key, k) })
	if found {
		r.Records[i] = *x
		return
	}
	r.Records = slices.Insert(r.Records, i, *x)
}

// Lookup returns the record of a key. A key without VMM or acceleration takes
// the one record that fits its other fields; none when there are several.
func (r *Records) Lookup(k Key) (*Record, bool) {
	if r == nil {
		return nil, false
	}
	var found *Record
	for i := range r.Records {
		have := r.Records[i].Key
		if k.VMM == "" {
			have.VMM = ""
		}
		if k.Accel == "" {
			have.Accel = ""
		}
		if have != k {
			continue
		}
		if found != nil {
			return nil, false
		}
		found = &r.Records[i]
	}
	return found, found != nil
}

func compareKeys(a, b Key) int {
	return cmp.Or(
		cmp.Compare(a.Firmware, b.Firmware), cmp.Compare(a.Vars, b.Vars),
		cmp.Compare(a.VMM, b.VMM), cmp.Compare(a.Accel, b.Accel), cmp.Compare(a.CPU, b.CPU),
		cmp.Compare(a.Machine, b.Machine), cmp.Compare(a.VCPUs, b.VCPUs), cmp.Compare(a.MemoryMiB, b.MemoryMiB),
		cmp.Compare(a.Path, b.Path), cmp.Compare(a.TPM, b.TPM),
	)
}
