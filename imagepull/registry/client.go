// Package registry fetches manifests and blobs: from registries by the OCI
// Distribution Specification 1.1, from OCI image layouts, from tars of those. What
// it returns has the digest that was asked for, or was asked for by a tag alone.
package registry

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
)

// Bounds on what a registry may send besides blobs, bytes.
const (
	maxManifest = 4 << 20 // by the convention of registries
	maxToken    = 256 << 10
	maxMessage  = 8 << 10
)

// A Client fetches from registries. The zero value asks anonymously, with the
// system's certificates.
type Client struct {
	Config    *Config
	Auth      *AuthFile
	Roots     *x509.CertPool                        // nil: the system's
	Proxy     func(*http.Request) (*url.URL, error) // nil: none
	UserAgent string

	// Patience is how long a registry may send nothing, and Tries how often it is
	// asked again without progress. Zero: 30 s, 5.
	Patience time.Duration
	Tries    int
	// Log is told of what was tried again. nil: nobody is.
	Log func(format string, args ...any)

	once   sync.Once
	http   [2]*http.Client // by insecure
	tokens sync.Map        // by endpoint
	wrong  sync.Map        // blobs with other bytes, by wrong
	gone   sync.Map        // hosts that nobody answered for: a dead mirror is waited for once, not for each blob
}

// A StatusError is a registry's refusal.
type StatusError struct {
	Status  int
	URL     string
	Message string        // the registry's own words, shortened
	After   time.Duration // it asks to wait
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s: %d %s", e.URL, e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// temporary tells whether asking again may help.
func (e *StatusError) temporary() bool {
	return e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout || e.Status >= 500
}

func (c *Client) logf(format string, args ...any) {
	if c.Log != nil {
		c.Log(format, args...)
	}
}

func (c *Client) patience() time.Duration {
	if c.Patience > 0 {
		return c.Patience
	}
	return 30 * time.Second
}

func (c *Client) tries() int {
	if c.Tries > 0 {
		return c.Tries
	}
	return 5
}

// client returns one of two HTTP clients: one checks certificates and never leaves
// HTTPS, the other is for registries that registries.conf calls insecure.
func (c *Client) client(insecure bool) *http.Client {
	c.once.Do(func() {
		for i := range c.http {
			t := http.DefaultTransport.(*http.Transport).Clone()
			t.Proxy = c.Proxy
			t.TLSClientConfig = &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12, InsecureSkipVerify: i == 1}
			t.ResponseHeaderTimeout = c.patience()
			t.DisableCompression = true // what is hashed is what is sent
			t.MaxResponseHeaderBytes = 64 << 10
			c.http[i] = &http.Client{Transport: t, CheckRedirect: follow(i == 1)}
		}
	})
	if insecure {
		return c.http[1]
	}
	return c.http[0]
}

var errRedirect = errors.New("redirect not followed")

// follow admits redirects over HTTPS, and sends credentials to nobody but whom
// they are for.
func follow(insecure bool) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) > 5:
			return fmt.Errorf("%w: more than 5 redirects", errRedirect)
		case req.URL.Scheme != "https" && !insecure:
			return fmt.Errorf("%w: to %s: want https", errRedirect, where(req.URL))
		case req.URL.Host == via[0].URL.Host:
		case req.Method != http.MethodGet: // its body may hold a token
			return fmt.Errorf("%w: to %s: another host", errRedirect, where(req.URL))
		default:
			req.Header.Del("Authorization")
		}
		return nil
	}
}

// An endpoint is one repository at one registry.
type endpoint struct {
	scheme, host, repo string
	insecure           bool
}

func newEndpoint(s Source) endpoint {
	host := reference.Domain(s.Ref)
	if host == dockerHub {
		host = "registry-1." + host // the name that its API has
	}
	return endpoint{"https", host, reference.Path(s.Ref), s.Insecure}
}

func (e endpoint) url(path string) string {
	return e.scheme + "://" + e.host + "/v2/" + e.repo + "/" + path
}

