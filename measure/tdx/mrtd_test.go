package tdx

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/ovmf"
	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// publishedMRTD are values of firmware files that others published, by the file's
// SHA-256. Those of a quote are what TDX hardware says.
var publishedMRTD = []struct {
	sha256, name string
	order        Order
	mrtd, source string
}{
	{
		"9e807cb2cd4313406a3aa4becc0836671a5c64ca7bdc08a45e15260184b446bf", "Ubuntu ovmf 2025.02-3ubuntu2, OVMF.fd", SinglePass,
		"7357a10d2e2724dffe68813e3cc4cfcde6814d749f2fb62e3953e54f6e0b50a219786afe2cd478f684b52c61837e1114",
		"TDX quote in tinfoilsh/verifier@77e6820, attestation/attestation_test.go; virtee/tdx-measure",
	},
	{
		"9e807cb2cd4313406a3aa4becc0836671a5c64ca7bdc08a45e15260184b446bf", "Ubuntu ovmf 2025.02-3ubuntu2, OVMF.fd", TwoPass,
		"7ce4cec5729d95652108c1dfe381a3ccb6a6a9061920f0479a3e4c7c806cf51d2438958def083084880f2bf4dd2e14eb",
		"hardware measurement hw1 in tinfoilsh/verifier@ac17cbd, sigstore/tdx_platform_test.go",
	},
	{
		"ae577ac531f6d7ecf7aee3203bfbd3d40db5eb8f79ce3e1ba69894a4711bc118", "Ubuntu ovmf-inteltdx 2025.02-8ubuntu3, OVMF.inteltdx.fd", SinglePass,
		"7348651a34b2d2d3462822e3a750ec6110125f36757c78480bbfc69cc0d21fb001a1ced3ee19747dda8f750c3bc8f876",
		"TDX quote google/go-tdx-guest@91f9a52, testing/testdata/quote_v5_sample.dat",
	},
	{
		"c4cb73edc27a378abbb55add5f3f326a76ce59fc046fe390fb50dac55b70a6da", "Ubuntu ovmf-inteltdx 2025.02-8ubuntu3.2, OVMF.inteltdx.fd", SinglePass,
		"ea216f26cc4ef0571dce29f0111c6dadfddcd86d032dbf990258456fe4d27799e8b72777fc05f532b1ebd597289d924d",
		"README \"Trusted OVMF firmware\" of a public TDX verifier, with the SHA-256 of package and file; the index it was read from names no repository",
	},
}

// firmwareFiles returns the combined images of this machine by their SHA-256: the
// published one, those of its firmware packages and those below PLINTH_OVMF.
func firmwareFiles(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	add := func(path string) error {
		b, err := os.ReadFile(path)
		if err == nil {
			files[hexSHA256(b)] = b
		}
		return err
	}
	if err := add(filepath.Join(testenv.Vectors(t), "measure", "tdx-measure", "OVMF.fd")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range append([]string{"/usr/share/OVMF", "/usr/share/ovmf"}, filepath.SplitList(os.Getenv("PLINTH_OVMF"))...) {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && filepath.Ext(path) == ".fd" {
				return add(path)
			}
			return nil
		})
	}
	return files
}

func TestPublishedMRTD(t *testing.T) {
	files := firmwareFiles(t)
	for _, p := range publishedMRTD {
		file, ok := files[p.sha256]
		if !ok {
			t.Logf("%s: not on this machine", p.name)
			continue
		}
		got, err := MRTD(file, p.order)
		if err != nil || hex.EncodeToString(got[:]) != p.mrtd {
			t.Errorf("%s, %s: %x, %v: want %s (%s)", p.name, p.order, got, err, p.mrtd, p.source)
		}
	}
}

// testFirmware has 3 pages of code, of which the last is beyond the content, 2
// pages of variables before it, and memory of two kinds.
func testFirmware() []byte {
	const vars, code = 0x2000, 0x4000
	tail := ovmftest.Tail{TDX: testSections()}.Bytes()
	b := append(bytes.Repeat([]byte("vars"), vars/4), bytes.Repeat([]byte("code"), (code-len(tail))/4)...)
	return append(b, tail...)
}

func testSections() []ovmftest.TDX {
	return []ovmftest.TDX{
		{Offset: 0x2000, Size: 0x1f00, GPA: 0xf0000000, MemSize: 0x3000, Type: uint32(ovmf.TDXBFV), Attributes: ovmf.TDXExtend},
		{Offset: 0, Size: 0x2000, GPA: 0xffffa000, MemSize: 0x2000, Type: uint32(ovmf.TDXCFV)},
		{GPA: 0x809000, MemSize: 0x1000, Type: uint32(ovmf.TDXHOB)},
		{GPA: 0x80b000, MemSize: 0x2000, Type: uint32(ovmf.TDXTempMem)},
		{GPA: 0x900000, MemSize: 0x8000, Type: uint32(ovmf.TDXPermMem), Attributes: ovmf.TDXAug},
		{GPA: 0xa00000, MemSize: 0, Type: uint32(ovmf.TDXPayload), Attributes: ovmf.TDXExtend},
	}
}

