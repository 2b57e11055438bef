package uki

import (
	"bytes"
	debugpe "debug/pe"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/internal/pe/petest"
)

func section(name string, content []byte) Section {
	return Section{name, io.NewSectionReader(bytes.NewReader(content), 0, int64(len(content)))}
}

func sections(text map[string]string) []Section {
	var out []Section
	for name, content := range text {
		out = append(out, section(name, []byte(content)))
	}
	return out
}

// contents has every section that a stub of version 257 reads.
func contents() map[string]string {
	return map[string]string{
		".pcrsig":  `{"sha256":[]}`,
		".profile": "ID=main\n",
		".pcrpkey": "-----BEGIN PUBLIC KEY-----\n",
		".sbat":    "sbat,1,SBAT Version,sbat,1,https://example.org/SBAT.md\nuki,1,UKI,uki,1,https://example.org/\n",
		".uname":   "6.12.0",
		".dtb":     strings.Repeat("d", 4096),
		".splash":  strings.Repeat("s", 4097),
		".ucode":   "microcode",
		".initrd":  strings.Repeat("initrd", 2000),
		".cmdline": "console=ttyS0",
		".osrel":   "ID=test\n",
		".linux":   string(petest.Kernel().Bytes()),
	}
}

// roomy is a stub with room for as many sections.
func roomy(version string) petest.Image {
	i := petest.Stub(version)
	i.SizeOfHeaders = 2048
	return i
}

func build(t testing.TB, stub []byte, added []Section) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, stub, added); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// stubs are a synthetic stub and the real ones that PLINTH_TEST_STUBS names,
// a list of files.
func stubs(t testing.TB) map[string][]byte {
	t.Helper()
	out := map[string][]byte{"synthetic": roomy("257.13-1").Bytes()}
	for _, file := range filepath.SplitList(os.Getenv("PLINTH_TEST_STUBS")) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out[file] = b
	}
	return out
}

func TestWrite(t *testing.T) {
	for name, stub := range stubs(t) {
		t.Run(name, func(t *testing.T) {
			given := contents()
			version, err := StubVersion(parse(t, stub))
			if err != nil {
				t.Fatal(err)
			}
			if version.Major < 257 { // seven free headers, and no such sections
				for _, n := range []string{".ucode", ".profile", ".dtb", ".splash", ".uname"} {
					delete(given, n)
				}
			}
			image := build(t, stub, sections(given))
			if again := build(t, stub, sections(given)); !bytes.Equal(image, again) {
				t.Error("two runs differ")
			}
			if len(image)%8 != 0 {
				t.Errorf("%d bytes: want a multiple of 8", len(image))
			}
			f := parse(t, image)
			checkLayout(t, f)
			checkContents(t, f, given)
			checkStubKept(t, parse(t, stub), f)
		})
	}
}

// checkLayout holds what loaders, stub 252 and digest tools each require: the
// table ascends in addresses and in file offsets, without gaps in the file.
func checkLayout(t *testing.T, f *pe.File) {
	t.Helper()
	offset, address := f.SizeOfHeaders, uint32(0)
	var order []string
	for _, s := range f.Sections {
		if s.RawSize > 0 && s.Offset != offset {
			t.Errorf("section %s: offset %#x: want %#x", s.Name, s.Offset, offset)
		}
		if s.VirtualAddress < address {
			t.Errorf("section %s: RVA %#x: the one before ends at %#x", s.Name, s.VirtualAddress, address)
		}
		offset += s.RawSize
		address = s.VirtualAddress + s.VirtualSize
		if !slices.Contains(writeOrder, s.Name) || len(order) == 0 && s.Name != ".linux" {
			continue
		}
		order = append(order, s.Name)
		if s.VirtualAddress%4096 != 0 || s.RawSize%f.FileAlignment != 0 || s.Characteristics != 0x40000040 {
			t.Errorf("section %s: RVA %#x, raw size %#x, characteristics %#x", s.Name, s.VirtualAddress, s.RawSize, s.Characteristics)
		}
	}
	if int64(offset) != f.Size() {
		t.Errorf("sections end at %#x, the file at %#x", offset, f.Size())
	}
	if f.SizeOfImage%4096 != 0 || f.SizeOfImage < address || f.SizeOfImage-address >= 4096 {
		t.Errorf("SizeOfImage %#x: sections end at %#x", f.SizeOfImage, address)
	}
	if f.CheckSum != 0 || f.SymbolTable != 0 {
		t.Errorf("CheckSum %#x, symbol table %#x: want 0", f.CheckSum, f.SymbolTable)
	}
	rank := func(name string) int { return slices.Index(writeOrder, name) }
	if !slices.IsSortedFunc(order, func(a, b string) int { return rank(a) - rank(b) }) {
		t.Errorf("order %v", order)
	}
}

