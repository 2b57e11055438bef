// Package readahead reads in a goroutine while what was read before is being worked
// on, so that two steps of one stream keep two processors busy.
package readahead

import "io"

// Blocks is how many blocks a Reader has: it is that much ahead at most.
const Blocks = 4

// A Reader reads ahead.
type Reader struct {
	r     io.Reader
	least int // bytes
	full  chan block
	free  chan []byte
	done  chan struct{}

	cur  block
	rest []byte // of cur
}

type block struct {
	data []byte
	err  error // behind the data
}

// New reads r in blocks of size bytes, which are handed over when at least so many
// bytes are in them: small reads are not worth it. The goroutine is gone when Stop
// returns: r's Read must not wait for ever.
func New(r io.Reader, size, least int) *Reader {
	a := &Reader{r: r, least: least, full: make(chan block, Blocks), free: make(chan []byte, Blocks), done: make(chan struct{})}
	for range Blocks {
		a.free <- make([]byte, size)
	}
	go a.run()
	return a
}

func (a *Reader) run() {
	defer close(a.full)
	for {
		select {
		case <-a.done:
			return
		case buf := <-a.free:
			n, err := a.fill(buf)
			a.full <- block{buf[:n], err} // there is room for every block
			if err != nil {
				return
			}
		}
	}
}

func (a *Reader) fill(buf []byte) (n int, err error) {
	for idle := 0; n < a.least && err == nil; {
		var k int
		k, err = a.r.Read(buf[n:])
		if n += k; k > 0 {
			idle = 0
		} else if idle++; idle >= 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// Read implements io.Reader.
func (a *Reader) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.data != nil {
			a.free <- a.cur.data[:cap(a.cur.data)]
		}
		a.cur = <-a.full // not closed before it brought an error
		a.rest = a.cur.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Stop waits for the goroutine to end. What was read ahead is lost.
func (a *Reader) Stop() {
	close(a.done)
	for range a.full {
	}
}
