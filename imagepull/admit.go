package imagepull

import (
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/imagepull/policy"
)

// A Kind of image: whether it is encrypted, and whether somebody signed it. What a
// policy says of an image without a signature cannot forbid that its layers are
// plain, and a key that opens its layers says nothing of who made them.
type Kind string

// The kinds. An image is encrypted when each of its layers is, and signed when it
// met a requirement that asks for a signature, not insecureAcceptAnything alone.
const (
	EncryptedSigned   Kind = "encrypted+signed"
	EncryptedUnsigned Kind = "encrypted+unsigned"
	PlainSigned       Kind = "plain+signed"
	PlainUnsigned     Kind = "plain+unsigned"
)

var kinds = []Kind{EncryptedSigned, EncryptedUnsigned, PlainSigned, PlainUnsigned}

// Admit lists the kinds that are taken at all, whatever a policy says. nil: those
// that are signed.
type Admit []Kind

// ParseAdmit reads kinds by their names. An empty list is nil.
func ParseAdmit(names []string) (Admit, error) {
	var a Admit
	for _, name := range names {
		k := Kind(name)
		switch {
		case !slices.Contains(kinds, k):
			return nil, fmt.Errorf("admit: %q: want %s", name, join(kinds))
		case slices.Contains(a, k):
			return nil, fmt.Errorf("admit: %q: there twice", name)
		}
		a = append(a, k)
	}
	return a, nil
}

func (a Admit) kinds() []Kind {
	if len(a) == 0 {
		return []Kind{EncryptedSigned, PlainSigned}
	}
	return a
}

// Check refuses an image of another kind. One that was not judged is not signed.
func (a Admit) Check(im *Image) error {
	if k := im.kind(); !slices.Contains(a.kinds(), k) {
		return fmt.Errorf("the image is %s: only %s is admitted", k, join(a.kinds()))
	}
	return nil
}

func (im *Image) kind() Kind {
	encrypted := len(im.Layers) > 0
	for _, l := range im.Layers {
		encrypted = encrypted && l.Encrypted
	}
	switch signed := signed(im.Verdict); {
	case encrypted && signed:
		return EncryptedSigned
	case encrypted:
		return EncryptedUnsigned
	case signed:
		return PlainSigned
	}
	return PlainUnsigned
}

func signed(v *policy.Verdict) bool {
	return v != nil && v.Accepted && slices.ContainsFunc(v.Requirements, func(o policy.Outcome) bool {
		return o.Accepted && (o.Type == policy.SignedBy || o.Type == policy.SigstoreSigned)
	})
}

func join(list []Kind) string {
	var out []string
	for _, k := range list {
		out = append(out, string(k))
	}
	return strings.Join(out, ", ")
}
