package uki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/pe"
)

// Section is one section to add to a stub.
type Section struct {
	Name    string // with the dot, as in ".linux"
	Content *io.SectionReader
}

// ErrNoRoom is wrapped when a stub's headers cannot take the section table.
var ErrNoRoom = errors.New("no room for section headers")

// writeOrder is the order of the added sections in the table, in the file and
// in memory: that in which stubs measure them, and .pcrsig, which none
// measures, at the end. Addresses that ascend with the table are required:
// stub 252 reports "overlapping PE sections" and waits otherwise.
//
// Where .linux stands is free, because no stub runs the kernel in place: 252
// to 257 hand the section to LoadImage, which copies it, and 258 and later
// allocate SizeOfImage bytes and copy the kernel's sections there themselves
// (src/boot/linux.c). The exception is a kernel from before Linux 5.8, which
// 252 starts in place by the handover protocol, with no room for its .bss;
// checkKernel refuses it.
var writeOrder = []string{
	".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb",
	".uname", ".sbat", ".pcrpkey", ".profile", ".pcrsig",
}

const (
	sbatSection  = ".sbat"
	linuxSection = ".linux"

	maxSBAT = 64 << 10 // bytes; shim's own is under 1 KiB

	// dataCharacteristics is IMAGE_SCN_CNT_INITIALIZED_DATA and
	// IMAGE_SCN_MEM_READ.
	initializedData     = 0x40
	dataCharacteristics = initializedData | 0x40000000

	pageSize = 4096
)

// Write writes stub with sections added to w, in one pass: the contents are
// read once, in the order of the file, and never held in memory.
//
// The sections may come in any order; they are written in the one in which
// stubs measure them. A section without content is left out, for a stub skips
// it and tools differ on whether to count it. .sbat is the stub's, the
// kernel's and the given one merged. Everything of the stub is kept but its
// COFF symbol table; the image is marked NX-compatible if stub and kernel are.
// VirtualSize is the content's exact size, since stubs measure that many
// bytes. The CheckSum field is zero: firmware does not read it and its value
// would need a second pass; [Sign] fills it in.
//
// The file's length is a multiple of the file alignment, hence of 8, so that
// the Authenticode digest, which is what PCR 4 holds, is the same before and
// after signing.
//
// Write refuses a stub that is no systemd-stub for amd64, is signed, carries
// one of the sections already or has no room for their headers (ErrNoRoom); a
// name that is unknown, repeated or ignored by this version of the stub; a
// missing .linux or one that is no EFI kernel; and an image of 4 GiB or more.
func Write(w io.Writer, stub []byte, sections []Section) error {
	f, err := parseStub(stub)
	if err != nil {
		return err
	}
	added, err := arrange(f, sections)
	if err != nil {
		return err
	}
	kernel, err := checkKernel(added[0].Content)
	if err != nil {
		return err
	}
	if added, err = addSBAT(f, kernel, added); err != nil {
		return err
	}
	img, err := layOut(f, stub, added)
	if err != nil {
		return err
	}
	if kernel.DLLCharacteristics&pe.DLLCharacteristicsNXCompat == 0 {
		clearBits(img.pe().dllCharacteristics(), pe.DLLCharacteristicsNXCompat)
	}
	return img.write(w)
}

func parseStub(stub []byte) (*pe.File, error) {
	f, err := pe.Parse(bytes.NewReader(stub), int64(len(stub)))
	if err != nil {
		return nil, fmt.Errorf("uki: stub: %w", err)
	}
	if f.Machine != pe.MachineAMD64 || !f.PE32Plus || f.Subsystem != pe.SubsystemEFIApplication {
		return nil, fmt.Errorf("uki: stub: machine %#x, subsystem %d: want an EFI application for amd64", f.Machine, f.Subsystem)
	}
	if f.CertTable.Size != 0 {
		return nil, errors.New("uki: stub: is signed: added sections would break the signature")
	}
	if a := f.FileAlignment; a < 8 || a&(a-1) != 0 || f.SizeOfHeaders%a != 0 {
		return nil, fmt.Errorf("uki: stub: file alignment %#x, headers %#x: want a power of two and a multiple of it", a, f.SizeOfHeaders)
	}
	if a := f.SectionAlignment; a == 0 || a&(a-1) != 0 {
		return nil, fmt.Errorf("uki: stub: section alignment %#x: want a power of two", a)
	}
	return f, checkTail(f)
}

// checkTail refuses a stub with data after its sections that is not the COFF
// symbol table, which may be cut off.
func checkTail(f *pe.File) error {
	end := int64(f.SizeOfHeaders)
	for _, s := range f.Sections {
		end = max(end, int64(s.Offset)+int64(s.RawSize))
	}
	if end < f.Size() && int64(f.SymbolTable) < end {
		return fmt.Errorf("uki: stub: %d bytes after its sections: want none but a symbol table", f.Size()-end)
	}
	return nil
}