// The digest of testFirmware by hand: every block that the module hashes, one
// after the other.
func TestMRTDByHand(t *testing.T) {
	file := testFirmware()
	content := append(bytes.Clone(file[0x2000:0x3f00]), make([]byte, 0x1100)...)
	block := func(name string, gpa uint64) []byte {
		b := append([]byte(name), make([]byte, 128-len(name))...)
		binary.LittleEndian.PutUint64(b[16:], gpa)
		return b
	}
	add := func(gpa uint64) []byte { return block("MEM.PAGE.ADD", gpa) }
	extend := func(page int) (b []byte) {
		for at := page * 4096; at < (page+1)*4096; at += 256 {
			b = append(append(b, block("MR.EXTEND", 0xf0000000+uint64(at))...), content[at:at+256]...)
		}
		return b
	}
	rest := bytes.Join([][]byte{add(0xffffa000), add(0xffffb000), add(0x809000), add(0x80b000), add(0x80c000)}, nil)
	for order, code := range map[Order][][]byte{
		SinglePass: {add(0xf0000000), extend(0), add(0xf0001000), extend(1), add(0xf0002000), extend(2)},
		TwoPass:    {add(0xf0000000), add(0xf0001000), add(0xf0002000), extend(0), extend(1), extend(2)},
	} {
		want := sha512.Sum384(append(bytes.Join(code, nil), rest...))
		if got, err := MRTD(file, order); err != nil || got != want {
			t.Errorf("%s: %x, %v: want %x", order, got, err, want)
		}
	}
}

func TestExplainMRTD(t *testing.T) {
	got, err := ExplainMRTD(testFirmware(), SinglePass)
	if err != nil {
		t.Fatal(err)
	}
	want := []PageRange{
		{Section: 0, Type: ovmf.TDXBFV, GPA: 0xf0000000, Pages: 3, Treatment: Extended},
		{Section: 1, Type: ovmf.TDXCFV, GPA: 0xffffa000, Pages: 2, Treatment: Added},
		{Section: 2, Type: ovmf.TDXHOB, GPA: 0x809000, Pages: 1, Treatment: Added},
		{Section: 3, Type: ovmf.TDXTempMem, GPA: 0x80b000, Pages: 2, Treatment: Added},
		{Section: 4, Type: ovmf.TDXPermMem, GPA: 0x900000, Pages: 8, Treatment: Later},
		{Section: 5, Type: ovmf.TDXPayload, GPA: 0xa00000, Pages: 0, Treatment: Extended},
	}
	if len(got) != len(want) {
		t.Fatalf("%d sections, want %d", len(got), len(want))
	}
	for i := range want {
		d := got[i].Digest
		got[i].Digest = [48]byte{}
		if got[i] != want[i] {
			t.Errorf("section %d: %+v, want %+v", i, got[i], want[i])
		}
		got[i].Digest = d
	}
	moved := []bool{true, true, true, true, false, false} // by the section before
	for i := 1; i < len(got); i++ {
		if same := got[i].Digest == got[i-1].Digest; same == moved[i] {
			t.Errorf("section %d: digest moves: %v, want %v", i, !same, moved[i])
		}
	}
	if mrtd, err := MRTD(testFirmware(), SinglePass); err != nil || mrtd != got[len(got)-1].Digest {
		t.Errorf("MRTD %x, %v: the last section ends with %x", mrtd, err, got[len(got)-1].Digest)
	}
}

