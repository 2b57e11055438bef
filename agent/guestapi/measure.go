package guestapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/workload"
)

// Bounds of an event's fields, in bytes.
const (
	maxWord    = 256 // domain, operation
	maxContent = 4096
)

// measure extends the registers by the container's event. When it has the answer, it
// is done; who does not wait for that does not stop it halfway.
func (r *REST) measure(ctx context.Context, body []byte) (answer, error) {
	e, err := readEvent(body)
	if err != nil {
		return badRequest("%v", err), nil
	}
	if reserved(e.Domain, workload.DomainPlinth, workload.DomainCoCo) {
		return text(http.StatusForbidden, "domain: it is the guest's own"), nil
	}
	if r.events.Add(1) > maxEvents {
		r.events.Add(-1)
		return text(http.StatusTooManyRequests, fmt.Sprintf("%d events, and no more", maxEvents)), nil
	}
	a := answer{status: http.StatusOK, kind: kindJSON, body: []byte(`{"success":"true"}`)}
	switch err := r.Guest.Measure(context.WithoutCancel(ctx), e); {
	case errors.Is(err, ErrNoRegister):
		a.body = []byte(`{"success":"false","message": "The platform does not support runtime measurement"}`)
	case err != nil:
		return answer{}, err
	}
	return a, nil
}

// readEvent reads api-server-rest's AaelEvent.
func readEvent(body []byte) (workload.Event, error) {
	var in struct {
		Domain    *string `json:"domain"`
		Operation *string `json:"operation"`
		Content   *string `json:"content"`
	}
	if err := strictjson.Unmarshal(body, &in); err != nil {
		return workload.Event{}, errors.New("want a JSON object with domain, operation and content")
	}
	if in.Domain == nil || in.Operation == nil || in.Content == nil {
		return workload.Event{}, errors.New("domain, operation and content: one is missing")
	}
	e := workload.Event{Domain: *in.Domain, Operation: *in.Operation, Content: *in.Content}
	return e, checkEvent(e)
}

// checkEvent holds an event to one line of three parts, each of printable characters:
// Trustee, kbs/docs/confidential-containers-eventlog.md, "Event Format Requirements".
// Content may have others than ASCII's, which is what CoCo's own agent takes.
func checkEvent(e workload.Event) error {
	if err := checkWord(e.Domain); err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	if err := checkWord(e.Operation); err != nil {
		return fmt.Errorf("operation: %w", err)
	}
	if len(e.Content) > maxContent {
		return fmt.Errorf("content: %d bytes, want at most %d", len(e.Content), maxContent)
	}
	if !utf8.ValidString(e.Content) || strings.ContainsFunc(e.Content, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return errors.New("content: want one line of printable characters")
	}
	return nil
}

func checkWord(s string) error {
	if s == "" || len(s) > maxWord || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || c == '%' }) {
		return fmt.Errorf("want 1 to %d printable characters of ASCII, no space, no %%", maxWord)
	}
	return nil
}

// reserved tells whether a domain, which checkWord has passed, is one of owners or
// looks like one: whatever reads the log may take capitals, a scheme or a slash more
// for the same name.
func reserved(domain string, owners ...string) bool {
	d := squeeze(domain)
	for _, o := range owners {
		if strings.Contains(d, squeeze(o)) {
			return true
		}
	}
	return false
}

// squeeze keeps letters and digits, in lower case.
func squeeze(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			return c
		case 'A' <= c && c <= 'Z':
			return c + 'a' - 'A'
		}
		return -1
	}, s)
}
