package builder

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"github.com/plinth-os/plinth/profiles"
)

// kernelText is what the unpacked kernel gives away by the texts in it. The
// names of what is built in are not in a kernel file; what it may print is.
type kernelText struct {
	interpreter bool // runs ACPI code
	sandbox     bool // confines it to memory that is shared with the host
	builtIn     map[string]bool
}

// Texts of Linux: drivers/acpi/bus.c; drivers/virt/coco. The sandbox is the
// patch of Contrast (packages/by-name/kata/kernel-uvm), which Easy-TEE and
// dstack carry, too; it logs each access.
var (
	textInterpreter = "Interpreter enabled"
	textSandbox     = "SANDBOX: ACCESS %s virt=%lx phys=%lx %s"
	textDrivers     = map[string]string{
		"sev_guest": "Initialized SEV guest driver",
		"tdx_guest": "GetQuote hypercall failed",
		"tsm":       "configfs/tsm/report not empty",
	}
)

// kernel reads the facts once.
func (i *lintImage) kernel() (*kernelText, error) {
	if i.facts != nil {
		return i.facts, nil
	}
	b, err := i.file("vmlinuz")
	if err != nil {
		return nil, err
	}
	r, err := unpackKernel(b)
	if err != nil {
		return nil, err
	}
	texts := []string{textInterpreter, textSandbox}
	for _, t := range textDrivers {
		texts = append(texts, t)
	}
	found, err := searchTexts(r, texts)
	if err != nil {
		return nil, uncheckedf("vmlinuz: its payload does not unpack: %v", err)
	}
	i.facts = &kernelText{interpreter: found[textInterpreter], sandbox: found[textSandbox], builtIn: map[string]bool{}}
	for name, t := range textDrivers {
		i.facts.builtIn[name] = found[t]
	}
	return i.facts, nil
}

// bzImage is a kernel file, in views with offset and length. Linux,
// Documentation/arch/x86/boot.rst.
type bzImage []byte

func (b bzImage) setupSects() int       { return int(b[0x1f1]) } // sectors of 512 bytes after the first
func (b bzImage) magic() string         { return string(b[0x202:][:4]) }
func (b bzImage) protocol() uint16      { return binary.LittleEndian.Uint16(b[0x206:]) }
func (b bzImage) payloadOffset() uint32 { return binary.LittleEndian.Uint32(b[0x248:]) } // from the end of the setup
func (b bzImage) payloadLength() uint32 { return binary.LittleEndian.Uint32(b[0x24c:]) } // bytes
func (b bzImage) hasPayload() bool {
	return len(b) >= 0x250 && b.magic() == "HdrS" && b.protocol() >= 0x208
}
func unpackedSize(payload []byte) uint32 { return binary.LittleEndian.Uint32(payload[len(payload)-4:]) }

// maxKernel bounds an unpacked kernel, in bytes. Debug builds have 100 MiB.
const maxKernel = 512 << 20

// unpackKernel opens the compressed payload of a bzImage. Its last four bytes
// are its unpacked size: scripts/Makefile.lib, size_append, and gzip's own trailer.
func unpackKernel(b bzImage) (io.Reader, error) {
	if !b.hasPayload() {
		return nil, uncheckedf("vmlinuz: not a bzImage that says where its payload is")
	}
	setup := (b.setupSects() + 1) * 512
	at, n := int64(setup)+int64(b.payloadOffset()), int64(b.payloadLength())
	if n < 8 || at+n > int64(len(b)) {
		return nil, uncheckedf("vmlinuz: payload of %d bytes at offset %#x in a file of %d", n, at, len(b))
	}
	payload := b[at:][:n]
	r, err := decompressor(payload)
	if err != nil {
		return nil, uncheckedf("vmlinuz: payload at offset %#x: %v", at, err)
	}
	size := unpackedSize(payload)
	if size > maxKernel {
		return nil, uncheckedf("vmlinuz: payload unpacks to %d bytes: want at most %d", size, maxKernel)
	}
	return io.LimitReader(r, int64(size)), nil
}

// maxWindow bounds what a zstd frame makes its reader allocate, in bytes. Kernels
// are packed with a window of 128 MiB whatever their size: scripts/Makefile.lib,
// zstd22. One of 8 MiB or more may have that; less is for the small.
func maxWindow(payload int) uint64 {
	return min(128<<20, max(1<<20, 16*uint64(payload)))
}

