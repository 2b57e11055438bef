package agent

import (
	"os"
	"os/signal"

	"github.com/plinth-os/plinth/agent/config"
	"golang.org/x/sys/unix"
)

// watchSignals reaps children and powers the machine off when asked to. Both
// work from the first stage on.
func (s *State) watchSignals() {
	// Go's answer to most signals is to end the process, which PID 1 must not.
	// One that nobody waits for is dropped. Ignoring them instead would make
	// every service ignore them as well.
	signal.Notify(make(chan os.Signal, 1))

	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	s.background(func() {
		for range children {
			s.processes.reap()
		}
	})

	// SIGINT is what the kernel makes of Ctrl-Alt-Del, SIGPWR what a UPS sends.
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	s.background(func() {
		s.logf("%v", <-end)
		s.stopContainers(stopGrace)
		s.processes.stop(stopGrace)
		s.closeVolumes(closeTime)
		s.closeImages(closeTime)
		s.stop(config.PowerOff)
	})
}
