// Package dm sets up device-mapper devices by the kernel's ioctls, without udev
// and without outside tools.
//
// Document: Linux, include/uapi/linux/dm-ioctl.h and
// Documentation/admin-guide/device-mapper.
package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of Target.Start and Target.Length, in bytes.
const SectorSize = 512

// Target is one line of a table: what a range of the device does.
type Target struct {
	Start, Length uint64 // sectors
	Type          string // "verity"
	Params        string // in the words of the target
}

// Device is a device that was created.
type Device struct {
	Name         string
	Major, Minor uint32
}

// Path is where devtmpfs shows the device.
func (d Device) Path() string { return fmt.Sprintf("/dev/dm-%d", d.Minor) }

// Control is the kernel's device-mapper.
type Control struct {
	f     *os.File
	ioctl func(command uint32, buf []byte) error
}

// Open opens the control device, "/dev/mapper/control".
func Open(path string) (*Control, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := &Control{f: f}
	c.ioctl = c.call
	return c, nil
}

// Close closes the control device. Devices stay.
func (c *Control) Close() error { return c.f.Close() }

// Create makes a read-only device with a table and starts it. When a step fails
// nothing stays behind.
func (c *Control) Create(name, uuid string, table []Target) (Device, error) {
	h := header{flags: flagReadOnly}
	if err := h.name(name, uuid); err != nil {
		return Device{}, err
	}
	created, err := c.do("create", cmdCreate, h, nil)
	if err != nil {
		return Device{}, err
	}
	if err := c.start(h, table); err != nil {
		return Device{}, errors.Join(err, c.Remove(name))
	}
	dev := binary.LittleEndian.Uint64(created[offDev:])
	return Device{Name: name, Major: unix.Major(dev), Minor: unix.Minor(dev)}, nil
}

// start loads the table and resumes the device.
func (c *Control) start(h header, table []Target) error {
	specs, err := encode(table)
	if err != nil {
		return err
	}
	h.targets = len(table)
	if _, err := c.do("load table", cmdTableLoad, h, specs); err != nil {
		return err
	}
	h.targets = 0
	_, err = c.do("resume", cmdSuspend, h, nil)
	return err
}

// Table returns the table that the kernel uses.
func (c *Control) Table(name string) ([]Target, error) { return c.status(name, flagStatusTable) }

// Status returns a line for each target on how it fares, in Params.
func (c *Control) Status(name string) ([]Target, error) { return c.status(name, 0) }

func (c *Control) status(name string, flags uint32) ([]Target, error) {
	h := header{flags: flags}
	if err := h.name(name, ""); err != nil {
		return nil, err
	}
	const room = 64 << 10
	out, err := c.do("status", cmdTableStatus, h, make([]byte, room))
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(out[offFlags:])&flagBufferFull != 0 {
		return nil, fmt.Errorf("dm: status: %s: more than %d bytes", name, room)
	}
	return decode(out[headerSize:], int(binary.LittleEndian.Uint32(out[offTargets:])))
}

// Remove removes a device that nothing uses.
func (c *Control) Remove(name string) error {
	var h header
	if err := h.name(name, ""); err != nil {
		return err
	}
	_, err := c.do("remove", cmdRemove, h, nil)
	return err
}

// do runs one command and returns the buffer as the kernel left it.
func (c *Control) do(what string, command uint32, h header, payload []byte) ([]byte, error) {
	buf := h.bytes(len(payload))
	copy(buf[headerSize:], payload)
	if err := c.ioctl(command, buf); err != nil {
		return nil, fmt.Errorf("dm: %s: %s: %w", what, h.device(), err)
	}
	return buf, nil
}

func (c *Control) call(command uint32, buf []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.f.Fd(), uintptr(command), uintptr(unsafe.Pointer(&buf[0])))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return errno
	}
	return nil
}

