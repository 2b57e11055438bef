package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Candidate is an image of which only the manifest is known so far.
type Candidate struct {
	Name     Name
	Manifest []byte // as it came
	// Signatures fetches what there is of a kind; asked for only where a
	// requirement needs it.
	Signatures func(Kind) ([]Signature, error)

	rule string // scope of the rule that judges it
}

// A Kind of signature.
type Kind string

// The kinds.
const (
	Simple   Kind = "simple signing" // an OpenPGP message, from a lookaside
	Sigstore Kind = "sigstore"       // an attachment of the image in its registry
)

// A Signature is one that somebody put beside an image. All of it is hostile.
type Signature struct {
	Source      string // where it was found, for people
	MIMEType    string // of Payload, for sigstore
	Payload     []byte // what was signed; for simple signing, the OpenPGP message
	Annotations map[string]string
}

// Trust is what a judgement needs besides the policy.
type Trust struct {
	ReadFile func(path string) ([]byte, error) // keys, by the paths in the policy
	Now      time.Time
}

func (t *Trust) now() time.Time { return t.Now }

// A Verdict says whether an image may be used, and why.
type Verdict struct {
	Accepted     bool      `json:"accepted"`
	Transport    string    `json:"transport"` // "": the policy's default
	Scope        string    `json:"scope"`
	Requirements []Outcome `json:"requirements"`
}

// An Outcome is that of one requirement.
type Outcome struct {
	Type     string `json:"type"`
	Accepted bool   `json:"accepted"`
	By       string `json:"by,omitempty"`  // the signature that met it
	Key      string `json:"key,omitempty"` // and the key or identity that made it
	Why      string `json:"why,omitempty"` // it was not met
}

// Err returns nil for an image that is accepted, else what was not met.
func (v *Verdict) Err() error {
	if v.Accepted {
		return nil
	}
	var why []string
	for _, o := range v.Requirements {
		if !o.Accepted {
			why = append(why, o.Type+": "+o.Why)
		}
	}
	return fmt.Errorf("rejected by %s: %s", v.rule(), strings.Join(why, "; "))
}

func (v *Verdict) rule() string {
	if v.Transport == "" {
		return "the policy's default"
	}
	return fmt.Sprintf("the policy's rule for %s %q", v.Transport, v.Scope)
}

// Judge holds an image to all requirements of its scope. The error is of what
// keeps it from judging; it is to be taken for a rejection, too.
func (p *Policy) Judge(c Candidate, t Trust) (*Verdict, error) {
	if p == nil {
		p = &Policy{} // which rejects
	}
	list, transport, scope := p.Scope(c.Name)
	c.rule = scope
	v := &Verdict{Accepted: len(list) > 0, Transport: transport, Scope: scope}
	for i := range list {
		o, err := list[i].judge(&c, &t)
		if err != nil {
			return nil, fmt.Errorf("policy: %s: %s: %w", v.rule(), list[i].Type, err)
		}
		o.Type = list[i].Type
		v.Accepted = v.Accepted && o.Accepted
		v.Requirements = append(v.Requirements, o)
	}
	return v, nil
}

func (r *Requirement) judge(c *Candidate, t *Trust) (Outcome, error) {
	switch r.Type {
	case AcceptAnything:
		return Outcome{Accepted: true}, nil
	case SignedBy:
		return r.anySignature(c, t, Simple, newSimple)
	case SigstoreSigned:
		return r.anySignature(c, t, Sigstore, newSigstore)
	case SignedBase:
		return Outcome{Why: "not implemented by anybody"}, nil
	}
	return Outcome{Why: "everything is"}, nil
}

// A verifier checks one signature's maker: it returns what the signature says of
// the image, and who made it.
type verifier func(Signature) (*claim, string, error)

// A claim is what a signature says.
type claim struct {
	digests []string // of manifests that it is for; one will do
	name    string   // of the image; "": it names none
}

// anySignature wants one signature that is by a trusted key, of this manifest,
// and for this name.
func (r *Requirement) anySignature(c *Candidate, t *Trust, k Kind, open func(*Requirement, *Trust) (verifier, error)) (Outcome, error) {
	verify, err := open(r, t)
	if err != nil {
		return Outcome{}, err
	}
	all, err := c.Signatures(k)
	if err != nil {
		return Outcome{}, err
	}
	var refused []error
	for _, s := range all {
		who, err := r.accepts(c, s, verify)
		if err == nil {
			return Outcome{Accepted: true, By: s.Source, Key: who}, nil
		}
		refused = append(refused, fmt.Errorf("%s: %w", s.Source, err))
	}
	if len(all) == 0 {
		return Outcome{Why: fmt.Sprintf("no %s signature", k)}, nil
	}
	return Outcome{Why: strings.ReplaceAll(errors.Join(refused...).Error(), "\n", ", ")}, nil
}

func (r *Requirement) accepts(c *Candidate, s Signature, verify verifier) (string, error) {
	says, who, err := verify(s)
	if err != nil {
		return "", err
	}
	if err := matchesManifest(says.digests, c.Manifest); err != nil {
		return "", err
	}
	if says.name == "" {
		return who, r.Identity.byScope(c.Name, c.rule)
	}
	return who, r.Identity.matches(c.Name, says.name)
}

// matchesManifest compares signed digests with that of the manifest. Only SHA-256
// is taken: a policy cannot say otherwise.
func matchesManifest(digests []string, manifest []byte) error {
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(manifest)); !slices.Contains(digests, got) {
		return fmt.Errorf("the signature is for manifest %.100s: this is %s", strings.Join(digests, ", "), got)
	}
	return nil
}

// keys reads what one of several ways of naming keys names.
func (t *Trust) keys(path string, paths []string, data []byte, datas [][]byte) ([][]byte, error) {
	out := slices.Clone(datas)
	if len(data) > 0 {
		out = append(out, data)
	}
	if path != "" {
		paths = []string{path}
	}
	for _, p := range paths {
		b, err := t.ReadFile(p)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}
