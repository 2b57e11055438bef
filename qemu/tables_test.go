package qemu

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// tablesMachine is a machine as that of the boots in measure/testdata, with a
// firmware that is not asked.
func tablesMachine(t *testing.T) Machine {
	t.Helper()
	if os.Getenv("PLINTH_QEMU") == "" {
		testenv.Need(t, "qemu-system-x86_64")
	}
	return Machine{VCPUs: 1, MemoryMiB: 1024, ReportPort: "org.plinth.report"}
}

func blankDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// acpiBoot is what a boot in measure/testdata measured of the ACPI files.
type acpiBoot struct {
	name    string
	Path    string
	Machine struct {
		VCPUs     int    `json:"vcpus"`
		MemoryMiB int    `json:"memory_mib"`
		VMM       string `json:"vmm"`
		TPM       string `json:"tpm"`
	}
	digests [][]byte // SHA-256 of table-loader, rsdp, tables
}

// acpiBoots are those of an edk2 that measures ACPI files, without SMM, one for
// each shape of machine.
func acpiBoots(t *testing.T) (out []acpiBoot) {
	t.Helper()
	paths, err := filepath.Glob("../measure/testdata/boots/*.json")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, path := range paths {
		b := acpiBoot{name: strings.TrimSuffix(filepath.Base(path), ".json")}
		if !strings.HasPrefix(b.name, "trixie-") && !strings.HasPrefix(b.name, "sid-") || strings.Contains(b.name, "sec") || strings.Contains(b.name, "enrolled") {
			continue
		}
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &b)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range readLog(t, strings.TrimSuffix(path, ".json")+".log.gz").Events {
			if e.Type == eventlog.PlatformConfig && string(e.Data) == "ACPI DATA" {
				b.digests = append(b.digests, e.Digest(eventlog.SHA256))
			}
		}
		const tpmLog = 2
		if len(b.digests) != 4 {
			t.Fatalf("%s: %d ACPI events", b.name, len(b.digests))
		}
		b.digests = append(b.digests[:tpmLog:tpmLog], b.digests[tpmLog+1:]...)
		if key := fmt.Sprint(b.Path == "disk", b.Machine); !seen[key] {
			out = append(out, b)
			seen[key] = true
		}
	}
	return out
}

