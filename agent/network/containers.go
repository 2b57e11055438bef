package network

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/plinth-os/plinth/workload"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside are networks for containers: the first that nothing outside is in is taken.
// RFC 1918 has the blocks that they are from.
var inside = []netip.Prefix{
	netip.MustParsePrefix("10.213.0.0/16"),
	netip.MustParsePrefix("172.29.0.0/16"),
	netip.MustParsePrefix("192.168.213.0/24"),
}

// inside6 is the same of IPv6. Nobody else is by chance in a network that was drawn
// by lot; where somebody is, containers do without.
// RFC 4193, section 3.2.
var inside6 = netip.MustParsePrefix("fd6a:29c4:5be0:6ee2::/64")

// veths is how the guest's ends of the links to containers begin, which is what
// the rules know them by.
const veths = "ct"

// Containers are the networks of a guest's containers: a link of its own from each
// to the guest, which forwards to the outside and, for published ports, back.
// Containers reach neither each other nor the guest's own ports.
type Containers struct {
	uplink *Uplink // nil: none
	logf   func(string, ...any)
	four   netip.Prefix
	six    netip.Prefix // not valid: containers have no IPv6

	mu       sync.Mutex
	slots    map[string]int       // by the container's name: one that starts again has the same address, and so what was said to it still comes
	attached map[string]*attached // by the same
}

// attached is a container that is linked to the guest.
type attached struct {
	slot  int
	link  string // the guest's end
	four  netip.Addr
	six   netip.Addr // not valid: none
	ports []workload.Port
}

// NewContainers makes the guest forward, by rules that let nothing else pass.
// Without an uplink containers have loopback alone.
func NewContainers(u *Uplink, logf func(string, ...any)) (*Containers, error) {
	c := &Containers{uplink: u, logf: logf, slots: map[string]int{}, attached: map[string]*attached{}}
	if u == nil {
		return c, nil
	}
	if err := c.reserve(); err != nil {
		return nil, fmt.Errorf("network: containers: %w", err)
	}
	forward := []setting{{"ipv4/ip_forward", "1"}}
	if c.six.IsValid() {
		forward = append(forward, setting{"ipv6/conf/all/forwarding", "1"})
	}
	// The rules are there before anything is forwarded.
	if err := c.apply(); err != nil {
		return nil, fmt.Errorf("network: containers: %w", err)
	}
	if err := write(forward); err != nil {
		return nil, fmt.Errorf("network: containers: forward: %w", err)
	}
	return c, nil
}

// reserve chooses the networks, and keeps later leases out of them.
func (c *Containers) reserve() (err error) {
	u := c.uplink
	u.mu.Lock()
	defer u.mu.Unlock()
	now, err := addresses(u.link) // leases may have changed them
	if err != nil {
		return err
	}
	if c.four, err = free(u, now); err != nil {
		return err
	}
	u.reserved = append(u.reserved, c.four)
	switch {
	case !ipv6():
	case slices.ContainsFunc(now, inside6.Overlaps):
		c.logf("network: containers: no IPv6: %s overlaps a network outside", inside6)
	default:
		c.six = inside6
		u.reserved = append(u.reserved, c.six)
	}
	return nil
}

// free chooses a network that addresses, and the uplink's routes and name servers,
// are not in.
func free(u *Uplink, addresses []netip.Prefix) (netip.Prefix, error) {
	taken := slices.Clone(addresses)
	for _, a := range u.DNS {
		taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
	}
	routes, err := netlink.RouteList(u.link, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		if bits, _ := r.Dst.Mask.Size(); bits > 0 {
			taken = append(taken, netip.PrefixFrom(a, bits))
		}
	}
	for _, p := range inside {
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("%v: each overlaps a network outside: want one that is free", inside)
}

// Attach gives the network of a process, which must be its own, loopback and a link
// to the guest as p says. It returns the container's address; none where it has
// loopback alone.
func (c *Containers) Attach(id string, pid int, p *workload.Process) (netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.attach(id, pid, p)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("network: container %s: %w", id, err)
	}
	return a, nil
}

func (c *Containers) attach(id string, pid int, p *workload.Process) (netip.Addr, error) {
	if c.attached[id] != nil {
		return netip.Addr{}, errors.New("has a network already")
	}
	if err := c.portsFree(p.Ports); err != nil {
		return netip.Addr{}, err
	}
	ns, err := openNamespace(pid)
	if err != nil {
		return netip.Addr{}, err
	}
	defer ns.Close()
	if err := ns.loopback(); err != nil {
		return netip.Addr{}, err
	}
	switch p.Network {
	case workload.NetworkNone:
		return netip.Addr{}, nil
	case workload.NetworkNAT, "":
	default:
		return netip.Addr{}, fmt.Errorf("network %q: want %s or %s", p.Network, workload.NetworkNAT, workload.NetworkNone)
	}
	if c.uplink == nil {
		if len(p.Ports) > 0 {
			c.logf("network: container %s: no uplink: its ports lead nowhere", id)
		}
		return netip.Addr{}, nil
	}
	return c.join(id, ns, p)
}

