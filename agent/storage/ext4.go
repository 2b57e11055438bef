package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"
)

// An ext4 is an empty file system. It is written by this package and not by mkfs.ext4,
// because every block that the kernel ever reads before it writes it must have been
// written whole (dm-integrity has no tag for others), and the superblock last.
//
// Blocks are of 4 KiB and groups of 32,768 blocks. Each group has its own metadata at
// its beginning: there is no flex_bg. All of it is under checksums (metadata_csum).
//
// Document: Linux, Documentation/filesystems/ext4; fs/ext4/ext4.h.
type ext4 struct {
	ext4Params
	blocks         uint64
	groups         uint64
	inodesPerGroup uint64
	tableBlocks    uint64 // of inodes, in each group
	descBlocks     uint64 // of group descriptors, in each group that has a superblock
	journalBlocks  uint64
	seed           uint32 // of all checksums but the superblock's
}

// ext4Params decide a file system, with the device's size.
type ext4Params struct {
	UUID, HashSeed  [16]byte
	Time            time.Time
	Journal         bool
	Lazy            bool  // the kernel writes the tables of inodes, when it has time
	BytesPerInode   int64 // 0: by size
	ReservedPercent int   // of blocks, which only root gets
}

const (
	ext4PerGroup   = 8 * blockSize // blocks: one bitmap is one block
	ext4InodeSize  = 256
	ext4PerBlock   = blockSize / ext4InodeSize // inodes
	ext4DescSize   = 64
	ext4FirstInode = 11
	ext4MostInodes = ext4PerGroup - 2*ext4PerBlock // of a group: so that all are less than 2^32
	ext4LostBlocks = 4                             // of lost+found, so that fsck finds room in it

	// Inodes that always are.
	ext4Root, ext4Journal, ext4Lost = 2, 8, 11

	ext4MostBlocks = 1<<32 - 1 // 16 TiB
	ext4Magic      = 0xef53
	ext4SuperAt    = 1024 // of the superblock, bytes
	ext4SuperSize  = 1024
)

// newExt4 lays a file system out on a device of size bytes.
func newExt4(size int64, p ext4Params) (*ext4, error) {
	e := &ext4{ext4Params: p, blocks: uint64(size) / blockSize, seed: crc(^uint32(0), p.UUID[:])}
	if e.blocks > ext4MostBlocks {
		return nil, fmt.Errorf("ext4: %d bytes: want at most %d", size, int64(ext4MostBlocks)*blockSize)
	}
	e.count()
	// A last group with little more than its metadata is left out.
	if last := e.groups - 1; e.groups > 1 && e.groupBlocks(last) < e.dataStart(last)+64 {
		e.blocks = last * ext4PerGroup
		e.count()
	}
	if e.groups == 0 || e.groupBlocks(0) < e.used(0)+64 {
		return nil, fmt.Errorf("ext4: %d bytes are too few", size)
	}
	return e, nil
}

// count works out what follows from the number of blocks.
func (e *ext4) count() {
	e.groups = (e.blocks + ext4PerGroup - 1) / ext4PerGroup
	e.descBlocks = (e.groups*ext4DescSize + blockSize - 1) / blockSize
	ratio := uint64(e.BytesPerInode)
	if ratio == 0 {
		ratio = 16 << 10 // as mkfs.ext4
		if e.blocks > 4<<30/blockSize {
			ratio = 64 << 10 // the tables take 0.4 percent of the disk
		}
	}
	inodes := e.blocks * blockSize / max(ratio, blockSize)
	e.inodesPerGroup = (min(inodes/max(e.groups, 1), ext4MostInodes) + ext4PerBlock) &^ (ext4PerBlock - 1)
	e.tableBlocks = e.inodesPerGroup / ext4PerBlock
	e.journalBlocks = 0
	if e.Journal {
		e.journalBlocks = journalBlocks(e.blocks)
	}
}

// journalBlocks is as mkfs.ext4 chooses, but never more than what has room in the
// first group, in one extent.
func journalBlocks(blocks uint64) uint64 {
	switch {
	case blocks < 32<<10:
		return 1024
	case blocks < 256<<10:
		return 4096
	case blocks < 512<<10:
		return 8192
	}
	return 16384
}

func (e *ext4) groupBlocks(g uint64) uint64 {
	return min(ext4PerGroup, e.blocks-g*ext4PerGroup)
}

// backup tells whether a group has a copy of the superblock: sparse_super.
func backup(g uint64) bool {
	if g <= 1 {
		return true
	}
	for _, n := range []uint64{3, 5, 7} {
		for power := n; power <= g; power *= n {
			if power == g {
				return true
			}
		}
	}
	return false
}

// Places within a group, in blocks.

