package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/verity"
	"golang.org/x/sys/unix"
)

const (
	rootWait   = 20 * time.Second // for a disk whose driver was just loaded
	rootName   = "plinth-root"
	rootMount  = "/sysroot" // not below what is carried over
	lowerMount = "/run/plinth/lower"
	upperMount = "/run/plinth/upper"
)

// carried are the mounts that go on in the final root.
var carried = []string{"/proc", "/sys", "/dev", "/run", "/tmp"}

// setRoot makes the final root file system the root. Without the argument that
// names a verity root it is the initrd, which the launch measurement covers.
func setRoot(ctx context.Context, s *State) error {
	r, err := rootArgument(s.Config.Cmdline)
	if err != nil {
		return err
	}
	if r == nil {
		s.Report.Root = evidence.RootInitrd
		return nil
	}
	if err := s.openRoot(ctx, r); err != nil {
		return err
	}
	s.Report.Root = evidence.RootVerity
	if s.Config.Overlay {
		if err := s.overlay(); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	if err := s.machine.enter(s.path(rootMount), carried); err != nil {
		return err
	}
	return s.reportRoot()
}

// rootArgument returns the root that the command line names, nil if none. It is
// the configuration's command line, which an earlier stage has found to be that
// of the kernel.
func rootArgument(cmdline string) (*verity.Root, error) {
	var found *verity.Root
	for _, w := range strings.Fields(cmdline) {
		value, ok := strings.CutPrefix(w, verity.Argument+"=")
		if !ok {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s: twice", verity.Argument)
		}
		var err error
		if found, err = verity.ParseRoot(value); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// openRoot waits for a disk that has the root and mounts it.
func (s *State) openRoot(ctx context.Context, r *verity.Root) error {
	ctx, cancel := context.WithTimeout(ctx, rootWait)
	defer cancel()
	tried := map[string]error{}
	for {
		candidates := s.candidates(r)
		for _, c := range candidates {
			if before := tried[c.String()]; before != nil && !notYet(before) {
				continue
			}
			check := r.Top
			if len(candidates) > 1 {
				check = r.Verify // a wrong block would end what another disk could go on with
			}
			err := s.try(r, c, check)
			if err == nil {
				return nil
			}
			if !notYet(err) {
				s.logf("root: %s: %v", c, err)
			}
			tried[c.String()] = err
		}
		select {
		case <-ctx.Done():
			return noRoot(r, tried)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// notYet tells whether a partition is about to come: sysfs shows it a moment before
// its node is in /dev, and the node a moment before it can be opened. Linux,
// block/partitions/core.c, add_partition.
func notYet(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) }

func noRoot(r *verity.Root, tried map[string]error) error {
	errs := []error{fmt.Errorf("no disk has the root with root hash %x", r.RootHash)}
	for _, name := range sortedKeys(tried) {
		errs = append(errs, fmt.Errorf("%s: %w", name, tried[name]))
	}
	return errors.Join(errs...)
}

// try sets one candidate up. What it leaves behind when it fails is harmless:
// nothing of it is mounted. check tells a disk with this root from one that only
// has its name, before the kernel is told to panic over a wrong block; it is the
// kernel that holds every block to the root hash from then on.
func (s *State) try(r *verity.Root, c candidate, check func(data, hash io.ReaderAt) error) error {
	if err := look(c, check); err != nil {
		return err
	}
	table := dm.Verity{
		Format: r.Format, Data: c.data.number, Hash: c.hash.number, DataBlockSize: r.DataBlockSize, HashBlockSize: r.HashBlockSize,
		DataBlocks: r.DataBlocks, HashStart: r.HashStart, Algorithm: string(r.Algorithm), RootHash: r.RootHash, Salt: r.Salt,
		Options: []string{r.OnCorruption.Option()},
	}
	device, err := s.machine.createDevice(rootName, table.Target())
	if err != nil {
		return err
	}
	target := rootMount
	if s.Config.Overlay {
		target = lowerMount
	}
	err = s.makeAndMount(mount{fstype: "erofs", source: device, target: target, flags: unix.MS_RDONLY | unix.MS_NODEV})
	if err != nil {
		return errors.Join(err, s.machine.removeDevice(rootName))
	}
	return nil
}

func look(c candidate, check func(data, hash io.ReaderAt) error) error {
	data, err := os.Open(c.data.path)
	if err != nil {
		return err
	}
	defer data.Close()
	hash, err := os.Open(c.hash.path)
	if err != nil {
		return err
	}
	defer hash.Close()
	return check(data, hash)
}

func (s *State) makeAndMount(m mount) error {
	target := s.path(m.target)
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return s.machine.mount(m, target)
}

// overlay lays a file system in memory over the root: writes go there and are
// gone at the end.
func (s *State) overlay() error {
	if err := s.makeAndMount(mount{fstype: "tmpfs", target: upperMount, flags: unix.MS_NODEV, data: "mode=0755"}); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(s.path(upperMount+"/"+d), 0o755); err != nil {
			return err
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", s.path(lowerMount), s.path(upperMount+"/upper"), s.path(upperMount+"/work"))
	return s.makeAndMount(mount{fstype: "overlay", target: rootMount, flags: unix.MS_NODEV, data: data})
}

// reportRoot states what the kernel says the root is.
func (s *State) reportRoot() error {
	table, err := s.machine.table(rootName)
	if err != nil {
		return err
	}
	s.Report.RootTable = fmt.Sprintf("%d %d %s %s", table.Start, table.Length, table.Type, table.Params)
	if s.Report.RootDevice, err = s.device("/"); err != nil || !s.Config.Overlay {
		return err
	}
	s.Report.RootLower, err = s.device(lowerMount)
	return err
}

// device returns the number of the device that a directory is on.
func (s *State) device(name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(s.path(name), &st); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}
