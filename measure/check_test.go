package measure

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// found lists the registers that a check finds different, each with the events.
func found(r *CheckResult, bank string) []string {
	events := map[string][]string{}
	for _, x := range r.Registers {
		if x.Verdict == Mismatch && x.Bank == bank {
			for _, d := range x.Differences {
				if s := d.Kind + " " + d.Name; !slices.Contains(events[x.Register], s) {
					events[x.Register] = append(events[x.Register], s)
				}
			}
			if len(x.Differences) == 0 {
				events[x.Register] = append(events[x.Register], x.Reason)
			}
		}
	}
	var out []string
	for _, r := range slices.Sorted(maps.Keys(events)) {
		out = append(out, r+": "+strings.Join(events[r], ", "))
	}
	return out
}

// TestChanges changes one input after a prediction was written, and wants the
// check to name the events that move, and no others.
func TestChanges(t *testing.T) {
	image := "changed image /EFI/BOOT/BOOTX64.EFI"
	tests := []struct {
		name, path string
		fw, stub   string
		change     func(f *testFiles, b *Boot)
		want       []string
	}{
		{"nothing", "disk", "trixie", "257.13", func(*testFiles, *Boot) {}, nil},
		{"command line", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.cmdline = "console=ttyS0 Quiet" },
			[]string{"pcr11: changed section .cmdline", "pcr4: " + image, "pcr9: changed load options"}},
		{"initrd", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.initrd = "I" + f.initrd[1:] },
			[]string{"pcr11: changed section .initrd", "pcr4: " + image, "pcr9: changed initrd"}},
		{"os-release, which stub 252 does not hand on", "disk", "trixie", "252.39", func(f *testFiles, _ *Boot) { f.osrel = "ID=tesT\n" },
			[]string{"pcr11: changed section .osrel", "pcr4: " + image}},
		{"os-release, which stub 257 does", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.osrel = "ID=tesT\n" },
			[]string{"pcr11: changed section .osrel", "pcr4: " + image, "pcr9: changed initrd"}},
		{"kernel", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.kernel[len(f.kernel)-300] ^= 1 },
			[]string{"pcr11: changed section .linux", "pcr4: " + image + ", changed kernel inside the UKI"}},
		{"kernel, which stub 262 starts itself", "disk", "sid", "262.1", func(f *testFiles, _ *Boot) { f.kernel[len(f.kernel)-300] ^= 1 },
			[]string{"pcr11: changed section .linux", "pcr4: " + image}},
		{"disk GUID", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.diskID = 9 },
			[]string{"pcr5: changed partition table of disk 00000001-0000-0000-0000-000000000000, 1 in use"}},
		{"kernel by -kernel", "kernel", "trixie", "", func(f *testFiles, _ *Boot) { f.kernel[len(f.kernel)-300] ^= 1 },
			[]string{"pcr4: changed image from -kernel"}},
		{"one byte more of initrd by -initrd", "kernel", "trixie", "", func(f *testFiles, _ *Boot) { f.initrd += "x" },
			[]string{"pcr4: changed image from -kernel", "pcr9: changed initrd"}},
		{"memory, with -kernel", "kernel", "trixie", "", func(_ *testFiles, b *Boot) { b.Machine.MemoryMiB = 512 },
			[]string{"pcr4: changed image from -kernel"}},
		{"memory, with -kernel and a QEMU that changes nothing", "kernel", "trixie", "", func(_ *testFiles, b *Boot) {
			b.Machine.MemoryMiB, b.Machine.VMM = 512, "qemu 11.1.3"
		}, []string{"pcr4: changed image from -kernel"}}, // from 7.2 to 11.1
		{"-append", "kernel", "trixie", "", func(f *testFiles, _ *Boot) { f.cmdline += " x" }, []string{"pcr9: changed load options"}},
		{"disk in another slot", "disk", "trixie", "257.13", func(_ *testFiles, b *Boot) { b.Machine.DiskSlot = 3 },
			[]string{`pcr1: changed boot option Boot0001 "UEFI Misc Device"`}},
		{"Secure Boot's keys", "disk", "trixie", "257.13", func(f *testFiles, b *Boot) { b.Vars = f.enrolled },
			[]string{"pcr7: changed variable PK, changed variable KEK, changed variable db"}},
		{"DXEFV", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.fw = f.fw.altered("DXEFV") },
			[]string{"pcr0: changed firmware volume at 0x900000, 15204352 bytes"}},
		{"PEIFV", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.fw = f.fw.altered("PEIFV") },
			[]string{"pcr0: changed firmware volume at 0x820000, 917504 bytes"}},
		{"DXEFV where PEIFV is not recorded", "disk", "bookworm", "257.13", func(f *testFiles, _ *Boot) { f.fw = f.fw.altered("DXEFV") },
			[]string{"pcr0: changed firmware volume at 0x900000, 12582912 bytes"}},
		{"a newer firmware version", "disk", "trixie", "257.13", func(f *testFiles, _ *Boot) { f.fw.Version = "2025.02-9" },
			[]string{`pcr0: changed firmware version "2025.02-8+deb13u1"`}},
		{"a shell in a build without", "disk", "sid-secboot", "262.1", func(f *testFiles, _ *Boot) {
			f.fw.Behaviours = append(f.fw.Behaviours, shellOption)
		}, []string{`pcr1: changed boot order 0000 0001 0002, extra boot option Boot0003 "EFI Internal Shell"`}},
		{"QEMU's version, with a stub that measures SMBIOS", "disk", "sid", "262.1", func(_ *testFiles, b *Boot) { b.Machine.VMM = "qemu 10.0.13" },
			[]string{"pcr1: changed SMBIOS type 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newTestFiles(t, tt.fw, tt.stub)
			f.enrolled = nvramFlash(t, true)
			want := mustPredict(t, f.boot(t, tt.path))
			b := f.boot(t, tt.path)
			tt.change(f, b)
			changed := f.boot(t, tt.path)
			changed.Machine, changed.Vars = b.Machine, b.Vars
			got := reportOf(t, mustPredict(t, changed))
			got.Machine = want.Machine
			r := mustCheck(t, document(t, want), got)
			for _, bank := range allBanks {
				if diff := found(r, bank.String()); !slices.Equal(diff, tt.want) {
					t.Errorf("%v: got %q, want %q", bank, diff, tt.want)
				}
			}
			if r.OK() != (tt.want == nil) {
				t.Errorf("OK is %v", r.OK())
			}
		})
	}
}

