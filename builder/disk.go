package builder

import (
	"context"

	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/tree"
)

// runDisk makes image.raw.
func runDisk(ctx context.Context, w *work) error {
	r, err := w.ref("uki", "image.efi")
	if err != nil {
		return err
	}
	files := []tree.Entry{tree.File(disk.BootPath, 0o644, w.blob(r))}
	esp, err := disk.ESP(files, disk.ESPParams{Seed: w.Profile.Seed, Digest: r.Digest[:], Epoch: w.Profile.Epoch})
	if err != nil {
		return err
	}
	d := disk.Disk{ID: disk.ID(w.Profile.Seed, "disk", r.Digest[:]), Partitions: []disk.Partition{esp}}
	return w.write(ctx, "image.raw", func(cw *cas.Writer) error { return disk.Write(cw, d) })
}
