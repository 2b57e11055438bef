package kbs

import (
	"crypto"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// parseInitdata is attestation-service/src/lib.rs, parse_init_data: the digest of the
// document by the algorithm that it names, and what it holds, for the token. Without
// initdata both are nil.
func parseInitdata(a *attestation) (digest []byte, claims any, err error) {
	if a.InitData == nil {
		return nil, nil, nil
	}
	if a.InitData.Format != "toml" {
		return nil, nil, fmt.Errorf("initdata: Unsupported initdata format: %s", a.InitData.Format)
	}
	var document struct {
		Version   string
		Algorithm string
		Data      map[string]string
	}
	if err := toml.Unmarshal([]byte(a.InitData.Body), &document); err != nil {
		return nil, nil, fmt.Errorf("parse init data: %w", err)
	}
	hash := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[strings.ToLower(document.Algorithm)]
	if hash == 0 || document.Version == "" {
		return nil, nil, fmt.Errorf("parse init data: version %q, algorithm %q", document.Version, document.Algorithm)
	}
	h := hash.New()
	h.Write([]byte(a.InitData.Body))
	return h.Sum(nil), initdataClaims(document.Data), nil
}

// initdataClaims has the two configurations as objects.
func initdataClaims(data map[string]string) map[string]any {
	claims := map[string]any{}
	for key, text := range data {
		var object map[string]any
		if (key == "aa.toml" || key == "cdh.toml") && toml.Unmarshal([]byte(text), &object) == nil {
			claims[key] = object
			continue
		}
		claims[key] = text
	}
	return claims
}

// checkInitdata is deps/verifier/src/tpm/mod.rs, verify_init_data. With a digest of
// another size than the register's Trustee itself crashes.
func (b *Broker) checkInitdata(digest, pcr8 []byte) error {
	if digest == nil || b.Off[CheckInitdata] {
		return nil
	}
	if len(digest) != sha256.Size {
		return fmt.Errorf("initdata: a digest of %d bytes: want %d for a TPM", len(digest), sha256.Size)
	}
	want := sha256.Sum256(append(make([]byte, sha256.Size), digest...))
	if string(want[:]) != string(pcr8) {
		return fmt.Errorf("initdata: TPM PCR[8] doesn't match expected initdata hash: pcr8 is %x, want %x", pcr8, want)
	}
	return nil
}
