package kbs

import (
	"crypto"
	"crypto/rand"
	_ "crypto/sha512" // SHA-384 and SHA-512
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Version is the only one of the protocol that KBS takes.
const Version = "0.4.0"

// The steps of the protocol.
const (
	StepAuth     = "auth"     // POST auth: Request, answered by a Challenge
	StepAttest   = "attest"   // POST attest: Attestation, answered by a token
	StepResource = "resource" // GET resource/repository/type/tag, answered by a JWE
)

// The checks that Broker.Off may name, besides those of single registers.
const (
	CheckNonce     = "nonce"      // the attestation is for the session's challenge
	CheckSignature = "signature"  // the quote is signed by the attestation key
	CheckTEEPubkey = "tee-pubkey" // the quote is made for this nonce, key and additional evidence
	CheckDigest    = "digest"     // the values of registers are those of the quote
	CheckLog       = "log"        // the event log replays to every register
	CheckAK        = "ak"         // the attestation key is one of trusted_aks
	CheckInitdata  = "initdata"   // PCR 8 is extended with the initdata's digest alone
	CheckTokenKey  = "token-key"  // a token is signed by this broker
)

const cookieName = "kbs-session-id"

// A session is what KBS knows of a guest between its requests.
type session struct {
	nonce   string
	tee     string
	expires time.Time
	token   string // "": not attested
}

// stepOf is the step that a request belongs to, "" for an operator's.
func stepOf(r *http.Request) string {
	path := strings.TrimPrefix(r.URL.Path, prefix)
	switch {
	case r.Method == http.MethodPost && path == StepAuth:
		return StepAuth
	case r.Method == http.MethodPost && path == StepAttest:
		return StepAttest
	case r.Method == http.MethodGet && strings.HasPrefix(path, StepResource+"/"):
		return StepResource
	}
	return ""
}

// Attestations returns what guests sent to be attested, in its order and as the
// broker saw it: Tamper has been at it.
func (b *Broker) Attestations() []json.RawMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.attestations)
}

func (b *Broker) now() time.Time {
	if b.Now != nil {
		return b.Now()
	}
	return time.Now()
}

func (b *Broker) lifetime() time.Duration {
	if b.Lifetime != 0 {
		return b.Lifetime
	}
	return 5 * time.Minute
}

// auth is kbs/src/attestation/backend.rs, __auth.
func (b *Broker) auth(w http.ResponseWriter, body []byte) {
	var request struct {
		Version string
		TEE     string
		Extra   json.RawMessage `json:"extra-params"`
	}
	reason := ""
	switch err := parse(body, &request); {
	case err != nil || request.Extra == nil:
		reason = "deserialize Request"
	case request.Version != Version:
		reason = fmt.Sprintf("KBS Client Protocol Version Mismatch: expect =%s while the request is %s", Version, request.Version)
	case request.TEE != "tpm" && !(request.TEE == "sample" && b.Sample):
		reason = fmt.Sprintf("Attestation Service generate challenge failed: no verifier for %q", request.TEE)
	}
	if reason != "" {
		b.refuse(w, http.StatusUnauthorized, "AttestationError", "Attestation error: RCAR handshake Auth failed: "+reason)
		return
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	s := &session{nonce: base64.StdEncoding.EncodeToString(nonce), tee: request.TEE, expires: b.now().Add(b.lifetime())}
	id := make([]byte, 16)
	rand.Read(id)
	if b.sessions == nil {
		b.sessions = map[string]*session{}
	}
	b.sessions[hex.EncodeToString(id)] = s
	challenge := map[string]any{"nonce": s.nonce, "extra-params": ""}
	if b.Hash != "" {
		challenge["extra-params"] = map[string]string{"selected-hash-algorithm": b.Hash}
	}
	if b.Faults[StepAuth] == FaultStaleNonce {
		rand.Read(nonce) // the session has another one
		challenge["nonce"] = base64.StdEncoding.EncodeToString(nonce)
	}
	setCookie(w, hex.EncodeToString(id), s)
	answer(w, challenge)
}

func setCookie(w http.ResponseWriter, id string, s *session) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: id, Expires: s.expires})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// An attestation is kbs-types' Attestation.
type attestation struct {
	InitData *struct {
		Format string
		Body   string
	} `json:"init-data"`
	RuntimeData struct {
		Nonce     string
		TEEPubkey map[string]any `json:"tee-pubkey"`
	} `json:"runtime-data"`
	TEEEvidence struct {
		Primary    json.RawMessage `json:"primary_evidence"`
		Additional string          `json:"additional_evidence"`
	} `json:"tee-evidence"`
}