// join links a container to the guest. The rules that bound it are there before
// the link is.
func (c *Containers) join(id string, ns *namespace, p *workload.Process) (netip.Addr, error) {
	slot, err := c.slot(id)
	if err != nil {
		return netip.Addr{}, err
	}
	a := &attached{slot: slot, link: fmt.Sprintf("%s%d", veths, slot), ports: p.Ports}
	ends4 := ends(c.four, slot)
	a.four = ends4[1].Addr()
	pairs := [][2]netip.Prefix{ends4}
	if c.six.IsValid() {
		ends6 := ends(c.six, slot)
		a.six = ends6[1].Addr()
		pairs = append(pairs, ends6)
	}
	c.attached[id] = a
	if err := c.apply(); err != nil {
		delete(c.attached, id)
		return netip.Addr{}, err
	}
	if err := ns.connect(a.link, c.uplink.MTU, pairs); err != nil {
		return netip.Addr{}, errors.Join(err, c.detach(id))
	}
	return a.four, nil
}

// portsFree tells whether no other container has one of the ports of the guest.
func (c *Containers) portsFree(ports []workload.Port) error {
	taken := map[workload.Port]string{}
	for id, a := range c.attached {
		for _, p := range a.ports {
			taken[published(p)] = id
		}
	}
	for _, p := range ports {
		if p.Protocol != "" && p.Protocol != "tcp" && p.Protocol != "udp" || !port(p.Guest) || !port(p.Container) {
			return fmt.Errorf("port %s %d to %d: want tcp or udp, and 1 to 65535", p.Protocol, p.Guest, p.Container)
		}
		if id, ok := taken[published(p)]; ok {
			return fmt.Errorf("port %s %d: container %s has it", published(p).Protocol, p.Guest, id)
		}
		taken[published(p)] = "itself"
	}
	return nil
}

func port(n int) bool { return n > 0 && n < 1<<16 }

// published is what only one container can have.
func published(p workload.Port) workload.Port {
	return workload.Port{Protocol: cmp.Or(p.Protocol, "tcp"), Guest: p.Guest}
}

// slot returns the container's number: the one that it had, a fresh one, or one of
// a container that is gone.
func (c *Containers) slot(id string) (int, error) {
	if n, ok := c.slots[id]; ok {
		return n, nil
	}
	taken := map[int]string{}
	for id, n := range c.slots {
		taken[n] = id
	}
	n := len(taken) // all below are taken
	if n >= 1<<(c.four.Addr().BitLen()-c.four.Bits()-1) {
		i := slices.IndexFunc(slices.Sorted(maps.Keys(taken)), func(n int) bool { return c.attached[taken[n]] == nil })
		if i < 0 {
			return 0, fmt.Errorf("%d containers: %s holds no more", n, c.four)
		}
		n = i // the keys are 0 to n-1
		delete(c.slots, taken[n])
	}
	c.slots[id] = n
	return n, nil
}

// ends are the addresses of a link: the guest's, then the container's. RFC 3021 and
// RFC 6164 let a link have a network of two.
func ends(network netip.Prefix, slot int) (out [2]netip.Prefix) {
	b := network.Addr().AsSlice()
	low := len(b) - 4
	for i := range out {
		n := uint32(b[low])<<24 | uint32(b[low+1])<<16 | uint32(b[low+2])<<8 | uint32(b[low+3])
		n += uint32(2*slot + i)
		e := slices.Concat(b[:low], []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		a, _ := netip.AddrFromSlice(e)
		out[i] = netip.PrefixFrom(a, a.BitLen()-1)
	}
	return out
}

// Detach takes a container's link away. One that has none is no error: its network
// may have ended with its processes.
func (c *Containers) Detach(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.detach(id); err != nil {
		return fmt.Errorf("network: container %s: %w", id, err)
	}
	return nil
}

func (c *Containers) detach(id string) error {
	a := c.attached[id]
	if a == nil {
		return nil
	}
	if err := removeLink(a.link); err != nil {
		return err
	}
	delete(c.attached, id)
	return c.apply()
}

// removeLink removes a link, which may be gone.
func removeLink(name string) error {
	err := netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) && !exists(name) {
		return nil
	}
	return err
}

func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// Close detaches all containers. The rules stay, so that nothing is forwarded.
func (c *Containers) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, id := range slices.Sorted(maps.Keys(c.attached)) {
		err = errors.Join(err, c.detach(id))
	}
	return err
}
