package evidence

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // what Binding hashes with
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/plinth-os/plinth/internal/jcs"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// ProtocolVersion is that of the key broker protocol: request, challenge, attestation,
// response. A broker takes no other.
const ProtocolVersion = "0.4.0"

// MaxEvidence bounds evidence, and an Attestation, in bytes of JSON: a firmware's event
// log in base64 leaves room for the rest.
const MaxEvidence = 16 << 20

// A Request asks a broker for a challenge.
type Request struct {
	Version     string          `json:"version"`
	TEE         string          `json:"tee"` // of TEEs
	ExtraParams json.RawMessage `json:"extra-params"`
}

// Keys of Request.ExtraParams and Challenge.ExtraParams.
const (
	supportedHashes = "supported-hash-algorithms"
	selectedHash    = "selected-hash-algorithm"
)

// Hashes are the names of the hashes that a key may be bound by, best first.
var Hashes = []string{"sha384", "sha256", "sha512"}

var hashes = map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}

// NewRequest offers hashes, of Hashes.
func NewRequest(tee string, hashes []string) (*Request, error) {
	extra, err := json.Marshal(map[string][]string{supportedHashes: hashes})
	if err != nil {
		return nil, fmt.Errorf("evidence: request: %w", err)
	}
	return &Request{Version: ProtocolVersion, TEE: tee, ExtraParams: extra}, nil
}

// Marshal writes the request.
func (r *Request) Marshal() ([]byte, error) { return marshal("request", r) }

// ParseRequest decodes one.
func ParseRequest(b []byte) (*Request, error) {
	var r Request
	return &r, parse("request", b, maxChallenge, &r)
}

// A Challenge is what the evidence has to answer.
type Challenge struct {
	Nonce       string          `json:"nonce"`
	ExtraParams json.RawMessage `json:"extra-params"` // an object, or "" of older brokers
}

// Bounds on a challenge: a nonce of Trustee has 32 bytes, in base64.
const (
	maxChallenge = 64 << 10 // bytes of JSON
	minNonce     = 16       // bytes
	maxNonce     = 1 << 10
)

// ParseChallenge decodes a broker's challenge. The nonce has to be base64.
func ParseChallenge(b []byte) (*Challenge, error) {
	var c Challenge
	if err := parse("challenge", b, maxChallenge, &c); err != nil {
		return nil, err
	}
	nonce, err := base64.StdEncoding.Strict().DecodeString(c.Nonce)
	if err != nil || strings.ContainsAny(c.Nonce, "\r\n") {
		return nil, errors.New("evidence: challenge: nonce: want base64")
	}
	if len(nonce) < minNonce || len(nonce) > maxNonce {
		return nil, fmt.Errorf("evidence: challenge: nonce: %d bytes, want %d to %d", len(nonce), minNonce, maxNonce)
	}
	if _, err := c.Hash(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Hash is the hash that the broker selected: SHA-384 where it selected none.
func (c *Challenge) Hash() (crypto.Hash, error) {
	extra := bytes.TrimSpace(c.ExtraParams)
	if s := string(extra); s == "" || s == `""` || s == "null" {
		return crypto.SHA384, nil
	}
	params := map[string]json.RawMessage{}
	if extra[0] != '{' {
		return 0, errors.New("evidence: challenge: extra-params: want an object")
	}
	if err := strictjson.Unmarshal(extra, &params); err != nil {
		return 0, fmt.Errorf("evidence: challenge: extra-params: %w", err)
	}
	raw, ok := params[selectedHash]
	if !ok {
		return crypto.SHA384, nil
	}
	var name string
	if err := json.Unmarshal(raw, &name); err != nil || raw[0] != '"' {
		return 0, fmt.Errorf("evidence: challenge: %s: want text", selectedHash)
	}
	h, ok := hashes[strings.ToLower(name)]
	if !ok {
		return 0, fmt.Errorf("evidence: challenge: %s is %.40q, want one of %s", selectedHash, name, strings.Join(Hashes, ", "))
	}
	return h, nil
}

// An Attestation is the answer to a challenge.
type Attestation struct {
	InitData    *InitData   `json:"init-data"` // null where the guest was given none
	RuntimeData RuntimeData `json:"runtime-data"`
	TEEEvidence TEEEvidence `json:"tee-evidence"`
}

// InitData is the whole initdata document, as it was delivered: its digest is what the
// platform binds.
type InitData struct {
	Format string `json:"format"` // FormatTOML
	Body   string `json:"body"`
}

// FormatTOML is the form of initdata that guests send.
const FormatTOML = "toml"

// RuntimeData is what Binding binds to the evidence.
type RuntimeData struct {
	Nonce     string          `json:"nonce"`      // the challenge's
	TEEPubKey json.RawMessage `json:"tee-pubkey"` // a JWK: secrets are encrypted to it
}

// TEEEvidence is the evidence of the guest and of its devices.
type TEEEvidence struct {
	Primary    json.RawMessage `json:"primary_evidence"`
	Additional string          `json:"additional_evidence"` // JSON, the evidence of each device by its kind; "" without devices
}

// Marshal writes a. Equal values give equal bytes; Primary is taken as it is.
func (a *Attestation) Marshal() ([]byte, error) { return marshal("attestation", a) }

// ParseAttestation decodes what Marshal wrote, or another client. Neither evidence nor
// initdata is looked at.
func ParseAttestation(b []byte) (*Attestation, error) {
	var a Attestation
	if err := parse("attestation", b, MaxEvidence, &a); err != nil {
		return nil, err
	}
	switch {
	case a.RuntimeData.Nonce == "":
		return nil, errors.New("evidence: attestation: runtime-data: no nonce")
	case !isObject(a.RuntimeData.TEEPubKey):
		return nil, errors.New("evidence: attestation: tee-pubkey: want a JWK")
	case !isObject(a.TEEEvidence.Primary):
		return nil, errors.New("evidence: attestation: primary_evidence: want an object")
	}
	return &a, nil
}

// Devices returns the evidence of each device by its kind.
func (t *TEEEvidence) Devices() (map[string]json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	if t.Additional == "" {
		return out, nil
	}
	return out, parse("additional evidence", []byte(t.Additional), MaxEvidence, &out)
}

// Binding is what evidence has to hold so that it speaks for nonce, for the key and for
// the evidence of devices: a hash over the canonical form (RFC 8785) of all three.
// additional is nil for the evidence of a device itself, which cannot cover its own; a
// guest without devices binds "". It is as long as the hash; Fit makes it a field.
func Binding(h crypto.Hash, nonce string, key json.RawMessage, additional *string) ([]byte, error) {
	if !h.Available() {
		return nil, fmt.Errorf("evidence: binding: hash %v: want one of %s", h, strings.Join(Hashes, ", "))
	}
	if !isObject(key) {
		return nil, errors.New("evidence: binding: tee-pubkey: want a JWK")
	}
	data := map[string]any{"nonce": nonce, "tee-pubkey": key}
	// encoding/json would mend what is not UTF-8, and hash something else.
	if !utf8.ValidString(nonce) || !utf8.Valid(key) || additional != nil && !utf8.ValidString(*additional) {
		return nil, errors.New("evidence: binding: want UTF-8")
	}
	if additional != nil {
		data["additional-evidence"] = *additional
	}
	b, err := jcs.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("evidence: binding: %w", err)
	}
	d := h.New()
	d.Write(b)
	return d.Sum(nil), nil
}

// Fit cuts data to size bytes, or fills them up with zeros behind it: what brokers do
// with a Binding for the field of a report.
func Fit(data []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, data)
	return out
}
