package guestapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/workload"
)

const event = `{"domain":"example.com","operation":"Start","content":"{\"a\":1}"}`

// operations are one request of each kind; the guest's journal is what one that is
// granted leaves there.
var operations = []struct{ name, raw, journal string }{
	{"info", get("/info"), ""},
	{"tag", get("/cdh/resource/r/t/tag"), "resource kbs:///r/t/tag"},
	{"tag2", get("/cdh/resource/r/t/tag2"), "resource kbs:///r/t/tag2"},
	{"type2", get("/cdh/resource/r/t2/tag"), "resource kbs:///r/t2/tag"},
	{"repo2", get("/cdh/resource/r2/t/tag"), "resource kbs:///r2/t/tag"},
	{"evidence", get("/aa/evidence?runtime_data=x"), `evidence "x"`},
	{"devices", get("/aa/additional-evidence?runtime_data=x"), `additional evidence "x"`},
	{"token", get("/aa/token?token_type=kbs"), "token false"},
	{"aael", post("/aa/aael", event), `measure example.com Start {"a":1}`},
}

// Every grant by every operation: what is granted is done, and of all else the guest
// never hears.
func TestGrants(t *testing.T) {
	for _, tt := range []struct {
		name, feature string
		grant         workload.API
		granted       string // of operations, in their order: 1 or 0
	}{
		{"nothing", "none", workload.API{}, "100000000"},
		{"one tag", "resource", workload.API{Resources: []string{"kbs:///r/t/tag"}}, "110000000"},
		{"a type", "resource", workload.API{Resources: []string{"kbs:///r/t/"}}, "111000000"},
		{"a repository", "resource", workload.API{Resources: []string{"kbs:///r/"}}, "111100000"},
		{"all resources", "resource", workload.API{Resources: []string{"kbs:///"}}, "111110000"},
		{"two", "resource", workload.API{Resources: []string{"kbs:///r/t2/", "kbs:///r2/t/tag"}}, "100110000"},
		{"a segment's beginning", "resource", workload.API{Resources: []string{"kbs:///r", "kbs:///r/t", "kbs:///r/t/ta", "kbs://"}}, "100000000"},
		{"malformed", "resource", workload.API{Resources: []string{"/", "", "kbs:////", "//", "kbs:///r/t//", "r/t/tag", "kbs:///r/../", "kbs:///*"}}, "100000000"},
		{"capitals", "resource", workload.API{Resources: []string{"kbs:///R/T/TAG", "KBS:///r/"}}, "100000000"},
		{"another broker's", "resource", workload.API{Resources: []string{"kbs://broker.example.com/r/"}}, "100000000"},
		{"evidence", "attestation", workload.API{Evidence: true}, "100001100"},
		{"token", "attestation", workload.API{Token: true}, "100000010"},
		{"key without token", "none", workload.API{TEEKey: true}, "100000000"},
		{"measure", "attestation", workload.API{Measure: true}, "100000001"},
		{"two features", "all", workload.API{Measure: true, Resources: []string{"kbs:///r/t/tag"}}, "110000001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &fakeGuest{}
			addr := start(t, &REST{Guest: g, Grant: tt.grant, Name: "web", Version: "1.2.3"})
			for i, op := range operations {
				status, h, body := send(t, addr, op.raw)
				want, journal := http.StatusForbidden, ""
				if tt.granted[i] == '1' {
					want, journal = http.StatusOK, op.journal
				}
				if got := g.take(); status != want || got != journal {
					t.Errorf("%s: %d %q, guest: %q; want %d, %q", op.name, status, body, got, want, journal)
				}
				if status == http.StatusForbidden && !strings.Contains(body, "does not grant") {
					t.Errorf("%s: %q", op.name, body)
				}
				if h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" {
					t.Errorf("%s: %v", op.name, h)
				}
				if op.name == "info" && !strings.Contains(body, `"feature":"`+tt.feature+`"`) {
					t.Errorf("info: %s, want feature %s", body, tt.feature)
				}
			}
		})
	}
}

