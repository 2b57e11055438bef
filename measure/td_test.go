package measure

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
	"github.com/plinth-os/plinth/measure/tdx"
)

// testTD is a trust domain with a small firmware.
func testTD(t testing.TB) *TD {
	t.Helper()
	return &TD{
		Firmware: ovmftest.IntelTDX("2026.08-test"),
		Tables:   &Tables{Loader: []byte("loader"), RSDP: []byte("rsdp"), Tables: []byte("tables"), Source: "a test"},
	}
}

// tdBoot is a boot of small files in a trust domain.
func (f *testFiles) tdBoot(t testing.TB, path string) *Boot {
	t.Helper()
	b := f.boot(t, path)
	b.TD, b.Vars, b.Phases, b.Banks = testTD(t), nil, nil, nil
	b.Machine.VMM = "qemu 10.2.1"
	fw := *b.Firmware
	fw.Behaviours = slices.DeleteFunc(slices.Clone(fw.Behaviours), func(key string) bool { return key == smbiosTables || key == shellOption })
	b.Firmware = &fw
	return b
}

func newTDFiles(t testing.TB) *testFiles { return newTestFiles(t, "sid", "262.1") }

// registersOfTD returns the values by register.
func registersOfTD(t testing.TB, p *Prediction) map[string]Value {
	t.Helper()
	out := map[string]Value{}
	for _, v := range p.Values {
		if v.Platform != PlatformTDX || v.Bank != "sha384" || v.Phase != "" {
			t.Fatalf("value of %s %s, bank %s, phase %q", v.Platform, v.Register, v.Bank, v.Phase)
		}
		out[v.Register] = v
	}
	if len(p.Values) != 5 || len(out) != 5 {
		t.Fatalf("%d values of %d registers: want 5", len(p.Values), len(out))
	}
	return out
}

// expectedInTD takes from the log of a real boot with a TPM what stands for it in
// RTMR 1 and 2, in the order of its time: PCR 2 to 6, and 8 to 15. It is not told
// by the code that predicts.
func expectedInTD(r *recordedBoot) (rtmr1, rtmr2 []eventlog.Event) {
	older := func(version string, than int) bool {
		var n int
		fmt.Sscan(version, &n)
		return version != "" && n < than
	}
	separated := false
	for _, e := range r.log.Events {
		switch {
		case e.Type == eventlog.NoAction:
		case e.Type == eventlog.Separator && 2 <= e.Register && e.Register <= 6:
			if !separated { // one for all
				rtmr1 = append(rtmr1, e)
			}
			separated = true
		case 2 <= e.Register && e.Register <= 6:
			rtmr1 = append(rtmr1, e)
		case e.Register == 9 && strings.HasPrefix(r.parts.Kernel, "6.1."): // does not know the protocol
		case 11 <= e.Register && e.Register <= 13 && older(r.parts.Stub, 256): // nor does it
		case 8 <= e.Register && e.Register <= 15:
			rtmr2 = append(rtmr2, e)
		}
	}
	return rtmr1, rtmr2
}

// TestTDEvents holds the events behind RTMR 1 and 2 to those that real boots with
// a TPM measured of the same files, one by one.
func TestTDEvents(t *testing.T) {
	compared := 0
	for _, r := range recordedBoots(t) {
		t.Run(r.name, func(t *testing.T) {
			b := r.boot(t)
			fw := *b.Firmware
			fw.Behaviours = append(slices.Clone(fw.Behaviours), tdFirmware, fwcfgItems) // builds without TDX load images all the same
			b.TD, b.Firmware = testTD(t), &fw
			p, err := newPredictor(b)
			if err != nil {
				t.Fatal(err)
			}
			image := inBanks(t, r.parts.Image)
			if r.Path == "kernel" && r.parts.Patched != nil {
				if compareVersions(p.vmmVersion(), "10.2") < 0 && !(compareVersions(p.vmmVersion(), "10.0") >= 0 && fw.does(namedKernel)) {
					image = inBanks(t, r.parts.Patched)
				}
			}
			prediction, err := p.predict(r.payload(t, p))
			if err != nil {
				t.Fatal(err)
			}
			rtmr1, rtmr2 := expectedInTD(r)
			for _, x := range []struct {
				index int
				want  []eventlog.Event
			}{{2, rtmr1}, {3, rtmr2}} {
				var got []Event
				for _, e := range prediction.Events {
					if e.Register == x.index {
						got = append(got, e)
					}
				}
				if v, ok := p.variants[x.index]; ok && len(v) > 1 && len(v[1]) == len(x.want) {
					got = v[1]
				}
				if len(got) != len(x.want) {
					t.Errorf("RTMR %d: %d events, the boot has %d", x.index-1, len(got), len(x.want))
					continue
				}
				for i, want := range x.want {
					d := want.Digest(eventlog.SHA384)
					if want.Type == eventlog.BootApplication && r.Path == "kernel" {
						e := eventlog.Event{Digests: image}
						d = e.Digest(eventlog.SHA384)
					}
					if got[i].Type != want.Type || got[i].Provenance != Volatile && !bytes.Equal(got[i].Digest(eventlog.SHA384), d) {
						t.Errorf("RTMR %d, event %d: %v %q %x, the boot has %v %x", x.index-1, i, got[i].Type, got[i].Name, got[i].Digest(eventlog.SHA384), want.Type, d)
					}
					if got[i].Provenance != Volatile {
						compared++
					}
				}
			}
		})
	}
	if compared < 500 {
		t.Errorf("%d events compared", compared)
	}
}

