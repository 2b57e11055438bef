package refvalue

import (
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure"
)

// PCRs are the registers of a TPM.
const PCRs = 24

// pcrPrefix begins the names of registers, as the policy's own "tpm_pcr11" does, and
// claimOf is where a verifier shows them: deps/verifier/src/{tpm,az_snp_vtpm}/mod.rs at
// PolicyCommit.
var (
	pcrPrefix = map[TEE]string{TPM: "tpm_pcr", AzSNP: "snp_pcr", AzTDX: "tdx_pcr"}
	claimOf   = map[TEE]string{TPM: "tpm", AzSNP: `["az-snp-vtpm"].tpm`, AzTDX: `["az-tdx-vtpm"].tpm`}
)

// PCRName is what a register's reference value is called, "" for a TEE that shows none.
func PCRName(tee TEE, pcr int) string {
	if pcrPrefix[tee] == "" || pcr < 0 || pcr >= PCRs {
		return ""
	}
	return fmt.Sprintf("%s%02d", pcrPrefix[tee], pcr)
}

// kindOf is how a value is spelt, "" where nobody knows.
func kindOf(name string) kind {
	if k, ok := names[name]; ok {
		return k
	}
	if _, ok := ownPCR(name); ok {
		return hex32
	}
	return ""
}

// ownPCR is the register of a name that the default policy does not read.
func ownPCR(name string) (pcr int, ok bool) {
	if _, read := names[name]; read {
		return 0, false
	}
	for _, tee := range TEEs {
		for n := range PCRs {
			if PCRName(tee, n) == name {
				return n, true
			}
		}
	}
	return 0, false
}

// An Own value is for a policy of one's own: the default one reads no such name.
type Own struct {
	Name string `json:"name"`

	// Attestation is the condition in a policy of the attestation service, which has
	// reference values; Resource that in one of the key broker, which has none, but the
	// claims of a token: with the values in it.
	Attestation string `json:"attestation_policy"`
	Resource    string `json:"resource_policy"`
}

// Owns are those values of the set, by name.
func (s *Set) Owns() []Own {
	out := []Own{}
	for _, v := range s.Values {
		if o, ok := own(s.TEE, v); ok {
			out = append(out, o)
		}
	}
	return out
}

func own(tee TEE, v Value) (Own, bool) {
	n, ok := ownPCR(v.Name)
	if !ok || PCRName(tee, n) != v.Name {
		return Own{}, false
	}
	claim := fmt.Sprintf("pcr%02d", n)
	var quoted []string
	for _, x := range v.Any {
		quoted = append(quoted, fmt.Sprintf("%q", x))
	}
	dot := "."
	if strings.HasPrefix(claimOf[tee], "[") {
		dot = ""
	}
	return Own{
		Name:        v.Name,
		Attestation: fmt.Sprintf(`input%s%s.%s in query_reference_value(%q)`, dot, claimOf[tee], claim, v.Name),
		Resource:    fmt.Sprintf(`input.submods.cpu0["ear.veraison.annotated-evidence"]%s%s.%s in {%s}`, dot, claimOf[tee], claim, strings.Join(quoted, ", ")),
	}, true
}

// azurePCRs are those of which Azure's firmware leaves what was predicted.
var azurePCRs = []int{8, 9, 11, 12, 13, 14, 15}

// pcrs adds the registers that a policy of one's own will ask for.
func (b *gatherer) pcrs(i Image) error {
	for _, n := range i.PCRs {
		name := PCRName(b.set.TEE, n)
		switch {
		case name == "":
			return fmt.Errorf("PCR %d of a guest of TEE %q: %w", n, b.set.TEE, ErrUnfit)
		case b.set.TEE != TPM && !slices.Contains(azurePCRs, n):
			return fmt.Errorf("PCR %d: Azure's firmware fills it: %w", n, ErrUnfit)
		case n == phasesPCR: // the policy's own
			continue
		}
		r := register{name: name, platform: measure.PlatformTPM, register: fmt.Sprintf("pcr%d", n), bank: "sha256"}
		if err := b.own(i, r); err != nil {
			return err
		}
	}
	return nil
}

// own adds a register as it is once the guest's agent is done with it: before, all
// images have it alike. What cannot be relied upon is left out, so that a policy which
// asks for it accepts nothing.
func (b *gatherer) own(i Image, r register) error {
	found := false
	for _, v := range i.Measurements.Values {
		if r.is(&v) && v.Phase != "" {
			r.phase = v.Phase
		}
	}
	for _, v := range i.Measurements.Values {
		if !r.is(&v) || v.Phase != r.phase {
			continue
		}
		found = true
		if v.Provenance == measure.Volatile {
			b.left(r.name, i.Label, r.register, about(&v, v.Reason))
			continue
		}
		b.add(i, r, &v)
	}
	if !found {
		return r.unfit()
	}
	return nil
}
