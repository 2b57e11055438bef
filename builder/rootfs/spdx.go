package rootfs

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// SPDX 2.3 in JSON, the fields that are written here: specification clauses 6 to
// 11, schema spdx-schema.json of version 2.3.
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	DataLicense   string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Files         []spdxFile         `json:"files,omitempty"`
	Extracted     []spdxExtracted    `json:"hasExtractedLicensingInfos,omitempty"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID               string         `json:"SPDXID"`
	Name             string         `json:"name"`
	Version          string         `json:"versionInfo,omitempty"`
	FileName         string         `json:"packageFileName,omitempty"`
	Supplier         string         `json:"supplier,omitempty"`
	DownloadLocation string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	Verification     *spdxVerify    `json:"packageVerificationCode,omitempty"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
	Homepage         string         `json:"homepage,omitempty"`
	SourceInfo       string         `json:"sourceInfo,omitempty"`
	Concluded        string         `json:"licenseConcluded"`
	Declared         string         `json:"licenseDeclared"`
	Copyright        string         `json:"copyrightText"`
	Summary          string         `json:"summary,omitempty"`
	Comment          string         `json:"comment,omitempty"`
	Purpose          string         `json:"primaryPackagePurpose,omitempty"`
	External         []spdxExternal `json:"externalRefs,omitempty"`
}

type spdxVerify struct {
	Value string `json:"packageVerificationCodeValue"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxExternal struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxFile struct {
	ID        string         `json:"SPDXID"`
	Name      string         `json:"fileName"`
	Checksums []spdxChecksum `json:"checksums"`
	Concluded string         `json:"licenseConcluded"`
	Copyright string         `json:"copyrightText"`
}

type spdxExtracted struct {
	ID   string `json:"licenseId"`
	Name string `json:"name"`
	Text string `json:"extractedText"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const (
	spdxRoot     = "SPDXRef-Root"
	spdxDocID    = "SPDXRef-DOCUMENT"
	noAssertion  = "NOASSERTION"
	spdxContains = "CONTAINS"
)

// SPDX returns the bill of materials in the form of SPDX 2.3, as JSON. The image
// contains packages, which contain files, and files that no package brought.
func (v *Inventory) SPDX(d Document) ([]byte, error) {
	id, err := v.uuid("spdx", d)
	if err != nil {
		return nil, err
	}
	doc := &spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: spdxDocID, Name: d.Name, Namespace: "urn:uuid:" + id,
		Creation: spdxCreation{Created: d.created(), Creators: []string{"Tool: " + d.Tool}},
		Packages: []spdxPackage{spdxImage(d)},
	}
	doc.relate(spdxDocID, "DESCRIBES", spdxRoot)
	codes := v.verificationCodes()
	for i := range v.Components {
		c := &v.Components[i]
		doc.Packages = append(doc.Packages, v.spdxPackage(c, codes[c.Name]))
		doc.relate(spdxRoot, spdxContains, spdxPackageID(c.Name))
		for _, need := range c.Depends {
			doc.relate(spdxPackageID(c.Name), "DEPENDS_ON", spdxPackageID(need))
		}
		for _, l := range c.Licences {
			doc.Extracted = append(doc.Extracted, spdxExtracted(l))
		}
	}
	for _, f := range v.Files {
		owner := spdxRoot
		if f.Package != "" {
			owner = spdxPackageID(f.Package)
		}
		s := spdxFile{ID: spdxFileID(f.Path), Name: "./" + f.Path, Concluded: noAssertion, Copyright: noAssertion,
			Checksums: []spdxChecksum{{"SHA1", f.SHA1}, {"SHA256", f.SHA256}}}
		doc.Files = append(doc.Files, s)
		doc.relate(owner, spdxContains, s.ID)
	}
	slices.SortFunc(doc.Extracted, func(x, y spdxExtracted) int { return strings.Compare(x.ID, y.ID) })
	doc.Extracted = slices.CompactFunc(doc.Extracted, func(x, y spdxExtracted) bool { return x.ID == y.ID })
	return marshal(doc)
}

func (doc *spdxDocument) relate(from, kind, to string) {
	doc.Relationships = append(doc.Relationships, spdxRelationship{from, kind, to})
}

// spdxImage is the root file system as a whole.
func spdxImage(d Document) spdxPackage {
	p := spdxPackage{ID: spdxRoot, Name: d.Name, FileName: d.ImageFile, DownloadLocation: noAssertion, Concluded: noAssertion,
		Declared: noAssertion, Copyright: noAssertion, Purpose: "OPERATING_SYSTEM"}
	if d.ImageSHA256 != "" {
		p.Checksums = []spdxChecksum{{"SHA256", d.ImageSHA256}}
	}
	if d.RootHash != "" {
		p.Comment = rootHashNote + "=" + d.RootHash
	}
	return p
}

func (v *Inventory) spdxPackage(c *Component, code string) spdxPackage {
	p := spdxPackage{
		ID: spdxPackageID(c.Name), Name: c.Name, Version: c.Version, Supplier: noAssertion, DownloadLocation: noAssertion,
		Homepage:  c.Homepage,
		Concluded: noAssertion, Declared: noAssertion, Copyright: noAssertion, Summary: c.Summary,
		External: []spdxExternal{{"PACKAGE-MANAGER", "purl", v.purl(c)}},
	}
	if c.Source != "" {
		p.SourceInfo = fmt.Sprintf("built from source package %s %s", c.Source, c.SourceVersion)
	}
	if c.Supplier != "" {
		p.Supplier = "Organization: " + spdxParty(c.Supplier)
	}
	if c.Licence != "" {
		p.Declared = c.Licence
	}
	if c.SHA256 != "" {
		p.Checksums = []spdxChecksum{{"SHA256", c.SHA256}}
	}
	if code != "" {
		p.FilesAnalyzed, p.Verification = true, &spdxVerify{code}
	}
	return p
}

// spdxParty turns "Name <address>" into "Name (address)", clause 7.5.
func spdxParty(s string) string {
	name, address := party(s)
	if address == "" {
		return name
	}
	return name + " (" + address + ")"
}

// verificationCodes are those of clause 7.9, by package: the SHA-1 of the files'
// SHA-1 values, sorted and written one behind the other.
func (v *Inventory) verificationCodes() map[string]string {
	sums := map[string][]string{}
	for _, f := range v.Files {
		sums[f.Package] = append(sums[f.Package], f.SHA1)
	}
	out := map[string]string{}
	for name, s := range sums {
		slices.Sort(s)
		code := sha1.Sum([]byte(strings.Join(s, "")))
		out[name] = hex.EncodeToString(code[:])
	}
	return out
}

// spdxPackageID holds to letters, digits, "." and "-". Any other byte, like the "+"
// of Debian's names, is written as ".2b." here.
func spdxPackageID(name string) string {
	var out strings.Builder
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-':
			out.WriteByte(c)
		default:
			fmt.Fprintf(&out, ".%02x.", c)
		}
	}
	return "SPDXRef-Package-" + out.String()
}

func spdxFileID(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "SPDXRef-File-" + hex.EncodeToString(sum[:16])
}
