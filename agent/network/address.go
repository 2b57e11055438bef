package network

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A route leads to a network by a gateway, or over the link alone where there is
// none.
type route struct {
	to  netip.Prefix
	via netip.Addr
}

func (r route) String() string {
	if !r.via.IsValid() {
		return r.to.String()
	}
	return fmt.Sprintf("%s by %s", r.to, r.via)
}

// addAddress gives the interface an address. Nobody else has one of IPv6 that the
// configuration says: it is there at once, without asking the network.
func (u *Uplink) addAddress(p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(u.link, a); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

// addRoute adds a route, which goes when the address from does.
func (u *Uplink) addRoute(r route, from netip.Addr) error {
	n := &netlink.Route{LinkIndex: u.link.Attrs().Index, Dst: ipNet(r.to), Scope: netlink.SCOPE_LINK}
	if r.via.IsValid() {
		// Clouds give an address without a network: the gateway is reached over the
		// link all the same.
		n.Gw, n.Scope, n.Flags = r.via.AsSlice(), netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
	}
	if from.IsValid() {
		n.Src, n.Protocol = from.AsSlice(), unix.RTPROT_DHCP
	}
	if err := netlink.RouteReplace(n); err != nil {
		return fmt.Errorf("route %s: %w", r, err)
	}
	return nil
}

// addresses are those of a link that others can reach and that are in use.
func addresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		ip = ip.Unmap()
		if ok && !(ip.Is6() && ip.IsLinkLocalUnicast()) && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			out = append(out, netip.PrefixFrom(ip, bits))
		}
	}
	return out, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// zero is the address of a family that has no bit set.
func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// unicast tells whether an address may be another machine's.
func unicast(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && (a.IsGlobalUnicast() || a.IsLinkLocalUnicast()) && !reserved4(a)
}

// reserved4 are 0.0.0.0/8 and 240.0.0.0/4. RFC 6890, tables 1 and 16.
func reserved4(a netip.Addr) bool {
	return a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240)
}

// ownable tells whether an address of a lease may be the guest's.
func ownable(a netip.Addr) bool { return unicast(a) && !a.IsLinkLocalUnicast() }

// bigger orders prefixes with the longer one last, so that a gateway is reachable
// before it is used.
func bigger(a, b route) int {
	return cmp.Or(cmp.Compare(b.to.Bits(), a.to.Bits()), a.to.Addr().Compare(b.to.Addr()))
}