// get asks an endpoint, with its token and again where that helps. The caller
// closes the body.
func (c *Client) get(ctx context.Context, s Source, path string, header http.Header) (*http.Response, error) {
	e := newEndpoint(s)
	for try := 1; ; try++ {
		resp, err := c.ask(ctx, s.Ref, e, path, header)
		if err == nil || isStatus(err) {
			c.gone.Delete(e.host)
		}
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		if e.insecure && e.scheme == "https" && !isStatus(err) {
			c.logf("%v; trying plain HTTP", err)
			e.scheme = "http"
			try--
			continue
		}
		if _, gone := c.gone.Load(e.host); gone || !again(err) {
			return nil, err
		}
		if try >= c.tries() {
			if !isStatus(err) {
				c.gone.Store(e.host, true)
			}
			return nil, err
		}
		c.logf("%v; trying again", err)
		if err := c.wait(ctx, try, err); err != nil {
			return nil, err
		}
	}
}

func isStatus(err error) bool {
	var status *StatusError
	return errors.As(err, &status)
}

// again tells whether an error may be gone at the next try: what the network did,
// not what a registry answered.
func again(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return status.temporary()
	}
	var network *url.Error
	var cert *tls.CertificateVerificationError
	return errors.As(err, &network) && !errors.As(err, &cert) && !errors.Is(err, errRedirect)
}

// wait waits before the next try, longer each time, and as long as the registry asks.
func (c *Client) wait(ctx context.Context, try int, cause error) error {
	d := min(250*time.Millisecond<<(try-1), 10*time.Second)
	var status *StatusError
	if errors.As(cause, &status) && status.After > d {
		d = min(status.After, 2*c.patience())
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// ask asks once, or twice where the registry wants to know who asks.
func (c *Client) ask(ctx context.Context, ref reference.Named, e endpoint, path string, header http.Header) (*http.Response, error) {
	resp, err := c.send(ctx, e, path, header)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return checked(resp, err)
	}
	refused := statusError(resp)
	for _, challenge := range resp.Header.Values("WWW-Authenticate") {
		authorization, err := c.authorize(ctx, ref, e, challenge)
		if err != nil {
			return nil, err
		}
		if authorization != "" {
			c.tokens.Store(e, authorization)
			return checked(c.send(ctx, e, path, header))
		}
	}
	return nil, refused
}

func (c *Client) send(ctx context.Context, e endpoint, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(path), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if c.UserAgent != "" {
		req.Header.Set("User-Agent", c.UserAgent)
	}
	if a, ok := c.tokens.Load(e); ok {
		req.Header.Set("Authorization", a.(string))
	}
	return c.do(e.insecure, req)
}

// do sends a request whose answer must not stall.
func (c *Client) do(insecure bool, req *http.Request) (*http.Response, error) {
	resp, err := c.client(insecure).Do(req)
	var failed *url.Error
	if errors.As(err, &failed) {
		if u, bad := url.Parse(failed.URL); bad == nil {
			failed.URL = where(u)
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	resp.Body = &patient{ReadCloser: resp.Body, limit: c.patience(), stop: resp.Body.Close}
	return resp, nil
}

// where is a URL for people: a registry may redirect to one whose query is a secret.
func where(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// checked turns a refusal into an error.
func checked(resp *http.Response, err error) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, statusError(resp)
	}
	return resp, nil
}

func statusError(resp *http.Response) *StatusError {
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessage)) // for people
	e := &StatusError{Status: resp.StatusCode, URL: where(resp.Request.URL), Message: message(b)}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 && n < 3600 {
		e.After = time.Duration(n) * time.Second
	}
	return e
}

// message is what a registry says of an error: Distribution Specification, "Error
// Codes".
func message(b []byte) string {
	var v struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(b, &v) != nil || len(v.Errors) == 0 {
		return ""
	}
	return strconv.Quote(strings.TrimSpace(v.Errors[0].Code + " " + v.Errors[0].Message))
}

// readAll reads a body of at most n bytes.
func readAll(resp *http.Response, n int64) ([]byte, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, n+1))
	if err == nil && int64(len(b)) > n {
		return nil, fmt.Errorf("%s: more than %d bytes", where(resp.Request.URL), n)
	}
	if err != nil {
		return nil, &url.Error{Op: "Get", URL: where(resp.Request.URL), Err: err}
	}
	return b, nil
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// A DigestError is of bytes that are not those that were asked for.
type DigestError struct{ What, Got, Want string }

func (e *DigestError) Error() string {
	return fmt.Sprintf("%s: digest is %s: want %s", e.What, e.Got, e.Want)
}

// File fetches what lies outside registries, at most n bytes, under the same rules:
// over HTTPS, and nothing stalls.
func (c *Client) File(ctx context.Context, address string, n int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := checked(c.do(false, req))
	if err != nil {
		return nil, err
	}
	return readAll(resp, n)
}
