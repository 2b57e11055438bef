// Package kbs asks key brokers for secrets: the client's side of Trustee's protocol
// (request, challenge, attestation, response), of the secrets that it encrypts, and of
// CoCo's sealed secrets. Sources: trustee, kbs/docs/kbs_attestation_protocol.md and
// kbs/src; guest-components, attestation-agent/kbs_protocol.
//
// Nothing that a broker says is believed but what TLS and the guest's own key prove,
// and no secret gets into an error or a log.
package kbs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/evidence"
)

// DefaultTimeout is how long a broker may take for one answer.
const DefaultTimeout = 30 * time.Second

// A Client asks one broker. It attests the guest when it has to, and once for all who
// ask meanwhile. It is safe for concurrent use and must not be copied; its exported
// fields are set before the first call.
type Client struct {
	URL       string         // "https://host[:port]"
	AllowHTTP bool           // for debugging: nothing then proves who answers
	Roots     *x509.CertPool // who may vouch for the broker; nil: the system's
	Proxy     func(*http.Request) (*url.URL, error)

	Attester attester.Attester
	Devices  []attester.Device  // their evidence goes with the guest's
	InitData *evidence.InitData // as it was delivered; nil: none was
	Key      KeyAlgorithm       // "": the first of Keys
	Hashes   []string           // offered, best first; nil: evidence.Hashes

	// Generation counts what was measured since the start. A token is for the registers
	// as they were, so it is not used for what is asked after a later measurement. Nil:
	// nothing is measured.
	Generation func() uint64

	UserAgent string
	Logf      func(format string, args ...any) // nil: silent

	Timeout time.Duration // of one request, connection and body included; 0: DefaultTimeout

	Now   func() time.Time                           // nil: time.Now
	Sleep func(context.Context, time.Duration) error // between attempts; nil: it does

	mu      sync.Mutex
	client  *http.Client
	rsa     *teeKey  // RSA keys are dear: one for all sessions
	current *session // nil: none that may be used
	flight  *flight  // the attestation that is under way
}

// Check refuses a client that could ask nobody.
func (c *Client) Check() error {
	if _, err := checkURL(c.URL, c.AllowHTTP); err != nil {
		return fmt.Errorf("kbs: %w", err)
	}
	if err := c.Key.check(); err != nil {
		return fmt.Errorf("kbs: %w", err)
	}
	if c.Attester == nil {
		return errors.New("kbs: nothing attests this guest")
	}
	for _, h := range c.hashes() {
		if _, err := hashNamed(h); err != nil {
			return fmt.Errorf("kbs: %w", err)
		}
	}
	return nil
}

// Host is the broker's "host:port".
func (c *Client) Host() string {
	host, err := checkURL(c.URL, true)
	if err != nil {
		return c.URL
	}
	return host
}

// Resource returns what the broker has under u, whose Broker counts for nothing here.
// The secret is the caller's to clear.
func (c *Client) Resource(ctx context.Context, u URI) ([]byte, error) {
	u, err := ParseURI(u.String()) // it may have been put together by hand
	if err != nil {
		return nil, err
	}
	secret, err := c.resource(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("kbs: %s: %s: %w", c.Host(), u, err)
	}
	return secret, nil
}

func (c *Client) resource(ctx context.Context, u URI) ([]byte, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	asked := c.generation()
	s, fresh, err := c.session(ctx, asked)
	if err != nil {
		return nil, err
	}
	secret, err := s.get(ctx, u)
	if !errors.Is(err, ErrUnauthorized) || fresh && decided(err) {
		return secret, err
	}
	// The broker may have forgotten the session, or have other reference values by now.
	c.drop(s)
	if s, _, err = c.session(ctx, asked); err != nil {
		return nil, err
	}
	return s.get(ctx, u)
}

// decided reports whether a broker that said 401 took the token, and refused what was
// asked for: another token of the same guest gets no other answer.
func decided(err error) bool {
	var e *StatusError
	return errors.As(err, &e) && (e.Kind == kindPolicyDeny || e.Kind == kindPluginInternal || e.Kind == kindPluginNotFound)
}

// Token returns a token that holds, and the key that it is for.
func (c *Client) Token(ctx context.Context) (*Token, error) {
	t, err := c.tokenFor(ctx)
	if err != nil {
		return nil, fmt.Errorf("kbs: %s: %w", c.Host(), err)
	}
	return t, nil
}

func (c *Client) tokenFor(ctx context.Context) (*Token, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	s, _, err := c.session(ctx, c.generation())
	if err != nil {
		return nil, err
	}
	t := *s.token
	return &t, nil
}

// Close forgets tokens and keys, and ends idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current, c.rsa = nil, nil
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
}

func (c *Client) http() *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil {
		c.client = c.newHTTP()
	}
	return c.client
}

func (c *Client) generation() uint64 {
	if c.Generation == nil {
		return 0
	}
	return c.Generation()
}

func (c *Client) hashes() []string {
	if len(c.Hashes) == 0 {
		return evidence.Hashes
	}
	return c.Hashes
}

func (c *Client) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return DefaultTimeout
}

func (c *Client) now() time.Time {
	if c.Now == nil {
		return time.Now() // with the monotonic clock, which nobody sets
	}
	return c.Now()
}

func (c *Client) logf(format string, args ...any) {
	if c.Logf != nil {
		c.Logf(format, args...)
	}
}
