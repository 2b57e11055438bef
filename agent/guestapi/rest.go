package guestapi

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"github.com/plinth-os/plinth/workload"
)

// A REST answers one container, by HTTP. What it counts holds over all its calls of
// Serve: a container that is started again gets the same one.
//
// Evidence is made with data of the container's choice, as CoCo's clients want it. So
// who is granted evidence can attest to the broker with a key of its own, as this
// guest, and gets whatever the broker gives this guest.
type REST struct {
	Guest   Guest
	Grant   workload.API // what the measured configuration lets the container ask for
	Name    string       // the container's, for Logf
	Version string       // of the agent, for /info
	Logf    func(format string, args ...any)

	times  times // zero: defaultTimes
	events atomic.Int32
	once   sync.Once
	slots  chan struct{} // one for each request that is worked on
	lines  lineLimit
}

// Bounds of one container. What it exceeds them by waits or fails, and nobody else
// does.
const (
	maxHeader   = 16 << 10 // bytes; runtime data are in it
	maxBody     = 64 << 10 // bytes
	maxConns    = 32
	maxRequests = 4   // worked on at once; an answer has up to 2 MiB
	maxEvents   = 256 // until the guest stops
)

// times bound one request.
type times struct {
	read  time.Duration // of a request, from its first byte on
	queue time.Duration // until it is worked on
	work  time.Duration // of the guest: as long as api-server-rest waits (TTRPC_TIMEOUT)
	write time.Duration // of the answer
	idle  time.Duration // between requests
}

var defaultTimes = times{read: 10 * time.Second, queue: 10 * time.Second, work: 50 * time.Second, write: 15 * time.Second, idle: 10 * time.Second}

// Serve answers until ctx ends, and closes l. Requests under way are told by their
// contexts that nobody waits any more.
func (r *REST) Serve(ctx context.Context, l net.Listener) error {
	r.prepare()
	t := r.times
	srv := &http.Server{
		Handler:           r,
		ReadTimeout:       t.read,
		WriteTimeout:      t.read + t.queue + t.work + t.write,
		IdleTimeout:       t.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // the container would write it
		Protocols:         new(http.Protocols),
		ReadHeaderTimeout: t.read,

		DisableGeneralOptionsHandler: true,
	}
	srv.Protocols.SetHTTP1(true)
	defer srv.Close() // of connections, when the listener fails
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(netutil.LimitListener(l, maxConns)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (r *REST) prepare() {
	r.once.Do(func() {
		r.slots = make(chan struct{}, maxRequests)
		if r.times == (times{}) {
			r.times = defaultTimes
		}
	})
}

// ServeHTTP answers one request.
func (r *REST) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.prepare()
	wait := time.NewTimer(r.times.queue)
	defer wait.Stop()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
		r.answer(req).write(w)
		return
	case <-wait.C:
	case <-req.Context().Done():
	}
	text(http.StatusServiceUnavailable, "too many requests at once").write(w)
}

// answer does what is asked for. A mistake in that must not end PID 1, nor say more
// than that there is one.
func (r *REST) answer(req *http.Request) (a answer) {
	defer func() {
		if p := recover(); p != nil {
			r.logf("panic: %v", p)
			a = text(http.StatusInternalServerError, "internal error")
		}
	}()
	route, a, ok := r.route(req)
	if !ok {
		return a
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, maxBody+1))
	switch {
	case err != nil:
		return text(http.StatusBadRequest, "the request ends early")
	case len(body) > maxBody:
		return text(http.StatusRequestEntityTooLarge, "the request is too large")
	}
	ctx, cancel := context.WithTimeout(req.Context(), r.times.work)
	defer cancel()
	a, err = route(ctx, body)
	if err != nil {
		r.logf("%s %.200s: %v", req.Method, req.URL.Path, err)
		return failed(err)
	}
	return a
}

// logf says what went wrong, as far as a container may fill the log.
func (r *REST) logf(format string, args ...any) {
	if r.Logf != nil && r.lines.take(time.Now()) {
		r.Logf("api of "+r.Name+": "+format, args...)
	}
}

// A lineLimit lets some lines pass in each minute.
type lineLimit struct {
	mu    sync.Mutex
	since time.Time
	n     int
}

const linesPerMinute = 10

func (l *lineLimit) take(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since.IsZero() || now.Sub(l.since) >= time.Minute || now.Before(l.since) {
		l.since, l.n = now, 0
	}
	l.n++
	return l.n <= linesPerMinute
}
