package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// bound is a lease of 192.0.2.50 that is over in a second; again is what the server
// answers then.
func bound(again func(context.Context) (*binding, error)) *binding {
	return &binding{
		&lease{address: netip.MustParsePrefix("192.0.2.50/24"), dns: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, renew: time.Millisecond, expire: time.Second},
		time.Now(), again,
	}
}

func TestProlong(t *testing.T) {
	answer := func(address string) func(context.Context) (*binding, error) {
		return func(context.Context) (*binding, error) {
			l := &lease{address: netip.MustParsePrefix(address), dns: []netip.Addr{netip.MustParseAddr("6.6.6.6")}, renew: time.Hour, expire: 2 * time.Hour}
			return &binding{l, time.Now(), nil}, nil
		}
	}
	b, err := bound(answer("192.0.2.50/8")).prolong(t.Context())
	if err != nil || b.renew != time.Hour || b.expire != 2*time.Hour {
		t.Fatalf("got %v, %v", b, err)
	}
	if b.address.String() != "192.0.2.50/24" || prefixes(b.dns) != "192.0.2.53" {
		t.Errorf("more than the time was taken: %s", b.lease)
	}
	for _, tt := range []struct {
		name  string
		again func(context.Context) (*binding, error)
		want  string
	}{
		{"another address", answer("192.0.2.51/24"), "the renewed lease is of 192.0.2.51"},
		{"refused", func(context.Context) (*binding, error) { return nil, fmt.Errorf("DHCP: %w", errRefused) }, "DHCP: refused by the server"},
		{"silent", func(ctx context.Context) (*binding, error) { return nil, errors.New("silent") }, "not renewed in 1s"},
	} {
		begin := time.Now()
		if _, err := bound(tt.again).prolong(t.Context()); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("%s: it took %s", tt.name, d)
		}
	}
}

// TestKeepReserved asks again for a lease that is not in a container's network.
func TestKeepReserved(t *testing.T) {
	u := &Uplink{Name: "up0", logf: t.Logf}
	u.reserved = append(u.reserved, netip.MustParsePrefix("192.0.2.0/24"))
	trouble := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := u.acquire(ctx, func(context.Context) (*binding, error) { return bound(nil), nil }, trouble)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that it goes on", err)
	}
	if err := <-trouble; !strings.Contains(err.Error(), "192.0.2.0/24 is the guest's own") {
		t.Errorf("trouble is %v", err)
	}
}
