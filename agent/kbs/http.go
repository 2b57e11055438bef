package kbs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/plinth-os/plinth/evidence"
)

// Bounds on what a broker may answer, and on the way to it.
const (
	maxAnswer  = 2 << 20  // bytes of a body
	maxRefusal = 64 << 10 // bytes of one that is read for its reason
	maxHeader  = 16 << 10 // bytes of all headers
	maxCookies = 8

	// maxBearer bounds the token that is sent besides the session's cookie. Servers
	// take so much of headers and not much more; Trustee asks the cookie first.
	maxBearer = 8 << 10

	dialTime = 10 * time.Second
	idleTime = 30 * time.Second
)

var (
	errTooLong  = fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	errRedirect = errors.New("the broker redirects; no other is asked")
)

// checkURL wants "https://host[:port]", and returns "host:port".
func checkURL(raw string, allowHTTP bool) (string, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", fmt.Errorf("broker %.200q: not a URL", raw)
	}
	if u.Scheme == "http" && !allowHTTP {
		return "", fmt.Errorf("broker %.200q: want https", raw)
	}
	if !strings.HasPrefix(raw, u.Scheme+"://") || u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery ||
		u.Fragment != "" || strings.HasSuffix(raw, "#") || u.Path != "" && u.Path != "/" {
		return "", fmt.Errorf("broker %.200q: want https://HOST[:PORT]", raw)
	}
	host, err := uriBroker(u.Host)
	if err != nil || host == "" {
		return "", fmt.Errorf("broker %.200q: want https://HOST[:PORT]", raw)
	}
	return endpoint(host, u.Scheme), nil
}

// newHTTP returns the way to the one broker: no proxy that was not given, no
// redirects, no compression (an answer is as long as it looks), HTTP/1.1.
func (c *Client) newHTTP() *http.Client {
	dialer := &net.Dialer{Timeout: dialTime}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  c.Proxy,
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12, Time: c.Now},
			TLSHandshakeTimeout:    dialTime,
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true,
			MaxIdleConns:           2,
			IdleConnTimeout:        idleTime,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// call sends one request of a session and returns the body of its answer, which must
// be 200.
func (s *session) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.c.timeout())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(s.c.URL, "/")+"/kbs/v0/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	s.head(req)
	resp, err := s.c.http().Do(req)
	if err != nil {
		var request *url.Error // it says of itself that it is a net.Error, whatever is in it
		if errors.As(err, &request) {
			err = request.Err
		}
		return nil, &NetworkError{err}
	}
	defer resp.Body.Close()
	answer, err := readAnswer(resp)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return nil, fmt.Errorf("%w (%d)", errRedirect, resp.StatusCode)
	case resp.StatusCode != http.StatusOK:
		return nil, refusal(resp.StatusCode, answer)
	}
	return answer, s.keep(resp.Cookies())
}

func (s *session) head(req *http.Request) {
	if req.Method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", s.c.userAgent())
	for _, c := range s.cookies {
		req.AddCookie(c)
	}
	if s.token != nil && (len(s.cookies) == 0 || len(s.token.JWT) <= maxBearer) {
		req.Header.Set("Authorization", "Bearer "+s.token.JWT)
	}
}

func readAnswer(resp *http.Response) ([]byte, error) {
	if resp.StatusCode != http.StatusOK { // what it says besides is for people
		b, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		return b, nil
	}
	if resp.ContentLength > maxAnswer {
		return nil, errTooLong
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, &NetworkError{err}
	}
	if len(b) > maxAnswer {
		return nil, errTooLong
	}
	return b, nil
}

// keep remembers the cookies of the answers to auth and attest for the rest of the
// session. When they expire is the broker's to say, once it is asked: the clocks may
// differ.
func (s *session) keep(cookies []*http.Cookie) error {
	if s.token != nil {
		return nil // others may read s by now
	}
	for _, c := range cookies {
		s.cookies = slices.DeleteFunc(s.cookies, func(old *http.Cookie) bool { return old.Name == c.Name })
		s.cookies = append(s.cookies, &http.Cookie{Name: c.Name, Value: c.Value, Quoted: c.Quoted})
	}
	if len(s.cookies) > maxCookies {
		return fmt.Errorf("more than %d cookies", maxCookies)
	}
	return nil
}

func (c *Client) userAgent() string {
	if c.UserAgent != "" {
		return c.UserAgent
	}
	return "plinth-agent kbs/" + evidence.ProtocolVersion
}

// How often something is tried that failed for now, and how long to wait between: in
// all some 24 seconds, so that a broker may start anew.
const (
	attempts   = 8
	firstPause = 250 * time.Millisecond
	longPause  = 8 * time.Second
)

// retry calls f until it succeeds or fails for good.
func (c *Client) retry(ctx context.Context, f func() error) error {
	pause := firstPause
	for n := 1; ; n++ {
		err := f()
		if err == nil || n == attempts || ctx.Err() != nil || !passing(err) {
			return err
		}
		c.logf("kbs: %s: attempt %d: %v", c.URL, n, err)
		if c.sleep(ctx, pause) != nil {
			return err
		}
		pause = min(2*pause, longPause)
	}
}

func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	if c.Sleep != nil {
		return c.Sleep(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