func (e *ext4) bitmaps(g uint64) uint64 { // of blocks; that of inodes is the next
	if backup(g) {
		return 1 + e.descBlocks
	}
	return 0
}

func (e *ext4) table(g uint64) uint64     { return e.bitmaps(g) + 2 }
func (e *ext4) dataStart(g uint64) uint64 { return e.table(g) + e.tableBlocks }

// In the first group, behind its metadata.
func (e *ext4) rootAt() uint64    { return e.dataStart(0) }
func (e *ext4) lostAt() uint64    { return e.rootAt() + 1 }
func (e *ext4) journalAt() uint64 { return e.lostAt() + ext4LostBlocks }

// used is how many blocks of a group are used, all at its beginning.
func (e *ext4) used(g uint64) uint64 {
	if g == 0 {
		return e.journalAt() + e.journalBlocks
	}
	return e.dataStart(g)
}

func (e *ext4) usedInodes(g uint64) uint64 {
	if g == 0 {
		return ext4FirstInode
	}
	return 0
}

// write writes the file system, group by group, all of it in whole blocks. The
// superblock is in the last write.
func (e *ext4) write(ctx context.Context, w io.WriterAt) error {
	out := &blockWriter{ctx: ctx, w: w, buf: aligned(bufferSize)}
	descs := e.descriptors()
	for g := e.groups; g > 0; g-- {
		e.group(out, g-1, descs)
	}
	return out.err
}

func (e *ext4) group(out *blockWriter, g uint64, descs []byte) {
	first := g * ext4PerGroup
	out.at(first + e.bitmaps(g))
	out.block(bits(e.used(g), e.groupBlocks(g)))
	out.block(bits(e.usedInodes(g), e.inodesPerGroup))
	if g == 0 {
		out.block(e.inodes())
	}
	out.zeros(e.zeroInodes(g))
	if g == 0 {
		out.at(e.dataStart(0))
		e.content(out)
	}
	if backup(g) {
		out.at(first + 1)
		for b := descs; len(b) > 0; b = b[blockSize:] {
			out.block(b[:blockSize])
		}
		out.at(first)
		out.block(e.super(g))
	}
	out.flush()
}

// zeroInodes is how many blocks of zeros of a table of inodes are written.
func (e *ext4) zeroInodes(g uint64) uint64 {
	switch {
	case e.Lazy:
		return 0
	case g == 0:
		return e.tableBlocks - 1
	}
	return e.tableBlocks
}

// content is what the first group holds besides metadata.
func (e *ext4) content(out *blockWriter) {
	out.block(e.directory(ext4Root, []entry{{ext4Root, "."}, {ext4Root, ".."}, {ext4Lost, "lost+found"}}))
	out.block(e.directory(ext4Lost, []entry{{ext4Lost, "."}, {ext4Root, ".."}}))
	for range ext4LostBlocks - 1 {
		out.block(e.directory(ext4Lost, []entry{{0, ""}}))
	}
	if e.journalBlocks > 0 {
		out.block(e.journal())
		out.zeros(e.journalBlocks - 1) // recovery reads what is behind the last commit
	}
}

// bits is a bitmap's block: so many ones, and ones for what is not there.
func bits(used, all uint64) []byte {
	b := make([]byte, blockSize)
	fill := func(from, to uint64) {
		for i := from; i < to; i++ {
			if i%8 == 0 && to-i >= 8 {
				b[i/8] = 0xff
				i += 7
			} else {
				b[i/8] |= 1 << (i % 8)
			}
		}
	}
	fill(0, used)
	fill(all, 8*blockSize)
	return b
}

