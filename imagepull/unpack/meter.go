package unpack

import (
	"context"
	"io"
)

const (
	aheadSize  = 256 << 10 // bytes that are read at a time
	ratioFloor = 16 << 20  // bytes of tar that no ratio is asked of
)

// A Compressed is a layer reader that knows how many bytes of the blob it has
// taken so far. Limits.Ratio holds for it. The method is called by the goroutine
// that reads, between reads.
type Compressed interface{ CompressedBytes() int64 }

// A meter holds one layer to the limits of its stream.
type meter struct {
	ctx    context.Context // of the Read that it is for
	r      io.Reader
	budget *Budget
	read   int64
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	if over := m.add(n); over != nil {
		err = over
	}
	return n, err
}

func (m *meter) add(n int) error {
	m.read += int64(n)
	if err := m.budget.takeStream(int64(n)); err != nil {
		return err
	}
	c, ok := m.r.(Compressed)
	if !ok || m.read <= ratioFloor {
		return nil
	}
	if in, most := max(c.CompressedBytes(), 1), m.budget.limits.Ratio; m.read/in > most {
		return &LimitError{"bytes of tar per compressed byte", m.read / in, most}
	}
	return nil
}
