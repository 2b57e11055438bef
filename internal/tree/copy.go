package tree

import (
	"fmt"
	"io"
)

// copySize is how much is read at once, in bytes: large, because every write to
// a file or a compressor has its price.
const copySize = 1 << 20

// Copy copies a blob to w and insists that it has its Size.
func (b Blob) Copy(w io.Writer) error {
	if b.Open == nil {
		if b.Size == 0 {
			return nil
		}
		return fmt.Errorf("no content, want %d bytes", b.Size)
	}
	r, err := b.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, min(copySize, max(b.Size, 0)+1))
	n, err := io.CopyBuffer(w, io.LimitReader(r, b.Size+1), buf)
	switch {
	case err != nil:
		return err
	case n < b.Size:
		return fmt.Errorf("content has %d bytes, want %d", n, b.Size)
	case n > b.Size:
		return fmt.Errorf("content has more than %d bytes", b.Size)
	}
	return nil
}
