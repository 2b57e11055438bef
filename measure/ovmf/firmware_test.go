package ovmf

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

func TestParse(t *testing.T) {
	pei, dxe := testVolumes("2026.08-1")
	code := testImage(pei, dxe)
	packed := putLZMA(putSections(putSection(sectionVolume, pei), putSection(sectionVolume, dxe)))
	other := putFile(GUID{3}, fileRaw, []byte("no sections"))
	for _, tt := range []struct {
		name  string
		image []byte
	}{
		{"another file first", append(putVolume(compactGUID, 0, other, putFile(GUID{2}, fileVolume, packed)), code[len(code)-0x1000:]...)},
		{"code flash", code},
		{"whole flash", append(blankVars(0x20000), code...)},
		{"code after erased blocks", append(bytes.Repeat([]byte{0xff}, 0x3000), code...)},
	} {
		f, err := Parse(tt.image)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		want := &Firmware{
			Version: "2026.08-1",
			Volumes: []Volume{{"PEIFV", peiGUID, testBase, pei}, {"DXEFV", dxeGUID, testBase + 0x1000, dxe}},
			Modules: []Module{
				{"PeiCore", GUID([]byte("PeiCore\x00\x00\x00\x00\x00\x00\x00\x00\x00")), "PEIFV"},
				{"Tcg2Pei", GUID([]byte("Tcg2Pei\x00\x00\x00\x00\x00\x00\x00\x00\x00")), "PEIFV"},
				{GUID{1}.String(), GUID{1}, "DXEFV"},
				{"SmbiosPlatformDxe", GUID([]byte("SmbiosPlatformDx")), "DXEFV"},
				{"SecureBootConfigDxe", GUID([]byte("SecureBootConfig")), "DXEFV"},
			},
			SecureBoot: true,
		}
		if diff := cmp.Diff(want, f); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		if v, ok := f.Volume("DXEFV"); !ok || v.GUID != dxeGUID {
			t.Errorf("%s: DXEFV is %v, %v", tt.name, v.GUID, ok)
		}
		if _, ok := f.Volume("NCCFV"); ok {
			t.Errorf("%s: it has an NCCFV", tt.name)
		}
		if !f.Has("Tcg2Pei") || f.Has("Tcg2Dxe") {
			t.Errorf("%s: Has is wrong", tt.name)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, version := range []string{"", "2.70", "2025.02-8+deb13u1", "edk2-20250221-1.fc42"} {
		pei, dxe := testVolumes(version)
		f, err := Parse(testImage(pei, dxe))
		if err != nil {
			t.Fatal(err)
		}
		if f.Version != version {
			t.Errorf("version %q, want %q", f.Version, version)
		}
	}
}

// Where SMBIOS does not have the string, the measuring module alone decides.
func TestVersionWithoutSMBIOS(t *testing.T) {
	pei, _ := testVolumes("2025.02")
	f, err := Parse(testImage(pei, putVolume(dxeGUID, 0)))
	if err != nil {
		t.Fatal(err)
	}
	if f.Version != "@2025.02" {
		t.Errorf("version %q", f.Version)
	}
}

// A build that measures no version, as that for TDX, shows one all the same. One
// that measures an empty version has none.
func TestVersionShown(t *testing.T) {
	text := ovmftest.Text
	dxe := putVolume(dxeGUID, 0,
		ovmftest.Module(fileDriver, "SmbiosPlatformDxe", putPE(text("vendor"), text("02/02/2022"), text("2026.08-1"))),
		ovmftest.Module(fileDriver, "UiApp", putPE(text("Boot%04x"), text("vendor"), text("2026.08-1"))))
	measuring, _ := testVolumes("")
	for _, tt := range []struct {
		name string
		pei  []byte
		want string
	}{
		{"shown", putVolume(peiGUID, 0), "2026.08-1"},
		{"measured as empty", measuring, ""},
	} {
		f, err := Parse(testImage(tt.pei, dxe))
		if err != nil {
			t.Fatal(err)
		}
		if f.Version != tt.want {
			t.Errorf("%s: version %q, want %q", tt.name, f.Version, tt.want)
		}
	}
}

func TestBaseNeedsBothSources(t *testing.T) {
	pei, dxe := testVolumes("")
	bases := func(image []byte) []uint64 {
		f, err := Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{f.Volumes[0].Base, f.Volumes[1].Base}
	}
	moved := link(bytes.Clone(pei), testBase+0x10000)
	if diff := cmp.Diff([]uint64{0, 0}, bases(testImage(moved, dxe))); diff != "" {
		t.Errorf("SecMain loads other addresses: %s", diff)
	}
	odd := bytes.Clone(pei)
	i := bytes.Index(odd, []byte("PE\x00\x00"))
	odd[i+24+24+1] ^= 1
	if diff := cmp.Diff([]uint64{0, 0}, bases(testImage(odd, dxe))); diff != "" {
		t.Errorf("modules disagree: %s", diff)
	}
	code := testImage(pei, dxe)
	if diff := cmp.Diff([]uint64{0, 0}, bases(code[:len(code)-0x1000])); diff != "" {
		t.Errorf("no SECFV: %s", diff)
	}
	longer := append(bytes.Clone(pei), make([]byte, 0x1000)...)
	le.PutUint64(longer[0x20:], uint64(len(longer)))
	le.PutUint16(longer[0x32:], 0)
	le.PutUint16(longer[0x32:], -sum16(longer[:0x48]))
	image := bytes.Replace(testImage(longer, dxe), le.AppendUint32([]byte{0x68}, testBase+0x2000), le.AppendUint32([]byte{0x68}, testBase+0x3000), 1)
	if diff := cmp.Diff([]uint64{testBase, 0}, bases(image)); diff != "" {
		t.Errorf("DXEFV elsewhere: %s", diff)
	}
}

func TestImageBase(t *testing.T) {
	te := make([]byte, 40)
	le.PutUint16(te[6:], 0x200) // stripped
	le.PutUint64(te[16:], 0x820000-0x200+40)
	pe32 := putPE()
	le.PutUint16(pe32[0x40+24:], 0x10b)
	le.PutUint32(pe32[0x40+24+28:], 0x820000)
	for _, s := range []section{{kind: sectionTE, body: te}, {kind: sectionPE, body: pe32}} {
		if base, ok := imageBase(s); !ok || base != 0x820000 {
			t.Errorf("%#x: base %#x, %v", s.kind, base, ok)
		}
		if _, ok := imageBase(section{kind: s.kind, body: s.body[:39]}); ok {
			t.Errorf("%#x: a cut header has a base", s.kind)
		}
	}
	le.PutUint32(pe32[0x3c:], 0xfffffff0)
	if _, ok := imageBase(section{kind: sectionPE, body: pe32}); ok {
		t.Error("a header outside the file has a base")
	}
}

func TestParseRefuses(t *testing.T) {
	pei, dxe := testVolumes("")
	code := testImage(pei, dxe)
	const file = 0x78 // the first file of FVMAIN_COMPACT
	packed := func(b []byte) []byte {
		return putVolume(compactGUID, 0, putFile(GUID{2}, fileVolume, putSection(sectionGUIDed, b)))
	}
	tests := []struct {
		name  string
		spoil func(b []byte) []byte
		want  string
	}{
		{"empty", func(b []byte) []byte { return nil }, "not an OVMF image"},
		{"too long", func(b []byte) []byte { return make([]byte, maxFlash+1) }, "want at most 16777216"},
		{"only SECFV", func(b []byte) []byte { return b[len(b)-0x1000:] }, "no volume FVMAIN_COMPACT"},
		{"two codes", func(b []byte) []byte { return append(b, b...) }, "offset 0x5000: a second FVMAIN_COMPACT"},
		{"nothing packed", func(b []byte) []byte {
			return putVolume(compactGUID, 0, putFile(GUID{2}, fileVolume, putLZMA(putSection(0x19, nil))))
		}, "no volume in it"},
		{"not packed", func(b []byte) []byte {
			return putVolume(compactGUID, 0, putFile(GUID{2}, fileVolume, putSection(sectionVolume, pei)))
		}, "no compressed volumes: not an OVMF image"},
		{"no GUID", func(b []byte) []byte { return packed(make([]byte, 19)) }, "19 bytes: too short for a GUID"},
		{"no LZMA", func(b []byte) []byte { return packed(append(append([]byte{}, lzmaGUID[:]...), 24, 0, 1, 0, 1, 2)) }, "2 bytes: too short for LZMA"},
		{"no volume", func(b []byte) []byte {
			return putVolume(compactGUID, 0, putFile(GUID{2}, fileVolume, putLZMA(putSection(sectionVolume, []byte("short")))))
		}, "no firmware volume"},
		{"cut volume", func(b []byte) []byte { return b[:0x1000] }, "offset 0x0: volume of 16384 bytes"},
		{"volume header", func(b []byte) []byte { b[0x10]++; return b }, "volume header sums up to 0x0001"},
		{"volume revision", func(b []byte) []byte { b[0x37]++; b[0x33]--; return b }, "volume revision 3: want 2"},
		{"header length", func(b []byte) []byte { b[0x30] = 0x10; return b }, "with a header of 16"},
		{"extended header", func(b []byte) []byte { b[0x35] = 0xff; return b }, "volume header sums up"},
		{"extended header outside", func(b []byte) []byte { b[0x35] += 0x40; b[0x33] -= 0x40; return b }, "extended header at 0x4060"},
		{"extended header before", func(b []byte) []byte { b[0x34] -= 0x40; b[0x32] += 0x40; return b }, "extended header at 0x20"},
		{"extended header size", func(b []byte) []byte { b[0x60+19] = 0xff; return b }, "extended header of 4278190100 bytes"},
		{"file header", func(b []byte) []byte { b[file]++; return b }, "file at 0x78: file header sums up to 0x01"},
		{"file size", func(b []byte) []byte { b[file+0x16] = 0xff; return b }, "file at 0x78: 16712186 bytes: want 24 to"},
		{"file checksum", func(b []byte) []byte { b[file+0x11]++; return b }, "checksum 0xab: want 0xaa"},
		{"section size", func(b []byte) []byte { b[file+24+2] = 0x7f; return b }, "section at 0x90: 83"},
		{"short section", func(b []byte) []byte { copy(b[file+24:], "\x03\x00\x00"); return b }, "section at 0x90: 3 bytes"},
		{"packing", func(b []byte) []byte { b[file+28]++; return b }, "unsupported"},
		{"data offset", func(b []byte) []byte { b[file+28+16]++; return b }, "data at 25: want 24"},
		{"unpacked size", func(b []byte) []byte { copy(b[file+28+20+5:], "\x01\x00\x00\x04"); return b }, "unpacks to 67108865 bytes: want at most 67108864"},
		{"LZMA properties", func(b []byte) []byte { b[file+28+20] = 0xff; return b }, "LZMA: "},
		{"LZMA stream", func(b []byte) []byte { copy(b[file+28+20+13:], bytes.Repeat([]byte{0xa5}, 99)); return b }, "LZMA"},
	}
	for _, tt := range tests {
		_, err := Parse(tt.spoil(bytes.Clone(code)))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := Parse(blankVars(0x20000)); !errors.Is(err, ErrNotOVMF) {
		t.Errorf("variables alone: %v", err)
	}
	broken := bytes.Clone(pei)
	broken[0x78]++ // the header of a file inside
	if _, err := Parse(testImage(broken, dxe)); err == nil || !strings.Contains(err.Error(), "unpacked: section at 0x") {
		t.Errorf("a broken inner volume: %v", err)
	}
}

// A file may be longer than three bytes can say, and carry a checksum of its
// body.
func TestLargeFileAndChecksum(t *testing.T) {
	body := putSections(putSection(0x19, make([]byte, 0x1000010)))
	b := append(make([]byte, largeFileHeaderSize), body...)
	b[0x12], b[0x13] = fileDriver, attribLarge|attribChecksum
	le.PutUint64(b[0x18:], uint64(len(b)))
	b[0x10] = -sum8(b[:largeFileHeaderSize])
	b[0x11] = -sum8(body)
	v, err := parseVolume(putVolume(dxeGUID, 0, b), "here")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for f, err := range v.all() {
		if err != nil {
			t.Fatal(err)
		}
		for s, err := range f.sections() {
			if err != nil || len(s.body) != 0x1000010 {
				t.Errorf("section of %d bytes, %v", len(s.body), err)
			}
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d sections, want 1", n)
	}
	b[0x11]++
	v, err = parseVolume(putVolume(dxeGUID, 0, b), "here")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range v.all() {
		if err == nil {
			t.Error("a wrong checksum was accepted")
		}
	}
}

func TestInMemory(t *testing.T) {
	v := Volume{Name: "PEIFV", Data: []byte("abcdef")}
	old := alterations
	defer func() { alterations = old }()
	alterations = []alteration{{volume: fmt.Sprintf("%x", sha256.Sum256(v.Data)), offset: 2, written: map[string][]byte{"q35": []byte("XY"), "pc": nil}}}
	for _, tt := range []struct {
		name, data, machine, want string
		known                     bool
	}{
		{"PEIFV", "abcdef", "q35", "abXYef", true},
		{"PEIFV", "abcdef", "pc", "abcdef", true},
		{"PEIFV", "abcdef", "microvm", "", false},
		{"PEIFV", "another", "q35", "", false},
		{"DXEFV", "another", "q35", "another", true},
	} {
		got, known := Volume{Name: tt.name, Data: []byte(tt.data)}.InMemory(tt.machine)
		if known != tt.known || known && string(got) != tt.want {
			t.Errorf("%s %q on %s: %q, %v; want %q, %v", tt.name, tt.data, tt.machine, got, known, tt.want, tt.known)
		}
	}
	if string(v.Data) != "abcdef" {
		t.Error("the volume itself was altered")
	}
}

func FuzzParseFirmware(f *testing.F) {
	pei, dxe := testVolumes("2025.02")
	f.Add(testImage(pei, dxe))
	f.Add(putVolume(compactGUID, 0, putFile(GUID{2}, fileVolume, putLZMA(putSection(sectionVolume, putVolume(peiGUID, 0))))))
	f.Add(pei)
	f.Fuzz(func(t *testing.T, b []byte) {
		fw, err := Parse(b)
		if err != nil {
			return
		}
		for _, v := range fw.Volumes {
			again, err := parseVolume(v.Data, "again")
			if err != nil || len(again.data) != len(v.Data) || again.name != v.GUID {
				t.Fatalf("%s is no volume of its own: %v", v.Name, err)
			}
		}
	})
}

// FuzzVolume reaches the files and sections, which FuzzParseFirmware has behind
// a compressed section.
func FuzzVolume(f *testing.F) {
	pei, dxe := testVolumes("2025.02")
	f.Add(pei[:0x400])
	f.Add(dxe)
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parseVolume(b, "fuzz")
		if err != nil {
			return
		}
		files, err := modules(v, "fuzz")
		if err != nil {
			return
		}
		im := image{files: files, volumes: []*volume{v}}
		if len(files) > 0 {
			im.sec = &files[0]
		}
		if _, err := im.firmware(); err != nil {
			t.Fatal(err)
		}
	})
}
