package runner

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

const (
	outputChunk = 16 << 10 // bytes read at a time
	outputQueue = 64       // chunks that a slow Writer may lag behind
	outputGrace = time.Second
)

// An output is the pipe that a container prints into, and what reads it: always, so
// that nobody inside ever waits.
type output struct {
	r, w *os.File
	read chan struct{} // closed when all was read
	done chan struct{} // closed when all was written or dropped
}

// newOutput begins to read. Both ends of the pipe belong to the container's user,
// or it could not open /dev/stdout anew, which images make their log files.
func (c *Container) newOutput(w io.Writer) (*output, error) {
	r, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if c.process != nil {
		err = pw.Chown(c.base()+int(c.process.User.UID), c.base()+int(c.process.User.GID))
	}
	if err != nil {
		_, _ = r.Close(), pw.Close()
		return nil, err
	}
	o := &output{r: r, w: pw, read: make(chan struct{}), done: make(chan struct{})}
	if w == nil {
		go func() {
			defer close(o.done)
			defer close(o.read)
			_, _ = io.Copy(io.Discard, r)
		}()
		return o, nil
	}
	queue := make(chan []byte, outputQueue)
	dropped := new(atomic.Int64)
	go o.fill(queue, dropped)
	go o.drain(w, queue, dropped)
	return o, nil
}

// fill reads for ever, and drops what the queue has no room for.
func (o *output) fill(queue chan<- []byte, dropped *atomic.Int64) {
	defer close(o.read)
	defer close(queue)
	for {
		b := make([]byte, outputChunk)
		n, err := o.r.Read(b)
		if n > 0 {
			select {
			case queue <- b[:n:n]:
			default:
				dropped.Add(int64(n))
			}
		}
		if err != nil {
			return
		}
	}
}

// drain writes what was read, and says where something is missing. After an error
// of w the rest is dropped.
func (o *output) drain(w io.Writer, queue <-chan []byte, dropped *atomic.Int64) {
	defer close(o.done)
	var failed error
	write := func(b []byte) {
		if failed == nil {
			_, failed = w.Write(b)
		}
	}
	note := func() {
		if n := dropped.Swap(0); n > 0 {
			write(fmt.Appendf(nil, "\n[%d bytes dropped]\n", n))
		}
	}
	for b := range queue {
		write(b)
		if len(queue) == 0 {
			note()
		}
	}
	note()
}

// started closes this side's end for writing: from now on it is the container's.
func (o *output) started() { _ = o.w.Close() }

// wait returns when everything was read and written, or a slow Writer was given a
// while.
func (o *output) wait() {
	select {
	case <-o.done:
	case <-time.After(outputGrace):
	}
}

// close ends the reading, whoever still holds the other end.
func (o *output) close() {
	_ = o.w.Close()
	_ = o.r.Close()
	<-o.read
}