// Commands: _IOWR(0xfd, number, struct dm_ioctl).
const (
	command        = 3<<30 | headerSize<<16 | 0xfd<<8
	cmdCreate      = command | 3
	cmdRemove      = command | 4
	cmdSuspend     = command | 6 // resumes without flagSuspend
	cmdTableLoad   = command | 9
	cmdTableStatus = command | 12
)

const (
	flagReadOnly    = 1 << 0
	flagStatusTable = 1 << 4
	flagBufferFull  = 1 << 8
)

// Layout of struct dm_ioctl, little-endian.
const (
	offVersion   = 0 // u32 each: major, minor, patch
	offDataSize  = 12
	offDataStart = 16
	offTargets   = 20
	offFlags     = 28
	offDev       = 40 // u64
	offName      = 48
	nameSize     = 128
	offUUID      = offName + nameSize
	uuidSize     = 129
	headerSize   = 312
)

// header is what a command says besides its payload.
type header struct {
	flags      uint32
	targets    int
	dev, ident string
}

func (h *header) name(name, uuid string) error {
	for _, x := range []struct {
		what, s string
		size    int
	}{{"name", name, nameSize}, {"UUID", uuid, uuidSize}} {
		if len(x.s) >= x.size || bytes.ContainsAny([]byte(x.s), "\x00/") {
			return fmt.Errorf("dm: %s %q: want less than %d bytes and no slash", x.what, x.s, x.size)
		}
	}
	if name == "" {
		return errors.New("dm: no name")
	}
	h.dev, h.ident = name, uuid
	return nil
}

func (h *header) device() string { return h.dev }

func (h *header) bytes(payload int) []byte {
	b := make([]byte, headerSize+payload)
	le := binary.LittleEndian
	le.PutUint32(b[offVersion:], 4)
	le.PutUint32(b[offDataSize:], uint32(len(b)))
	le.PutUint32(b[offDataStart:], headerSize)
	le.PutUint32(b[offTargets:], uint32(h.targets))
	le.PutUint32(b[offFlags:], h.flags)
	copy(b[offName:], h.dev)
	copy(b[offUUID:], h.ident)
	return b
}

// Layout of struct dm_target_spec, followed by the parameters and a NUL.
const (
	specStart  = 0  // u64
	specLength = 8  // u64
	specNext   = 20 // u32: to the next one, from this one in a table that is loaded, from the first in a status
	specType   = 24
	typeSize   = 16
	specSize   = specType + typeSize
)

func encode(table []Target) ([]byte, error) {
	if len(table) == 0 {
		return nil, errors.New("dm: empty table")
	}
	var out []byte
	for _, t := range table {
		if len(t.Type) >= typeSize || t.Type == "" || bytes.IndexByte([]byte(t.Type+t.Params), 0) >= 0 {
			return nil, fmt.Errorf("dm: target %q: %q: malformed", t.Type, t.Params)
		}
		b := make([]byte, (specSize+len(t.Params)+1+7)&^7)
		le := binary.LittleEndian
		le.PutUint64(b[specStart:], t.Start)
		le.PutUint64(b[specLength:], t.Length)
		le.PutUint32(b[specNext:], uint32(len(b)))
		copy(b[specType:], t.Type)
		copy(b[specSize:], t.Params)
		out = append(out, b...)
	}
	return out, nil
}

func decode(b []byte, n int) ([]Target, error) {
	var out []Target
	for off := 0; n > 0; n-- {
		if off < 0 || off > len(b)-specSize {
			return nil, fmt.Errorf("dm: status: target at %d of %d bytes", off, len(b))
		}
		s := b[off:]
		params, _, ended := bytes.Cut(s[specSize:], []byte{0})
		if !ended {
			return nil, fmt.Errorf("dm: status: target at %d: parameters do not end", off)
		}
		kind, _, _ := bytes.Cut(s[specType:specSize], []byte{0})
		le := binary.LittleEndian
		out = append(out, Target{Start: le.Uint64(s[specStart:]), Length: le.Uint64(s[specLength:]), Type: string(kind), Params: string(params)})
		off = int(le.Uint32(s[specNext:]))
	}
	return out, nil
}
