package initrd

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/plinth-os/plinth/internal/newc"
	"github.com/plinth-os/plinth/internal/tree"
)

// What Read takes, of all archives together.
const (
	maxEntries = 1 << 20
	maxBytes   = 1 << 30 // data of the files
)

// Read reads what Write wrote: uncompressed archives first, then perhaps one
// that is compressed, to the end. Entries are in the order of the archives.
func Read(r io.Reader) ([]tree.Entry, error) {
	return read(r, newc.Limits{Entries: maxEntries, Bytes: maxBytes})
}

func read(r io.Reader, left newc.Limits) ([]tree.Entry, error) {
	in := bufio.NewReader(r)
	var all []tree.Entry
	compressed := false
	for {
		head, err := in.Peek(6)
		if len(head) == 0 && (errors.Is(err, io.EOF) || compressed && len(all) > 0) {
			return all, nil // a decompressor may stumble over the zeros that fill the end
		}
		if len(head) == 0 {
			return nil, fmt.Errorf("initrd: %w", err)
		}
		if !bytes.HasPrefix(head, []byte("0707")) {
			if compressed {
				return nil, fmt.Errorf("initrd: an archive begins with %q", head)
			}
			next, err := unpacker(in, head)
			if err != nil {
				return nil, err
			}
			in, compressed = bufio.NewReader(next), true
			continue
		}
		if left.Entries <= 0 || left.Bytes <= 0 { // zero would stand for a default
			return nil, errors.New("initrd: too many files, or too much data in them")
		}
		entries, err := newc.Read(in, left)
		if err != nil {
			return nil, fmt.Errorf("initrd: %w", err)
		}
		all = append(all, entries...)
		left.Entries -= len(entries) + 1 // an empty archive counts, too
		for _, e := range entries {
			left.Bytes -= e.Content.Size
		}
	}
}

func unpacker(r io.Reader, head []byte) (io.Reader, error) {
	switch {
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, fmt.Errorf("initrd: %w", err)
		}
		return d, nil
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("initrd: %w", err)
		}
		z.Multistream(false)
		return z, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return xz.NewReader(r)
	}
	return nil, fmt.Errorf("initrd: begins with %q: want cpio, gzip, zstd or xz", head)
}
