package snp

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// Hashes are SHA-256 of what the VMM hands to the firmware at a direct boot. The
// firmware refuses other bytes, so the launch digest covers them.
type Hashes struct{ Kernel, Initrd, Cmdline [32]byte }

// HashDirectBoot reads kernel and initrd to their ends, both at once. Whether an
// initrd is absent (nil) or empty makes no difference, nor whether a command line
// is. The command line is hashed as C has it, with a NUL at its end, and so can
// hold none.
func HashDirectBoot(kernel, initrd io.Reader, cmdline *string) (*Hashes, error) {
	if kernel == nil {
		return nil, errors.New("snp: direct boot: no kernel")
	}
	if initrd == nil {
		initrd = strings.NewReader("")
	}
	if cmdline == nil {
		cmdline = new(string)
	}
	if at := strings.IndexByte(*cmdline, 0); at >= 0 {
		return nil, fmt.Errorf("snp: command line: a NUL at byte %d of %d: the VMM passes what is before it", at, len(*cmdline))
	}
	h := &Hashes{Cmdline: sha256.Sum256(append([]byte(*cmdline), 0))}
	failed := make(chan error, 1)
	go func() { failed <- hashReader(&h.Initrd, "initrd", initrd) }()
	err := hashReader(&h.Kernel, "kernel", kernel)
	if err := errors.Join(err, <-failed); err != nil {
		return nil, err
	}
	return h, nil
}

func hashReader(out *[32]byte, what string, r io.Reader) error {
	d := sha256.New()
	if _, err := io.CopyBuffer(d, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		return fmt.Errorf("snp: %s: %w", what, err)
	}
	d.Sum(out[:0])
	return nil
}

// The hash table of QEMU, target/i386/sev.c, and of edk2,
// OvmfPkg/AmdSev/BlobVerifierLibSevHashes.
var (
	tableGUID   = mustGUID("9438d606-4f22-4cc9-b479-a793d411fd21")
	cmdlineGUID = mustGUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
	initrdGUID  = mustGUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
	kernelGUID  = mustGUID("4de79437-abd2-427f-b835-d5b172d2045b")
)

const (
	entrySize = 16 + 2 + 32           // GUID, u16 size of the entry, hash
	headSize  = 16 + 2 + 3*entrySize  // GUID, u16 size of the table, entries
	tableSize = (headSize + 15) &^ 15 // padded with zeros
)

// Table returns the table of hashes as the guest's memory holds it, 176 bytes.
func (h *Hashes) Table() []byte {
	b := make([]byte, 0, tableSize)
	b = append(b, tableGUID[:]...)
	b = binary.LittleEndian.AppendUint16(b, headSize)
	for _, e := range []struct {
		guid ovmf.GUID
		hash [32]byte
	}{{cmdlineGUID, h.Cmdline}, {initrdGUID, h.Initrd}, {kernelGUID, h.Kernel}} {
		b = append(b, e.guid[:]...)
		b = binary.LittleEndian.AppendUint16(b, entrySize)
		b = append(b, e.hash[:]...)
	}
	return b[:tableSize]
}

// page is the page that holds the table at an offset.
func (h *Hashes) page(offset uint32) []byte {
	b := make([]byte, pageSize)
	copy(b[offset:], h.Table())
	return b
}

// HashPage returns the page with the table of hashes as it is measured, nil for
// a launch without them.
func (l *Launch) HashPage() []byte {
	if l.p.Hashes == nil {
		return nil
	}
	return l.p.Hashes.page(l.seed.Hashes.Base % pageSize)
}

// checkArea tells whether the table fits where the firmware looks for it.
func checkArea(a *ovmf.Area) error {
	switch {
	case a == nil:
		return errors.New("snp: kernel hashes: the firmware has no hash table: a kernel would not be measured; take a build that has it, as OVMF's AmdSev")
	case a.Size < tableSize:
		return fmt.Errorf("snp: kernel hashes: the firmware has %d bytes at %#x for the table: want %d", a.Size, a.Base, tableSize)
	case a.Base%pageSize > pageSize-tableSize:
		return fmt.Errorf("snp: kernel hashes: table of %d bytes at %#x: want it within a page", tableSize, a.Base)
	}
	return nil
}

var mustGUID = ovmf.MustGUID
