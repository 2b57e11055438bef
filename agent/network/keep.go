package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// retry is how long a server that does not answer is left alone.
const retry = 2 * time.Second

// errRefused is a server's answer. What it says besides is the host's text.
var errRefused = errors.New("refused by the server")

// A binding is a lease that a server gave.
type binding struct {
	*lease
	asked time.Time                               // from when it counts: RFC 2131, section 4.4.1
	again func(context.Context) (*binding, error) // asks the server to prolong it
}

// acquire calls ask until there is a lease that can be used, and uses it. It fails
// only when ctx is done; trouble, which may be nil, is told meanwhile.
func (u *Uplink) acquire(ctx context.Context, ask func(context.Context) (*binding, error), trouble chan<- error) (*binding, error) {
	for {
		b, err := ask(ctx)
		if err == nil {
			err = u.use(b)
		}
		if err == nil {
			return b, nil
		}
		select {
		case trouble <- err:
		default:
		}
		if err := pause(ctx, retry); err != nil {
			return nil, err
		}
	}
}

// use gives the interface what a lease says.
func (u *Uplink) use(b *binding) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := b.within(u.reserved); err != nil {
		return err
	}
	for _, s := range b.ignored {
		u.logf("network: %s: lease: left out: %s", u.Name, s)
	}
	if b.mtu != 0 && !u.ownMTU {
		u.useMTU(b.mtu)
	}
	if err := u.addAddress(b.address); err != nil {
		return err
	}
	for _, r := range b.routes {
		if err := u.addRoute(r, b.address.Addr()); err != nil {
			return errors.Join(err, u.drop(b))
		}
	}
	return nil
}

// useMTU sets what the server wants. Less than IPv6 needs would take that from the
// link: the kernel would drop its addresses.
func (u *Uplink) useMTU(mtu int) {
	if mtu < minIPv6 && ipv6() {
		u.logf("network: %s: lease: left out: MTU %d: IPv6 needs %d", u.Name, mtu, minIPv6)
		return
	}
	if err := netlink.LinkSetMTU(u.link, mtu); err != nil { // more than the device can
		u.logf("network: %s: lease: left out: MTU %d: %v", u.Name, mtu, err)
	}
}

// drop takes a lease's address, and with it its routes, from the interface.
func (u *Uplink) drop(b *binding) error {
	err := netlink.AddrDel(u.link, &netlink.Addr{IPNet: ipNet(b.address)})
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

// keep renews a lease until ctx is done. When it cannot be renewed in time the
// address is given up, as RFC 2131, section 4.4.5, and RFC 8415, section 18.2.5,
// want, and another one asked for.
func (u *Uplink) keep(ctx context.Context, b *binding, ask func(context.Context) (*binding, error)) {
	for b.expire != 0 && pause(ctx, time.Until(b.asked.Add(b.renew))) == nil {
		next, err := b.prolong(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			b = next
			continue
		}
		u.logf("network: %s: %s is lost: %v", u.Name, b.address.Addr(), err)
		if err := u.drop(b); err != nil {
			u.logf("network: %s: %s: %v", u.Name, b.address, err)
		}
		if b, err = u.acquire(ctx, ask, nil); err != nil {
			return // ctx is done
		}
		u.logf("network: %s: %s", u.Name, b.address)
	}
}

// prolong asks until the lease is prolonged, refused or over. Nothing but its time
// is taken from the answer: what the guest was told at first stays.
func (b *binding) prolong(ctx context.Context) (*binding, error) {
	ctx, cancel := context.WithDeadline(ctx, b.asked.Add(b.expire))
	defer cancel()
	for {
		next, err := b.again(ctx)
		switch {
		case err == nil && next.address.Addr() == b.address.Addr():
			l := *b.lease
			l.renew, l.expire = next.renew, next.expire
			return &binding{&l, next.asked, next.again}, nil
		case err == nil:
			return nil, fmt.Errorf("the renewed lease is of %s", next.address.Addr())
		case errors.Is(err, errRefused):
			return nil, err
		}
		if pause(ctx, retry) != nil {
			return nil, fmt.Errorf("not renewed in %s", b.expire)
		}
	}
}

// pause waits, or fails when ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return ctx.Err() // both may be so
	}
}
