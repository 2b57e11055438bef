package imagepull

import "io"

const (
	aheadBlock = 128 << 10 // bytes
	aheadCount = 4
)

// ahead reads while what was read before is being worked on: taking a layer out of
// its connection and out of its compression keep two processors busy.
type ahead struct {
	full chan aheadRead
	free chan []byte
	done chan struct{}

	cur  aheadRead
	rest []byte // of cur
}

type aheadRead struct {
	data []byte
	err  error // behind the data
}

// readAhead reads r in a goroutine, which is gone when stop returns: r's Read must
// not wait for ever.
func readAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan aheadRead, aheadCount), free: make(chan []byte, aheadCount), done: make(chan struct{})}
	for range aheadCount {
		a.free <- make([]byte, aheadBlock)
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.full)
	for {
		select {
		case <-a.done:
			return
		case buf := <-a.free:
			n, err := fill(r, buf)
			a.full <- aheadRead{buf[:n], err} // there is room for every block
			if err != nil {
				return
			}
		}
	}
}

// fill reads until half of buf is there: small reads are not worth a hand-over, and
// what is slow to come is not waited for.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for idle := 0; n < len(buf)/2 && err == nil; {
		var k int
		k, err = r.Read(buf[n:])
		if n += k; k > 0 {
			idle = 0
		} else if idle++; idle >= 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.data != nil {
			a.free <- a.cur.data[:aheadBlock]
		}
		a.cur = <-a.full // not closed before it brought an error
		a.rest = a.cur.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// stop waits for the reading goroutine to end.
func (a *ahead) stop() {
	close(a.done)
	for range a.full {
	}
}