// TestTDOrder names the events of all registers, in the order of the CC log.
func TestTDOrder(t *testing.T) {
	type event struct {
		register int
		name     string
	}
	start := []event{
		{1, "TdxTable"}, {1, "firmware blob Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX) at 0xfffda000, 131072 bytes"},
		{1, "fw_cfg file BootMenu"},
	}
	middle := []event{
		{1, "variable SecureBoot"}, {1, "variable PK"}, {1, "variable KEK"}, {1, "variable db"}, {1, "variable dbx"}, {1, "separator"},
		{1, "ACPI DATA"}, {1, "ACPI DATA"}, {1, "ACPI DATA"},
	}
	end := []event{{2, "Exit Boot Services Invocation"}, {2, "Exit Boot Services Returned with Success"}}
	options := []event{{1, "boot order 0000 0001"}, {1, `boot option Boot0000 "BootManagerMenuApp"`}, {1, `boot option Boot0001 "EFI Firmware Setup"`}}
	ready := []event{{2, "Calling EFI Application from Boot Option"}, {2, "separator"}}
	for path, want := range map[string][]event{
		"kernel": slices.Concat(start, []event{{1, "fw_cfg file bootorder"}}, middle, []event{{2, "image from -kernel"}}, options, ready,
			[]event{{3, "load options"}, {3, "initrd"}}, end),
		"disk": slices.Concat(start, middle,
			[]event{{1, "boot order 0000 0001 0002"}}, options[1:], []event{{1, `boot option Boot0002 "UEFI Misc Device"`}}, ready,
			[]event{{2, "partition table"}, {2, "image /EFI/BOOT/BOOTX64.EFI"}},
			[]event{
				{3, "name of section .linux"}, {3, "section .linux"}, {3, "name of section .osrel"}, {3, "section .osrel"},
				{3, "name of section .cmdline"}, {3, "section .cmdline"}, {3, "name of section .initrd"}, {3, "section .initrd"},
				{3, "name of section .sbat"}, {3, "section .sbat"}, {1, "SMBIOS type 1"},
			},
			[]event{{3, "load options"}, {3, "initrd"}}, end),
	} {
		f := newTDFiles(t)
		p := mustPredict(t, f.tdBoot(t, path))
		var got []event
		for _, e := range p.Events {
			name := e.Name
			if strings.HasPrefix(name, "partition table") {
				name = "partition table"
			}
			got = append(got, event{e.Register, name})
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got\n%v\nwant\n%v", path, got, want)
		}
		l := p.Log()
		if !l.CC || len(l.Events) != len(p.Events) || !slices.Equal(l.Algs, []eventlog.Alg{eventlog.SHA384}) {
			t.Errorf("%s: log of %d events, CC %v, %v", path, len(l.Events), l.CC, l.Algs)
		}
		rtmrs, err := tdx.RTMRs(l)
		if err != nil {
			t.Fatal(err)
		}
		values := registersOfTD(t, p)
		for i, r := range rtmrs {
			if v := values[fmt.Sprintf("rtmr%d", i)]; v.Value != hex.EncodeToString(r[:]) {
				t.Errorf("%s: RTMR %d is %s, the log replays to %x", path, i, v.Value, r)
			}
		}
		if v := values["rtmr3"]; v.Value != strings.Repeat("0", 96) || v.Reason == "" || v.Provenance != Predicted {
			t.Errorf("%s: RTMR 3: %+v", path, v)
		}
		mrtd, err := tdx.MRTD(ovmftest.IntelTDX("2026.08-test"), tdx.SinglePass)
		if v := values["mrtd"]; err != nil || v.Value != hex.EncodeToString(mrtd[:]) || len(v.Events) != 6 {
			t.Errorf("%s: MRTD is %+v, %v: want %x", path, v, err, mrtd)
		}
		if m := document(t, p); len(m.Values) != 5 {
			t.Errorf("%s: %d values in the document", path, len(m.Values))
		}
	}
}

