package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// DefaultTimeout bounds a run when Options.Timeout is zero. Under TCG an
// image is up in 10 s on an idle machine.
const DefaultTimeout = 5 * time.Minute

// Options say how to run a machine. They change nothing that the guest measures.
type Options struct {
	Accel   string                           // "auto" or "": KVM if it works, else TCG; "kvm"; "tcg"
	Console io.Writer                        // gets the serial output, raw, as it comes; while it blocks the guest does too
	Logf    func(format string, args ...any) // lines for a person; nil: nobody
	Timeout time.Duration                    // of the whole run; 0: DefaultTimeout, negative: none

	limits  limits
	openKVM func() error // nil: openKVM; for tests on hosts with and without
}

// limits bound the steps of a run; a zero takes its default. Tests lower them.
type limits struct{ tpm, greeting, command, life, quit time.Duration }

func (l limits) withDefaults() limits {
	// Generous: a loaded host is slow, and each is over early if all is well.
	return limits{
		tpm:      cmp.Or(l.tpm, 10*time.Second),      // swtpm answers and is set up
		greeting: cmp.Or(l.greeting, 30*time.Second), // QEMU has started
		command:  cmp.Or(l.command, 10*time.Second),  // QEMU answers a command
		life:     cmp.Or(l.life, 5*time.Second),      // under KVM: the firmware prints something
		quit:     cmp.Or(l.quit, 3*time.Second),      // QEMU ends when told so
	}
}

// VM is a machine that was started. Close must be called.
type VM struct {
	machine Machine
	options Options
	tools   tools
	stop    []func() bool // of what ends the VM from outside

	starting sync.Mutex // one run is started at a time

	mu     sync.Mutex // guards what follows
	run    *run
	killed *ending // why no further run may start
}

// tools are the programs of a VM.
type tools struct{ qemu, swtpm, version string }

// Start runs m until the VM is closed, ctx is done or the time is over. It
// fails with a *MissingToolError where this host lacks something.
//
// With Options.Accel "auto" the machine is tried under KVM, if /dev/kvm opens,
// and then under TCG: at once when QEMU or KVM gives up, after 5 s when the
// guest has not printed a byte, and in Report or Wait when KVM gives up later.
func Start(ctx context.Context, m Machine, o Options) (*VM, error) {
	v, err := newVM(ctx, m, o)
	if err != nil {
		return nil, err
	}
	v.stop = append(v.stop, context.AfterFunc(ctx, func() {
		v.kill(ending{state: "stopped", err: context.Cause(ctx)})
	}))
	if d := v.options.Timeout; d > 0 {
		v.stop = append(v.stop, time.AfterFunc(d, func() {
			v.kill(ending{state: fmt.Sprintf("stopped after %v", d), err: context.DeadlineExceeded})
		}).Stop)
	}
	if err := v.start(ctx); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func newVM(ctx context.Context, m Machine, o Options) (*VM, error) {
	o.limits = o.limits.withDefaults()
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	if o.openKVM == nil {
		o.openKVM = openKVM
	}
	v := &VM{machine: m, options: o}
	var err error
	if v.tools.qemu, err = Find(m.Binary); err != nil {
		return nil, err
	}
	if m.TPM {
		if v.tools.swtpm, err = findSWTPM(); err != nil {
			return nil, err
		}
	}
	var sandbox bool
	v.tools.version, sandbox, err = versionAndSandbox(ctx, v.tools.qemu)
	v.machine.NoSandbox = m.NoSandbox || !sandbox
	return v, err
}

// Accel is the acceleration in use, "kvm" or "tcg".
func (v *VM) Accel() string { return v.current().accel }

// Version is QEMU's version, like "7.2.22".
func (v *VM) Version() string { return v.tools.version }

// Args are the arguments that QEMU runs with.
func (v *VM) Args() []string { return v.current().qemu.cmd.Args[1:] }

// ConsoleTail returns the last 64 KiB of the serial output, raw.
func (v *VM) ConsoleTail() string { return v.current().console.String() }

// Type sends text to the guest's serial console, as a keyboard would.
func (v *VM) Type(text []byte) error {
	_, err := v.current().serial.Write(text)
	return err
}

// Status returns QEMU's run state: "running", "internal-error", ...
func (v *VM) Status(ctx context.Context) (string, error) { return v.current().status(ctx) }

// PowerButton presses the machine's power button; the guest may act on it.
func (v *VM) PowerButton(ctx context.Context) error {
	_, err := v.current().qmp.execute(ctx, "system_powerdown")
	return err
}

// Wait waits until the guest has ended and says how: see NoReportError.State.
func (v *VM) Wait(ctx context.Context) (state string, err error) {
	for {
		r := v.current()
		select {
		case <-r.over:
		case <-ctx.Done():
			return "", fmt.Errorf("qemu: %w", ctx.Err())
		}
		again, err := v.fallBack(ctx, r)
		if !again {
			return r.ending().state, err
		}
	}
}

// Close ends the guest and waits until nothing of it is left.
func (v *VM) Close() error {
	for _, stop := range v.stop {
		stop()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.killed == nil {
		v.killed = &ending{state: "closed"}
	}
	if v.run == nil {
		return nil
	}
	return v.run.close()
}

func (v *VM) current() *run {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.run
}

// kill ends the guest from another goroutine; Close is still to be called.
func (v *VM) kill(why ending) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.killed = &why
	if v.run != nil {
		v.run.fail(why)
	}
}
