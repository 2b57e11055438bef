package erofs

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/internal/tree"
)

// Write writes the image of a tree, which Normalize has sorted. Memory goes to
// the inode area: some hundred bytes for each entry, and the end of each file.
func Write(w io.Writer, entries []tree.Entry, p Params) error {
	if err := p.check(); err != nil {
		return err
	}
	entries, err := tree.Normalize(entries)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		entries = []tree.Entry{tree.Dir(".", 0o755)}
	}
	im := &image{Params: p, inodes: newArea()}
	if err := im.addEntries(entries); err != nil {
		return err
	}
	return im.finish(w)
}

// finish writes the image, when it has its nodes.
func (im *image) finish(w io.Writer) error {
	if err := im.place(); err != nil {
		return err
	}
	out := &writer{w: w, buf: make([]byte, 1<<20)}
	if err := im.write(out); err != nil {
		return fmt.Errorf("erofs: %w", err)
	}
	return nil
}

func (im *image) write(w *writer) error {
	if err := w.put(im.superblock().head(im.Devices)); err != nil {
		return err
	}
	for _, n := range im.nodes {
		if err := im.content(w, n); err != nil {
			return fmt.Errorf("%s: %w", n.path, err)
		}
	}
	for _, n := range im.nodes {
		im.inode(n)
	}
	for _, b := range im.inodes.blocks {
		if err := w.put(b); err != nil {
			return err
		}
	}
	return nil
}

func (im *image) superblock() *superblock {
	s := &superblock{
		Magic: magic, Compat: compatChecksum | compatMtime, BlockBits: blockBits,
		RootNid: uint16(im.nodes[0].slot), Inodes: uint64(len(im.nodes)), BuildTime: uint64(im.Epoch),
		Blocks: uint32(im.blocks), MetaBlock: uint32(im.meta), UUID: im.UUID,
	}
	copy(s.Label[:], im.Label)
	if len(im.Devices) > 0 {
		s.Incompat |= incompatDeviceTable
		s.Devices, s.DeviceSlot = uint16(len(im.Devices)), deviceOffset/deviceSlotSize
	}
	if im.chunked {
		s.Incompat |= incompatChunks
	}
	return s
}

// content writes the blocks of a node and keeps what goes behind its inode.
func (im *image) content(w *writer, n *node) error {
	switch {
	case n.blocks != nil:
		return n.directory(w)
	case n.content != nil && n.size > 0:
		return n.copy(w)
	case n.kind() == tree.TypeSymlink && n.inline == 0: // long attributes leave no room
		target := n.tail
		n.tail = nil
		return w.padded(target)
	}
	return nil
}

func (n *node) directory(w *writer) error {
	for i, block := range n.blocks {
		b := dirBlock(block)
		if i == len(n.blocks)-1 && n.inline > 0 {
			n.tail = b
			return nil
		}
		if err := w.padded(b); err != nil {
			return err
		}
	}
	return nil
}

// copy copies a file, unless another one had the same content.
func (n *node) copy(w *writer) error {
	if n.same != nil {
		n.tail = n.same.tail
		return nil
	}
	r, err := n.content.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := w.copy(r, int64(n.size)-int64(n.inline)); err != nil {
		return err
	}
	n.tail = make([]byte, n.inline)
	if _, err := io.ReadFull(r, n.tail); err != nil {
		return fmt.Errorf("shorter than the %d bytes announced: %w", n.size, err)
	}
	if extra, _ := r.Read(make([]byte, 1)); extra > 0 {
		return fmt.Errorf("longer than the %d bytes announced", n.size)
	}
	return nil
}

// inode writes the inode and what lies behind it.
func (im *image) inode(n *node) {
	im.inodes.write(n.slot, 0, n.bytes())
	im.inodes.write(n.slot, n.length(), n.attrs)
	if n.layout != chunkBased {
		im.inodes.write(n.slot, n.length()+n.xattrs, n.tail)
		return
	}
	off, _ := n.indexes()
	var b []byte
	for _, c := range n.chunks.At {
		block := c.Block
		if c.Device == Hole {
			block = noBlock
		}
		b = binary.LittleEndian.AppendUint16(b, 0)
		b = binary.LittleEndian.AppendUint16(b, uint16(c.Device+1)) // 0 is this image
		b = binary.LittleEndian.AppendUint32(b, block)
	}
	im.inodes.write(n.slot, off, b)
}

// writer writes whole blocks.
type writer struct {
	w   io.Writer
	buf []byte
}

func (w *writer) put(b []byte) error {
	_, err := w.w.Write(b)
	return err
}

// padded writes b and zeros up to the end of the block.
func (w *writer) padded(b []byte) error {
	if err := w.put(b); err != nil {
		return err
	}
	return w.put(zeros[:-len(b)&(BlockSize-1)])
}

var zeros [BlockSize]byte

// copy copies n bytes of a file, and zeros up to the end of the block.
func (w *writer) copy(r io.Reader, n int64) error {
	for left := n; left > 0; {
		b := w.buf[:min(int64(len(w.buf)), left)]
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("shorter than announced: %w", err)
		}
		if err := w.put(b); err != nil {
			return err
		}
		left -= int64(len(b))
	}
	return w.put(zeros[:-n&(BlockSize-1)])
}
