package qemu

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// A qtest is a paused QEMU whose ports and memory we access in the processor's
// place: QEMU, docs/devel/testing/qtest. Each command is a line, and so is its answer.
type qtest struct {
	child  *child
	tpm    *child // nil: the machine has none
	dir    *runDir
	conn   net.Conn
	others []net.Conn // what else QEMU is connected to
	lines  *bufio.Reader
	stop   func() bool
}

// startQtest starts a QEMU that ends with ctx at the latest.
func startQtest(ctx context.Context, m Machine) (q *qtest, err error) {
	m.Accel = "tcg"
	if m.CPU == "host" { // which TCG has not, and no table shows
		m.CPU = ""
	}
	v, err := newVM(ctx, m, Options{})
	if err != nil {
		return nil, err
	}
	q = &qtest{}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.close())
		}
	}()
	if q.dir, err = newRunDir(); err != nil {
		return q, fmt.Errorf("qemu: run directory: %w", err)
	}
	m = v.machine
	if err := (&run{dir: q.dir}).prepare(&m); err != nil {
		return q, fmt.Errorf("qemu: %w", err)
	}
	return q, q.launch(ctx, v.tools, m, v.options)
}

func (q *qtest) launch(ctx context.Context, t tools, m Machine, o Options) error {
	var p plugs
	defer p.close()
	for range 4 { // QMP, console, report, qtest
		if _, err := p.socket(); err != nil {
			return err
		}
	}
	sockets := Sockets{QMP: 3, Console: 4, Report: 5, TPM: 7}
	if m.TPM {
		var control *os.File
		var err error
		if q.tpm, control, err = startTPM(ctx, t.swtpm, q.dir.file("tpm"), o.limits.tpm); err != nil {
			return err
		}
		p.inherited = append(p.inherited, control)
	}
	args := append(Args(m, sockets), "-chardev", "socket,id=qtest,fd=6", "-qtest", "chardev:qtest", "-qtest-log", "none")
	var err error
	if q.child, err = startChild(t.qemu, args, p.inherited...); err != nil {
		return err
	}
	q.others, q.conn = p.ours[:3], p.ours[3]
	p.ours = nil
	q.lines = bufio.NewReader(q.conn)
	q.stop = context.AfterFunc(ctx, q.child.kill) // which ends the conversation
	if deadline, ok := ctx.Deadline(); ok {
		return q.conn.SetDeadline(deadline)
	}
	return nil
}

// close ends QEMU, the TPM and their files. It may be called for a q that was
// not quite started.
func (q *qtest) close() error {
	if q.stop != nil {
		q.stop()
	}
	for _, c := range append(q.others, q.conn) {
		if c != nil {
			c.Close()
		}
	}
	for _, c := range []*child{q.child, q.tpm} {
		if c != nil {
			c.kill()
		}
	}
	if q.dir == nil {
		return nil
	}
	return q.dir.remove()
}

// command sends a line and returns what comes after the OK of its answer.
func (q *qtest) command(format string, a ...any) (string, error) {
	line := fmt.Sprintf(format, a...)
	if _, err := q.conn.Write([]byte(line + "\n")); err != nil {
		return "", fmt.Errorf("qtest: %.40s: %w", line, err)
	}
	answer, err := q.answer()
	if err != nil {
		return "", fmt.Errorf("qtest: %.40s: %w", line, err)
	}
	rest, ok := strings.CutPrefix(answer, "OK")
	if !ok {
		return "", fmt.Errorf("qtest: %.40s: answer %.80q: want OK", line, answer)
	}
	return strings.TrimPrefix(rest, " "), nil
}

// answer reads one line, of at most what the largest file has in base64.
func (q *qtest) answer() (string, error) {
	var line []byte
	for {
		part, err := q.lines.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return strings.TrimRight(string(line), "\r\n"), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		case len(line) > 2*maxFwcfgFile:
			return "", fmt.Errorf("answer of more than %d bytes", 2*maxFwcfgFile)
		}
	}
}

func (q *qtest) number(format string, a ...any) (uint32, error) {
	answer, err := q.command(format, a...)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(answer, 0, 64)
	if err != nil || n>>32 != 0 {
		return 0, fmt.Errorf("qtest: "+format+": answer %.40q: want a number of 32 bits", append(a, answer)...)
	}
	return uint32(n), nil
}

func (q *qtest) out32(port uint16, v uint32) error {
	_, err := q.command("outl %#x %#x", port, v)
	return err
}

func (q *qtest) in32(port uint16) (uint32, error) { return q.number("inl %#x", port) }

func (q *qtest) write(gpa uint64, b []byte) error {
	_, err := q.command("write %#x %#x 0x%x", gpa, len(b), b)
	return err
}

func (q *qtest) read(gpa uint64, size int) ([]byte, error) {
	answer, err := q.command("b64read %#x %#x", gpa, size)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(answer)
	if err != nil || len(b) != size {
		return nil, fmt.Errorf("qtest: memory at %#x: got %d bytes, %v: want %d", gpa, len(b), err, size)
	}
	return b, nil
}
