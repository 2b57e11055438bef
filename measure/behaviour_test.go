package measure

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/uki"
)

// elsewhere are the rows whose code is in other packages.
var elsewhere = []string{peifvAltered, sectionsUnameSBAT, extraPolicy, extraOSRelease}

// TestProofs switches off each row of the table and wants the boot that proves
// it to contradict the prediction, which without the row it must not.
func TestProofs(t *testing.T) {
	all := records(t)
	for i := range Behaviours {
		row := Behaviours[i]
		if row.Boot == "" || slices.Contains(elsewhere, row.Key) {
			continue
		}
		t.Run(row.Key, func(t *testing.T) {
			r := loadBoot(t, row.Boot)
			records := all.without(r.predict(t, nil).image)
			if problems := contradictions(t, r, records); len(problems) > 0 {
				t.Fatalf("%s: %v", r.name, problems)
			}
			defer func() { Behaviours[i] = row }()
			Behaviours[i].Since, Behaviours[i].Content = "9999", ""
			if problems := contradictions(t, r, records); len(problems) == 0 {
				t.Errorf("%s: the prediction holds without this row, too", r.name)
			}
		})
	}
}

// records makes a platform record of every boot.
func records(t *testing.T) (all recordList) {
	t.Helper()
	for _, r := range recordedBoots(t) {
		x, err := r.predict(t, nil).record(firmware(t, r.Firmware), r.observed(t))
		if err != nil {
			t.Fatal(r.name, err)
		}
		all = append(all, x)
	}
	return all
}

type recordList []*Record

// without returns the records that are not of boots of an image.
func (l recordList) without(image string) *Records {
	var out Records
	for _, x := range l {
		if x.Image != image {
			out.Add(x)
		}
	}
	return &out
}

// contradictions lists in what a boot was not as predicted.
func contradictions(t *testing.T, r *recordedBoot, records *Records) (out []string) {
	t.Helper()
	p := r.predict(t, records)
	result := mustCheck(t, document(t, p), r.observed(t))
	for _, x := range result.Registers {
		if x.Verdict == Mismatch || x.Verdict == LogMismatch {
			out = append(out, fmt.Sprintf("%s %s: %v", x.Bank, x.Register, x.Differences))
		}
	}
	return append(out, eventProblems(p, r.log)...)
}

// TestRowsElsewhere holds the rows whose code is in other packages to it.
func TestRowsElsewhere(t *testing.T) {
	has := func(version string, section string) bool {
		var v uki.Version
		fmt.Sscan(version, &v.Major)
		return slices.Contains(uki.MeasuredOrder(v), section)
	}
	if since := behaviour(sectionsUnameSBAT).Since; !has(since, ".uname") || !has(since, ".sbat") || has("253", ".uname") || has("253", ".sbat") || since != "254" {
		t.Errorf("%s: since %s", sectionsUnameSBAT, since)
	}
	if since := behaviour(extraOSRelease).Since; since != "257" || bytes.Equal(initrdOf(t, "257"), initrdOf(t, "256")) || !bytes.Equal(initrdOf(t, "256"), initrdOf(t, "252")) {
		t.Errorf("%s: since %s", extraOSRelease, since)
	}
	for _, b := range recordedBoots(t) {
		f := firmware(t, b.Firmware)
		digests, err := f.Volumes[0].measured("q35", allBanks)
		if err != nil {
			t.Fatal(err)
		}
		known := digests != nil
		altered := slices.Contains([]string{"bookworm", "bookworm-secboot", "trixie-secboot", "sid-secboot"}, b.Firmware)
		if known == altered {
			t.Errorf("%s: PEIFV known: %v", b.Firmware, known)
		}
	}
}

