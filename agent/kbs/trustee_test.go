package kbs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/agent/kbs"
	broker "github.com/plinth-os/plinth/tests/kbs"
)

// The broker of tests/kbs was written from Trustee's sources and shares no code with
// the client.

const canary = "the-canary-of-this-test"

var uri = kbs.URI{Plugin: kbs.PluginResource, Repository: "default", Type: "key", Tag: "1"}

// begin returns a broker that takes sample evidence, and a client of it. Whatever the
// client logs, the canary is not in it.
func begin(t *testing.T) (*broker.Broker, *kbs.Client) {
	t.Helper()
	b := &broker.Broker{Sample: true, Resources: map[string]broker.Resource{"default/key/1": {Value: []byte(canary)}}}
	s := broker.Serve(t, b)
	c := &kbs.Client{
		URL: s.URL(), Roots: s.Roots(), Attester: attester.NewSample(), Timeout: 2 * time.Second,
		Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
		Logf: func(format string, a ...any) {
			if text := fmt.Sprintf(format, a...); strings.Contains(text, canary) {
				t.Errorf("logged: %s", text)
			}
		},
	}
	t.Cleanup(c.Close)
	return b, c
}

func TestTestBroker(t *testing.T) {
	for _, key := range kbs.Keys {
		for _, hash := range []string{"", "sha256", "sha384", "sha512"} {
			for _, devices := range [][]attester.Device{nil, {attester.NewSampleDevice()}} {
				b, c := begin(t)
				b.Hash, c.Key, c.Devices = hash, key, devices
				if got, err := c.Resource(t.Context(), uri); err != nil || string(got) != canary {
					t.Errorf("%s, %q, %d devices: %q, %v", key, hash, len(devices), got, err)
				}
				if n := len(b.Attestations()); n != 1 {
					t.Errorf("%d attestations", n)
				}
			}
		}
	}
}

func TestTestBrokerTogether(t *testing.T) {
	b, c := begin(t)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if got, err := c.Resource(t.Context(), uri); err != nil || string(got) != canary {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
	if n := len(b.Attestations()); n != 1 {
		t.Errorf("%d attestations, want 1", n)
	}
}

// What goes wrong at the broker, or between it and the guest.
func TestTestBrokerFaults(t *testing.T) {
	for _, c := range []struct {
		step  string
		fault broker.Fault
		want  string
	}{
		{"", broker.FaultGarbage, ""}, {"", broker.FaultEmpty, ""}, {"", broker.FaultTruncated, ""},
		{"", broker.FaultEndless, "longer than 2097152 bytes"}, {"", broker.FaultHeaders, "header"},
		{"", broker.FaultRedirect, "redirects"}, {"", broker.FaultUnavailable, "503"},
		{"", broker.FaultVersion, "the broker's protocol is version 0.9.0, ours 0.4.0"},
		{broker.StepAuth, broker.FaultStaleNonce, "401"},
		{broker.StepAttest, broker.FaultOtherToken, "not this guest's key"},
		{broker.StepAttest, broker.FaultOtherSigner, "401"},
		{broker.StepResource, broker.FaultOtherKey, "not encrypted to this guest's key"},
	} {
		steps := []string{c.step}
		if c.step == "" {
			steps = []string{broker.StepAuth, broker.StepAttest, broker.StepResource}
		}
		for _, step := range steps {
			b, client := begin(t)
			b.Faults = map[string]broker.Fault{step: c.fault}
			got, err := client.Resource(t.Context(), uri)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), canary) || len(err.Error()) > 2048 {
				t.Errorf("%s, %s: %q, %v, want an error with %q", step, c.fault, got, err, c.want)
			}
			var version *kbs.VersionError
			if errors.As(err, &version) != (c.fault == broker.FaultVersion) {
				t.Errorf("%s, %s: %v", step, c.fault, err)
			}
		}
	}
}

// Who says nothing at all is not waited for beyond the time that was given.
func TestTestBrokerSilent(t *testing.T) {
	b, c := begin(t)
	c.Timeout = 100 * time.Millisecond
	b.Faults = map[string]broker.Fault{broker.StepAttest: broker.FaultSilent}
	start := time.Now()
	if _, err := c.Resource(t.Context(), uri); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// Requests that somebody changes on the way are refused by the broker, and that is an
// error of its own.
func TestTestBrokerTampered(t *testing.T) {
	b, c := begin(t)
	b.Tamper = func(step string, body []byte) []byte {
		if step != broker.StepAttest {
			return body
		}
		return bytes.Replace(body, []byte(`"x":"`), []byte(`"x":"A`), 1)
	}
	_, err := c.Resource(t.Context(), uri)
	var status *kbs.StatusError
	if !errors.Is(err, kbs.ErrUnauthorized) || !errors.As(err, &status) || status.Detail == "" {
		t.Errorf("%v", err)
	}
}

// The statuses of kbs.yaml, and those that Trustee has.
func TestTestBrokerStatus(t *testing.T) {
	none := uri
	none.Tag = "none"
	for _, documented := range []bool{false, true} {
		b, c := begin(t)
		b.Documented = documented
		_, err := c.Resource(t.Context(), none)
		if errors.Is(err, kbs.ErrNotFound) != documented || errors.Is(err, kbs.ErrUnauthorized) == documented {
			t.Errorf("documented %v: %v", documented, err)
		}
		b, c = begin(t)
		b.Documented = documented
		b.Resources["default/key/1"] = broker.Resource{Value: []byte(canary), Registers: []string{"tpm_pcr14"}}
		_, err = c.Resource(t.Context(), uri)
		if errors.Is(err, kbs.ErrForbidden) != documented || errors.Is(err, kbs.ErrUnauthorized) == documented {
			t.Errorf("policy, documented %v: %v", documented, err)
		}
	}
}
