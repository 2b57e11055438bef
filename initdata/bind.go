package initdata

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Platform is what shows in its evidence which initdata a guest was given. The
// names are Trustee's.
type Platform string

// The platforms.
const (
	SNP   Platform = "snp"
	TDX   Platform = "tdx"
	CCA   Platform = "cca"
	TPM   Platform = "tpm"
	AzSNP Platform = "az-snp-vtpm"
	AzTDX Platform = "az-tdx-vtpm"
)

// PCR is the register of a TPM that is extended by the digest.
const PCR = 8

// fields is where a platform has the digest. Initdata Specification 0.1.0,
// "Integrity Binding for Different TEEs"; Trustee, deps/verifier.
var fields = []struct {
	platform Platform
	name     string
	size     int  // bytes
	tpm      bool // else the host sets it at launch
}{
	{SNP, "HOSTDATA", 32, false},
	{TDX, "MRCONFIGID", 48, false},
	{CCA, "RPV", 64, false}, // realm personalization value
	{TPM, "PCR 8", sha256.Size, true},
	{AzSNP, "PCR 8", sha256.Size, true},
	{AzTDX, "PCR 8", sha256.Size, true},
}

// Platforms are all of them.
func Platforms() (out []Platform) {
	for _, f := range fields {
		out = append(out, f.platform)
	}
	return out
}

// ParsePlatform reads a platform's name.
func ParsePlatform(s string) (Platform, error) {
	if all := Platforms(); !slices.Contains(all, Platform(s)) {
		return "", fmt.Errorf("initdata: platform %q: want one of %s", s, strings.Trim(fmt.Sprint(all), "[]"))
	}
	return Platform(s), nil
}

// ErrAlgorithm: the platform has no use for a digest of the document's algorithm.
var ErrAlgorithm = errors.New("a TPM wants sha256")

// A Binding is what evidence of a platform holds when the guest was given a
// document.
type Binding struct {
	Platform Platform
	Field    string
	Value    []byte
	Fitted   string // how the digest was brought to the field's size; "" when it had it
}

// Bind computes what the evidence of a platform holds. Of a TPM that is PCR 8 of
// bank sha256 when nothing else has extended it, which is what verifiers ask for.
func (d *Document) Bind(p Platform) (*Binding, error) {
	for _, f := range fields {
		if f.platform != p {
			continue
		}
		b := &Binding{Platform: p, Field: f.name}
		if f.tpm {
			extended, err := d.Extend()
			if err != nil {
				return nil, fmt.Errorf("initdata: %s: %w", p, err)
			}
			value := sha256.Sum256(slices.Concat(make([]byte, sha256.Size), extended))
			b.Value = value[:]
			return b, nil
		}
		b.Value, b.Fitted = fit(d.Digest(), f.size)
		return b, nil
	}
	_, err := ParsePlatform(string(p))
	return nil, err
}

// Extend returns the digest that PCR 8 is extended by, in bank sha256. Only the
// digest of a document that says sha256 serves: guests cut a longer one to 32
// bytes, and Trustee copies the whole into a field of 32, which ends its verifier.
func (d *Document) Extend() ([]byte, error) {
	if d.Algorithm != SHA256 {
		return nil, fmt.Errorf("algorithm %q: %w: PCR %d is extended in bank sha256, by guests that cut a longer digest to %d bytes, and compared by verifiers that do not",
			d.Algorithm, ErrAlgorithm, PCR, sha256.Size)
	}
	return d.Digest(), nil
}

// fit cuts a digest at the end, or adds zeros there.
func fit(digest []byte, size int) (value []byte, how string) {
	value = make([]byte, size)
	copy(value, digest)
	switch {
	case len(digest) > size:
		return value, fmt.Sprintf("cut from %d bytes", len(digest))
	case len(digest) < size:
		return value, fmt.Sprintf("zeros behind %d bytes", len(digest))
	}
	return value, ""
}