// altered returns the firmware with another digest of one volume.
func (f *Firmware) altered(volume string) *Firmware {
	out := *f
	out.Volumes = slices.Clone(f.Volumes)
	for i, v := range out.Volumes {
		if v.Name != volume {
			continue
		}
		digests := map[string]string{}
		for _, bank := range allBanks {
			digests[bank.String()] = fmt.Sprintf("%x", bank.Sum([]byte(volume)))
		}
		out.Volumes[i].Measured = map[string]map[string]string{"q35": digests}
	}
	return &out
}

func verdict(t *testing.T, r *CheckResult, register, phase string) RegisterCheck {
	t.Helper()
	for _, x := range r.Registers {
		if x.Register == register && x.Bank == "sha256" && x.Phase == phase {
			return x
		}
	}
	t.Fatalf("no verdict on %s, phase %q", register, phase)
	return RegisterCheck{}
}

func TestVerdicts(t *testing.T) {
	f := newTestFiles(t, "trixie", "257.13")
	p := mustPredict(t, f.boot(t, "disk"))
	m := document(t, p)
	const phases = "enter-initrd:ready"

	r := mustCheck(t, m, reportOf(t, p))
	for register, want := range map[string]Verdict{
		"pcr0": Match, "pcr1": NotPredicted, "pcr4": Match, "pcr10": NotPredicted, "pcr11": Match, "pcr12": Unused, "pcr16": Unused, "pcr17": Unused, "pcr23": Unused,
	} {
		if x := verdict(t, r, register, ""); x.Verdict != want {
			t.Errorf("%s: %s (%s), want %s", register, x.Verdict, x.Reason, want)
		}
	}
	if x := verdict(t, r, "pcr11", phases); x.Verdict != Match {
		t.Errorf("pcr11 after: %s", x.Verdict)
	}
	if n := len(r.Registers); n != len(allBanks)*(registers+1) || !r.OK() {
		t.Errorf("%d verdicts, OK %v", n, r.OK())
	}

	other := strings.Repeat("ab", 32)
	tests := []struct {
		name, register, phase string
		change                func(o *Observed)
		want                  Verdict
		reason                string
	}{
		{"register without an event in the log", "pcr12", "", func(o *Observed) { o.Before["sha256"][12], o.After["sha256"][12] = other, other }, LogMismatch, "the log ends with 0000"},
		{"register that its log does not explain", "pcr4", "", func(o *Observed) { o.Before["sha256"][4], o.After["sha256"][4] = other, other }, LogMismatch, "the log ends with"},
		{"predicted register with a shorter log", "pcr5", "", func(o *Observed) { o.Log.Events = o.Log.Events[:len(o.Log.Events)-1] }, LogMismatch, "the log ends with"},
		{"phases not extended", "pcr11", phases, func(o *Observed) { o.After["sha256"][11] = o.Before["sha256"][11] }, Mismatch, "after the firmware's log: phase enter-initrd, phase ready"},
		{"register that the guest extends", "pcr15", "after", func(o *Observed) { o.After["sha256"][15] = other }, Mismatch, "extended by the guest"},
		{"register of a dynamic launch", "pcr17", "", func(o *Observed) { o.Before["sha256"][17] = strings.Repeat("00", 32) }, LogMismatch, "the log ends with ffff"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := reportOf(t, p)
			tt.change(o)
			r := mustCheck(t, m, o)
			x := verdict(t, r, tt.register, tt.phase)
			if x.Verdict != tt.want || !strings.Contains(x.Reason, tt.reason) {
				t.Errorf("%s (%s), want %s (%s)", x.Verdict, x.Reason, tt.want, tt.reason)
			}
			if r.OK() {
				t.Error("OK")
			}
		})
	}
}

