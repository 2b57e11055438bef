package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
)

// ask6 asks for an address of IPv6. RFC 8415, section 18.2.1.
func (u *Uplink) ask6(ctx context.Context) (*binding, error) {
	return u.exchange6(func(c *nclient6.Client) (*dhcpv6.Message, error) {
		return c.RapidSolicit(ctx, u.identity())
	})
}

// names6 asks for name servers alone. Section 18.2.6.
func (u *Uplink) names6(ctx context.Context) (*lease, error) {
	client, err := nclient6.New(u.Name, nclient6.WithTimeout(time.Second))
	if err != nil {
		return nil, fmt.Errorf("DHCPv6: %w", err)
	}
	defer client.Close() // nothing was written that could be lost
	m, err := dhcpv6.NewMessage(u.identity())
	if err != nil {
		return nil, fmt.Errorf("DHCPv6: %w", err)
	}
	m.MessageType = dhcpv6.MessageTypeInformationRequest
	m.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList))
	m.AddOption(dhcpv6.OptElapsedTime(0))
	r, err := client.SendAndRead(ctx, client.RemoteAddr(), m, isReply)
	if err != nil {
		return nil, fmt.Errorf("DHCPv6: %w", err)
	}
	l := &lease{}
	l.readNames(r)
	return l, nil
}

var isReply = nclient6.IsMessageType(dhcpv6.MessageTypeReply)

// identity is by what servers know the guest: the address of its network card,
// which the host chose. No time is in it, and so it stays. Section 11.4.
func (u *Uplink) identity() dhcpv6.Modifier {
	return dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: u.link.Attrs().HardwareAddr})
}

// exchange6 does one exchange with a server.
func (u *Uplink) exchange6(exchange func(*nclient6.Client) (*dhcpv6.Message, error)) (*binding, error) {
	client, err := nclient6.New(u.Name, nclient6.WithTimeout(time.Second))
	if err != nil {
		return nil, fmt.Errorf("DHCPv6: %w", err)
	}
	defer client.Close() // nothing was written that could be lost
	asked := time.Now()
	reply, err := exchange(client)
	if err != nil {
		return nil, fmt.Errorf("DHCPv6: %w", err)
	}
	l, err := readLease6(reply)
	if err != nil {
		return nil, fmt.Errorf("DHCPv6: %w", err)
	}
	again := func(ctx context.Context) (*binding, error) {
		return u.exchange6(func(c *nclient6.Client) (*dhcpv6.Message, error) {
			m, err := u.renewal6(reply)
			if err != nil {
				return nil, err
			}
			return c.SendAndRead(ctx, c.RemoteAddr(), m, isReply)
		})
	}
	return &binding{l, asked, again}, nil
}

// renewal6 asks the server of an address to prolong it. Section 18.2.4.
func (u *Uplink) renewal6(reply *dhcpv6.Message) (*dhcpv6.Message, error) {
	server, address := reply.Options.ServerID(), reply.Options.OneIANA()
	if server == nil || address == nil {
		return nil, errors.New("a reply without a server or an address")
	}
	m, err := dhcpv6.NewMessage(u.identity(), dhcpv6.WithServerID(server))
	if err != nil {
		return nil, err
	}
	m.MessageType = dhcpv6.MessageTypeRenew
	m.AddOption(dhcpv6.OptElapsedTime(0))
	m.AddOption(address)
	return m, nil
}

// readLease6 is readLease for IPv6: routes and MTU are routers' to announce.
func readLease6(m *dhcpv6.Message) (*lease, error) {
	if m.MessageType != dhcpv6.MessageTypeReply {
		return nil, fmt.Errorf("%w: message of type %d: want a reply", errLease, m.MessageType)
	}
	ia := m.Options.OneIANA()
	if refused(m.Options.Status()) || ia == nil || refused(ia.Options.Status()) {
		return nil, fmt.Errorf("%w: %w", errLease, errRefused)
	}
	for _, o := range ia.Options.Addresses() {
		a, ok := netip.AddrFromSlice(o.IPv6Addr)
		if !ok || !ownable(a) || a.Is4In6() || o.ValidLifetime == 0 {
			continue // a lifetime of zero takes it away: section 18.2.10.1
		}
		l := &lease{address: host(a), renew: ia.T1, expire: o.ValidLifetime}
		l.checkTimes()
		l.readNames(m)
		return l, nil
	}
	return nil, fmt.Errorf("%w: no address for a machine", errLease)
}

func refused(s *dhcpv6.OptStatusCode) bool { return s != nil && s.StatusCode != iana.StatusSuccess }

// readNames takes name servers and domains.
func (l *lease) readNames(m *dhcpv6.Message) {
	for _, ip := range m.Options.DNS() {
		l.addDNS(ip)
	}
	if s := m.Options.DomainSearchList(); s != nil {
		for _, d := range s.Labels {
			l.addSearch(d)
		}
	}
}
