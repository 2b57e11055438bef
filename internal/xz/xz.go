// Package xz decodes .xz files of known size, their blocks in parallel.
//
// It exists for speed: packages hold kernel modules that are compressed already,
// and a decoder that is merely correct spends most of a build on them. What it
// leaves out: filters other than LZMA2, padding between streams, and files that
// cannot be read at an offset. It writes nothing.
package xz

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Limits bounds what a file may make the decoder do. Zero values mean the
// defaults.
type Limits struct {
	Size int64 // unpacked bytes; default 4 GiB
	Dict int64 // bytes of one block's dictionary; default 64 MiB, what "xz -9" uses
	Jobs int   // blocks at a time; default 1
}

// LimitError is returned for a file that would unpack to more than Limits.Size.
type LimitError struct{ Limit int64 }

func (e *LimitError) Error() string { return fmt.Sprintf("unpacks to more than %d bytes", e.Limit) }

const (
	defaultSize = 4 << 30
	defaultDict = 64 << 20
)

// Decode writes what the .xz file r of size bytes unpacks to into w and returns
// its size. Blocks are written in any order and at the same time. Memory is at
// most twice the dictionary and 2 MiB per job. On error w holds rubbish.
func Decode(ctx context.Context, w io.WriterAt, r io.ReaderAt, size int64, lim Limits) (int64, error) {
	lim.Size, lim.Dict, lim.Jobs = or(lim.Size, defaultSize), or(lim.Dict, defaultDict), or(lim.Jobs, 1)
	blocks, total, err := readBlocks(r, size, lim.Size)
	if err != nil {
		return 0, fmt.Errorf("xz: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(lim.Jobs, len(blocks)) {
		g.Go(func() error {
			var d decoder
			for i := next.Add(1) - 1; i < int64(len(blocks)); i = next.Add(1) - 1 {
				if err := d.block(ctx, w, r, blocks[i], lim.Dict); err != nil {
					return fmt.Errorf("xz: block %d at offset %d: %w", i, blocks[i].offset, err)
				}
			}
			return nil
		})
	}
	return total, g.Wait()
}

func or[T int | int64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Unpack decodes a small file in memory. limit bounds the unpacked bytes.
func Unpack(b []byte, limit int64) ([]byte, error) {
	r := bytes.NewReader(b)
	_, total, err := readBlocks(r, r.Size(), limit)
	if err != nil {
		return nil, fmt.Errorf("xz: %w", err)
	}
	out := make(buffer, total)
	_, err = Decode(context.Background(), out, r, r.Size(), Limits{Size: limit})
	return out, err
}

// buffer is a WriterAt over memory that is large enough.
type buffer []byte

func (b buffer) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

// decoder holds the memory that one goroutine needs, to use it again.
type decoder struct {
	lzma2  lzma2
	window []byte
	in     bufio.Reader
}

func (d *decoder) block(ctx context.Context, w io.WriterAt, r io.ReaderAt, b block, maxDict int64) error {
	d.in.Reset(io.NewSectionReader(r, b.offset, (b.unpadded+3)&^3))
	head, err := readBlockHeader(&d.in, b)
	if err != nil {
		return err
	}
	if head.dict > maxDict && b.size > maxDict {
		return fmt.Errorf("dictionary of %d bytes: want at most %d", head.dict, maxDict)
	}
	if n := windowSize(b.size, head.dict); int64(len(d.window)) < n {
		d.window = make([]byte, n)
	}
	sum, off := b.check.hash(), b.out
	d.lzma2.begin(d.window, int(head.dict), func(p []byte) error {
		if sum != nil {
			sum.Write(p)
		}
		_, err := w.WriteAt(p, off)
		off += int64(len(p))
		return err
	})
	data := &countReader{r: &d.in}
	if err := d.lzma2.decode(data, b.size, ctx.Err); err != nil {
		return err
	}
	return d.checkTail(b, head, data.n, b.check.sum(sum))
}

// checkTail reads what follows the data of a block: padding and check.
func (d *decoder) checkTail(b block, head blockHeader, packed int64, want []byte) error {
	if head.size+packed+int64(len(want)) != b.unpadded {
		return errors.New("size differs from the index")
	}
	tail := make([]byte, (4-packed%4)%4+int64(len(want)))
	if _, err := io.ReadFull(&d.in, tail); err != nil {
		return truncated(err)
	}
	pad, stored := tail[:len(tail)-len(want)], tail[len(tail)-len(want):]
	if len(bytes.Trim(pad, "\x00")) > 0 {
		return errors.New("padding is not zero")
	}
	if !bytes.Equal(stored, want) {
		return fmt.Errorf("integrity check is %x, the file says %x", want, stored)
	}
	return nil
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