func checkContents(t *testing.T, f *pe.File, given map[string]string) {
	t.Helper()
	for name, want := range given {
		s, ok := f.Section(name)
		got, err := io.ReadAll(f.Measured(s))
		if !ok || err != nil {
			t.Errorf("section %s: %v, %v", name, ok, err)
		}
		if name == ".sbat" {
			if lines := strings.Split(string(got), "\n"); lines[0][:5] != "sbat," || !slices.Contains(lines, "uki,1,UKI,uki,1,https://example.org/") {
				t.Errorf("section .sbat: %q", got)
			}
			continue
		}
		if string(got) != want {
			t.Errorf("section %s: %d bytes differ from the %d given", name, len(got), len(want))
		}
	}
}

func checkStubKept(t *testing.T, stub, f *pe.File) {
	t.Helper()
	for i, want := range stub.Sections {
		if want.Name == ".sbat" {
			continue
		}
		got, _ := f.Section(want.Name)
		a, _ := io.ReadAll(stub.Data(want))
		b, _ := io.ReadAll(f.Data(got))
		if got.VirtualAddress != want.VirtualAddress || got.Characteristics != want.Characteristics || !bytes.Equal(a, b) {
			t.Errorf("section %d of the stub, %s, has changed", i, want.Name)
		}
	}
}

// TestWriteDebugPE reads a UKI with the standard library's parser.
func TestWriteDebugPE(t *testing.T) {
	given := contents()
	image := build(t, roomy("257.13").Bytes(), sections(given))
	f, err := debugpe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	h := f.OptionalHeader.(*debugpe.OptionalHeader64)
	var data uint32
	for _, s := range f.Sections {
		data += s.Size
		want, ok := given[s.Name]
		if b, err := s.Data(); ok && s.Name != ".sbat" && (err != nil || string(b[:s.VirtualSize]) != want) {
			t.Errorf("section %s: %d bytes, %v: want %d", s.Name, len(b), err, len(want))
		}
	}
	if h.SizeOfInitializedData != data {
		t.Errorf("SizeOfInitializedData %d: want %d", h.SizeOfInitializedData, data)
	}
}

func TestWriteEmptySections(t *testing.T) {
	stub := roomy("257.13").Bytes()
	given := map[string]string{".linux": string(petest.Kernel().Bytes()), ".cmdline": "x"}
	want := build(t, stub, sections(given))
	given[".splash"], given[".initrd"], given[".sbat"] = "", "", ""
	if got := build(t, stub, sections(given)); !bytes.Equal(got, want) {
		t.Error("empty sections change the image")
	}
}

