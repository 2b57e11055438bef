package storage

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/dm"
)

// A kernel does what only Linux can do.
type kernel interface {
	create(name string, table []dm.Target) (dm.Device, error)
	createWritable(name string, table []dm.Target, check func(loaded []dm.Target) error) (dm.Device, error)
	try(name string, table []dm.Target) ([]dm.Target, error) // what the targets say of themselves; the device is never started
	remove(name string) error
	open(d dm.Device) (device, error)             // for direct writes
	openVolume(d dm.Device) (volumeDevice, error) // for direct reads and writes
	mount(source, target, options string) error   // an EROFS
	mountExt4(source, target string, flags uintptr) error
	unmount(target string) error
}

type device interface {
	io.WriterAt
	io.Closer
}

type volumeDevice interface {
	io.ReaderAt
	device
	Sync() error
}

// linux is the kernel that this runs on.
type linux struct{}

// control is where devtmpfs shows the device-mapper.
const control = "/dev/mapper/control"

func with[T any](do func(*dm.Control) (T, error)) (T, error) {
	c, err := dm.Open(control)
	if err != nil {
		var none T
		return none, err
	}
	defer c.Close()
	return do(c)
}

func (linux) create(name string, table []dm.Target) (dm.Device, error) {
	return with(func(c *dm.Control) (dm.Device, error) { return c.Create(name, "", table) })
}

func (linux) createWritable(name string, table []dm.Target, check func([]dm.Target) error) (dm.Device, error) {
	return with(func(c *dm.Control) (dm.Device, error) { return c.CreateWritable(name, "", table, check) })
}

func (linux) try(name string, table []dm.Target) ([]dm.Target, error) {
	return with(func(c *dm.Control) ([]dm.Target, error) { return c.Try(name, table) })
}

func (linux) remove(name string) error {
	_, err := with(func(c *dm.Control) (struct{}, error) { return struct{}{}, c.Remove(name) })
	return err
}

func (linux) open(d dm.Device) (device, error) {
	return os.OpenFile(d.Path(), os.O_WRONLY|unix.O_DIRECT, 0)
}

func (linux) openVolume(d dm.Device) (volumeDevice, error) {
	return os.OpenFile(d.Path(), os.O_RDWR|unix.O_DIRECT, 0)
}

// mountFlags: a container gets what it may of this by mounts of its own.
const mountFlags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID

func (linux) mount(source, target, options string) error {
	return unix.Mount(source, target, "erofs", mountFlags, options)
}

func (linux) mountExt4(source, target string, flags uintptr) error {
	return unix.Mount(source, target, "ext4", flags, "errors=remount-ro")
}

func (linux) unmount(target string) error { return unix.Unmount(target, unix.UMOUNT_NOFOLLOW) }
