package storage

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/verity"
)

// A file is what was written to a pool, complete. The pool's lock guards it.
type file struct {
	extents []extent
	params  verity.Params // without data blocks the file is empty and has no device
	root    []byte        // hash

	uses   int
	name   string // of the device that shows it, "" while there is none
	device string // its path
	row    string // name of the device of its blocks, below that one
}

func (f *file) blocks() uint64 { return f.params.DataBlocks }

// rows is what the file consists of, as a table.
func (f *file) rows(device string) (out []dm.Target) {
	const sectors = blockSize / dm.SectorSize
	at := uint64(0)
	for _, e := range f.extents {
		out = append(out, dm.Linear{Device: device, Offset: e.start * sectors}.Target(at, e.blocks*sectors))
		at += e.blocks * sectors
	}
	return out
}

// Names of the two devices of a file; the first shows its blocks, the second only
// those that have the right digest.
const (
	rowName    = "plinth-blocks-%d"
	verityName = "plinth-image-%d"
)

// up makes the device that shows a file, unless there is one. At a wrong block the
// kernel panics, as at one of the root file system: a program may not look at errors,
// and who makes single reads fail chooses what it does without. A read that the disk
// itself fails, or dm-integrity for a wrong MAC, stays an error: before Linux 6.13
// dm-verity has no option for those.
func (p *Pool) up(f *file) (err error) {
	if f.name != "" {
		return nil
	}
	n := p.names
	p.names++
	row, err := p.kernel.create(fmt.Sprintf(rowName, n), f.rows(p.base.number))
	if err != nil {
		return err
	}
	table := dm.Verity{
		Format: f.params.Format, Data: row.Number(), Hash: row.Number(), DataBlockSize: blockSize, HashBlockSize: blockSize,
		DataBlocks: f.params.DataBlocks, HashStart: f.params.DataBlocks, Algorithm: string(f.params.Algorithm),
		RootHash: f.root, Salt: f.params.Salt, Options: []string{verity.Panic.Option()},
	}
	d, err := p.kernel.create(fmt.Sprintf(verityName, n), []dm.Target{table.Target()})
	if err != nil {
		return errors.Join(err, p.kernel.remove(row.Name))
	}
	f.name, f.row, f.device = d.Name, row.Name, d.Path()
	return nil
}

// removeWait is for those who still hold a device of a file system that was just
// unmounted: the kernel closes it a moment later.
const removeWait = 2 * time.Second

// down removes the device of a file that nobody uses.
func (p *Pool) down(f *file) error {
	if f.name == "" {
		return nil
	}
	if f.uses > 0 {
		return fmt.Errorf("storage: %s: in use", f.name)
	}
	for _, name := range []string{f.name, f.row} {
		if err := p.removeDevice(name); err != nil {
			return err
		}
	}
	f.name, f.row, f.device = "", "", ""
	return nil
}

// removeDevice removes a device, or finds that it was removed before.
func (p *Pool) removeDevice(name string) error {
	for end := time.Now().Add(removeWait); ; time.Sleep(5 * time.Millisecond) {
		err := p.kernel.remove(name)
		if err == nil || errors.Is(err, unix.ENXIO) { // no such device
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// maxOptions is what mount(2) takes, bytes.
const maxOptions = 4095

// Mount mounts the tree of a chain on a directory, read-only and without devices or
// set-user-ID programs. The same tree can be mounted in several places.
func (p *Pool) Mount(chainID digest.Digest, target string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.trees[chainID]
	switch {
	case p.closed:
		return errClosed
	case t == nil:
		return fmt.Errorf("storage: image %s: %w", chainID, os.ErrNotExist)
	case p.mounts[target] != nil:
		return fmt.Errorf("storage: %s: an image is mounted there", target)
	}
	files := p.files(t)
	var options []string
	for i, f := range files {
		if err := p.up(f); err != nil {
			return errors.Join(fmt.Errorf("storage: image %s: %w", chainID, err), p.drop(files[:i]))
		}
		if i > 0 {
			options = append(options, "device="+f.device)
		}
	}
	text := strings.Join(options, ",")
	err := error(unix.E2BIG)
	if len(text) <= maxOptions {
		err = p.kernel.mount(files[0].device, target, text)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("storage: image %s on %s: %w", chainID, target, err), p.drop(files))
	}
	for _, f := range files {
		f.uses++
	}
	t.mounts++
	p.mounts[target] = t
	return nil
}

// files are those of a tree: its own, then its devices.
func (p *Pool) files(t *tree) []*file {
	out := []*file{t.file}
	for _, id := range t.devices {
		out = append(out, p.layers[id].file)
	}
	return out
}

// drop removes the devices of files that nobody uses any longer.
func (p *Pool) drop(files []*file) error {
	var errs []error
	for _, f := range slices.Backward(files) {
		if f.uses == 0 {
			errs = append(errs, p.down(f))
		}
	}
	return errors.Join(errs...)
}

// Unmount takes away what Mount has mounted on target. A device that somebody still
// uses then stays, with its blocks, until Collect finds it free.
func (p *Pool) Unmount(target string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.mounts[target]
	if t == nil {
		return fmt.Errorf("storage: %s: no image is mounted there", target)
	}
	if err := p.kernel.unmount(target); err != nil {
		return fmt.Errorf("storage: %s: %w", target, err)
	}
	delete(p.mounts, target)
	t.mounts--
	files := p.files(t)
	for _, f := range files {
		f.uses--
	}
	return p.drop(files)
}
