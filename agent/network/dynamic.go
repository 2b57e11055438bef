package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/vishvananda/netlink"
)

// dynamic asks the network for addresses: of IPv4 by DHCP, of IPv6 as routers
// announce. It returns with a lease, or without one where there is IPv6 alone.
func (u *Uplink) dynamic(wait, keep context.Context, _ *config.Network) error {
	var routers *listener
	if ipv6() {
		var err error
		if routers, err = listen(u.link.Attrs().Index); err != nil { // before the first can speak
			return err
		}
	}
	if err := netlink.LinkSetUp(u.link); err != nil {
		return err
	}
	four, six := make(chan *lease, 1), make(chan *lease, 1)
	trouble := make(chan error, 1)
	u.background(func() {
		b, err := u.acquire(keep, u.ask4, trouble)
		if err != nil {
			return // ended by Close
		}
		four <- b.lease
		u.keep(keep, b, u.ask4)
	})
	if routers != nil {
		u.background(func() { u.follow(keep, routers, six) })
	}
	return u.first(wait, four, six, trouble)
}

// first waits for what makes the guest reachable, and takes the name servers of
// that.
func (u *Uplink) first(wait context.Context, four, six <-chan *lease, trouble <-chan error) error {
	var last error
	var late <-chan time.Time
	var names *lease
	for {
		select {
		case l := <-four:
			u.DNS, u.Search = l.dns, l.search
			return nil
		case names = <-six:
			late = time.After(onlyIPv6)
		case <-late:
			u.DNS, u.Search = names.dns, names.search
			return nil
		case last = <-trouble:
		case <-wait.Done():
			return fmt.Errorf("no address: %w", errors.Join(wait.Err(), last))
		}
	}
}

// hasGlobal tells whether a link has an address of IPv6 that is in use.
func hasGlobal(link netlink.Link) bool {
	list, err := addresses(link)
	return err == nil && slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Is6() })
}
