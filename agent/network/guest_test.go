package network

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The process's first thread stays in the guest's network: a goroutine that goes
// elsewhere must not do so on it.
func init() { runtime.LockOSThread() }

// inGuest runs the rest of the test in a process with a network of its own, as a
// guest's PID 1 has: it returns true there. Elsewhere it waits for that process.
func inGuest(t *testing.T, tools ...string) bool {
	t.Helper()
	if os.Getenv("PLINTH_TEST_GUEST") == t.Name() {
		return true
	}
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "networks need it")
	}
	testenv.Need(t, append(tools, "ip")...)
	t.Parallel()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3m")
	cmd.Env = append(os.Environ(), "PLINTH_TEST_GUEST="+t.Name(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("did not run:\n%s", out)
	}
	return false
}

// A place is a network other than the guest's: its process does nothing.
type place struct {
	t   *testing.T
	pid int
}

// newPlace makes a network. A container's belongs to a user namespace of its own.
func newPlace(t *testing.T, container bool) place {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if container {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return place{t, cmd.Process.Pid}
}

// newHost makes the outside, linked to the guest's up0 by host0.
func newHost(t *testing.T) place {
	t.Helper()
	h := newPlace(t, false)
	run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "host0", "netns", strconv.Itoa(h.pid))
	h.run("ip", "link", "set", "lo", "up")
	h.run("ip", "link", "set", "host0", "up")
	return h
}

// run runs a command in the guest.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (p place) command(args ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(p.pid), "-n"}, args...)
}

// run runs a command in the place.
func (p place) run(args ...string) string {
	p.t.Helper()
	return run(p.t, p.command(args...)...)
}

// start starts a server in the place, until the test ends or what it returns is
// called.
func (p place) start(args ...string) (stop func()) {
	p.t.Helper()
	args = p.command(args...)
	cmd := exec.Command(args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	stop = func() { cmd.Process.Kill(); cmd.Wait() }
	p.t.Cleanup(func() {
		stop()
		if p.t.Failed() {
			p.t.Logf("%q:\n%s", args, out.Bytes())
		}
	})
	return stop
}

// do calls f with the place's network.
func (p place) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPid(p.pid)
		if err == nil {
			err = netns.Set(ns)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// serve answers whoever connects to a port of the place by its name, and every
// datagram too. It says from where, as the server sees it.
func (p place) serve(name, address string) {
	p.t.Helper()
	err := p.do(func() error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		p.t.Cleanup(func() { l.Close(); u.Close() })
		go accepting(l, name)
		go echoing(u, name)
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func accepting(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		fmt.Fprintf(c, "%s to %s", name, host)
		c.Close()
	}
}

func echoing(u net.PacketConn, name string) {
	b := make([]byte, 100)
	for {
		_, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(from.String())
		u.WriteTo(fmt.Appendf(nil, "%s to %s", name, host), from)
	}
}

// ask connects from the place and returns the answer, if it comes within a time.
func (p place) ask(network, address string, within time.Duration) (answer string, err error) {
	err = p.do(func() error {
		answer, err = ask(network, address, within)
		return err
	})
	return answer, err
}

func ask(network, address string, within time.Duration) (string, error) {
	c, err := net.DialTimeout(network, address, within)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if network == "tcp" {
		c.SetDeadline(time.Now().Add(within))
		b, err := io.ReadAll(c)
		return string(b), err
	}
	b := make([]byte, 100)
	for end := time.Now().Add(within); ; {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		c.SetReadDeadline(time.Now().Add(within / 4)) // nobody repeats a datagram that was lost
		n, err := c.Read(b)
		if err == nil || time.Now().After(end) {
			return string(b[:n]), err
		}
	}
}

// How long tests wait for an answer that they want, and for one that they do not
// want: the first packet of a connection may be lost, and is sent again in a second.
const (
	answerTime  = 10 * time.Second
	nothingTime = time.Second
)

func (p place) wantAnswer(network, address, want string) {
	p.t.Helper()
	if got, err := p.ask(network, address, answerTime); err != nil || got != want {
		p.t.Errorf("%s %s: got %q, %v, want %q", network, address, got, err, want)
	}
}

// wantNothing holds that nobody answers: packets are dropped, or have no way.
func (p place) wantNothing(network, address string) {
	p.t.Helper()
	got, err := p.ask(network, address, nothingTime)
	var timeout net.Error
	silent := errors.As(err, &timeout) && timeout.Timeout()
	if err == nil || !silent && !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
		p.t.Errorf("%s %s: got %q, %v, want no answer", network, address, got, err)
	}
}

// eventually waits for what comes by itself.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %s", what, within)
		}
	}
}

func isUp0(l netlink.Link) bool { return l.Attrs().Name == "up0" }

// file writes a file for a server.
func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func prefixes[T fmt.Stringer](list []T) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, " ")
}

// askFrom is ask with an address of one's own.
func askFrom(network, from, address string) (string, error) {
	d := net.Dialer{Timeout: time.Second, LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial(network, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}
