package eventlog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/plinth-os/plinth/internal/gpt"
)

// The names of a whole boot, as a person reads them, are in testdata/NAME.txt.
func TestDescribeRecorded(t *testing.T) {
	for _, name := range recorded {
		l, _ := readLog(t, name)
		l.Describe()
		var got strings.Builder
		for _, e := range l.Events {
			fmt.Fprintf(&got, "%2d %s\n", e.Register, e.Name)
		}
		path := filepath.Join("testdata", name+".txt")
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func TestDescribe(t *testing.T) {
	guid := func(s string) string {
		g, err := gpt.ParseGUID(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(g[:])
	}
	const tag = "\x51\xf7\x46\x6c\x02\x00\x00\x00x\x00"
	tests := []struct {
		typ  Type
		data string
		want string
	}{
		{NoAction, "StartupLocality\x00\x04", "startup locality 4"},
		{NoAction, "SP800-155 Event\x00rest", "SP800-155 Event"},
		{SCRTMVersion, "1\x00.\x000\x00\x00\x00", `firmware version "1.0"`},
		{SCRTMVersion, "\x00\x00", `firmware version ""`},
		{FirmwareBlob, "\x00\x00\x82\x00\x00\x00\x00\x00\x00\x00\x0e\x00\x00\x00\x00\x00", "firmware volume at 0x820000, 917504 bytes"},
		{FirmwareBlob, "\x00\x00\x82\x00", "EV_EFI_PLATFORM_FIRMWARE_BLOB"},
		{FirmwareBlob2, "\x03CFV\x00\x00\xc0\xff\x00\x00\x00\x00\x00\x40\x08\x00\x00\x00\x00\x00", "firmware blob CFV at 0xffc00000, 540672 bytes"},
		{HandoffTables, "\x01\x00\x00\x00\x00\x00\x00\x00" + guid("f2fd1544-9794-4a2c-992e-e5bbcf20e394") + strings.Repeat("\x00", 8), "SMBIOS tables"},
		{HandoffTables, "\xff\xff\xff\xff\xff\xff\xff\xff", "EV_EFI_HANDOFF_TABLES"},
		{HandoffTables2, "\x06TdxHob\x00\x00\x00\x00\x00\x00\x00\x00", "TdxHob"},
		{PlatformConfig, "ACPI DATA", "ACPI DATA"},
		{PlatformConfig, "QEMU FW CFG\x00etc/extra-pci-roots" + strings.Repeat("\x00", 37), "fw_cfg file etc/extra-pci-roots"},
		{VariableAuthority, string(Variable{Name: "db"}.Bytes()), "authority in db"},
		{VariableBoot, string(Variable{Name: "BootOrder", Data: []byte{1, 0, 0xa, 0}}.Bytes()), "boot order 0001 000A"},
		{VariableBoot, string(Variable{Name: "Boot0001", Data: []byte("\x01\x00\x00\x00\x04\x00d\x00\x00\x00\x7f\xff\x04\x00")}.Bytes()), `boot option Boot0001 "d"`},
		{VariableDriver, "short", "EV_EFI_VARIABLE_DRIVER_CONFIG"},
		{GPTEvent, "short", "EV_EFI_GPT_EVENT"},
		{BootApplication, strings.Repeat("\x00", 32), "image without a device path"},
		{BootApplication, strings.Repeat("\x00", 33), "image without a device path"},
		{PostCode, "POST CODE", "POST CODE"},
		{PostCode, "\x00\x00\xa9\xff\x00\x00\x00\x00\x00\x00\x35\x00\x00\x00\x00\x00", "firmware volume at 0xffa90000, 3473408 bytes"},
		{BootApplication, strings.Repeat("\x00", 31), "EV_EFI_BOOT_SERVICES_APPLICATION"},
		{EventTag, "\xec\x22\x3b\x8f\x02\x00\x00\x00x\x00", "initrd"},
		{EventTag, tag, "device tree"},
		{EventTag, "\x01\x00\x00\x00\x02\x00\x00\x00xy", `tag 0x00000001 "xy"`},
		{EventTag, "\xec\x22\x3b\x8f\xff\x00\x00\x00x\x00", "EV_EVENT_TAG"},
		{IPL, "g\x00r\x00u\x00b\x00\x00\x00", "grub"},
		{IPL, "MokList\x00", "MokList"},
		{IPL, ".\x00c\x00m\x00d\x00\x00\x00", "section .cmd"},
		{EFIAction, "Calling EFI Application from Boot Option", "Calling EFI Application from Boot Option"},
		{Type(0x1234), "\xff\xfe\xfd", "EV_0x00001234"},
		// What the guest logs must not reach a terminal as it is.
		{EFIAction, "\x1b[2Jgone", "EV_EFI_ACTION"},
		{IPL, "\x1b\x00[\x002\x00J\x00\x00\x00", "\uFFFD[2J"},
		{Action, strings.Repeat("a", 300), strings.Repeat("a", 200) + "…"},
	}
	for _, tt := range tests {
		l := Log{Events: []Event{{Type: tt.typ, Data: []byte(tt.data)}}}
		if l.Describe(); l.Events[0].Name != tt.want {
			t.Errorf("%v %q: %q, want %q", tt.typ, tt.data, l.Events[0].Name, tt.want)
		}
	}
}

func TestErrorSeparator(t *testing.T) {
	e := Event{Type: Separator, Data: []byte("tpm "), Digests: []Digest{{SHA256, SHA256.Sum([]byte{1, 0, 0, 0})}}}
	if got := describe(&e); got != "error separator 74706d20" {
		t.Error(got)
	}
}

// What BdsDxe writes on the console for a boot option is the second opinion on
// the first rows; the others are UEFI 2.10, section 10.6.
func TestDevicePath(t *testing.T) {
	const end = "7fff0400"
	tests := []struct{ hex, want string }{
		{"02010c00d041030a0000000001010600000104012a000100000000080000000000000098010000000000aaaaaaaabbbbccccddddeeeeeeeeeeee0202040430005c004500460049005c0042004f004f0054005c0042004f004f0054005800360034002e0045004600490000007fff0400",
			`PciRoot(0x0)/Pci(0x1,0x0)/HD(1,GPT,AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE,0x800,0x19800)/\EFI\BOOT\BOOTX64.EFI`},
		{"04071400c9bdb87cebf8344faaea3ee4af6516a10406140083a5047c3e9e1c4fad65e05268d0b4d1" + end,
			"Fv(7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1)/FvFile(7C04A583-9E3E-4F1C-AD65-E05268D0B4D1)"},
		{"0403140072f728144ab61e44b8c39ebdd7f893c7040412006b00650072006e0065006c000000" + end, "VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7)/kernel"},
		{"02010c00d041080a01000000" + end, "PcieRoot(0x1)"},
		{"02010c00d041010500000000" + end, "Acpi(PNP0501,0x0)"},
		{"01010600021f" + "03120a00010002000300" + end, "Pci(0x1F,0x2)/Sata(0x1,0x2,0x3)"},
		{"0302080001000200" + "030506000102" + end, "Scsi(0x1,0x2)/USB(0x1,0x2)"},
		{"030b2500525400123456" + strings.Repeat("00", 26) + "01" + end, "MAC(525400123456,0x1)"},
		{"0317100001000000" + "0807060504030201" + end, "NVMe(0x1,1-2-3-4-5-6-7-8)"},
		{"0317050001" + end, "Path(3,23,01)"},
		{"02020c00d041030a00000000" + end, "Path(2,2,D041030A00000000)"},
		{"0401080001000000" + end, "Path(4,1,01000000)"},
		{"031808006874" + "7470" + end, "Uri(http)"},
		{"04012a00010000000008000000000000009801000000000012345678" + strings.Repeat("00", 12) + "0101" + end, "HD(1,MBR,0x78563412,0x800,0x19800)"},
		{"0402180001000000" + "0200000000000000" + "0300000000000000" + end, "CDROM(0x1,0x2,0x3)"},
		{"0101060002" + "1f", "Pci(0x1F,0x2)/(malformed)"},
		{"7f010400" + end, ""},
		{"7e050600abcd" + end, "Path(126,5,ABCD)"},
		{"010105001f" + end, "Path(1,1,1F)"},
		{"0101", "(malformed)"},
		{"01010300" + end, "(malformed)"},
		{"0101ff00021f", "(malformed)"},
	}
	for _, tt := range tests {
		if got := DevicePath(unhex(t, tt.hex)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.hex, got, tt.want)
		}
	}
}

func TestVariable(t *testing.T) {
	v := Variable{Name: "Ünder€😀", Data: []byte{1, 2, 3}}
	v.GUID[0] = 7
	b := v.Bytes()
	got, err := ParseVariable(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(v, got); diff != "" {
		t.Error(diff)
	}
	for n := range b {
		if _, err := ParseVariable(b[:n]); err == nil {
			t.Fatalf("%d of %d bytes are a variable", n, len(b))
		}
	}
	b[23] = 0x80 // name length
	if _, err := ParseVariable(b); err == nil || !strings.Contains(err.Error(), "characters in") {
		t.Errorf("error %v", err)
	}
}
