package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	fileFlags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	// askSpace is the size from which a file is refused before its first byte,
	// where the file system has no room for it.
	askSpace = 1 << 20
	holeSize = 4096 // bytes of zeros that a sparse file need not hold
)

func (t *Tree) file(ctx context.Context, d *dir, name string, h *tar.Header, r io.Reader) error {
	if t.bytes += h.Size; t.bytes > t.limits.Bytes || t.bytes < 0 {
		t.bytes = max(t.bytes, 0)
		return &LimitError{"bytes of the files", t.bytes, t.limits.Bytes}
	}
	if err := t.checkSpace(h); err != nil {
		return err
	}
	fd := -1
	err := t.place(d, name, "make file", func() (err error) {
		fd, err = again(func() (int, error) { return unix.Openat(d.fd, name, fileFlags, 0o600) })
		return err
	})
	if err != nil {
		return err
	}
	w := writer{fd: fd}
	if sparse(h) {
		err = t.copyHoles(ctx, &w, r, h.Size)
	} else {
		err = t.copy(ctx, r, h.Size, w.write)
	}
	if err == nil {
		err = t.fileMeta(d, name, fd, h)
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	t.stats.Bytes += h.Size
	return err
}

func (t *Tree) checkSpace(h *tar.Header) error {
	if h.Size < askSpace || sparse(h) {
		return nil
	}
	available, inodes, err := t.space()
	if err != nil {
		return fmt.Errorf("ask for free space: %w", err)
	}
	if h.Size > available {
		return &SpaceError{h.Size, available, inodes, nil}
	}
	return nil
}

// sparse says whether a file was packed with holes, which it gets again.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// copy hands size bytes to f, a buffer at a time.
func (t *Tree) copy(ctx context.Context, r io.Reader, size int64, f func([]byte) error) error {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, t.buf[:min(size, int64(len(t.buf)))])
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if err := f(t.buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// copyHoles leaves out what is zero, block by block.
func (t *Tree) copyHoles(ctx context.Context, w *writer, r io.Reader, size int64) error {
	err := t.copy(ctx, r, size, func(p []byte) error {
		for len(p) > 0 {
			b := p[:min(holeSize, len(p))]
			p = p[len(b):]
			if bytes.Equal(b, zeros[:len(b)]) {
				w.skip(len(b))
				continue
			}
			if err := w.write(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(w.fd, size); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

var zeros [holeSize]byte

// A writer writes a file from its beginning to its end.
type writer struct {
	fd     int
	offset int64
}

func (w *writer) skip(n int) { w.offset += int64(n) }

func (w *writer) write(p []byte) error {
	for len(p) > 0 {
		n, err := again(func() (int, error) { return unix.Pwrite(w.fd, p, w.offset) })
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("write: %w", io.ErrShortWrite)
		}
		w.offset += int64(n)
		p = p[n:]
	}
	return nil
}