// TestWriteSBAT checks that .sbat stays in its place when there is nothing to
// merge, and is replaced by one section when there is.
func TestWriteSBAT(t *testing.T) {
	stub := roomy("257.13")
	own := string(stub.Sections[1].Data)
	lines := func(names ...string) string {
		text := "sbat,1,SBAT Version,sbat,1,https://example.org/SBAT.md\n"
		for _, n := range names {
			text += n + ",1\n"
		}
		return text
	}
	for _, row := range []struct {
		name          string
		kernel, given string
		want          string
		position      int
	}{
		{"stub's alone", "", "", own, 1},
		{"nothing new", own, lines(), own, 1},
		{"kernel's", lines("linux"), "", own + "linux,1\n", 3},
		{"given", "", lines("uki"), own + "uki,1\n", 3},
		{"all", lines("linux"), lines("uki", "linux"), own + "linux,1\nuki,1\n", 3},
	} {
		t.Run(row.name, func(t *testing.T) {
			kernel := petest.Kernel()
			if row.kernel != "" {
				kernel.Sections = append(kernel.Sections, petest.Section{Name: ".sbat", Data: []byte(row.kernel)})
			}
			f := parse(t, build(t, stub.Bytes(), sections(map[string]string{
				".linux": string(kernel.Bytes()), ".sbat": row.given, ".pcrpkey": "key",
			})))
			s, _ := f.Section(".sbat")
			if got, _ := io.ReadAll(f.Measured(s)); string(got) != row.want {
				t.Errorf("got %q: want %q", got, row.want)
			}
			names := []string{}
			for _, s := range f.Sections {
				names = append(names, s.Name)
			}
			if got := slices.Index(names, ".sbat"); got != row.position {
				t.Errorf("sections %v: .sbat at %d, want %d", names, got, row.position)
			}
		})
	}
}

// TestWriteSymbols checks that the symbol table of a stub, which older ones
// carry, goes: it would be data between the sections.
func TestWriteSymbols(t *testing.T) {
	stub := roomy("252.39")
	given := map[string]string{".linux": string(petest.Kernel().Bytes())}
	want := build(t, stub.Bytes(), sections(given))
	stub.Symbols = bytes.Repeat([]byte("symbol"), 33)
	if got := build(t, stub.Bytes(), sections(given)); !bytes.Equal(got, want) {
		t.Error("the symbol table changes the image")
	}
}

func TestWriteNX(t *testing.T) {
	for _, row := range []struct{ stub, kernel, want bool }{
		{true, true, true}, {true, false, false}, {false, true, false}, {false, false, false},
	} {
		stub, kernel := roomy("257"), petest.Kernel()
		stub.NXCompat, kernel.NXCompat = row.stub, row.kernel
		f := parse(t, build(t, stub.Bytes(), sections(map[string]string{".linux": string(kernel.Bytes())})))
		if got := f.DLLCharacteristics&pe.DLLCharacteristicsNXCompat != 0; got != row.want {
			t.Errorf("stub %v, kernel %v: got %v, want %v", row.stub, row.kernel, got, row.want)
		}
	}
}

