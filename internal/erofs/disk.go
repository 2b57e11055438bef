package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"math"
)

// Wire forms, little-endian: fs/erofs/erofs_fs.h.

const (
	superOffset = 1024
	magic       = 0xe0f5e1e2

	compatChecksum      = 0x1
	compatMtime         = 0x2
	incompatChunks      = 0x4
	incompatDeviceTable = 0x8

	deviceSlotSize = 128
	deviceOffset   = superOffset + 128 // of the first slot
	maxDevices     = 1023              // our own bound; 16 bits count them
	maxChunkBits   = 31                // of five bits in an inode
	noBlock        = math.MaxUint32    // of a chunk that is a hole
)

type superblock struct {
	Magic           uint32
	Checksum        uint32 // CRC-32C, without its last inversion, from here to the end of the block
	Compat          uint32
	BlockBits       uint8
	ExtSlots        uint8
	RootNid         uint16
	Inodes          uint64
	BuildTime       uint64 // seconds since 1970; the time of compact inodes
	BuildTimeNsec   uint32
	Blocks          uint32
	MetaBlock       uint32 // where nid 0 is
	XattrBlock      uint32
	UUID            [16]byte
	Label           [16]byte
	Incompat        uint32
	Compression     uint16
	Devices         uint16
	DeviceSlot      uint16 // in units of deviceSlotSize from the beginning of the image
	DirBlockBits    uint8
	XattrPrefixes   uint8
	XattrPrefixSlot uint32
	PackedNid       uint64
	XattrFilter     uint8
	_               [23]byte
}

type deviceSlot struct {
	Tag    [64]byte
	Blocks uint32
	Mapped uint32 // block at which it appears in one address space with this image; 0: does not
	_      [56]byte
}

// headBlocks is how many blocks the superblock and the slots of devices take.
func headBlocks(devices int) uint64 {
	return uint64(deviceOffset+devices*deviceSlotSize+BlockSize-1) / BlockSize
}

// The first blocks of an image. The checksum covers only the first one.
func (s *superblock) head(devices []Device) []byte {
	size := int(headBlocks(len(devices))) * BlockSize
	b := make([]byte, superOffset, size)
	b = appendLE(b, s)
	for _, d := range devices {
		slot := deviceSlot{Blocks: d.Blocks}
		copy(slot.Tag[:], d.Tag)
		b = appendLE(b, &slot)
	}
	b = b[:size]
	const checksum = superOffset + 4
	sum := crc32.Checksum(b[superOffset:BlockSize], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[checksum:], ^sum)
	return b
}

func appendLE(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic(err) // the types here have fixed sizes
	}
	return b
}

// Data layouts of an inode, in bits 1 to 3 of its format.
const (
	flatPlain  = 0 // blocks
	flatInline = 2 // blocks, the last incomplete one behind the inode
	chunkBased = 4
)

// chunkIndexes says that a file's chunks are named by device and block.
const chunkIndexes = 0x20

// An inodeHeader has what both forms of an inode hold.
type inodeHeader struct {
	layout   uint16
	xattrs   int // bytes behind the inode, header included
	mode     uint16
	nlink    uint32
	size     uint64
	u        uint32 // first block, device number or chunk format
	ino      uint32
	uid, gid uint32
	mtime    Time
	dated    bool // mtime is not the epoch
}

// compact tells whether the short form has room for it.
func (h *inodeHeader) compact() bool {
	return !h.dated && h.nlink <= math.MaxUint16 && h.size <= math.MaxUint32 && h.uid <= math.MaxUint16 && h.gid <= math.MaxUint16
}

const (
	compactSize  = 32
	extendedSize = 64
)

func (h *inodeHeader) length() int {
	if h.compact() {
		return compactSize
	}
	return extendedSize
}

// xattrCount is how the length of the attributes stands in an inode.
func (h *inodeHeader) xattrCount() uint16 {
	if h.xattrs == 0 {
		return 0
	}
	return uint16((h.xattrs-xattrHeader)/4 + 1)
}

func (h *inodeHeader) bytes() []byte {
	if h.compact() {
		return appendLE(nil, &struct {
			Format, Xattrs, Mode, Nlink uint16
			Size, _, U, Ino             uint32
			UID, GID                    uint16
			_                           uint32
		}{
			Format: h.layout << 1, Xattrs: h.xattrCount(), Mode: h.mode, Nlink: uint16(h.nlink),
			Size: uint32(h.size), U: h.u, Ino: h.ino, UID: uint16(h.uid), GID: uint16(h.gid),
		})
	}
	return appendLE(nil, &struct {
		Format, Xattrs, Mode, _ uint16
		Size                    uint64
		U, Ino, UID, GID        uint32
		Mtime                   uint64
		MtimeNsec, Nlink        uint32
		_                       [16]byte
	}{
		Format: h.layout<<1 | 1, Xattrs: h.xattrCount(), Mode: h.mode,
		Size: h.size, U: h.u, Ino: h.ino, UID: h.uid, GID: h.gid,
		Mtime: uint64(h.mtime.Sec), MtimeNsec: h.mtime.Nsec, Nlink: h.nlink,
	})
}

// device writes a device number as the kernel's new_encode_dev does.
func device(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}
