package ovmf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

func ptr[T any](v T) *T { return &v }

func mustMetadata(t testing.TB, file []byte) *Metadata {
	t.Helper()
	m, err := ReadMetadata(file)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fullTail has every kind of entry and metadata.
func fullTail() ovmftest.Tail {
	tail := ovmftest.AmdSevTail()
	tail.TDX = ovmftest.TDXTail(0x20000, 0x3000).TDX
	tail.TDX[2] = ovmftest.TDX{GPA: 0x900000, MemSize: 0x1000, Type: 3, Attributes: TDXAug}
	tail.IGVM = [][3]uint32{{0x812000, 0x1000, 0x100}, {0, 0xc0, 0x101}, {0xc0, 0x10, 0x102}, {0x813000, 0x1000, 0x200}}
	tail.Others = []ovmftest.Entry{{GUID: GUID{1}, Data: []byte("first")}, {GUID: GUID{2}}, {GUID: GUID{1}, Data: []byte("again")}}
	return tail
}

// fullFile is a flash of 0x23000 bytes with fullTail.
func fullFile() []byte { return append(make([]byte, 0x22000), fullTail().Bytes()...) }

func TestReadMetadata(t *testing.T) {
	got := mustMetadata(t, fullFile())
	want := &Metadata{
		Size: 0x23000, Whole: 0x23000,
		SEV: []SEVSection{
			{0x800000, 0x9000, SEVMemory}, {0x80a000, 0x3000, SEVMemory}, {0x80d000, 0x1000, SEVSecrets}, {0x80e000, 0x1000, SEVCPUID},
			{0x80f000, 0x1000, SEVSVSMCAA}, {0x811000, 0x1f000, SEVMemory}, {0x810000, 0x1000, SEVKernelHashes},
		},
		TDX: []TDXSection{
			{0x20000, 0x3000, 0xffffd000, 0x3000, TDXBFV, TDXExtend}, {0, 0x20000, 0xfffdd000, 0x20000, TDXCFV, 0},
			{0, 0, 0x900000, 0x1000, TDXTempMem, TDXAug}, {0, 0, 0x80b000, 0x2000, TDXTempMem, 0},
			{0, 0, 0x809000, 0x2000, TDXHOB, 0}, {0, 0, 0x800000, 0x6000, TDXTempMem, 0},
		},
		IGVM:  []IGVMSection{{0x812000, 0x1000, IGVMParameters}, {0, 0xc0, IGVMMemoryMap}, {0xc0, 0x10, IGVMProcessors}, {0x813000, 0x1000, IGVMHOBs}},
		Reset: ptr(uint32(0x80b004)), Hashes: &Area{0x810c00, 0x400}, Secret: &Area{0x810000, 0xc00},
	}
	var table []string
	for _, e := range got.Table {
		table = append(table, fmt.Sprintf("%#x %s %v %x", e.Offset, e.Name, e.GUID, e.Data))
	}
	got.Table = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// By hand: the table ends at 0x23000 - 32 with its own 18 bytes; each entry is 18
	// bytes and its data. Descriptors: 16 bytes of GUID and 208 of TDVF from 0x100 of
	// the last block on, then 100 of ASEV, then IGVM.
	wantTable := []string{
		"0x22fb8 SEV-ES reset block 00f771de-1a7e-4fcb-890e-68c77e2fb44e 04b08000",
		"0x22f9e SEV launch secret 4c2eb361-7d9b-4cc3-8081-127c90d3d294 00008100000c0000",
		"0x22f84 SEV hash table 7255371f-3a3b-4b04-927b-1da6efa8d454 000c810000040000",
		"0x22f6e SEV metadata dc886566-984a-4798-a75e-5585a7bf67cc 200e0000",
		"0x22f58 TDX metadata e47a6535-984a-4798-865e-4685a7bf8ec2 f00e0000",
		"0x22f42 IGVM metadata 784fa70e-3176-4677-8a20-04b68699e374 bc0d0000",
		"0x22f2b  00000001-0000-0000-0000-000000000000 616761696e",
		"0x22f19  00000002-0000-0000-0000-000000000000 ",
		"0x22f02  00000001-0000-0000-0000-000000000000 6669727374",
	}
	if diff := cmp.Diff(wantTable, table); diff != "" {
		t.Error(diff)
	}
	if base := got.Base(); base != 0xfffdd000 {
		t.Errorf("base %#x", base)
	}
	if !got.HasSEV(SEVCPUID) || got.HasSEV(99) {
		t.Error("HasSEV is wrong")
	}
}

func TestNoTable(t *testing.T) {
	for name, file := range map[string][]byte{"empty": nil, "49 bytes": make([]byte, 49), "variables": blankVars(0x20000), "another GUID": spoil(fullFile(), 0x22fd0, 1)} {
		m := mustMetadata(t, file)
		if diff := cmp.Diff(&Metadata{Size: len(file), Whole: len(file)}, m); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	empty := append(bytes.Clone(tableGUID[:]), make([]byte, 32)...)
	if m := mustMetadata(t, append([]byte{18, 0}, empty...)); m.Table == nil || len(m.Table) != 0 {
		t.Errorf("an empty table: %v", m.Table)
	}
}

func TestSVSMFile(t *testing.T) {
	tail := ovmftest.Tail{
		Reset: 0xfffffff0, Secret: [2]uint32{0xdeadbeef, 0}, Hashes: [2]uint32{0, 0x400}, SVSM: ptr(uint32(0x40)),
		SEV: [][3]uint32{{0, 0x9e000, 1}, {0x9e000, 0x1000, 2}, {0x9f000, 0x1000, 3}, {0, 0, 4}, {0x123456, 0, 0x77}},
	}
	tail.SEV[4][0] = 0x9e000 // an empty section lies nowhere
	m := mustMetadata(t, tail.Bytes())
	if m.SVSM == nil || *m.SVSM != 0x40 || m.Hashes != nil || m.Secret != nil || m.TDX != nil {
		t.Errorf("%+v", m)
	}
	if m.HasSEV(SEVSVSMCAA) || len(m.SEV) != 5 || m.SEV[4].Type.String() != "type 0x77" {
		t.Errorf("sections %v", m.SEV)
	}
}

// The code flash alone is the end of the whole one.
func TestCodeAlone(t *testing.T) {
	whole := ovmftest.IntelTDX("")
	m := mustMetadata(t, whole)
	code := whole[0x20000:]
	alone := mustMetadata(t, code)
	if alone.Size != len(code) || alone.Whole != len(whole) || m.Whole != len(whole) {
		t.Errorf("size %#x, whole %#x: want %#x and %#x", alone.Size, alone.Whole, len(code), len(whole))
	}
	if diff := cmp.Diff(m.TDX, alone.TDX); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		name    string
		m       *Metadata
		file    []byte
		section int
		want    []byte
		err     string
	}{
		{"code of the whole", m, whole, 0, code, ""},
		{"code alone", alone, code, 0, code, ""},
		{"variables of the whole", m, whole, 1, whole[:0x20000], ""},
		{"variables of the code", alone, code, 1, nil, "CFV: bytes 0x0 to 0x20000 of a flash of"},
		{"no content", m, whole, 2, nil, ""},
		{"another file", m, code, 0, nil, "BFV: bytes 0x20000 to"},
	} {
		got, err := tt.m.Content(tt.file, tt.m.TDX[tt.section])
		if !bytes.Equal(got, tt.want) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %d bytes, %v", tt.name, len(got), err)
		}
	}
	beyond := TDXSection{Offset: uint32(len(whole)) - 1, Size: 2}
	if _, err := m.Content(whole, beyond); err == nil {
		t.Error("content behind the file's end")
	}
}

