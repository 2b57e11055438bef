package rootfs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/mail"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/ident"
)

// A Document is what a bill of materials says beside the inventory.
type Document struct {
	Name  string // of the image: the profile's
	Epoch int64  // when it was made, seconds since 1970
	Seed  string // of the profile: identifiers derive from it and from the content
	Tool  string // "plinth-1.2"
	// Of the image that the tree became, where it is known.
	ImageFile   string // "root.erofs"
	ImageSHA256 string // hex
	RootHash    string // of dm-verity, hex
}

// uuid derives the identifier of a bill of materials from everything in it.
func (v *Inventory) uuid(purpose string, d Document) (string, error) {
	content, err := json.Marshal(struct {
		*Inventory
		Document
	}{v, d})
	if err != nil {
		return "", err
	}
	u := ident.UUID(d.Seed, purpose, content)
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), nil
}

func (d *Document) created() string { return time.Unix(d.Epoch, 0).UTC().Format(time.RFC3339) }

// party takes apart what a Maintainer field has: "Name <address>". What follows is
// dropped, one in Debian has a comma there, and so is what is no address.
func party(s string) (name, address string) {
	name, address, _ = strings.Cut(s, "<")
	address, _, _ = strings.Cut(address, ">")
	if a, err := mail.ParseAddress(address); err != nil || a.Address != address {
		address = ""
	}
	return strings.TrimSpace(name), address
}

// rootHashNote is how both bills of materials name the root hash.
const rootHashNote = "plinth:verity:root_hash"

// purl returns the package URL of a component, type deb: name and version, and as
// qualifiers, in their alphabetic order, the architecture, the release, and the
// source package where it has another name or version, as scanners look for
// advisories by it.
func (v *Inventory) purl(c *Component) string {
	if c.PURL != "" {
		return c.PURL
	}
	u := "pkg:deb/debian/" + percent(c.Name) + "@" + percent(c.Version) + "?arch=" + percent(c.Arch)
	if v.Distro != "" {
		u += "&distro=" + percent(v.Distro)
	}
	switch {
	case c.SourceVersion != c.Version:
		u += "&upstream=" + percent(c.Source+"@"+c.SourceVersion)
	case c.Source != c.Name:
		u += "&upstream=" + percent(c.Source)
	}
	return u
}

// GenericPURL returns the package URL of what is known by its digest alone, type
// generic.
func GenericPURL(name string, sha256 [32]byte) string {
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i := range parts {
		parts[i] = percent(parts[i])
	}
	return fmt.Sprintf("pkg:generic/%s@sha256:%x", strings.Join(parts, "/"), sha256)
}

// percent encodes as the specification of package URLs asks: all but letters,
// digits, ".", "-", "_", "~" and the colon.
func percent(s string) string {
	var out bytes.Buffer
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_', c == '~', c == ':':
			out.WriteByte(c)
		default:
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}

// marshal encodes without escaping "<" and ">", which are in every address.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	err := e.Encode(v)
	return out.Bytes(), err
}
