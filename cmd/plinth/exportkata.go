package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/measure"
)

// exportKata writes the configuration and, where the root is on a disk, the disk
// that Kata attaches.
func (c *common) exportKata(dir string, f *exportFlags) error {
	m, ms, err := readPredicted(dir)
	if err != nil {
		return err
	}
	k, err := newKata(m, ms)
	if err != nil {
		return err
	}
	node := f.nodeDir
	if node == "" {
		node = path.Join("/opt/plinth", m.Name)
	}
	if !path.IsAbs(node) || path.Clean(node) != node {
		return usagef("--node-dir is %q: want a clean absolute path", node)
	}
	digests, err := measuredByKata(k, dir, m)
	if err != nil {
		return err
	}
	out := f.out
	if out == "" {
		out = filepath.Join(dir, export.KataConfigName)
	}
	if own, why := k.OwnKernel(); !own && !c.quiet {
		fmt.Fprintf(c.env.stderr, "plinth: Kata has to bring a kernel: that of the image cannot set its root up without an initrd: %s\n", why)
	}
	if m.Root != nil && out != stdoutName {
		if err := c.kataDisk(k, m, dir, filepath.Join(filepath.Dir(out), export.KataDiskName)); err != nil {
			return err
		}
	}
	return c.emit(out, func() ([]byte, error) { return k.Config(node, digests), nil })
}

// newKata is export's, with the exit code of what makes no sense.
func newKata(m *builder.Manifest, ms *measure.Measurements) (*export.Kata, error) {
	k, err := export.NewKata(m, ms)
	if errors.Is(err, export.ErrNotKata) {
		err = unsupportedError{err}
	}
	return k, err
}

// kataDisk writes the disk.
func (c *common) kataDisk(k *export.Kata, m *builder.Manifest, dir, out string) error {
	f, size, err := openListed(dir, m, builder.DiskName)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := builder.ReplaceFile(out, func(w *os.File) error { return k.WriteDisk(w, io.NewSectionReader(f, 0, size)) }); err != nil {
		return fmt.Errorf("%s: %w", out, err)
	}
	return c.written(out)
}

// kataMeasurements are those of a launch by Kata.
func kataMeasurements(dir string, m *builder.Manifest, ms *measure.Measurements) (*measure.Measurements, error) {
	k, err := newKata(m, ms)
	if err != nil {
		return nil, err
	}
	digests, err := measuredByKata(k, dir, m)
	switch own, why := k.OwnKernel(); {
	case err != nil:
		return nil, err
	case !own:
		return nil, unsupportedError{fmt.Errorf("the kernel has to be one of Kata, and decides the digest: that of the image cannot set its root up without an initrd: %s", why)}
	case digests == nil:
		return nil, unsupportedError{fmt.Errorf("a %s guest that Kata starts is not predicted; plinth measure %s does it from files", m.Platform, m.Platform)}
	}
	return digests, nil
}

// measuredByKata opens what Kata starts, and closes it.
func measuredByKata(k *export.Kata, dir string, m *builder.Manifest) (*measure.Measurements, error) {
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	return k.Measurements(func(name string) (*io.SectionReader, error) {
		f, size, err := openListed(dir, m, name)
		if err != nil {
			return nil, err
		}
		opened = append(opened, f)
		return io.NewSectionReader(f, 0, size), nil
	})
}