// TestTDMoves changes one byte of each input and wants the events that it stands
// behind to move, no others, and no register that has none of them.
func TestTDMoves(t *testing.T) {
	secureBoot := func(b *Boot) {
		b.TD.Firmware = withVariable(t, b.TD.Firmware, ovmf.Variable{Name: "db", GUID: imageSecurity, Attributes: 0x27, Data: []byte{1}})
	}
	for _, tt := range []struct {
		name   string
		path   string
		change func(f *testFiles)
		boot   func(b *Boot)
		moves  string // register and name of each event that changes
	}{
		{"firmware code", "disk", nil, func(b *Boot) { b.TD.Firmware[0x20000+0x100] ^= 1 }, "mrtd section 0, BFV"},
		{"unused byte of the variables", "disk", nil, func(b *Boot) { b.TD.Firmware[0x1f000] ^= 1 }, "rtmr0 firmware blob"},
		{"variable", "disk", nil, secureBoot, "rtmr0 firmware blob; rtmr0 variable db"},
		{"memory", "disk", nil, func(b *Boot) { b.Machine.MemoryMiB++ }, "rtmr0 TdxTable"},
		{"ACPI loader", "disk", nil, func(b *Boot) { b.TD.Tables.Loader[0]++ }, "rtmr0 ACPI DATA (fw_cfg etc/table-loader)"},
		{"ACPI pointer", "disk", nil, func(b *Boot) { b.TD.Tables.RSDP[0]++ }, "rtmr0 ACPI DATA (fw_cfg etc/acpi/rsdp)"},
		{"ACPI tables", "disk", nil, func(b *Boot) { b.TD.Tables.Tables[0]++ }, "rtmr0 ACPI DATA (fw_cfg etc/acpi/tables)"},
		{"place of the disk", "disk", nil, func(b *Boot) { b.Machine.DiskSlot = 5 }, "rtmr0 boot option Boot0002"},
		{"machine type", "disk", nil, func(b *Boot) { b.Machine.Type = "pc-q35-9.2" }, "rtmr0 SMBIOS type 1"},
		{"disk", "disk", func(f *testFiles) { f.diskID = 9 }, nil, "rtmr1 partition table"},
		{"kernel", "disk", func(f *testFiles) { f.kernel[0x900] ^= 1 }, nil, "rtmr1 image; rtmr2 section .linux"},
		{"command line", "disk", func(f *testFiles) { f.cmdline += "x" }, nil, "rtmr1 image; rtmr2 section .cmdline; rtmr2 load options"},
		{"initrd", "disk", func(f *testFiles) { f.initrd += "x" }, nil, "rtmr1 image; rtmr2 section .initrd; rtmr2 initrd"},
		{"release", "disk", func(f *testFiles) { f.osrel += "x" }, nil, "rtmr1 image; rtmr2 section .osrel; rtmr2 initrd"},
		{"kernel", "kernel", func(f *testFiles) { f.kernel[0x900] ^= 1 }, nil, "rtmr1 image"},
		{"command line", "kernel", func(f *testFiles) { f.cmdline += "x" }, nil, "rtmr2 load options"},
		{"initrd", "kernel", func(f *testFiles) { f.initrd += "x" }, nil, "rtmr2 initrd"},
		{"processors", "kernel", nil, func(b *Boot) { b.Machine.VCPUs++ }, ""},
	} {
		t.Run(tt.path+" "+tt.name, func(t *testing.T) {
			before := registersOfTD(t, mustPredict(t, newTDFiles(t).tdBoot(t, tt.path)))
			f := newTDFiles(t)
			if tt.change != nil {
				tt.change(f)
			}
			b := f.tdBoot(t, tt.path)
			if tt.boot != nil {
				tt.boot(b)
			}
			var moved []string
			for _, v := range mustPredict(t, b).Values {
				old := before[v.Register]
				n := len(moved)
				for i := range v.Events {
					if v.Events[i].Digest != old.Events[i].Digest && (v.Register != "mrtd" || i == 0) {
						moved = append(moved, fmt.Sprintf("%s %s (%s)", v.Register, v.Events[i].Name, v.Events[i].Source))
					}
				}
				if (len(moved) > n) != (v.Value != old.Value) {
					t.Errorf("%s: %s, before %s, with %d events changed", v.Register, v.Value, old.Value, len(moved)-n)
				}
			}
			var want []string
			if tt.moves != "" {
				want = strings.Split(tt.moves, "; ")
			}
			if len(moved) != len(want) {
				t.Fatalf("moved %q, want %q", moved, want)
			}
			for i, m := range moved {
				name, source, _ := strings.Cut(want[i], " (")
				if !strings.HasPrefix(m, name) || !strings.Contains(m, source[:max(len(source)-1, 0)]) {
					t.Errorf("moved %q, want %q", m, want[i])
				}
			}
		})
	}
}

