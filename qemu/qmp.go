package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxQMPLine bounds one message, in bytes; the largest that we ask for has a
// few hundred.
const maxQMPLine = 1 << 20

// A message is a line of QMP: the greeting, an answer or an event.
// QEMU, docs/interop/qmp-spec.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       uint64          `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"` // of an event
}

type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// A monitor is a QMP connection.
type monitor struct {
	conn    net.Conn
	wait    time.Duration // for one command
	answers chan message  // closed after the last one
	greeted chan struct{}
	closed  chan struct{} // when reading has ended
	err     error         // why; nil when QEMU closed the connection. Read after closed

	mu sync.Mutex // one command at a time
	id uint64
}

func newMonitor(conn net.Conn, wait time.Duration) *monitor {
	return &monitor{conn: conn, wait: wait, answers: make(chan message, 8),
		greeted: make(chan struct{}), closed: make(chan struct{})}
}

// read reads until the end of the connection. It calls event with each event
// in turn, which must not wait for a command.
func (m *monitor) read(event func(message)) {
	defer close(m.answers)
	defer close(m.closed)
	defer m.conn.Close()
	m.err = readMessages(m.conn, func(msg message) error { return m.dispatch(msg, event) })
}

func (m *monitor) dispatch(msg message, event func(message)) error {
	switch {
	case msg.Event != "":
		event(msg)
	case msg.Greeting != nil:
		select {
		case <-m.greeted:
			return errors.New("qemu: QMP: a second greeting")
		default:
			close(m.greeted)
		}
	case msg.Return != nil || msg.Error != nil:
		select {
		case m.answers <- msg:
		default:
			return errors.New("qemu: QMP: an answer to no command")
		}
	default:
		return errors.New("qemu: QMP: a message that is no greeting, answer or event")
	}
	return nil
}

// readMessages calls f with each line of r. It returns nil at the end of r.
func readMessages(r io.Reader, f func(message) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxQMPLine)
	for lines.Scan() {
		var msg message
		if err := json.Unmarshal(lines.Bytes(), &msg); err != nil {
			return fmt.Errorf("qemu: QMP: %w", err)
		}
		if err := f(msg); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && !disconnected(err) {
		return fmt.Errorf("qemu: QMP: %w", err)
	}
	return nil
}

// disconnected reports whether err is how the far end's exit looks.
func disconnected(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// negotiate waits for the greeting and leaves the negotiation mode, in which
// QEMU takes no command and sends no event.
func (m *monitor) negotiate(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-m.greeted:
		_, err := m.execute(ctx, "qmp_capabilities")
		return err
	case <-m.closed:
		return m.failure("greeting")
	case <-timer.C:
		return fmt.Errorf("qemu: QMP: no greeting within %v: %w", wait, os.ErrDeadlineExceeded)
	case <-ctx.Done():
		return fmt.Errorf("qemu: QMP: greeting: %w", ctx.Err())
	}
}

// execute runs a command without arguments and returns its answer.
func (m *monitor) execute(ctx context.Context, command string) (json.RawMessage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id++
	request, err := json.Marshal(map[string]any{"execute": command, "id": m.id})
	if err != nil {
		return nil, err
	}
	m.conn.SetWriteDeadline(time.Now().Add(m.wait))
	if _, err := m.conn.Write(append(request, '\n')); err != nil {
		if disconnected(err) {
			<-m.closed // that end tells more
			return nil, m.failure(command)
		}
		return nil, fmt.Errorf("qemu: QMP: %s: %w", command, err)
	}
	return m.answer(ctx, command)
}

func (m *monitor) answer(ctx context.Context, command string) (json.RawMessage, error) {
	timer := time.NewTimer(m.wait)
	defer timer.Stop()
	for {
		select {
		case msg, ok := <-m.answers:
			switch {
			case !ok:
				return nil, m.failure(command)
			case msg.ID != m.id: // of a command that nobody waits for any more
			case msg.Error != nil:
				return nil, fmt.Errorf("qemu: QMP: %s: %s: %s", command, msg.Error.Class, msg.Error.Desc)
			default:
				return msg.Return, nil
			}
		case <-timer.C:
			return nil, fmt.Errorf("qemu: QMP: %s: no answer within %v: %w", command, m.wait, os.ErrDeadlineExceeded)
		case <-ctx.Done():
			return nil, fmt.Errorf("qemu: QMP: %s: %w", command, ctx.Err())
		}
	}
}

// failure is why a command had no answer; call it after closed.
func (m *monitor) failure(command string) error {
	if m.err != nil {
		return m.err
	}
	return fmt.Errorf("qemu: QMP: %s: %w", command, errGone)
}

var errGone = errors.New("QEMU closed the connection")
