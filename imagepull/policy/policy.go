// Package policy reads policy.json of containers/image and judges images by it:
// containers-policy.json(5). What it does not understand it refuses, and what no
// rule speaks of is rejected.
package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/strictjson"
)

// maxPolicy bounds a policy file, bytes.
const maxPolicy = 1 << 20

// A Policy says which images may be used.
type Policy struct {
	Default    []Requirement                       `json:"default"`    // where no scope is named
	Transports map[string]map[string][]Requirement `json:"transports"` // by transport and scope
}

// The types of a Requirement.
const (
	AcceptAnything = "insecureAcceptAnything"
	Reject         = "reject"
	SignedBy       = "signedBy"
	SignedBase     = "signedBaseLayer" // in the format; nobody implements it: rejects
	SigstoreSigned = "sigstoreSigned"
)

// A Requirement is one that an image must meet, besides the others of its list.
// Which fields it may have goes by its type.
type Requirement struct {
	Type string `json:"type"`

	// Keys: exactly one of these, Fulcio or PKI. Of signedBy they are OpenPGP
	// keyrings, of sigstoreSigned public keys in PEM. Any of several will do.
	KeyType  string   `json:"keyType"` // of signedBy; only GPGKeys can be met
	KeyPath  string   `json:"keyPath"`
	KeyPaths []string `json:"keyPaths"`
	KeyData  []byte   `json:"keyData"`
	KeyDatas [][]byte `json:"keyDatas"`

	Fulcio *Fulcio `json:"fulcio"`
	PKI    *PKI    `json:"pki"`

	// The transparency log that must have seen the signature: at most one of these.
	RekorPath  string   `json:"rekorPublicKeyPath"`
	RekorPaths []string `json:"rekorPublicKeyPaths"`
	RekorData  []byte   `json:"rekorPublicKeyData"`
	RekorDatas [][]byte `json:"rekorPublicKeyDatas"`

	Identity     *Identity `json:"signedIdentity"`    // nil: matchRepoDigestOrExact
	BaseIdentity *Identity `json:"baseLayerIdentity"` // of signedBaseLayer
}

// Fulcio trusts certificates that a certificate authority issued to an identity
// of an OpenID Connect provider.
type Fulcio struct {
	CAPath  string `json:"caPath"` // one of the two
	CAData  []byte `json:"caData"`
	Issuer  string `json:"oidcIssuer"`
	Subject string `json:"subjectEmail"`
}

// PKI trusts certificates of one's own authorities.
type PKI struct {
	RootsPath         string `json:"caRootsPath"` // one of the two
	RootsData         []byte `json:"caRootsData"`
	IntermediatesPath string `json:"caIntermediatesPath"` // at most one of the two
	IntermediatesData []byte `json:"caIntermediatesData"`
	Email             string `json:"subjectEmail"` // one of the two, or both
	Hostname          string `json:"subjectHostname"`
}

// members are the keys that an object of a type may have besides its type.
var members = map[string]string{
	AcceptAnything: "",
	Reject:         "",
	SignedBy:       "keyType keyPath keyPaths keyData signedIdentity",
	SignedBase:     "baseLayerIdentity",
	SigstoreSigned: "keyPath keyPaths keyData keyDatas fulcio pki rekorPublicKeyPath rekorPublicKeyPaths rekorPublicKeyData rekorPublicKeyDatas signedIdentity",

	MatchExact:         "",
	MatchRepoOrDigest:  "",
	MatchRepository:    "",
	MatchReference:     "dockerReference",
	MatchOneRepository: "dockerRepository",
	RemapIdentity:      "prefix signedPrefix",
}

// Parse reads a policy. A key that is unknown, in another case, there twice or
// without a value refuses the whole file: what it was to forbid is not known.
func Parse(b []byte) (*Policy, error) {
	if len(b) > maxPolicy {
		return nil, fmt.Errorf("policy: %d bytes: want at most %d", len(b), maxPolicy)
	}
	p, raw := &Policy{}, map[string]any{}
	if err := strictjson.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if err := checkMembers(raw, ""); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if err := checkList(p.Default); err != nil {
		return nil, fmt.Errorf("policy: default%w", err)
	}
	for transport, scopes := range p.Transports {
		for scope, list := range scopes {
			err := checkScope(transport, scope)
			if err == nil {
				err = checkList(list)
			}
			if err != nil {
				return nil, fmt.Errorf("policy: transports.%s.%q%w", transport, scope, err)
			}
		}
	}
	return p, nil
}