// super is the block of the superblock of a group.
func (e *ext4) super(g uint64) []byte {
	b := make([]byte, blockSize)
	s := b[:ext4SuperSize]
	if g == 0 {
		s = b[ext4SuperAt:][:ext4SuperSize]
	}
	le := binary.LittleEndian
	now := uint32(e.Time.Unix())
	var free uint64
	for i := range e.groups {
		free += e.groupBlocks(i) - e.used(i)
	}
	for at, v := range map[int]uint64{
		0x00: e.groups * e.inodesPerGroup, 0x04: e.blocks, 0x08: e.blocks * uint64(e.ReservedPercent) / 100,
		0x0c: free, 0x10: e.groups*e.inodesPerGroup - ext4FirstInode,
		0x18: 2, 0x1c: 2, // log2 of the block's and the cluster's KiB
		0x20: ext4PerGroup, 0x24: ext4PerGroup, 0x28: e.inodesPerGroup,
		0x30: uint64(now), 0x40: uint64(now), 0x108: uint64(now), // written, checked, made
		0x4c: 1, 0x54: ext4FirstInode,
		0x5c:  e.compat(),
		0x60:  0x2 | 0x40 | 0x80,                     // filetype, extents, 64bit
		0x64:  0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400, // sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
		0x100: 0xc,                                   // mount with xattr and ACL
		0x160: 1,                                     // signed directory hash
		0x178: (e.written() * blockSize) >> 10,       // KiB
	} {
		le.PutUint32(s[at:], uint32(v))
	}
	for at, v := range map[int]uint16{
		0x36: 0xffff, 0x38: ext4Magic, 0x3a: 1, 0x3c: 2, // no count of mounts; clean; read-only after an error
		0x58: ext4InodeSize, 0x5a: uint16(g), 0xfe: ext4DescSize, 0x15c: 32, 0x15e: 32,
	} {
		le.PutUint16(s[at:], v)
	}
	copy(s[0x68:], e.UUID[:])
	copy(s[0xec:], e.HashSeed[:])
	s[0xfc], s[0x175] = 1, 1 // half MD4, CRC-32C
	if e.journalBlocks > 0 {
		le.PutUint32(s[0xe0:], ext4Journal)
		s[0xfd] = 1 // a copy of the journal's inode follows: blocks, size
		copy(s[0x10c:], e.extent(e.journalAt(), e.journalBlocks))
		le.PutUint32(s[0x10c+64:], uint32(e.journalBlocks*blockSize))
	}
	le.PutUint32(s[0x3fc:], crc(^uint32(0), s[:0x3fc]))
	return b
}

func (e *ext4) compat() uint64 {
	c := uint64(0x8 | 0x20) // ext_attr, dir_index
	if e.journalBlocks > 0 {
		c |= 0x4
	}
	return c
}

// written is how many blocks write writes.
func (e *ext4) written() (n uint64) {
	for g := range e.groups {
		n += e.used(g) - e.tableBlocks + e.zeroInodes(g)
	}
	return n + 1 // block of inodes
}

// descriptors is the table of all groups.
func (e *ext4) descriptors() []byte {
	b := make([]byte, e.descBlocks*blockSize)
	le := binary.LittleEndian
	for g := range e.groups {
		d := b[g*ext4DescSize:][:ext4DescSize]
		first := g * ext4PerGroup
		free, inodes := e.groupBlocks(g)-e.used(g), e.inodesPerGroup-e.usedInodes(g)
		le.PutUint32(d[0x00:], uint32(first+e.bitmaps(g)))
		le.PutUint32(d[0x04:], uint32(first+e.bitmaps(g)+1))
		le.PutUint32(d[0x08:], uint32(first+e.table(g)))
		le.PutUint16(d[0x0c:], uint16(free))
		le.PutUint16(d[0x0e:], uint16(inodes))
		if g == 0 {
			le.PutUint16(d[0x10:], 2) // directories
		}
		if !e.Lazy {
			le.PutUint16(d[0x12:], 0x4) // the table of inodes holds zeros
		}
		le.PutUint16(d[0x1c:], uint16(inodes))
		blockSum, inodeSum := crc(e.seed, bits(e.used(g), e.groupBlocks(g))), crc(e.seed, bits(e.usedInodes(g), e.inodesPerGroup)[:e.inodesPerGroup/8])
		le.PutUint16(d[0x18:], uint16(blockSum))
		le.PutUint16(d[0x1a:], uint16(inodeSum))
		le.PutUint16(d[0x38:], uint16(blockSum>>16))
		le.PutUint16(d[0x3a:], uint16(inodeSum>>16))
		le.PutUint16(d[0x1e:], uint16(crc(crc(e.seed, le32(uint32(g))), d)))
	}
	return b
}

// inodes is the first block of the table of inodes. The root is everybody's, as /tmp is:
// which user writes there, who mounts it knows.
func (e *ext4) inodes() []byte {
	b := make([]byte, blockSize)
	e.inode(b, ext4Root, 0o041777, 3, e.rootAt(), 1)
	e.inode(b, ext4Lost, 0o040700, 2, e.lostAt(), ext4LostBlocks)
	if e.journalBlocks > 0 {
		e.inode(b, ext4Journal, 0o100600, 1, e.journalAt(), e.journalBlocks)
	}
	return b
}

func (e *ext4) inode(table []byte, number uint32, mode, links uint16, start, blocks uint64) {
	b := table[(number-1)*ext4InodeSize:][:ext4InodeSize]
	le := binary.LittleEndian
	le.PutUint16(b[0x00:], mode)
	le.PutUint32(b[0x04:], uint32(blocks*blockSize))
	for _, at := range []int{0x08, 0x0c, 0x10, 0x90} { // accessed, changed, modified, made
		le.PutUint32(b[at:], uint32(e.Time.Unix()))
	}
	le.PutUint16(b[0x1a:], links)
	le.PutUint32(b[0x1c:], uint32(blocks*blockSize/512))
	le.PutUint32(b[0x20:], 0x80000) // extents
	copy(b[0x28:], e.extent(start, blocks))
	le.PutUint16(b[0x80:], 32) // bytes behind the old inode's 128
	sum := crc(e.inodeSeed(number), b)
	le.PutUint16(b[0x7c:], uint16(sum))
	le.PutUint16(b[0x82:], uint16(sum>>16))
}

