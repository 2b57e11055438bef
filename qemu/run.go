package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// A run is one QEMU with its TPM and files.
type run struct {
	accel  string
	limits limits

	dir         *runDir
	tpmState    *os.File // lock of Machine.TPMState; nil without one
	swtpm, qemu *child
	qmp         *monitor

	serial      net.Conn // nil before QEMU has started
	console     *tail
	alive       chan struct{} // closed at the first byte from the console
	consoleDone chan struct{}

	document *document

	over chan struct{} // closed when QEMU is gone and all that it sent is read

	mu  sync.Mutex
	end *ending
}

// An ending is how and why a guest ended.
type ending struct {
	state  string
	err    error
	broken bool // it was not the guest's doing, but QEMU's or KVM's
}

func (e ending) failure() error {
	if e.err != nil {
		return fmt.Errorf("%s: %w", e.state, e.err)
	}
	return errors.New(e.state)
}

// launch starts a run of m. With an error, nothing is left of it.
func launch(ctx context.Context, t tools, m Machine, o Options) (r *run, err error) {
	r = &run{accel: m.Accel, limits: o.limits, console: &tail{limit: 64 << 10},
		alive: make(chan struct{}), consoleDone: make(chan struct{}), over: make(chan struct{})}
	defer func() {
		if err == nil {
			return
		}
		if r.qemu != nil {
			r.qemu.kill() // it has no guest yet, and may not answer to a quit
		}
		err = errors.Join(err, r.close())
	}()
	if r.dir, err = newRunDir(); err != nil {
		return r, fmt.Errorf("qemu: run directory: %w", err)
	}
	if err := r.prepare(&m); err != nil {
		return r, fmt.Errorf("qemu: %w", err)
	}
	if err := r.startQEMU(ctx, t, m, o); err != nil {
		return r, err
	}
	return r, r.resume(ctx)
}

// prepare makes m's paths absolute, since QEMU takes "a:b" for a protocol,
// and its variables the guest's own.
func (r *run) prepare(m *Machine) error {
	for _, path := range []*string{&m.Firmware, &m.Vars, &m.Disk, &m.Kernel, &m.Initrd} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	if m.Vars == "" {
		return nil
	}
	private := r.dir.file("vars.fd")
	if err := copyFile(private, m.Vars); err != nil {
		return err
	}
	m.Vars = private
	return nil
}

// startQEMU starts the TPM and QEMU, and the goroutines that read from QEMU.
func (r *run) startQEMU(ctx context.Context, t tools, m Machine, o Options) error {
	var p plugs
	defer p.close()
	qmp, err := p.socket()
	if err != nil {
		return err
	}
	serial, err := p.socket()
	if err != nil {
		return err
	}
	report, err := p.socket()
	if err != nil {
		return err
	}
	sockets := Sockets{QMP: 3, Console: 4, Report: 5, TPM: 6}
	if m.TPM {
		dir, err := r.tpmDir(m.TPMState)
		if err != nil {
			return err
		}
		var control *os.File
		if r.swtpm, control, err = startTPM(ctx, t.swtpm, dir, r.limits.tpm); err != nil {
			return err
		}
		p.inherited = append(p.inherited, control)
	}
	if r.qemu, err = startChild(t.qemu, Args(m, sockets), p.inherited...); err != nil {
		return err
	}
	p.ours = nil
	r.serial = serial
	r.document = readDocument(report)
	r.qmp = newMonitor(qmp, r.limits.command)
	go r.qmp.read(r.event)
	go r.readConsole(o)
	go r.watch()
	return nil
}

// tpmDir is where the TPM of this run keeps its state: in state, which is this run's
// until it ends, or in the run's own directory.
func (r *run) tpmDir(state string) (string, error) {
	if state == "" {
		return r.dir.file("tpm"), nil
	}
	dir, err := filepath.Abs(state)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		r.tpmState, err = lockDir(dir, syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return "", fmt.Errorf("qemu: TPM state %s: another machine runs with it", state)
	}
	if err != nil {
		return "", fmt.Errorf("qemu: TPM state: %w", err)
	}
	return dir, nil
}

// plugs are the sockets between a child and this process.
type plugs struct {
	ours      []net.Conn
	inherited []*os.File // descriptors 3, 4, ... of the child
}

func (p *plugs) socket() (net.Conn, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	p.ours, p.inherited = append(p.ours, ours), append(p.inherited, theirs)
	return ours, nil
}

// close closes what the child has inherited, and our ends if they are still p's.
func (p *plugs) close() {
	for _, f := range p.inherited {
		f.Close()
	}
	for _, c := range p.ours {
		c.Close()
	}
}

// resume lets the guest go.
func (r *run) resume(ctx context.Context) error {
	err := r.qmp.negotiate(ctx, r.limits.greeting)
	if err == nil {
		_, err = r.qmp.execute(ctx, "cont")
	}
	// When QEMU has ended, what it said on the way is the better reason.
	if errors.Is(err, errGone) && r.qemu.waitFor(time.Second) {
		<-r.over
		return fmt.Errorf("qemu: start: %w", r.ending().failure())
	}
	return err
}

