package disk

import (
	"io"

	"github.com/plinth-os/plinth/internal/fat"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/ident"
	"github.com/plinth-os/plinth/internal/tree"
)

// BootPath is where firmware looks for a loader on a disk that no boot entry
// names; UEFI 2.10, 3.5.1.1 "Removable Media Boot Behavior".
const BootPath = "EFI/BOOT/BOOTX64.EFI"

// ESPParams is what shapes an EFI system partition besides its files.
type ESPParams struct {
	Seed   string // of the profile
	Digest []byte // of the content: the partition's GUID and serial derive from it
	Epoch  int64  // seconds since 1970, of every file
}

// ESP returns an EFI system partition of the files: FAT32, as UEFI wants it, and
// the smallest of whole MiB that holds them, at least fat.MinFAT32. It has no
// further room on purpose: what is measured is not written to.
func ESP(files []tree.Entry, p ESPParams) (Partition, error) {
	size, err := fat.Size(files)
	if err != nil {
		return Partition{}, err
	}
	params := fat.Params{
		VolumeID: ident.Serial32(p.Seed, "ESP volume", p.Digest),
		Label:    "ESP",
		Epoch:    p.Epoch,
	}
	return Partition{
		Type:    TypeESP,
		ID:      ID(p.Seed, "ESP partition", p.Digest),
		Name:    "esp",
		Size:    size,
		Content: func(w io.WriterAt) error { return fat.Write(w, size, files, params) },
	}, nil
}

// ID derives the GUID of a disk or partition; see ident.UUID.
func ID(seed, purpose string, content ...[]byte) gpt.GUID {
	return gpt.FromUUID(ident.UUID(seed, purpose, content...))
}
