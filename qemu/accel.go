package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	kvmDevice     = "/dev/kvm"
	kvmGetVersion = 0xae00 // KVM_GET_API_VERSION; linux/kvm.h
	kvmVersion    = 12     // since Linux 2.6.22, "will never change"
)

// openKVM returns nil if this process may use KVM; whether KVM can run a
// firmware is another question.
func openKVM() error {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetVersion)
	if err != nil {
		return os.NewSyscallError("KVM_GET_API_VERSION", err)
	}
	if version != kvmVersion {
		return fmt.Errorf("%s: API version %d: want %d", kvmDevice, version, kvmVersion)
	}
	return nil
}

// start starts the first run with the acceleration that the options ask for.
func (v *VM) start(ctx context.Context) error {
	v.starting.Lock()
	defer v.starting.Unlock()
	switch v.options.Accel {
	case "", "auto":
		return v.startAuto(ctx)
	case "kvm":
		if err := v.options.openKVM(); err != nil {
			return &MissingToolError{kvmDevice, "join the group kvm, or use the acceleration tcg", err}
		}
		return v.launch(ctx, "kvm")
	case "tcg":
		return v.launch(ctx, "tcg")
	}
	return fmt.Errorf("qemu: acceleration %q: want auto, kvm or tcg", v.options.Accel)
}

func (v *VM) startAuto(ctx context.Context) error {
	if err := v.options.openKVM(); err != nil {
		v.options.Logf("no KVM (%v); using TCG", err)
		return v.launch(ctx, "tcg")
	}
	err := v.launch(ctx, "kvm")
	if err == nil {
		err = v.current().awaitLife(ctx, v.options.limits.life)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	return v.leaveKVM(ctx, err)
}

// fallBack answers the end of r with a run under TCG, if it was KVM that gave
// up and the caller left the choice to us. It reports whether there is another
// run than r now.
func (v *VM) fallBack(ctx context.Context, r *run) (bool, error) {
	v.starting.Lock()
	defer v.starting.Unlock()
	if v.current() != r {
		return true, nil
	}
	auto := v.options.Accel == "" || v.options.Accel == "auto"
	if end := r.ending(); !auto || r.accel != "kvm" || !end.broken {
		return false, nil
	}
	if err := v.leaveKVM(ctx, r.ending().failure()); err != nil {
		return false, err
	}
	return true, nil
}

func (v *VM) leaveKVM(ctx context.Context, reason error) error {
	v.options.Logf("KVM cannot run this machine (%v); going on with TCG", reason)
	if r := v.current(); r != nil {
		if err := r.close(); err != nil {
			return err
		}
	}
	return v.launch(ctx, "tcg")
}

// launch starts a run and makes it the current one.
func (v *VM) launch(ctx context.Context, accel string) error {
	m := v.machine
	m.Accel = accel
	r, err := launch(ctx, v.tools, m, v.options)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.killed != nil {
		return errors.Join(v.killed.failure(), r.close())
	}
	v.run = r
	return nil
}