// TestTDVersions holds what versions decide.
func TestTDVersions(t *testing.T) {
	events := func(p *Prediction, index int) (out []string) {
		for _, e := range p.Events {
			if e.Register == index {
				out = append(out, e.Name)
			}
		}
		return out
	}
	predict := func(path, stub string, change func(f *testFiles, b *Boot)) *Prediction {
		f := newTestFiles(t, "sid", stub)
		b := f.tdBoot(t, path)
		if change != nil {
			change(f, b)
		}
		return mustPredict(t, b)
	}
	count := func(list []string, name string) (n int) {
		for _, x := range list {
			if x == name {
				n++
			}
		}
		return n
	}
	old := predict("disk", "262.1", func(_ *testFiles, b *Boot) {
		b.Firmware.Version = "2024.08"
		b.Firmware.Behaviours = slices.DeleteFunc(b.Firmware.Behaviours, func(key string) bool { return key == fwcfgItems })
	})
	if a, b := count(events(old, 1), "separator"), count(events(old, 2), "separator"); a != 2 || b != 0 {
		t.Errorf("edk2 2024.08: %d separators in RTMR 0, %d in RTMR 1: want 2 and 0", a, b)
	}
	if n := count(events(old, 1), "fw_cfg file BootMenu"); n != 0 {
		t.Errorf("edk2 2024.08: %d events of fw_cfg", n)
	}
	nameless := predict("disk", "262.1", func(_ *testFiles, b *Boot) { b.Firmware.Version = "" })
	if a, b := count(events(nameless, 1), "separator"), count(events(nameless, 2), "separator"); a != 1 || b != 1 {
		t.Errorf("a build that measures fw_cfg and names no version: %d separators in RTMR 0, %d in RTMR 1: want 1 and 1", a, b)
	}
	if got := events(predict("disk", "255.4", nil), 3); !slices.Equal(got, []string{"load options", "initrd"}) {
		t.Errorf("stub 255: RTMR 2 has %q", got)
	}
	if got := events(predict("disk", "256.7", nil), 3); len(got) != 12 {
		t.Errorf("stub 256: RTMR 2 has %q", got)
	}
	kernel68 := predict("disk", "262.1", func(f *testFiles, b *Boot) {
		copy(f.kernel[0x600:], "6.8.0-test\x00")
		b.Disk = section(f.disk(t))
	})
	if got := events(kernel68, 3); slices.Contains(got, "load options") || slices.Contains(got, "initrd") || len(got) == 0 {
		t.Errorf("Linux 6.8: RTMR 2 has %q", got)
	}
	for _, tt := range []struct {
		vmm   string
		named bool
		plain bool
	}{{"qemu 8.2.2", false, false}, {"qemu 8.2.2", true, false}, {"qemu 10.1.0", false, false}, {"qemu 10.1.0", true, true}, {"qemu 10.2.0", false, true}} {
		p := predict("kernel", "", func(_ *testFiles, b *Boot) {
			b.Machine.VMM = tt.vmm
			if !tt.named {
				b.Firmware.Behaviours = slices.DeleteFunc(b.Firmware.Behaviours, func(key string) bool { return key == namedKernel })
			}
		})
		want := predict("kernel", "", nil)
		same := registersOfTD(t, p)["rtmr1"].Value == registersOfTD(t, want)["rtmr1"].Value
		if same != tt.plain {
			t.Errorf("%s, kernel by name %v: unchanged kernel %v, want %v", tt.vmm, tt.named, same, tt.plain)
		}
	}
	v := registersOfTD(t, predict("kernel", "", func(_ *testFiles, b *Boot) { b.Machine.VMM = "" }))
	if v["rtmr1"].Provenance != Volatile || !strings.Contains(v["rtmr1"].Reason, "QEMU's version") {
		t.Errorf("without a version of QEMU: RTMR 1 %+v", v["rtmr1"])
	}
	if v["mrtd"].Provenance != OneOf || len(v["mrtd"].OneOf) != 2 || !strings.Contains(v["mrtd"].Reason, string(tdx.TwoPass)) {
		t.Errorf("without a version of QEMU: MRTD %+v", v["mrtd"])
	}
	two := registersOfTD(t, predict("disk", "262.1", func(_ *testFiles, b *Boot) { b.TD.Order = tdx.TwoPass }))
	if two["mrtd"].Value != v["mrtd"].OneOf[1] {
		t.Errorf("two passes: MRTD %+v", two["mrtd"])
	}
	writable := registersOfTD(t, predict("disk", "257.13", func(_ *testFiles, b *Boot) { b.Machine.DiskWritable = true }))
	if v := writable["rtmr1"]; v.Provenance != OneOf || len(v.OneOf) != 2 || !strings.Contains(v.Reason, "ExitBootServices") {
		t.Errorf("a disk that the guest can write to: RTMR 1 %+v", v)
	}
	unknown := registersOfTD(t, predict("disk", "262.1", func(_ *testFiles, b *Boot) { b.TD.Tables = nil }))
	if v := unknown["rtmr0"]; v.Provenance != Volatile || v.Reason != unrecorded {
		t.Errorf("without ACPI tables: RTMR 0 %+v", v)
	}
}

