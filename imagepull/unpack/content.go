package unpack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
)

const (
	contentSize = 256 << 10 // bytes that are handed on together
	indexSize   = 8         // bytes that EROFS has for a piece of a file
	indexMost   = 1 << 16   // pieces of one file, where they need not be larger than contentSize
)

// piece is the size in which a sparse file's holes are looked for: a power of two,
// so large that the image's list of pieces stays small.
func piece(size int64) int64 {
	n := int64(BlockSize)
	for n < contentSize && size/n > indexMost {
		n *= 2
	}
	return n
}

// content gathers files into whole blocks.
type content struct {
	ctx    context.Context // of the Read that it is for
	w      io.Writer
	buf    []byte
	n      int    // bytes in buf
	blocks uint64 // so far, those in buf too
}

func newContent(ctx context.Context, w io.Writer) *content {
	return &content{ctx: ctx, w: w, buf: make([]byte, contentSize)}
}

func (c *content) flush() error {
	if c.n == 0 {
		return nil
	}
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if _, err := c.w.Write(c.buf[:c.n]); err != nil {
		return fmt.Errorf("write content: %w", err)
	}
	c.n = 0
	return nil
}

// fill reads n bytes into the buffer, which has room for them.
func (c *content) fill(r io.Reader, n int) error {
	_, err := io.ReadFull(r, c.buf[c.n:c.n+n])
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// keep takes n bytes in the buffer as content, with zeros up to a block.
func (c *content) keep(n int) error {
	end := (c.n + n + BlockSize - 1) &^ (BlockSize - 1)
	clear(c.buf[c.n+n : end])
	c.blocks += uint64(end-c.n) / BlockSize
	c.n = end
	if c.blocks > math.MaxUint32 {
		return &LimitError{"blocks of a layer", int64(c.blocks), math.MaxUint32}
	}
	if c.n < len(c.buf) {
		return nil
	}
	return c.flush()
}

func (c *content) copy(rec *record, r io.Reader) error {
	for left := rec.size; left > 0; {
		n := int(min(left, int64(len(c.buf)-c.n)))
		if err := c.fill(r, n); err != nil {
			return err
		}
		if err := c.keep(n); err != nil {
			return err
		}
		left -= int64(n)
	}
	if rec.size > 0 {
		rec.runs = []run{{0, uint32(blockCount(rec.size))}}
	}
	return nil
}

// copyHoles leaves out pieces that are zero.
func (c *content) copyHoles(rec *record, r io.Reader) error {
	size := piece(rec.size)
	var last run
	for left := rec.size; left > 0; {
		n := int(min(left, size))
		if len(c.buf)-c.n < n {
			if err := c.flush(); err != nil {
				return err
			}
		}
		if err := c.fill(r, n); err != nil {
			return err
		}
		left -= int64(n)
		blocks := uint32(blockCount(int64(n)))
		if zero(c.buf[c.n : c.n+n]) {
			if last.data > 0 {
				rec.runs, last = append(rec.runs, last), run{}
			}
			last.hole += blocks
			if err := c.ctx.Err(); err != nil {
				return err
			}
			continue
		}
		last.data += blocks
		if err := c.keep(n); err != nil {
			return err
		}
	}
	if last != (run{}) {
		rec.runs = append(rec.runs, last)
	}
	return nil
}

var zeros [BlockSize]byte

func zero(b []byte) bool {
	for ; len(b) > BlockSize; b = b[BlockSize:] {
		if !bytes.Equal(b[:BlockSize], zeros[:]) {
			return false
		}
	}
	return bytes.Equal(b, zeros[:len(b)])
}
