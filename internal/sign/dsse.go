package sign

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// InTotoPayload is the payload type of an in-toto statement.
const InTotoPayload = "application/vnd.in-toto+json"

// An Envelope is a DSSE envelope, protocol version 1.
type Envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"` // base64 in JSON
	Signatures  []Signature `json:"signatures"`
}

// A Signature is one of an Envelope. The key ID is a hint that nothing protects,
// and stays empty: verifiers that have an ID of their own for a key look at no
// signature with another one.
type Signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// DSSE signs a payload with each key and returns the envelope, one line of JSON.
// RSA keys sign with PSS, ECDSA with the hash that COSE pairs with the curve.
func DSSE(payloadType string, payload []byte, keys ...*Key) ([]byte, error) {
	if len(keys) == 0 {
		return nil, errors.New("sign: DSSE: no key")
	}
	e := Envelope{PayloadType: payloadType, Payload: payload}
	message := pae(payloadType, payload)
	for _, k := range keys {
		sig, err := k.SignMessage(message)
		if err != nil {
			return nil, fmt.Errorf("%w: DSSE", err)
		}
		e.Signatures = append(e.Signatures, Signature{Sig: sig})
	}
	b, err := json.Marshal(e)
	return append(b, '\n'), err
}

// pae is the pre-authentication encoding: "DSSEv1", type and payload, each string
// behind its length in decimal, joined by spaces.
func pae(payloadType string, payload []byte) []byte {
	var b bytes.Buffer
	for _, s := range []string{"DSSEv1", strconv.Itoa(len(payloadType)), payloadType, strconv.Itoa(len(payload))} {
		b.WriteString(s)
		b.WriteByte(' ')
	}
	b.Write(payload)
	return b.Bytes()
}
