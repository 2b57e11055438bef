package vdisk

import (
	"archive/tar"
	"io"
	"time"

	"github.com/klauspost/compress/gzip" // over a disk of zeros five times as fast as Go's own
)

// GCE writes the archive that Google Compute Engine imports: a gzip-compressed
// tar, in GNU's old format, with the one file disk.raw. The disk must be a
// multiple of 1 GiB.
func GCE(w io.Writer, d Disk, epoch int64) error {
	if err := d.check("GCE archive", 1<<30); err != nil {
		return err
	}
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	err := t.WriteHeader(&tar.Header{
		Name: "disk.raw", Typeflag: tar.TypeReg, Mode: 0o644, Size: d.Size, ModTime: time.Unix(epoch, 0), Format: tar.FormatGNU,
	})
	if err != nil {
		return err
	}
	if err := d.copy(t); err != nil {
		return err
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}
