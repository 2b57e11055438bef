package rootfs

import (
	"encoding/hex"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/tree"
)

// An Inventory is what is really inside a tree: packages of which at least one
// file, link or device is left, and every regular file.
type Inventory struct {
	Distro     string      `json:"distro"` // as package URLs have it: "debian-13", "" when unknown
	Components []Component `json:"components"`
	Files      []File      `json:"files"` // sorted by path
}

// A Component is a package.
type Component struct {
	Name          string    `json:"name"`
	Version       string    `json:"version"`
	Arch          string    `json:"arch"`
	Source        string    `json:"source"`
	SourceVersion string    `json:"source_version"`
	Supplier      string    `json:"supplier,omitempty"` // as the Maintainer field has it: "Name <address>"
	Homepage      string    `json:"homepage,omitempty"`
	Summary       string    `json:"summary,omitempty"`
	SHA256        string    `json:"sha256,omitempty"`  // of the .deb
	PURL          string    `json:"purl,omitempty"`    // of what is no Debian package
	Licence       string    `json:"licence,omitempty"` // SPDX expression, "" when the copyright file has no such form
	Licences      []Licence `json:"licences,omitempty"`
	Depends       []string  `json:"depends,omitempty"` // other components by name, sorted
}

// A Licence is one that SPDX has no name for.
type Licence struct {
	ID   string `json:"id"`   // "LicenseRef-..."
	Name string `json:"name"` // as the copyright file has it
	Text string `json:"text"`
}

// A File is a regular file in the tree.
type File struct {
	Path    string `json:"path"`              // without the slash in front
	Package string `json:"package,omitempty"` // "": of the profile, or generated
	Size    int64  `json:"size"`              // bytes
	SHA1    string `json:"sha1"`
	SHA256  string `json:"sha256"`
}

func (b *build) inventory() Inventory {
	v := Inventory{Distro: b.distro()}
	inside := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(b.at)) {
		n := b.at[name]
		if n.pkg != nil && n.Type() != tree.TypeDir {
			inside[n.pkg.Name] = true
		}
		if n.Type() != tree.TypeFile {
			continue
		}
		f := File{Path: name, Package: n.pkgName(), Size: n.inode.blob.Size, SHA1: hex.EncodeToString(n.inode.sha1[:]), SHA256: hex.EncodeToString(n.inode.blob.Digest[:])}
		v.Files = append(v.Files, f)
	}
	for _, p := range b.packages {
		if inside[p.Name] {
			v.Components = append(v.Components, b.component(p, inside))
		}
	}
	return v
}

func (b *build) component(p *pkg, inside map[string]bool) Component {
	c := Component{Name: p.Name, Version: p.Version, Arch: p.Arch, Supplier: p.control["maintainer"], Homepage: p.control["homepage"]}
	if c.PURL = p.PURL; c.PURL == "" {
		c.Source, c.SourceVersion = p.source()
	}
	c.Summary, _, _ = strings.Cut(p.control["description"], "\n")
	if p.SHA256 != [32]byte{} {
		c.SHA256 = hex.EncodeToString(p.SHA256[:])
	}
	if p.licences != nil {
		c.Licence, c.Licences = p.licences.expression(p.Name)
	}
	needs := map[string]bool{}
	for _, field := range []string{"pre-depends", "depends"} {
		for _, r := range p.relations(field) {
			if inside[r.Name] && r.Name != p.Name {
				needs[r.Name] = true
			}
		}
	}
	c.Depends = slices.Sorted(maps.Keys(needs))
	return c
}

// distro reads os-release(5).
func (b *build) distro() string {
	text, err := b.read("etc/os-release")
	if err != nil || text == nil {
		if text, err = b.read("usr/lib/os-release"); err != nil {
			return ""
		}
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = strings.Trim(value, `"'`)
		}
	}
	if values["ID"] == "" || values["VERSION_ID"] == "" {
		return values["ID"]
	}
	return values["ID"] + "-" + values["VERSION_ID"]
}

// readCopyrights finds the copyright file of each package, before anything is
// left out. It may be in the documentation of another package.
func (b *build) readCopyrights() error {
	links, at := newLinks(), map[string]*node{}
	for _, n := range b.nodes {
		if n.pkg == nil {
			continue
		}
		where, err := links.place(n.Path)
		if err != nil {
			return err
		}
		if at[where] == nil {
			at[where] = n
		}
		if n.Type() == tree.TypeSymlink && !slices.Contains(mergedUsr, n.Path) {
			links[where] = n.Target
		}
	}
	for _, p := range b.packages {
		where, err := links.resolve(path.Join("usr/share/doc", p.Name, "copyright"))
		n := at[where]
		if err != nil || n == nil || n.Type() != tree.TypeFile {
			continue
		}
		text, err := n.inode.read(maxText)
		if err != nil {
			return err
		}
		p.licences = parseCopyright(text)
	}
	return nil
}
