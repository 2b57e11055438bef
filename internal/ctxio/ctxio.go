// Package ctxio makes readers that fail once their context is done, so that what
// reads gigabytes through them can be stopped.
package ctxio

import (
	"context"
	"io"
)

// Reader returns r until ctx is done, then its error.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

// ReaderAt is the same for reads anywhere.
func ReaderAt(ctx context.Context, r io.ReaderAt) io.ReaderAt { return &readerAt{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (c *reader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

type readerAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (c *readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.ReadAt(p, off)
}
