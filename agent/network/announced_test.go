package network

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
)

// newHost6 is an outside with IPv6 alone.
func newHost6(t *testing.T) place {
	t.Helper()
	h := newHost(t)
	// Who does not forward says that it is no router, when its neighbour asks.
	if err := h.do(func() error { return write([]setting{{"ipv6/conf/all/forwarding", "1"}}) }); err != nil {
		t.Fatal(err)
	}
	h.run("ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "host0", "nodad")
	h.serve("outside", ":80")
	return h
}

// TestAnnounced is a network where routers say all.
func TestAnnounced(t *testing.T) {
	if !inGuest(t, "dnsmasq") {
		return
	}
	h := newHost6(t)
	h.run("ip", "-6", "addr", "add", "2001:db8:ffff::1/128", "dev", "lo", "nodad")
	dnsmasq(h, "--interface=host0", "--port=0", "--enable-ra", "--dhcp-range=2001:db8::,ra-only,64,10m",
		"--dhcp-option=option6:dns-server,[2001:db8::53]", "--dhcp-option=option6:domain-search,six.example.org")
	u, said := bringUp(t, &config.Network{DHCP: true})
	if len(u.Addresses) != 1 || !strings.HasPrefix(u.Addresses[0].String(), "2001:db8::") {
		t.Errorf("addresses %s", u.Addresses)
	}
	if got, want := string(u.ResolvConf()), "search six.example.org\nnameserver 2001:db8::53\n"; got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
	own := u.Addresses[0].Addr().String()
	place{t, os.Getpid()}.wantAnswer("tcp", "[2001:db8:ffff::1]:80", "outside to "+own) // by the default route
	if said.String() != "" {
		t.Errorf("said %q", said)
	}
	// A guest that forwards still follows its router.
	if _, err := NewContainers(u, said.printf); err != nil {
		t.Fatal(err)
	}
	place{t, os.Getpid()}.wantAnswer("tcp", "[2001:db8:ffff::1]:80", "outside to "+own)
}

// TestManaged is one where addresses are had by DHCPv6.
func TestManaged(t *testing.T) {
	if !inGuest(t, "dnsmasq") {
		return
	}
	h := newHost6(t)
	dnsmasq(h, "--interface=host0", "--port=0", "--enable-ra", "--dhcp-range=2001:db8::77,2001:db8::77,64,2m",
		"--dhcp-option=option6:dns-server,[2001:db8::53]")
	u, _ := bringUp(t, &config.Network{DHCP: true})
	if got := prefixes(u.Addresses); !strings.Contains(got, "2001:db8::77/128") {
		t.Errorf("addresses %s", got)
	}
	if got, want := string(u.ResolvConf()), "nameserver 2001:db8::53\n"; got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
	place{t, os.Getpid()}.wantAnswer("tcp", "[2001:db8::1]:80", "outside to 2001:db8::77")
	// The server prolongs it.
	b, err := u.ask6(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next, err := b.again(t.Context())
	if err != nil || next.address != b.address || next.expire != 2*time.Minute {
		t.Errorf("renewed: %v, %v", next, err)
	}
}

// TestOtherwise is one where routers give addresses and DHCPv6 the name servers.
func TestOtherwise(t *testing.T) {
	if !inGuest(t, "dnsmasq") {
		return
	}
	h := newHost6(t)
	dnsmasq(h, "--interface=host0", "--port=0", "--enable-ra", "--dhcp-range=2001:db8::,ra-stateless,64,10m",
		"--dhcp-option=option6:dns-server,[2001:db8::53]")
	u, _ := bringUp(t, &config.Network{DHCP: true})
	if got, want := string(u.ResolvConf()), "nameserver 2001:db8::53\n"; got != want || len(u.Addresses) != 1 {
		t.Errorf("resolv.conf is %q, want %q; addresses %s", got, want, u.Addresses)
	}
	l, err := u.names6(t.Context())
	if err != nil || prefixes(l.dns) != "2001:db8::53" {
		t.Errorf("got %v, %v", l, err)
	}
}

// option is a message of the kernel about interface 7. RFC 8106, sections 5.1 and
// 5.2, has the option; linux/rtnetlink.h what is before it.
func option(kind byte, lifetime uint32, payload string) []byte {
	o := append([]byte{kind, byte((8 + len(payload)) / 8), 0, 0}, binary.BigEndian.AppendUint32(nil, lifetime)...)
	o = append(o, payload...)
	b := make([]byte, 16)
	b[0] = 10 // AF_INET6
	binary.NativeEndian.PutUint16(b[2:], uint16(len(o)))
	binary.NativeEndian.PutUint32(b[4:], 7)
	return append(b, o...)
}

const server53 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x53"

func TestReadOption(t *testing.T) {
	for _, tt := range []struct {
		name        string
		b           []byte
		dns, search string
		ignored     string
	}{
		{"server", option(25, 60, server53), "2001:db8::53", "", ""},
		{"taken back", option(25, 0, server53), "", "", ""},
		{"loopback", option(25, 60, strings.Repeat("\x00", 15)+"\x01"), "", "", "name server ::1: not another machine"},
		{"of the link", option(25, 60, "\xfe\x80"+strings.Repeat("\x00", 13)+"\x01"), "", "", "name server fe80::1: not another machine"},
		{"domain", option(31, 60, "\x07example\x03org\x00\x00\x00\x00"), "", "example.org", ""},
		{"no domain", option(31, 60, "\x07ex mple\x03org\x00\x00\x00\x00"), "", "", `domain "ex mple.org": not a name`},
		{"cut domain", option(31, 60, "\x3fexample"), "", "", "domains 3f6578616d706c65"},
		{"another kind", option(3, 60, server53), "", "", ""},
		{"cut", option(25, 60, server53)[:16+16], "", "", ""},
		{"no more than a head", option(25, 60, "")[:20], "", "", ""},
		{"size of zero", append(option(25, 60, "")[:17], 0, 0, 0, 0, 0, 0, 60), "", "", ""},
	} {
		l := &lease{}
		l.readOption(tt.b, 7)
		ignored := strings.Join(l.ignored, ", ")
		if prefixes(l.dns) != tt.dns || strings.Join(l.search, " ") != tt.search || !strings.HasPrefix(ignored, tt.ignored) || tt.ignored == "" && ignored != "" {
			t.Errorf("%s: got %v, %v, %q", tt.name, l.dns, l.search, ignored)
		}
		other := &lease{}
		other.readOption(tt.b, 8)
		if len(other.dns)+len(other.search)+len(other.ignored) > 0 {
			t.Errorf("%s: another interface's was taken", tt.name)
		}
	}
}

func FuzzReadOption(f *testing.F) {
	f.Add(option(25, 60, server53))
	f.Add(option(31, 60, "\x07example\x03org\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &lease{}
		l.readOption(b, 7)
		l.wantSound(t)
	})
}
