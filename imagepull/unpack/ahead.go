package unpack

import (
	"context"
	"io"
)

const (
	blockSize  = 512 << 10 // bytes
	blockCount = 4
	ratioFloor = 16 << 20 // bytes of tar that no ratio is asked of
)

// A Compressed is a layer reader that knows how many bytes of the blob it has
// taken so far. Limits.Ratio holds for it. The method is called by the goroutine
// that reads, between reads.
type Compressed interface{ CompressedBytes() int64 }

func makeBlocks() [][]byte {
	b := make([][]byte, blockCount)
	for i := range b {
		b[i] = make([]byte, blockSize)
	}
	return b
}

// A meter holds one layer to the limits of its stream.
type meter struct {
	limits Limits
	left   int64 // of Limits.Bytes
	read   int64
}

func (m *meter) add(n int, r io.Reader) error {
	m.read += int64(n)
	if m.read > m.left {
		return &LimitError{"bytes of the layers", m.limits.Bytes - m.left + m.read, m.limits.Bytes}
	}
	c, ok := r.(Compressed)
	if !ok || m.read <= ratioFloor {
		return nil
	}
	if in := max(c.CompressedBytes(), 1); m.read/in > m.limits.Ratio {
		return &LimitError{"bytes of tar per compressed byte", m.read / in, m.limits.Ratio}
	}
	return nil
}

type block struct {
	data []byte
	err  error // behind the data
}

// ahead reads a layer while what was read is being unpacked: taking a layer out
// of its compression and making files keep two processors busy.
type ahead struct {
	full  chan block
	free  chan []byte
	done  chan struct{}
	meter *meter

	whole []byte // the block that data is a part of
	data  []byte
	err   error
}

func readAhead(ctx context.Context, r io.Reader, blocks [][]byte, m *meter) *ahead {
	a := &ahead{
		full: make(chan block, len(blocks)), free: make(chan []byte, len(blocks)),
		done: make(chan struct{}), meter: m,
	}
	for _, b := range blocks {
		a.free <- b
	}
	go a.run(ctx, r)
	return a
}

func (a *ahead) run(ctx context.Context, r io.Reader) {
	defer close(a.full)
	for {
		var buf []byte
		select {
		case buf = <-a.free:
		case <-a.done:
			return
		}
		n, err := fill(ctx, r, buf, a.meter)
		a.full <- block{buf[:n], err} // there is room for every block
		if err != nil {
			return
		}
	}
}

// fill reads until buf is full or the layer ends.
func fill(ctx context.Context, r io.Reader, buf []byte, m *meter) (n int, err error) {
	for idle := 0; n < len(buf) && err == nil; {
		if err = ctx.Err(); err != nil {
			break
		}
		var k int
		k, err = r.Read(buf[n:])
		n += k
		if merr := m.add(k, r); merr != nil {
			err = merr
		}
		if idle++; k > 0 {
			idle = 0
		}
		if idle >= 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.data) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.whole != nil {
			a.free <- a.whole[:cap(a.whole)]
		}
		b := <-a.full // not closed before it brought an error
		a.whole, a.data, a.err = b.data, b.data, b.err
	}
	n := copy(p, a.data)
	a.data = a.data[n:]
	return n, nil
}

// stop waits for the reader and returns how many bytes it took.
func (a *ahead) stop() int64 {
	close(a.done)
	for range a.full {
	}
	return a.meter.read
}