// attest is kbs/src/attestation/backend.rs, __attest. KBS tells a guest nothing but
// that it failed; here the reason stands behind that.
func (b *Broker) attest(w http.ResponseWriter, r *http.Request, body []byte) {
	b.attestations = append(b.attestations, slices.Clone(body))
	id, s, err := b.session(r)
	if err == nil && s.token == "" {
		err = b.issue(s, body)
	}
	if err != nil {
		b.refuse(w, http.StatusUnauthorized, "AttestationError", fmt.Sprintf("Attestation error: RCAR handshake Attest failed: %v", err))
		return
	}
	setCookie(w, id, s)
	answer(w, map[string]string{"token": s.token})
}

// session finds a request's.
func (b *Broker) session(r *http.Request) (string, *session, error) {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return "", nil, errors.New("cookie not found")
	}
	s := b.sessions[c.Value]
	if s == nil || s.expires.Before(b.now()) {
		delete(b.sessions, c.Value)
		return "", nil, errors.New("session not found")
	}
	return c.Value, s, nil
}

// issue verifies evidence and gives the session its token.
func (b *Broker) issue(s *session, body []byte) error {
	var a attestation
	if err := parse(body, &a); err != nil {
		return fmt.Errorf("deserialize Attestation: %w", err)
	}
	if s.nonce != a.RuntimeData.Nonce && !b.Off[CheckNonce] {
		return errors.New("nonce: the nonce in the handshake session is different from the client side in KBS protocol's Attestation message")
	}
	if len(a.RuntimeData.TEEPubkey) == 0 {
		return errors.New("deserialize Attestation: no tee-pubkey")
	}
	ap, err := b.appraise(s.tee, &a)
	if err != nil {
		return fmt.Errorf("verify TEE evidence failed: %w", err)
	}
	s.token, err = b.makeToken(ap)
	return err
}

// appraise is the attestation service: attestation-service/src/lib.rs, evaluate.
func (b *Broker) appraise(tee string, a *attestation) (*appraisal, error) {
	hash := map[string]crypto.Hash{"": crypto.SHA384, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[b.Hash]
	runtime := map[string]any{"nonce": a.RuntimeData.Nonce, "tee-pubkey": a.RuntimeData.TEEPubkey}
	if err := b.devices(a.TEEEvidence.Additional, hash, runtime); err != nil {
		return nil, err
	}
	runtime["additional-evidence"] = a.TEEEvidence.Additional
	binding, err := digestJSON(hash, runtime)
	if err != nil {
		return nil, err
	}
	initDigest, initClaims, err := parseInitdata(a)
	if err != nil {
		return nil, err
	}
	ap := &appraisal{tee: tee, runtime: runtime, initdata: initClaims}
	if tee == "sample" {
		ap.claims, err = b.sample(a.TEEEvidence.Primary, binding)
		return ap, err
	}
	return ap, b.verifyTPM(ap, a.TEEEvidence.Primary, binding, initDigest)
}

// devices verifies additional evidence, which is bound to nonce and key alone.
func (b *Broker) devices(text string, hash crypto.Hash, runtime map[string]any) error {
	if text == "" {
		return nil
	}
	var list map[string]json.RawMessage
	if err := parse([]byte(text), &list); err != nil {
		return fmt.Errorf("additional evidence: %w", err)
	}
	binding, err := digestJSON(hash, runtime)
	if err != nil {
		return err
	}
	for tee, evidence := range list {
		if tee != "sampledevice" || !b.Sample {
			return fmt.Errorf("additional evidence: no verifier for %q", tee)
		}
		if _, err := b.sample(evidence, binding); err != nil {
			return err
		}
	}
	return nil
}

// sample is deps/verifier/src/sample/mod.rs.
func (b *Broker) sample(evidence, binding []byte) (map[string]any, error) {
	var e struct {
		SVN        string
		ReportData string `json:"report_data"`
	}
	if err := parse(evidence, &e); err != nil {
		return nil, fmt.Errorf("sample: %w", err)
	}
	got, err := base64.StdEncoding.DecodeString(e.ReportData)
	if err != nil {
		return nil, fmt.Errorf("sample: report data: %w", err)
	}
	if !b.Off[CheckTEEPubkey] && !slices.Equal(fit(got, len(binding)), binding) {
		return nil, errors.New("tee-pubkey: sample: REPORT_DATA is different from that in Sample Evidence")
	}
	return map[string]any{"svn": e.SVN, "report_data": hex.EncodeToString(got)}, nil
}

// fit cuts b, or fills it with zeros, to size.
func fit(b []byte, size int) []byte {
	return append(slices.Clone(b[:min(len(b), size)]), make([]byte, max(0, size-len(b)))...)
}
