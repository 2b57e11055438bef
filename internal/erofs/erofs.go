// Package erofs writes read-only EROFS images, uncompressed. Equal trees and
// parameters give equal bytes: a time is the epoch or what the caller says, and the
// order is that of the paths.
//
// Document: Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h.
//
// An image is written from front to back: superblock, blocks of files and
// directories, and behind them the inodes, each with its extended attributes and
// the last, incomplete block of what it stands for.
package erofs

import (
	"fmt"

	"github.com/plinth-os/plinth/internal/tree"
)

// BlockSize is the size of a block in bytes. Kernels mount an image when their
// pages are at least as large.
const BlockSize = 4096

const (
	blockBits = 12
	slotSize  = 32 // bytes; inodes begin at multiples of it, and nid counts in it
)

// Params decide the image besides the tree.
type Params struct {
	UUID  [16]byte // must not be zero
	Epoch int64    // modification time of everything that has no other, seconds since 1970
	Label string   // at most 16 bytes

	// Devices are images beside this one that Outside refers to, in the order in
	// which they are given to mount.
	Devices []Device
	// Outside says for files, by their paths, where on Devices their content is.
	// Their Content counts for its size alone.
	Outside map[string]Chunks
	// Times are modification times other than Epoch, by path.
	Times map[string]Time
}

// A Time is seconds since 1970, or before, and nanoseconds.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Device is an image that files of this one have content in.
type Device struct {
	Tag    string // at most 64 bytes, "sha256:..." of the blob for instance
	Blocks uint32
}

// Chunks is the content of a file in pieces of equal size, the last one perhaps
// shorter.
type Chunks struct {
	Size int // bytes, a power of two from BlockSize on
	At   []Chunk
}

// Chunk is where a piece begins.
type Chunk struct {
	Device int // index in Params.Devices, or Hole
	Block  uint32
}

// Hole is the device of a chunk of zeros, which is nowhere.
const Hole = -1

func (p *Params) check() error {
	switch {
	case p.UUID == [16]byte{}:
		return fmt.Errorf("erofs: no UUID")
	case p.Epoch < 0:
		return fmt.Errorf("erofs: epoch %d: want a time since 1970", p.Epoch)
	case len(p.Label) > 16:
		return fmt.Errorf("erofs: label %q: want at most 16 bytes", p.Label)
	case len(p.Devices) > maxDevices:
		return fmt.Errorf("erofs: %d devices: want at most %d", len(p.Devices), maxDevices)
	}
	for i, d := range p.Devices {
		if len(d.Tag) > 64 {
			return fmt.Errorf("erofs: device %d: tag %q: want at most 64 bytes", i, d.Tag)
		}
	}
	return nil
}

// check tells whether the chunks hold size bytes and lie on the devices.
func (c *Chunks) check(size int64, devices []Device) error {
	if c.Size < BlockSize || c.Size&(c.Size-1) != 0 || c.Size > BlockSize<<maxChunkBits {
		return fmt.Errorf("chunks of %d bytes: want a power of two from %d to %d", c.Size, BlockSize, BlockSize<<maxChunkBits)
	}
	if want := (size + int64(c.Size) - 1) / int64(c.Size); int64(len(c.At)) != want {
		return fmt.Errorf("%d chunks of %d bytes for %d bytes: want %d", len(c.At), c.Size, size, want)
	}
	for i, at := range c.At {
		if at == (Chunk{Device: Hole}) {
			continue
		}
		if at.Device < 0 || at.Device >= len(devices) {
			return fmt.Errorf("chunk %d: device %d: want less than %d", i, at.Device, len(devices))
		}
		n := min(int64(c.Size), size-int64(i)*int64(c.Size))
		if end := uint64(at.Block) + uint64(n+BlockSize-1)/BlockSize; end > uint64(devices[at.Device].Blocks) {
			return fmt.Errorf("chunk %d: ends at block %d of device %d, which has %d", i, end, at.Device, devices[at.Device].Blocks)
		}
	}
	return nil
}

// The types of directory entries, by the type bits of a mode: fs/erofs/dir.c.
var fileTypes = map[uint32]uint8{
	tree.TypeFile: 1, tree.TypeDir: 2, tree.TypeCharDev: 3, tree.TypeBlkDev: 4, tree.TypeFIFO: 5, tree.TypeSocket: 6, tree.TypeSymlink: 7,
}