func readLog(t *testing.T, path string) *eventlog.Log {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestTables holds the files to the digests that real boots of the same machines
// measured, of those made with this version of QEMU.
func TestTables(t *testing.T) {
	m := tablesMachine(t)
	if os.Getenv("PLINTH_SWTPM") == "" {
		testenv.Need(t, "swtpm")
	}
	binary, err := Find("")
	if err != nil {
		t.Fatal(err)
	}
	version, err := Version(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, b := range acpiBoots(t) {
		if b.Machine.VMM != "qemu "+version {
			continue
		}
		m := m
		m.VCPUs, m.MemoryMiB, m.TPM, m.TPMDevice = b.Machine.VCPUs, b.Machine.MemoryMiB, true, b.Machine.TPM
		if b.Path == "disk" {
			m.Disk = blankDisk(t)
		}
		leavesNothing(t)
		loader, rsdp, tables, err := Tables(t.Context(), m, Layout{})
		if err != nil {
			t.Fatalf("%s: %v", b.name, err)
		}
		for i, file := range [][]byte{loader, rsdp, tables} {
			name := []string{loaderFile, rsdpFile, tablesFile}[i]
			if got := eventlog.SHA256.Sum(file); !bytes.Equal(got, b.digests[i]) {
				t.Errorf("%s: %s has SHA-256 %x, the boot measured %x", b.name, name, got, b.digests[i])
			}
		}
		compared++
	}
	if compared == 0 {
		testenv.Missing(t, "qemu 7.2", "no boot with QEMU "+version+" is recorded")
	}
	t.Logf("%d machines", compared)
}

// TestTablesLayout: where the firmware puts things is in the tables, and nothing
// else of it is.
func TestTablesLayout(t *testing.T) {
	m := tablesMachine(t)
	m.Disk = blankDisk(t)
	ask := func(l Layout) []byte {
		t.Helper()
		loader, rsdp, tables, err := Tables(t.Context(), m, l)
		if err != nil || len(loader) == 0 || len(rsdp) != 20 {
			t.Fatalf("%d bytes of loader, %d of RSDP, %v", len(loader), len(rsdp), err)
		}
		return tables
	}
	tables := ask(Layout{TD: true})
	if again := ask(Layout{TD: true, AddressBits: 46, PCIEXBAR: 0xe0000000}); !bytes.Equal(tables, again) {
		t.Error("the same layout gives other tables")
	}
	has := func(b []byte, v uint64) bool { return bytes.Contains(b, binary.LittleEndian.AppendUint64(nil, v)) }
	// The window of a trust domain, as one that ran had it: tdx-measure's
	// runtime-capture has this address in its tables, too.
	if v := uint64(0x380000000000); !has(tables, v) || has(ask(Layout{}), v) {
		t.Errorf("window of a trust domain: not at %#x", v)
	}
	if v := uint64(0xb0000000); has(tables, v) || !has(ask(Layout{PCIEXBAR: 0xb0000000}), v) {
		t.Errorf("PCIEXBAR: not at %#x", v)
	}
}

// TestBootItems reads what measure predicts without asking: whether a menu is
// wanted, and what is booted.
func TestBootItems(t *testing.T) {
	m := tablesMachine(t)
	kernel := filepath.Join(t.TempDir(), "kernel")
	image := make([]byte, 0x4000)
	copy(image[0x202:], "HdrS")
	image[0x1f1], image[0x206], image[0x207], image[0x211] = 4, 0x0f, 2, 1
	binary.LittleEndian.PutUint32(image[0x22c:], 0x7fffffff)
	if err := os.WriteFile(kernel, image, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, disk, kernel, want string
	}{{"disk", blankDisk(t), "", ""}, {"kernel", "", kernel, "/rom@genroms/linuxboot_dma.bin\x00"}} {
		m.Disk, m.Kernel = tt.disk, tt.kernel
		q, err := startQtest(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		menu, err := q.item(0x0e, 2) // FW_CFG_BOOT_MENU
		if err != nil || !bytes.Equal(menu, []byte{0, 0}) {
			t.Errorf("%s: BootMenu is %x, %v: want 0000", tt.name, menu, err)
		}
		order, err := q.files("bootorder")
		if err != nil || string(order[0]) != tt.want {
			t.Errorf("%s: bootorder is %q, %v: want %q", tt.name, order, err, tt.want)
		}
		dir, err := q.directory()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"etc/extra-pci-roots", "etc/boot-menu-wait", "etc/reserved-memory-end", "opt/ovmf/X-PciMmio64Mb"} {
			if f, ok := dir[name]; ok && f.size > 0 {
				t.Errorf("%s: fw_cfg has %s", tt.name, name)
			}
		}
		if err := q.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestTablesRefuses(t *testing.T) {
	m := tablesMachine(t)
	for _, tt := range []struct {
		name   string
		change func(m *Machine)
		want   string
	}{
		{"another chipset", func(m *Machine) { m.Type = "pc" }, "want 0x29c08086, that of q35"},
		{"a bridge", func(m *Machine) { m.ExtraArgs = []string{"-device", "pcie-root-port,id=r,addr=05.0"} }, "PCI device 00:05.0"},
		{"a second root bus", func(m *Machine) { m.ExtraArgs = []string{"-device", "pxb-pcie,id=p,bus=pcie.0,bus_nr=128"} }, "more than one PCI root bus"},
		{"a device that is not there", func(m *Machine) { m.ExtraArgs = []string{"-device", "nothing"} }, "nothing"},
		{"no such QEMU", func(m *Machine) { m.Binary = "/nowhere/qemu" }, "/nowhere/qemu"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leavesNothing(t)
			m := m
			tt.change(&m)
			_, _, _, err := Tables(t.Context(), m, Layout{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	leavesNothing(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, _, err := Tables(ctx, m, Layout{}); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is done: %v", err)
	}
}

// TestWindow64 has addresses by hand: the upper eighth of the space; below the
// hole that QEMU keeps under 1 TiB for AMD's IOMMU, aligned to its size; else
// after the memory.
func TestWindow64(t *testing.T) {
	low := e820Entry{0, 2 << 30, e820RAM}
	hole := e820Entry{0xfd00000000, 0x300000000, 2}
	for _, tt := range []struct {
		name   string
		layout Layout
		memory []e820Entry
		want   uint64
	}{
		{"TCG", Layout{}, []e820Entry{low, hole}, 0xc000000000},
		{"40 bits without a hole", Layout{}, []e820Entry{low}, 0xe000000000},
		{"trust domain", Layout{TD: true}, []e820Entry{low}, 0x380000000000},
		{"trust domain of 40 bits, hole not seen", Layout{TD: true, AddressBits: 40}, []e820Entry{low, hole}, 0xe000000000},
		{"39 bits", Layout{AddressBits: 39}, []e820Entry{low}, 0x7000000000},
		{"38 bits: an eighth is no more than 32 GiB", Layout{AddressBits: 38}, []e820Entry{low}, 0x800000000},
		{"not believed", Layout{AddressBits: -1}, []e820Entry{low}, 0x800000000},
		{"not believed, 32 GiB and more", Layout{AddressBits: -1}, []e820Entry{low, {4 << 30, 30 << 30, e820RAM}}, 0x1000000000},
		{"memory into the upper eighth", Layout{}, []e820Entry{low, {4 << 30, 960 << 30, e820RAM}}, 0xf800000000},
	} {
		if got := tt.layout.window64(tt.memory); got != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.name, got, tt.want)
		}
	}
}

func TestParseE820(t *testing.T) {
	le := binary.LittleEndian
	good := le.AppendUint32(le.AppendUint64(le.AppendUint64(nil, 0x100), 0x200), 1)
	if got, err := parseE820(good); err != nil || len(got) != 1 || got[0] != (e820Entry{0x100, 0x200, 1}) {
		t.Errorf("got %v, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "short": good[:19], "wraps": le.AppendUint32(le.AppendUint64(le.AppendUint64(nil, 1<<63), 1<<63), 1),
	} {
		if _, err := parseE820(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// scripted is a QEMU that answers with lines, whatever it is asked.
func scripted(lines []byte) *qtest {
	return &qtest{conn: deaf{}, lines: bufio.NewReader(bytes.NewReader(lines))}
}

// deaf takes what is written to it.
type deaf struct{ net.Conn }

func (deaf) Write(b []byte) (int, error) { return len(b), nil }

func TestQtestAnswers(t *testing.T) {
	entry := make([]byte, fwcfgEntrySize)
	binary.BigEndian.PutUint32(entry, 3)
	copy(entry[8:], "etc/x")
	b64 := base64.StdEncoding.EncodeToString
	request := "OK\nOK\nOK\nOK AAAAAA==\n" // written, two halves of its address, done
	dir := request + "OK " + b64([]byte{0, 0, 0, 1}) + "\n" + request + "OK " + b64(append([]byte{0, 0, 0, 1}, entry...)) + "\n"
	for _, tt := range []struct{ name, lines, want string }{
		{"all is well", dir + request + "OK " + b64([]byte("abc")) + "\n", ""},
		{"no file", strings.ReplaceAll(dir, b64(append([]byte{0, 0, 0, 1}, entry...)), b64(append([]byte{0, 0, 0, 1}, make([]byte, fwcfgEntrySize)...))), "has no file etc/x"},
		{"refusal", "FAIL Unknown command\n", "want OK"},
		{"no answer", "", "EOF"},
		{"request not done", "OK\nOK\nOK\nOK AAAAAQ==\n", "control is 0x1"},
		{"too little", request + "OK AAAA\n", "got 3 bytes"},
		{"not base64", request + "OK !!!!\n", "got 0 bytes"},
		{"too many files", request + "OK " + b64([]byte{0, 1, 0, 0}) + "\n", "65536 files"},
		{"a file that is too large", strings.ReplaceAll(dir, b64(append([]byte{0, 0, 0, 1}, entry...)),
			b64(append([]byte{0, 0, 0, 1, 0xff}, entry[1:]...))), "want at most 16777216"},
	} {
		got, err := scripted([]byte(tt.lines)).files("etc/x")
		switch {
		case tt.want == "" && (err != nil || string(got[0]) != "abc"):
			t.Errorf("%s: got %q, %v", tt.name, got, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := scripted([]byte("OK 0x1ffffffff\n")).in32(0xcfc); err == nil || !strings.Contains(err.Error(), "number of 32 bits") {
		t.Errorf("a number of 33 bits: %v", err)
	}
}

// FuzzQtest answers with arbitrary lines.
func FuzzQtest(f *testing.F) {
	f.Add([]byte("OK\nOK\nOK\nOK AAAAAA==\nOK AAAAAQ==\n"))
	f.Add([]byte("OK 0x29c08086\nOK\n"))
	f.Add([]byte("FAIL\n"))
	f.Fuzz(func(t *testing.T, lines []byte) {
		if _, err := scripted(lines).files("etc/x"); err == nil && !bytes.Contains(lines, []byte("OK")) {
			t.Error("files from nothing")
		}
		if err := scripted(lines).placeBARs(1 << 40); err == nil && len(lines) < 100 {
			t.Error("devices from nothing")
		}
	})
}
