package rootfs

import (
	"bytes"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// CycloneDX returns the bill of materials in the form of CycloneDX 1.6, as JSON.
// Files are components of the package that brought them, or of the image.
func (v *Inventory) CycloneDX(d Document) ([]byte, error) {
	id, err := v.uuid("cyclonedx", d)
	if err != nil {
		return nil, err
	}
	bom := cdx.NewBOM()
	bom.SerialNumber = "urn:uuid:" + id
	image := cdxImage(d)
	name, version, _ := strings.Cut(d.Tool, "-")
	bom.Metadata = &cdx.Metadata{
		Timestamp: d.created(),
		Tools:     &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: name, Version: version}}},
		Component: image,
	}
	files := map[string][]cdx.Component{}
	for _, f := range v.Files {
		files[f.Package] = append(files[f.Package], cdxFile(f))
	}
	var components []cdx.Component
	contains := cdx.Dependency{Ref: image.BOMRef, Dependencies: &[]string{}}
	var dependencies []cdx.Dependency
	refs := map[string]string{}
	for i := range v.Components {
		refs[v.Components[i].Name] = v.purl(&v.Components[i])
	}
	for i := range v.Components {
		c := &v.Components[i]
		component := v.cdxPackage(c)
		if f := files[c.Name]; len(f) > 0 {
			component.Components = &f
		}
		components = append(components, component)
		*contains.Dependencies = append(*contains.Dependencies, component.BOMRef)
		needs := cdx.Dependency{Ref: component.BOMRef, Dependencies: &[]string{}}
		for _, name := range c.Depends {
			*needs.Dependencies = append(*needs.Dependencies, refs[name])
		}
		dependencies = append(dependencies, needs)
	}
	components = append(components, files[""]...)
	bom.Components = &components
	dependencies = append([]cdx.Dependency{contains}, dependencies...)
	bom.Dependencies = &dependencies
	var out bytes.Buffer
	err = cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetEscapeHTML(false).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6)
	return out.Bytes(), err
}

func cdxImage(d Document) *cdx.Component {
	c := &cdx.Component{BOMRef: "image", Type: cdx.ComponentTypeOS, Name: d.Name}
	if d.ImageSHA256 != "" {
		c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: d.ImageSHA256}}
	}
	if d.RootHash != "" {
		c.Properties = &[]cdx.Property{{Name: rootHashNote, Value: d.RootHash}}
	}
	return c
}

func cdxFile(f File) cdx.Component {
	return cdx.Component{
		BOMRef: "file:/" + f.Path, Type: cdx.ComponentTypeFile, Name: "/" + f.Path,
		Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA1, Value: f.SHA1}, {Algorithm: cdx.HashAlgoSHA256, Value: f.SHA256}},
	}
}

func (v *Inventory) cdxPackage(c *Component) cdx.Component {
	u := v.purl(c)
	out := cdx.Component{BOMRef: u, Type: cdx.ComponentTypeLibrary, Name: c.Name, Version: c.Version, Description: c.Summary, PackageURL: u}
	if c.PURL != "" {
		out.Type = cdx.ComponentTypeApplication
	}
	if c.Supplier != "" {
		name, address := party(c.Supplier)
		out.Supplier = &cdx.OrganizationalEntity{Name: name}
		if address != "" {
			out.Supplier.Contact = &[]cdx.OrganizationalContact{{Email: address}}
		}
	}
	if c.SHA256 != "" {
		out.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: c.SHA256}}
	}
	if c.Licence != "" {
		out.Licenses = &cdx.Licenses{{Expression: c.Licence}}
	}
	if c.Homepage != "" {
		out.ExternalReferences = &[]cdx.ExternalReference{{Type: cdx.ERTypeWebsite, URL: c.Homepage}}
	}
	return out
}
