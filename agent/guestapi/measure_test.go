package guestapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinth-os/plinth/workload"
)

func TestEvents(t *testing.T) {
	g := &fakeGuest{}
	addr := start(t, &REST{Guest: g, Grant: workload.API{Measure: true}})
	doc := func(domain, operation, content string) string {
		b, err := json.Marshal(map[string]string{"domain": domain, "operation": operation, "content": content})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tt := range []struct {
		name, body string
		want       int
	}{
		{"a URI", doc("https://example.com/x", "Start", "a b c"), 200},
		{"empty content", doc("example.com", "Start", ""), 200},
		{"content of 4096", doc("example.com", "Start", strings.Repeat("a", 4096)), 200},
		{"other letters", doc("example.com", "Start", "grün 日本"), 200},
		{"names alike", doc("github.com/plinth-os", "Start", ""), 200},

		{"empty domain", doc("", "Start", "x"), 400},
		{"empty operation", doc("example.com", "", "x"), 400},
		{"space in the domain", doc("example.com x", "Start", "x"), 400},
		{"space before the domain", doc(" example.com", "Start", "x"), 400},
		{"space in the operation", doc("example.com", "Start it", "x"), 400},
		{"tab in the operation", doc("example.com", "Start\tit", "x"), 400},
		{"other letters in the domain", doc("exämple.com", "Start", "x"), 400},
		{"no-break space", doc("example.com", "Start\u00a0x", "x"), 400},
		{"long domain", doc(strings.Repeat("a", 257), "Start", "x"), 400},
		{"long operation", doc("example.com", strings.Repeat("a", 257), "x"), 400},
		{"two lines", doc("example.com", "Start", "a\nb"), 400},
		{"carriage return", doc("example.com", "Start", "a\rb"), 400},
		{"line end of Unicode", doc("example.com", "Start", "a\u2028b"), 400},
		{"next line", doc("example.com", "Start", "a\u0085b"), 400},
		{"NUL", doc("example.com", "Start", "a\x00b"), 400},
		{"escape of a terminal", doc("example.com", "Start", "\x1b[2J"), 400},
		{"right to left", doc("example.com", "Start", "\u202eabc"), 400},
		{"content of 4097", doc("example.com", "Start", strings.Repeat("a", 4097)), 400},
		{"no UTF-8", "{\"domain\":\"example.com\",\"operation\":\"Start\",\"content\":\"\xff\"}", 400},

		{"no JSON", "domain=example.com", 400},
		{"empty", "", 400},
		{"a list", "[]", 400},
		{"null", "null", 400},
		{"no content", `{"domain":"example.com","operation":"Start"}`, 400},
		{"null content", `{"domain":"example.com","operation":"Start","content":null}`, 400},
		{"content is an object", `{"domain":"example.com","operation":"Start","content":{}}`, 400},
		{"domain twice", `{"domain":"example.com","domain":"github.com/plinth-os/plinth","operation":"Start","content":""}`, 400},
		{"domain in capitals", `{"Domain":"example.com","operation":"Start","content":""}`, 400},
		{"a register", `{"domain":"example.com","operation":"Start","content":"","register_index":8}`, 400},
		{"more behind", doc("example.com", "Start", "x") + "{}", 400},

		{"the agent's domain", doc(workload.DomainPlinth, "Separator", "{}"), 403},
		{"CoCo's domain", doc(workload.DomainCoCo, "PullImage", "{}"), 403},
		{"in capitals", doc("GitHub.com/Plinth-OS/plinth", "Separator", "{}"), 403},
		{"with a scheme", doc("https://github.com/plinth-os/plinth", "Separator", "{}"), 403},
		{"with a slash", doc("github.com/plinth-os/plinth/", "Separator", "{}"), 403},
		{"with two slashes", doc("github.com//plinth-os/plinth", "Separator", "{}"), 403},
		{"with dots", doc("github.com/./plinth-os/plinth", "Separator", "{}"), 403},
		{"with a dot of the root", doc("github.com./confidential-containers", "PullImage", "{}"), 403},
		{"with another dash", doc("github.com/confidential_containers", "PullImage", "{}"), 403},
		{"of git", doc("git@github.com:plinth-os/plinth.git", "Separator", "{}"), 403},
		{"below", doc("github.com/confidential-containers/x", "PullImage", "{}"), 403},
		{"with an escape", doc("github%2ecom/plinth-os/plinth", "Separator", "{}"), 400},
		{"with a letter alike", doc("github.com/рlinth-os/plinth", "Separator", "{}"), 400},
		{"with a space of no width", doc("github.com/\u200bplinth-os/plinth", "Separator", "{}"), 400},
	} {
		status, _, body := send(t, addr, post("/aa/aael", tt.body))
		journal := g.take()
		if status != tt.want || (status == 200) != strings.HasPrefix(journal, "measure ") {
			t.Errorf("%s: %d %s, guest: %q; want %d", tt.name, status, body, journal, tt.want)
		}
		if len(body) > 200 {
			t.Errorf("%s: %s", tt.name, body)
		}
	}
}

// A container has so many events until the guest stops, however often it is started.
func TestEventsAreBounded(t *testing.T) {
	g := &fakeGuest{}
	r := &REST{Guest: g, Grant: workload.API{Measure: true}}
	a, b := start(t, r), start(t, r)
	for i := range maxEvents + 10 {
		addr := a
		if i%2 == 1 {
			addr = b
		}
		want := 200
		if i >= maxEvents {
			want = 429
		}
		if status, _, body := send(t, addr, post("/aa/aael", event)); status != want {
			t.Fatalf("event %d: %d %s, want %d", i, status, body, want)
		}
	}
	if n := strings.Count(g.take(), "measure"); n != maxEvents {
		t.Errorf("%d events, want %d", n, maxEvents)
	}
	// Others are not of that bound.
	other := &REST{Guest: g, Grant: workload.API{Measure: true}}
	if status, _, _ := send(t, start(t, other), post("/aa/aael", event)); status != 200 {
		t.Errorf("another container: %d", status)
	}
}

// The answer comes when the event is measured; who goes before does not stop that.
func TestMeasuredBeforeAnswered(t *testing.T) {
	begun, gate := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var cause error
	g := &fakeGuest{before: func(ctx context.Context, _ string) {
		begun <- struct{}{}
		<-gate
		mu.Lock()
		defer mu.Unlock()
		cause = errors.Join(cause, ctx.Err())
	}}
	addr := start(t, &REST{Guest: g, Grant: everything})
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(post("/aa/aael", event))); err != nil {
		t.Fatal(err)
	}
	<-begun
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("answered before it was measured")
	}
	conn.Close()
	time.Sleep(100 * time.Millisecond)
	gate <- struct{}{}
	done := make(chan int)
	go func() { // another, to wait for
		status, _, _ := send(t, addr, post("/aa/aael", event))
		done <- status
	}()
	<-begun
	gate <- struct{}{}
	if status := <-done; status != 200 {
		t.Errorf("the next: %d", status)
	}
	mu.Lock()
	defer mu.Unlock()
	if cause != nil {
		t.Errorf("the guest was stopped: %v", cause)
	}
}

// What does not come as JSON is held to the same form.
func TestEventIsUTF8(t *testing.T) {
	if err := checkEvent(workload.Event{Domain: "example.com", Operation: "Start", Content: "a\xffb"}); err == nil {
		t.Error("no error")
	}
}

// A doubtful event counts, and is an error.
func TestMeasureFails(t *testing.T) {
	r := &REST{Guest: &fakeGuest{err: errors.New("the register is doubtful")}, Grant: everything}
	if status, _, body := send(t, start(t, r), post("/aa/aael", event)); status != 500 || r.events.Load() != 1 {
		t.Errorf("%d %s, %d events", status, body, r.events.Load())
	}
}
