// Package dm sets up device-mapper devices by the kernel's ioctls, without udev
// and without outside tools.
//
// Document: Linux, include/uapi/linux/dm-ioctl.h and
// Documentation/admin-guide/device-mapper.
package dm

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SectorSize is the unit of Target.Start and Target.Length, in bytes.
const SectorSize = 512

// Target is one line of a table: what a range of the device does.
type Target struct {
	Start, Length uint64 // sectors
	Type          string // "verity"
	Params        string // in the words of the target; keyMark in the place of each key

	// The keys, in order. They are in no string, because those cannot be cleared. A
	// pointer, so that targets can be compared.
	keys *[][]byte
}

// keyMark stands for a key in Params. No word of a target looks like it.
const keyMark = "<key>"

// Device is a device that was created.
type Device struct {
	Name         string
	Major, Minor uint32
}

// Path is where devtmpfs shows the device.
func (d Device) Path() string { return fmt.Sprintf("/dev/dm-%d", d.Minor) }

// Number is how a table names the device.
func (d Device) Number() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

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
	return c.create(header{flags: flagReadOnly}, name, uuid, table, nil)
}

// CreateWritable is Create for a device that is written to. Unless check is nil it
// sees the table as the kernel understood it, before the device is started; its
// error is returned.
func (c *Control) CreateWritable(name, uuid string, table []Target, check func(loaded []Target) error) (Device, error) {
	return c.create(header{}, name, uuid, table, check)
}

func (c *Control) create(h header, name, uuid string, table []Target, check func([]Target) error) (Device, error) {
	d, err := c.load(&h, name, uuid, table)
	if err != nil {
		return Device{}, err
	}
	if err := c.start(h, table, check); err != nil {
		return Device{}, errors.Join(err, c.Remove(name))
	}
	return d, nil
}

// start resumes a device whose table was loaded.
func (c *Control) start(h header, table []Target, check func([]Target) error) error {
	if check != nil {
		loaded, err := c.status(h.dev, flagStatusTable|flagInactive, table)
		if err != nil {
			return err
		}
		if err := check(loaded); err != nil {
			return err
		}
	}
	_, err := c.do("resume", cmdSuspend, h, nil)
	return err
}

// Try loads a table, returns what each target has to say of itself, in Params, and
// removes the device again. It is never started.
func (c *Control) Try(name string, table []Target) ([]Target, error) {
	var h header
	if _, err := c.load(&h, name, "", table); err != nil {
		return nil, err
	}
	out, err := c.status(name, flagInactive, table)
	return out, errors.Join(err, c.Remove(name))
}

// load makes a device and loads its table. When that fails nothing stays behind.
func (c *Control) load(h *header, name, uuid string, table []Target) (Device, error) {
	if err := h.name(name, uuid); err != nil {
		return Device{}, err
	}
	specs, err := encode(table)
	if err != nil {
		return Device{}, err
	}
	defer clear(specs)
	created, err := c.do("create", cmdCreate, *h, nil)
	if err != nil {
		return Device{}, err
	}
	dev := binary.LittleEndian.Uint64(created[offDev:])
	with := *h
	with.targets = len(table)
	with.flags |= flagSecureData
	loaded, err := c.do("load table", cmdTableLoad, with, specs)
	clear(loaded)
	if err != nil {
		return Device{}, errors.Join(err, c.Remove(name))
	}
	return Device{Name: name, Major: unix.Major(dev), Minor: unix.Minor(dev)}, nil
}

// Table returns the table that the kernel uses.
func (c *Control) Table(name string) ([]Target, error) {
	return c.status(name, flagStatusTable, nil)
}

// Status returns a line for each target on how it fares, in Params.
func (c *Control) Status(name string) ([]Target, error) { return c.status(name, 0, nil) }

// status asks for a device's status. The keys of known are not in what it returns.
func (c *Control) status(name string, flags uint32, known []Target) ([]Target, error) {
	h := header{flags: flags | flagSecureData}
	if err := h.name(name, ""); err != nil {
		return nil, err
	}
	const room = 64 << 10
	out, err := c.do("status", cmdTableStatus, h, make([]byte, room))
	defer clear(out)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(out[offFlags:])&flagBufferFull != 0 {
		return nil, fmt.Errorf("dm: status: %s: more than %d bytes", name, room)
	}
	return decode(out[headerSize:], int(binary.LittleEndian.Uint32(out[offTargets:])), known)
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
		clear(buf)
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
	flagInactive    = 1 << 12 // of the table that was loaded last, started or not
	flagSecureData  = 1 << 15 // the kernel clears its copies: there are keys in it
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

// encode lays out a table. The caller clears it: it may hold keys.
func encode(table []Target) ([]byte, error) {
	if len(table) == 0 {
		return nil, errors.New("dm: empty table")
	}
	size := 0
	for i := range table {
		if err := table[i].check(); err != nil {
			return nil, err
		}
		size += table[i].size()
	}
	out := make([]byte, size) // at once, so that no copy of a key is left
	rest := out
	for i := range table {
		t := &table[i]
		b := rest[:t.size()]
		rest = rest[t.size():]
		le := binary.LittleEndian
		le.PutUint64(b[specStart:], t.Start)
		le.PutUint64(b[specLength:], t.Length)
		le.PutUint32(b[specNext:], uint32(len(b)))
		copy(b[specType:specSize], t.Type)
		t.params(b[specSize:])
	}
	return out, nil
}

func (t *Target) check() error {
	if len(t.Type) >= typeSize || t.Type == "" || strings.Contains(t.Type+t.Params, "\x00") {
		return fmt.Errorf("dm: target %q: %q: malformed", t.Type, t.Params)
	}
	if n := strings.Count(t.Params, keyMark); n != len(t.secrets()) {
		return fmt.Errorf("dm: target %q: %q: %d keys, want %d", t.Type, t.Params, len(t.secrets()), n)
	}
	return nil
}

func (t *Target) secrets() [][]byte {
	if t.keys == nil {
		return nil
	}
	return *t.keys
}

// size is that of the whole spec: a multiple of 8, with a NUL behind the parameters.
func (t *Target) size() int {
	n := specSize + len(t.Params) + 1
	for _, k := range t.secrets() {
		n += hex.EncodedLen(len(k)) - len(keyMark)
	}
	return (n + 7) &^ 7
}

// params writes the parameters, with the keys.
func (t *Target) params(b []byte) {
	rest := t.Params
	for _, k := range t.secrets() {
		before, after, _ := strings.Cut(rest, keyMark)
		b = b[copy(b, before):]
		b = b[hex.Encode(b, k):]
		rest = after
	}
	copy(b, rest)
}

// conceal puts keyMark in the place of every key, so that no string holds one.
func conceal(params []byte, known []Target) string {
	for i := range known {
		for _, k := range known[i].secrets() {
			text := make([]byte, hex.EncodedLen(len(k)))
			hex.Encode(text, k)
			replaced := bytes.ReplaceAll(params, text, []byte(keyMark))
			clear(text)
			defer clear(replaced)
			params = replaced
		}
	}
	return string(params)
}

func decode(b []byte, n int, known []Target) ([]Target, error) {
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
		out = append(out, Target{Start: le.Uint64(s[specStart:]), Length: le.Uint64(s[specLength:]), Type: string(kind), Params: conceal(params, known)})
		off = int(le.Uint32(s[specNext:]))
	}
	return out, nil
}