// checkMembers refuses null, and keys that an object's type does not have.
func checkMembers(v any, path string) error {
	switch v := v.(type) {
	case nil:
		return fmt.Errorf("%s: null", path)
	case []any:
		for i, e := range v {
			if err := checkMembers(e, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case map[string]any:
		kind, typed := v["type"].(string)
		known := strings.Fields(members[kind])
		for key, e := range v {
			at := strings.TrimPrefix(path+"."+key, ".")
			if typed && key != "type" && !slices.Contains(known, key) {
				return fmt.Errorf("%s: not a key of type %q", at, kind)
			}
			if err := checkMembers(e, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkList(list []Requirement) error {
	if len(list) == 0 {
		return errors.New(": no requirement: an empty list would admit everything")
	}
	for i := range list {
		if err := list[i].check(); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return nil
}

func (r *Requirement) check() error {
	switch r.Type {
	case AcceptAnything, Reject:
		return nil
	case SignedBy:
		if !slices.Contains([]string{"GPGKeys", "signedByGPGKeys", "X509Certificates", "signedByX509CAs"}, r.KeyType) {
			return fmt.Errorf("keyType %q", r.KeyType)
		}
		if n := given(r.KeyPath, r.KeyPaths, r.KeyData); n != 1 {
			return fmt.Errorf("%d of keyPath, keyPaths and keyData: want one", n)
		}
	case SignedBase:
		if r.BaseIdentity == nil {
			return errors.New("no baseLayerIdentity")
		}
		return r.BaseIdentity.check()
	case SigstoreSigned:
		if err := r.checkSigstore(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("type %q: unknown", r.Type)
	}
	if r.Identity == nil {
		return nil
	}
	return r.Identity.check()
}

func (r *Requirement) checkSigstore() error {
	if n := given(r.KeyPath, r.KeyPaths, r.KeyData, r.KeyDatas, r.Fulcio, r.PKI); n != 1 {
		return fmt.Errorf("%d of keyPath, keyPaths, keyData, keyDatas, fulcio and pki: want one", n)
	}
	rekor := given(r.RekorPath, r.RekorPaths, r.RekorData, r.RekorDatas)
	switch {
	case rekor > 1:
		return fmt.Errorf("%d of rekorPublicKeyPath, ...Paths, ...Data and ...Datas: want at most one", rekor)
	case r.Fulcio != nil && rekor == 0:
		return errors.New("fulcio without a rekorPublicKey: nothing would say when the short-lived certificate was used")
	case r.PKI != nil && rekor != 0:
		return errors.New("pki with a rekorPublicKey: nothing says when a certificate was used")
	case r.Fulcio != nil:
		return r.Fulcio.check()
	case r.PKI != nil:
		return r.PKI.check()
	}
	return nil
}

func (f *Fulcio) check() error {
	switch {
	case given(f.CAPath, f.CAData) != 1:
		return errors.New("fulcio: want one of caPath and caData")
	case f.Issuer == "":
		return errors.New("fulcio: no oidcIssuer")
	case f.Subject == "":
		return errors.New("fulcio: no subjectEmail")
	}
	return nil
}

func (p *PKI) check() error {
	switch {
	case given(p.RootsPath, p.RootsData) != 1:
		return errors.New("pki: want one of caRootsPath and caRootsData")
	case given(p.IntermediatesPath, p.IntermediatesData) > 1:
		return errors.New("pki: want at most one of caIntermediatesPath and caIntermediatesData")
	case p.Email == "" && p.Hostname == "":
		return errors.New("pki: want subjectEmail, subjectHostname or both")
	}
	return nil
}

// given counts what is there. An empty string or list is not.
func given(values ...any) (n int) {
	for _, v := range values {
		there := false
		switch v := v.(type) {
		case string:
			there = v != ""
		case []string:
			there = len(v) > 0
		case []byte:
			there = len(v) > 0
		case [][]byte:
			there = len(v) > 0
		case *Fulcio:
			there = v != nil
		case *PKI:
			there = v != nil
		}
		if there {
			n++
		}
	}
	return n
}
