// Package network connects a guest with the outside, and containers with the
// guest.
//
// The host is the network: it sees and forges every packet that is not inside a
// TLS connection, and it may stop them all. What a lease or a router's
// advertisement says is therefore hostile text. It decides by which addresses the
// guest speaks and nothing else: no name of the guest, no file, no program and no
// time is taken from it.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/vishvananda/netlink"
)

// Bounds of what Up waits for.
const (
	linkTime    = 30 * time.Second // until the interface is there: its driver was loaded before
	carrierTime = 5 * time.Second  // until a link that is up has a peer
	upTime      = 90 * time.Second // until it has an address
)

// An Uplink is the guest's one interface to the outside. Its fields say what was
// so when Up returned; leases that follow may change the interface, not them.
type Uplink struct {
	Name      string
	Addresses []netip.Prefix
	DNS       []netip.Addr
	Search    []string // domains in which short names are looked up
	MTU       int      // bytes

	link   netlink.Link
	ownMTU bool // the configuration says it
	logf   func(string, ...any)
	stop   context.CancelFunc // ends what keeps leases
	done   sync.WaitGroup

	mu       sync.Mutex     // while a lease is judged and used
	reserved []netip.Prefix // of containers: no lease may be there
}

// Up sets up the one network interface that the machine has and returns once the
// guest has an address. Leases are then renewed in the background until Close.
func Up(ctx context.Context, c *config.Network, logf func(string, ...any)) (*Uplink, error) {
	return up(ctx, c, logf, physical)
}

// up is Up for an interface that is chosen by another mark.
func up(ctx context.Context, c *config.Network, logf func(string, ...any), is func(netlink.Link) bool) (*Uplink, error) {
	wait, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	link, err := waitLink(wait, is)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	u := &Uplink{Name: link.Attrs().Name, link: link, logf: logf}
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	u.stop = stop
	if err := u.configure(wait, keep, c); err != nil {
		stop()
		u.done.Wait()
		return nil, fmt.Errorf("network: %s: %w", u.Name, err)
	}
	return u, nil
}

// configure does what c says. keep lasts until Close.
func (u *Uplink) configure(wait, keep context.Context, c *config.Network) error {
	if err := u.set(c); err != nil {
		return err
	}
	if u.ownMTU = c.MTU != 0; u.ownMTU {
		if err := netlink.LinkSetMTU(u.link, c.MTU); err != nil {
			return fmt.Errorf("MTU %d: %w", c.MTU, err)
		}
	}
	configure := u.static
	if c.DHCP {
		configure = u.dynamic
	}
	if err := configure(wait, keep, c); err != nil {
		return err
	}
	return u.look(c)
}

// Background starts what goes on while the guest runs. A program that must outlive a
// panic there sets it before Up.
var Background = func(f func()) { go f() }

// background runs f until Close at the latest.
func (u *Uplink) background(f func()) {
	u.done.Add(1)
	Background(func() {
		defer u.done.Done()
		f()
	})
}

// Close ends the renewal of leases. The interface stays as it is.
func (u *Uplink) Close() error {
	u.stop()
	u.done.Wait()
	return nil
}

// ResolvConf is the content of resolv.conf(5), also for containers.
func (u *Uplink) ResolvConf() []byte {
	var b strings.Builder
	if len(u.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(u.Search, " "))
	}
	for _, a := range u.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return []byte(b.String())
}

// physical tells whether a device is behind a link. A function of another device,
// which Azure puts beside a machine's network card, belongs to that one.
func physical(l netlink.Link) bool {
	a := l.Attrs()
	return a.EncapType == "ether" && a.ParentDevBus != "" && a.MasterIndex == 0
}