// One byte of the code, or one number of a section, moves MRTD from that section
// on. What is not measured moves nothing.
func TestMRTDMoves(t *testing.T) {
	change := func(f func(s []ovmftest.TDX)) []byte {
		s := testSections()
		f(s)
		file := testFirmware()
		tail := ovmftest.Tail{TDX: s}.Bytes()
		return append(file[:len(file)-len(tail)], tail...)
	}
	flip := func(at int) []byte {
		file := testFirmware()
		file[at] ^= 1
		return file
	}
	for _, tt := range []struct {
		name    string
		file    []byte
		section int // that moves first; -1: none
	}{
		{"first byte of the code", flip(0x2000), 0},
		{"last byte of the code", flip(0x3eff), 0},
		{"byte behind the code", flip(0x3f00), -1},
		{"variable", flip(0x1000), -1},
		{"size of the code", change(func(s []ovmftest.TDX) { s[0].Size-- }), 0},
		{"address of the variables", change(func(s []ovmftest.TDX) { s[1].GPA -= 0x1000 }), 1},
		{"size of the variables in memory", change(func(s []ovmftest.TDX) { s[1].MemSize += 0x1000 }), 1},
		{"address of the hand-off blocks", change(func(s []ovmftest.TDX) { s[2].GPA += 0x1000 }), 2},
		{"measured memory", change(func(s []ovmftest.TDX) { s[3].Attributes = ovmf.TDXExtend }), 3},
		{"memory that is added later", change(func(s []ovmftest.TDX) { s[4].MemSize += 0x1000 }), -1},
		{"memory that is added at once", change(func(s []ovmftest.TDX) { s[4].Attributes = 0 }), 4},
	} {
		for _, o := range Orders {
			before, err := ExplainMRTD(testFirmware(), o)
			if err != nil {
				t.Fatal(err)
			}
			after, err := ExplainMRTD(tt.file, o)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			first := -1
			for i := range before {
				if before[i].Digest != after[i].Digest {
					first = i
					break
				}
			}
			if first != tt.section {
				t.Errorf("%s, %s: moves section %d, want %d", tt.name, o, first, tt.section)
			}
		}
	}
}

// The variables are the owner's to change: MRTD stays, and CFV, which RTMR 0
// covers, moves.
func TestVariablesDoNotMoveMRTD(t *testing.T) {
	before := machines(t)[0].firmware
	store, err := ovmf.ParseVars(before)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Set(ovmf.Variable{Name: "Owner", GUID: ovmf.GlobalVariable, Attributes: ovmf.NonVolatile | ovmf.BootServiceAccess, Data: []byte{1}}); err != nil {
		t.Fatal(err)
	}
	after, err := store.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range Orders {
		a, errA := MRTD(before, o)
		b, errB := MRTD(after, o)
		if errA != nil || errB != nil || a != b {
			t.Errorf("%s: MRTD moves from %x to %x (%v, %v)", o, a, b, errA, errB)
		}
	}
	a, _, errA := CFV(before)
	b, s, errB := CFV(after)
	if errA != nil || errB != nil || bytes.Equal(a, b) {
		t.Errorf("the variables changed, and CFV did not (%v, %v)", errA, errB)
	}
	if s.Type != ovmf.TDXCFV || uint64(s.GPA) != 0xffc00000 || len(b) != 0x84000 {
		t.Errorf("CFV is %+v, %d bytes", s, len(b))
	}
}

// The code flash is the end of the combined image: MRTD is the same, the
// variables are missing.
func TestCodeFlash(t *testing.T) {
	whole := machines(t)[0].firmware
	code := whole[0x84000:]
	for _, o := range Orders {
		a, errA := MRTD(whole, o)
		b, errB := MRTD(code, o)
		if errA != nil || errB != nil || a != b {
			t.Errorf("%s: %x of the whole, %x of the code (%v, %v)", o, a, b, errA, errB)
		}
	}
	if _, _, err := CFV(code); err == nil || !strings.HasPrefix(err.Error(), "tdx: firmware: ") {
		t.Errorf("CFV of the code flash: %v", err)
	}
}

func TestMRTDRefuses(t *testing.T) {
	with := func(f func(s []ovmftest.TDX) []ovmftest.TDX) []byte {
		file := testFirmware()
		tail := ovmftest.Tail{TDX: f(testSections())}.Bytes()
		return append(file[:len(file)-len(tail)], tail...)
	}
	for _, tt := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty file", nil, "tdx: firmware: no TDVF metadata"},
		{"no metadata", append(make([]byte, 0x5000), ovmftest.AmdSevTail().Bytes()...), "tdx: firmware: no TDVF metadata"},
		{"no section", with(func([]ovmftest.TDX) []ovmftest.TDX { return []ovmftest.TDX{} }), "tdx: firmware: no TDVF metadata"},
		{"unknown type", with(func(s []ovmftest.TDX) []ovmftest.TDX { s[3].Type = 7; return s }), "tdx: MRTD: section 3: type 0x7: unsupported"},
		{"unknown attribute", with(func(s []ovmftest.TDX) []ovmftest.TDX { s[3].Attributes = 4; return s }), "tdx: MRTD: section 3 (temporary memory): attributes 0x4"},
		{"too much to hash", with(func(s []ovmftest.TDX) []ovmftest.TDX {
			s[4].GPA, s[4].MemSize, s[4].Attributes = 0x1000000, maxExtended+0x4000, ovmf.TDXExtend
			return s
		}), "tdx: MRTD: section 4 (permanent memory): 16805888 bytes with measured content up to it: want at most 16801792"},
	} {
		if _, err := MRTD(tt.file, SinglePass); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %s", tt.name, err, tt.want)
		}
	}
	if _, err := MRTD(testFirmware(), "three-pass"); err == nil || !strings.HasPrefix(err.Error(), `tdx: MRTD: order "three-pass"`) {
		t.Errorf("order: %v", err)
	}
	// The variables are measured, and the file is the code alone.
	code := uint64(0x4000)
	tail := ovmftest.Tail{TDX: []ovmftest.TDX{
		{Offset: 0x2000, Size: uint32(code), GPA: 1<<32 - code, MemSize: code, Attributes: ovmf.TDXExtend},
		{Offset: 0, Size: 0x2000, GPA: 1<<32 - code - 0x2000, MemSize: 0x2000, Type: uint32(ovmf.TDXCFV), Attributes: ovmf.TDXExtend},
	}}.Bytes()
	alone := append(make([]byte, int(code)-len(tail)), tail...)
	if _, err := MRTD(alone, SinglePass); err == nil || !strings.HasPrefix(err.Error(), "tdx: MRTD: section 1: ") {
		t.Errorf("measured variables that are missing: %v", err)
	}
}

func TestCFVRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s []ovmftest.TDX)
		want   string
	}{
		{"none", func(s []ovmftest.TDX) { s[1].Type, s[1].Size = uint32(ovmf.TDXTempMem), 0 }, "tdx: firmware: no configuration firmware volume"},
		{"without content", func(s []ovmftest.TDX) { s[1].Size = 0 }, "tdx: firmware: no configuration firmware volume"},
		{"two", func(s []ovmftest.TDX) { s[3].Type = uint32(ovmf.TDXCFV) }, "tdx: firmware: a second configuration firmware volume"},
	} {
		s := testSections()
		tt.change(s)
		file := testFirmware()
		tail := ovmftest.Tail{TDX: s}.Bytes()
		file = append(file[:len(file)-len(tail)], tail...)
		if _, _, err := CFV(file); err == nil || err.Error() != tt.want {
			t.Errorf("%s: error %v, want %s", tt.name, err, tt.want)
		}
	}
	data, s, err := CFV(testFirmware())
	if err != nil || !bytes.Equal(data, bytes.Repeat([]byte("vars"), 0x800)) || s.GPA != 0xffffa000 {
		t.Errorf("CFV: %d bytes at %#x, %v", len(data), s.GPA, err)
	}
}

func TestOrderFor(t *testing.T) {
	for vmm, want := range map[string]Order{
		"gce": SinglePass, "qemu 10.1.0": SinglePass, "qemu 10.0.2": SinglePass, "qemu 9.0.0": SinglePass, "qemu 9.2.1": SinglePass, "qemu 11": SinglePass,
		"qemu 99999999999999999999.1": SinglePass, "qemu 8.2.2": TwoPass, "qemu 8.2.50": TwoPass, "qemu 8.2": TwoPass,
		"qemu 8.1.0": "", "qemu 7.2.22": "", "qemu 8": "", "qemu": "", "": "", "cloud-hypervisor 40.0": "", "qemu x.y": "", "my qemu 10.1": "",
	} {
		if got, known := OrderFor(vmm); got != want || known != (want != "") {
			t.Errorf("%q: %q, %v: want %q", vmm, got, known, want)
		}
	}
}

func FuzzFirmware(f *testing.F) {
	small := ovmftest.Tail{TDX: testSections()}.Bytes()
	f.Add(small, uint16(64))
	f.Add(testFirmware(), uint16(2816))
	f.Fuzz(func(t *testing.T, file []byte, memoryMiB uint16) {
		m, err := ovmf.ReadMetadata(file)
		if err != nil {
			return
		}
		if b, err := HOB(m, int(memoryMiB)); err == nil && (len(b)-handoffSize)%resourceSize != 0 {
			t.Fatalf("%d bytes of hand-off blocks", len(b))
		}
		_, _, _ = CFV(file)
		memory := uint64(0)
		for _, s := range m.TDX {
			memory += s.MemSize
		}
		if memory > 1<<20 {
			return // it takes long, and is no other than a shorter one
		}
		for _, o := range Orders {
			if ranges, err := ExplainMRTD(file, o); err == nil && len(ranges) != len(m.TDX) {
				t.Fatalf("%s: %d sections of %d", o, len(ranges), len(m.TDX))
			}
		}
	})
}

func BenchmarkMRTD(b *testing.B) {
	dir := filepath.Join(testenv.Vectors(b), "measure", "tdx-measure")
	file, err := os.ReadFile(filepath.Join(dir, "OVMF.fd"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		if _, err := MRTD(file, SinglePass); err != nil {
			b.Fatal(err)
		}
	}
}
