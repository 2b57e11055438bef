package eventlog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// events reads "register type name digest" rows.
func events(t *testing.T, rows string) []Event {
	t.Helper()
	var out []Event
	for line := range strings.Lines(rows) {
		var e Event
		var typ, digest string
		if _, err := fmt.Sscan(line, &e.Register, &typ, &e.Name, &digest); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		e.Type = map[string]Type{"app": BootApplication, "sep": Separator, "var": VariableBoot, "none": NoAction, "ipl": IPL}[typ]
		if e.Name == "-" {
			e.Name = ""
		}
		e.Digests = []Digest{{SHA256, []byte(digest)}}
		out = append(out, e)
	}
	return out
}

func TestDiff(t *testing.T) {
	const boot = "4 app uki A\n4 sep separator 0\n5 sep separator 0\n1 var Boot0000 X\n1 var Boot0001 Y\n"
	tests := []struct {
		name, want, got string
		diff            []string
	}{
		{"equal", boot, boot, nil},
		{"order of registers", boot, "5 sep separator 0\n1 var Boot0000 X\n1 var Boot0001 Y\n4 app uki A\n4 sep separator 0\n", nil},
		{"changed", boot, strings.Replace(boot, "uki A", "uki B", 1), []string{"register 4: event 0: changed: uki"}},
		{"changed and renamed", boot, strings.Replace(boot, "uki A", "other B", 1), []string{"register 4: event 0: changed: uki, now other"}},
		{"missing", boot, strings.Replace(boot, "1 var Boot0000 X\n", "", 1), []string{"register 1: event 0: missing: Boot0000"}},
		{"extra", boot, boot + "4 app kernel K\n", []string{"register 4: event 2: extra: kernel"}},
		{"extra in front", boot, "4 app shell S\n" + boot, []string{"register 4: event 0: extra: shell"}},
		{"new register", boot, boot + "9 ipl initrd I\n", []string{"register 9: event 0: extra: initrd"}},
		{"moved", boot, "4 app uki A\n4 sep separator 0\n5 sep separator 0\n1 var Boot0001 Y\n1 var Boot0000 X\n", []string{"register 1: event 0: moved: Boot0000"}},
		{"unnamed", "4 app - A\n", "4 app - B\n", []string{"register 4: event 0: changed: EV_EFI_BOOT_SERVICES_APPLICATION"}},
		{"another type", "4 app x A\n", "4 sep y B\n", []string{"register 4: event 0: missing: x", "register 4: event 0: extra: y"}},
		{"type between other neighbours", "4 app x A\n4 sep s 0\n", "4 sep s 0\n4 app y B\n", []string{"register 4: event 0: missing: x", "register 4: event 1: extra: y"}},
		{"name between other neighbours", "4 app x A\n4 sep s 0\n", "4 sep s 0\n4 app x B\n", []string{"register 4: event 0: changed: x"}},
		{"no action", boot, "0 none startup L\n" + boot, nil},
		{"two of three", "1 var a A\n1 var b B\n1 var c C\n", "1 var a A\n1 var c D\n", []string{"register 1: event 1: missing: b", "register 1: event 2: changed: c"}},
	}
	for _, tt := range tests {
		var got []string
		for _, d := range Diff(events(t, tt.want), events(t, tt.got), SHA256) {
			got = append(got, d.String())
			if (d.Want == nil) != (d.Kind == Extra) || (d.Got == nil) != (d.Kind == Missing) {
				t.Errorf("%s: %v: want %v, got %v", tt.name, d, d.Want, d.Got)
			}
		}
		if diff := cmp.Diff(tt.diff, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
	}
}

// In a bank that an event lacks it differs from everything, itself included.
func TestDiffWithoutDigest(t *testing.T) {
	e := events(t, "4 app uki A\n")
	if d := Diff(e, e, SHA1); len(d) != 1 || d[0].Kind != Changed {
		t.Errorf("%v", d)
	}
}

// A hostile log may be long: the comparison stays small and still finds the one
// event that differs.
func TestDiffOfLongLists(t *testing.T) {
	var want, got []Event
	for i := range 20000 {
		e := Event{Register: 1, Type: IPL, Digests: []Digest{{SHA256, fmt.Append(nil, i)}}}
		want, got = append(want, e), append(got, e)
	}
	got[777].Digests = []Digest{{SHA256, []byte("x")}}
	changed := 0
	for _, d := range Diff(want, got, SHA256) {
		if d.Kind != Moved {
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("%d events differ, want 1", changed)
	}
}

// Two real boots of the same firmware, one from a disk and one with Secure Boot:
// every difference has a name.
func TestDiffOfBoots(t *testing.T) {
	a, _ := readLog(t, "edk2-2025.02-disk")
	b, _ := readLog(t, "edk2-2025.02-secureboot")
	a.Describe()
	b.Describe()
	var got []string
	for _, d := range Diff(a.Events, b.Events, SHA256) {
		got = append(got, d.String())
	}
	want := []string{
		"register 0: event 1: changed: firmware volume at 0x820000, 917504 bytes",
		"register 0: event 2: changed: firmware volume at 0x900000, 15204352 bytes",
		"register 1: event 0: changed: ACPI DATA",
		"register 1: event 1: changed: ACPI DATA",
		"register 1: event 3: changed: ACPI DATA",
		"register 1: event 4: changed: boot order 0000 0001 0002, now boot order 0000 0001",
		`register 1: event 7: missing: boot option Boot0002 "EFI Internal Shell"`,
		"register 4: event 3: missing: kernel inside the UKI",
		"register 7: event 0: changed: variable SecureBoot",
		"register 7: event 1: changed: variable PK",
		"register 7: event 2: changed: variable KEK",
		"register 7: event 3: changed: variable db",
		"register 7: event 6: extra: authority in db",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
