package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/plinth-os/plinth/internal/jcs"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// A logBundle is the promise of a transparency log to have an entry: cosign,
// specs/SIGNATURE_SPEC.md, "dev.sigstore.cosign/bundle".
type logBundle struct {
	Promise []byte     `json:"SignedEntryTimestamp"`
	Payload logPayload `json:"Payload"`
}

// logPayload is what the log signs, in the form of RFC 8785.
type logPayload struct {
	Body  string `json:"body"` // base64 of a logEntry
	Time  int64  `json:"integratedTime"`
	LogID string `json:"logID"`
	Index int64  `json:"logIndex"`
}

// promised returns what the log says of a signature, once one of its keys has
// vouched for it.
func promised(text string, logs []signer) (*logEntry, error) {
	if text == "" {
		return nil, errors.New("no entry of a transparency log")
	}
	var b logBundle
	if err := strictjson.Unmarshal([]byte(text), &b); err != nil {
		return nil, fmt.Errorf("log bundle: %w", err)
	}
	if err := b.check(logs); err != nil {
		return nil, err
	}
	body, err := base64.StdEncoding.DecodeString(b.Payload.Body)
	if err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	e, err := parseLogEntry(body)
	if err != nil {
		return nil, err
	}
	e.time = time.Unix(b.Payload.Time, 0)
	return e, nil
}

// check checks that a log made the promise.
func (b *logBundle) check(logs []signer) error {
	signed, err := jcs.Marshal(&b.Payload)
	if err != nil {
		return err
	}
	if !anyVerifies(logs, signed, b.Promise) {
		return errors.New("the log's entry is signed by no trusted log")
	}
	return nil
}

func anyVerifies(keys []signer, signed, sig []byte) bool {
	for _, k := range keys {
		if verifySHA256(k.key, signed, sig) == nil {
			return true
		}
	}
	return false
}