func decompressor(payload []byte) (io.Reader, error) {
	r := bytes.NewReader(payload)
	switch {
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow(len(payload))))
	case bytes.HasPrefix(payload, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(r)
		if err == nil {
			z.Multistream(false) // zeros may follow
		}
		return z, err
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		return xz.NewReader(r) // fails on kernels with the filter for x86 code, as Debian 12 has
	case bytes.HasPrefix(payload, []byte("\x02\x21\x4c\x18")): // the older frame, which lz4 -l writes
		return lz4.NewReader(r), nil
	}
	return nil, fmt.Errorf("begins with %q: want zstd, gzip, xz or lz4", payload[:4])
}

// searchTexts reports which texts occur in r. It holds a window of it.
func searchTexts(r io.Reader, texts []string) (map[string]bool, error) {
	longest := 0
	for _, t := range texts {
		longest = max(longest, len(t))
	}
	found := map[string]bool{}
	window := make([]byte, 1<<20)
	kept := 0 // bytes of the last round that a text may begin in
	for {
		n, err := io.ReadFull(r, window[kept:])
		part := window[:kept+n]
		for _, t := range texts {
			found[t] = found[t] || bytes.Contains(part, []byte(t))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		kept = copy(window, part[len(part)-longest+1:])
	}
}

// guestDrivers wants the driver that asks the platform for a report, and the
// interface of configfs that all platforms share; each loaded by the agent or
// built in.
func guestDrivers(i *lintImage) ([]lintFound, error) {
	var driver string
	switch i.Platform {
	case profiles.PlatformSNP:
		driver = "sev_guest"
	case profiles.PlatformTDX:
		driver = "tdx_guest"
	default:
		return nil, nil
	}
	if i.manifest == nil {
		return i.namedDrivers(driver)
	}
	loaded, err := i.loaded()
	if err != nil {
		return nil, err
	}
	loaded["tsm"] = loaded["tsm"] || loaded["tsm_report"] // its name since Linux 6.17
	var found []lintFound
	for _, name := range []string{driver, "tsm"} {
		if loaded[name] {
			continue
		}
		k, err := i.kernel()
		if err != nil {
			return found, err
		}
		if !k.builtIn[name] {
			found = append(found, lintFound{
				"the guest cannot ask for a report: " + name + " is neither built into the kernel nor loaded by the agent",
				"vmlinuz, initrd",
				"name " + name + " in kernel.modules, with a kernel that has it (Debian 13; the kernels of Debian 12 have not)",
			})
		}
	}
	return found, nil
}

// loaded are the modules that the agent loads, by name.
func (i *lintImage) loaded() (map[string]bool, error) {
	packed, err := i.file("initrd")
	if err != nil {
		return nil, err
	}
	modules, err := LoadedModules(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	out := map[string]bool{}
	for _, m := range modules {
		out[moduleName(path.Base(m.Path))] = true
	}
	return out, nil
}

// namedDrivers judges a profile: modules that it names will be there, or be
// built in, or the build fails.
func (i *lintImage) namedDrivers(driver string) ([]lintFound, error) {
	for _, m := range i.Kernel.Modules {
		if moduleName(strings.Fields(m)[0]) == driver { // not with a leading ?, which lets the kernel lack it
			return nil, nil
		}
	}
	return nil, uncheckedf("kernel.modules does not demand %s; only the image shows whether it is there", driver)
}

// moduleName is a module's name as the kernel spells it.
func moduleName(s string) string {
	s, _, _ = strings.Cut(s, ".ko")
	return strings.ReplaceAll(s, "-", "_")
}

// acpiCode: the tables that the host supplies hold code, which the kernel's
// interpreter lets read and write all memory, private pages included.
func acpiCode(i *lintImage) ([]lintFound, error) {
	if v, ok := argument(i.commandLine(), "acpi"); ok && v == "off" {
		return nil, nil
	}
	k, err := i.kernel()
	if err != nil || !k.interpreter || k.sandbox {
		return nil, err
	}
	do := "take a kernel with a sandbox for AML (Contrast's patch is recognised; one that prints nothing is not)"
	shows, compare := "PCR 1 shows the tables, where the firmware measures them", ", or have verifiers compare that register"
	switch i.Platform {
	case profiles.PlatformSNP:
		shows, compare = "nothing measures the tables", ""
	case profiles.PlatformTDX:
		shows = "RTMR 0 shows the tables, which many verifiers do not look at"
	}
	return []lintFound{{
		"the kernel runs the ACPI code that its host supplies, and no sandbox was recognised that keeps it from the guest's private memory; " + shows,
		"vmlinuz",
		do + compare,
	}}, nil
}
