package guestapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netns"
)

// Address is where containers find REST, each in its own network.
const Address = "127.0.0.1:8006"

// ListenIn listens at Address in the network of a process. It must not be the guest's
// own: there every program of the guest would be the container's.
func ListenIn(pid int) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result, 1)
	// A goroutine of its own, so that its thread may end with it.
	go func() {
		l, err := listenIn(pid)
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("network of process %d: %w", pid, r.err)
	}
	return r.l, nil
}

// listenIn moves its thread into the network, makes the socket, which stays there, and
// moves back. A thread that cannot go back stays locked, and ends with its goroutine:
// nothing else of the agent ever runs in a container's network.
func listenIn(pid int) (_ net.Listener, err error) {
	runtime.LockOSThread()
	back := false
	defer func() {
		if back {
			runtime.UnlockOSThread()
		}
	}()
	own, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer own.Close() // read only
	to, err := netns.GetFromPid(pid)
	if err != nil {
		back = true
		return nil, err
	}
	defer to.Close() // read only
	if to.Equal(own) {
		back = true
		return nil, errors.New("it is the guest's")
	}
	if err := netns.Set(to); err != nil {
		back = true
		return nil, err
	}
	l, err := listen()
	if errBack := netns.Set(own); errBack != nil {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		return nil, errors.Join(err, fmt.Errorf("back to the guest's: %w", errBack))
	}
	back = true
	return l, err
}

// listen makes the socket in the network of the calling thread.
func listen() (net.Listener, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	return c.Listen(context.Background(), "tcp4", Address)
}