func initrdOf(t *testing.T, stub string) []byte {
	t.Helper()
	p, err := newPredictor(newTestFiles(t, "trixie", stub).boot(t, "uki"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	return (&eventlog.Event{Digests: o.initrd}).Digest(eventlog.SHA256)
}

func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, b := range Behaviours {
		if b.Key == "" || b.What == "" || b.Source == "" || len(b.Registers) == 0 || seen[b.Key] {
			t.Errorf("row %+v is not complete, or there twice", b)
		}
		seen[b.Key] = true
		if b.Content != "" && b.Component != Edk2 {
			t.Errorf("%s: content of %s", b.Key, b.Component)
		}
		want := b.Boot
		if want == "" {
			want = "source"
		}
		if b.Proof() != want {
			t.Errorf("%s: proof %q, want %q", b.Key, b.Proof(), want)
		}
	}
}

// TestProven: every version that is said to be proven is that of a boot.
func TestProven(t *testing.T) {
	have := map[Component][]string{}
	for _, r := range recordedBoots(t) {
		v := r.predict(t, nil).Versions
		have[Edk2] = append(have[Edk2], v.Edk2)
		have[Stub] = append(have[Stub], v.Stub)
		have[Kernel] = append(have[Kernel], v.Kernel)
		have[VMM] = append(have[VMM], strings.TrimPrefix(v.VMM, "qemu "))
	}
	for component, versions := range proven {
		for _, version := range versions {
			if !slices.ContainsFunc(have[component], func(v string) bool { return isProven(component, v) && strings.HasPrefix(v, version) }) {
				t.Errorf("%s %s: no boot in testdata", component, version)
			}
		}
	}
	r := loadBoot(t, "trixie-disk-full")
	r.parts.Stub, r.Machine.VMM = "260.1", "qemu 9.2.1"
	want := []string{"stub 260.1: no boot of this version has proved the prediction", "vmm 9.2.1: no boot of this version has proved the prediction"}
	if got := r.predict(t, nil).Notes; !slices.Equal(got, want) {
		t.Errorf("notes %q, want %q", got, want)
	}
}

// TestUnknownPerFirmware fixes what stays unknown without a platform record: a
// prediction must not shrink unseen.
func TestUnknownPerFirmware(t *testing.T) {
	const kernel = "kernel"
	acpi := []string{"fw_cfg etc/table-loader", "fw_cfg etc/acpi/rsdp", "fw_cfg etc/acpi/tables"}
	peifv := []string{"firmware volume PEIFV"}
	want := map[string][]string{
		"bookworm-disk-full": append(slices.Clone(peifv), kernel),
		"trixie-disk-full":   append(slices.Clone(acpi), kernel),
		"sid-disk-full":      append(slices.Clone(acpi), "SMBIOS tables", kernel),
		"sid-secure-boot":    append(slices.Concat(peifv, acpi), "SMBIOS tables", kernel),
		"trixie-secure-boot": append(slices.Concat(peifv, acpi), kernel),
		"bookworm-uki":       append(slices.Clone(peifv), kernel),
		"sid-disk-writable":  append(slices.Clone(acpi), "SMBIOS tables", "initrd", kernel),
	}
	for name, sources := range want {
		var got []string
		for _, e := range loadBoot(t, name).predict(t, nil).Events {
			if e.Provenance == Volatile {
				got = append(got, e.Source)
			}
		}
		if !slices.Equal(got, sources) {
			t.Errorf("%s: not known are %q, want %q", name, got, sources)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"257.13-1~deb13u1", "258", -1}, {"258", "258", 0}, {"258.1", "258", 1}, {"262~rc1-2", "262", 0},
		{"2025.02-8+deb13u1", "2025.05", -1}, {"2026.08+ds-2", "2025.08", 1}, {"10.0.13", "9.2", 1}, {"10.1.0", "10.1", 1}, {"", "2023", -1},
		{"6.12.107+deb13-cloud-amd64", "6.12.107", 0}, {"x", "1", -1},
	} {
		if got := compareVersions(tt.a, tt.b); got != tt.want {
			t.Errorf("%s and %s: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
