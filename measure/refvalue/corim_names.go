package refvalue

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
)

// A CoRIM names a value by the environment that it is measured in (vendor and
// model) and by a key within it. The launch measurements of SNP and TDX have the
// names of the IGVM tools' profile "tag:microsoft.com,2026:launch-measurement/v1";
// the others follow its style. That profile itself asks for a security version of
// every measurement, which no image knows of itself, so it is not claimed.
var environments = map[TEE]struct{ vendor, model string }{
	SNP:   {"AMD", "SEV-SNP"},
	TDX:   {"Intel", "TDX"},
	AzSNP: {"Microsoft", "az-snp-vtpm"},
	AzTDX: {"Microsoft", "az-tdx-vtpm"},
	TPM:   {"TCG", "TPM"},
}

// mkeys are the keys of reference values; one that is not here is its own key.
var mkeys = map[string]string{
	"snp_launch_measurement": "MEASUREMENT",
	"measurement":            "MEASUREMENT",
	"mr_td":                  "MRTD",
	"rtmr_1":                 "RTMR1",
	"rtmr_2":                 "RTMR2",
	"xfam":                   "XFAM",
	"tdvfkernel":             "TDVFKERNEL",
	"tdvfkernelparams":       "TDVFKERNELPARAMS",
	"snp_pcr11":              "PCR11",
	"tdx_pcr11":              "PCR11",
	"tpm_pcr11":              "PCR11",
}

func mkeyOf(name string) string {
	if k, ok := mkeys[name]; ok {
		return k
	}
	if n, ok := ownPCR(name); ok {
		return fmt.Sprintf("PCR%d", n)
	}
	return name
}

// A CoRIMName says what becomes of one reference value in a CoRIM.
type CoRIMName struct {
	Name string // in the set
	RVPS string // what Trustee's RVPS calls it; "" when it is not in the CoRIM
	Why  string // why it is not
}

// CoRIMNames says of every value of the set by which name Trustee's RVPS knows it
// once it has read the CoRIM. None is the name that the default policy reads: a
// CoRIM wants a policy that asks for these. A CoRIM carries digests and bytes;
// numbers, truth values and keys reach the verifier in another form.
func (s *Set) CoRIMNames() ([]CoRIMName, error) {
	env, ok := environments[s.TEE]
	if !ok {
		return nil, fmt.Errorf("refvalue: CoRIM: the set is for TEE %q: want one of %v", s.TEE, TEEs)
	}
	var out []CoRIMName
	for _, v := range s.Values {
		m, why := measurementOf(v)
		n := CoRIMName{Name: v.Name, Why: why}
		if why == "" {
			r := m.reference(env.vendor, env.model)
			n.RVPS = r.RVPS()[0].Name
		}
		out = append(out, n)
	}
	return out, nil
}

// A measurement is a measurement-map: digests or raw bytes under a key.
type measurement struct {
	mkey    string
	digests []Digest
	raw     []byte
}

func (m *measurement) reference(vendor, model string) Reference {
	return Reference{Vendor: vendor, Model: model, MKey: m.mkey, Digests: m.digests, Raw: m.raw}
}

// measurementOf puts a value into a measurement-map, or says why it has no place
// there.
//
// All digests of a register go into one list, though the draft means a list for
// digests of one thing by several algorithms: Trustee's RVPS keeps the last of
// equal names alone.
func measurementOf(v Value) (*measurement, string) {
	m := &measurement{mkey: mkeyOf(v.Name)}
	for _, a := range v.Any {
		b, ok := bytesOf(kindOf(v.Name), a)
		if !ok {
			return nil, fmt.Sprintf("%v is neither a digest nor bytes", a)
		}
		if alg := digestAlgorithm(len(b)); alg != 0 {
			m.digests = append(m.digests, Digest{alg, b})
			continue
		}
		if m.raw != nil {
			return nil, "several values that are no digests: RVPS keeps one of equal names"
		}
		m.raw = b
	}
	switch {
	case len(m.digests) == 0 && m.raw == nil:
		return nil, "it has no value"
	case len(m.digests) > 0 && m.raw != nil:
		return nil, "some of its values are digests and some are not"
	}
	slices.SortFunc(m.digests, compareDigests)
	return m, ""
}

// bytesOf reads a digest, or other bytes, as the verifier spells them. Of a name
// that the policy does not know, what looks like a digest in hex is one.
func bytesOf(k kind, v any) ([]byte, bool) {
	text, _ := v.(string) // "" is no bytes either
	switch k {
	case hex8, hex32, hex48:
		b, err := hex.DecodeString(text)
		return b, err == nil && len(b) > 0
	case base48:
		b, err := base64.StdEncoding.DecodeString(text)
		return b, err == nil && len(b) > 0
	case "":
		b, err := hex.DecodeString(text)
		return b, err == nil && digestAlgorithm(len(b)) != 0
	}
	return nil, false
}
