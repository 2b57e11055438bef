package kbs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Load gives the broker what a file of a form holds, as if an operator had loaded
// it: "rvps", "sample", "corim" or "k8s".
func (b *Broker) Load(form string, file []byte) error {
	values, err := Read(form, file)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.put(values)
	return nil
}

// Read returns the values of such a file.
func Read(form string, file []byte) (map[string]any, error) {
	switch form {
	case "rvps":
		return parseMessage(file)
	case "sample":
		return parseSample(file)
	case "corim":
		return parseCoRIM(file)
	case "k8s":
		values, _, err := Object(file)
		return values, err
	}
	return nil, fmt.Errorf("form %q", form)
}

// Object reads the values of a ConfigMap or Secret as a pod of RVPS finds them, and
// when the first of them expires.
func Object(file []byte) (map[string]any, time.Time, error) {
	d := yaml.NewDecoder(bytes.NewReader(file))
	d.KnownFields(true)
	var o struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Type       string
		Metadata   struct{ Name, Namespace string }
		Data       map[string]string
	}
	if err := d.Decode(&o); err != nil {
		return nil, time.Time{}, err
	}
	text, ok := o.Data["reference_value"]
	if o.APIVersion != "v1" || o.Metadata.Name == "" || o.Metadata.Namespace == "" || !ok || len(o.Data) != 1 {
		return nil, time.Time{}, fmt.Errorf("%+v: want an object with one key, reference_value", o)
	}
	store := []byte(text)
	switch o.Kind {
	case "ConfigMap":
	case "Secret":
		var err error
		if store, err = base64.StdEncoding.Strict().DecodeString(text); err != nil {
			return nil, time.Time{}, err
		}
	default:
		return nil, time.Time{}, fmt.Errorf("kind %q", o.Kind)
	}
	return parseStore(store)
}

// A Statement is an in-toto statement, version 1.
type Statement struct {
	Type    string `json:"_type"`
	Subject []struct {
		Name   string
		Digest map[string]string
	}
	PredicateType string
	Predicate     json.RawMessage
}

// ReadStatement reads one and wants what the specification does.
func ReadStatement(b []byte) (*Statement, error) {
	var s Statement
	if err := parse(b, &s); err != nil {
		return nil, err
	}
	if s.Type != "https://in-toto.io/Statement/v1" || len(s.Subject) == 0 || s.PredicateType == "" {
		return nil, fmt.Errorf("type %q, %d subjects, predicate %q", s.Type, len(s.Subject), s.PredicateType)
	}
	for _, x := range s.Subject {
		if len(x.Digest["sha256"]) != 64 || x.Name == "" {
			return nil, fmt.Errorf("subject %+v", x)
		}
	}
	return &s, nil
}

// Envelopes reads a bundle, a DSSE envelope in each line, and returns the
// statements in them after a look at every signature: secure-systems-lab/dsse,
// protocol.md.
func Envelopes(bundle []byte, key crypto.PublicKey) (out []*Statement, err error) {
	for line := range bytes.Lines(bundle) {
		var e struct {
			PayloadType, Payload string
			Signatures           []struct{ KeyID, Sig string }
		}
		if err := parse(line, &e); err != nil {
			return nil, err
		}
		payload, err := base64.StdEncoding.DecodeString(e.Payload)
		if err != nil || e.PayloadType != "application/vnd.in-toto+json" || len(e.Signatures) != 1 {
			return nil, fmt.Errorf("envelope of %q, %d signatures: %v", e.PayloadType, len(e.Signatures), err)
		}
		sig, err := base64.StdEncoding.DecodeString(e.Signatures[0].Sig)
		if err != nil {
			return nil, err
		}
		signed := fmt.Sprintf("DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(payload), payload)
		if !verifyASN1(key, []byte(signed), sig) {
			return nil, errors.New("bad signature")
		}
		s, err := ReadStatement(payload)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// verifyASN1 checks a signature in the form that is usual for the key outside of
// JOSE and COSE.
func verifyASN1(key crypto.PublicKey, message, sig []byte) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		digest := sum256(message)
		if k.Curve.Params().BitSize == 384 {
			digest = sum384(message)
		}
		return ecdsa.VerifyASN1(k, digest, sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, sig)
	case *rsa.PublicKey:
		return verifySignature(key, "PS256", message, sig)
	}
	return false
}

// Sign1 checks a CoRIM in a COSE_Sign1 and returns the CoRIM: RFC 9052, section
// 4.4.
func Sign1(b []byte, key crypto.PublicKey) ([]byte, error) {
	item, rest, err := decode(b, 0)
	if err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("sign1: %d bytes behind it: %v", len(rest), err)
	}
	t, _ := item.(tagged)
	parts, _ := t.item.([]any)
	if t.tag != 18 || len(parts) != 4 {
		return nil, fmt.Errorf("sign1: tag %d with %d parts", t.tag, len(parts))
	}
	protected, _ := parts[0].([]byte)
	payload, _ := parts[2].([]byte)
	sig, _ := parts[3].([]byte)
	head, _, err := decode(protected, 0)
	if err != nil {
		return nil, err
	}
	header, _ := head.(map[any]any)
	alg := map[any]string{int64(-7): "ES256", int64(-35): "ES384", int64(-37): "PS256", int64(-8): "EdDSA"}[header[int64(1)]]
	if !strings.HasPrefix(fmt.Sprint(header[int64(3)]), "application/rim+cbor") {
		return nil, fmt.Errorf("sign1: content type %v", header[int64(3)])
	}
	// An array of four: text, protected headers, no external data, payload.
	message := append([]byte{0x84, 0x6a}, "Signature1"...)
	message = append(appendString(message, protected), 0x40)
	if !verifySignature(key, alg, appendString(message, payload), sig) {
		return nil, fmt.Errorf("sign1: %s: bad signature", alg)
	}
	return payload, nil
}

// appendString appends a byte string in the shortest form.
func appendString(b, s []byte) []byte {
	switch n := len(s); {
	case n < 24:
		b = append(b, 0x40|byte(n))
	case n < 1<<8:
		b = append(b, 0x58, byte(n))
	case n < 1<<16:
		b = append(b, 0x59, byte(n>>8), byte(n))
	default:
		b = append(b, 0x5a, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, s...)
}
