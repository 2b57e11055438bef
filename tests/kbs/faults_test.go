package kbs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Faults are what they say, over the network.
func TestFaults(t *testing.T) {
	b := &Broker{}
	s := Serve(t, b)
	client := s.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	post := func(ctx context.Context, f Fault) (*http.Response, error) {
		b.Change(func(b *Broker) { b.Faults = map[string]Fault{StepAuth: f} })
		r, err := http.NewRequestWithContext(ctx, "POST", s.URL()+"/kbs/v0/auth", strings.NewReader(goodRequest))
		if err != nil {
			t.Fatal(err)
		}
		return client.Do(r)
	}
	for f, want := range map[Fault]struct {
		status int
		json   bool
	}{
		"": {200, true}, FaultGarbage: {200, false}, FaultEmpty: {200, false}, FaultTruncated: {200, false},
		FaultRedirect: {307, false}, FaultUnavailable: {503, false}, FaultVersion: {401, true},
	} {
		resp, err := post(t.Context(), f)
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != want.status || json.Valid(body) != want.json {
			t.Errorf("%s: %d %.80q, %v; want %+v", f, resp.StatusCode, body, err, want)
		}
	}
	resp, err := post(t.Context(), FaultEndless)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.CopyN(io.Discard, bufio.NewReader(resp.Body), 8<<20); err != nil {
		t.Errorf("endless: %d bytes: %v", n, err)
	}
	resp.Body.Close()
	if _, err := post(t.Context(), FaultHeaders); err == nil {
		t.Error("headers: taken")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := post(ctx, FaultSilent); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
}

// Faults of one step, each of which a guest has to notice itself, but for the first.
func TestStepFaults(t *testing.T) {
	g := newGuest(t)
	with := func(step string, f Fault) *Broker {
		b := newBroker(g)
		b.Faults = map[string]Fault{step: f}
		g.auth(b)
		return b
	}
	b := with(StepAuth, FaultStaleNonce)
	if _, refusal := g.attest(b, g.attestation(hash384)); !strings.Contains(refusal, "nonce: ") {
		t.Errorf("stale nonce: %q", refusal)
	}
	b = with(StepAttest, FaultOtherSigner)
	if _, refusal := g.attest(b, g.attestation(hash384)); refusal != "" {
		t.Error(refusal)
	}
	if _, refusal := g.get(b, secretPath); !strings.Contains(refusal, "token-key: ") {
		t.Errorf("other signer: %q", refusal)
	}
	for step, f := range map[string]Fault{StepAttest: FaultOtherToken, StepResource: FaultOtherKey} {
		b := with(step, f)
		if _, refusal := g.attest(b, g.attestation(hash384)); refusal != "" {
			t.Error(refusal)
		}
		if secret, refusal := g.get(b, secretPath); secret != "" || strings.HasPrefix(refusal, "4") {
			t.Errorf("%s: secret %q, %s", f, secret, refusal)
		}
	}
}