// The answers are those of api-server-rest, byte for byte: its router.rs and
// client/aa.rs.
func TestAnswers(t *testing.T) {
	g := &fakeGuest{}
	addr := start(t, &REST{Guest: g, Grant: everything, Version: "1.2.3"})
	for _, tt := range []struct{ raw, kind, body string }{
		{get("/info"), "application/json", `{"version":"1.2.3","tee":"tpm","additional_tees":["sampledevice"],"feature":"all"}`},
		{get("/cdh/resource/r/t/tag"), "application/octet-stream", "resource " + canary},
		{get("/cdh/resource/r/t/tag?ignored=1"), "application/octet-stream", "resource " + canary},
		{get("/aa/evidence?runtime_data=x"), "application/octet-stream", `{"quote":1}`},
		{get("/aa/additional-evidence?runtime_data="), "application/octet-stream", `{"sampledevice":{}}`},
		{get("/aa/token?token_type=kbs"), "application/octet-stream", `{"token":"a.b.c","tee_keypair":"-----BEGIN PRIVATE KEY----- ` + canary + `"}`},
		{post("/aa/aael", event), "application/json", `{"success":"true"}`},
	} {
		status, h, body := send(t, addr, tt.raw)
		if status != 200 || h.Get("Content-Type") != tt.kind || body != tt.body {
			t.Errorf("%.40q: %d %s %q, want %s %q", tt.raw, status, h.Get("Content-Type"), body, tt.kind, tt.body)
		}
	}
	g.err, g.noTEEs = ErrNoRegister, true
	_, _, body := send(t, addr, post("/aa/aael", event))
	if want := `{"success":"false","message": "The platform does not support runtime measurement"}`; body != want {
		t.Errorf("without a register: %s", body)
	}
	if _, _, body = send(t, addr, get("/info")); body != `{"version":"1.2.3","tee":"tpm","feature":"all"}` {
		t.Errorf("without devices: %s", body)
	}
}

// Without the grant no key leaves, not even when the guest makes a mistake.
func TestTokenWithoutKey(t *testing.T) {
	l := &logs{}
	g := &fakeGuest{}
	addr := start(t, &REST{Guest: g, Grant: workload.API{Token: true}, Logf: l.logf})
	if status, _, body := send(t, addr, get("/aa/token?token_type=kbs")); status != 200 || body != `{"token":"a.b.c"}` {
		t.Errorf("%d %s", status, body)
	}
	for _, token := range []string{`{"token":"a.b.c","tee_keypair":"` + canary + `"}`, `{"token":"x","TEE_KEYPAIR":"` + canary + `"}`, canary, `["` + canary + `"]`} {
		g.token = token
		status, _, body := send(t, addr, get("/aa/token?token_type=kbs"))
		if status != 500 || strings.Contains(body, canary) {
			t.Errorf("%s: %d %s", token, status, body)
		}
	}
	if s := l.String(); s == "" || strings.Contains(s, canary) {
		t.Errorf("the log is %q", s)
	}
}

// tooLarge is 431, or a connection that the server closed before all was sent.
const tooLarge = -http.StatusRequestHeaderFieldsTooLarge

