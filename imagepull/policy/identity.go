package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// The types of an Identity.
const (
	MatchExact         = "matchExact"
	MatchRepoOrDigest  = "matchRepoDigestOrExact" // the default
	MatchRepository    = "matchRepository"
	MatchReference     = "exactReference"
	MatchOneRepository = "exactRepository"
	RemapIdentity      = "remapIdentity"
)

// An Identity says which names in a signature are as good as the image's own: a
// signer signs what an image is called, too.
type Identity struct {
	Type         string `json:"type"`
	Reference    string `json:"dockerReference"`
	Repository   string `json:"dockerRepository"`
	Prefix       string `json:"prefix"`
	SignedPrefix string `json:"signedPrefix"`
}

// prefix is a host, or a host and path components.
var prefix = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$`)

func (i *Identity) check() error {
	switch i.Type {
	case MatchExact, MatchRepoOrDigest, MatchRepository:
	case MatchReference:
		ref, err := reference.ParseNormalizedNamed(i.Reference)
		if err != nil {
			return fmt.Errorf("dockerReference %q: %w", i.Reference, err)
		}
		if reference.IsNameOnly(ref) {
			return fmt.Errorf("dockerReference %q: want a tag or a digest", i.Reference)
		}
	case MatchOneRepository:
		if _, err := reference.ParseNormalizedNamed(i.Repository); err != nil {
			return fmt.Errorf("dockerRepository %q: %w", i.Repository, err)
		}
	case RemapIdentity:
		for _, p := range []string{i.Prefix, i.SignedPrefix} {
			if !prefix.MatchString(p) {
				return fmt.Errorf("prefix %q: want a host, or a host and a path", p)
			}
		}
	default:
		return fmt.Errorf("signedIdentity: type %q: unknown", i.Type)
	}
	return nil
}

var errNoName = errors.New("the image has no registry's name to compare with that in the signature")

// matches tells whether signed, a signature's own name of the image, will do.
func (i *Identity) matches(n Name, signed string) error {
	kind := MatchRepoOrDigest
	if i != nil {
		kind = i.Type
	}
	got, err := reference.ParseNormalizedNamed(signed)
	if err != nil {
		return fmt.Errorf("the signature is for %q: %w", signed, err)
	}
	want := n.Ref
	switch kind {
	case MatchReference:
		want, err = reference.ParseNormalizedNamed(i.Reference)
		kind = MatchExact
	case MatchOneRepository:
		want, err = reference.ParseNormalizedNamed(i.Repository)
		kind = MatchRepository
	case RemapIdentity:
		if want != nil {
			want, err = i.remap(want)
		}
		kind = MatchRepoOrDigest
	}
	if err != nil {
		return err
	}
	if want == nil {
		return errNoName
	}
	if !same(kind, want, got) {
		return fmt.Errorf("the signature is for %s: want %s (%s)", signed, want, kind)
	}
	return nil
}

// byScope tells whether a signature will do that names no image, as sigstore's
// bundles are: it is for a manifest, in whatever repository that lies. The scope of
// the policy's rule says then what its keys may sign. A rule for everything says
// nothing, a repository must be the scope where one is asked for, and no scope shows
// an identity of which more is asked than that.
func (i *Identity) byScope(n Name, scope string) error {
	kind := MatchRepoOrDigest
	if i != nil {
		kind = i.Type
	}
	switch {
	case scope == "":
		return errors.New("the signature names no image: want a rule for the image's registry or repository")
	case kind == MatchRepository && n.Ref == nil:
		return errNoName
	case kind == MatchRepository && scope != n.Ref.Name() && !strings.HasPrefix(scope, n.Ref.Name()+":") && !strings.HasPrefix(scope, n.Ref.Name()+"@"):
		return fmt.Errorf("the signature names no image: want a rule for %s (%s)", n.Ref.Name(), kind)
	case kind != MatchRepository && kind != MatchRepoOrDigest:
		return fmt.Errorf("the signature names no image: want one that does (%s)", kind)
	}
	return nil
}

func same(kind string, want, got reference.Named) bool {
	if kind == MatchRepository {
		return want.Name() == got.Name()
	}
	if reference.IsNameOnly(want) || reference.IsNameOnly(got) {
		return false
	}
	// Of an image by digest alone the repository is enough: the digest is compared
	// anyway. Who names a tag, too, means what was signed under it.
	_, tagged := want.(reference.Tagged)
	if _, digested := want.(reference.Digested); digested && kind == MatchRepoOrDigest {
		signed, ok := got.(reference.Tagged)
		return want.Name() == got.Name() && (!tagged || ok && signed.Tag() == want.(reference.Tagged).Tag())
	}
	return want.String() == got.String()
}

// remap puts the signed prefix in the place of the image's, where it has that.
func (i *Identity) remap(ref reference.Named) (reference.Named, error) {
	rest, ok := strings.CutPrefix(ref.Name(), i.Prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return ref, nil
	}
	out, err := reference.ParseNormalizedNamed(i.SignedPrefix + strings.TrimPrefix(ref.String(), i.Prefix))
	if err != nil {
		return nil, fmt.Errorf("remapIdentity: %w", err)
	}
	return out, nil
}
