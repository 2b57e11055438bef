package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
)

// exportDisk writes the disk of an image in another container.
func (c *common) exportDisk(dir, to, out string) error {
	form, err := export.FindContainer(to)
	if err != nil {
		return usagef("--to is %w", err)
	}
	m, err := readManifest(dir)
	if err != nil {
		return err
	}
	f, size, err := openListed(dir, m, builder.DiskName)
	if err != nil {
		return err
	}
	defer f.Close()
	if out == "" {
		out = filepath.Join(dir, form.File)
	}
	err = builder.ReplaceFile(out, func(w *os.File) error { return form.Convert(w, m, io.NewSectionReader(f, 0, size)) })
	if err != nil {
		return fmt.Errorf("%s: %w", out, err)
	}
	return c.written(out)
}
