package network

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/workload"
	"github.com/vishvananda/netlink"
)

// A site is a guest with an uplink, the outside, and containers.
type site struct {
	guest, host place
	*Containers
	said *log
}

func newSite(t *testing.T) site {
	t.Helper()
	h := newHost(t)
	h.run("ip", "addr", "add", "192.0.2.1/24", "dev", "host0")
	h.run("ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "host0", "nodad")
	h.serve("outside", ":80")
	u, l := bringUp(t, &config.Network{
		Addresses: []string{"192.0.2.9/24", "2001:db8::9/64"},
		Gateways:  []string{"192.0.2.1", "2001:db8::1"},
	})
	c, err := NewContainers(u, l.printf)
	if err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "set", "lo", "up")
	return site{place{t, os.Getpid()}, h, c, l}
}

// container makes one and attaches it.
func (s site) container(t *testing.T, id string, p *workload.Process) (place, netip.Addr) {
	t.Helper()
	c := newPlace(t, true)
	a, err := s.Attach(id, c.pid, p)
	if err != nil {
		t.Fatal(err)
	}
	return c, a
}

func TestContainers(t *testing.T) {
	if !inGuest(t) {
		return
	}
	s := newSite(t)
	web := &workload.Process{Ports: []workload.Port{{Guest: 8080, Container: 80}, {Protocol: "udp", Guest: 8080, Container: 80}}}
	a, addressA := s.container(t, "a", web)
	b, addressB := s.container(t, "b", &workload.Process{Network: workload.NetworkNAT})
	if addressA == addressB || !addressA.IsValid() || !s.four.Contains(addressA) || !s.four.Contains(addressB) {
		t.Fatalf("addresses %s and %s in %s", addressA, addressB, s.four)
	}
	a.serve("a", ":80")
	b.serve("b", ":80")
	s.guest.serve("guest", ":81")
	for _, network := range []string{"tcp", "udp"} {
		// Out, by the guest's address; in, by a published port alone.
		a.wantAnswer(network, "192.0.2.1:80", "outside to 192.0.2.9")
		a.wantAnswer(network, "[2001:db8::1]:80", "outside to 2001:db8::9")
		b.wantAnswer(network, "192.0.2.1:80", "outside to 192.0.2.9")
		s.host.wantAnswer(network, "192.0.2.9:8080", "a to 192.0.2.1")
		s.host.wantAnswer(network, "[2001:db8::9]:8080", "a to 2001:db8::1")

		// The guest reaches its containers, they it not: by no address of its.
		s.guest.wantAnswer(network, addressB.String()+":80", "b to "+addressB.Prev().String())
		own := []string{"192.0.2.9:81", "[2001:db8::9]:81", addressA.Prev().String() + ":81", "[" + ends(s.six, 0)[0].Addr().String() + "]:81"}
		for _, address := range own {
			a.wantNothing(network, address)
		}
		s.host.wantAnswer(network, "192.0.2.9:81", "guest to 192.0.2.1") // it is there
		// Nor each other: by no address, by no port of the guest's.
		six := "[" + ends(s.six, 1)[1].Addr().String() + "]:80"
		for _, address := range []string{addressB.String() + ":80", six, "192.0.2.9:8080", addressA.Prev().String() + ":8080"} {
			a.wantNothing(network, address)
		}
		b.wantNothing(network, addressA.String()+":80")
	}
	if s.said.String() != "" {
		t.Errorf("said %q", s.said)
	}
}

// TestContainerFromOutside is a host that sends packets straight to containers.
func TestContainerFromOutside(t *testing.T) {
	if !inGuest(t) {
		return
	}
	s := newSite(t)
	a, address := s.container(t, "a", &workload.Process{Ports: []workload.Port{{Guest: 8080, Container: 80}}})
	a.serve("a", ":80")
	s.host.run("ip", "route", "add", s.four.String(), "via", "192.0.2.9")
	s.host.run("ip", "route", "add", s.six.String(), "via", "2001:db8::9")
	for _, network := range []string{"tcp", "udp"} {
		s.host.wantNothing(network, address.String()+":80")
		s.host.wantNothing(network, "["+ends(s.six, 0)[1].Addr().String()+"]:80")
	}
	// Nor in the name of a container.
	s.host.run("ip", "addr", "add", address.Next().Next().String()+"/32", "dev", "host0")
	err := s.host.do(func() error {
		_, err := askFrom("udp", address.Next().Next().String(), "192.0.2.9:8080")
		return err
	})
	if err == nil {
		t.Error("the outside spoke with a container's address")
	}
}

