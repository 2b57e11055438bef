package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// ack is an acknowledgement of 192.0.2.50/24. An option of more replaces one of
// its own; an empty one removes it.
func ack(t testing.TB, more map[uint8]string) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeAck), dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 50)),
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}), dhcpv4.WithServerIP(net.IPv4(192, 0, 2, 1)))
	if err != nil {
		t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootReply
	m.Options[1] = []byte{255, 255, 255, 0}
	for code, b := range more {
		m.Options[code] = []byte(b)
		if b == "" {
			delete(m.Options, code)
		}
	}
	// As it comes over the network.
	m, err = dhcpv4.FromBytes(m.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// String is a lease in one line, for tests.
func (l *lease) String() string {
	return fmt.Sprintf("%s routes[%s] dns[%s] search%q mtu %d renew %s expire %s ignored%q",
		l.address, prefixes(l.routes), prefixes(l.dns), l.search, l.mtu, l.renew, l.expire, l.ignored)
}

func TestReadLease(t *testing.T) {
	const rest = " renew 30m0s expire 1h0m0s"
	for _, tt := range []struct {
		name string
		more map[uint8]string
		want string
	}{
		{"bare", nil, `192.0.2.50/24 routes[] dns[] search[] mtu 0` + rest + ` ignored[]`},
		{"router", map[uint8]string{3: "\xc0\x00\x02\x01\xc0\x00\x02\x02"}, `192.0.2.50/24 routes[0.0.0.0/0 by 192.0.2.1] dns[] search[] mtu 0` + rest + ` ignored[]`},
		{"routers that are none", map[uint8]string{3: "\x00\x00\x00\x00\x7f\x00\x00\x01\xe0\x00\x00\x01\xc0\x00\x02\x32\xf0\x00\x00\x01\xc0\x00\x02\x07"},
			`192.0.2.50/24 routes[0.0.0.0/0 by 192.0.2.7] dns[] search[] mtu 0` + rest +
				` ignored["router 0.0.0.0: not another machine" "router 127.0.0.1: not another machine" "router 224.0.0.1: not another machine" "router 192.0.2.50: not another machine" "router 240.0.0.1: not another machine"]`},
		// 0.0.0.0/0 by 192.0.2.1, 203.0.113.0/24 over the link, 10.0.0.0/8 by loopback, 127.0.0.0/8, 224.0.0.0/4
		{"routes", map[uint8]string{3: "\xc0\x00\x02\x07", 121: "\x00\xc0\x00\x02\x01" + "\x18\xcb\x00\x71\x00\x00\x00\x00" + "\x08\x0a\x7f\x00\x00\x01" + "\x08\x7f\xc0\x00\x02\x01" + "\x04\xe0\xc0\x00\x02\x01"},
			`192.0.2.50/24 routes[203.0.113.0/24 0.0.0.0/0 by 192.0.2.1] dns[] search[] mtu 0` + rest +
				` ignored["route to 10.0.0.0/8 via 127.0.0.1: by no other machine" "route to 127.0.0.0/8 via 192.0.2.1: not to other machines" "route to 224.0.0.0/4 via 192.0.2.1: not to other machines"]`},
		{"name servers", map[uint8]string{6: "\x08\x08\x08\x08\x7f\x00\x00\x35\x08\x08\x08\x08\xa9\xfe\xa9\xfe\x01\x01\x01\x01\x09\x09\x09\x09"},
			`192.0.2.50/24 routes[] dns[8.8.8.8 169.254.169.254 1.1.1.1] search[] mtu 0` + rest + ` ignored["name server 127.0.0.53: not another machine" "name server 9.9.9.9: more than 3"]`},
		{"domain", map[uint8]string{15: "Example.ORG.\x00"}, `192.0.2.50/24 routes[] dns[] search["example.org"] mtu 0` + rest + ` ignored[]`},
		{"search before domain", map[uint8]string{15: "a.example", 119: "\x01b\x07example\x00\x01c\xc0\x02"}, `192.0.2.50/24 routes[] dns[] search["b.example" "c.example"] mtu 0` + rest + ` ignored[]`},
		{"a line of resolv.conf", map[uint8]string{15: "a\nnameserver 6.6.6.6"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0` + rest + ` ignored["domain \"a\\nnameserver 6.6.6.6\": not a name"]`},
		{"a shell", map[uint8]string{15: "$(reboot).example"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0` + rest + ` ignored["domain \"$(reboot).example\": not a name"]`},
		{"names of the host's", map[uint8]string{12: "evil", 66: "boot", 67: "file", 42: "\x01\x01\x01\x01"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0` + rest + ` ignored[]`},
		{"MTU", map[uint8]string{26: "\x05\x14"}, `192.0.2.50/24 routes[] dns[] search[] mtu 1300` + rest + ` ignored[]`},
		{"small MTU", map[uint8]string{26: "\x00\x44"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0` + rest + ` ignored["MTU 0044: want two bytes of at least 576"]`},
		{"cut MTU", map[uint8]string{26: "\x05"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0` + rest + ` ignored["MTU 05: want two bytes of at least 576"]`},
		{"times", map[uint8]string{51: "\x00\x00\x00\x78", 58: "\x00\x00\x00\x0a"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0 renew 10s expire 2m0s ignored[]`},
		{"renewal after the end", map[uint8]string{51: "\x00\x00\x00\x78", 58: "\x00\x00\x00\x78"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0 renew 1m0s expire 2m0s ignored[]`},
		{"renewal without pause", map[uint8]string{51: "\x00\x00\x00\x78", 58: "\x00\x00\x00\x00"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0 renew 1m0s expire 2m0s ignored[]`},
		{"no time at all", map[uint8]string{51: "\x00\x00\x00\x00"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0 renew 5s expire 10s ignored["lease of 0s: less than 10s"]`},
		{"for ever", map[uint8]string{51: "\xff\xff\xff\xff"}, `192.0.2.50/24 routes[] dns[] search[] mtu 0 renew 0s expire 0s ignored[]`},
		{"one address", map[uint8]string{1: "\xff\xff\xff\xff", 3: "\xc0\x00\x02\x01"}, `192.0.2.50/32 routes[0.0.0.0/0 by 192.0.2.1] dns[] search[] mtu 0` + rest + ` ignored[]`},
	} {
		l, err := readLease(ack(t, tt.more))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := l.String(); got != tt.want {
			t.Errorf("%s: got\n%s, want\n%s", tt.name, got, tt.want)
		}
		l.wantSound(t)
	}
}

func TestReadLeaseRefuses(t *testing.T) {
	for _, mask := range []string{"", "\xff\x00\xff\x00", "\x00\x00\x00\x00", "\xfe\x00\x00\x00", "\xff\xff\xff"} {
		if l, err := readLease(ack(t, map[uint8]string{1: mask})); !errors.Is(err, errLease) || !strings.Contains(err.Error(), "want one of 8 to 32 bits") {
			t.Errorf("mask %x: got %v, %v", mask, l, err)
		}
	}
	for _, a := range []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"} {
		m := ack(t, nil)
		m.YourIPAddr = net.ParseIP(a)
		if l, err := readLease(m); !errors.Is(err, errLease) || !strings.Contains(err.Error(), "address "+a+": not one for a machine") {
			t.Errorf("%s: got %v, %v", a, l, err)
		}
	}
}

func TestManyRoutes(t *testing.T) {
	var b strings.Builder
	for i := range 100 {
		fmt.Fprintf(&b, "\x18\x0a\x00%c\xc0\x00\x02\x01", byte(i))
	}
	m := ack(t, nil)
	m.Options[121] = []byte(b.String()) // 800 bytes: by RFC 3396 in several options
	l, err := readLease(m)
	if err != nil || len(l.routes) != maxRoutes || prefixes(l.routes[:1]) != "10.0.0.0/24 by 192.0.2.1" || len(l.ignored) != 1 {
		t.Errorf("got %d routes, %v, %v", len(l.routes), l, err)
	}
}

// TestIgnored holds that no control character and no long text of the host reaches
// the console.
func TestIgnored(t *testing.T) {
	l, err := readLease(ack(t, map[uint8]string{15: "\x1b[2J\xff" + strings.Repeat("x", 240)}))
	if err != nil || len(l.ignored) != 1 || len(l.ignored[0]) > 130 || strings.ContainsFunc(l.ignored[0], func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("got %q, %v", l.ignored, err)
	}
	for range 100 {
		l.ignore("again")
	}
	if len(l.ignored) != 8 {
		t.Errorf("%d lines", len(l.ignored))
	}
}

// wantSound holds what may never be so, whatever a server says.
func (l *lease) wantSound(t *testing.T) {
	t.Helper()
	if l.expire < 0 || l.renew < 0 || l.expire != 0 && (l.expire < minLease || l.renew < minRenew || l.renew >= l.expire) {
		t.Errorf("renew %s, expire %s", l.renew, l.expire)
	}
	if len(l.dns) > maxDNS || len(l.search) > maxSearch || len(l.routes) > maxRoutes || len(l.ignored) > 8 || l.mtu != 0 && l.mtu < minMTU {
		t.Errorf("too much: %s", l)
	}
	if l.address.IsValid() && (l.address.Addr().IsLoopback() || l.address.Addr().IsMulticast() || l.address.Addr().IsUnspecified()) {
		t.Errorf("address %s", l.address)
	}
	for _, r := range l.routes {
		if r.to != r.to.Masked() || r.via.IsValid() && (r.via.IsLoopback() || r.via == l.address.Addr()) {
			t.Errorf("route %s", r)
		}
	}
	conf := (&Uplink{DNS: l.dns, Search: l.search}).ResolvConf()
	for line := range bytes.Lines(conf) {
		word, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		switch word {
		case "search":
			for d := range strings.SplitSeq(rest, " ") {
				if !domain(d) {
					t.Errorf("resolv.conf: %q", line)
				}
			}
		case "nameserver":
			if a, err := netip.ParseAddr(rest); err != nil || a.IsLoopback() {
				t.Errorf("resolv.conf: %q", line)
			}
		default:
			t.Errorf("resolv.conf: %q", line)
		}
	}
}

func FuzzReadLease(f *testing.F) {
	for _, more := range []map[uint8]string{
		nil,
		{3: "\xc0\x00\x02\x01", 6: "\x08\x08\x08\x08", 15: "example.org", 26: "\x05\x14", 51: "\x00\x00\x00\x78"},
		{119: "\x01b\x07example\x00\x01c\xc0\x02", 121: "\x00\xc0\x00\x02\x01\x18\xcb\x00\x71\x00\x00\x00\x00"},
	} {
		f.Add(ack(f, more).ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		if l, err := readLease(m); err == nil {
			l.wantSound(t)
		}
	})
}

// reply gives 2001:db8::77 for two minutes, or what change makes of that.
func reply(t testing.TB, change func(*dhcpv6.Message, *dhcpv6.OptIANA, *dhcpv6.OptIAAddress)) *dhcpv6.Message {
	t.Helper()
	m, err := dhcpv6.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = dhcpv6.MessageTypeReply
	a := &dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP("2001:db8::77"), PreferredLifetime: time.Minute, ValidLifetime: 2 * time.Minute}
	ia := &dhcpv6.OptIANA{IaId: [4]byte{1, 2, 3, 4}, T1: 30 * time.Second}
	change(m, ia, a)
	ia.Options.Add(a)
	m.AddOption(ia)
	m.AddOption(dhcpv6.OptDNS(net.ParseIP("2001:db8::53")))
	parsed, err := dhcpv6.MessageFromBytes(m.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestReadLease6(t *testing.T) {
	type change = func(*dhcpv6.Message, *dhcpv6.OptIANA, *dhcpv6.OptIAAddress)
	address := func(s string) change {
		return func(_ *dhcpv6.Message, _ *dhcpv6.OptIANA, a *dhcpv6.OptIAAddress) { a.IPv6Addr = net.ParseIP(s) }
	}
	for _, tt := range []struct {
		name   string
		change change
		want   string
	}{
		{"sound", func(*dhcpv6.Message, *dhcpv6.OptIANA, *dhcpv6.OptIAAddress) {}, "2001:db8::77/128 routes[] dns[2001:db8::53] search[] mtu 0 renew 30s expire 2m0s ignored[]"},
		{"server decides nothing", func(_ *dhcpv6.Message, ia *dhcpv6.OptIANA, _ *dhcpv6.OptIAAddress) { ia.T1 = 0 }, "2001:db8::77/128 routes[] dns[2001:db8::53] search[] mtu 0 renew 1m0s expire 2m0s ignored[]"},
		{"loopback", address("::1"), "no address for a machine"},
		{"link", address("fe80::1"), "no address for a machine"},
		{"multicast", address("ff02::1"), "no address for a machine"},
		{"IPv4", address("192.0.2.1"), "no address for a machine"},
		{"taken away", func(_ *dhcpv6.Message, _ *dhcpv6.OptIANA, a *dhcpv6.OptIAAddress) { a.ValidLifetime = 0 }, "no address for a machine"},
		{"offer", func(m *dhcpv6.Message, _ *dhcpv6.OptIANA, _ *dhcpv6.OptIAAddress) {
			m.MessageType = dhcpv6.MessageTypeAdvertise
		}, "want a reply"},
		{"refused", func(m *dhcpv6.Message, _ *dhcpv6.OptIANA, _ *dhcpv6.OptIAAddress) {
			m.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})
		}, "refused by the server"},
		{"no binding", func(_ *dhcpv6.Message, ia *dhcpv6.OptIANA, _ *dhcpv6.OptIAAddress) {
			ia.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoBinding})
		}, "refused by the server"},
	} {
		l, err := readLease6(reply(t, tt.change))
		switch {
		case err == nil && l.String() != tt.want:
			t.Errorf("%s: got\n%s, want\n%s", tt.name, l, tt.want)
		case err != nil && (!errors.Is(err, errLease) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func FuzzReadLease6(f *testing.F) {
	f.Add(reply(f, func(*dhcpv6.Message, *dhcpv6.OptIANA, *dhcpv6.OptIAAddress) {}).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv6.MessageFromBytes(b)
		if err != nil {
			return
		}
		if l, err := readLease6(m); err == nil {
			l.wantSound(t)
		}
	})
}

func TestDomain(t *testing.T) {
	long := strings.Repeat("a", 63)
	for s, want := range map[string]bool{
		"example.org": true, "a": true, "_tcp.a-b.c0": true, long + ".org": true,
		"": false, ".": false, "a..b": false, "-a": false, "a-": false, "A": false, "a b": false, "a\tb": false, "ä": false, "a\x00": false,
		long + "a": false, strings.Join([]string{long, long, long, long}, "."): false,
	} {
		if domain(s) != want {
			t.Errorf("%q: got %v", s, !want)
		}
	}
}
