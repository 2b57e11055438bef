package measure

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// qemuSMBIOS is etc/smbios/smbios-tables of QEMU 7.2.22, read over qtest, of a q35
// machine with -cpu max, one processor and 1 GiB, without its last structure.
const qemuSMBIOS = "\x01\x1b\x00\x01\x01\x02\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00" +
	"QEMU\x00Standard PC (Q35 + ICH9, 2009)\x00pc-q35-7.2\x00\x00" +
	"\x03\x16\x00\x03\x01\x01\x02\x00\x00\x03\x03\x03\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00QEMU\x00pc-q35-7.2\x00\x00" +
	"\x04\x2a\x00\x04\x01\x03\x01\x02\xb1\x0f\x06\x00\xfd\xfb\xcb\x0f\x03\x00\x00\x00\xd0\x07\xd0\x07A\x01\xff\xff\xff\xff\xff\xff\x00\x00\x00\x01\x01\x01\x02\x00\x01\x00" +
	"CPU 0\x00QEMU\x00pc-q35-7.2\x00\x00" +
	"\x10\x17\x00\x10\x01\x03\x06\x00\x00\x10\x00\xfe\xff\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x11\x28\x00\x11\x00\x10\xfe\xff\xff\xff\xff\xff\x00\x04\x09\x00\x01\x00\x07\x02\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00DIMM 0\x00QEMU\x00\x00" +
	"\x13\x1f\x00\x13\x00\x00\x00\x00\xff\xff\x0f\x00\x00\x10\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x20\x0b\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// installedSMBIOS is what Debian's OVMF 2026.08+ds-2 makes of it: with a structure
// of type 0 that names the build, and one that ends the table (SmbiosPlatformDxe.c,
// SmbiosDxe.c).
const installedSMBIOS = qemuSMBIOS +
	"\x00\x1a\x00\x00\x01\x02\x00\xe8\x03\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x1c\x00\x00\xff\xff\x00\x00" +
	"Debian distribution of EDK II\x002026.08+ds-2\x0009/26/2026\x00\x00" +
	"\x7f\x04\xff\xfe\x00\x00"

// TestSMBIOS: the digest of the table is the one that a boot of that machine
// measured with a TPM.
func TestSMBIOS(t *testing.T) {
	measured, err := filteredSMBIOS([]byte(installedSMBIOS))
	if err != nil {
		t.Fatal(err)
	}
	l := loadBoot(t, "sid-disk-full").log
	i := slices.IndexFunc(l.Events, func(e eventlog.Event) bool { return e.Type == eventlog.HandoffTables })
	if want := l.Events[i].Digest(eventlog.SHA256); !bytes.Equal(eventlog.SHA256.Sum(measured), want) {
		t.Errorf("SHA-256 %x, the boot measured %x", eventlog.SHA256.Sum(measured), want)
	}
	// In a trust domain it is the event of RTMR 0.
	b := newTDFiles(t).tdBoot(t, "disk")
	b.Firmware.Behaviours = append(b.Firmware.Behaviours, smbiosTables)
	without := registersOfTD(t, mustPredict(t, b))["rtmr0"]
	if without.Provenance != Volatile || !strings.Contains(without.Reason, "name the host's processor") {
		t.Errorf("without the table: %+v", without)
	}
	b.TD.Tables.SMBIOS = []byte(installedSMBIOS)
	with := registersOfTD(t, mustPredict(t, b))["rtmr0"]
	i = slices.IndexFunc(with.Events, func(e EventRef) bool { return e.Name == "SMBIOS tables" })
	if with.Provenance != Recorded || i < 0 || !strings.HasPrefix(with.Events[i+1].Name, "boot order") {
		t.Fatalf("with the table: %+v", with)
	}
	b.Machine.Accel = "kvm"
	r, err := NewTablesRecord(b, b.TD.Tables)
	if err != nil || len(r.Events) != 4 {
		t.Fatalf("record %+v, %v", r, err)
	}
	var records Records
	records.Add(r)
	b.TD.Tables, b.Records = nil, &records
	if recorded := registersOfTD(t, mustPredict(t, b))["rtmr0"]; recorded.Value != with.Value {
		t.Errorf("from a record %s, from the table %s", recorded.Value, with.Value)
	}
	b.TD.Tables = testTD(t).Tables
	b.TD.Tables.SMBIOS = []byte("bad")
	if _, err := Predict(b); err == nil || !strings.Contains(err.Error(), "measure: SMBIOS") {
		t.Errorf("a bad table: %v", err)
	}
}

