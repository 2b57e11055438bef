package measure

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
)

func TestKernelRelease(t *testing.T) {
	k := testKernel()
	if got, err := KernelRelease(bytes.NewReader(k), int64(len(k))); err != nil || got != "6.12.107-test" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, tt := range []struct {
		name   string
		change func(k []byte) []byte
		want   string
	}{
		{"no magic", func(k []byte) []byte { k[0x202] = 'h'; return k }, `magic is "hdrS"`},
		{"old protocol", func(k []byte) []byte { k[0x206] = 1; k[0x207] = 2; return k }, "boot protocol 0x201"},
		{"short", func(k []byte) []byte { return k[:0x267] }, "EOF"},
		{"no version", func(k []byte) []byte { k[0x20e], k[0x20f] = 0, 0; return k }, "want a release"},
		{"version behind the end", func(k []byte) []byte { k[0x20e], k[0x20f] = 0xff, 0xff; return k }, "want a release"},
		{"no number", func(k []byte) []byte { copy(k[0x600:], "linux"); return k }, "want a release"},
		{"no end", func(k []byte) []byte { copy(k[0x600:], strings.Repeat("6.1", 300)); return k }, "want a release"},
	} {
		k := tt.change(testKernel())
		if got, err := KernelRelease(bytes.NewReader(k), int64(len(k))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, %v: want %q", tt.name, got, err, tt.want)
		}
	}
}

func FuzzKernelRelease(f *testing.F) {
	f.Add(testKernel())
	f.Fuzz(func(t *testing.T, b []byte) {
		release, err := KernelRelease(bytes.NewReader(b), int64(len(b)))
		if err == nil && (release == "" || strings.ContainsAny(release, " \x00")) {
			t.Errorf("release %q", release)
		}
		r, err := patched(section(b), section(make([]byte, 100)), "", &Machine{MemoryMiB: 64})
		if err != nil {
			return
		}
		got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
		if err != nil || len(got) != len(b) {
			t.Errorf("%d bytes of %d, %v", len(got), len(b), err)
		}
	})
}

// TestInitrdAddr has the addresses that QEMU 7.2 wrote into the setup header of a
// kernel with an initrd of 786190 bytes, found in its fw_cfg; those of larger
// machines follow from the digests in PCR 4 of boots in testdata.
func TestInitrdAddr(t *testing.T) {
	h, err := readSetup(bytes.NewReader(testKernel()))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		mib  int
		low  int64 // end of low memory
		size int64
	}{
		{512, 512 << 20, 786190}, {1024, 1 << 30, 786190}, {2560, 2560 << 20, 786190}, {2815, 2815 << 20, 4096},
		{2816, 2 << 30, 786190}, {3072, 2 << 30, 786190}, {65536, 2 << 30, 1},
	} {
		got, err := h.initrdAddr(tt.size, &Machine{MemoryMiB: tt.mib})
		want := uint32((tt.low - 0x28000 - 1 - tt.size) / 4096 * 4096)
		if err != nil || got != want {
			t.Errorf("%d MiB: got %#x, %v: want %#x", tt.mib, got, err, want)
		}
	}
	if _, err := h.initrdAddr(64<<20, &Machine{MemoryMiB: 64}); err == nil {
		t.Error("an initrd larger than the memory was taken")
	}
	old := bytes.Clone(h)
	binary.LittleEndian.PutUint16(old[0x236:], 0)
	binary.LittleEndian.PutUint32(old[0x22c:], 0x37ffffff)
	if got, _ := bzImage(old).initrdAddr(4096, &Machine{MemoryMiB: 2048}); got != 0x37ffe000 {
		t.Errorf("a kernel with a limit: got %#x", got)
	}
}

func TestPatchedRefuses(t *testing.T) {
	if _, err := patched(section(testKernel()), nil, "quiet vga=ask", &Machine{MemoryMiB: 64}); err == nil {
		t.Error("vga= was taken")
	}
}

func TestDirectLoadOptions(t *testing.T) {
	for _, tt := range []struct {
		cmdline        string
		initrd, prefix bool
		want           string
	}{
		{"quiet", false, false, "quiet"}, {"quiet", false, true, "quiet"},
		{"quiet", true, false, "quiet initrd=initrd"}, {"quiet", true, true, "initrd=initrd quiet"},
		{"", false, true, ""}, {"", true, false, " initrd=initrd"}, {"", true, true, "initrd=initrd "},
	} {
		if got := directLoadOptions(tt.cmdline, tt.initrd, tt.prefix); got != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
}
