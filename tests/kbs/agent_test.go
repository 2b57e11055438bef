package kbs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/plinth-os/plinth/agent/attester"
	agentkbs "github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/tests/kbs"
	"github.com/plinth-os/plinth/tests/swtpm"
)

const secret = "canary-4be1a277"

// A guest attests as the agent does, by an emulated TPM.
type guest struct {
	t      *testing.T
	tpm    transport.TPM
	a      attester.Attester // one: the emulator has room for three keys
	mu     sync.Mutex
	log    []byte
	events uint64
	lines  []string // what the client says
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	g := &guest{t: t, tpm: attester.Shared(swtpm.Start(t, "").Open(t))}
	data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0)
	g.log = append(g.log, make([]byte, 32)...)
	g.log[4], g.log[28] = 3, byte(len(data)) // EV_NO_ACTION, and the size behind a SHA-1 digest
	g.log = append(g.log, data...)
	for _, e := range []struct {
		pcr  int
		text string
	}{{4, "an application"}, {9, "the initrd"}, {11, ".linux"}, {11, ".initrd"}, {14, "a container"}} {
		g.extend(e.pcr, e.text)
	}
	var err error
	if g.a, err = attester.NewTPM(g.tpm, attester.TPMOptions{Snapshot: g.snapshot}); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *guest) extend(pcr int, text string) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	digest := sha256.Sum256([]byte(text))
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(g.tpm)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, n := range []uint32{uint32(pcr), 0x0d, 1} { // EV_IPL, one digest
		g.log = binary.LittleEndian.AppendUint32(g.log, n)
	}
	g.log = append(append(g.log, 0x0b, 0), digest[:]...)
	g.log = append(binary.LittleEndian.AppendUint32(g.log, uint32(len(text))), text...)
	g.events++
}

// snapshot holds extends back while read runs.
func (g *guest) snapshot(read func(log []byte) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return read(bytes.Clone(g.log))
}

func (g *guest) generation() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.events
}

func (g *guest) client(s *kbs.Server) *agentkbs.Client {
	g.t.Helper()
	return &agentkbs.Client{URL: s.URL(), Roots: s.Roots(), Attester: g.a, Generation: g.generation,
		Sleep: func(context.Context, time.Duration) error { return nil },
		Logf:  func(format string, args ...any) { g.lines = append(g.lines, fmt.Sprintf(format, args...)) }}
}

// trust gives b the reference values of the guest as it is, by evidence of its own.
func (g *guest) trust(b *kbs.Broker) {
	g.t.Helper()
	text, err := g.a.Evidence(g.t.Context(), make([]byte, 32))
	if err != nil {
		g.t.Fatal(err)
	}
	e, err := evidence.ParseTPM(text)
	if err != nil {
		g.t.Fatal(err)
	}
	b.Set("trusted_aks", []any{base64.StdEncoding.EncodeToString(e.AKPublic)})
	for n, v := range e.Quote.PCRs {
		b.Set(fmt.Sprintf("tpm_pcr%02d", n), []any{hex.EncodeToString(v[:])})
	}
}

var uri = func() agentkbs.URI {
	u, err := agentkbs.ParseURI("kbs:///default/key/1")
	if err != nil {
		panic(err)
	}
	return u
}()

func newBroker(t *testing.T) *kbs.Broker {
	return &kbs.Broker{Log: t.Logf, Off: map[string]bool{}, Resources: map[string]kbs.Resource{"default/key/1": {Value: []byte(secret)}}}
}

// The agent's client and attester get a secret from a broker that shares nothing with
// them, by every kind of key and every hash.
func TestAgent(t *testing.T) {
	g := newGuest(t)
	b := newBroker(t)
	s := kbs.Serve(t, b)
	g.trust(b)
	for _, key := range agentkbs.Keys {
		for _, hash := range []string{"", "sha256", "sha384", "sha512"} {
			b.Change(func(b *kbs.Broker) { b.Hash = hash })
			c := g.client(s)
			c.Key = key
			got, err := c.Resource(t.Context(), uri)
			if err != nil || string(got) != secret {
				t.Errorf("%s, %q: got %q, %v", key, hash, got, err)
			}
			c.Close()
		}
	}
	for _, line := range g.lines {
		if strings.Contains(line, secret) {
			t.Errorf("the client says %q", line)
		}
	}
}

