package kbs

import (
	"context"
	"crypto"
	_ "crypto/sha256" // what a broker may select
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/plinth-os/plinth/agent/attester"
	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// attest goes through the protocol once, with a key and a nonce of its own.
func (c *Client) attest(ctx context.Context) (*session, error) {
	s := &session{c: c, generation: c.generation()}
	var err error
	if s.key, err = c.newKey(); err != nil {
		return nil, err
	}
	challenge, err := s.auth(ctx)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	doc, err := s.attestation(ctx, challenge)
	if err != nil {
		return nil, err
	}
	answer, err := s.call(ctx, http.MethodPost, "attest", doc)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	if err := s.take(answer); err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	c.logf("kbs: %s: attested as %s", c.Host(), c.Attester.TEE())
	return s, nil
}

// newKey makes a key for one session. An RSA key takes a good part of a second, so
// there is one for all.
func (c *Client) newKey() (*teeKey, error) {
	if c.Key != keyRSA {
		return newKey(c.Key)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rsa == nil {
		k, err := newKey(keyRSA)
		if err != nil {
			return nil, err
		}
		c.rsa = k
	}
	return c.rsa, nil
}

// auth begins the session.
func (s *session) auth(ctx context.Context) (*evidence.Challenge, error) {
	req, err := evidence.NewRequest(s.c.Attester.TEE(), s.c.hashes())
	if err != nil {
		return nil, err
	}
	body, err := req.Marshal()
	if err != nil {
		return nil, err
	}
	answer, err := s.call(ctx, http.MethodPost, "auth", body)
	if err != nil {
		return nil, err
	}
	challenge, err := evidence.ParseChallenge(answer)
	if err != nil {
		return nil, plain(err)
	}
	return challenge, nil
}

// attestation is what a challenge is answered with.
func (s *session) attestation(ctx context.Context, ch *evidence.Challenge) ([]byte, error) {
	h, err := s.c.selected(ch)
	if err != nil {
		return nil, err
	}
	additional, err := s.additional(ctx, h, ch.Nonce)
	if err != nil {
		return nil, err
	}
	report, err := evidence.Binding(h, ch.Nonce, s.key.jwk, &additional)
	if err != nil {
		return nil, err
	}
	primary, err := evidenceOf(ctx, s.c.Attester, report)
	if err != nil {
		return nil, err
	}
	return (&evidence.Attestation{
		InitData:    s.c.InitData,
		RuntimeData: evidence.RuntimeData{Nonce: ch.Nonce, TEEPubKey: s.key.jwk},
		TEEEvidence: evidence.TEEEvidence{Primary: primary, Additional: additional},
	}).Marshal()
}

// selected is the hash that the broker selected: one that was offered.
func (c *Client) selected(ch *evidence.Challenge) (crypto.Hash, error) {
	got, err := ch.Hash()
	if err != nil {
		return 0, plain(err)
	}
	for _, name := range c.hashes() {
		if h, err := hashNamed(name); err == nil && h == got {
			return got, nil
		}
	}
	return 0, fmt.Errorf("challenge: the broker selected %v, offered were %q", got, c.hashes())
}

func hashNamed(name string) (crypto.Hash, error) {
	switch name {
	case "sha256":
		return crypto.SHA256, nil
	case "sha384":
		return crypto.SHA384, nil
	case "sha512":
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("hash %.40q: want one of %q", name, evidence.Hashes)
}

// additional is the evidence of the guest's devices, JSON by their kind, "" without any.
// It is bound by the guest's own evidence as it stands here.
func (s *session) additional(ctx context.Context, h crypto.Hash, nonce string) (string, error) {
	if len(s.c.Devices) == 0 {
		return "", nil
	}
	report, err := evidence.Binding(h, nonce, s.key.jwk, nil)
	if err != nil {
		return "", err
	}
	all := map[string]json.RawMessage{}
	for _, d := range s.c.Devices {
		if _, ok := all[d.TEE()]; ok {
			return "", fmt.Errorf("evidence: two devices of kind %s: the protocol has room for one", d.TEE())
		}
		if all[d.TEE()], err = evidenceOf(ctx, d, report); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(all) // by name
	return string(b), err
}

func evidenceOf(ctx context.Context, a attester.Attester, report []byte) (json.RawMessage, error) {
	e, err := a.Evidence(ctx, report)
	if err != nil {
		return nil, fmt.Errorf("evidence: %s: %w", a.TEE(), err)
	}
	return e, nil
}

// take reads the answer to an attestation.
func (s *session) take(answer []byte) error {
	var a struct {
		Token string `json:"token"`
	}
	if err := strictjson.Unmarshal(answer, &a); err != nil {
		return fmt.Errorf("want {\"token\"}: %w", plain(err))
	}
	if a.Token == "" {
		return errors.New("the answer has no token")
	}
	now := s.c.now()
	token, life, err := parseToken(a.Token, s.key, now)
	if err != nil {
		return err
	}
	s.until = now.Add(life - min(margin, life/2))
	s.token = token
	return nil
}
