package agent

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/evidence"
	"golang.org/x/sys/unix"
)

// addPort adds a virtio-serial port, a pipe here, and returns the host's end.
func addPort(t *testing.T, s *State, device, name string) io.Reader {
	t.Helper()
	write(t, s, filepath.Join("sys/class/virtio-ports", device, "name"), name+"\n")
	mkdir(t, s, "dev")
	if err := unix.Mkfifo(s.path("dev/"+device), 0o600); err != nil {
		t.Fatal(err)
	}
	// Not blocking, so that opening does not wait for the other end.
	host, err := os.OpenFile(s.path("dev/"+device), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	return host
}

func TestFindPort(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	_, err := s.findPort("org.plinth.report")
	wantError(t, err, "org.plinth.report: no such virtio-serial port")
	for device, name := range map[string]string{"vport0p1": "org.plinth.report.", "vport0p2": "ORG.PLINTH.REPORT", "vport0p3": "", "vport1p1": "org.other"} {
		addPort(t, s, device, name)
	}
	mkdir(t, s, "sys/class/virtio-ports/vport9p9")
	_, err = s.findPort("org.plinth.report")
	wantError(t, err, "no such virtio-serial port")
	addPort(t, s, "vport2p1", "org.plinth.report")
	got, err := s.findPort("org.plinth.report")
	if want := s.path("dev/vport2p1"); err != nil || got != want {
		t.Errorf("got %q and %v, want %q", got, err, want)
	}
}

// Without the port nothing is reported and nothing is wrong.
func TestNoPort(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	addPort(t, s, "vport0p1", "org.other")
	wantError(t, sendReport(short(t), s), "")
	if s.Report.Kernel != "" || s.port != nil {
		t.Error("a report was made")
	}
}

func TestOwnPort(t *testing.T) {
	s, _ := newGuest(t, config.Config{ReportPort: "org.other"})
	host := addPort(t, s, "vport0p1", "org.other")
	wantError(t, sendReport(t.Context(), s), "")
	if _, err := evidence.ReadReport(host); err != nil {
		t.Error(err)
	}
}

// The port may come after the driver.
func TestLatePort(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	go func() {
		time.Sleep(50 * time.Millisecond)
		addPort(t, s, "vport0p1", config.ReportPort)
	}()
	wantError(t, sendReport(t.Context(), s), "")
	if s.port == nil {
		t.Error("nothing was sent")
	}
}

// A host that does not read must not hold up the guest.
func TestReportTimesOut(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	if err := s.useTPM(newFakeTPM("sha256")); err != nil {
		t.Fatal(err)
	}
	write(t, s, "sys/kernel/security/tpm0/binary_bios_measurements", strings.Repeat("x", 1<<20)) // more than a pipe takes
	addPort(t, s, "vport0p1", config.ReportPort)
	begin := time.Now()
	wantError(t, sendReport(short(t), s), "")
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	if text := s.console.(*lockedBuffer).String(); !strings.Contains(text, "report: ") || !strings.Contains(text, "i/o timeout") {
		t.Errorf("the console says %q", text)
	}
}

// A port whose device is not there, or that nobody has opened.
func TestReportFails(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	write(t, s, "sys/class/virtio-ports/vport0p1/name", config.ReportPort+"\n")
	wantError(t, sendReport(t.Context(), s), "")
	if text := s.console.(*lockedBuffer).String(); !strings.Contains(text, "no such file") {
		t.Errorf("the console says %q", text)
	}
}

func TestEventLogBound(t *testing.T) {
	s, _ := newGuest(t, config.Config{})
	b, err := s.readEventLog()
	if b != nil || err != nil {
		t.Errorf("without a log: got %d bytes and %v, want neither", len(b), err)
	}
	log := "sys/kernel/security/tpm0/binary_bios_measurements"
	write(t, s, log, "")
	if err := os.Truncate(s.path(log), evidence.MaxEventLog); err != nil {
		t.Fatal(err)
	}
	if b, err = s.readEventLog(); err != nil || len(b) != evidence.MaxEventLog {
		t.Errorf("largest log: got %d bytes and %v", len(b), err)
	}
	if err := os.Truncate(s.path(log), evidence.MaxEventLog+1); err != nil {
		t.Fatal(err)
	}
	_, err = s.readEventLog()
	wantError(t, err, "more than 8388608 bytes")

	if err := s.useTPM(newFakeTPM("sha256")); err != nil {
		t.Fatal(err)
	}
	addPort(t, s, "vport0p1", config.ReportPort)
	wantError(t, sendReport(t.Context(), s), "")
	if s.port != nil {
		t.Error("a report was sent")
	}
}