// An event more, and the refusal names it to the guest's owner; it tells 401 from 403.
func TestAgentRefused(t *testing.T) {
	g := newGuest(t)
	b := newBroker(t)
	b.Documented = true
	b.Resources["default/policy/1"] = kbs.Resource{Registers: []string{"tpm_pcr14"}}
	s := kbs.Serve(t, b)
	g.trust(b)
	c := g.client(s)
	defer c.Close()
	if got, err := c.Resource(t.Context(), uri); err != nil || string(got) != secret {
		t.Fatalf("got %q, %v", got, err)
	}
	before := len(b.Attestations())
	g.extend(14, "another container")
	other := uri
	other.Type = "policy"
	_, err := c.Resource(t.Context(), other)
	if !errors.Is(err, agentkbs.ErrForbidden) || !strings.Contains(err.Error(), "pcr14: ") {
		t.Errorf("PCR 14, which that resource wants: %v", err)
	}
	if got, err := c.Resource(t.Context(), uri); err != nil || string(got) != secret {
		t.Errorf("PCR 14, which this one does not: got %q, %v", got, err)
	}
	if after := len(b.Attestations()); after == before {
		t.Error("the token from before the event was used")
	}
	g.extend(11, "an evil word")
	_, err = c.Resource(t.Context(), uri)
	if !errors.Is(err, agentkbs.ErrUnauthorized) || !strings.Contains(err.Error(), `pcr11: event 2 EV_IPL "an evil word": got`) {
		t.Errorf("PCR 11: %v", err)
	}
}

// Whatever goes wrong with an answer, the client fails soon and says nothing of the
// secret.
func TestAgentFaults(t *testing.T) {
	g := newGuest(t)
	b := newBroker(t)
	s := kbs.Serve(t, b)
	g.trust(b)
	steps := []string{kbs.StepAuth, kbs.StepAttest, kbs.StepResource}
	for _, step := range steps {
		for _, f := range []kbs.Fault{kbs.FaultGarbage, kbs.FaultEmpty, kbs.FaultTruncated, kbs.FaultEndless, kbs.FaultSilent,
			kbs.FaultHeaders, kbs.FaultRedirect, kbs.FaultUnavailable, kbs.FaultVersion} {
			refusedByAgent(t, g, b, s, step, f)
		}
	}
	refusedByAgent(t, g, b, s, kbs.StepAuth, kbs.FaultStaleNonce)
	refusedByAgent(t, g, b, s, kbs.StepAttest, kbs.FaultOtherToken)
	refusedByAgent(t, g, b, s, kbs.StepAttest, kbs.FaultOtherSigner)
	refusedByAgent(t, g, b, s, kbs.StepResource, kbs.FaultOtherKey)
}

func refusedByAgent(t *testing.T, g *guest, b *kbs.Broker, s *kbs.Server, step string, f kbs.Fault) {
	t.Helper()
	b.Change(func(b *kbs.Broker) { b.Faults = map[string]kbs.Fault{step: f} })
	c := g.client(s)
	defer c.Close()
	c.Timeout = 200 * time.Millisecond
	start := time.Now()
	got, err := c.Resource(t.Context(), uri)
	if err == nil || got != nil {
		t.Errorf("%s, %s: got %q", step, f, got)
		return
	}
	took := time.Since(start)
	t.Logf("%s, %s: %v: %.300v", step, f, took, err)
	if took > 10*time.Second {
		t.Errorf("%s, %s: took %v", step, f, took)
	}
	if text := err.Error(); strings.Contains(text, secret) || len(text) > 2048 {
		t.Errorf("%s, %s: %.4096s", step, f, text)
	}
	var version *agentkbs.VersionError
	if f == kbs.FaultVersion && step == kbs.StepAuth && !errors.As(err, &version) {
		t.Errorf("%s, %s: %v: want a version error", step, f, err)
	}
}
