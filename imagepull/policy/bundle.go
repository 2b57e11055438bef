package policy

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// BundleMIME is the media type of a bundle, of its layer and of the manifest around
// it: sigstore/protobuf-specs, protos/sigstore_bundle.proto.
const BundleMIME = "application/vnd.dev.sigstore.bundle.v0.3+json"

// What an envelope of a bundle must hold: a statement, of the predicate type by
// which cosign signs images. Attestations say something else of an image, and a
// policy does not ask for what.
const (
	statementMIME = "application/vnd.in-toto+json"
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
)

var statementTypes = map[string]bool{"https://in-toto.io/Statement/v1": true, "https://in-toto.io/Statement/v0.1": true}

// maxSubjects bounds what one statement is about.
const maxSubjects = 1024

// A bundle is one signature with what it takes to check it, in the JSON form of
// protocol buffers.
type bundle struct {
	MediaType string `json:"mediaType"`
	Material  struct {
		PublicKey   json.RawMessage `json:"publicKey"` // a hint; all keys are tried
		Certificate *struct {
			Bytes []byte `json:"rawBytes"`
		} `json:"certificate"`
		Entries []transparency  `json:"tlogEntries"`
		Stamps  json.RawMessage `json:"timestampVerificationData"` // policies name no authority for them
	} `json:"verificationMaterial"`
	Envelope *envelope       `json:"dsseEnvelope"`
	Message  json.RawMessage `json:"messageSignature"`
}

// An envelope is a signed payload: secure-systems-lab/dsse, envelope.md.
type envelope struct {
	Payload    []byte `json:"payload"`
	Type       string `json:"payloadType"`
	Signatures []struct {
		Sig   []byte `json:"sig"`
		KeyID string `json:"keyid"`
	} `json:"signatures"`
}

// A transparency entry has a log's promise to include it, a proof that it is
// included, or both.
type transparency struct {
	Index number `json:"logIndex"`
	Log   struct {
		ID []byte `json:"keyId"`
	} `json:"logId"`
	Kind struct {
		Kind    string `json:"kind"`
		Version string `json:"version"`
	} `json:"kindVersion"`
	Time    number `json:"integratedTime"` // seconds since 1970
	Promise *struct {
		Timestamp []byte `json:"signedEntryTimestamp"`
	} `json:"inclusionPromise"`
	Proof *inclusion `json:"inclusionProof"`
	Body  []byte     `json:"canonicalizedBody"`
}

// A number of 64 bits, which is a string in this form of JSON.
type number int64

func (n *number) UnmarshalJSON(b []byte) error {
	text := string(b)
	if len(b) > 1 && b[0] == '"' {
		text = string(b[1 : len(b)-1])
	}
	v, err := strconv.ParseInt(text, 10, 64)
	*n = number(v)
	return err
}

func parseBundle(b []byte) (*attachment, error) {
	var v bundle
	if err := strictjson.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	a, err := v.attachment()
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return a, nil
}

func (b *bundle) attachment() (*attachment, error) {
	switch e := b.Envelope; {
	case b.MediaType != BundleMIME:
		return nil, fmt.Errorf("media type %.100q: want %s", b.MediaType, BundleMIME)
	case e == nil:
		return nil, errors.New("no envelope: want a statement that is signed")
	case len(e.Signatures) != 1:
		return nil, fmt.Errorf("%d signatures: want one", len(e.Signatures))
	case len(b.Material.Entries) > 1: // which of them says what would have to be told
		return nil, fmt.Errorf("%d entries of logs: want at most one", len(b.Material.Entries))
	}
	e := b.Envelope
	a := &attachment{
		signed: e.encoding(), payload: e.Payload, signature: e.Signatures[0].Sig,
		log: b.logged, says: e.subjects,
	}
	if c := b.Material.Certificate; c != nil {
		a.certificate = c.Bytes
	}
	return a, nil
}

// encoding is what is signed: dsse, protocol.md, "PAE".
func (e *envelope) encoding() []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.Type), e.Type, len(e.Payload), e.Payload)
}

// subjects reads a statement whose signature has been checked: in-toto/attestation,
// spec/v1/statement.md.
func (e *envelope) subjects() (*claim, error) {
	var s struct {
		Type    string `json:"_type"`
		Subject []struct {
			Name        string            `json:"name"`
			URI         string            `json:"uri"`
			Digest      map[string]string `json:"digest"`
			Content     []byte            `json:"content"`
			Location    string            `json:"downloadLocation"`
			MediaType   string            `json:"mediaType"`
			Annotations json.RawMessage   `json:"annotations"`
		} `json:"subject"`
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}
	if e.Type != statementMIME {
		return nil, fmt.Errorf("payload of type %.100q: want %s", e.Type, statementMIME)
	}
	if err := strictjson.Unmarshal(e.Payload, &s); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	switch {
	case !statementTypes[s.Type]:
		return nil, fmt.Errorf("statement: type %.100q", s.Type)
	case s.PredicateType != signPredicate:
		return nil, fmt.Errorf("statement: predicate type %.100q: not a signature of an image, %s", s.PredicateType, signPredicate)
	case len(s.Subject) == 0 || len(s.Subject) > maxSubjects:
		return nil, fmt.Errorf("statement: %d subjects: want 1 to %d", len(s.Subject), maxSubjects)
	}
	c := &claim{}
	for _, subject := range s.Subject {
		c.digests = append(c.digests, "sha256:"+subject.Digest["sha256"])
	}
	return c, nil
}

// logged returns the entry, if a log vouches for it.
func (b *bundle) logged(logs []signer) (*logEntry, error) {
	if len(b.Material.Entries) == 0 {
		return nil, errors.New("no entry of a transparency log")
	}
	return b.Material.Entries[0].check(logs)
}

// check wants a log's promise or a proof of inclusion, and whatever of them is there
// to be right. Only the promise is over the time.
func (t *transparency) check(logs []signer) (*logEntry, error) {
	if t.Promise == nil && t.Proof == nil {
		return nil, errors.New("the log's entry has neither promise nor proof")
	}
	e, err := parseLogEntry(t.Body)
	if err != nil {
		return nil, err
	}
	if said := t.Kind.Kind + " " + t.Kind.Version; said != e.kind {
		return nil, fmt.Errorf("log entry: %s: the bundle says %.100q", e.kind, said)
	}
	if t.Promise != nil {
		p := logBundle{t.Promise.Timestamp, logPayload{
			base64.StdEncoding.EncodeToString(t.Body), int64(t.Time), hex.EncodeToString(t.Log.ID), int64(t.Index),
		}}
		if err := p.check(logs); err != nil {
			return nil, err
		}
		e.time = time.Unix(int64(t.Time), 0)
	}
	if t.Proof != nil {
		if err := t.Proof.check(t.Body, logs); err != nil {
			return nil, fmt.Errorf("proof of inclusion: %w", err)
		}
	}
	return e, nil
}