// TestUnknownEvents: a register with an event that is not known is still held to
// the events that are.
func TestUnknownEvents(t *testing.T) {
	f := newTestFiles(t, "sid", "262.1")
	p := mustPredict(t, f.boot(t, "disk"))
	m := document(t, p)
	o := reportOf(t, p)
	for i, e := range o.Log.Events {
		if e.Register == 1 && e.Name == "boot order 0000 0001 0002 0003" {
			o.Log.Events = slices.Delete(o.Log.Events, i, i+1)
			break
		}
	}
	refold(t, o)
	x := verdict(t, mustCheck(t, m, o), "pcr1", "")
	if x.Verdict != Mismatch || len(x.Differences) != 1 || x.Differences[0].String() != "missing: boot order 0000 0001 0002 0003 (boot option)" {
		t.Errorf("%s: %v", x.Verdict, x.Differences)
	}
}

// refold makes the registers what the log says.
func refold(t *testing.T, o *Observed) {
	t.Helper()
	for _, bank := range o.Log.Algs {
		values, err := o.Log.Replay(bank)
		if err != nil {
			t.Fatal(err)
		}
		for r, v := range values {
			o.Before[bank.String()][r] = fmt.Sprintf("%x", v)
			if r != registerPhases {
				o.After[bank.String()][r] = o.Before[bank.String()][r]
			}
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	f := newTestFiles(t, "trixie", "257.13")
	p := mustPredict(t, f.boot(t, "disk"))
	tests := []struct {
		name   string
		change func(m *Measurements, o *Observed)
		want   string
	}{
		{"another shape", func(_ *Measurements, o *Observed) { o.Machine.VCPUs = 7 }, "no prediction for q35 with 7 vCPUs"},
		{"no log", func(_ *Measurements, o *Observed) { o.Log = nil }, "no event log"},
		{"no such bank", func(_ *Measurements, o *Observed) { delete(o.Before, "sha384") }, "did not report pcr0 of bank sha384"},
		{"no registers after the phases", func(_ *Measurements, o *Observed) { o.After = nil }, "did not report pcr11"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, o := document(t, p), reportOf(t, p)
			tt.change(m, o)
			if _, err := Check(m, o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	m := document(t, p)
	m.Values = slices.DeleteFunc(m.Values, func(v Value) bool { return v.Register == "pcr7" && v.Bank == "sha1" })
	r := mustCheck(t, m, reportOf(t, p))
	if r.OK() {
		t.Error("a register that the document lacks went unseen")
	}
}

func TestCompare(t *testing.T) {
	f := newTestFiles(t, "trixie", "257.13")
	a := document(t, mustPredict(t, f.boot(t, "disk")))
	if got := Compare(a, a); len(got) != 0 {
		t.Errorf("equal documents: %v", got)
	}
	f.cmdline += " x"
	b := document(t, mustPredict(t, f.boot(t, "disk")))
	var got []string
	for _, c := range Compare(a, b) {
		if c.Bank == "sha256" {
			got = append(got, fmt.Sprintf("%s %q %s", c.Register, c.Phase, strings.Join(c.Events, ", ")))
		}
	}
	want := []string{
		`pcr4 "" changed: image /EFI/BOOT/BOOTX64.EFI (ESP /EFI/BOOT/BOOTX64.EFI)`,
		`pcr9 "" changed: load options (command line)`,
		`pcr11 "" changed: section .cmdline (.cmdline)`,
		`pcr11 "enter-initrd:ready" changed: section .cmdline (.cmdline)`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
