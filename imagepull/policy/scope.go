package policy

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// The transports that images come by.
const (
	Docker     = "docker"      // a registry
	OCI        = "oci"         // a layout directory
	OCIArchive = "oci-archive" // a tar of one
)

// A Name is what an image is called by whoever wants it.
type Name struct {
	Transport string
	Ref       reference.Named // of docker: with a tag, a digest or both
	Path      string          // of oci and oci-archive: absolute
	Image     string          // of oci and oci-archive: which one, may be ""
	Digest    string          // of oci and oci-archive: of the manifest, may be ""
}

// pinned is the end of a name in a layout that has a digest.
var pinned = regexp.MustCompile(`@(sha256:[0-9a-f]{64})$`)

// ParseName reads "docker://registry.example.com/app:1", "oci:/dir:image",
// "oci-archive:/file.tar". Behind the last two may stand a digest,
// "@sha256:...". A registry's image without tag and digest has the tag "latest".
func ParseName(s string) (Name, error) {
	transport, rest, _ := strings.Cut(s, ":")
	switch transport {
	case Docker:
		rest, ok := strings.CutPrefix(rest, "//")
		if !ok {
			return Name{}, fmt.Errorf("image %q: want docker:// before it", s)
		}
		ref, err := reference.ParseNormalizedNamed(rest)
		if err != nil {
			return Name{}, fmt.Errorf("image %q: %w", s, err)
		}
		return Name{Transport: transport, Ref: reference.TagNameOnly(ref)}, nil
	case OCI, OCIArchive:
		digest := ""
		if m := pinned.FindStringSubmatch(rest); m != nil {
			rest, digest = strings.TrimSuffix(rest, m[0]), m[1]
		}
		file, image, _ := strings.Cut(rest, ":")
		if !path.IsAbs(file) {
			return Name{}, fmt.Errorf("image %q: want an absolute path", s)
		}
		return Name{Transport: transport, Path: path.Clean(file), Image: image, Digest: digest}, nil
	}
	return Name{}, fmt.Errorf("image %q: want docker://, oci: or oci-archive: before it", s)
}

func (n Name) String() string {
	if n.Ref != nil {
		return n.Transport + "://" + n.Ref.String()
	}
	s := n.Transport + ":" + n.Path
	if n.Image != "" {
		s += ":" + n.Image
	}
	if n.Digest != "" {
		s += "@" + n.Digest
	}
	return s
}

// scopes returns what a policy may call the image, from the narrowest on.
// containers-policy.json(5), "Supported transports and their scopes".
func (n Name) scopes() []string {
	if n.Ref != nil {
		return DockerScopes(n.Ref)
	}
	out := []string{n.Path}
	if n.Image != "" {
		out = append([]string{n.Path + ":" + n.Image}, out...)
	}
	for dir := path.Dir(n.Path); dir != "/"; dir = path.Dir(dir) {
		out = append(out, dir)
	}
	return append(out, "")
}

// DockerScopes returns what files of containers/image may call an image of a
// registry, from the narrowest on: the image, its repository, what that lies in, the
// domains of the registry, and "" for all.
func DockerScopes(ref reference.Named) []string {
	// By a digest where there is one: it decides what is pulled.
	identity := reference.TrimNamed(ref)
	if d, ok := ref.(reference.Digested); ok {
		identity, _ = reference.WithDigest(identity, d.Digest()) // of a name that has one
	} else {
		identity = ref
	}
	out := []string{identity.String()}
	name := ref.Name()
	for {
		out = append(out, name)
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	host, _, _ := strings.Cut(name, ":")
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			return append(out, "")
		}
		host = parent
		out = append(out, "*."+host)
	}
}

// checkScope refuses scopes that could never be those of an image.
func checkScope(transport, scope string) error {
	if scope == "" || transport != OCI && transport != OCIArchive && transport != "dir" {
		return nil
	}
	file, _, _ := strings.Cut(scope, ":")
	if !path.IsAbs(file) || path.Clean(file) != file || file == "/" {
		return fmt.Errorf(": want a clean absolute path below /")
	}
	return nil
}

// Scope returns the requirements for an image, and by which scope; an image of
// which the policy does not speak falls to its default, and transport is "" then.
func (p *Policy) Scope(n Name) (list []Requirement, transport, scope string) {
	scopes := p.Transports[n.Transport]
	for _, s := range n.scopes() {
		if list, ok := scopes[s]; ok {
			return list, n.Transport, s
		}
	}
	return p.Default, "", ""
}
