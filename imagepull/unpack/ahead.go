package unpack

import (
	"context"
	"io"
)

const (
	aheadSize  = 256 << 10 // bytes
	aheadCount = 4
	ratioFloor = 16 << 20 // bytes of tar that no ratio is asked of
)

// A Compressed is a layer reader that knows how many bytes of the blob it has
// taken so far. Limits.Ratio holds for it. The method is called by the goroutine
// that reads, between reads.
type Compressed interface{ CompressedBytes() int64 }

// A meter holds one layer to the limits of its stream.
type meter struct {
	budget *Budget
	read   int64
}

func (m *meter) add(n int, r io.Reader) error {
	m.read += int64(n)
	if err := m.budget.takeStream(int64(n)); err != nil {
		return err
	}
	c, ok := r.(Compressed)
	if !ok || m.read <= ratioFloor {
		return nil
	}
	if in, most := max(c.CompressedBytes(), 1), m.budget.limits.Ratio; m.read/in > most {
		return &LimitError{"bytes of tar per compressed byte", m.read / in, most}
	}
	return nil
}

type block struct {
	data []byte
	err  error // behind the data
}

// ahead reads a layer while what was read is being taken apart: undoing its
// compression and writing its content keep two processors busy.
type ahead struct {
	full  chan block
	free  chan []byte
	done  chan struct{}
	meter *meter

	whole []byte // the block that data is a part of
	data  []byte
	err   error
}

func readAhead(ctx context.Context, r io.Reader, m *meter) *ahead {
	a := &ahead{
		full: make(chan block, aheadCount), free: make(chan []byte, aheadCount),
		done: make(chan struct{}), meter: m,
	}
	for range aheadCount {
		a.free <- make([]byte, aheadSize)
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