func TestHostileRequests(t *testing.T) {
	g := &fakeGuest{}
	addr := start(t, &REST{Guest: g, Grant: everything})
	with := func(header string) string {
		return "GET /cdh/resource/r/t/tag HTTP/1.1\r\nHost: 127.0.0.1:8006\r\n" + header + "\r\n\r\n"
	}
	host := func(h string) string { return "GET /cdh/resource/r/t/tag HTTP/1.1\r\nHost: " + h + "\r\n\r\n" }
	for _, tt := range []struct {
		name, raw string
		want      int
	}{
		// Whose request it is.
		{"rebound name", host("evil.example.com"), 403},
		{"rebound name and port", host("evil.example.com:8006"), 403},
		{"another port", host("127.0.0.1:80"), 403},
		{"another address", host("127.0.0.2:8006"), 403},
		{"a name that begins so", host("localhost.evil.example.com:8006"), 403},
		{"an end dot", host("localhost.:8006"), 403},
		{"a user", host("x@127.0.0.1:8006"), 400},
		{"IPv6", host("[::1]:8006"), 403},
		{"empty host", host(""), 403},
		{"no host, 1.1", "GET /info HTTP/1.1\r\n\r\n", 400},
		{"no host, 1.0", "GET /info HTTP/1.0\r\n\r\n", 403},
		{"two hosts", "GET /info HTTP/1.1\r\nHost: 127.0.0.1:8006\r\nHost: evil.example.com\r\n\r\n", 400},
		{"host and a good absolute form", "GET http://127.0.0.1:8006/info HTTP/1.1\r\nHost: evil.example.com\r\n\r\n", 400},
		{"absolute form", "GET http://evil.example.com/info HTTP/1.1\r\nHost: 127.0.0.1:8006\r\n\r\n", 400},
		{"origin", with("Origin: http://evil.example.com"), 403},
		{"origin of this server", with("Origin: http://127.0.0.1:8006"), 403},
		{"null origin", with("Origin: null"), 403},
		{"empty origin", with("Origin:"), 403},
		{"origin in small letters", with("origin: x"), 403},
		{"proxied", with("X-Forwarded-For: 10.0.0.1"), 403},
		{"proxied, RFC 7239", with("Forwarded: for=10.0.0.1"), 403},
		{"connect", "CONNECT 127.0.0.1:8006 HTTP/1.1\r\nHost: 127.0.0.1:8006\r\n\r\n", 400},

		// Paths.
		{"root", get("/"), 404},
		{"another path", get("/aa"), 404},
		{"slash behind", get("/info/"), 404},
		{"capitals", get("/INFO"), 404},
		{"host in the path", get("//127.0.0.1/info"), 404},
		{"escaped slash", get("/cdh/resource/r%2Ft%2Ftag"), 400},
		{"escaped dots", get("/cdh/resource/r/t/%2e%2e"), 400},
		{"escaped letter", get("/%69nfo"), 400},
		{"NUL", get("/cdh/resource/r/t/tag%00"), 400},
		{"backslash", get(`/cdh/resource/r\t\tag`), 400},
		{"parameter of a segment", get("/cdh/resource/r/t/tag;x"), 400},
		{"UTF-8", get("/cdh/resource/r/t/täg"), 400},
		{"dots", get("/cdh/resource/r/t/.."), 400},
		{"dots within", get("/cdh/resource/r/../r/t/tag"), 400},
		{"dots to another path", get("/cdh/resource/../../info"), 400},
		{"a dot first", get("/cdh/resource/r/t/.tag"), 400},
		{"empty segment", get("/cdh/resource/r//tag"), 400},
		{"two slashes", get("/cdh//resource/r/t/tag"), 404},
		{"two segments", get("/cdh/resource/r/t"), 400},
		{"four segments", get("/cdh/resource/r/t/tag/x"), 400},
		{"no segment", get("/cdh/resource/"), 400},
		{"a URI", get("/cdh/resource/kbs:///r/t/tag"), 400},
		{"a broker", get("/cdh/resource/@evil.example.com/r/t/tag"), 400},
		{"tilde", get("/cdh/resource/r/t/~tag"), 400},
		{"long path", get("/cdh/resource/r/t/" + strings.Repeat("a", 3000)), 400},
		{"longer path", get("/cdh/resource/r/t/" + strings.Repeat("a", 1<<20)), tooLarge},

		// Methods and bodies.
		{"post to get", "POST /info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405},
		{"delete", "DELETE /cdh/resource/r/t/tag HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		{"head", "HEAD /cdh/resource/r/t/tag HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		{"get with small letters", "get /info HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		{"options of all", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
		{"options", "OPTIONS /aa/aael HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
		{"get to post", get("/aa/aael"), 405},
		{"get with a body", "GET /info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx", 400},
		{"get in chunks", "GET /info HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"two lengths", "POST /aa/aael HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
		{"length and chunks", "POST /aa/aael HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{}", 501},
		{"large body", post("/aa/aael", strings.Repeat(" ", maxBody+1)), 413},
		{"endless body", "POST /aa/aael HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n" + strings.Repeat(" ", 1<<20), 413},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 403},
		{"header of 64 KiB", with("X: " + strings.Repeat("a", 64<<10)), tooLarge},
		{"many headers", with(strings.Repeat("X: a\r\n", 20000) + "X: a"), tooLarge},
		{"garbage", "\x16\x03\x01\x02\x00\r\n\r\n", 400},

		// Parameters.
		{"no runtime data", get("/aa/evidence"), 400},
		{"runtime data twice", get("/aa/evidence?runtime_data=a&runtime_data=b"), 400},
		{"another encoding", get("/aa/evidence?runtime_data=a&encoding=hex"), 400},
		{"encoding twice", get("/aa/evidence?runtime_data=a&encoding=base64&encoding=base64"), 400},
		{"empty encoding", get("/aa/evidence?runtime_data=a&encoding="), 400},
		{"no base64", get("/aa/evidence?runtime_data=!!!&encoding=base64"), 400},
		{"standard base64", get("/aa/evidence?runtime_data=%2B%2B%2B%2B&encoding=base64"), 400},
		{"base64 with padding", get("/aa/evidence?runtime_data=YQ%3D%3D&encoding=base64"), 400},
		{"base64 with line end", get("/aa/evidence?runtime_data=YW%0AE&encoding=base64"), 400},
		{"base64 with bits left", get("/aa/evidence?runtime_data=YR&encoding=base64"), 400},
		{"broken escape", get("/aa/evidence?runtime_data=%4"), 400},
		{"semicolon", get("/aa/evidence?runtime_data=a;b=c"), 400},
		{"no UTF-8", get("/aa/evidence?runtime_data=%ff"), 400},
		{"65 bytes", get("/aa/evidence?runtime_data=" + strings.Repeat("a", 65)), 400},
		{"65 bytes of devices", get("/aa/additional-evidence?runtime_data=" + strings.Repeat("a", 65)), 400},
		{"no token type", get("/aa/token"), 400},
		{"another token type", get("/aa/token?token_type=coco_as"), 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, h, body := send(t, addr, tt.raw)
			if tt.want == tooLarge && (status == 0 || status == -tooLarge) {
				status = tooLarge
			}
			if journal := g.take(); status != tt.want || journal != "" {
				t.Errorf("%d %.200q, guest: %q; want %d and nothing", status, body, journal, tt.want)
			}
			if len(body) > 512 || strings.Contains(body, "evil") {
				t.Errorf("%q", body)
			}
			if (status == 405) != (h.Get("Allow") != "") {
				t.Errorf("Allow: %q", h.Get("Allow"))
			}
		})
	}
}

func TestAllowedRequests(t *testing.T) {
	g := &fakeGuest{}
	addr := start(t, &REST{Guest: g, Grant: everything})
	all := "%00%01" + strings.Repeat("%7e", 62)
	for _, tt := range []struct{ raw, journal string }{
		{"GET /cdh/resource/a_b-c.d/t/tag HTTP/1.1\r\nHost: localhost\r\n\r\n", "resource kbs:///a_b-c.d/t/tag"},
		{"GET /cdh/resource/r/t/tag HTTP/1.0\r\nHost: localhost:8006\r\n\r\n", "resource kbs:///r/t/tag"},
		{"GET /cdh/resource/r/t/tag HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "resource kbs:///r/t/tag"},
		{get("/aa/evidence?runtime_data=" + all), fmt.Sprintf("evidence %q", "\x00\x01"+strings.Repeat("~", 62))},
		{get("/aa/evidence?runtime_data=-_-_&encoding=base64"), `evidence "\xfb\xff\xbf"`},
		{get("/aa/evidence?runtime_data=a+b%C3%A4"), `evidence "a bä"`},
		{get("/aa/additional-evidence?encoding=base64&runtime_data="), `additional evidence ""`},
	} {
		status, _, body := send(t, addr, tt.raw)
		if journal := g.take(); status != 200 || journal != tt.journal {
			t.Errorf("%.60q: %d %s, guest: %q, want %q", tt.raw, status, body, journal, tt.journal)
		}
	}
}

// A peer that is not loopback is not answered, wherever the listener is.
func TestPeers(t *testing.T) {
	g := &fakeGuest{}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &farListener{Listener: l}
	startAt(t, &REST{Guest: g, Grant: everything}, f)
	for peer, want := range map[string]int{"10.0.0.1": 403, "128.0.0.1": 403, "::ffff:10.0.0.1": 403, "fe80::1": 403, "127.0.0.1": 200, "127.1.2.3": 200, "::1": 200, "::ffff:127.0.0.1": 200} {
		f.peer.Store(&net.TCPAddr{IP: net.ParseIP(peer), Port: 5})
		if status, _, body := send(t, l.Addr().String(), get("/cdh/resource/r/t/tag")); status != want || (want == 403) != (g.take() == "") {
			t.Errorf("%s: %d %s", peer, status, body)
		}
	}
}

type farListener struct {
	net.Listener
	peer atomic.Pointer[net.TCPAddr]
}

func (l *farListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return farConn{c, l.peer.Load()}, err
}

type farConn struct {
	net.Conn
	peer *net.TCPAddr
}

func (c farConn) RemoteAddr() net.Addr { return c.peer }

// What the broker said keeps its meaning, and its text is for the guest's log alone.
func TestBrokerErrors(t *testing.T) {
	const detail = "detail of the broker"
	for _, tt := range []struct {
		err  error
		want int
		body string
	}{
		{&kbs.StatusError{Status: 401, Detail: detail}, 401, "does not accept"},
		{&kbs.StatusError{Status: 401, Kind: "PolicyDeny", Detail: detail}, 403, "refuses"},
		{&kbs.StatusError{Status: 403, Detail: detail}, 403, "refuses"},
		{&kbs.StatusError{Status: 404, Detail: detail}, 404, "no such resource"},
		{&kbs.StatusError{Status: 503, Detail: detail}, 500, "cannot"},
		{fmt.Errorf("%s: %w", detail, &kbs.StatusError{Status: 403}), 403, "refuses"},
		{&kbs.VersionError{Client: "0.4.0", Server: "0.2.0"}, 502, "0.2.0"},
		{context.DeadlineExceeded, 504, "time"},
		{errors.New(detail), 500, "cannot"},
	} {
		l := &logs{}
		g := &fakeGuest{err: tt.err}
		addr := start(t, &REST{Guest: g, Grant: everything, Name: "web", Logf: l.logf})
		for _, op := range operations[1:] {
			status, h, body := send(t, addr, op.raw)
			if status != tt.want || !strings.Contains(body, tt.body) || strings.Contains(body, detail) || strings.Contains(body, canary) {
				t.Errorf("%s: %v: %d %q, want %d %q", op.name, tt.err, status, body, tt.want, tt.body)
			}
			if kind := h.Get("Content-Type"); kind != kindText {
				t.Errorf("%s: %s", op.name, kind)
			}
		}
		if s := l.String(); !strings.Contains(s, "api of web: GET /cdh/resource/r/t/tag: "+tt.err.Error()) || strings.Contains(s, canary) || strings.Contains(s, "runtime_data") {
			t.Errorf("the log is %q", s)
		}
	}
}

// A guest that takes its time is waited for, longer than for a request.
func TestSlowGuest(t *testing.T) {
	var ended atomic.Bool
	g := &fakeGuest{before: func(ctx context.Context, _ string) {
		select {
		case <-ctx.Done():
			ended.Store(true)
		case <-time.After(600 * time.Millisecond):
		}
	}}
	r := &REST{Guest: g, Grant: everything, times: defaultTimes}
	r.times.read = 200 * time.Millisecond
	addr := start(t, r)
	for _, raw := range []string{get("/cdh/resource/r/t/tag"), post("/aa/aael", event)} {
		if status, _, body := send(t, addr, raw); status != 200 || ended.Load() {
			t.Errorf("%d %s, context ended: %t", status, body, ended.Load())
		}
	}
}

// Times end what is slow.
func TestTimes(t *testing.T) {
	g := &fakeGuest{before: func(ctx context.Context, line string) {
		if !strings.HasPrefix(line, "measure") {
			<-ctx.Done()
		}
	}, err: context.DeadlineExceeded}
	short := 100 * time.Millisecond
	r := &REST{Guest: g, Grant: everything, times: times{read: short, queue: short, work: 3 * short, write: short, idle: short}}
	addr := start(t, r)
	if status, _, body := send(t, addr, get("/cdh/resource/r/t/tag")); status != 504 {
		t.Errorf("work: %d %s", status, body)
	}
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	if status, _, body := exchange(t, conn, "GET /info HTTP/1.1\r\nHost: loc"); status != 0 || time.Since(begin) > 5*time.Second {
		t.Errorf("half a header: %d %s in %v", status, body, time.Since(begin))
	}
	if status, _, body := send(t, addr, "POST /aa/aael HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"); status != 400 {
		t.Errorf("half a body: %d %s", status, body)
	}
	// All slots taken: the next waits, and is told.
	var group sync.WaitGroup
	for range maxRequests {
		group.Go(func() { send(t, addr, get("/cdh/resource/r/t/tag")) })
	}
	time.Sleep(short / 2)
	if status, _, body := send(t, addr, get("/info")); status != 503 {
		t.Errorf("queue: %d %s", status, body)
	}
	group.Wait()
}

// At most so many at once reach the guest, and of connections are held.
func TestBounds(t *testing.T) {
	var now, most atomic.Int32
	gate := make(chan struct{})
	g := &fakeGuest{before: func(context.Context, string) {
		most.Store(max(most.Load(), now.Add(1)))
		<-gate
		now.Add(-1)
	}}
	addr := start(t, &REST{Guest: g, Grant: everything})
	var group sync.WaitGroup
	for range 4 * maxRequests {
		group.Go(func() {
			if status, _, body := send(t, addr, get("/cdh/resource/r/t/tag")); status != 200 {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	close(gate)
	group.Wait()
	if most.Load() != maxRequests {
		t.Errorf("%d at once, want %d", most.Load(), maxRequests)
	}
	var idle []net.Conn
	for range maxConns {
		conn, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	time.Sleep(100 * time.Millisecond)
	conn, err := net.Dial("tcp4", addr) // the kernel takes it, the server does not
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, get("/info"))
	_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("one more than %d is answered", maxConns)
	}
	idle[0].Close()
	if status, _, _ := exchange(t, conn, ""); status != 200 {
		t.Errorf("with a place free: %d", status)
	}
}

// A mistake in one request ends that one.
func TestPanic(t *testing.T) {
	l := &logs{}
	g := &fakeGuest{before: func(context.Context, string) { panic("boom") }}
	addr := start(t, &REST{Guest: g, Grant: everything, Name: "web", Logf: l.logf})
	for range 2 * maxRequests { // and gives back its slot
		if status, _, body := send(t, addr, get("/cdh/resource/r/t/tag")); status != 500 || strings.Contains(body, "boom") {
			t.Errorf("%d %s", status, body)
		}
	}
	if !strings.Contains(l.String(), "api of web: panic: boom") {
		t.Errorf("the log is %q", l)
	}
}

// A container cannot fill the log.
func TestLogIsBounded(t *testing.T) {
	l := &logs{}
	addr := start(t, &REST{Guest: &fakeGuest{err: errors.New("no")}, Grant: everything, Logf: l.logf})
	for range 5 * linesPerMinute {
		send(t, addr, get("/cdh/resource/r/t/tag"))
	}
	if n := len(l.lines); n != linesPerMinute {
		t.Errorf("%d lines, want %d", n, linesPerMinute)
	}
	var limit lineLimit
	at := time.Unix(1e9, 0)
	n := 0
	for i := range 600 { // ten minutes
		if limit.take(at.Add(time.Duration(i) * time.Second)) {
			n++
		}
	}
	if n != 10*linesPerMinute {
		t.Errorf("%d lines in ten minutes", n)
	}
}

// When a container is gone, nobody answers, and nothing of it is waited for.
func TestServeEnds(t *testing.T) {
	started := make(chan struct{})
	ended := make(chan struct{})
	g := &fakeGuest{before: func(ctx context.Context, _ string) {
		close(started)
		<-ctx.Done()
		close(ended)
	}}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cancel := startAt(t, &REST{Guest: g, Grant: everything}, l)
	got := make(chan int)
	go func() {
		status, _, _ := send(t, l.Addr().String(), get("/cdh/resource/r/t/tag"))
		got <- status
	}()
	<-started
	cancel()
	<-ended
	if status := <-got; status == 200 {
		t.Errorf("answered %d", status)
	}
	if conn, err := net.Dial("tcp4", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("it listens still")
	}
	// Ended before it began: the listener is closed all the same.
	if l, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := (&REST{Guest: g}).Serve(ctx, l); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener: %v", err)
	}
}
