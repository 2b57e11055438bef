package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// requested are the options that a server is asked for.
var requested = dhcpv4.WithRequestedOptions(
	dhcpv4.OptionSubnetMask,
	dhcpv4.OptionRouter,
	dhcpv4.OptionDomainNameServer,
	dhcpv4.OptionDomainName,
	dhcpv4.OptionDNSDomainSearchList,
	dhcpv4.OptionInterfaceMTU,
	dhcpv4.OptionClasslessStaticRoute,
	dhcpv4.OptionRenewTimeValue,
)

// ask4 asks for an address of IPv4.
func (u *Uplink) ask4(ctx context.Context) (*binding, error) {
	return u.exchange4(func(c *nclient4.Client) (*nclient4.Lease, error) {
		return c.Request(ctx, requested)
	})
}

// exchange4 does one exchange with a server. The socket is open only so long: it
// gets a copy of every packet that comes in.
func (u *Uplink) exchange4(exchange func(*nclient4.Client) (*nclient4.Lease, error)) (*binding, error) {
	client, err := nclient4.New(u.Name, nclient4.WithTimeout(time.Second), nclient4.WithRetry(4))
	if err != nil {
		return nil, fmt.Errorf("DHCP: %w", err)
	}
	defer client.Close() // nothing was written that could be lost
	asked := time.Now()
	from, err := exchange(client)
	var nak *nclient4.ErrNak
	if errors.As(err, &nak) {
		err = errRefused
	}
	if err != nil {
		return nil, fmt.Errorf("DHCP: %w", err)
	}
	l, err := readLease(from.ACK)
	if err != nil {
		return nil, fmt.Errorf("DHCP: %w", err)
	}
	again := func(ctx context.Context) (*binding, error) {
		return u.exchange4(func(c *nclient4.Client) (*nclient4.Lease, error) {
			return c.Renew(ctx, from, requested)
		})
	}
	return &binding{l, asked, again}, nil
}
