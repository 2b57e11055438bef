package measure

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/plinth-os/plinth/measure/snp"
)

// SNPGuest is an SNP guest in several shapes, whose launch digests are wanted.
type SNPGuest struct {
	Params   snp.Params
	Machines []Shape // of which only the number of vCPUs decides
	CPUs     []snp.CPU
	Features uint64 // SEV_FEATURES; 0: the era's default
	Explain  bool   // list the pages behind each digest

	// What a report shows besides, and who is named.
	Policy   snp.Policy
	FamilyID [16]byte
	ImageID  [16]byte
	GuestSVN uint32
	Versions Versions
	Inputs   []Input
}

// NewSNPMeasurements computes the launch digest of g for each of its machines
// with each of its CPU models.
func NewSNPMeasurements(profile string, g *SNPGuest) (*Measurements, error) {
	if len(g.Machines) == 0 || len(g.CPUs) == 0 {
		return nil, errors.New("measure: launch digest: no number, or no model, of vCPUs")
	}
	l, err := snp.NewLaunch(g.Params)
	if err != nil {
		return nil, err
	}
	m := &Measurements{
		Schema: documentSchema, Profile: profile, Machine: g.Machines[0], Machines: g.Machines, Versions: g.Versions,
		Notes: []string{}, Values: []Value{}, Inputs: g.Inputs, SNP: g.facts(),
	}
	for i := range g.Machines {
		for _, cpu := range g.CPUs {
			v, err := g.value(l, &g.Machines[i], cpu)
			if err != nil {
				return nil, fmt.Errorf("measure: launch digest: %d vCPUs, %s: %w", g.Machines[i].VCPUs, cpu.Name, err)
			}
			m.Values = append(m.Values, *v)
		}
	}
	return m, nil
}

func (g *SNPGuest) value(l *snp.Launch, shape *Shape, cpu snp.CPU) (*Value, error) {
	vcpus := snp.VCPUs{Count: shape.VCPUs, Signature: cpu.Signature, Features: g.Features}
	digest, err := l.Digest(vcpus)
	if err != nil {
		return nil, err
	}
	v := &Value{
		Platform: PlatformSNP, Register: launchDigest, Bank: "sha384", Shape: shape, CPU: cpu.Name,
		Provenance: Predicted, Value: hex.EncodeToString(digest[:]), Reason: g.reason(), Events: []EventRef{},
	}
	if !g.Explain {
		return v, nil
	}
	pages, err := l.Explain(vcpus)
	if err != nil {
		return nil, err
	}
	v.Events = launchPages(pages)
	return v, nil
}

// launchPages are the pages behind a launch digest, by range; the digest of each
// is what the launch digest is once the range is in.
func launchPages(pages []snp.PageRange) []EventRef {
	out := make([]EventRef, len(pages))
	for i, p := range pages {
		out[i] = EventRef{
			Name:   fmt.Sprintf("%#x, %d pages", p.GPA, p.Pages),
			Type:   p.Type,
			Digest: hex.EncodeToString(p.Digest[:]),
			Source: p.Source,
		}
	}
	return out
}

// era is the one whose VMSA is computed.
func (g *SNPGuest) era() snp.Era {
	if g.Params.Era.Name == "" {
		return snp.Eras[0]
	}
	return g.Params.Era
}

// reason says for which hosts a launch digest holds.
func (g *SNPGuest) reason() string { return "for host kernels " + g.era().Hosts }

func (g *SNPGuest) facts() *SNPFacts {
	features := g.Features
	if features == 0 {
		features = g.era().Features
	}
	f := &SNPFacts{
		Policy: Bits(uint64(g.Policy)), GuestFeatures: Bits(features), VMM: string(g.Params.VMM), Era: g.era().Name,
		FamilyID: hexOrNothing(g.FamilyID[:]), ImageID: hexOrNothing(g.ImageID[:]), GuestSVN: g.GuestSVN,
	}
	if h := g.Params.Hashes; h != nil {
		f.KernelHashes = &KernelHashes{hex.EncodeToString(h.Kernel[:]), hex.EncodeToString(h.Initrd[:]), hex.EncodeToString(h.Cmdline[:])}
	}
	return f
}

// hexOrNothing writes bytes that are not all zero.
func hexOrNothing(b []byte) string {
	if !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
		return ""
	}
	return hex.EncodeToString(b)
}
