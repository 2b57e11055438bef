package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// A hostDisk is a disk of a guest in the hands of its host: QEMU has it by NBD, with
// no cache in between. Document: NetworkBlockDevice/nbd, doc/proto.md.
type hostDisk struct {
	path string // of its socket

	mu   sync.Mutex
	b    []byte
	fake []byte // what is read at the beginning, whatever was written there; nil: the truth
}

func newHostDisk(t *testing.T, size int, fake []byte) *hostDisk {
	t.Helper()
	d := &hostDisk{path: filepath.Join(t.TempDir(), "nbd"), b: make([]byte, size), fake: fake}
	l, err := net.Listen("unix", d.path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if err := d.serve(c); err != nil && !errors.Is(err, io.EOF) {
					t.Logf("nbd: %v", err)
				}
			})
		}
	})
	return d
}

// arg is the value of QEMU's -drive.
func (d *hostDisk) arg() string {
	return "if=virtio,format=raw,cache=writeback,file.driver=nbd,file.server.type=unix,file.server.path=" + d.path
}

// snapshot returns all of the disk.
func (d *hostDisk) snapshot() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.b)
}

func (d *hostDisk) restore(b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.b, b)
}

const (
	nbdOptMagic      = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptReply      = 0x3e889045565a9
	nbdRequest       = 0x25609513
	nbdReply         = 0x67446698
	nbdOptAbort      = 2
	nbdOptGo         = 7
	nbdRepAck        = 1
	nbdRepInfo       = 3
	nbdRepUnknown    = 1<<31 + 1
	nbdFlags         = 1<<0 | 1<<2 | 1<<3 // has flags, FLUSH, FUA
	nbdRead          = 0
	nbdWrite         = 1
	nbdDisconnect    = 2
	nbdFlush         = 3
	nbdErrorInvalid  = 22
	nbdFixedNewstyle = 1
)

func (d *hostDisk) serve(c io.ReadWriter) error {
	if err := d.negotiate(c); err != nil {
		return err
	}
	for {
		var q struct {
			Magic       uint32
			Flags, Type uint16
			Cookie      uint64
			Offset      uint64
			Length      uint32
		}
		if err := binary.Read(c, binary.BigEndian, &q); err != nil {
			return err
		}
		if q.Magic != nbdRequest || q.Length > 64<<20 {
			return fmt.Errorf("request %+v", q)
		}
		var out []byte
		var failed uint32
		bad := q.Offset+uint64(q.Length) > uint64(len(d.b))
		switch q.Type {
		case nbdRead:
			if bad {
				failed = nbdErrorInvalid
				break
			}
			out = d.read(int(q.Offset), int(q.Length))
		case nbdWrite:
			in := make([]byte, q.Length)
			if _, err := io.ReadFull(c, in); err != nil {
				return err
			}
			if bad {
				failed = nbdErrorInvalid
				break
			}
			d.mu.Lock()
			copy(d.b[q.Offset:], in)
			d.mu.Unlock()
		case nbdFlush:
		case nbdDisconnect:
			return nil
		default:
			failed = nbdErrorInvalid
		}
		b := binary.BigEndian.AppendUint32(nil, nbdReply)
		b = binary.BigEndian.AppendUint32(b, failed)
		b = binary.BigEndian.AppendUint64(b, q.Cookie)
		if _, err := c.Write(append(b, out...)); err != nil {
			return err
		}
	}
}

func (d *hostDisk) read(off, n int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Clone(d.b[off : off+n])
	if off < len(d.fake) {
		copy(out, d.fake[off:])
	}
	return out
}

func (d *hostDisk) negotiate(c io.ReadWriter) error {
	hello := append([]byte("NBDMAGIC"), "IHAVEOPT"...)
	if _, err := c.Write(binary.BigEndian.AppendUint16(hello, nbdFixedNewstyle)); err != nil {
		return err
	}
	var flags uint32
	if err := binary.Read(c, binary.BigEndian, &flags); err != nil {
		return err
	}
	for {
		var o struct {
			Magic          uint64
			Option, Length uint32
		}
		if err := binary.Read(c, binary.BigEndian, &o); err != nil {
			return err
		}
		if o.Magic != nbdOptMagic || o.Length > 4096 {
			return fmt.Errorf("option %+v", o)
		}
		if _, err := io.CopyN(io.Discard, c, int64(o.Length)); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) error {
			b := binary.BigEndian.AppendUint64(nil, nbdOptReply)
			b = binary.BigEndian.AppendUint32(b, o.Option)
			b = binary.BigEndian.AppendUint32(b, kind)
			b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
			_, err := c.Write(append(b, data...))
			return err
		}
		switch o.Option {
		case nbdOptGo:
			info := binary.BigEndian.AppendUint16(nil, 0) // NBD_INFO_EXPORT
			info = binary.BigEndian.AppendUint64(info, uint64(len(d.b)))
			info = binary.BigEndian.AppendUint16(info, nbdFlags)
			return errors.Join(reply(nbdRepInfo, info), reply(nbdRepAck, nil))
		case nbdOptAbort:
			return io.EOF
		default:
			if err := reply(nbdRepUnknown, nil); err != nil {
				return err
			}
		}
	}
}
