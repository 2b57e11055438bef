package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"golang.org/x/sys/unix"
)

// How long the boot's last stage waits: for a port that the host is about to
// announce, and for a host that does not read.
const (
	portWait   = 2 * time.Second
	reportWait = 30 * time.Second
)

// sendReport tells the host what happened, if it offers a port for that. The
// boot is over: what goes wrong here is the host's loss and stops nothing.
func sendReport(ctx context.Context, s *State) error {
	name := s.Config.ReportPort
	if name == "" {
		name = config.ReportPort
	}
	port, ok := s.waitForPort(ctx, name)
	if !ok {
		return nil
	}
	err := s.completeReport()
	if err == nil {
		err = s.writeReport(ctx, port)
	}
	if err != nil {
		s.logf("report: %v", err)
	}
	return nil
}

// completeReport fills in what only the end of the boot knows.
func (s *State) completeReport() error {
	r := &s.Report
	b, err := s.readFile("/proc/sys/kernel/osrelease", 256)
	if err != nil {
		return err
	}
	r.Kernel = strings.TrimSpace(string(b))
	r.Services = s.processes.services()
	if err := s.reportWorkloads(); err != nil {
		return err
	}
	if s.TPM != nil { // else it is optional, or a debug build
		if err := s.reportTPM(); err != nil {
			return err
		}
	}
	r.Memory, err = s.memory()
	return err
}

func (s *State) reportTPM() (err error) {
	r := &s.Report
	if r.EventLog, err = s.readEventLog(); err != nil {
		return err
	}
	r.Extends = s.Extender.Done()
	r.After, err = s.TPM.Read()
	return err
}

// memory is what the agent holds, in KiB: proc(5), /proc/pid/status. What it held for
// the boot alone is given back first. 0 where nobody can tell.
func (s *State) memory() (int64, error) {
	debug.FreeOSMemory()
	b, err := s.readFile("/proc/self/status", 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib, err
		}
	}
	return 0, err
}

// writeReport writes to the port and never reads from it.
func (s *State) writeReport(ctx context.Context, port string) error {
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	f, err := os.OpenFile(port, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	s.port = f
	deadline, _ := ctx.Deadline()
	if err := f.SetWriteDeadline(deadline); err != nil {
		return err
	}
	return evidence.WriteReport(f, &s.Report)
}

// waitForPort returns the device of the virtio-serial port with that name. The
// driver learns of ports from the host, after it was loaded.
func (s *State) waitForPort(ctx context.Context, name string) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, portWait)
	defer cancel()
	for {
		port, err := s.findPort(name)
		if err == nil {
			return port, true
		}
		select {
		case <-ctx.Done():
			s.logf("report: %v", err)
			return "", false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var errNoPort = errors.New("no such virtio-serial port")

// findPort looks for a port with that name; of several the first is as good as any.
func (s *State) findPort(name string) (string, error) {
	names, err := filepath.Glob(s.path("/sys/class/virtio-ports/*/name"))
	if err != nil {
		return "", err
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err == nil && strings.TrimSuffix(string(b), "\n") == name {
			return s.path(filepath.Join("/dev", filepath.Base(filepath.Dir(n)))), nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, errNoPort)
}