// waitLink returns the one link for which is holds, as soon as it is there. With
// two it would be the host that chooses which networks the guest is in.
func waitLink(ctx context.Context, is func(netlink.Link) bool) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, linkTime)
	defer cancel()
	for {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // a link came while they were listed
			return nil, fmt.Errorf("links: %w", err)
		}
		links = slices.DeleteFunc(links, func(l netlink.Link) bool { return !is(l) })
		switch {
		case len(links) > 1:
			return nil, fmt.Errorf("interfaces %s and %s: want one", links[0].Attrs().Name, links[1].Attrs().Name)
		case len(links) == 1 && err == nil:
			return links[0], nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no interface: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitCarrier waits until a link that was brought up carries packets: the kernel
// drops those that it is given before.
func waitCarrier(byIndex func(int) (netlink.Link, error), link netlink.Link) bool {
	for end := time.Now().Add(carrierTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		l, err := byIndex(link.Attrs().Index)
		if err == nil && (l.Attrs().OperState == netlink.OperUp || l.Attrs().OperState == netlink.OperUnknown) {
			return true
		}
	}
	return false
}

// static gives the interface what the configuration says.
func (u *Uplink) static(_, _ context.Context, c *config.Network) error {
	if err := netlink.LinkSetUp(u.link); err != nil {
		return err
	}
	if !waitCarrier(netlink.LinkByIndex, u.link) {
		u.logf("network: %s: no carrier in %s", u.Name, carrierTime) // there may be one later
	}
	for _, s := range c.Addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return err
		}
		if err := u.addAddress(p); err != nil {
			return err
		}
	}
	for _, s := range c.Gateways {
		via, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		if err := u.addRoute(route{to: netip.PrefixFrom(zero(via), 0), via: via}, netip.Addr{}); err != nil {
			return err
		}
	}
	return nil
}

// look fills in the fields that programs are told.
func (u *Uplink) look(c *config.Network) error {
	link, err := netlink.LinkByIndex(u.link.Attrs().Index)
	if err != nil {
		return err
	}
	u.MTU = link.Attrs().MTU
	if u.Addresses, err = addresses(u.link); err != nil {
		return err
	}
	if len(c.DNS) == 0 {
		return nil
	}
	u.DNS, u.Search = nil, nil // the measured ones are in the place of the host's
	for _, s := range c.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		u.DNS = append(u.DNS, a)
	}
	return nil
}

// A setting is a file below /proc/sys/net.
type setting struct{ file, value string }

// set hardens the interface before it is up: what a router is believed, and that
// the guest answers for its own addresses alone. Linux, networking/ip-sysctl.
func (u *Uplink) set(c *config.Network) error {
	v4, v6 := "ipv4/conf/"+u.Name+"/", "ipv6/conf/"+u.Name+"/"
	settings := []setting{
		{"ipv4/conf/all/accept_redirects", "0"}, // either of the two turns it on
		{"ipv4/conf/all/send_redirects", "0"},
		{v4 + "accept_redirects", "0"},
		{v4 + "send_redirects", "0"},
		{v4 + "accept_source_route", "0"},
		{v4 + "rp_filter", "1"},    // no packet comes from outside with an address of the inside
		{v4 + "arp_ignore", "1"},   // the addresses of containers are nobody's business
		{v4 + "arp_announce", "2"}, // the same
		{v6 + "accept_redirects", "0"},
		{v6 + "accept_source_route", "0"},
	}
	switch {
	case c.DHCP: // also of a machine that forwards
		settings = append(settings, setting{v6 + "accept_ra", "2"}, setting{v6 + "autoconf", "1"}, setting{v6 + "disable_ipv6", "0"})
	case hasIPv6(c.Addresses):
		settings = append(settings, setting{v6 + "accept_ra", "0"}, setting{v6 + "autoconf", "0"}, setting{v6 + "disable_ipv6", "0"})
	default:
		settings = append(settings, setting{v6 + "disable_ipv6", "1"})
	}
	return write(settings)
}

func hasIPv6(prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(s string) bool { return strings.Contains(s, ":") })
}

// proc is where the kernel shows its settings.
const proc = "/proc/sys/net/"

// write writes settings. A kernel without IPv6 has none of it.
func write(settings []setting) error {
	for _, s := range settings {
		f, err := os.OpenFile(proc+s.file, os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(s.file, "ipv6/") && !ipv6() {
			continue
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(s.value)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// ipv6 tells whether the kernel has it.
func ipv6() bool {
	_, err := os.Stat(proc + "ipv6")
	return err == nil
}