// TestContainerForges is a container that takes another one's address.
func TestContainerForges(t *testing.T) {
	if !inGuest(t) {
		return
	}
	s := newSite(t)
	a, _ := s.container(t, "a", &workload.Process{})
	_, addressB := s.container(t, "b", &workload.Process{})
	// At first it is honest: the count counts, and the other end of the link is known.
	before := s.received(t)
	a.wantAnswer("udp", "192.0.2.1:80", "outside to 192.0.2.9")
	if s.received(t) == before {
		t.Error("the count of packets does not count")
	}
	a.wantAnswer("udp", "[2001:db8::1]:80", "outside to 2001:db8::9")
	six := ends(s.six, 1)[1].Addr().String()
	a.run("ip", "addr", "add", addressB.String()+"/32", "dev", "eth0")
	a.run("ip", "-6", "addr", "add", six+"/128", "dev", "eth0", "nodad")
	a.run("ip", "addr", "add", "192.0.2.77/32", "dev", "eth0")
	for from, to := range map[string]string{addressB.String(): "192.0.2.1:80", "192.0.2.77": "192.0.2.1:80", six: "[2001:db8::1]:80"} {
		before := s.received(t)
		a.do(func() error {
			_, err := askFrom("udp", from, to)
			return err
		})
		if got := s.received(t); got != before {
			t.Errorf("from %s: %d packets came out", from, got-before)
		}
	}
}

// received is how many datagrams came to the outside's host.
func (s site) received(t *testing.T) (n int) {
	t.Helper()
	for _, file := range []string{"snmp", "snmp6"} {
		for line := range strings.Lines(s.host.run("cat", "/proc/net/"+file)) {
			f := strings.Fields(line)
			switch {
			case f[0] == "Udp:" && f[1] != "InDatagrams", f[0] == "Udp6InDatagrams":
				i, err := strconv.Atoi(f[1])
				if err != nil {
					t.Fatal(err)
				}
				n += i
			}
		}
	}
	return n
}

