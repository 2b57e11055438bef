package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/dm"
)

// VolumeOptions say how a disk is encrypted. Nothing of it comes from the disk.
//
// Without Integrity a volume is what "cryptsetup open --type plain --cipher
// aes-xts-plain64 --key-size 512 --sector-size 4096" makes of the whole disk, with a
// key that volumeKeys derives. The host can then put back what blocks held before and
// turn them into noise. With it, that is an error (EILSEQ or EIO) when such a block
// is read, but for the former content of the same block, or of all of them: nothing
// outside the disk tells how old it is.
type VolumeOptions struct {
	Device string // "/dev/vdb", which is waited for, or "254:16"
	Name   string // of the devices that are made: "plinth-volume-NAME"

	// Key is what all keys are derived from, at least MinVolumeKey bytes and for one
	// volume only; the caller clears it.
	Key []byte
	// Random is in the place of a Key: what the disk held is gone, and what it holds is
	// gone when the guest stops.
	Random bool

	Integrity bool // changed and moved blocks are errors

	// Format makes a volume of a disk whose first and last MiB are zeros, where there
	// is a Key. Without it such a disk is an error.
	Format bool
	// Empty refuses a volume that was made before.
	Empty bool

	Filesystem string // "ext4", or "" for a device without one
	Ext4       Ext4Options
}

// MinVolumeKey is how long VolumeOptions.Key is at least, bytes.
const MinVolumeKey = 32

// Ext4Options are what one may choose of a file system that is made.
type Ext4Options struct {
	NoJournal       bool  // also without it, a volume with a random key has none: no crash comes before a mount
	BytesPerInode   int64 // 0: by size
	ReservedPercent int   // of blocks, which only root gets
}

// A Volume is an encrypted disk that is open.
type Volume struct {
	kernel     kernel
	filesystem bool
	crypt      dm.Device

	mu      sync.Mutex // guards what follows
	devices []string   // names, the topmost last
	mounts  []string   // targets
}

// OpenVolume opens a disk.
func OpenVolume(ctx context.Context, o VolumeOptions) (*Volume, error) {
	v, err := openVolume(ctx, linux{}, o)
	if err != nil {
		return nil, fmt.Errorf("storage: volume %s: %s: %w", o.Name, o.Device, err)
	}
	return v, nil
}

