package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/runner"
	"github.com/plinth-os/plinth/evidence"
)

// containerDir is where containers are made.
const containerDir = "/run/plinth/containers"

// cdiDirs have the specifications of devices: of the measured root alone.
var cdiDirs = []string{"/etc/cdi", "/usr/share/cdi"}

// A fleet is all containers.
type fleet struct {
	mu       sync.Mutex
	all      []*container // in start order
	stopping bool
	stop     chan struct{} // closed when stopping
	delay    time.Duration // before a restart; 0: firstDelay
}

// runContainers makes all containers, and starts them when every one is ready. One
// that cannot be made or started ends the boot: what was measured to run does not.
func runContainers(ctx context.Context, s *State) error {
	s.work.fleet.begin()
	if len(s.work.admit) == 0 {
		return nil
	}
	err := s.makeContainers(ctx)
	if err != nil {
		err = errors.Join(err, s.dropContainers())
	}
	if err != nil && s.work.fleet.ends() {
		<-ctx.Done() // whoever stops the guest ends it: no stage comes behind this one
	}
	if err != nil {
		return err
	}
	for _, c := range s.work.fleet.all {
		s.background(c.supervise)
	}
	return nil
}

func (s *State) makeContainers(ctx context.Context) error {
	if err := s.enableControllers(); err != nil {
		return err
	}
	net, err := s.work.site.containers(s.work.uplink, s.logf)
	if err != nil {
		return err
	}
	r := &runner.Runner{
		Crun: s.path(config.Runtime), Dir: s.path(containerDir), Processes: s.processes,
		Network: net, Logf: s.logf,
	}
	for _, d := range cdiDirs {
		r.CDI = append(r.CDI, s.path(d))
	}
	for i, w := range s.work.admit {
		if s.work.fleet.ends() {
			return errStopping
		}
		c, err := s.newContainer(i, r)
		if err == nil {
			err = c.create(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.Process.Name, err)
		}
		s.work.fleet.add(c)
	}
	for _, c := range s.work.fleet.all {
		if s.work.fleet.ends() {
			return errStopping
		}
		if err := c.start(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.w.Process.Name, err)
		}
	}
	return nil
}

// dropContainers takes away what was made before one could not be, or before the
// guest stops. Only a debug build goes on after that.
func (s *State) dropContainers() error {
	var errs []error
	for _, c := range s.work.fleet.all {
		errs = append(errs, c.drop(evidence.Failed))
		close(c.over)
	}
	return errors.Join(errs...)
}

// controllers of cgroup v2 that bound containers. Those that a kernel lacks it does
// not name.
var controllers = []string{"cpu", "io", "memory", "pids"}

const cgroupRoot = "/sys/fs/cgroup"

// enableControllers hands the controllers down to the groups of containers. The
// agent stays in the root, where that is allowed.
// Linux, Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint".
func (s *State) enableControllers() error {
	b, err := s.readFile(cgroupRoot+"/cgroup.controllers", 4096)
	if err != nil {
		return err
	}
	has := strings.Fields(string(b))
	for _, c := range controllers {
		if !slices.Contains(has, c) {
			continue
		}
		if err := s.writeSetting(cgroupRoot+"/cgroup.subtree_control", "+"+c); err != nil {
			return fmt.Errorf("controller %s: %w", c, err)
		}
	}
	return nil
}

// pause waits, and tells whether the guest runs on.
func (s *State) pause(d time.Duration) bool {
	select {
	case <-s.work.fleet.stop:
		return false
	case <-time.After(d):
		return true
	}
}

func (f *fleet) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop = make(chan struct{})
}

func (f *fleet) add(c *container) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, c)
}

// ends tells whether the guest stops.
func (f *fleet) ends() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stopping
}

// stopContainers asks all containers to end, by the signal that each image wants,
// and ends those that have not after the grace.
func (s *State) stopContainers(grace time.Duration) {
	f := &s.work.fleet
	f.mu.Lock()
	if f.stopping {
		f.mu.Unlock()
		return
	}
	f.stopping = true
	if f.stop != nil { // else none was begun, and none will be made
		close(f.stop)
	}
	all := slices.Clone(f.all)
	f.mu.Unlock()
	late := time.After(grace)
	for _, c := range all {
		s.killContainer(c, syscall.Signal(c.w.Effective.Signal()))
	}
	for _, c := range all {
		select {
		case <-c.over:
			continue
		case <-late:
		}
		break
	}
	for _, c := range all {
		s.killContainer(c, syscall.SIGKILL)
	}
}

func (s *State) killContainer(c *container, sig syscall.Signal) {
	if err := c.kill(sig); err != nil {
		s.logf("%s: %v", c.w.Process.Name, err)
	}
}

// states returns what a report says of containers.
func (f *fleet) states() (out []evidence.Workload) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.all {
		c.mu.Lock()
		w := evidence.Workload{Name: c.w.Process.Name, Image: c.w.Process.Image, Digest: c.w.Manifest, PID: c.pid, State: c.state}
		if c.addr.IsValid() {
			w.Address = c.addr.String()
		}
		c.mu.Unlock()
		out = append(out, w)
	}
	return out
}