// TestSMBIOSHidden: of each field that is hidden a change moves nothing, of its
// neighbours it does.
func TestSMBIOSHidden(t *testing.T) {
	const end = "\x7f\x04\xff\xfe\x00\x00"
	digest := func(table string) string {
		t.Helper()
		b, err := filteredSMBIOS([]byte(table))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tt := range []struct {
		kind, offset int
		hidden       bool
	}{
		{1, 0x06, false}, {1, 0x08, true}, {1, 0x17, true}, {1, 0x18, true}, {1, 0x19, false}, {4, 0x10, false}, {4, 0x11, true}, {4, 0x16, true}, {4, 0x18, false},
		{4, 0x23, true}, {4, 0x25, true}, {4, 0x26, false}, {4, 0x2a, true}, {4, 0x2f, true}, {4, 0x08, false}, {11, 0x05, true}, {15, 0x10, true}, {18, 4, true}, {31, 9, true}, {33, 4, true},
		{12, 5, false}, {22, 0x10, true}, {22, 0x13, true}, {23, 0x05, true}, {23, 0x06, true}, {23, 0x07, false}, {27, 0x0d, true}, {27, 0x0e, false}, {128, 4, true}, {200, 0x20, true}, {126, 4, false},
	} {
		s := make([]byte, 0x30)
		s[0], s[1] = byte(tt.kind), 0x30
		before := digest(string(s) + "\x00\x00" + end)
		s[tt.offset] = 1
		if same := digest(string(s)+"\x00\x00"+end) == before; same != tt.hidden {
			t.Errorf("type %d, offset %#x: hidden is %v, want %v", tt.kind, tt.offset, same, tt.hidden)
		}
	}
	texts := func(kind, offset, n byte, text string) string {
		s := make([]byte, 0x30)
		s[0], s[1], s[offset] = kind, 0x30, n
		return digest(string(s) + text + "\x00\x00" + end)
	}
	for _, x := range [][2]byte{{1, 7}, {2, 7}, {2, 10}, {3, 7}, {3, 8}, {4, 0x20}, {4, 0x21}, {4, 0x22}, {17, 0x18}, {17, 0x19}, {17, 0x1a}, {22, 7}, {39, 8}, {39, 9}, {39, 10}} {
		if got := texts(x[0], x[1], 2, "one\x00two\x00three"); !strings.Contains(got, "one\x00   \x00three") || strings.Contains(got, "two") {
			t.Errorf("type %d, offset %#x: text 2 is not hidden: %q", x[0], x[1], got)
		}
	}
	if got := texts(1, 7, 0, "one"); !strings.Contains(got, "one") {
		t.Errorf("text 0: %q", got)
	}
	if got := texts(1, 7, 9, "one\x00two"); !strings.Contains(got, "one\x00   \x00") {
		t.Errorf("text 9 of 2: %q", got)
	}
	if got := texts(1, 7, 1, ""); len(got) != 0x30+2+6 {
		t.Errorf("no texts: %q", got)
	}
	if got := digest(end + "more"); got != end {
		t.Errorf("after the end: %q", got)
	}
}

func TestSMBIOSRefuses(t *testing.T) {
	for _, tt := range []struct{ name, table, want string }{
		{"empty", "", "0 bytes left"},
		{"no end", "\x0c\x05\x00\x00\x00\x00\x00", "0 bytes left"},
		{"short header", "\x7f\x04", "2 bytes left"},
		{"short length", "\x7f\x03\x00\x00\x00\x00", "length 3"},
		{"long length", "\x7f\x09\x00\x00\x00\x00", "length 9"},
		{"texts without end", "\x7f\x04\x00\x01abc\x00", "handle 0x100: the texts do not end"},
		{"too large", strings.Repeat("x", 1<<20+1), "want at most"},
	} {
		if _, err := filteredSMBIOS([]byte(tt.table)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzSMBIOS(f *testing.F) {
	f.Add([]byte(installedSMBIOS))
	f.Add([]byte("\x01\x08\x00\x00\x00\x00\x00\x02a\x00\x00\x7f\x04\xff\xfe\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out, err := filteredSMBIOS(b)
		if err != nil {
			return
		}
		if len(out) > len(b) {
			t.Errorf("%d bytes of %d", len(out), len(b))
		}
		if again, err := filteredSMBIOS(out); err == nil && len(again) > len(out) {
			t.Errorf("%d bytes of %d", len(again), len(out))
		}
	})
}
