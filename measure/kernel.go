package measure

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/plinth-os/plinth/measure/eventlog"
)

// bzImage is the head of a kernel file: boot sector and setup header, in views
// with offset and length. Linux, Documentation/arch/x86/boot.rst.
type bzImage []byte

const setupHeaderEnd = 0x268

func (h bzImage) magic() []byte         { return h[0x202:][:4] } // "HdrS"
func (h bzImage) protocol() uint16      { return binary.LittleEndian.Uint16(h[0x206:]) }
func (h bzImage) kernelVersion() uint16 { return binary.LittleEndian.Uint16(h[0x20e:]) } // offset of the text, less 0x200
func (h bzImage) typeOfLoader() []byte  { return h[0x210:][:1] }
func (h bzImage) loadflags() []byte     { return h[0x211:][:1] }
func (h bzImage) ramdiskImage() []byte  { return h[0x218:][:4] } // guest physical address
func (h bzImage) ramdiskSize() []byte   { return h[0x21c:][:4] }
func (h bzImage) heapEnd() []byte       { return h[0x224:][:2] }
func (h bzImage) cmdlinePtr() []byte    { return h[0x228:][:4] } // guest physical address
func (h bzImage) initrdAddrMax() uint32 { return binary.LittleEndian.Uint32(h[0x22c:]) }
func (h bzImage) xloadflags() uint16    { return binary.LittleEndian.Uint16(h[0x236:]) }

// readSetup reads and checks the head of a bzImage.
func readSetup(r io.ReaderAt) (bzImage, error) {
	h := make(bzImage, setupHeaderEnd)
	if _, err := r.ReadAt(h, 0); err != nil {
		return nil, fmt.Errorf("measure: kernel: %w", err)
	}
	if string(h.magic()) != "HdrS" {
		return nil, fmt.Errorf("measure: kernel: magic is %q: want a bzImage with %q", h.magic(), "HdrS")
	}
	const lowest = 0x20c // xloadflags; Linux 3.8
	if p := h.protocol(); p < lowest {
		return nil, fmt.Errorf("measure: kernel: boot protocol %#x: want at least %#x", p, lowest)
	}
	return h, nil
}

// KernelRelease returns what uname -r will print for a bzImage:
// "6.12.107+deb13-cloud-amd64".
func KernelRelease(r io.ReaderAt, size int64) (string, error) {
	h, err := readSetup(io.NewSectionReader(r, 0, size))
	if err != nil {
		return "", err
	}
	const maxText = 512
	b := make([]byte, maxText)
	n, err := io.NewSectionReader(r, 0, size).ReadAt(b, int64(h.kernelVersion())+0x200)
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("measure: kernel: %w", err)
	}
	text, _, ok := bytes.Cut(b[:n], []byte{0})
	release, _, _ := strings.Cut(string(text), " ")
	if !ok || release == "" || len(numbers(release)) < 2 {
		return "", fmt.Errorf("measure: kernel: version text %.40q: want a release", text)
	}
	return release, nil
}

// Values that QEMU writes into the setup header and what it keeps free below
// the end of low memory: hw/i386/x86-common.c (x86.c before 9.1), x86_load_linux,
// and x86.h, ACPI_DATA_SIZE.
const (
	loaderQEMU     = 0xb0
	canUseHeap     = 0x80
	realModeAddr   = 0x10000
	cmdlineAddr    = 0x20000
	acpiDataSize   = 0x20000 + 0x8000
	above4G        = 0x02 // XLF_CAN_BE_LOADED_ABOVE_4G
	pageSize       = 4096
	q35LowSplit    = 0xb0000000 // memory of this size and more is split ...
	q35LowWhenHigh = 0x80000000 // ... here
)

// patched returns the kernel as QEMU hands it to firmware that does not ask for
// the file as it is: with a setup header that says where QEMU's own loader would put the command line
// and the initrd. The PE image's digest covers the setup header.
func patched(kernel *io.SectionReader, initrd *io.SectionReader, cmdline string, m *Machine) (*io.SectionReader, error) {
	h, err := readSetup(kernel)
	if err != nil {
		return nil, err
	}
	if strings.Contains(cmdline, "vga=") {
		return nil, fmt.Errorf("measure: command line: %q: QEMU moves vga= into the setup header: not supported", cmdline)
	}
	le := binary.LittleEndian
	h.typeOfLoader()[0] = loaderQEMU
	h.loadflags()[0] |= canUseHeap
	le.PutUint16(h.heapEnd(), cmdlineAddr-realModeAddr-0x200)
	le.PutUint32(h.cmdlinePtr(), cmdlineAddr)
	if initrd != nil {
		addr, err := h.initrdAddr(initrd.Size(), m)
		if err != nil {
			return nil, err
		}
		le.PutUint32(h.ramdiskImage(), addr)
		le.PutUint32(h.ramdiskSize(), uint32(initrd.Size()))
	}
	return io.NewSectionReader(&overlay{kernel, h}, 0, kernel.Size()), nil
}

// initrdAddr is where QEMU would load an initrd: as high as it may.
func (h bzImage) initrdAddr(size int64, m *Machine) (uint32, error) {
	low := int64(m.MemoryMiB) << 20
	if low >= q35LowSplit {
		low = q35LowWhenHigh
	}
	highest := int64(h.initrdAddrMax())
	if h.xloadflags()&above4G != 0 {
		highest = 1<<32 - 1
	}
	if highest >= low-acpiDataSize {
		highest = low - acpiDataSize - 1
	}
	if size >= highest {
		return 0, fmt.Errorf("measure: initrd: %d bytes: want less than %d in a machine of %d MiB", size, highest, m.MemoryMiB)
	}
	return uint32((highest - size) &^ (pageSize - 1)), nil
}

// overlay reads as r with its beginning replaced.
type overlay struct {
	r    io.ReaderAt
	head []byte
}

func (o *overlay) ReadAt(b []byte, off int64) (int, error) {
	n, err := o.r.ReadAt(b, off)
	if off < int64(len(o.head)) {
		copy(b[:n], o.head[off:])
	}
	return n, err
}

// directLoadOptions returns the command line that OVMF hands to a kernel given
// by -kernel (QemuLoadImageLib): with a file name for the initrd, by which the
// kernel finds it in the file system that OVMF makes of fw_cfg.
func directLoadOptions(cmdline string, initrd, prefix bool) string {
	switch {
	case !initrd:
		return cmdline
	case prefix:
		return "initrd=initrd " + cmdline
	}
	return cmdline + " initrd=initrd"
}

func digestsOf(banks []eventlog.Alg, parts ...[]byte) []eventlog.Digest {
	out := make([]eventlog.Digest, len(banks))
	for i, bank := range banks {
		out[i] = eventlog.Digest{Alg: bank, Value: bank.Sum(parts...)}
	}
	return out
}