func TestContainerLife(t *testing.T) {
	if !inGuest(t) {
		return
	}
	s := newSite(t)
	web := &workload.Process{Ports: []workload.Port{{Guest: 8080, Container: 80}}}
	_, first := s.container(t, "a", web)
	c := newPlace(t, true)
	for _, tt := range []struct {
		id   string
		pid  int
		p    workload.Process
		want string
	}{
		{"a", c.pid, workload.Process{}, "network: container a: has a network already"},
		{"b", c.pid, *web, "network: container b: port tcp 8080: container a has it"},
		{"b", c.pid, workload.Process{Ports: []workload.Port{{Guest: 1, Container: 1}, {Protocol: "tcp", Guest: 1, Container: 2}}}, "port tcp 1: container itself has it"},
		{"b", c.pid, workload.Process{Ports: []workload.Port{{Guest: 0, Container: 1}}}, "want tcp or udp, and 1 to 65535"},
		{"b", c.pid, workload.Process{Ports: []workload.Port{{Protocol: "sctp", Guest: 1, Container: 1}}}, "want tcp or udp, and 1 to 65535"},
		{"b", c.pid, workload.Process{Network: "host"}, `network "host": want nat or none`},
		{"b", os.Getpid(), workload.Process{}, "its network is the guest's"},
		{"b", 1 << 30, workload.Process{}, "network of process 1073741824: no such file or directory"},
	} {
		if _, err := s.Attach(tt.id, tt.pid, &tt.p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	if err := s.Detach("a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Detach("a"); err != nil {
		t.Errorf("twice: %v", err)
	}
	if out := run(t, "ip", "-br", "link"); strings.Contains(out, veths) {
		t.Errorf("links are left:\n%s", out)
	}
	// It starts again: the same address, the same ports.
	again, second := s.container(t, "a", web)
	if first != second {
		t.Errorf("address %s, then %s", first, second)
	}
	again.serve("a", ":80")
	s.host.wantAnswer("tcp", "192.0.2.9:8080", "a to 192.0.2.1")
	// Another one never has its address.
	if _, other := s.container(t, "c", &workload.Process{}); other == first {
		t.Errorf("containers a and c have address %s", first)
	}
	if err := s.Close(); err != nil || len(s.attached) > 0 {
		t.Errorf("close: %d are attached, %v", len(s.attached), err)
	}
	if got, err := s.host.ask("tcp", "192.0.2.9:8080", answerTime); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port that is no longer published: got %q, %v", got, err)
	}
}

// TestContainerEnds is a network that went with its last process.
func TestContainerEnds(t *testing.T) {
	if !inGuest(t) {
		return
	}
	s := newSite(t)
	c := newPlace(t, true)
	if _, err := s.Attach("a", c.pid, &workload.Process{}); err != nil {
		t.Fatal(err)
	}
	if p, err := os.FindProcess(c.pid); err != nil || p.Kill() != nil {
		t.Fatal("kill")
	}
	eventually(t, 10*time.Second, "the end of the link", func() bool { return !exists(veths + "0") })
	if err := s.Detach("a"); err != nil {
		t.Error(err)
	}
}

func TestNetworkNone(t *testing.T) {
	if !inGuest(t) {
		return
	}
	s := newSite(t)
	c, a := s.container(t, "a", &workload.Process{Network: workload.NetworkNone})
	wantLoopback(t, c, a)
	none, err := NewContainers(nil, s.said.printf)
	if err != nil {
		t.Fatal(err)
	}
	c = newPlace(t, true)
	a, err = none.Attach("a", c.pid, &workload.Process{Ports: []workload.Port{{Guest: 80, Container: 80}}})
	if err != nil {
		t.Fatal(err)
	}
	wantLoopback(t, c, a)
	if !strings.Contains(s.said.String(), "container a: no uplink: its ports lead nowhere") {
		t.Errorf("said %q", s.said)
	}
	if err := none.Detach("a"); err != nil {
		t.Error(err)
	}
}

func wantLoopback(t *testing.T, c place, a netip.Addr) {
	t.Helper()
	if a.IsValid() {
		t.Errorf("address %s, want none", a)
	}
	out := c.run("ip", "-br", "link")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 1 || !strings.HasPrefix(lines[0], "lo ") {
		t.Errorf("links are\n%s, want loopback alone", out)
	}
	c.serve("itself", "127.0.0.1:80")
	c.wantAnswer("tcp", "127.0.0.1:80", "itself to 127.0.0.1")
	c.wantNothing("tcp", "192.0.2.1:80")
}

// wantRules is what nft prints for one container, in its own words.
const wantRules = `table inet plinth {
	chain sources {
		type filter hook prerouting priority raw; policy accept;
		iifname "ct0" ip saddr 10.213.0.1 accept
		iifname "ct0" ip6 saddr fd6a:29c4:5be0:6ee2::1 accept
		iifname "ct*" icmpv6 type nd-neighbor-solicit accept
		iifname "ct*" icmpv6 type nd-neighbor-advert accept
		iifname "ct*" drop
		iifname "up0" ip saddr 10.213.0.0/16 drop
		iifname "up0" ip6 saddr fd6a:29c4:5be0:6ee2::/64 drop
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ct state invalid drop
		iifname "ct*" oifname "up0" ct state new accept
		iifname "up0" ct status dnat accept
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname "ct*" ct state established,related accept
		iifname "ct*" icmpv6 type nd-neighbor-solicit accept
		iifname "ct*" icmpv6 type nd-neighbor-advert accept
		iifname "ct*" drop
	}

	chain publish {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "up0" meta nfproto ipv4 udp dport 53 dnat ip to 10.213.0.1:5353
		iifname "up0" meta nfproto ipv6 udp dport 53 dnat ip6 to [fd6a:29c4:5be0:6ee2::1]:5353
	}

	chain masquerade {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.213.0.0/16 oifname "up0" masquerade
		ip6 saddr fd6a:29c4:5be0:6ee2::/64 oifname "up0" masquerade
	}
}
`

// TestRules reads the kernel's rules with another program.
func TestRules(t *testing.T) {
	if !inGuest(t, "nft") {
		return
	}
	s := newSite(t)
	s.container(t, "a", &workload.Process{Ports: []workload.Port{{Protocol: "udp", Guest: 53, Container: 5353}}})
	if got := run(t, "nft", "list", "ruleset"); got != wantRules {
		t.Errorf("got\n%s", got)
	}
	if err := s.Detach("a"); err != nil {
		t.Fatal(err)
	}
	got := run(t, "nft", "list", "ruleset")
	if strings.Contains(got, "ct0") || strings.Contains(got, "dnat ip") || !strings.Contains(got, "policy drop") {
		t.Errorf("after the end:\n%s", got)
	}
}

// TestFree takes a network for containers that nothing else is in.
func TestFree(t *testing.T) {
	if !inGuest(t) {
		return
	}
	newHost(t)
	u, _ := bringUp(t, &config.Network{Addresses: []string{"10.1.2.3/8"}, DNS: []string{"172.29.0.53"}})
	p, err := free(u, u.Addresses)
	if err != nil || p.String() != "192.168.213.0/24" {
		t.Errorf("got %s, %v", p, err)
	}
	run(t, "ip", "route", "add", "192.168.0.0/16", "dev", "up0")
	if p, err := free(u, u.Addresses); err == nil || !strings.Contains(err.Error(), "each overlaps a network outside") {
		t.Errorf("got %s, %v, want none", p, err)
	}
}

// TestReserve keeps leases out of both networks of containers. Addresses count as
// they are, not as they were when the uplink came up.
func TestReserve(t *testing.T) {
	if !inGuest(t) {
		return
	}
	newHost(t)
	for _, tt := range []struct{ address, want, said string }{
		{"", "10.213.0.0/16 fd6a:29c4:5be0:6ee2::/64", ""},
		{"10.213.4.5/24", "172.29.0.0/16 fd6a:29c4:5be0:6ee2::/64", ""},
		{"fd6a:29c4:5be0:6ee2::9/64", "172.29.0.0/16", "network: containers: no IPv6: fd6a:29c4:5be0:6ee2::/64 overlaps a network outside\n"},
	} {
		u, l := bringUp(t, &config.Network{Addresses: []string{"192.0.2.9/24", "2001:db8::9/64"}})
		if tt.address != "" {
			run(t, "ip", "addr", "add", tt.address, "dev", "up0", "nodad")
		}
		c, err := NewContainers(u, l.printf)
		if err != nil {
			t.Fatal(err)
		}
		if got := prefixes(u.reserved); got != tt.want || c.six.IsValid() != (tt.said == "") || l.String() != tt.said {
			t.Errorf("%s: reserved %s, said %q, want %s, %q", tt.address, got, l, tt.want, tt.said)
		}
	}
}

func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		network string
		slot    int
		want    string
	}{
		{"10.213.0.0/16", 0, "10.213.0.0/31 10.213.0.1/31"},
		{"10.213.0.0/16", 128, "10.213.1.0/31 10.213.1.1/31"},
		{"10.213.0.0/16", 32767, "10.213.255.254/31 10.213.255.255/31"},
		{"192.168.213.0/24", 127, "192.168.213.254/31 192.168.213.255/31"},
		{"fd00::/64", 200, "fd00::190/127 fd00::191/127"},
	} {
		e := ends(netip.MustParsePrefix(tt.network), tt.slot)
		if got := prefixes(e[:]); got != tt.want {
			t.Errorf("%s, %d: got %s, want %s", tt.network, tt.slot, got, tt.want)
		}
	}
}

