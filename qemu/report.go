package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// MaxReport bounds a report, in bytes.
const MaxReport = 16 << 20

// A NoReportError says that the guest sent no whole report, and what it did
// instead.
type NoReportError struct {
	// State is "running", or how the guest ended: "powered off", "reset",
	// "panicked", "halted: " and QEMU's run state, "QEMU ended", "QMP ended",
	// "swtpm ended", "stopped" (the context of Start is done), "stopped after
	// 5m0s", or "shut down: " and QEMU's reason.
	State   string
	Console []string // the last lines of the serial output, printable characters only
	Err     error    // the reason, if there is one to give
}

func (e *NoReportError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("qemu: no report from the guest: %s: %v", e.State, e.Err)
	}
	return fmt.Sprintf("qemu: no report from the guest: %s", e.State)
}

func (e *NoReportError) Unwrap() error { return e.Err }

// Report waits for the first document that the guest sends on its report port
// and returns it, without the length that precedes it. The guest runs on. When
// there will be no report the error is a *NoReportError.
func (v *VM) Report(ctx context.Context) ([]byte, error) {
	if v.machine.ReportPort == "" {
		return nil, errors.New("qemu: report: the machine has no report port")
	}
	for {
		r := v.current()
		b, err := r.report(ctx)
		if err == nil {
			return b, nil
		}
		again, fallErr := v.fallBack(ctx, r)
		if fallErr != nil {
			return nil, fallErr
		}
		if !again {
			return nil, err
		}
	}
}

func (r *run) report(ctx context.Context) ([]byte, error) {
	select {
	case <-r.document.done:
	case <-ctx.Done():
		return nil, r.noReport(ctx.Err())
	}
	if !errors.Is(r.document.err, errShort) {
		if r.document.err != nil {
			return nil, r.noReport(r.document.err)
		}
		return r.document.b, nil
	}
	// The port closes when QEMU ends; how it ended is known in a moment.
	select {
	case <-r.over:
		return nil, r.noReport(r.ending().err)
	case <-ctx.Done():
		return nil, r.noReport(ctx.Err())
	}
}

func (r *run) noReport(err error) error {
	return &NoReportError{State: r.ending().state, Console: lastLines(r.console.String(), 40), Err: err}
}

// A document is read in the background, so that the guest need not wait.
type document struct {
	conn net.Conn
	done chan struct{} // closed when the rest is set
	b    []byte
	err  error
}

func readDocument(conn net.Conn) *document {
	d := &document{conn: conn, done: make(chan struct{})}
	go func() {
		d.b, d.err = readFrame(conn)
		close(d.done)
	}()
	return d
}

func (d *document) close() {
	d.conn.Close()
	<-d.done
}

// errShort is the end of the stream before the end of the document.
var errShort = errors.New("the port closed before a whole report came")

// readFrame reads a big-endian u32 and as many bytes.
func readFrame(r io.Reader) ([]byte, error) {
	var prefix [4]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", errShort, err)
	}
	size := binary.BigEndian.Uint32(prefix[:])
	if size > MaxReport {
		return nil, fmt.Errorf("report of %d bytes: want at most %d", size, MaxReport)
	}
	// The buffer grows with what arrives: the length is the guest's claim.
	b, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil || len(b) < int(size) {
		return nil, fmt.Errorf("%w: %d of %d bytes", errShort, len(b), size)
	}
	return b, nil
}
