package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/ctxio"
)

// exportDisk writes the disk of the image in dir in another form.
func (c *common) exportDisk(ctx context.Context, dir, to, out string, force bool) error {
	form, err := builder.FindForm(to)
	if err != nil {
		return usagef("--to is %w", err)
	}
	m, err := readManifest(dir)
	if err != nil {
		return err
	}
	if !force {
		if err := checkDrivers(dir, m, form); err != nil {
			return err
		}
	}
	if out == "" {
		out = filepath.Join(dir, form.File)
	}
	if err := convertDisk(ctx, dir, out, m, form); err != nil {
		return err
	}
	return c.written(out)
}

// convertDisk writes the disk, after a comparison with the manifest.
func convertDisk(ctx context.Context, dir, out string, m *builder.Manifest, form *builder.Form) error {
	f, size, err := openListed(dir, m, builder.DiskName)
	if err != nil {
		return err
	}
	defer f.Close() // read only
	err = builder.ReplaceFile(out, func(w *os.File) error {
		return form.Convert(w, m, io.NewSectionReader(ctxio.ReaderAt(ctx, f), 0, size))
	})
	if err != nil {
		return fmt.Errorf("%s: %w", out, err)
	}
	return nil
}

// checkDrivers looks into the initrd, which must be the one of the manifest.
func checkDrivers(dir string, m *builder.Manifest, form *builder.Form) error {
	if err := builder.CheckDrivers(m, os.DirFS(dir), form); err != nil {
		return lintFault(dir, err)
	}
	return nil
}