// TestSlots fills the smallest network.
func TestSlots(t *testing.T) {
	c := &Containers{four: netip.MustParsePrefix("192.168.213.0/24"), slots: map[string]int{}, attached: map[string]*attached{}}
	for i := range 128 {
		id := strconv.Itoa(i)
		n, err := c.slot(id)
		if err != nil || n != i {
			t.Fatalf("container %d has slot %d, %v", i, n, err)
		}
		c.attached[id] = &attached{slot: n}
	}
	if _, err := c.slot("one more"); err == nil || !strings.Contains(err.Error(), "128 containers: 192.168.213.0/24 holds no more") {
		t.Errorf("got %v", err)
	}
	delete(c.attached, "77")
	if n, err := c.slot("77"); err != nil || n != 77 {
		t.Errorf("the same again: slot %d, %v", n, err)
	}
	if n, err := c.slot("another"); err != nil || n != 77 {
		t.Errorf("in the place of one that is gone: slot %d, %v", n, err)
	}
	if _, ok := c.slots["77"]; ok {
		t.Error("two have one slot")
	}
}

// TestReserved refuses a lease in the containers' network.
func TestReserved(t *testing.T) {
	networks := []netip.Prefix{netip.MustParsePrefix("10.213.0.0/16")}
	for _, tt := range []struct {
		name, address, route string
		ok                   bool
	}{
		{"elsewhere", "192.0.2.9/24", "0.0.0.0/0", true},
		{"beside", "192.0.2.9/24", "10.0.0.0/8", true}, // a link to a container is the better way
		{"inside", "10.213.7.1/24", "0.0.0.0/0", false},
		{"around", "10.1.0.1/8", "0.0.0.0/0", false},
		{"a container's", "192.0.2.9/24", "10.213.0.1/32", false},
		{"all of them", "192.0.2.9/24", "10.213.0.0/16", false},
	} {
		l := lease{address: netip.MustParsePrefix(tt.address), routes: []route{{to: netip.MustParsePrefix(tt.route)}}}
		if err := l.within(networks); (err == nil) != tt.ok {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}

// TestGuestOwnNetwork needs no more than a process: the refusal is before anything
// is changed.
func TestGuestOwnNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "networks need it")
	}
	if ns, err := openNamespace(os.Getpid()); err == nil {
		ns.Close()
		t.Error("opened")
	}
	if _, err := netlink.LinkByName("lo"); err != nil {
		t.Error(err)
	}
}