// TestTDOptions: a build that keeps its menus in the volume that a trust domain
// does not load has no options for them.
func TestTDOptions(t *testing.T) {
	f := newTDFiles(t)
	for _, tt := range []struct {
		without []string
		want    []string
	}{
		{[]string{setupFile}, []string{"boot order 0000 0001", `boot option Boot0000 "BootManagerMenuApp"`, `boot option Boot0001 "UEFI Misc Device"`}},
		{[]string{setupFile, bootMenu, setupOption}, []string{"boot order 0000", `boot option Boot0000 "UEFI Misc Device"`}},
		{[]string{bootMenu, setupOption}, []string{"boot order 0000 0001", `boot option Boot0000 "UiApp"`, `boot option Boot0001 "UEFI Misc Device"`}},
	} {
		b := f.tdBoot(t, "disk")
		b.Firmware.Behaviours = slices.DeleteFunc(b.Firmware.Behaviours, func(key string) bool { return slices.Contains(tt.without, key) })
		var got []string
		for _, e := range mustPredict(t, b).Events {
			if strings.HasPrefix(e.Name, "boot o") {
				got = append(got, e.Name)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("without %q: got %q, want %q", tt.without, got, tt.want)
		}
	}
}

func TestTDRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(b *Boot)
		want   string
	}{
		{"no firmware file", func(b *Boot) { b.TD.Firmware = nil }, "no firmware file"},
		{"no metadata", func(b *Boot) { b.TD.Firmware = ovmftest.BlankVars(0x20000) }, "trust domain"},
		{"firmware without TDX", func(b *Boot) { b.Firmware = firmware(t, "bookworm") }, "has no TdTcg2Dxe"},
		{"no firmware", func(b *Boot) { b.Firmware = nil }, "has no TdTcg2Dxe"},
		{"phases", func(b *Boot) { b.Phases = []string{"ready"} }, "phases: want a TPM"},
		{"half of the ACPI files", func(b *Boot) { b.TD.Tables.Loader = nil }, "0, 4 and 6 bytes: want all three"},
		{"order", func(b *Boot) { b.TD.Order = "backwards" }, `order "backwards"`},
		{"no memory", func(b *Boot) { b.Machine.MemoryMiB = 0 }, "0 MiB"},
		{"no PEI phase and a TPM", func(b *Boot) { b.TD, b.Vars, b.Firmware.Volumes, b.Banks = nil, b.TD.Firmware, nil, allBanks }, "no PEI phase"},
	} {
		b := newTDFiles(t).tdBoot(t, "disk")
		tt.change(b)
		if _, err := Predict(b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestFirmwareWithoutPEI: a build for trust domains alone has no volumes that a
// TPM would be extended by; another has to have them.
func TestFirmwareWithoutPEI(t *testing.T) {
	fw := *firmware(t, "sid")
	fw.Volumes = []Volume{}
	b, err := fw.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseFirmware(b); err != nil || len(got.Volumes) != 0 || !got.does(tdFirmware) {
		t.Errorf("got %+v, %v", got, err)
	}
	bad := bytes.Replace(b, []byte(`"td-firmware",`), nil, 1)
	if _, err := ParseFirmware(bad); err == nil || !strings.Contains(err.Error(), "0 volumes") {
		t.Errorf("without TdTcg2Dxe: %v", err)
	}
}

// TestTablesRecord: what is recorded of the ACPI tables predicts what the tables
// do, for that machine alone.
func TestTablesRecord(t *testing.T) {
	given := newTDFiles(t).tdBoot(t, "disk")
	given.Machine.Accel = "kvm"
	r, err := NewTablesRecord(given, given.TD.Tables)
	if err != nil {
		t.Fatal(err)
	}
	if r.Key.TPM != "none" || r.Image != "" || r.Source != "a test" || len(r.Events) != 3 {
		t.Errorf("record %+v", r)
	}
	var records Records
	records.Add(r)
	b, err := records.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseRecords(b)
	if err != nil {
		t.Fatal(err)
	}
	want := registersOfTD(t, mustPredict(t, given))
	for _, tt := range []struct {
		name   string
		change func(b *Boot)
		fits   bool
	}{
		{"the same", func(*Boot) {}, true},
		{"VMM from the record", func(b *Boot) { b.Machine.VMM, b.Machine.Accel = "", "" }, true},
		{"another QEMU", func(b *Boot) { b.Machine.VMM = "qemu 10.3.0" }, false},
		{"another number of processors", func(b *Boot) { b.Machine.VCPUs++ }, false},
		{"another path", func(b *Boot) { b.UKI, b.Disk = section(newTDFiles(t).uki(t)), nil }, false},
	} {
		b := newTDFiles(t).tdBoot(t, "disk")
		b.Machine.Accel = "kvm"
		b.TD.Tables, b.Records = nil, parsed
		tt.change(b)
		got := registersOfTD(t, mustPredict(t, b))["rtmr0"]
		if tt.fits && (got.Value != want["rtmr0"].Value || got.Provenance != Recorded) || !tt.fits && got.Provenance != Volatile {
			t.Errorf("%s: RTMR 0 %s %s %s", tt.name, got.Provenance, got.Value, got.Reason)
		}
		if i := slices.IndexFunc(got.Events, func(e EventRef) bool { return strings.Contains(e.Source, "etc/acpi/rsdp") }); tt.fits && got.Events[i].Source != "fw_cfg etc/acpi/rsdp, a test" {
			t.Errorf("%s: source %q", tt.name, got.Events[i].Source)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(b *Boot, x *Tables)
		want   string
	}{
		{"with a TPM", func(b *Boot, _ *Tables) { b.TD = nil }, "for a trust domain only"},
		{"VMM", func(b *Boot, _ *Tables) { b.Machine.VMM = "" }, "VMM or acceleration"},
		{"a file is missing", func(_ *Boot, x *Tables) { x.RSDP = nil }, "want all three"},
	} {
		b := newTDFiles(t).tdBoot(t, "disk")
		b.Machine.Accel = "kvm"
		x := *b.TD.Tables
		tt.change(b, &x)
		if _, err := NewTablesRecord(b, &x); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := NewRecord(given, &Observed{}); err == nil || !strings.Contains(err.Error(), "only the ACPI tables") {
		t.Errorf("a record of a trust domain's log: %v", err)
	}
	for _, tt := range []struct{ old, new, want string }{
		{`"tpm": "none"`, `"tpm": "tpm-tis"`, "0 PEIFV"},
		{`"image": ""`, `"image": "` + strings.Repeat("ab", 32) + `"`, "no image"},
		{`"source": "a test"`, `"source": ""`, "want a source"},
		{`"kind": "acpi"`, `"kind": "smbios"`, "2 ACPI and 1 SMBIOS events of 3"},
	} {
		bad := strings.Replace(string(b), tt.old, tt.new, 1)
		if bad == string(b) {
			t.Fatal(tt.old, "nothing was changed")
		}
		if _, err := ParseRecords([]byte(bad)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.new, err, tt.want)
		}
	}
}

// TestTDVectors predicts the machines of published values: firmware, memory and
// ACPI tables are theirs; what is started is not, and does not enter RTMR 0.
func TestTDVectors(t *testing.T) {
	dir := filepath.Join(testenv.Vectors(t), "measure", "tdx-measure")
	file := read(t, filepath.Join(dir, "OVMF.fd"))
	fw, err := DigestFirmware(file, []eventlog.Alg{eventlog.SHA384})
	if err != nil {
		t.Fatal(err)
	}
	for name, memory := range map[string]int{"canonical-defaults": 2048, "q35-with-hpet": 4096, "runtime-capture": 16384} {
		var want struct{ MRTD, RTMR0 string }
		b, err := os.ReadFile(filepath.Join(dir, name, "expected.json"))
		if err == nil {
			err = json.Unmarshal(b, &want)
		}
		if err != nil {
			t.Fatal(err)
		}
		tables := read(t, filepath.Join(dir, name, "acpi_tables.bin"))
		loader, rsdp := loaderOf(tables)
		boot := newTestFiles(t, "trixie", "").tdBoot(t, "kernel")
		boot.Firmware = fw
		boot.Machine.MemoryMiB = memory
		boot.TD = &TD{Firmware: file, Tables: &Tables{Loader: loader, RSDP: rsdp, Tables: tables}}
		got := registersOfTD(t, mustPredict(t, boot))
		if got["mrtd"].Value != want.MRTD {
			t.Errorf("%s: MRTD %s, want %s", name, got["mrtd"].Value, want.MRTD)
		}
		if got["rtmr0"].Value != want.RTMR0 {
			t.Errorf("%s: RTMR 0 %s, want %s", name, got["rtmr0"].Value, want.RTMR0)
		}
		tables[100]++
		if moved := registersOfTD(t, mustPredict(t, boot))["rtmr0"]; moved.Value == want.RTMR0 {
			t.Errorf("%s: RTMR 0 does not depend on the tables", name)
		}
	}
}

// loaderOf makes the other two ACPI files of a machine without a TPM from the
// tables, as QEMU's script names them: its commands are of 128 bytes, the kinds
// are allocate, add a pointer, add a checksum (QEMU, hw/acpi/bios-linker-loader.c).
func loaderOf(tables []byte) (loader, rsdp []byte) {
	const tablesFile, rsdpFile = "etc/acpi/tables", "etc/acpi/rsdp"
	le := binary.LittleEndian
	command := func(kind uint32, fields ...any) {
		b := make([]byte, 0, 128)
		b = le.AppendUint32(b, kind)
		for _, f := range fields {
			if s, ok := f.(string); ok {
				f = append([]byte(s), make([]byte, 56-len(s))...)
			}
			b, _ = binary.Append(b, le, f)
		}
		loader = append(loader, b[:128]...)
	}
	command(1, rsdpFile, uint32(16), uint8(2))
	command(1, tablesFile, uint32(64), uint8(1))
	rsdt := -1
	for at := 0; rsdt < 0; {
		t := tables[at:]
		size := int(le.Uint32(t[4:]))
		pointer := func(from, width int) { command(2, tablesFile, tablesFile, uint32(at+from), uint8(width)) }
		switch string(t[:4]) {
		case "FACP":
			pointer(36, 4)
			pointer(40, 4)
			pointer(140, 8)
		case "RSDT":
			for from := 36; from < size; from += 4 {
				pointer(from, 4)
			}
			rsdt = at
		}
		if string(t[:4]) != "FACS" {
			command(3, tablesFile, uint32(at+9), uint32(at), uint32(size))
		}
		at += size
	}
	command(2, rsdpFile, tablesFile, uint32(16), uint8(4))
	command(3, rsdpFile, uint32(8), uint32(0), uint32(20))
	loader = append(loader, make([]byte, -len(loader)&4095)...)
	rsdp = append([]byte("RSD PTR \x00BOCHS \x00"), 0, 0, 0, 0)
	le.PutUint32(rsdp[16:], uint32(rsdt))
	return loader, rsdp
}