func TestWriteRefused(t *testing.T) {
	stub := func(change func(*petest.Image)) []byte {
		i := roomy("257.13")
		change(&i)
		return i.Bytes()
	}
	patch := func(off int, v byte) []byte {
		b := roomy("257.13").Bytes()
		b[off] = v
		return b
	}
	kernel := func(change func(*petest.Image)) []Section {
		i := petest.Kernel()
		change(&i)
		return []Section{section(".linux", i.Bytes())}
	}
	good := kernel(func(*petest.Image) {})
	with := func(name, content string) []Section {
		return append(slices.Clone(good), section(name, []byte(content)))
	}
	huge := Section{".initrd", io.NewSectionReader(zeros{}, 0, 1<<63-1)}
	big := Section{".initrd", io.NewSectionReader(zeros{}, 0, 1<<32-4096)}
	for _, row := range []struct {
		name  string
		stub  []byte
		added []Section
		want  string
	}{
		{"stub: no PE", []byte("MZ"), good, "not a PE image"},
		{"stub: arm64", stub(func(i *petest.Image) { i.Machine = 0xaa64 }), good, "machine 0xaa64"},
		{"stub: PE32", stub(func(i *petest.Image) { i.PE32 = true }), good, "want an EFI application for amd64"},
		{"stub: driver", stub(func(i *petest.Image) { i.Subsystem = 11 }), good, "subsystem 11"},
		{"stub: of nobody", stub(func(i *petest.Image) { i.Sections = i.Sections[:2] }), good, "unknown stub"},
		{"stub: signed", signedStub(t), good, "is signed"},
		{"stub: trailing data", stub(func(i *petest.Image) { i.Tail = []byte("tail") }), good, "4 bytes after its sections"},
		{"stub: no room", stub(func(i *petest.Image) { i.SizeOfHeaders = 512 }), good, "no room"},
		{"stub: room is used", patch(0x188+3*40+1, 1), good, "no room"},
		{"stub: is a UKI", build(t, roomy("257.13").Bytes(), good), good, "the stub has one"},
		{"stub: file alignment 4", patch(0x98+37, 0), good, "file alignment"},
		{"stub: file alignment 0x300", patch(0x98+37, 3), good, "file alignment"},
		{"stub: section alignment 0x1100", patch(0x98+33, 0x11), good, "section alignment"},
		{"stub: .sbat", stub(func(i *petest.Image) { i.Sections[1].Data = []byte("no header") }), good, "want \"sbat,\""},
		{"name: unknown", stub(func(*petest.Image) {}), with(".foo", "x"), "unknown"},
		{"name: without dot", stub(func(*petest.Image) {}), with("cmdline", "x"), "unknown"},
		{"name: too long", stub(func(*petest.Image) {}), with(".cmdlines", "x"), "at most 8"},
		{"name: twice", stub(func(*petest.Image) {}), append(with(".osrel", "x"), section(".osrel", nil)), "twice"},
		{"name: of the stub", stub(func(i *petest.Image) { i.Sections[0].Name = ".uname" }), with(".uname", "x"), "the stub has one"},
		{"name: ignored by 252", roomy("252.39").Bytes(), with(".ucode", "x"), "252.39 ignores it"},
		{"name: ignored by 256", roomy("256").Bytes(), with(".profile", "x"), "256 ignores it"},
		{"kernel: none", stub(func(*petest.Image) {}), []Section{section(".initrd", []byte("x"))}, "none given"},
		{"kernel: empty", stub(func(*petest.Image) {}), []Section{section(".linux", nil)}, "none given, or empty"},
		{"kernel: no PE", stub(func(*petest.Image) {}), []Section{section(".linux", []byte("\x7fELF"))}, "section .linux"},
		{"kernel: arm64", stub(func(*petest.Image) {}), kernel(func(i *petest.Image) { i.Machine = 0xaa64 }), "section .linux: machine"},
		{"kernel: started in place", stub(func(*petest.Image) {}), kernel(func(i *petest.Image) { i.MajorImageVersion = 0 }), "EFI stub version 0"},
		{"section without end", stub(func(*petest.Image) {}), append(slices.Clone(good), huge), "want less than 4 GiB"},
		{"image of 4 GiB", stub(func(*petest.Image) {}), append(slices.Clone(good), big), "want less than 4 GiB"},
		{".sbat too long", stub(func(*petest.Image) {}), with(".sbat", strings.Repeat("x", 1<<16+1)), "at most 65536"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out bytes.Buffer
			err := Write(&out, row.stub, row.added)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error %v: want %q", err, row.want)
			}
			if out.Len() > 0 {
				t.Errorf("%d bytes written", out.Len())
			}
			if got := strings.Contains(row.want, "no room"); errors.Is(err, ErrNoRoom) != got {
				t.Errorf("error %v: is ErrNoRoom %v", err, !got)
			}
		})
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func signedStub(t *testing.T) []byte {
	var out bytes.Buffer
	b := roomy("257.13").Bytes()
	if err := Sign(&out, bytes.NewReader(b), int64(len(b)), testSigner(t)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestWriteErrors checks that a reader that ends early and a writer that fails
// are errors.
func TestWriteErrors(t *testing.T) {
	stub := roomy("257.13").Bytes()
	short := Section{".initrd", io.NewSectionReader(strings.NewReader("abc"), 0, 1000)}
	if err := Write(io.Discard, stub, append(sections(map[string]string{".linux": string(petest.Kernel().Bytes())}), short)); !errors.Is(err, io.EOF) {
		t.Errorf("short content: error %v", err)
	}
	good := sections(contents())
	size := len(build(t, stub, good))
	for n := 0; n < size; n += 997 {
		if err := Write(&limited{n}, stub, good); !errors.Is(err, errFull) {
			t.Fatalf("writer full after %d bytes: error %v", n, err)
		}
	}
}

var errFull = errors.New("full")

type limited struct{ left int }

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return l.left, errFull
	}
	l.left -= len(p)
	return len(p), nil
}
