package kbs

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// Brokers are those that a guest may ask. No other ever is.
type Brokers struct {
	first  *Client
	byHost map[string]*Client // "host:port"
	hosts  []string           // for errors, the first one first
}

// NewBrokers makes an allow-list. The first is asked where a URI names none; without
// any, everything is refused.
func NewBrokers(clients ...*Client) (*Brokers, error) {
	b := &Brokers{byHost: map[string]*Client{}}
	for _, c := range clients {
		if err := c.Check(); err != nil {
			return nil, err
		}
		host := c.Host()
		if b.byHost[host] != nil {
			return nil, fmt.Errorf("kbs: broker %s: named twice", host)
		}
		if b.first == nil {
			b.first = c
		}
		b.byHost[host] = c
		b.hosts = append(b.hosts, host)
	}
	return b, nil
}

// Resource returns what a broker has under a URI. The secret is the caller's to clear.
func (b *Brokers) Resource(ctx context.Context, uri string) ([]byte, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	c, err := b.client(u)
	if err != nil {
		return nil, fmt.Errorf("kbs: %s: %w", u, err)
	}
	return c.Resource(ctx, u)
}

// Token returns a token of the first broker.
func (b *Brokers) Token(ctx context.Context) (*Token, error) {
	if b.first == nil {
		return nil, errNoBroker
	}
	return b.first.Token(ctx)
}

var errNoBroker = errors.New("kbs: this guest has no broker")

// client is whom to ask for u. A URI without a port means that of the broker's scheme.
func (b *Brokers) client(u URI) (*Client, error) {
	if b.first == nil {
		return nil, errNoBroker
	}
	if u.Broker == "" {
		return b.first, nil
	}
	for _, scheme := range []string{"https", "http"} {
		c := b.byHost[endpoint(u.Broker, scheme)]
		if c != nil && strings.HasPrefix(c.URL, scheme+"://") {
			return c, nil
		}
	}
	return nil, fmt.Errorf("broker %s is none of this guest's: %s", u.Broker, strings.Join(b.hosts, ", "))
}

// ParseCAs reads PEM. Anything but certificates is an error, and so is none: an empty
// pool would mean another's.
func ParseCAs(text string) (*x509.CertPool, error) {
	pool, rest, n := x509.NewCertPool(), []byte(text), 0
	for len(strings.TrimSpace(string(rest))) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("kbs: certificates: not PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil, fmt.Errorf("kbs: certificates: block %d: not a certificate", n+1)
		}
		pool.AddCert(cert)
		n++
	}
	if n == 0 {
		return nil, errors.New("kbs: certificates: there are none")
	}
	return pool, nil
}
