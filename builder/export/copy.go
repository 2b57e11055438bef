package export

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// chunk is how much is copied between two looks at a context, in bytes.
const chunk = 8 << 20

// copyContext copies until EOF or the end of ctx.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(w, r, chunk)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// copyFile copies size bytes, all that src has, to an empty file. What is a hole
// in src is one in dst: a disk is mostly zeros.
func copyFile(ctx context.Context, dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		data, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no more of them
			break
		}
		if err != nil {
			return err
		}
		if at, err = src.Seek(data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := copyRange(ctx, dst, src, data, at); err != nil {
			return err
		}
	}
	return dst.Truncate(size)
}

// copyRange copies the bytes from one offset up to another.
func copyRange(ctx context.Context, dst, src *os.File, from, to int64) error {
	for _, f := range []*os.File{dst, src} {
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return err
		}
	}
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(dst, src, min(chunk, to-from))
		if err == io.EOF { // somebody truncated src
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		from += n
	}
	return nil
}
