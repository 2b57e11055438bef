package measure

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// unsure are the registers that stay unknown with a record, and why.
func unsure(r *recordedBoot) []string {
	var out []string
	if r.Machine.DiskWritable && compareVersions(r.parts.Stub, "261") >= 0 {
		out = append(out, "pcr9", "pcr10") // boot secret
	}
	return out
}

// TestRecords predicts every boot with the record of every other boot of the
// same platform that booted another image, and wants every register of the TPM.
func TestRecords(t *testing.T) {
	boots := recordedBoots(t)
	predictions := map[string]*Prediction{}
	for _, r := range boots {
		predictions[r.name] = r.predict(t, nil)
	}
	pairs, firmwares := 0, map[string]bool{}
	for _, from := range boots {
		record, err := predictions[from.name].record(firmware(t, from.Firmware), from.observed(t))
		if err != nil {
			t.Errorf("%s: %v", from.name, err)
			continue
		}
		records := reparsed(t, record)
		for _, r := range boots {
			if p := predictions[r.name]; p.key != record.Key || p.image == record.Image {
				continue
			}
			pairs++
			firmwares[r.Firmware] = true
			p := r.predict(t, records)
			result := mustCheck(t, document(t, p), r.observed(t))
			for _, x := range result.Registers {
				known := x.Verdict == Match || x.Verdict == OneOfMatch || x.Verdict == Unused
				if known == slices.Contains(unsure(r), x.Register) {
					t.Errorf("%s with the record of %s: %s %s: %s %s %v", r.name, from.name, x.Bank, x.Register, x.Verdict, x.Reason, x.Differences)
				}
			}
		}
	}
	if pairs < 100 || len(firmwares) < 6 {
		t.Errorf("%d pairs of %d firmwares: the test has shrunk", pairs, len(firmwares))
	}
}

func reparsed(t *testing.T, r *Record) *Records {
	t.Helper()
	var records Records
	records.Add(r)
	b, err := records.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out, err := ParseRecords(b)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := out.Marshal(); !bytes.Equal(again, b) {
		t.Error("records change when read and written")
	}
	return out
}

// TestRecordKinds: nothing of a log is kept but what a record is for.
func TestRecordKinds(t *testing.T) {
	for _, r := range recordedBoots(t) {
		record, err := r.predict(t, nil).record(firmware(t, r.Firmware), r.observed(t))
		if err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		var kept, want []string
		for _, e := range record.Events {
			kept = append(kept, e.Digests["sha256"])
		}
		for _, e := range r.log.Events {
			may := e.Register == 0 && e.Type == eventlog.FirmwareBlob && bytes.Equal(e.Data, firmware(t, r.Firmware).Volumes[0].blob()) ||
				e.Register == 1 && (e.Type == eventlog.PlatformConfig || e.Type == eventlog.HandoffTables || e.Type == eventlog.VariableBoot)
			if may {
				want = append(want, hex.EncodeToString(e.Digest(eventlog.SHA256)))
			}
		}
		if !slices.Equal(kept, want) {
			t.Errorf("%s: kept %.16q, want %.16q", r.name, kept, want)
		}
	}
}

func TestRecordRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(o *Observed, p *Prediction)
		want   string
	}{
		{"a log that PCR 0 does not confirm", func(o *Observed, _ *Prediction) { o.Before["sha256"][0] = strings.Repeat("00", 32) }, "PCR 0 of bank sha256"},
		{"a log that PCR 7 of another bank does not confirm", func(o *Observed, _ *Prediction) { o.Before["sha384"][7] = strings.Repeat("00", 48) }, "PCR 7 of bank sha384"},
		{"no registers", func(o *Observed, _ *Prediction) { o.Before = nil }, "of bank sha256"},
		{"no log", func(o *Observed, _ *Prediction) { o.Log = nil }, "no event log"},
		{"the log of another image", func(_ *Observed, p *Prediction) { other(p, eventlog.BootApplication) }, "lacks image /EFI/BOOT/BOOTX64.EFI"},
		{"the log of another command line", func(_ *Observed, p *Prediction) { other(p, eventlog.EventTag) }, "lacks load options"},
		{"the log of another firmware", func(_ *Observed, p *Prediction) { other(p, eventlog.SCRTMVersion) }, "lacks firmware version"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := loadBoot(t, "trixie-disk-full")
			p, o := r.predict(t, nil), r.observed(t)
			tt.change(o, p)
			if _, err := p.record(firmware(t, r.Firmware), o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	r := loadBoot(t, "trixie-disk-full")
	o := r.observed(t)
	delete(o.Before, "sha512") // a bank that the guest does not report is left out
	record, err := r.predict(t, nil).record(firmware(t, r.Firmware), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range record.Events {
		if len(e.Digests) != 3 || e.Digests["sha512"] != "" {
			t.Errorf("%s: banks %v", e.Kind, e.Digests)
		}
	}
	b := newTestFiles(t, "trixie", "257.13").boot(t, "disk")
	b.Machine.VMM = ""
	if _, err := NewRecord(b, &Observed{}); err == nil || !strings.Contains(err.Error(), "VMM") {
		t.Errorf("record without VMM: %v", err)
	}
}

// other changes the digests of the predicted events of a type.
func other(p *Prediction, t eventlog.Type) {
	for i := range p.Events {
		if p.Events[i].Type == t {
			p.Events[i].Digests = digestsOf(allBanks, []byte("other"))
		}
	}
}

// TestOwnRecord: a record of the image itself is not used.
func TestOwnRecord(t *testing.T) {
	r := loadBoot(t, "trixie-disk-full")
	record, err := r.predict(t, nil).record(firmware(t, r.Firmware), r.observed(t))
	if err != nil {
		t.Fatal(err)
	}
	p := r.predict(t, reparsed(t, record))
	for _, v := range p.Values {
		if v.Register == "pcr1" && v.Provenance != Volatile {
			t.Errorf("PCR 1 is %s with a record of the same image", v.Provenance)
		}
	}
	if !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.Contains(n, "of a boot of this image") }) {
		t.Errorf("notes %q", p.Notes)
	}
}

// TestSameKernel: the same kernel by -kernel with another command line is another
// image, also where QEMU leaves the kernel as it is.
func TestSameKernel(t *testing.T) {
	r := loadBoot(t, "trixie-kernel-qemu11")
	record, err := r.predict(t, nil).record(firmware(t, r.Firmware), r.observed(t))
	if err != nil {
		t.Fatal(err)
	}
	records := reparsed(t, record)
	r.Append += " x"
	for _, v := range r.predict(t, records).Values {
		if v.Register == "pcr1" && v.Provenance != Recorded {
			t.Errorf("PCR 1 is %s: %s", v.Provenance, v.Reason)
		}
	}
}

func TestParseRecordsRefuses(t *testing.T) {
	r := loadBoot(t, "sid-disk-full")
	record, err := r.predict(t, nil).record(firmware(t, r.Firmware), r.observed(t))
	if err != nil {
		t.Fatal(err)
	}
	var records Records
	records.Add(record)
	b, err := records.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	tests := []struct{ name, old, new, want string }{
		{"an event that may not be recorded", `"kind": "acpi"`, `"kind": "image"`, `kind "image": may not be recorded`},
		{"three ACPI events", `"kind": "acpi"`, `"kind": "boot-variable"`, "3 ACPI"},
		{"no PEIFV", `"kind": "peifv"`, `"kind": "boot-variable"`, "0 PEIFV"},
		{"unknown key", `"image"`, `"picture"`, "unknown field"},
		{"other schema", `"schema": 1`, `"schema": 2`, "schema 2"},
		{"short digest", `"sha256": "`, `"sha256": "00`, "digest in bank sha256"},
		{"no image", `"image": "`, `"image": "x`, "want a SHA-256 digest"},
		{"two documents", "\n}\n", "\n}\n{}", "more than one document"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(good, tt.old, tt.new, 1)
			if bad == good {
				t.Fatal("nothing was changed")
			}
			if _, err := ParseRecords([]byte(bad)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	twice := records
	twice.Records = append(slices.Clone(records.Records), records.Records...)
	b, _ = twice.Marshal()
	if _, err := ParseRecords(b); err == nil {
		t.Error("two records of one key were taken")
	}
	if r, err := ParseRecords(nil); err != nil || len(r.Records) != 0 {
		t.Errorf("no bytes: %v, %v", r, err)
	}
}

func TestRecordable(t *testing.T) {
	f := firmware(t, "sid")
	table := slices.Concat([]byte{1, 0, 0, 0, 0, 0, 0, 0}, smbiosTable[:], make([]byte, 8))
	for _, tt := range []struct {
		name string
		e    eventlog.Event
		want bool
	}{
		{"PEIFV", eventlog.Event{Register: 0, Type: eventlog.FirmwareBlob, Data: f.Volumes[0].blob()}, true},
		{"DXEFV", eventlog.Event{Register: 0, Type: eventlog.FirmwareBlob, Data: f.Volumes[1].blob()}, false},
		{"ACPI", eventlog.Event{Register: 1, Type: eventlog.PlatformConfig, Data: []byte("ACPI DATA")}, true},
		{"another file of fw_cfg", eventlog.Event{Register: 1, Type: eventlog.PlatformConfig, Data: []byte("QEMU FW CFG\x00BootMenu")}, false},
		{"SMBIOS", eventlog.Event{Register: 1, Type: eventlog.HandoffTables, Data: table}, true},
		{"another table", eventlog.Event{Register: 1, Type: eventlog.HandoffTables, Data: make([]byte, tablePointers)}, false},
		{"boot option", eventlog.Event{Register: 1, Type: eventlog.VariableBoot}, true},
		{"SMBIOS tag of a stub", eventlog.Event{Register: 1, Type: eventlog.EventTag}, false},
		{"boot option in another register", eventlog.Event{Register: 7, Type: eventlog.VariableBoot}, false},
		{"image", eventlog.Event{Register: 4, Type: eventlog.BootApplication}, false},
		{"initrd", eventlog.Event{Register: 9, Type: eventlog.EventTag}, false},
		{"section", eventlog.Event{Register: 11, Type: eventlog.IPL}, false},
	} {
		if _, ok := recordable(&tt.e, f); ok != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, ok, tt.want)
		}
	}
}

func TestLookup(t *testing.T) {
	base := Key{Firmware: "f", VMM: "qemu 7.2.22", Accel: "tcg", Machine: "q35", VCPUs: 1, MemoryMiB: 1024, Path: "disk", TPM: "tpm-tis"}
	var r Records
	r.Add(&Record{Key: base})
	two := base
	two.VCPUs = 2
	r.Add(&Record{Key: two, Image: "first"})
	r.Add(&Record{Key: two, Image: "second"})
	kvm := two
	kvm.Accel = "kvm"
	r.Add(&Record{Key: kvm})
	if len(r.Records) != 3 {
		t.Fatalf("%d records, want 3", len(r.Records))
	}
	for _, tt := range []struct {
		name   string
		change func(k *Key)
		want   *Key
	}{
		{"the same", func(*Key) {}, &base},
		{"neither VMM nor acceleration known", func(k *Key) { k.VMM, k.Accel = "", "" }, &base},
		{"several fit", func(k *Key) { k.VCPUs, k.Accel = 2, "" }, nil},
		{"one of several", func(k *Key) { k.VCPUs, k.Accel = 2, "kvm" }, &kvm},
		{"other firmware", func(k *Key) { k.Firmware = "g" }, nil},
		{"other NVRAM", func(k *Key) { k.Vars = "v" }, nil},
		{"other VMM", func(k *Key) { k.VMM = "qemu 7.2.23" }, nil},
		{"other machine", func(k *Key) { k.Machine = "pc" }, nil},
		{"other memory", func(k *Key) { k.MemoryMiB = 512 }, nil},
		{"other path", func(k *Key) { k.Path = "kernel" }, nil},
		{"other processor", func(k *Key) { k.CPU = "EPYC" }, nil},
		{"other TPM", func(k *Key) { k.TPM = "tpm-crb" }, nil},
	} {
		k := base
		tt.change(&k)
		got, ok := r.Lookup(k)
		if ok != (tt.want != nil) || ok && got.Key != *tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	if _, ok := (*Records)(nil).Lookup(base); ok {
		t.Error("a record out of none")
	}
}
