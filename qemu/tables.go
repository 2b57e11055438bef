package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
)

// Layout says where a firmware puts what QEMU's ACPI tables name. The zero
// Layout is that of OVMF since edk2 2023.05.
type Layout struct {
	PCIEXBAR uint32 // base of the PCI configuration space in memory; 0 is 0xe0000000, before 2023.05 it was 0xb0000000

	// AddressBits is the width of the guest's physical addresses as OVMF takes
	// it, on which the 64-bit PCI window depends. It is at most 46 with 4-level
	// paging; -1 stands for a width that OVMF does not believe, as 40 of a
	// processor by Intel. 0 is 46 in a trust domain, else 40, that of QEMU's own
	// processors.
	AddressBits int

	// TD says that the guest is a trust domain. Its firmware learns of the memory
	// by hand-off blocks, which do not have what QEMU reserves for an IOMMU.
	TD bool
}

// tablesTimeout bounds all of Tables. A paused QEMU answers within 3 s.
const tablesTimeout = time.Minute

// Tables returns the files of fw_cfg from which m's firmware makes its ACPI
// tables: etc/table-loader, etc/acpi/rsdp, etc/acpi/tables. QEMU makes them when
// they are read, out of what the firmware has set up until then. Here QEMU runs
// with the same arguments, under TCG, its guest never runs, and the chipset and the
// PCI devices are set up over qtest as OVMF does it. Of a confidential guest m has
// to leave out what makes it one: TCG knows none of it, and no table shows it.
//
// It fails where the firmware would do more than is done here: with PCI bridges,
// and with more than one root bus.
func Tables(ctx context.Context, m Machine, l Layout) (loader, rsdp, tables []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, tablesTimeout)
	defer cancel()
	q, err := startQtest(ctx, m)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() { err = errors.Join(err, q.close()) }()
	if err := q.setUp(l); err != nil {
		return nil, nil, nil, q.failure(ctx, err)
	}
	files, err := q.files(loaderFile, rsdpFile, tablesFile)
	if err != nil {
		return nil, nil, nil, q.failure(ctx, err)
	}
	return files[0], files[1], files[2], nil
}

const (
	loaderFile = "etc/table-loader"
	rsdpFile   = "etc/acpi/rsdp"
	tablesFile = "etc/acpi/tables"
	rootsFile  = "etc/extra-pci-roots"
	e820File   = "etc/e820"
)

// fw_cfg, its DMA interface: QEMU, docs/specs/fw_cfg.
const (
	fwcfgDMA        = 0x514 // port: u64 of the request's address, big-endian, the upper half first
	fwcfgDir        = 0x19  // item: u32 count, then fwcfgEntry
	fwcfgEntrySize  = 4 + 2 + 2 + fwcfgNameSize
	fwcfgNameSize   = 56
	fwcfgError      = 1 << 0 // of a request's control
	fwcfgRead       = 1 << 1
	fwcfgSelect     = 1 << 3 // the item is in the upper half
	fwcfgRequest    = 0x1000 // guest memory: where our request lies ...
	fwcfgBuffer     = 0x2000 // ... and to where the item is read
	maxFwcfgFile    = 16 << 20
	maxFwcfgEntries = 1024
)

// fwcfgFile is one entry of the directory.
type fwcfgFile struct {
	item uint16
	size uint32
}

// files reads files by name.
func (q *qtest) files(names ...string) ([][]byte, error) {
	dir, err := q.directory()
	if err != nil {
		return nil, err
	}
	out := make([][]byte, len(names))
	for i, name := range names {
		f, ok := dir[name]
		if !ok {
			return nil, fmt.Errorf("fw_cfg has no file %s", name)
		}
		if out[i], err = q.item(f.item, f.size); err != nil {
			return nil, fmt.Errorf("fw_cfg file %s: %w", name, err)
		}
	}
	return out, nil
}

func (q *qtest) directory() (map[string]fwcfgFile, error) {
	head, err := q.item(fwcfgDir, 4)
	if err != nil {
		return nil, fmt.Errorf("fw_cfg directory: %w", err)
	}
	n := binary.BigEndian.Uint32(head)
	if n > maxFwcfgEntries {
		return nil, fmt.Errorf("fw_cfg directory: %d files: want at most %d", n, maxFwcfgEntries)
	}
	b, err := q.item(fwcfgDir, 4+n*fwcfgEntrySize)
	if err != nil {
		return nil, fmt.Errorf("fw_cfg directory: %w", err)
	}
	dir := map[string]fwcfgFile{}
	for b = b[4:]; len(b) > 0; b = b[fwcfgEntrySize:] {
		name, _, _ := bytes.Cut(b[8:fwcfgEntrySize], []byte{0})
		dir[string(name)] = fwcfgFile{item: binary.BigEndian.Uint16(b[4:]), size: binary.BigEndian.Uint32(b)}
	}
	return dir, nil
}

// item reads the first size bytes of an item.
func (q *qtest) item(item uint16, size uint32) ([]byte, error) {
	if size > maxFwcfgFile {
		return nil, fmt.Errorf("%d bytes: want at most %d", size, maxFwcfgFile)
	}
	be := binary.BigEndian
	request := be.AppendUint32(nil, uint32(item)<<16|fwcfgSelect|fwcfgRead)
	request = be.AppendUint32(request, size)
	request = be.AppendUint64(request, fwcfgBuffer)
	if err := q.write(fwcfgRequest, request); err != nil {
		return nil, err
	}
	// The guest's view of the port is big-endian, qtest's is little-endian.
	if err := q.out32(fwcfgDMA, 0); err != nil {
		return nil, err
	}
	if err := q.out32(fwcfgDMA+4, swap32(fwcfgRequest)); err != nil {
		return nil, err
	}
	control, err := q.read(fwcfgRequest, 4)
	if err != nil {
		return nil, err
	}
	if c := be.Uint32(control); c != 0 {
		return nil, fmt.Errorf("read: control is %#x afterwards: want 0", c)
	}
	if size == 0 {
		return nil, nil
	}
	return q.read(fwcfgBuffer, int(size))
}

func swap32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.LittleEndian.AppendUint32(nil, v))
}

// failure says why a conversation with QEMU failed: in QEMU's own words, if it
// has ended.
func (q *qtest) failure(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("qemu: fw_cfg: %w", ctx.Err())
	case (disconnected(err) || errors.Is(err, os.ErrDeadlineExceeded)) && q.child.waitFor(time.Second) && q.child.failure() != nil:
		return fmt.Errorf("qemu: fw_cfg: %w", q.child.failure())
	}
	return fmt.Errorf("qemu: fw_cfg: %w", err)
}
