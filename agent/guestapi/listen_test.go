package guestapi

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/workload"
)

// container starts a process in a network of its own, with loopback up or not.
func container(t *testing.T, loopback bool) int {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "not root")
	}
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is of the thread
	t.Cleanup(runtime.UnlockOSThread)
	if err := cmd.Start(); err != nil {
		testenv.Missing(t, "root", err.Error())
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	if loopback {
		ns, err := netns.GetFromPid(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		h, err := netlink.NewHandleAt(ns)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return cmd.Process.Pid
}

// dialIn connects from inside the network of a process.
func dialIn(pid int, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its network
		ns, err := netns.GetFromPid(pid)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		conn, err := net.Dial("tcp4", addr)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// Two containers have a server each, at one address; it is not there outside, and each
// has its own grant.
func TestListenIn(t *testing.T) {
	a, b := container(t, true), container(t, true)
	g := &fakeGuest{}
	first := &REST{Guest: g, Grant: workload.API{Resources: []string{"kbs:///a/"}}}
	la, err := ListenIn(a)
	if err != nil {
		t.Fatal(err)
	}
	lb, err := ListenIn(b)
	if err != nil {
		t.Fatal(err)
	}
	if la.Addr().String() != Address {
		t.Errorf("it listens at %s", la.Addr())
	}
	cancel := startAt(t, first, la)
	startAt(t, &REST{Guest: g, Grant: workload.API{Resources: []string{"kbs:///b/"}}}, lb)
	for _, tt := range []struct {
		pid  int
		path string
		want int
	}{{a, "/cdh/resource/a/t/tag", 200}, {a, "/cdh/resource/b/t/tag", 403}, {b, "/cdh/resource/a/t/tag", 403}, {b, "/cdh/resource/b/t/tag", 200}} {
		conn, err := dialIn(tt.pid, Address)
		if err != nil {
			t.Fatal(err)
		}
		if status, _, body := exchange(t, conn, get(tt.path)); status != tt.want {
			t.Errorf("%v: %d %s", tt, status, body)
		}
		conn.Close()
	}
	if conn, err := net.Dial("tcp4", Address); err == nil {
		conn.Close()
		t.Error("the guest's own network has it")
	}
	if _, err := ListenIn(a); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	// Closed, and made again.
	cancel()
	for {
		conn, err := dialIn(a, Address)
		if err != nil {
			break
		}
		conn.Close()
	}
	if la, err = ListenIn(a); err != nil {
		t.Fatal(err)
	}
	startAt(t, first, la)
	conn, err := dialIn(a, Address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if status, _, body := exchange(t, conn, get("/cdh/resource/a/t/tag")); status != 200 {
		t.Errorf("again: %d %s", status, body)
	}
}

func TestListenInRefuses(t *testing.T) {
	for _, pid := range []int{os.Getpid(), os.Getppid()} {
		if l, err := ListenIn(pid); err == nil || !strings.Contains(err.Error(), "it is the guest's") {
			t.Errorf("the guest's own: %v, %v", l, err)
		}
	}
	if l, err := ListenIn(1 << 30); err == nil {
		t.Errorf("no process: %v", l)
	}
}

// Whatever a call does, no thread that runs the agent's code is left in a container's
// network.
func TestThreadsComeBack(t *testing.T) {
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	up, down := container(t, true), container(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	for range 8 { // goroutines that are anywhere
		group.Go(func() {
			for ctx.Err() == nil {
				now, err := netns.Get()
				if err != nil {
					t.Error(err)
					return
				}
				same := now.Equal(own)
				now.Close()
				if !same {
					t.Error("a goroutine runs in a container's network")
					return
				}
				runtime.Gosched()
			}
		})
	}
	for range 200 {
		l, err := ListenIn(up)
		if err != nil {
			t.Error(err)
			break
		}
		l.Close()
		_, _ = ListenIn(down)
		_, _ = ListenIn(os.Getpid())
	}
	cancel()
	group.Wait()
}
