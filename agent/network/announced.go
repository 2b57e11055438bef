package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/rfc1035label"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What the kernel keeps of the last advertisement of a router. Linux,
// net/if_inet6.h.
const (
	advertised = 0x20 // IF_RA_RCVD
	managed    = 0x40 // IF_RA_MANAGED: addresses are had by DHCPv6
	otherwise  = 0x80 // IF_RA_OTHERCONF: name servers are
)

// A listener hears what the kernel does not use of routers' advertisements.
type listener struct {
	socket *nl.NetlinkSocket
	index  int // of the interface
}

func listen(index int) (*listener, error) {
	// The kernel also says when there is a flag or an address to look at.
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_ND_USEROPT, unix.RTNLGRP_IPV6_IFINFO, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, fmt.Errorf("listen to routers: %w", err)
	}
	return &listener{s, index}, nil
}

// settle is how long it may take until all is heard that was said at one time.
const settle = 100 * time.Millisecond

// hear waits until something is said, and adds to a lease what concerns it. With a
// time it waits no longer than that, and tells whether anything was said.
func (n *listener) hear(l *lease, within time.Duration) (heard bool, err error) {
	wait := unix.NsecToTimeval(int64(within))
	if err := n.socket.SetReceiveTimeout(&wait); err != nil {
		return false, fmt.Errorf("listen to routers: %w", err)
	}
	messages, from, err := n.socket.Receive()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) { // the last: too much was said
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("listen to routers: %w", err)
	}
	if from.Pid != 0 {
		return true, nil // no message of the kernel
	}
	for _, m := range messages {
		if m.Header.Type == unix.RTM_NEWNDUSEROPT {
			l.readOption(m.Data, n.index)
		}
	}
	return true, nil
}

// rest adds what was said besides, a few messages at the most.
func (n *listener) rest(l *lease) {
	for range 16 {
		if heard, err := n.hear(l, settle); !heard || err != nil {
			return
		}
	}
}

// Options of an advertisement. RFC 8106, sections 5.1 and 5.2.
const (
	optionDNS    = 25
	optionSearch = 31
)

// userOption is what the kernel puts before an option: family, a byte, the option's
// size, the interface, type and code of the ICMPv6 message, six bytes. Linux,
// struct nduseroptmsg.
const userOption = 16

// readOption takes name servers and domains from one message.
func (l *lease) readOption(b []byte, index int) {
	if len(b) < userOption+8 || binary.NativeEndian.Uint32(b[4:]) != uint32(index) {
		return
	}
	kind, size := b[userOption], 8*int(b[userOption+1])
	b = b[userOption:]
	if size < 8 || size > len(b) || binary.BigEndian.Uint32(b[4:]) == 0 { // a lifetime of zero takes back
		return
	}
	b = b[8:size]
	switch kind {
	case optionDNS:
		for ; len(b) >= 16; b = b[16:] {
			l.addDNS(b[:16])
		}
	case optionSearch:
		s, err := rfc1035label.FromBytes(b)
		if err != nil {
			l.ignore("domains %x: %v", b, err)
			return
		}
		for _, d := range s.Labels {
			if d != "" { // what fills the option
				l.addSearch(d)
			}
		}
	}
}

// follow does what routers announce, as far as the kernel leaves it to programs. It
// says once that there is an address of IPv6, and which name servers came with it.
func (u *Uplink) follow(ctx context.Context, n *listener, said chan<- *lease) {
	defer n.socket.Close()
	defer context.AfterFunc(ctx, n.socket.Close)() // ends the waiting
	names := &lease{}
	asked := false
	for within := settle; ; within = 0 { // at first it may all be there
		_, err := n.hear(names, within)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			u.logf("network: %s: %v", u.Name, err)
			return
		}
		flags, err := routerFlags(u.link.Attrs().Index)
		if err != nil || flags&advertised == 0 {
			continue
		}
		if !asked {
			asked = true
			u.askRouters(ctx, flags, names)
		}
		if hasGlobal(u.link) {
			n.rest(names)
			said <- names
			return
		}
	}
}

// onlyIPv6 is how long a network with IPv6 may be silent by DHCP until the guest
// goes on without.
const onlyIPv6 = 10 * time.Second

// askRouters asks by DHCPv6 for what routers say is had by that.
func (u *Uplink) askRouters(ctx context.Context, flags uint32, names *lease) {
	first, cancel := context.WithTimeout(ctx, onlyIPv6)
	defer cancel()
	switch {
	case flags&managed != 0:
		b, err := u.acquire(first, u.ask6, nil)
		if err != nil {
			u.logf("network: %s: routers announce DHCPv6, but no server gives a lease", u.Name)
			return
		}
		names.add(b.lease)
		u.background(func() { u.keep(ctx, b, u.ask6) })
	case flags&otherwise != 0:
		l, err := u.names6(first)
		if err != nil {
			u.logf("network: %s: %v", u.Name, err)
			return
		}
		names.add(l)
	}
}

// add takes another lease's name servers and domains.
func (l *lease) add(other *lease) {
	for _, a := range other.dns {
		l.addDNS(a.AsSlice())
	}
	for _, d := range other.search {
		l.addSearch(d)
	}
}

// routerFlags are the kernel's flags of an interface. They are in the attribute
// IFLA_INET6_FLAGS of the family's part of a link. Linux, linux/if_link.h.
func routerFlags(index int) (uint32, error) {
	r := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index = int32(index)
	r.AddData(m)
	answers, err := r.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil || len(answers) != 1 || len(answers[0]) < unix.SizeofIfInfomsg {
		return 0, fmt.Errorf("link %d: %d answers: %w", index, len(answers), err)
	}
	b := answers[0][unix.SizeofIfInfomsg:]
	for _, kind := range []uint16{unix.IFLA_AF_SPEC, unix.AF_INET6, unix.IFLA_INET6_FLAGS} {
		if b, err = attribute(b, kind); err != nil {
			return 0, fmt.Errorf("link %d: %w", index, err)
		}
	}
	if len(b) < 4 {
		return 0, fmt.Errorf("link %d: flags of %d bytes", index, len(b))
	}
	return binary.NativeEndian.Uint32(b), nil
}

// attribute finds one in a list.
func attribute(b []byte, kind uint16) ([]byte, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if a.Attr.Type&^(syscall.NLA_F_NESTED) == kind {
			return a.Value, nil
		}
	}
	return nil, fmt.Errorf("no attribute %d", kind)
}
