package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Bounds of what a lease may say.
const (
	maxRoutes = 64
	maxDNS    = 3           // resolv.conf(5), MAXNS
	maxSearch = 6           // as C libraries before glibc 2.26 have it
	minMTU    = 576         // bytes; RFC 2132, section 5.1 has 68, with which little works
	minIPv6   = 1280        // bytes; RFC 8200, section 5: below it the kernel has no IPv6 on a link
	minRenew  = time.Second // at the least between two requests
	minLease  = 10 * time.Second
	forever   = 0xffffffff * time.Second // RFC 2131, section 3.3; RFC 8415, section 7.7
)

// A lease is what the agent believes of an answer by DHCP.
type lease struct {
	address netip.Prefix
	routes  []route
	dns     []netip.Addr
	search  []string
	mtu     int // bytes; 0: not said

	// Since the answer: when it is to be renewed, when it is over. 0: never.
	renew, expire time.Duration

	ignored []string // what it said besides, and why that was left out
}

// errLease is the cause of every error of readLease.
var errLease = errors.New("lease")

// readLease takes from an acknowledgement what the guest needs. Without a sound
// address it is an error; the rest is left out where it is unsound.
func readLease(m *dhcpv4.DHCPv4) (*lease, error) {
	l := &lease{}
	a, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
	if !ok || !ownable(a) {
		return nil, fmt.Errorf("%w: address %s: not one for a machine", errLease, m.YourIPAddr)
	}
	ones, bits := m.SubnetMask().Size()
	if bits != 32 || ones < 8 {
		return nil, fmt.Errorf("%w: subnet mask %q: want one of 8 to 32 bits", errLease, m.SubnetMask())
	}
	l.address = netip.PrefixFrom(a, ones)
	l.readRoutes(m)
	for _, ip := range m.DNS() {
		l.addDNS(ip)
	}
	for _, d := range searches(m) {
		l.addSearch(d)
	}
	l.readMTU(m)
	l.readTimes(m)
	return l, nil
}

// readRoutes takes the routes of option 121 or, without it, the router.
// RFC 3442, "DHCP Client Behavior".
func (l *lease) readRoutes(m *dhcpv4.DHCPv4) {
	routes := m.ClasslessStaticRoute()
	if len(routes) == 0 {
		for _, ip := range m.Router() {
			if via, ok := netip.AddrFromSlice(ip.To4()); ok && unicast(via) && via != l.address.Addr() {
				l.routes = append(l.routes, route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), via})
				return
			}
			l.ignore("router %s: not another machine", ip)
		}
		return
	}
	for _, r := range routes {
		if len(l.routes) == maxRoutes {
			l.ignore("%d routes: more than %d", len(routes), maxRoutes)
			break
		}
		l.addRoute(r)
	}
	slices.SortFunc(l.routes, bigger)
	l.routes = slices.CompactFunc(l.routes, func(a, b route) bool { return a.to == b.to })
}

func (l *lease) addRoute(r *dhcpv4.Route) {
	to, ok1 := netip.AddrFromSlice(r.Dest.IP.To4())
	ones, _ := r.Dest.Mask.Size()
	via, ok2 := netip.AddrFromSlice(r.Router.To4())
	p := netip.PrefixFrom(to, ones).Masked()
	switch {
	case !ok1 || !ok2 || ones != 0 && !unicast(to):
		l.ignore("%s: not to other machines", r) // it says "route" itself
	case via.IsUnspecified(): // over the link
		l.routes = append(l.routes, route{to: p})
	case !unicast(via) || via == l.address.Addr():
		l.ignore("%s: by no other machine", r)
	default:
		l.routes = append(l.routes, route{p, via})
	}
}

func (l *lease) addDNS(ip net.IP) {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	switch {
	case !ok || !unicast(a) || a.Is6() && a.IsLinkLocalUnicast(): // the latter is another one in each container
		l.ignore("name server %s: not another machine", ip)
	case len(l.dns) == maxDNS:
		l.ignore("name server %s: more than %d", ip, maxDNS)
	case !slices.Contains(l.dns, a):
		l.dns = append(l.dns, a)
	}
}

// searches are option 119 or, without it, option 15.
func searches(m *dhcpv4.DHCPv4) []string {
	if s := m.DomainSearch(); s != nil {
		return s.Labels
	}
	if d := m.DomainName(); d != "" {
		return []string{d}
	}
	return nil
}

func (l *lease) addSearch(d string) {
	d = strings.ToLower(strings.TrimSuffix(strings.TrimRight(d, "\x00"), ".")) // some servers end text with a NUL
	switch {
	case !domain(d):
		l.ignore("domain %q: not a name", d)
	case len(l.search) == maxSearch:
		l.ignore("domain %s: more than %d", d, maxSearch)
	case !slices.Contains(l.search, d):
		l.search = append(l.search, d)
	}
}

// domain tells whether s is the name of a domain, in lower case, that can stand in
// resolv.conf. RFC 1035, section 2.3.1, with the underscore that people use.
func domain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// readMTU takes option 26.
func (l *lease) readMTU(m *dhcpv4.DHCPv4) {
	b := m.Options.Get(dhcpv4.OptionInterfaceMTU)
	if len(b) == 0 {
		return
	}
	if len(b) != 2 || binary.BigEndian.Uint16(b) < minMTU {
		l.ignore("MTU %x: want two bytes of at least %d", b, minMTU)
		return
	}
	l.mtu = int(binary.BigEndian.Uint16(b))
}

// readTimes takes options 51 and 58. A server that is silent about either has the
// default of RFC 2131, section 4.4.5.
func (l *lease) readTimes(m *dhcpv4.DHCPv4) {
	l.expire = m.IPAddressLeaseTime(time.Hour)
	l.renew = m.IPAddressRenewalTime(0)
	l.checkTimes()
}

// checkTimes fills in what was not said, and keeps a server from being asked
// without pause.
func (l *lease) checkTimes() {
	if l.expire == forever {
		l.renew, l.expire = 0, 0
		return
	}
	if l.expire < minLease {
		l.ignore("lease of %s: less than %s", l.expire, minLease)
		l.expire = minLease
	}
	if l.renew < minRenew || l.renew >= l.expire {
		l.renew = l.expire / 2
	}
}

// within refuses a lease whose address or routes are in one of networks.
func (l *lease) within(networks []netip.Prefix) error {
	for _, n := range networks {
		if l.address.Overlaps(n) {
			return fmt.Errorf("%w: address %s: %s is the guest's own", errLease, l.address, n)
		}
		for _, r := range l.routes {
			if r.to.Bits() >= n.Bits() && r.to.Overlaps(n) {
				return fmt.Errorf("%w: route %s: %s is the guest's own", errLease, r, n)
			}
		}
	}
	return nil
}

// ignore notes what was left out. Text of the host is quoted, and cut.
func (l *lease) ignore(format string, args ...any) {
	if len(l.ignored) == 8 {
		return
	}
	s := strings.ToValidUTF8(fmt.Sprintf(format, args...), "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	if len(s) > 120 {
		s = s[:120] + "..."
	}
	l.ignored = append(l.ignored, s)
}
