package measure

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/uki"
)

// Files of a boot, as small as the formats allow. What real ones measure is in
// boots_test.go; these are for what a change of one byte does.

type testSection struct{ name, content string }

// peImage makes an EFI application. The PE header comes late, so that a bzImage's
// setup header has its place.
func peImage(sections ...testSection) []byte {
	const header, headers, align, optional = 0x280, 0x800, 0x200, 0xf0
	le := binary.LittleEndian
	b := make([]byte, headers)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], header)
	copy(b[header:], "PE\x00\x00")
	le.PutUint16(b[header+4:], 0x8664)
	le.PutUint16(b[header+6:], uint16(len(sections)))
	le.PutUint16(b[header+20:], optional)
	o := b[header+24:]
	le.PutUint16(o, 0x20b)        // PE32+
	le.PutUint32(o[32:], 0x1000)  // section alignment
	le.PutUint32(o[36:], align)   // file alignment
	le.PutUint32(o[60:], headers) // SizeOfHeaders
	le.PutUint16(o[68:], 10)      // EFI application
	le.PutUint32(o[108:], 16)     // directories
	address := uint32(0x1000)
	for i, s := range sections {
		t := b[header+24+optional+40*i:]
		copy(t[:8], s.name)
		le.PutUint32(t[8:], uint32(len(s.content)))
		le.PutUint32(t[12:], address)
		raw := (len(s.content) + align - 1) &^ (align - 1)
		le.PutUint32(t[16:], uint32(raw))
		le.PutUint32(t[20:], uint32(len(b)))
		le.PutUint32(t[36:], 0x40000040)
		b = append(b, s.content...)
		b = append(b, make([]byte, raw-len(s.content))...)
		address += uint32(raw+0xfff) &^ 0xfff
	}
	le.PutUint32(b[header+24+56:], address) // SizeOfImage
	return b
}

func testKernel() []byte {
	b := peImage(testSection{".setup", strings.Repeat("setup", 20)}, testSection{".text", strings.Repeat("kernel", 100)})
	le := binary.LittleEndian
	le.PutUint16(b[0x280+24+44:], 1) // image version: the EFI stub's
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint16(b[0x20e:], 0x400) // of the version, less 0x200
	copy(b[0x600:], "6.12.107-test (somebody) #1\x00")
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint16(b[0x236:], 0x3f)
	return b
}

func testStub(version string) []byte {
	return peImage(
		testSection{".text", strings.Repeat("stub", 50)},
		testSection{".sdmagic", "#### LoaderInfo: systemd-stub " + version + " ####\x00"},
		testSection{".sbat", "sbat,1,SBAT Version,sbat,1,https://example.org\nsystemd,1,x,y,1,z\n"},
	)
}

// testFiles are the inputs of one boot.
type testFiles struct {
	stub       string // version
	osrel      string
	cmdline    string
	initrd     string
	kernel     []byte
	diskID     byte
	partitions int // of the disk, each an EFI system partition
	vars       []byte
	fw         *Firmware
	enrolled   []byte
}

func newTestFiles(t testing.TB, fw, stub string) *testFiles {
	return &testFiles{
		stub: stub, osrel: "ID=test\n", cmdline: "console=ttyS0 quiet", initrd: strings.Repeat("initrd", 33), kernel: testKernel(),
		diskID: 1, partitions: 1, vars: nvramFlash(t, false), fw: firmware(t, fw),
	}
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

func (f *testFiles) uki(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	err := uki.Write(&b, testStub(f.stub), []uki.Section{
		{Name: ".osrel", Content: section([]byte(f.osrel))},
		{Name: ".cmdline", Content: section([]byte(f.cmdline))},
		{Name: ".initrd", Content: section([]byte(f.initrd))},
		{Name: ".linux", Content: section(f.kernel)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type writerAt struct{ b []byte }

func (w *writerAt) WriteAt(p []byte, off int64) (int, error) { return copy(w.b[off:], p), nil }

func (f *testFiles) disk(t testing.TB) []byte {
	t.Helper()
	image := f.uki(t)
	esp, err := disk.ESP([]tree.Entry{
		tree.Dir("EFI", 0o755), tree.Dir("EFI/BOOT", 0o755), tree.File("EFI/BOOT/BOOTX64.EFI", 0o644, tree.Bytes(image)),
	}, disk.ESPParams{})
	if err != nil {
		t.Fatal(err)
	}
	d := disk.Disk{ID: gpt.GUID{f.diskID}}
	for i := range f.partitions {
		esp.ID = gpt.GUID{2, byte(i)}
		d.Partitions = append(d.Partitions, esp)
	}
	layout, err := d.Layout()
	if err != nil {
		t.Fatal(err)
	}
	w := &writerAt{make([]byte, layout.Sectors*uint64(layout.SectorSize))}
	if err := disk.Write(w, d); err != nil {
		t.Fatal(err)
	}
	return w.b
}

func (f *testFiles) boot(t testing.TB, path string) *Boot {
	t.Helper()
	b := &Boot{
		Firmware: f.fw, Vars: f.vars, Phases: []string{"enter-initrd", "ready"}, Banks: allBanks,
		Machine: Machine{Type: "q35", VCPUs: 1, MemoryMiB: 1024, VMM: "qemu 7.2.22", Accel: "tcg"},
	}
	switch path {
	case "disk":
		b.Disk = section(f.disk(t))
	case "uki":
		b.UKI = section(f.uki(t))
	default:
		b.Kernel, b.Initrd, b.Cmdline = section(f.kernel), section([]byte(f.initrd)), f.cmdline
	}
	return b
}

func mustPredict(t testing.TB, b *Boot) *Prediction {
	t.Helper()
	p, err := Predict(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reportOf makes a report of a guest that measured what p says, an arbitrary
// value where p does not know.
func reportOf(t testing.TB, p *Prediction) *Observed {
	t.Helper()
	o := &Observed{Machine: p.Machine, Log: &eventlog.Log{Algs: p.Banks, Spec: eventlog.EDK2}}
	o.Before, o.After = map[string]map[int]string{}, map[string]map[int]string{}
	for _, e := range p.Events {
		if e.Digests == nil {
			e.Digests = digestsOf(p.Banks, []byte("unknown "+e.Source))
		}
		if e.Type == eventlog.HandoffTables { // as the firmware logs it, with an address
			e.Data = slices.Concat([]byte{1, 0, 0, 0, 0, 0, 0, 0}, smbiosTable[:], make([]byte, 8))
		}
		if !e.Unlogged {
			o.Log.Events = append(o.Log.Events, e.Event)
		}
	}
	for _, bank := range p.Banks {
		before, after := map[int]string{}, map[int]string{}
		for r := range registers {
			var logged, all []Event
			for _, e := range p.Events {
				if e.Digests == nil {
					e.Digests = digestsOf(p.Banks, []byte("unknown "+e.Source))
				}
				if e.Register == r {
					all = append(all, e)
					if !e.Unlogged || r == registerIMA {
						logged = append(logged, e)
					}
				}
			}
			before[r], after[r] = hex.EncodeToString(fold(bank, r, logged)), hex.EncodeToString(fold(bank, r, all))
		}
		o.Before[bank.String()], o.After[bank.String()] = before, after
	}
	return o
}

func mustCheck(t testing.TB, m *Measurements, o *Observed) *CheckResult {
	t.Helper()
	r, err := Check(m, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func document(t testing.TB, p ...*Prediction) *Measurements {
	t.Helper()
	m, err := NewMeasurements("test", p...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
