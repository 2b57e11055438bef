package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/qemu"
)

// testPort is the one that testdata/probe listens on.
const testPort = "org.plinth.test"

// A guest is a boot and what came of it.
type guest struct {
	vm   *qemu.VM
	port net.Conn // to the probe

	console string // file of all the serial output

	report *evidence.Report // nil: none
	why    error            // there is none
}

// boot boots an image and waits for its report, or for the sign that there will
// be none.
func (img *verityImage) boot(t *testing.T, extra ...string) *guest {
	t.Helper()
	g := &guest{}
	dir, err := os.MkdirTemp("", "plinth-port-") // a test's own folder has commas in its name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "port")
	m := img.machine
	m.ExtraArgs = append([]string{
		"-chardev", "socket,id=test,server=on,wait=off,path=" + socket, "-device", "virtserialport,chardev=test,name=" + testPort,
	}, extra...)
	g.console = filepath.Join(dir, "console")
	console, err := os.Create(g.console)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { console.Close() }) // after the guest
	if g.vm, err = qemu.Start(t.Context(), m, qemu.Options{Timeout: cmp.Or(img.patience, 3*time.Minute), Console: console}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.vm.Close() })
	if g.port, err = net.Dial("unix", socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.port.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go g.cancelWithoutDisk(ctx, cancel)
	b, err := g.vm.Report(ctx)
	if err != nil {
		g.why = err
		return g
	}
	if g.report, err = evidence.ParseReport(b); err != nil {
		t.Fatal(err)
	}
	return g
}

// noBoot is what OVMF says last when nothing is bootable, without a shell or with
// one: it does not end.
var noBoot = regexp.MustCompile(`No bootable option or device was found|starting Boot[0-9A-F]{4} "EFI Internal Shell"`)

func (g *guest) cancelWithoutDisk(ctx context.Context, cancel func()) {
	for ctx.Err() == nil {
		if noBoot.MatchString(g.vm.ConsoleTail()) {
			cancel()
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (g *guest) close(t *testing.T) {
	t.Helper()
	if err := g.vm.Close(); err != nil {
		t.Error(err)
	}
}

// ask sends a line to the probe. Without an answer the guest is gone: its console
// says why.
func (g *guest) ask(t *testing.T, line string) string {
	t.Helper()
	if err := g.port.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, err := fmt.Fprintln(g.port, line)
	if err == nil {
		var answer string
		if answer, err = bufio.NewReader(g.port).ReadString('\n'); err == nil { // there is one answer at a time
			return strings.TrimSpace(answer)
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%s: no answer\n%s", line, g.vm.ConsoleTail())
	}
	if _, err := g.vm.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return ""
}

// fingerprint is a report without what differs from boot to boot.
func fingerprint(t *testing.T, r *evidence.Report) string {
	t.Helper()
	c := *r
	c.Stages, c.Memory = nil, 0
	c.Services = nil
	for _, s := range r.Services {
		s.PID = 0
		c.Services = append(c.Services, s)
	}
	b, err := json.Marshal(&c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (g *guest) mustReport(t *testing.T) {
	t.Helper()
	if g.report == nil {
		t.Fatalf("%v\n%s", g.why, g.vm.ConsoleTail())
	}
}

// mustEnd wants no report and one of the ways in which a guest refuses.
func (g *guest) mustEnd(t *testing.T, want string) {
	t.Helper()
	if got := g.end(); got != want {
		t.Errorf("the guest ended with %q, want %q: %v\n%s", got, want, g.why, g.vm.ConsoleTail())
	}
}

// Ways in which a guest ends that has another disk than it should.
const (
	reported  = "report"
	corrupted = "kernel: corrupted" // the kernel's message about a block
	refused   = "agent: refused"    // no disk has the root
	unbooted  = "firmware: no boot" // nothing to boot from
	unknown   = "unknown"
)

// corruption is what dm-verity says of a block, Linux drivers/md/dm-verity-target.c.
var corruption = regexp.MustCompile(`device-mapper: verity: \d+:\d+: (data|metadata) block \d+ is corrupted`)

func (g *guest) end() string {
	console := g.vm.ConsoleTail()
	switch {
	case g.report != nil:
		return reported
	case corruption.MatchString(console):
		return corrupted
	case strings.Contains(console, "plinth: FATAL: root: no disk has the root"):
		return refused
	case noBoot.MatchString(console):
		return unbooted
	}
	return unknown
}