func openVolume(ctx context.Context, k kernel, o VolumeOptions) (v *Volume, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	path, err := devicePath("/sys/dev/block", o.Device)
	if err != nil {
		return nil, err
	}
	d, err := inspect(ctx, path, &o)
	if err != nil {
		return nil, err
	}
	keys, err := o.keys()
	if err != nil {
		return nil, err
	}
	defer keys.clear()
	v = &Volume{kernel: k, filesystem: o.Filesystem != ""}
	if err = v.open(ctx, &o, d, keys); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

var volumeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

func (o *VolumeOptions) check() error {
	switch {
	case !volumeName.MatchString(o.Name):
		return fmt.Errorf("name %q: want %s", o.Name, volumeName)
	case o.Random && len(o.Key) > 0:
		return errors.New("a key beside a random one")
	case !o.Random && len(o.Key) < MinVolumeKey:
		return fmt.Errorf("key of %d bytes: want at least %d", len(o.Key), MinVolumeKey)
	case o.Filesystem != "" && o.Filesystem != "ext4":
		return fmt.Errorf("file system %q: want ext4", o.Filesystem)
	case o.Ext4.BytesPerInode < 0 || o.Ext4.ReservedPercent < 0 || o.Ext4.ReservedPercent > 50:
		return fmt.Errorf("file system: %d bytes an inode, %d percent reserved", o.Ext4.BytesPerInode, o.Ext4.ReservedPercent)
	case o.Empty && !o.Format && o.persistent():
		return errors.New("the disk is to be empty and must not be formatted")
	}
	return nil
}

func (o *VolumeOptions) keys() (*keys, error) {
	if o.Random {
		return newKeys(), nil
	}
	return volumeKeys(o.Key)
}

// persistent tells whether the volume is opened again in another boot.
func (o *VolumeOptions) persistent() bool { return !o.Random }

// open makes the devices, and on a disk that is made anew what is on them.
func (v *Volume) open(ctx context.Context, o *VolumeOptions, d *rawDisk, keys *keys) error {
	below, sectors := d.path, uint64(d.size)/dm.SectorSize
	if o.Integrity {
		i, n, err := v.integrity(ctx, o, d, keys)
		if err != nil {
			return err
		}
		below, sectors = i.Number(), n
	}
	name := "plinth-volume-" + o.Name
	crypt, err := v.kernel.createWritable(name, []dm.Target{keys.crypt(below, sectors)}, nil)
	if err != nil {
		return err
	}
	v.crypt = crypt
	v.devices = append(v.devices, name)
	data, err := v.kernel.openVolume(crypt)
	if err != nil {
		return err
	}
	if d.fresh {
		err = format(ctx, o, d, data, int64(sectors)*dm.SectorSize)
	} else if o.Filesystem != "" {
		err = found(checkExt4(data))
	}
	return errors.Join(err, data.Close())
}

// found says what it means that there is no file system.
func found(err error) error {
	switch {
	case errors.Is(err, errNoExt4):
		return fmt.Errorf("%w: the disk was encrypted with another key or in another way, or not formatted to the end", err)
	case errors.Is(err, unix.EILSEQ):
		return fmt.Errorf("the first block, or the journal, was altered: %w", err)
	case err != nil:
		return fmt.Errorf("first block: %w", err)
	}
	return nil
}

// integrity makes the lower device and returns how many sectors of it are used.
func (v *Volume) integrity(ctx context.Context, o *VolumeOptions, d *rawDisk, keys *keys) (dm.Device, uint64, error) {
	name := "plinth-volume-" + o.Name + "-integrity"
	var i dm.Device
	var sectors uint64
	var err error
	switch {
	case !o.persistent():
		i, sectors, err = newIntegrity(ctx, v.kernel, name, d.path, diskLayout, keys)
	case d.fresh:
		i, sectors, err = newIntegrity(ctx, v.kernel, name, d.path, volumeLayout, keys)
	default:
		i, sectors, err = oldIntegrity(v.kernel, name, d.path, keys)
	}
	if err != nil {
		return i, 0, err
	}
	v.devices = append(v.devices, name)
	if !o.persistent() {
		return i, sectors, nil
	}
	const margin = marginSize / dm.SectorSize
	if sectors <= 2*margin {
		return i, 0, fmt.Errorf("dm-integrity: %d sectors: want more than %d", sectors, 2*margin)
	}
	return i, sectors - margin, nil
}

// Device is where the plaintext is, "/dev/dm-3".
func (v *Volume) Device() string { return v.crypt.Path() }

// Mount mounts the volume's file system, without device nodes and set-user-ID. It
// makes target if that is not there.
func (v *Volume) Mount(target string, readOnly bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	err := v.mount(target, readOnly)
	if err != nil {
		err = fmt.Errorf("storage: %s: mount %s: %w", v.crypt.Name, target, err)
	}
	return err
}

func (v *Volume) mount(target string, readOnly bool) error {
	if !v.filesystem {
		return errors.New("the volume is a device without a file system")
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOATIME)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := v.kernel.mountExt4(v.Device(), target, flags); err != nil {
		return err
	}
	if resolved, err := filepath.EvalSymlinks(target); err == nil { // of "/proc/self/fd/7"
		target = resolved
	}
	v.mounts = append(v.mounts, target)
	return nil
}

// Close undoes Mount and takes the devices away. After an error it can be called again. What was written is on the disk then; without Close a volume with
// a key is as after a power failure.
func (v *Volume) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := takeAway(&v.mounts, v.unmount); err != nil {
		return fmt.Errorf("storage: %s: unmount: %w", v.crypt.Name, err)
	}
	return takeAway(&v.devices, v.kernel.remove)
}

// unmount takes what somebody else has unmounted for unmounted: umount(2),
// EINVAL and ENOENT.
func (v *Volume) unmount(target string) error {
	err := v.kernel.unmount(target)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// takeAway goes through names from the last to the first, and stops at an error.
func takeAway(names *[]string, one func(string) error) error {
	for _, name := range slices.Backward(slices.Clone(*names)) {
		if err := one(name); err != nil {
			return err
		}
		*names = (*names)[:len(*names)-1]
	}
	return nil
}

var deviceNumber = regexp.MustCompile(`^[0-9]{1,4}:[0-9]{1,7}$`)

// devicePath returns where devtmpfs shows a device, given by path or number. sys is
// "/sys/dev/block".
func devicePath(sys, device string) (string, error) {
	if !deviceNumber.MatchString(device) {
		return device, nil
	}
	b, err := os.ReadFile(sys + "/" + device + "/uevent")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok && name != "" {
			return "/dev/" + name, nil
		}
	}
	return "", fmt.Errorf("%s/%s/uevent: no DEVNAME", sys, device)
}