// arrange returns the sections that have content in the order in which they
// are written; .linux is the first.
func arrange(stub *pe.File, sections []Section) ([]Section, error) {
	version, err := StubVersion(stub)
	if err != nil {
		return nil, err
	}
	byName := map[string]Section{}
	for _, s := range sections {
		if err := checkName(s.Name, version); err != nil {
			return nil, err
		}
		if _, ok := byName[s.Name]; ok {
			return nil, fmt.Errorf("uki: section %s: given twice", s.Name)
		}
		if _, ok := stub.Section(s.Name); ok && s.Name != sbatSection {
			return nil, fmt.Errorf("uki: section %s: the stub has one", s.Name)
		}
		if s.Content.Size() >= math.MaxUint32 {
			return nil, fmt.Errorf("uki: section %s: %d bytes: want less than 4 GiB", s.Name, s.Content.Size())
		}
		byName[s.Name] = s
	}
	var added []Section
	for _, name := range writeOrder {
		if s, ok := byName[name]; ok && s.Content.Size() > 0 {
			added = append(added, s)
		}
	}
	if len(added) == 0 || added[0].Name != linuxSection {
		return nil, fmt.Errorf("uki: section %s: none given, or empty", linuxSection)
	}
	return added, nil
}

// checkName refuses names that the stub would not look for. .uname and .sbat
// have readers besides the stub, which came to know them with 254.
func checkName(name string, v Version) error {
	if len(name) > 8 {
		return fmt.Errorf("uki: section %q: name has %d bytes: want at most 8", name, len(name))
	}
	if !slices.Contains(writeOrder, name) {
		return fmt.Errorf("uki: section %q: unknown: want one of %s", name, strings.Join(writeOrder, " "))
	}
	if (name == ".ucode" || name == ".profile") && !slices.Contains(MeasuredOrder(v), name) {
		return fmt.Errorf("uki: section %s: systemd-stub %s ignores it", name, v)
	}
	return nil
}

// checkKernel refuses what the stub would refuse, and a kernel that a stub
// would start in place: one whose EFI stub is older than version 1.0 and takes
// no initrd by LINUX_EFI_INITRD_MEDIA_GUID.
func checkKernel(content *io.SectionReader) (*pe.File, error) {
	f, err := pe.Parse(content, content.Size())
	if err != nil {
		return nil, fmt.Errorf("uki: section .linux: %w", err)
	}
	if f.Machine != pe.MachineAMD64 {
		return nil, fmt.Errorf("uki: section .linux: machine %#x: want amd64", f.Machine)
	}
	if f.MajorImageVersion < 1 {
		return nil, fmt.Errorf("uki: section .linux: EFI stub version %d: want at least 1, Linux 5.8", f.MajorImageVersion)
	}
	return f, nil
}

// addSBAT puts the merged .sbat into added, or takes it out when the stub's
// own says it all and can stay where it is.
func addSBAT(stub, kernel *pe.File, added []Section) ([]Section, error) {
	own, err := sbatOf(stub)
	if err != nil {
		return nil, err
	}
	inner, err := sbatOf(kernel)
	if err != nil {
		return nil, err
	}
	given := ""
	i := slices.IndexFunc(added, func(s Section) bool { return s.Name == sbatSection })
	if i >= 0 {
		if given, err = readSBAT(added[i].Content); err != nil {
			return nil, err
		}
		added = slices.Delete(added, i, i+1)
	}
	before, err := mergeSBAT(own)
	if err != nil {
		return nil, err
	}
	after, err := mergeSBAT(own, inner, given)
	if err != nil || before == after {
		return added, err
	}
	content := io.NewSectionReader(strings.NewReader(after), 0, int64(len(after)))
	next := slices.IndexFunc(added, func(s Section) bool {
		return slices.Index(writeOrder, s.Name) > slices.Index(writeOrder, sbatSection)
	})
	if next < 0 {
		next = len(added)
	}
	return slices.Insert(added, next, Section{Name: sbatSection, Content: content}), nil
}

func sbatOf(f *pe.File) (string, error) {
	s, ok := f.Section(sbatSection)
	if !ok {
		return "", nil
	}
	return readSBAT(f.Data(s))
}

func readSBAT(r *io.SectionReader) (string, error) {
	if r.Size() > maxSBAT {
		return "", fmt.Errorf("uki: .sbat: %d bytes: want at most %d", r.Size(), maxSBAT)
	}
	b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	return string(b), err
}
