package policy

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// The kinds of a log's entries that are understood, with their versions:
// sigstore/rekor, pkg/types.
const (
	hashedRekord = "hashedrekord 0.0.1" // a signature and the digest of what it is over
	dsseEntry    = "dsse 0.0.1"         // of an envelope
	intotoEntry  = "intoto 0.0.2"       // the same, older
)

// A logEntry is what a log says of a signature, whatever kind of entry it has.
type logEntry struct {
	kind      string
	time      time.Time // at which the log took it in; zero: nobody vouches for one
	digest    string    // SHA-256 of the payload
	signature []byte
	key       []byte // PEM of a key or certificate
}

// The members of entries that are compared; of the rest nothing is used.
type (
	logDigest struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"value"`
	}
	rekordSpec struct {
		Data struct {
			Hash logDigest `json:"hash"`
		} `json:"data"`
		Signature struct {
			Content   []byte `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"`
			} `json:"publicKey"`
		} `json:"signature"`
	}
	dsseSpec struct {
		Envelope   logDigest `json:"envelopeHash"`
		Payload    logDigest `json:"payloadHash"`
		Signatures []struct {
			Signature []byte `json:"signature"`
			Verifier  []byte `json:"verifier"`
		} `json:"signatures"`
	}
	intotoSpec struct {
		Content struct {
			Envelope struct {
				Type       string `json:"payloadType"`
				Signatures []struct {
					KeyID string `json:"keyid"`
					Key   []byte `json:"publicKey"`
					Sig   []byte `json:"sig"` // base64 of base64
				} `json:"signatures"`
			} `json:"envelope"`
			Hash    logDigest `json:"hash"`
			Payload logDigest `json:"payloadHash"`
		} `json:"content"`
	}
)

// parseLogEntry reads an entry for which somebody has vouched.
func parseLogEntry(body []byte) (*logEntry, error) {
	var head struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Spec       json.RawMessage `json:"spec"`
	}
	if err := strictjson.Unmarshal(body, &head); err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	e := &logEntry{kind: head.Kind + " " + head.APIVersion}
	var hash logDigest
	var err error
	switch e.kind {
	case hashedRekord:
		hash, err = e.readRekord(head.Spec)
	case dsseEntry:
		hash, err = e.readDSSE(head.Spec)
	case intotoEntry:
		hash, err = e.readIntoto(head.Spec)
	default:
		err = fmt.Errorf("want %s, %s or %s", hashedRekord, dsseEntry, intotoEntry)
	}
	if err == nil && hash.Algorithm != "sha256" {
		err = fmt.Errorf("digest by %.50q: want sha256", hash.Algorithm)
	}
	if err != nil {
		return nil, fmt.Errorf("log entry: %.50q: %w", e.kind, err)
	}
	e.digest = hash.Value
	return e, nil
}

func (e *logEntry) readRekord(b []byte) (logDigest, error) {
	var s rekordSpec
	err := strictjson.Unmarshal(b, &s)
	e.signature, e.key = s.Signature.Content, s.Signature.PublicKey.Content
	return s.Data.Hash, err
}

func (e *logEntry) readDSSE(b []byte) (logDigest, error) {
	var s dsseSpec
	if err := strictjson.Unmarshal(b, &s); err != nil {
		return s.Payload, err
	}
	if len(s.Signatures) != 1 {
		return s.Payload, fmt.Errorf("%d signatures: want one", len(s.Signatures))
	}
	e.signature, e.key = s.Signatures[0].Signature, s.Signatures[0].Verifier
	return s.Payload, nil
}

func (e *logEntry) readIntoto(b []byte) (logDigest, error) {
	var s intotoSpec
	if err := strictjson.Unmarshal(b, &s); err != nil {
		return logDigest{}, err
	}
	list := s.Content.Envelope.Signatures
	if len(list) != 1 {
		return logDigest{}, fmt.Errorf("%d signatures: want one", len(list))
	}
	sig, err := base64.StdEncoding.DecodeString(string(list[0].Sig))
	e.signature, e.key = sig, list[0].Key
	return s.Content.Payload, err
}

// covers tells whether the entry is of this signature, by this key.
func (e *logEntry) covers(a *attachment, key crypto.PublicKey) error {
	h := sha256.Sum256(a.payload)
	logged, err := loggedKey(e.key)
	if err != nil {
		return err
	}
	same, ok := logged.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !same.Equal(key):
		return errors.New("the log's entry is of another key")
	case !bytes.Equal(e.signature, a.signature):
		return errors.New("the log's entry is of another signature")
	case e.digest != hex.EncodeToString(h[:]):
		return errors.New("the log's entry is of another payload")
	}
	return nil
}

func loggedKey(b []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("log entry: no key in PEM")
	}
	if block.Type == "CERTIFICATE" {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("log entry: %w", err)
		}
		return c.PublicKey, nil
	}
	return x509.ParsePKIXPublicKey(block.Bytes)
}
