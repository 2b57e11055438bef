package tdx

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/ovmf"
)

// machine is one of the machines that virtee/tdx-measure publishes values of.
type machine struct {
	Name   string `json:"name"`
	Inputs struct {
		Firmware string `json:"firmware"`
		Tables   string `json:"acpi_tables"`
		Metadata struct {
			Boot struct {
				Memory string `json:"memory"`
			} `json:"boot_config"`
		} `json:"metadata"`
	} `json:"inputs"`
	Expected struct{ MRTD, RTMR0 string } `json:"expected"`

	dir      string
	firmware []byte
	tables   []byte
}

func (m *machine) memoryMiB(t *testing.T) int {
	t.Helper()
	n := 0
	for _, c := range m.Inputs.Metadata.Boot.Memory {
		if c == 'M' {
			return n
		}
		n = n*10 + int(c-'0')
	}
	t.Fatalf("%s: memory %q", m.Name, m.Inputs.Metadata.Boot.Memory)
	return 0
}

func machines(t *testing.T) []machine {
	t.Helper()
	dir := filepath.Join(testenv.Vectors(t), "measure", "tdx-measure")
	var file struct {
		Vectors []machine `json:"vectors"`
	}
	if err := json.Unmarshal(read(t, dir, "vectors.json"), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 3 {
		t.Fatalf("%d machines", len(file.Vectors))
	}
	for i := range file.Vectors {
		m := &file.Vectors[i]
		m.dir, m.firmware, m.tables = dir, read(t, dir, m.Inputs.Firmware), read(t, dir, m.Inputs.Tables)
	}
	return file.Vectors
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMRTDVectors(t *testing.T) {
	for _, m := range machines(t) {
		got, err := MRTD(m.firmware, SinglePass)
		if err != nil || hex.EncodeToString(got[:]) != m.Expected.MRTD {
			t.Errorf("%s: %x, %v: want %s", m.Name, got, err, m.Expected.MRTD)
		}
	}
}

// RTMR 0 of the published machines follows from their firmware, memory and ACPI
// tables: edk2 2025.02, no TPM, no Secure Boot, started with -kernel.
func TestRTMR0Vectors(t *testing.T) {
	for _, m := range machines(t) {
		r, err := RTMRs(rtmr0Log(t, &m))
		if err != nil || hex.EncodeToString(r[0][:]) != m.Expected.RTMR0 {
			t.Errorf("%s: %x, %v: want %s", m.Name, r[0], err, m.Expected.RTMR0)
		}
		if zero := [48]byte{}; r[1] != zero || r[2] != zero || r[3] != zero {
			t.Errorf("%s: RTMR 1 to 3 without an event: %x", m.Name, r[1:])
		}
	}
}

// rtmr0Log is the list of what the firmware measures into PCR 1 and 7.
func rtmr0Log(t *testing.T, m *machine) *eventlog.Log {
	t.Helper()
	meta, err := ovmf.ReadMetadata(m.firmware)
	if err != nil {
		t.Fatal(err)
	}
	hob, err := HOB(meta, m.memoryMiB(t))
	if err != nil {
		t.Fatal(err)
	}
	cfv, _, err := CFV(m.firmware)
	if err != nil {
		t.Fatal(err)
	}
	l := &eventlog.Log{Algs: []eventlog.Alg{eventlog.SHA384}, Spec: eventlog.EDK2}
	add := func(pcr int, kind eventlog.Type, measured []byte) {
		l.Events = append(l.Events, eventlog.Event{Register: pcr, Type: kind, Digests: []eventlog.Digest{{Alg: eventlog.SHA384, Value: eventlog.SHA384.Sum(measured)}}})
	}
	add(1, eventlog.HandoffTables2, hob)
	add(1, eventlog.FirmwareBlob2, cfv)
	for _, v := range secureBootVariables {
		add(7, eventlog.VariableDriver, v.Bytes())
	}
	add(7, eventlog.Separator, make([]byte, 4))
	loader, rsdp := deriveLoader(t, m.tables)
	for _, file := range [][]byte{loader, rsdp, m.tables} {
		add(1, eventlog.PlatformConfig, file)
	}
	add(1, eventlog.VariableBoot, []byte{0, 0}) // BootOrder: 0000
	add(1, eventlog.VariableBoot, uiApp())
	return l
}

// secureBootVariables are those of a firmware without keys.
var secureBootVariables = []eventlog.Variable{
	{GUID: ovmf.GlobalVariable, Name: "SecureBoot"},
	{GUID: ovmf.GlobalVariable, Name: "PK"},
	{GUID: ovmf.GlobalVariable, Name: "KEK"},
	{GUID: ovmf.ImageSecurity, Name: "db"},
	{GUID: ovmf.ImageSecurity, Name: "dbx"},
}

// uiApp is the EFI_LOAD_OPTION of the firmware's setup, in its own volume: UEFI
// 2.10, section 3.1.3.
func uiApp() []byte {
	const activeHiddenApp = 0x109
	path := node(4, 7, guid("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1"))                 // volume
	path = append(path, node(4, 6, guid("462caa21-7614-4503-836e-8ab6f4662331"))...) // file
	path = append(path, node(0x7f, 0xff, nil)...)
	b := binary.LittleEndian.AppendUint32(nil, activeHiddenApp)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
	for _, c := range utf16.Encode([]rune("UiApp\x00")) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, path...)
}

func node(kind, sub byte, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{kind, sub}, uint16(4+len(data))), data...)
}

