package export

import (
	"net/url"
	"strings"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/refvalue"
)

// Files of the in-toto form: two statements, and the envelopes around them, one
// a line, which in-toto calls a bundle.
const (
	StatementName           = "measurements.intoto.json"
	ProvenanceStatementName = "provenance.intoto.json"
	BundleName              = "attestations.intoto.jsonl"
)

// Statements returns what an image says of itself as in-toto statements: what
// guests of it measure, and what it was made of. version is plinth's.
func Statements(m *builder.Manifest, ms *measure.Measurements, version string) (measured, made []byte, err error) {
	var subjects []refvalue.Resource
	for _, a := range m.Artefacts {
		subjects = append(subjects, refvalue.Resource{Name: a.Name, SHA256: a.Digest.String()})
	}
	if measured, err = refvalue.Statement(subjects, ms); err != nil {
		return nil, nil, err
	}
	made, err = refvalue.Provenance(subjects, refvalue.Build{
		Profile: m.Name, Parameters: m.Profile, Version: version, Dependencies: dependencies(m),
	})
	return measured, made, err
}

// dependencies are what the lock names, and the programs that plinth brings.
func dependencies(m *builder.Manifest) (out []refvalue.Resource) {
	for _, p := range m.Lock.Packages {
		out = append(out, refvalue.Resource{Name: p.Name, SHA256: p.SHA256.String(), URI: packageURL(&p)})
	}
	for _, f := range m.Lock.Files {
		out = append(out, refvalue.Resource{Name: f.Path, SHA256: f.SHA256.String()})
	}
	out = append(out, refvalue.Resource{Name: "plinth-agent", SHA256: m.Guest.Agent.Digest.String()})
	if m.Guest.Shell != (cas.Ref{}) {
		out = append(out, refvalue.Resource{Name: "plinth-shell", SHA256: m.Guest.Shell.Digest.String()})
	}
	return out
}

// packageURL names a package of an archive: purl-spec, type deb.
func packageURL(p *source.Package) string {
	if p.Suite == "" {
		return "" // from a directory: whose it is nobody says
	}
	escape := func(s string) string { return strings.ReplaceAll(url.PathEscape(s), "+", "%2B") }
	return "pkg:deb/debian/" + escape(p.Name) + "@" + escape(p.Version) + "?arch=" + escape(p.Arch)
}
