// Package agent is PID 1 of the guest. stages.go is the boot, top to bottom;
// the supervisor runs beside it and after it.
//
// Whatever the host can write is hostile: command line, devices, TPM, event
// log, files that a boot loader adds. The agent is measured, so it need not
// prove that it is itself; it must not do anything that its measurement does
// not cover, and it stops the machine when it cannot know.
package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/google/go-tpm/tpm2/transport"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/network"
	"github.com/plinth-os/plinth/evidence"
	"golang.org/x/sys/unix"
)

// State is what one stage leaves for the next.
type State struct {
	Root     string         // where the file system begins; "/" in a guest
	Config   *config.Config // nil before its stage
	TPM      TPM            // nil before its stage, or without one where it is optional
	Extender *Extender      // the same
	Report   evidence.Report

	console     io.Writer // for humans only: nothing of it is evidence
	machine     machine
	wal         *wal // see journal
	walOnce     sync.Once
	tpm         transport.TPM // of TPM; nil without one
	firmwareLog []byte        // nil before it was asked for; it and what follows are the journal's to lock
	ccRecords   []byte        // of RTMR 3, TCG2
	processes   *supervisor
	work        work
	port        *os.File // kept open: closing it could drop what the host has not read
}

// Run boots the guest and supervises it. It does not return: PID 1 must not
// end, and what it cannot handle stops the machine. version is the agent's own,
// for the report.
func Run(version string) {
	s := &State{Root: "/", console: os.Stderr, machine: linux{}}
	s.Report.Schema, s.Report.Agent = evidence.ReportSchema, version
	s.processes = newSupervisor(s)
	s.work.site = guestSite
	network.Background = s.background
	defer s.recoverPanic()
	s.watchSignals()
	if err := s.boot(context.Background(), stages); err != nil {
		s.fail(err)
	}
	select {}
}

// boot runs the stages. The first that fails ends it, except in a debug build,
// which says so and goes on.
func (s *State) boot(ctx context.Context, stages []stage) error {
	s.finished("kernel")
	for _, st := range stages {
		err := st.run(ctx, s)
		s.finished(st.name)
		switch {
		case err == nil:
		case s.debug():
			s.work.failed = true
			s.logf("WARNING: %s: %v; only a debug build goes on", st.name, err)
		default:
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return nil
}

// finished notes when a stage ended.
func (s *State) finished(stage string) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		s.Report.Stages = append(s.Report.Stages, evidence.Stage{Name: stage, MS: now.Nano() / 1e6})
	}
}

func (s *State) debug() bool { return s.Config != nil && s.Config.Debug }

// path returns where a file of the guest is.
func (s *State) path(name string) string { return filepath.Join(s.Root, name) }

func (s *State) logf(format string, args ...any) {
	fmt.Fprintf(s.console, "plinth: "+format+"\n", args...) // nobody may be there to read it
}

// fail says what is wrong and stops the machine, at once and without asking
// services: they must not run on in a guest that is not what it should be.
func (s *State) fail(err error) {
	s.logf("FATAL: %v", err)
	how := config.PowerOff
	if s.Config != nil && s.Config.OnFailure != "" {
		how = s.Config.OnFailure
	}
	s.stop(how)
}

// stop ends the machine and does not return.
func (s *State) stop(how string) {
	s.logf("%s", how)
	if err := s.machine.stop(how); err != nil {
		s.logf("%s: %v", how, err)
	}
	select {}
}

// recoverPanic is deferred in every goroutine: an unrecovered panic would end
// PID 1, and the kernel's own panic would be the only sign of it.
func (s *State) recoverPanic() {
	if p := recover(); p != nil {
		s.fail(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
	}
}

// background runs f in a goroutine.
func (s *State) background(f func()) {
	go func() {
		defer s.recoverPanic()
		f()
	}()
}

// readFile reads at most limit bytes of a file of the guest.
func (s *State) readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(s.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, err
}
