// Package initrd makes initial RAM disks for Linux: it finds the kernel modules
// that a system needs to come up, and writes file trees as archives.
package initrd

import (
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/ulikunitz/xz"

	"github.com/plinth-os/plinth/internal/newc"
	"github.com/plinth-os/plinth/internal/tree"
)

// Params is what shapes an initrd besides its files.
type Params struct {
	Compression string // of the main archive: none, gzip, zstd or xz
	Level       int    // gzip 1 to 9, zstd 1 to 19 as its command counts; 0 is the default; xz and none have no levels
	Epoch       int64  // seconds since 1970, of every file
}

// zstdWindow is what unpacking needs in memory; the kernel takes up to 128 MiB.
const zstdWindow = 8 << 20

// Write writes an initrd to w: the early archive, uncompressed as the kernel
// wants microcode and ACPI tables, unless it is empty, then the compressed main
// one. Both are normalised. Zeros fill the end up to a multiple of 4: systemd-stub
// fills it up so before measuring, and PCR 9 is then the digest of what Write
// wrote. Equal arguments give equal bytes with one version of the libraries that
// compress, on any number of processors.
func Write(w io.Writer, early, main []tree.Entry, p Params) error {
	if len(early) > 0 {
		if err := writeArchive(w, early, p.Epoch); err != nil {
			return fmt.Errorf("initrd: early archive: %w", err)
		}
	}
	count := &counter{w: w}
	c, err := compressor(count, p)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	if err := writeArchive(c, main, p.Epoch); err != nil {
		c.Close() // stops its goroutines; the archive's error counts
		return fmt.Errorf("initrd: %w", err)
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("initrd: %s: %w", p.Compression, err)
	}
	_, err = w.Write(make([]byte, -count.n&3))
	return err
}

func writeArchive(w io.Writer, entries []tree.Entry, epoch int64) error {
	entries, err := tree.Normalize(entries)
	if err != nil {
		return err
	}
	return newc.Write(w, entries, newc.Params{MTime: epoch})
}

type counter struct {
	w io.Writer
	n int64 // bytes
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

func compressor(w io.Writer, p Params) (io.WriteCloser, error) {
	bad := func(limit int) error {
		return fmt.Errorf("compression %s: level is %d: want 1 to %d, or 0 for the default", p.Compression, p.Level, limit)
	}
	switch p.Compression {
	case "none":
		if p.Level != 0 {
			return nil, bad(0)
		}
		return nopCloser{w}, nil
	case "gzip":
		if p.Level < 0 || p.Level > 9 {
			return nil, bad(9)
		}
		level := p.Level
		if level == 0 {
			level = pgzip.DefaultCompression
		}
		// Blocks have a fixed size; how many are compressed at a time changes nothing.
		z, err := pgzip.NewWriterLevel(w, level)
		if err == nil {
			z.ModTime = time.Unix(0, 0) // none; the zero Time would be written as a date
		}
		return z, err
	case "zstd":
		if p.Level < 0 || p.Level > 19 {
			return nil, bad(19)
		}
		level := zstd.SpeedDefault
		if p.Level != 0 {
			level = zstd.EncoderLevelFromZstd(p.Level)
		}
		// The concurrency is fixed so that every machine takes the same path.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithWindowSize(zstdWindow), zstd.WithEncoderConcurrency(2))
	case "xz":
		if p.Level != 0 {
			return nil, bad(0)
		}
		// The kernel's decoder knows no other checksum.
		return xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(w)
	}
	return nil, fmt.Errorf("compression %q: want none, gzip, zstd or xz", p.Compression)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
