package disk

import (
	"bytes"
	"fmt"
	"io"
)

// A window is size bytes of w from offset on.
type window struct {
	w            io.WriterAt
	offset, size int64
}

func (p *window) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || int64(len(b)) > p.size-off {
		return 0, fmt.Errorf("write of %d bytes at %d: the partition has %d bytes", len(b), off, p.size)
	}
	return p.w.WriteAt(b, p.offset+off)
}

// holes leaves out blocks of zeros.
type holes struct{ w io.WriterAt }

// holeSize is the block size of common file systems, in bytes.
const holeSize = 4096

var zeros [holeSize]byte

func (h holes) WriteAt(b []byte, off int64) (int, error) {
	for done := 0; done < len(b); {
		n := run(b[done:], off+int64(done), true)
		done += n
		n = run(b[done:], off+int64(done), false)
		if n == 0 {
			continue
		}
		if m, err := h.w.WriteAt(b[done:done+n], off+int64(done)); err != nil {
			return done + m, err
		}
		done += n
	}
	return len(b), nil
}

// run returns how many bytes at the start of b, which is to lie at off, are in
// blocks that are zero, or not zero.
func run(b []byte, off int64, zero bool) int {
	n := 0
	for n < len(b) {
		block := b[n:min(len(b), n+holeSize-int((off+int64(n))%holeSize))]
		if bytes.Equal(block, zeros[:len(block)]) != zero {
			break
		}
		n += len(block)
	}
	return n
}
