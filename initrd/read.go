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

// Read reads what Write wrote: uncompressed archives first, then perhaps one
// that is compressed, to the end. Entries are in the order of the archives.
// Limits are those of newc.Read, for each archive.
func Read(r io.Reader) ([]tree.Entry, error) {
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
		entries, err := newc.Read(in, newc.Limits{})
		if err != nil {
			return nil, fmt.Errorf("initrd: %w", err)
		}
		all = append(all, entries...)
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
