// Package vdisk writes the containers in which clouds and hypervisors take a raw
// disk. The same disk gives the same bytes: nothing in them is random, and the
// only time is the one given. Regions of zeros take no room where the container
// allows it.
package vdisk

import (
	"bytes"
	"fmt"
	"io"
)

// sectorSize is the unit of a disk in bytes.
const sectorSize = 512

// Disk is a raw disk.
type Disk struct {
	io.ReaderAt
	Size int64 // bytes, a multiple of 512
}

func (d *Disk) check(format string, multiple int64) error {
	if d.Size <= 0 || d.Size%multiple != 0 {
		return fmt.Errorf("vdisk: %s: disk of %d bytes: want a multiple of %d", format, d.Size, multiple)
	}
	return nil
}

// read reads a piece, and zeros where it reaches over the end of the disk.
func (d *Disk) read(b []byte, off int64) error {
	n := min(int64(len(b)), d.Size-off)
	clear(b[n:])
	if m, err := d.ReadAt(b[:n], off); int64(m) < n {
		return fmt.Errorf("vdisk: offset %#x: %d bytes, want %d: %w", off, m, n, err)
	}
	return nil
}

// used tells for each piece of the disk whether it holds anything but zeros.
func (d *Disk) used(piece int) ([]bool, error) {
	out := make([]bool, (d.Size+int64(piece)-1)/int64(piece))
	buf := make([]byte, piece)
	for i := range out {
		if err := d.read(buf, int64(i)*int64(piece)); err != nil {
			return nil, err
		}
		out[i] = !allZero(buf)
	}
	return out, nil
}

var zeros [64 << 10]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
