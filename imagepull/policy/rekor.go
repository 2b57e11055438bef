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

// A logBundle is the promise of a transparency log to have an entry: cosign,
// specs/SIGNATURE_SPEC.md, "dev.sigstore.cosign/bundle".
type logBundle struct {
	Promise []byte     `json:"SignedEntryTimestamp"`
	Payload logPayload `json:"Payload"`
}

// logPayload has its members in the order in which the log signs them: RFC 8785.
type logPayload struct {
	Body  string `json:"body"` // base64 of a logEntry
	Time  int64  `json:"integratedTime"`
	LogID string `json:"logID"`
	Index int64  `json:"logIndex"`
}

// A logEntry is a hashedrekord, version 0.0.1: sigstore/rekor,
// pkg/types/hashedrekord.
type logEntry struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Data struct {
			Hash struct {
				Algorithm string `json:"algorithm"`
				Value     string `json:"value"`
			} `json:"hash"`
		} `json:"data"`
		Signature struct {
			Content   []byte `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"` // PEM of a key or certificate
			} `json:"publicKey"`
		} `json:"signature"`
	} `json:"spec"`

	time time.Time // at which the log took it in
}

// logEntry returns what the log says of a signature, once one of its keys has
// vouched for it.
func (a *attachment) logEntry(rekor []signer) (*logEntry, error) {
	text := a.Annotations[cosignBundle]
	if text == "" {
		return nil, errors.New("no entry of a transparency log")
	}
	var b logBundle
	if err := strictjson.Unmarshal([]byte(text), &b); err != nil {
		return nil, fmt.Errorf("log bundle: %w", err)
	}
	signed, err := canonical(&b.Payload)
	if err != nil {
		return nil, err
	}
	if !anyVerifies(rekor, signed, b.Promise) {
		return nil, errors.New("the log's entry is signed by no trusted log")
	}
	body, err := base64.StdEncoding.DecodeString(b.Payload.Body)
	if err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	e := &logEntry{time: time.Unix(b.Payload.Time, 0)}
	if err := strictjson.Unmarshal(body, e); err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	if e.Kind != "hashedrekord" || e.APIVersion != "0.0.1" {
		return nil, fmt.Errorf("log entry: %s %s: want hashedrekord 0.0.1", e.Kind, e.APIVersion)
	}
	return e, nil
}

func anyVerifies(keys []signer, signed, sig []byte) bool {
	for _, k := range keys {
		if verifySHA256(k.key, signed, sig) == nil {
			return true
		}
	}
	return false
}

// canonical is the form of RFC 8785, in which only what JSON demands is escaped.
func canonical(p *logPayload) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(p)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

// covers tells whether the entry is of this signature, by this key.
func (e *logEntry) covers(a *attachment, key crypto.PublicKey) error {
	h := sha256.Sum256(a.Payload)
	logged, err := loggedKey(e.Spec.Signature.PublicKey.Content)
	if err != nil {
		return err
	}
	same, ok := logged.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !same.Equal(key):
		return errors.New("the log's entry is of another key")
	case !bytes.Equal(e.Spec.Signature.Content, a.signature):
		return errors.New("the log's entry is of another signature")
	case e.Spec.Data.Hash.Algorithm != "sha256" || e.Spec.Data.Hash.Value != hex.EncodeToString(h[:]):
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
