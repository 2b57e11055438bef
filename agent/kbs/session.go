package kbs

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// A session is what one attestation led to. It does not change once it has a token.
type session struct {
	c          *Client
	cookies    []*http.Cookie
	key        *teeKey
	token      *Token
	generation uint64    // of Client.Generation, before the evidence was made
	until      time.Time // by our clock
}

// margin is how long before its end a token is no longer used: a request takes time.
const margin = 10 * time.Second

// holds reports whether s may be used for what was asked at a generation.
func (s *session) holds(asked uint64, now time.Time) bool {
	return s.generation >= asked && now.Before(s.until)
}

// get returns what the broker has under u.
func (s *session) get(ctx context.Context, u URI) ([]byte, error) {
	path := u.Plugin + u.path()
	if u.Query != "" {
		path += "?" + u.Query
	}
	var answer []byte
	err := s.c.retry(ctx, func() (err error) {
		answer, err = s.call(ctx, http.MethodGet, path, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	return openResponse(s.key, answer)
}

// A flight is an attestation under way, and those who wait for it. It ends with the
// last of them, not with the one who began it.
type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int // of Client.mu
	s       *session
	err     error
}

// session returns a session for what was asked at a generation, and whether it was made
// for this call.
func (c *Client) session(ctx context.Context, asked uint64) (s *session, fresh bool, err error) {
	for {
		f, s := c.join(ctx, asked)
		if s != nil {
			return s, false, nil
		}
		select {
		case <-f.done:
		case <-ctx.Done():
		}
		c.leave(f)
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		// One that began before the last measurement is of no use here.
		if f.err != nil || f.s.generation >= asked {
			return f.s, true, f.err
		}
	}
}

// join returns the session that may be used, or the flight to wait for.
func (c *Client) join(ctx context.Context, asked uint64) (*flight, *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && c.current.holds(asked, c.now()) {
		return nil, c.current
	}
	if c.flight == nil {
		c.flight = c.start(ctx)
	}
	c.flight.waiters++
	return c.flight, nil
}

// start begins an attestation. Client.mu is held.
func (c *Client) start(ctx context.Context) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{done: make(chan struct{}), cancel: cancel}
	go func() {
		defer cancel()
		c.land(f, c.retry(ctx, func() error { return c.fly(ctx, f) }))
	}()
	return f
}

// fly attests once. A mistake in that must not end PID 1.
func (c *Client) fly(ctx context.Context, f *flight) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	f.s, err = c.attest(ctx)
	return err
}

func (c *Client) land(f *flight, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.err = err
	if err == nil {
		c.current = f.s
	}
	if c.flight == f {
		c.flight = nil
	}
	close(f.done)
}

func (c *Client) leave(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiters--; f.waiters > 0 {
		return
	}
	f.cancel()
	if c.flight == f {
		c.flight = nil // nobody joins what is being cancelled
	}
}

// drop forgets a session that the broker does not take.
func (c *Client) drop(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == s {
		c.current = nil
	}
}