// spoil adds to a byte.
func spoil(b []byte, at int, add byte) []byte {
	b[at] += add
	return b
}

func TestReadMetadataRefuses(t *testing.T) {
	const (
		last, reset, secret, hashes, sev = 0x22fce, 0x22fb8, 0x22f9e, 0x22f84, 0x22f6e
		tdvf, asev, igvm                 = 0x22110, 0x221e0, 0x22244
		tdxSection, sevSection           = tdvf + 16, asev + 16
	)
	put := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[at:], v); return b }
	}
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint16(b[at:], v); return b }
	}
	both := func(f, g func([]byte) []byte) func([]byte) []byte {
		return func(b []byte) []byte { return g(f(b)) }
	}
	tests := []struct {
		name  string
		spoil func(b []byte) []byte
		want  string
	}{
		{"too long", func(b []byte) []byte { return make([]byte, maxFlash+1) }, "16777217 bytes: want at most 16777216"},
		{"table shorter than its tail", put16(last, 17), "table ending at 0x22fe0: 17 bytes: want 18 to"},
		{"table longer than the file", func(b []byte) []byte { return put16(last-0x22000, 0xfff)(b[0x22000:]) }, "table ending at 0xfe0: 4095 bytes: want 18 to 4064"},
		{"table with a rest", put16(last, 245), "table entry ending at 0x22f02: 0 bytes: want 18 to 23"},
		{"table cut in an entry", put16(last, 221), "table entry ending at 0x22f19: 23 bytes: want 18 to 22"},
		{"table cut in an entry's tail", put16(last, 222-6), "table entry ending at 0x22f19: 17 bytes: want at least 18"},
		{"entry shorter than its tail", put16(reset+4, 17), "table entry ending at 0x22fce: 17 bytes: want 18 to"},
		{"entry longer than the table", put16(reset+4, 0xff), "table entry ending at 0x22fce: 255 bytes: want 18 to 204"},
		{"reset block of 5 bytes", put16(reset+4, 23), "SEV-ES reset block: entry at 0x22fb7: 5 bytes of data: want 4"},
		{"hash table of 7 bytes", put16(hashes+8, 25), "SEV hash table: entry at 0x22f85: 7 bytes of data: want 8"},
		{"a second reset block", func(b []byte) []byte { copy(b[0x22f42+6:], resetBlockGUID[:]); return b }, "table entry at 0x22f42: a second SEV-ES reset block: the first is at 0x22fb8"},
		{"hash table beyond 4 GiB", put(hashes, 0xfffffc01), "SEV hash table: entry at 0x22f84: 1024 bytes at 0xfffffc01: want them below 4 GiB"},
		{"secret beyond 4 GiB", put(secret+4, 0xffffffff), "SEV launch secret: entry at 0x22f9e: 4294967295 bytes at 0x810000"},
		{"metadata behind the end", put(sev, 15), "SEV metadata: entry at 0x22f6e: 15 bytes before the end: want 16 to 143360"},
		{"metadata before the file", put(sev, 0x23001), "SEV metadata: entry at 0x22f6e: 143361 bytes before the end"},
		{"SEV signature", func(b []byte) []byte { return spoil(b, asev, 1) }, `SEV metadata: entry at 0x22f6e: signature at 0x221e0: "BSEV": want "ASEV"`},
		{"SEV version", put(asev+8, 2), "version at 0x221e8: 2: want 1"},
		{"SEV length", put(asev+4, 99), "length at 0x221e4: 99 bytes: want 100 for 7 sections"},
		{"SEV number", put(asev+12, 8), "length at 0x221e4: 100 bytes: want 112 for 8 sections"},
		{"SEV numbers", put(asev+12, 0xffffffff), "number at 0x221ec: 4294967295 sections: want at most 1024"},
		{"SEV sections behind the end", both(put(asev+12, 400), put(asev+4, 16+400*12)), "SEV metadata: entry at 0x22f6e: 4816 bytes at 0x221e0: the file has 3616 there"},
		{"SEV address", put(sevSection, 0x800001), "SEV metadata: entry at 0x22f6e: section 0 at 0x221f0: 0x9000 bytes at 0x800001: want whole pages of 4 KiB"},
		{"SEV size", put(sevSection+12+4, 0x3001), "section 1 at 0x221fc: 0x3001 bytes at 0x80a000: want whole pages"},
		{"SEV beyond 4 GiB", both(put(sevSection+24, 0xfffff000), put(sevSection+28, 0x2000)), "section 2 at 0x22208: 0x2000 bytes at 0xfffff000: want them below 4 GiB"},
		{"SEV overlap", put(sevSection+12, 0x808000), "section 1 at 0x221fc: 0x3000 bytes at 0x808000 overlap section 0"},
		{"SEV overlap by the first", both(put(sevSection, 0x80b000), put(sevSection+4, 0x1000)), "section 1 at 0x221fc: 0x3000 bytes at 0x80a000 overlap section 0"},
		{"SEV overlap of one inside", both(put(sevSection+4, 0x100000), put(sevSection+12, 0x850000)), "overlap section 0"},
		{"SEV over the firmware", put(sevSection+72, 0xfffff000), "section 6 at 0x22238: 0x1000 bytes at 0xfffff000 overlap the firmware itself"},
		{"TDX signature", func(b []byte) []byte { return spoil(b, tdvf, 1) }, `TDX metadata: entry at 0x22f58: signature at 0x22110: "UDVF": want "TDVF"`},
		{"TDX GUID", func(b []byte) []byte { return spoil(b, tdvf-1, 1) }, "metadata at 0x22110: no GUID e9eaf9f3-168e-44d5-a8eb-7f4d8738f6ae before it"},
		{"TDX at the front", func(b []byte) []byte { return b[0x22110:] }, "metadata at 0x0: no GUID"},
		{"TDX version", put(tdvf+8, 0), "version at 0x22118: 0: want 1"},
		{"TDX length", put(tdvf+4, 240), "length at 0x22114: 240 bytes: want 208 for 6 sections"},
		{"TDX content behind the end", put(tdxSection+32+4, 0x23001), "TDX metadata: entry at 0x22f58: section 1 (CFV) at 0x22140: bytes 0x0 to 0x23001 of the file: it has 0x23000"},
		{"TDX code behind the end", put(tdxSection+4, 0x3001), "section 0 (BFV) at 0x22120: bytes 0x20000 to 0x23001 of the file: it has 0x23000"},
		{"TDX content of a whole too large", both(put(tdxSection, 0xfff000), put(tdxSection+4, 0x3000)), "section 0 (BFV) at 0x22120: bytes 0xfff000 to 0x1002000 of the file: it has 0x23000"},
		{"TDX variables behind the end", func(b []byte) []byte {
			le.PutUint32(b[tdxSection+32:], 0x23000)
			le.PutUint32(b[tdxSection+32+8:], 0xfffe0000) // up to 4 GiB, as only code is
			return b
		}, "section 1 (CFV) at 0x22140: bytes 0x23000 to 0x43000 of the file: it has 0x23000"},
		{"TDX code elsewhere", both(put(tdxSection, 0x21000), put(tdxSection+8, 0xfffc0000)), "section 0 (BFV) at 0x22120: bytes 0x21000 to 0x24000 of the file: it has 0x23000"},
		{"TDX more content than memory", put(tdxSection+16, 0x1000), "section 0 (BFV) at 0x22120: 12288 bytes of content for 4096 of memory"},
		{"TDX content of a hand-off block", put(tdxSection+4*32+4, 1), "section 4 (TD HOB) at 0x221a0: 1 bytes of content: want none"},
		{"TDX content of memory", put(tdxSection+3*32+4, 1), "section 3 (temporary memory) at 0x22180: 1 bytes of content: want none"},
		{"TDX address", put(tdxSection+3*32+8, 0x80b010), "section 3 at 0x22180: 0x2000 bytes at 0x80b010: want whole pages"},
		{"TDX size", put(tdxSection+3*32+16, 0x2010), "section 3 at 0x22180: 0x2010 bytes at 0x80b000: want whole pages"},
		{"TDX address beyond 4 GiB", put(tdxSection+3*32+12, 1), "section 3 at 0x22180: 0x2000 bytes at 0x10080b000: want them below 4 GiB"},
		{"TDX size beyond 4 GiB", put(tdxSection+3*32+20, 0xffffffff), "section 3 at 0x22180: 0xffffffff00002000 bytes at 0x80b000: want them below 4 GiB"},
		{"TDX overlap", put(tdxSection+3*32+8, 0x809000), "section 4 at 0x221a0: 0x2000 bytes at 0x809000 overlap section 3"},
		{"IGVM signature", func(b []byte) []byte { return spoil(b, igvm, 1) }, `IGVM metadata: entry at 0x22f42: signature at 0x22244: "JGVM"`},
		{"IGVM length", put(igvm+4, 63), "length at 0x22248: 63 bytes: want 64 for 4 sections"},
		{"IGVM beyond 4 GiB", put(igvm+16+12, 0xffffffff), "section 1 at 0x22260: 192 bytes at 0xffffffff: want them below 4 GiB"},
	}
	for _, tt := range tests {
		_, err := ReadMetadata(tt.spoil(fullFile()))
		if err == nil || !strings.HasPrefix(err.Error(), "ovmf: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
}

// A file cut from the front loses metadata first, then the table entry by entry.
// Each length is refused as long as something points at what is gone.
func TestCutFromTheFront(t *testing.T) {
	tail := fullTail()
	tail.TDX = nil // whose sections must be in the file
	whole := tail.Bytes()
	const metadata, table = 0x100, 0xf18
	for n := range len(whole) {
		file := whole[n:]
		m, err := ReadMetadata(file)
		switch {
		case n <= metadata:
			if err != nil || len(m.Table) != 8 {
				t.Errorf("without %#x bytes: %v", n, err)
			}
		case n <= table:
			if err == nil || !strings.Contains(err.Error(), "metadata: entry at") {
				t.Errorf("without %#x bytes: error %v", n, err)
			}
		case n <= 0xfce: // the table's own entry is left
			if err == nil || !strings.Contains(err.Error(), "table ending at") {
				t.Errorf("without %#x bytes: error %v", n, err)
			}
		case err != nil || m.Table != nil:
			t.Errorf("without %#x bytes: %v", n, err)
		}
	}
}

// An entry that says another length than it has throws the walk off: each entry
// is tried with every length.
func TestEveryEntryLength(t *testing.T) {
	tail := fullTail()
	tail.TDX, tail.Others = nil, nil // of an unknown entry any length could be right
	file := tail.Bytes()
	good := mustMetadata(t, file)
	ends := []int{0xfe0, 0xfce} // of the table's own entry, of the one before
	shorter := []int{18}        // lengths of a table that ends between two entries
	for _, e := range good.Table {
		ends = append(ends, e.Offset)
		shorter = append(shorter, 0xfe0-e.Offset)
	}
	ends = ends[:len(ends)-1] // that is the table's front
	for i, end := range ends {
		right := le.Uint16(file[end-18:])
		for size := range 0x10000 {
			le.PutUint16(file[end-18:], uint16(size))
			if m, err := ReadMetadata(file); size != int(right) && err == nil && (i > 0 || !slices.Contains(shorter, size)) {
				t.Errorf("entry %d of %d bytes instead of %d: %d entries", i, size, right, len(m.Table))
			}
		}
		le.PutUint16(file[end-18:], right)
	}
}

// A hostile file costs no more than an honest one: its length bounds the memory,
// and sections number at most 1024.
func TestMetadataIsBounded(t *testing.T) {
	file := make([]byte, 4<<20)
	tail := fullTail().Bytes()
	copy(file[len(file)-len(tail):], tail)
	table := bytes.Repeat(append([]byte{18, 0}, make([]byte, 16)...), 0xffff/18-20)
	end := len(file) - 32 - 18
	copy(file[end-len(table):], table)
	le.PutUint16(file[end:], uint16(len(table)+18))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	m := mustMetadata(t, file)
	elapsed := time.Since(start)
	runtime.ReadMemStats(&after)
	if len(m.Table) != len(table)/18 {
		t.Errorf("%d entries, want %d", len(m.Table), len(table)/18)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+4*uint64(len(table)) || elapsed > time.Second {
		t.Errorf("%d bytes and %v for a table of %d", n, elapsed, len(table))
	}
}

// The files of the published vectors. Sections as OvmfSevMetadata.nasm.inc and
// IntelTdxMetadata.nasm.inc of their releases list them; SVSM: svsm.bin's linker
// script.
func TestMetadataOfPublishedFiles(t *testing.T) {
	dir := testenv.Vectors(t)
	amdsev := []SEVSection{
		{0x800000, 0x9000, SEVMemory}, {0x80a000, 0x3000, SEVMemory}, {0x80d000, 0x1000, SEVSecrets}, {0x80e000, 0x1000, SEVCPUID},
		{0x80f000, 0x1000, SEVSVSMCAA}, {0x810000, 0x1000, SEVKernelHashes}, {0x811000, 0xf000, SEVMemory},
	}
	generic := append(amdsev[:5:5], SEVSection{0x810000, 0x10000, SEVMemory})
	reset, bfv := ptr(uint32(0x80b004)), TDXSection{0x84000, 0x37c000, 0xffc84000, 0x37c000, TDXBFV, TDXExtend}
	for _, tt := range []struct {
		path string
		want Metadata // but Table, and TDX after the first
	}{
		{"sev-snp-measure/fixtures/ovmf_AmdSev_suffix.bin", Metadata{Size: 0x1000, Whole: 0x400000, SEV: amdsev, TDX: []TDXSection{bfv}, Reset: reset, Hashes: &Area{0x810c00, 0x400}, Secret: &Area{0x810000, 0xc00}}},
		{"sev-snp-measure/fixtures/ovmf_OvmfX64_suffix.bin", Metadata{Size: 0x1000, Whole: 0x400000, SEV: generic, TDX: []TDXSection{bfv}, Reset: reset}},
		{"sev-snp-measure/fixtures/svsm_ovmf.fd", Metadata{Size: 0x37c000, Whole: 0x400000, SEV: generic, TDX: []TDXSection{bfv}, Reset: reset}},
		{"sev-snp-measure/fixtures/svsm.bin", Metadata{Size: 0x116000, Whole: 0x116000, Reset: ptr(uint32(0xfffffff0)), SVSM: ptr(uint32(0)), SEV: []SEVSection{{0, 0x9e000, SEVMemory}, {0x9e000, 0x1000, SEVSecrets}, {0x9f000, 0x1000, SEVCPUID}}}},
		{"tdx-measure/OVMF.fd", Metadata{Size: 0x400000, Whole: 0x400000, SEV: generic, TDX: []TDXSection{bfv}, Reset: reset}},
	} {
		b, err := os.ReadFile(filepath.Join(dir, "measure", filepath.FromSlash(tt.path)))
		if err != nil {
			t.Fatal(err)
		}
		m := mustMetadata(t, b)
		m.Table = nil
		if len(m.TDX) > 1 {
			m.TDX = m.TDX[:1]
		}
		if diff := cmp.Diff(&tt.want, m); diff != "" {
			t.Errorf("%s: %s", tt.path, diff)
		}
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add(fullTail().Bytes())
	f.Add(ovmftest.AmdSevTail().Bytes())
	f.Add(ovmftest.TDXTail(0x1000, 0x1000).Bytes())
	f.Add(ovmftest.Tail{SVSM: ptr(uint32(1)), SEV: [][3]uint32{}}.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ReadMetadata(b)
		if err != nil {
			return
		}
		if m.Table == nil && (m.SEV != nil || m.TDX != nil || m.IGVM != nil || m.Reset != nil) {
			t.Fatal("metadata without a table")
		}
		// The walk has met every byte of the table.
		end := len(b) - tailSize - entryTail
		for _, e := range m.Table {
			tail := b[end-entryTail : end]
			if e.Offset+len(e.Data)+entryTail != end || GUID(tail[2:]) != e.GUID || int(le.Uint16(tail)) != len(e.Data)+entryTail {
				t.Fatalf("entry at %#x does not end at %#x", e.Offset, end)
			}
			end = e.Offset
		}
		pages := uint64(0)
		for _, s := range m.SEV {
			pages += uint64(s.Size) / pageSize
		}
		if pages > fourGiB/pageSize {
			t.Fatalf("%d pages to measure", pages)
		}
		for _, s := range m.TDX {
			if c, err := m.Content(b, s); err == nil && uint64(len(c)) != uint64(s.Size) {
				t.Fatalf("%v: %d bytes of content: want %d", s.Type, len(c), s.Size)
			}
			pages += s.MemSize / pageSize
		}
		if pages > 2*fourGiB/pageSize {
			t.Fatalf("%d pages to add", pages)
		}
		m.Uses()
	})
}
