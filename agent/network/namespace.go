package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A namespace is the network of a container.
type namespace struct {
	fd     netns.NsHandle
	handle *netlink.Handle // acts inside
}

// openNamespace opens the network of a process. The guest's own is refused: a
// process that has none of its own would get loopback and addresses for the guest.
func openNamespace(pid int) (*namespace, error) {
	fd, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("network of process %d: %w", pid, err)
	}
	own, err := netns.Get()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network of the agent: %w", err), fd.Close())
	}
	defer own.Close() // read only
	if fd.Equal(own) {
		return nil, errors.Join(fmt.Errorf("process %d: its network is the guest's", pid), fd.Close())
	}
	h, err := netlink.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network of process %d: %w", pid, err), fd.Close())
	}
	return &namespace{fd, h}, nil
}

func (n *namespace) Close() {
	n.handle.Close()
	n.fd.Close() // nothing was written to it
}

func (n *namespace) loopback() error {
	lo, err := n.handle.LinkByName("lo")
	if err == nil {
		err = n.handle.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

// connect makes a link from the guest, called name there, and gives both ends their
// addresses: each pair is the guest's and the container's. By the guest's the
// container reaches everything else.
func (n *namespace) connect(name string, mtu int, pairs [][2]netip.Prefix) error {
	err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name, MTU: mtu, TxQLen: -1}, // -1: the kernel's default
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(n.fd),
		PeerMTU:       uint32(mtu),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	outer, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := write(vethSettings(name)); err != nil {
		return err
	}
	inner, err := n.handle.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("%s: eth0: %w", name, err)
	}
	if err := netlink.LinkSetUp(outer); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := n.handle.LinkSetUp(inner); err != nil {
		return fmt.Errorf("%s: eth0: %w", name, err)
	}
	for _, p := range pairs {
		if err := n.address(outer, inner, p); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if !waitCarrier(netlink.LinkByIndex, outer) || !waitCarrier(n.handle.LinkByIndex, inner) {
		return fmt.Errorf("%s: no carrier in %s", name, carrierTime)
	}
	return nil
}

// address gives both ends one pair of addresses.
func (n *namespace) address(outer, inner netlink.Link, pair [2]netip.Prefix) error {
	// Nobody else is on the link who could have them.
	flags := 0
	if pair[0].Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(outer, &netlink.Addr{IPNet: ipNet(pair[0]), Flags: flags}); err != nil {
		return fmt.Errorf("address %s: %w", pair[0], err)
	}
	if err := n.handle.AddrAdd(inner, &netlink.Addr{IPNet: ipNet(pair[1]), Flags: flags}); err != nil {
		return fmt.Errorf("eth0: address %s: %w", pair[1], err)
	}
	err := n.handle.RouteAdd(&netlink.Route{
		LinkIndex: inner.Attrs().Index,
		Dst:       ipNet(netip.PrefixFrom(zero(pair[0].Addr()), 0)),
		Gw:        pair[0].Addr().AsSlice(),
	})
	if err != nil {
		return fmt.Errorf("eth0: route by %s: %w", pair[0].Addr(), err)
	}
	return nil
}

// vethSettings are for the guest's end of a link to a container, which may send
// anything.
func vethSettings(name string) []setting {
	v4, v6 := "ipv4/conf/"+name+"/", "ipv6/conf/"+name+"/"
	return []setting{
		{v4 + "rp_filter", "1"},
		{v4 + "arp_ignore", "1"},
		{v4 + "arp_announce", "2"},
		{v4 + "accept_redirects", "0"},
		{v4 + "send_redirects", "0"},
		{v4 + "accept_source_route", "0"},
		{v6 + "accept_ra", "0"},
		{v6 + "accept_redirects", "0"},
		{v6 + "accept_source_route", "0"},
	}
}
