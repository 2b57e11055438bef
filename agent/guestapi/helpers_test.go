package guestapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinth-os/plinth/workload"
)

// canary is in every secret, and never in a log or an error.
const canary = "c4n4ry-of-the-secrets"

// fakeGuest keeps a journal. Before it answers it does what before says.
type fakeGuest struct {
	mu      sync.Mutex
	journal []string
	err     error
	before  func(ctx context.Context, line string)
	token   string // of a mistaken guest
	noTEEs  bool
}

func (g *fakeGuest) note(ctx context.Context, format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	g.mu.Lock()
	g.journal = append(g.journal, line)
	g.mu.Unlock()
	if g.before != nil {
		g.before(ctx, line)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return g.err
}

func (g *fakeGuest) take() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := strings.Join(g.journal, "\n")
	g.journal = nil
	return s
}

func (g *fakeGuest) Resource(ctx context.Context, uri string) ([]byte, error) {
	return []byte("resource " + canary), g.note(ctx, "resource %s", uri)
}

func (g *fakeGuest) Evidence(ctx context.Context, data []byte) ([]byte, error) {
	return []byte(`{"quote":1}`), g.note(ctx, "evidence %q", data)
}

func (g *fakeGuest) AdditionalEvidence(ctx context.Context, data []byte) ([]byte, error) {
	return []byte(`{"sampledevice":{}}`), g.note(ctx, "additional evidence %q", data)
}

func (g *fakeGuest) Token(ctx context.Context, withKey bool) ([]byte, error) {
	b := `{"token":"a.b.c"}`
	if withKey {
		b = `{"token":"a.b.c","tee_keypair":"-----BEGIN PRIVATE KEY----- ` + canary + `"}`
	}
	if g.token != "" {
		b = g.token
	}
	return []byte(b), g.note(ctx, "token %t", withKey)
}

func (g *fakeGuest) Measure(ctx context.Context, e workload.Event) error {
	return g.note(ctx, "measure %s", e.Text())
}

func (g *fakeGuest) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	return []byte("plain " + canary), g.note(ctx, "unseal %s", sealed)
}

func (g *fakeGuest) UnwrapKey(ctx context.Context, packet []byte) ([]byte, error) {
	return []byte{0, 127, 128, 255}, g.note(ctx, "unwrap %s", packet)
}

func (g *fakeGuest) SecureMount(ctx context.Context, r MountRequest) error {
	return g.note(ctx, "mount %s %v %v %s", r.VolumeType, r.Options, r.Flags, r.MountPoint)
}

func (g *fakeGuest) TEE() string { return "tpm" }

func (g *fakeGuest) AdditionalTEEs() []string {
	if g.noTEEs {
		return nil
	}
	return []string{"sampledevice"}
}

// everything is the widest grant.
var everything = workload.API{Resources: []string{"kbs:///"}, Evidence: true, Token: true, TEEKey: true, Measure: true}

// logs keeps what was logged.
type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// start serves r at loopback and returns where.
func start(t testing.TB, r *REST) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	startAt(t, r, l)
	return l.Addr().String()
}

func startAt(t testing.TB, r *REST, l net.Listener) context.CancelFunc {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cancel
}

// send writes one request as it is, and reads the answer: status 0 for none.
func send(t testing.TB, addr, raw string) (int, http.Header, string) {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return exchange(t, conn, raw)
}

func exchange(t testing.TB, conn net.Conn, raw string) (int, http.Header, string) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(conn, raw) }() // an answer may come before the end of it
	method, _, _ := strings.Cut(raw, " ")
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return 0, nil, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil && resp.StatusCode == http.StatusOK {
		t.Error(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// get is what curl sends.
func get(target string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: 127.0.0.1:8006\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"
}

func post(target, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: 127.0.0.1:8006\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", target, len(body), body)
}
