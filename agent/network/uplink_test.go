package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/vishvananda/netlink"
)

// log collects what is said.
type log struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *log) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.b, format+"\n", args...)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func bringUp(t *testing.T, c *config.Network) (*Uplink, *log) {
	t.Helper()
	l := &log{}
	u, err := up(t.Context(), c, l.printf, isUp0)
	if err != nil {
		t.Fatalf("%v\n%s", err, l)
	}
	t.Cleanup(func() { u.Close() })
	return u, l
}

func TestStatic(t *testing.T) {
	if !inGuest(t) {
		return
	}
	h := newHost(t)
	h.run("ip", "addr", "add", "192.0.2.1/24", "dev", "host0")
	h.run("ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "host0", "nodad")
	h.run("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	h.serve("outside", ":80")
	u, _ := bringUp(t, &config.Network{
		Addresses: []string{"192.0.2.9/24", "2001:db8::9/64"},
		Gateways:  []string{"192.0.2.1", "2001:db8::1"},
		DNS:       []string{"192.0.2.53", "2001:db8::53"},
		MTU:       1400,
	})
	if got, want := prefixes(u.Addresses), "192.0.2.9/24 2001:db8::9/64"; got != want {
		t.Errorf("addresses %s, want %s", got, want)
	}
	if u.MTU != 1400 || u.Name != "up0" {
		t.Errorf("%s has MTU %d", u.Name, u.MTU)
	}
	if got, want := string(u.ResolvConf()), "nameserver 192.0.2.53\nnameserver 2001:db8::53\n"; got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
	guest := place{t, os.Getpid()}
	guest.wantAnswer("tcp", "192.0.2.1:80", "outside to 192.0.2.9")
	guest.wantAnswer("tcp", "198.51.100.1:80", "outside to 192.0.2.9") // by the gateway
	guest.wantAnswer("tcp", "[2001:db8::1]:80", "outside to 2001:db8::9")
}

// TestStaticGatewayElsewhere is what some clouds do: the gateway is in no network
// of the guest's.
func TestStaticGatewayElsewhere(t *testing.T) {
	if !inGuest(t) {
		return
	}
	h := newHost(t)
	h.run("ip", "addr", "add", "198.51.100.1/32", "dev", "host0")
	h.run("ip", "route", "add", "192.0.2.9/32", "dev", "host0")
	h.serve("outside", ":80")
	bringUp(t, &config.Network{Addresses: []string{"192.0.2.9/32"}, Gateways: []string{"198.51.100.1"}})
	place{t, os.Getpid()}.wantAnswer("tcp", "198.51.100.1:80", "outside to 192.0.2.9")
	if six, err := netlink.AddrList(linkUp0(t), netlink.FAMILY_V6); err != nil || len(six) > 0 {
		t.Errorf("IPv6 addresses %v, %v: the configuration has none", six, err)
	}
}

func linkUp0(t *testing.T) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSettings(t *testing.T) {
	if !inGuest(t) {
		return
	}
	newHost(t)
	bringUp(t, &config.Network{Addresses: []string{"192.0.2.9/24", "2001:db8::9/64"}})
	for file, want := range map[string]string{
		"ipv4/conf/all/accept_redirects": "0",
		"ipv4/conf/all/send_redirects":   "0",
		"ipv4/conf/up0/accept_redirects": "0",
		"ipv4/conf/up0/send_redirects":   "0",
		"ipv4/conf/up0/rp_filter":        "1",
		"ipv4/conf/up0/arp_ignore":       "1",
		"ipv6/conf/up0/accept_ra":        "0",
		"ipv6/conf/up0/accept_redirects": "0",
	} {
		if b, err := os.ReadFile(proc + file); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s is %q, %v, want %s", file, b, err, want)
		}
	}
}

func TestWaitLink(t *testing.T) {
	if !inGuest(t) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := up(ctx, &config.Network{DHCP: true}, t.Logf, isUp0); err == nil || !strings.Contains(err.Error(), "network: no interface: context deadline exceeded") {
		t.Errorf("no interface: got %v", err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		run(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "x0")
	}()
	if l, err := waitLink(t.Context(), isUp0); err != nil || l.Attrs().Name != "up0" {
		t.Errorf("one that comes late: got %v, %v", l, err)
	}
	run(t, "ip", "link", "add", "up1", "type", "veth", "peer", "name", "x1")
	both := func(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Name, "up") }
	if _, err := waitLink(t.Context(), both); err == nil || err.Error() != "interfaces up0 and up1: want one" {
		t.Errorf("two: got %v", err)
	}
}

func TestPhysical(t *testing.T) {
	for _, tt := range []struct {
		name string
		a    netlink.LinkAttrs
		want bool
	}{
		{"virtio", netlink.LinkAttrs{EncapType: "ether", ParentDevBus: "virtio"}, true},
		{"loopback", netlink.LinkAttrs{EncapType: "loopback"}, false},
		{"veth", netlink.LinkAttrs{EncapType: "ether"}, false},
		{"function of another", netlink.LinkAttrs{EncapType: "ether", ParentDevBus: "pci", MasterIndex: 2}, false},
	} {
		if got := physical(&netlink.Dummy{LinkAttrs: tt.a}); got != tt.want {
			t.Errorf("%s: got %v", tt.name, got)
		}
	}
}

const dnsmasqNowhere = "--conf-file=/dev/null --no-daemon --no-resolv --no-hosts --log-dhcp --pid-file --dhcp-leasefile=/dev/null --user=root --bind-interfaces"

func dnsmasq(h place, options ...string) (stop func()) {
	h.t.Helper()
	return h.start(append(append([]string{"dnsmasq"}, strings.Fields(dnsmasqNowhere)...), options...)...)
}

func TestDHCP(t *testing.T) {
	if !inGuest(t, "dnsmasq") {
		return
	}
	h := newHost(t)
	h.run("ip", "addr", "add", "192.0.2.1/24", "dev", "host0")
	h.run("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	h.serve("outside", ":80")
	dnsmasq(h, "--interface=host0", "--port=0", "--dhcp-range=192.0.2.50,192.0.2.50,255.255.255.0,2m",
		"--dhcp-option=option:dns-server,192.0.2.53,192.0.2.54", "--dhcp-option=option:mtu,1380",
		"--dhcp-option=option:domain-search,example.org,corp.example.org",
		"--dhcp-option=option:classless-static-route,0.0.0.0/0,192.0.2.1,203.0.113.0/24,192.0.2.2")
	u, said := bringUp(t, &config.Network{DHCP: true})
	if got, want := prefixes(u.Addresses), "192.0.2.50/24"; got != want {
		t.Errorf("addresses %s, want %s", got, want)
	}
	if u.MTU != 1380 {
		t.Errorf("MTU %d, want 1380", u.MTU)
	}
	if got, want := string(u.ResolvConf()), "search example.org corp.example.org\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n"; got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
	routes := run(t, "ip", "-4", "route", "show", "dev", "up0")
	for _, want := range []string{"default via 192.0.2.1 proto dhcp src 192.0.2.50 ", "203.0.113.0/24 via 192.0.2.2 proto dhcp src 192.0.2.50 "} {
		if !strings.Contains(routes, want) {
			t.Errorf("routes are\n%s, want %q", routes, want)
		}
	}
	place{t, os.Getpid()}.wantAnswer("tcp", "198.51.100.1:80", "outside to 192.0.2.50")
	if said.String() != "" {
		t.Errorf("said %q", said)
	}
}

// TestMeasuredBeforeHost holds that what the configuration says is in the place of
// what the host does.
func TestMeasuredBeforeHost(t *testing.T) {
	if !inGuest(t, "dnsmasq") {
		return
	}
	h := newHost(t)
	h.run("ip", "addr", "add", "192.0.2.1/24", "dev", "host0")
	dnsmasq(h, "--interface=host0", "--port=0", "--dhcp-range=192.0.2.50,192.0.2.50,255.255.255.0,2m",
		"--dhcp-option=option:dns-server,192.0.2.53", "--dhcp-option=option:mtu,1380", "--dhcp-option=option:domain-search,example.org")
	u, _ := bringUp(t, &config.Network{DHCP: true, DNS: []string{"203.0.113.53"}, MTU: 1450})
	if u.MTU != 1450 || string(u.ResolvConf()) != "nameserver 203.0.113.53\n" {
		t.Errorf("MTU %d, resolv.conf %q", u.MTU, u.ResolvConf())
	}
}

// udhcpd is a second server, which gives short leases.
func udhcpd(t *testing.T, h place, seconds int, more string) (stop func()) {
	t.Helper()
	leases := file(t, "")
	conf := file(t, fmt.Sprintf("start 192.0.2.60\nend 192.0.2.69\ninterface host0\nmax_leases 9\nmin_lease 1\n"+
		"lease_file %s\npidfile /dev/null\noption subnet 255.255.255.0\noption router 192.0.2.1\noption lease %d\n%s", leases, seconds, more))
	return h.start("udhcpd", "-f", conf)
}

func TestRenewal(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the end of leases")
	}
	if !inGuest(t, "udhcpd") {
		return
	}
	h := newHost(t)
	h.run("ip", "addr", "add", "192.0.2.1/24", "dev", "host0")
	stop := udhcpd(t, h, 10, "")
	u, said := bringUp(t, &config.Network{DHCP: true})
	address := u.Addresses[0]
	if !netip.MustParsePrefix("192.0.2.0/24").Contains(address.Addr()) {
		t.Fatalf("address %s", address)
	}
	has := func() bool {
		got, err := addresses(u.link)
		return err == nil && len(got) == 1 && got[0] == address
	}
	// Twice its time, it is still there: it was renewed.
	for end := time.Now().Add(16 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if !has() {
			t.Fatalf("%s is gone: %s", address, said)
		}
	}
	// The server ends: so does the lease, and its route.
	stop()
	eventually(t, 15*time.Second, "the end of the lease", func() bool { return !has() })
	if routes := run(t, "ip", "-4", "route", "show"); routes != "" {
		t.Errorf("routes are left:\n%s", routes)
	}
	if !strings.Contains(said.String(), address.Addr().String()+" is lost: not renewed in 10s") {
		t.Errorf("said %q", said)
	}
	// Another one is asked for as soon as there is a server.
	udhcpd(t, h, 60, "")
	eventually(t, 40*time.Second, "another lease", func() bool {
		got, err := addresses(u.link)
		return err == nil && len(got) == 1
	})
}

// A panic in the background is for the program to handle, and Close does not wait for
// what has ended by one.
func TestBackground(t *testing.T) {
	plain := Background
	t.Cleanup(func() { Background = plain })
	caught := make(chan any, 1)
	Background = func(f func()) {
		go func() {
			defer func() { caught <- recover() }()
			f()
		}()
	}
	u := &Uplink{stop: func() {}}
	u.background(func() { panic("the reason") })
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if got := <-caught; got != "the reason" {
		t.Errorf("caught %v", got)
	}
}

func TestNoServer(t *testing.T) {
	if !inGuest(t) {
		return
	}
	newHost(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	begin := time.Now()
	_, err := up(ctx, &config.Network{DHCP: true}, t.Logf, isUp0)
	if err == nil || !strings.Contains(err.Error(), "network: up0: no address: context deadline exceeded") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
}