// inodeSeed is of the checksums of an inode of generation 0 and of its blocks.
func (e *ext4) inodeSeed(number uint32) uint32 { return crc(crc(e.seed, le32(number)), le32(0)) }

// extent is an extent tree of one extent, as an inode holds it.
func (e *ext4) extent(start, blocks uint64) []byte {
	b := make([]byte, 60)
	le := binary.LittleEndian
	le.PutUint16(b[0:], 0xf30a)
	le.PutUint16(b[2:], 1)
	le.PutUint16(b[4:], 4)
	le.PutUint16(b[16:], uint16(blocks))
	le.PutUint32(b[20:], uint32(start))
	return b
}

type entry struct {
	inode uint32
	name  string
}

// directory is a block of directories. The last entry takes what is left, but for
// the checksum.
func (e *ext4) directory(number uint32, entries []entry) []byte {
	const tail = 12
	b := make([]byte, blockSize)
	le := binary.LittleEndian
	rest := b[:blockSize-tail]
	for i, x := range entries {
		n := (8 + len(x.name) + 3) &^ 3
		if i == len(entries)-1 {
			n = len(rest)
		}
		le.PutUint32(rest[0:], x.inode)
		le.PutUint16(rest[4:], uint16(n))
		rest[6] = byte(len(x.name))
		if x.inode != 0 {
			rest[7] = 2 // directory
		}
		copy(rest[8:], x.name)
		rest = rest[n:]
	}
	t := b[blockSize-tail:]
	le.PutUint16(t[4:], tail)
	t[7] = 0xde
	le.PutUint32(t[8:], crc(e.inodeSeed(number), b[:blockSize-tail]))
	return b
}

// journal is the journal's superblock, big-endian: Documentation, journal.rst.
func (e *ext4) journal() []byte {
	b := make([]byte, blockSize)
	be := binary.BigEndian
	for at, v := range map[int]uint32{
		0x00: 0xc03b3998, 0x04: 4, // superblock, version 2
		0x0c: blockSize, 0x10: uint32(e.journalBlocks), 0x14: 1, 0x18: 1, // first block of the log, first sequence
		0x40: 1, // one user
	} {
		be.PutUint32(b[at:], v)
	}
	copy(b[0x30:], e.UUID[:])
	return b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc goes on with a CRC-32C as Linux's crc32c() does: nothing is inverted.
func crc(sum uint32, b []byte) uint32 { return ^crc32.Update(^sum, castagnoli, b) }

func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

var errNoExt4 = errors.New("no ext4 file system")

// checkExt4 tells whether a device begins with a file system.
func checkExt4(r io.ReaderAt) error {
	b := aligned(blockSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return err
	}
	le := binary.LittleEndian
	s := b[ext4SuperAt:][:ext4SuperSize]
	if le.Uint16(s[0x38:]) != ext4Magic {
		return errNoExt4
	}
	if le.Uint32(s[0x64:])&0x400 != 0 && le.Uint32(s[0x3fc:]) != crc(^uint32(0), s[:0x3fc]) {
		return errNoExt4
	}
	return nil
}

// blockWriter writes blocks that follow each other many at a time.
type blockWriter struct {
	ctx  context.Context // ends it; see style, "a reader whose ReadAt fails"
	w    io.WriterAt
	buf  []byte // aligned for direct writes
	n    int
	next uint64 // block behind the buffer
	err  error
}

// at goes on at another block.
func (o *blockWriter) at(block uint64) {
	if block != o.next {
		o.flush()
		o.next = block
	}
}

func (o *blockWriter) block(b []byte) {
	if o.n == len(o.buf) {
		o.flush()
	}
	o.n += copy(o.buf[o.n:][:blockSize], b)
	o.next++
}

var zeroBlock [blockSize]byte

func (o *blockWriter) zeros(n uint64) {
	for ; n > 0 && o.err == nil; n-- {
		o.block(zeroBlock[:])
	}
}

func (o *blockWriter) flush() {
	if o.err == nil {
		o.err = o.ctx.Err()
	}
	if o.err == nil && o.n > 0 {
		_, o.err = o.w.WriteAt(o.buf[:o.n], int64(o.next)*blockSize-int64(o.n))
	}
	o.n = 0
}
