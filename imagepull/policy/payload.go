package policy

import (
	"encoding/json"
	"fmt"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// The types that a payload states of itself.
const (
	simpleType = "atomic container signature"
	cosignType = "cosign container image signature"
)

// payload is what is signed: containers/image, docs/containers-signature.5.md,
// "JSON data format"; cosign, specs/SIGNATURE_SPEC.md.
type payload struct {
	Critical struct {
		Type  string `json:"type"`
		Image struct {
			Digest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
	} `json:"critical"`
}

// parsePayload reads a payload whose signature has been checked. Its critical part
// must be understood whole; the optional part is nobody's to rely upon.
func parsePayload(b []byte, kind string) (*claim, error) {
	var parts map[string]json.RawMessage
	if err := strictjson.Unmarshal(b, &parts); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if parts["critical"] == nil || parts["optional"] == nil || len(parts) != 2 {
		return nil, fmt.Errorf("payload: want the keys critical and optional, and no others")
	}
	var p payload
	if err := strictjson.Unmarshal(parts["critical"], &p.Critical); err != nil {
		return nil, fmt.Errorf("payload: critical: %w", err)
	}
	c := &p.Critical
	switch {
	case c.Type != kind:
		return nil, fmt.Errorf("payload: type %q: want %q", c.Type, kind)
	case c.Image.Digest == "":
		return nil, fmt.Errorf("payload: no docker-manifest-digest")
	case c.Identity.Reference == "":
		return nil, fmt.Errorf("payload: no docker-reference")
	}
	return &claim{digests: []string{c.Image.Digest}, name: c.Identity.Reference}, nil
}
