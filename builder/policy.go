package builder

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/internal/pe"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/measure/pcr"
	"github.com/plinth-os/plinth/uki"
)

// policySections makes .pcrpkey and .pcrsig: the public key, and a signature
// over the PCR 11 value of each boot phase.
func (w *work) policySections(sections []uki.Section) ([]uki.Section, error) {
	pub, err := w.file("pcr_policy.key")
	if err != nil {
		return nil, err
	}
	pem, err := w.Store.ReadFile(pub.Digest)
	if err != nil {
		return nil, err
	}
	key, err := readRSAKey(w.Profile.PCRPolicy.Key)
	if err != nil {
		return nil, err
	}
	pkey := section(".pcrpkey", pem)
	values, err := w.policyValues(append(append([]uki.Section{}, sections...), pkey))
	if err != nil {
		return nil, err
	}
	sig, err := uki.PCRSignature(key, values)
	if err != nil {
		return nil, err
	}
	return []uki.Section{pkey, section(".pcrsig", sig)}, nil
}

// policyValues returns PCR 11 in each bank, one value a phase path of the profile.
func (w *work) policyValues(sections []uki.Section) (map[string][][]byte, error) {
	stub, err := w.read("stub", "stub")
	if err != nil {
		return nil, err
	}
	fresh := make([]uki.Section, len(sections)) // Write consumes its readers
	for i, s := range sections {
		fresh[i] = uki.Section{Name: s.Name, Content: io.NewSectionReader(s.Content, 0, s.Content.Size())}
	}
	var image bytes.Buffer
	if err := uki.Write(&image, stub, fresh); err != nil {
		return nil, err
	}
	f, err := pe.Parse(bytes.NewReader(image.Bytes()), int64(image.Len()))
	if err != nil {
		return nil, err
	}
	version, err := uki.StubVersion(f)
	if err != nil {
		return nil, err
	}
	var algs []eventlog.Alg
	for _, b := range w.Profile.PCRPolicy.Banks {
		alg, err := eventlog.ParseAlg(b)
		if err != nil {
			return nil, err
		}
		algs = append(algs, alg)
	}
	events, err := pcr.Sections(algs, uki.MeasuredOrder(version), f)
	if err != nil {
		return nil, err
	}
	values := map[string][][]byte{}
	for _, path := range w.Profile.PhasePaths() {
		all := append(slices.Clone(events), pcr.Phases(algs, splitPhases(path))...)
		for _, alg := range algs {
			values[alg.String()] = append(values[alg.String()], pcr.Fold(alg, 11, all))
		}
	}
	return values, nil
}

// splitPhases takes a phase path apart; the empty path has no phase.
func splitPhases(path string) []string {
	if path == "" {
		return nil
	}
	return strings.Split(path, ":")
}

func section(name string, b []byte) uki.Section {
	return uki.Section{Name: name, Content: io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))}
}