// awaitLife waits until the guest has printed something. It fails when that
// does not happen within d.
func (r *run) awaitLife(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.alive:
		return nil
	case <-r.over:
		return r.ending().failure()
	case <-timer.C:
		return fmt.Errorf("nothing on the console within %v", d)
	case <-ctx.Done():
		return fmt.Errorf("qemu: %w", ctx.Err())
	}
}

func (r *run) readConsole(o Options) {
	defer close(r.consoleDone)
	buf := make([]byte, 4096)
	for first := true; ; {
		n, err := r.serial.Read(buf)
		if n > 0 {
			if first {
				close(r.alive)
				first = false
			}
			r.console.Write(buf[:n])
			if o.Console != nil {
				o.Console.Write(buf[:n]) // its errors are the owner's to see
			}
		}
		if err != nil {
			return
		}
	}
}

// watch waits for QEMU's end, and brings it about when QEMU is not itself any
// more.
func (r *run) watch() {
	defer close(r.over)
	var tpm <-chan struct{}
	if r.swtpm != nil {
		tpm = r.swtpm.done
	}
	select {
	case <-r.qemu.done:
	case <-r.qmp.closed:
		// Without QMP nobody would know how the guest ends.
		if err := r.qmp.err; err != nil || !r.qemu.waitFor(r.limits.quit) {
			r.fail(ending{state: "QMP ended", err: err, broken: true})
		}
	case <-tpm:
		if !r.qemu.waitFor(r.limits.quit) {
			r.fail(ending{state: "swtpm ended", err: r.swtpm.failure()})
		}
	}
	r.drain()
	r.setEnding(ending{state: "QEMU ended", err: r.qemu.failure(), broken: true})
}

// drain waits until what QEMU sent before it ended is read. It gives up after
// a second: another process may have inherited a socket, or the Console block.
func (r *run) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, done := range []<-chan struct{}{r.qmp.closed, r.document.done, r.consoleDone} {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// event handles QMP's events. QEMU, qapi/run-state.json.
func (r *run) event(msg message) {
	switch msg.Event {
	case "SHUTDOWN": // QEMU ends by itself, or should
		r.setEnding(shutdown(msg.Data))
		time.AfterFunc(r.limits.quit, r.qemu.kill)
	case "GUEST_PANICKED":
		r.fail(ending{state: "panicked"})
	case "STOP":
		go r.stopped()
	}
}

func shutdown(data json.RawMessage) ending {
	var d struct{ Reason string }
	if err := json.Unmarshal(data, &d); err != nil {
		return ending{state: "shut down"}
	}
	switch d.Reason {
	case "guest-shutdown":
		return ending{state: "powered off"}
	case "guest-reset":
		return ending{state: "reset"}
	case "guest-panic":
		return ending{state: "panicked"}
	}
	return ending{state: "shut down: " + d.Reason}
}

// stopped finds out why the guest does not run any more. Nobody resumes it.
func (r *run) stopped() {
	status, err := r.status(context.Background())
	if err != nil || status == "running" {
		return
	}
	r.fail(ending{state: "halted: " + status, broken: status == "internal-error"})
}

// status asks for QEMU's RunState.
func (r *run) status(ctx context.Context) (string, error) {
	b, err := r.qmp.execute(ctx, "query-status")
	if err != nil {
		return "", err
	}
	var answer struct{ Status string }
	if err := json.Unmarshal(b, &answer); err != nil {
		return "", fmt.Errorf("qemu: QMP: query-status: %w", err)
	}
	return answer.Status, nil
}

// fail records how the guest ended and kills QEMU.
func (r *run) fail(e ending) {
	r.setEnding(e)
	r.qemu.kill()
}

// setEnding keeps the first reason; what follows is its consequence.
func (r *run) setEnding(e ending) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end == nil {
		r.end = &e
	}
}

func (r *run) ending() ending {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.end == nil {
		return ending{state: "running"}
	}
	return *r.end
}

// close ends QEMU, the TPM and the files. It may be called again.
func (r *run) close() error {
	if r.qemu != nil {
		r.quit()
		<-r.over
		r.serial.Close()
		r.document.close()
	}
	if r.swtpm != nil {
		r.swtpm.kill()
	}
	if r.tpmState != nil {
		r.tpmState.Close() // a read-only descriptor
	}
	if r.dir == nil {
		return nil
	}
	return r.dir.remove()
}

// quit asks QEMU to end, so that it can say why if it cannot, and kills it.
func (r *run) quit() {
	ctx, cancel := context.WithTimeout(context.Background(), r.limits.quit)
	defer cancel()
	if _, err := r.qmp.execute(ctx, "quit"); err == nil || errors.Is(err, errGone) {
		r.qemu.waitFor(r.limits.quit)
	}
	r.qemu.kill()
}