func guid(s string) []byte {
	g, err := ovmf.ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g[:]
}

// deriveLoader makes etc/table-loader and etc/acpi/rsdp as QEMU does for a q35
// machine without a TPM: hw/i386/acpi-build.c, hw/acpi/bios-linker-loader.c. The
// published machines have only etc/acpi/tables.
func deriveLoader(t *testing.T, tables []byte) (loader, rsdp []byte) {
	t.Helper()
	const rsdpFile, tablesFile = "etc/acpi/rsdp", "etc/acpi/tables"
	le := binary.LittleEndian
	command := func(kind uint32, files []string, numbers ...any) {
		b := le.AppendUint32(nil, kind)
		for _, f := range files {
			b = append(append(b, f...), make([]byte, 56-len(f))...)
		}
		for _, n := range numbers {
			b, _ = binary.Append(b, le, n)
		}
		loader = append(append(loader, b...), make([]byte, 128-len(b))...)
	}
	allocate := func(file string, align uint32, zone uint8) { command(1, []string{file}, align, zone) }
	pointer := func(in string, at uint32, size uint8) { command(2, []string{in, tablesFile}, at, size) }
	checksum := func(file string, start, length, at uint32) { command(3, []string{file}, at, start, length) }

	allocate(rsdpFile, 16, 2)
	allocate(tablesFile, 64, 1)
	rsdt := uint32(0)
	for at := uint32(0); ; {
		table := tables[at:]
		name, size := string(table[:4]), le.Uint32(table[4:])
		switch name {
		case "FACP":
			pointer(tablesFile, at+36, 4)  // FACS
			pointer(tablesFile, at+40, 4)  // DSDT
			pointer(tablesFile, at+140, 8) // the same, wide
		case "RSDT":
			rsdt = at
			for entry := uint32(36); entry < size; entry += 4 {
				pointer(tablesFile, at+entry, 4)
			}
		}
		if name != "FACS" {
			checksum(tablesFile, at, size, at+9)
		}
		if at += size; name == "RSDT" {
			break
		}
	}
	pointer(rsdpFile, 16, 4)
	checksum(rsdpFile, 0, 20, 8)
	loader = append(loader, make([]byte, -len(loader)&0xfff)...)
	rsdp = le.AppendUint32(append([]byte("RSD PTR "), 0, 'B', 'O', 'C', 'H', 'S', ' ', 0), rsdt)
	return loader, rsdp
}

// Moving one byte of an artefact moves the event that stands for it, and no
// other.
func TestRTMR0Moves(t *testing.T) {
	m := machines(t)[0]
	want := rtmr0Log(t, &m)
	before, err := RTMRs(want)
	if err != nil {
		t.Fatal(err)
	}
	const hob, cfv, tables = 0, 1, 10
	for name, tt := range map[string]struct {
		change func(m *machine)
		event  int
	}{
		"variables": {func(m *machine) { m.firmware[0x100] ^= 1 }, cfv},
		"memory":    {func(m *machine) { m.Inputs.Metadata.Boot.Memory = "2049M" }, hob},
		"tables":    {func(m *machine) { m.tables[0x80] ^= 1 }, tables},
	} {
		changed := m
		changed.firmware, changed.tables = bytes.Clone(m.firmware), bytes.Clone(m.tables)
		tt.change(&changed)
		l := rtmr0Log(t, &changed)
		d := eventlog.Diff(want.Events, l.Events, eventlog.SHA384)
		if len(d) != 1 || d[0].Kind != eventlog.Changed || d[0].Want != &want.Events[tt.event] {
			t.Errorf("%s: %v, want event %d alone", name, d, tt.event)
		}
		if after, err := RTMRs(l); err != nil || after[0] == before[0] {
			t.Errorf("%s: RTMR 0 stays, %v", name, err)
		}
	}
}
