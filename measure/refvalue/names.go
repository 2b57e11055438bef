package refvalue

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/plinth-os/plinth/internal/levenshtein"
	"github.com/plinth-os/plinth/measure"
)

// A TEE is a kind of guest, by Trustee's name for its evidence.
type TEE string

// The TEEs.
const (
	SNP   TEE = "snp"
	TDX   TEE = "tdx"
	AzSNP TEE = "az-snp-vtpm" // an Azure guest behind Microsoft's paravisor
	AzTDX TEE = "az-tdx-vtpm"
	TPM   TEE = "tpm"
)

// TEEs are all of them.
var TEEs = []TEE{SNP, TDX, AzSNP, AzTDX, TPM}

// ParseTEE returns the TEE of that name.
func ParseTEE(name string) (TEE, error) {
	if slices.Contains(TEEs, TEE(name)) {
		return TEE(name), nil
	}
	var names []string
	for _, t := range TEEs {
		names = append(names, string(t))
	}
	return "", fmt.Errorf("refvalue: TEE %q: want one of %s", name, strings.Join(names, ", "))
}

// TEEsOf returns those that an image can be a guest of, the likeliest first. That
// of an image for a vTPM depends on where it runs.
func TEEsOf(m *measure.Measurements) (out []TEE) {
	for _, t := range TEEs {
		if slices.ContainsFunc(m.Values, func(v measure.Value) bool { return v.Platform == t.measured() }) {
			out = append(out, t)
		}
	}
	if len(out) > 1 && slices.Contains(out, TPM) { // a plain TPM claims least
		out = append([]TEE{TPM}, slices.DeleteFunc(out, func(t TEE) bool { return t == TPM })...)
	}
	return out
}

// measured is the platform in measurements.json whose registers the TEE shows of
// an image. On Azure the launch measurement covers the paravisor alone.
func (t TEE) measured() string {
	switch t {
	case SNP:
		return measure.PlatformSNP
	case TDX:
		return measure.PlatformTDX
	}
	return measure.PlatformTPM
}

// A kind is how a verifier spells a claim, and so how its reference value must be
// spelt: deps/verifier/src/*/mod.rs at PolicyCommit. Hexadecimal there has lower
// case and no prefix. The verifier for SNP on Azure has a spelling of its own: all
// texts, and the launch measurement in base64.
type kind string

const (
	hex8   kind = "8 bytes in lower-case hex" // XFAM, little-endian as in the quote
	hex32  kind = "32 bytes in lower-case hex"
	hex48  kind = "48 bytes in lower-case hex"
	number kind = "a whole number from 0 to 255"
	truth  kind = "true or false"
	key    kind = "a public key, DER in base64" // as the attester sends it: an SPKI

	base48     kind = "48 bytes in base64"
	numberText kind = "a whole number from 0 to 255, as text"
	truthText  kind = "true or false, as text"
)

// check refuses a value that no claim can equal.
func (k kind) check(v any) error {
	ok := false
	switch x := v.(type) {
	case string:
		switch k {
		case hex8, hex32, hex48:
			b, err := hex.DecodeString(x)
			ok = err == nil && len(b) == k.size() && x == strings.ToLower(x)
		case key:
			b, err := base64.StdEncoding.DecodeString(x)
			ok = err == nil && len(b) > 0 && base64.StdEncoding.EncodeToString(b) == x
		case base48:
			b, err := base64.StdEncoding.DecodeString(x)
			_, notHex := hex.DecodeString(x) // 32 bytes in hex are 64 letters of base64, too
			ok = err == nil && len(b) == k.size() && base64.StdEncoding.EncodeToString(b) == x && notHex != nil
		case numberText:
			n, err := strconv.ParseUint(x, 10, 8)
			ok = err == nil && strconv.FormatUint(n, 10) == x
		case truthText:
			ok = x == "true" || x == "false"
		}
	case int64:
		ok = k == number && x >= 0 && x <= 255
	case bool:
		ok = k == truth
	}
	if !ok {
		return fmt.Errorf("%#v: want %s", v, k)
	}
	return nil
}

func (k kind) size() int {
	switch k {
	case hex8:
		return 8
	case hex32:
		return 32
	}
	return 48
}

// parse reads what a person types.
func (k kind) parse(text string) (any, error) {
	var v any = text
	switch k {
	case hex8, hex32, hex48, base48:
		if t := strings.TrimPrefix(strings.ToLower(text), "0x"); k != base48 || hex48.check(t) == nil {
			v = t
		}
	case number, numberText:
		if n, err := strconv.ParseInt(text, 0, 64); err == nil {
			v = n
		}
	case truth, truthText:
		if b, err := strconv.ParseBool(text); err == nil {
			v = b
		}
	}
	v = k.spell(v)
	if err := k.check(v); err != nil {
		return nil, fmt.Errorf("%q: want %s", text, k)
	}
	return v, nil
}

// spell turns a number, a boolean and hexadecimal into the text that k wants.
func (k kind) spell(v any) any {
	switch x := v.(type) {
	case int64:
		if k == numberText {
			return strconv.FormatInt(x, 10)
		}
	case bool:
		if k == truthText {
			return strconv.FormatBool(x)
		}
	case string:
		if b, err := hex.DecodeString(x); err == nil && k == base48 && len(b) == k.size() {
			return base64.StdEncoding.EncodeToString(b)
		}
	}
	return v
}

// names are the reference values that the policy reads, by name.
var names = map[string]kind{
	"snp_launch_measurement": hex48,
	"snp_bootloader":         number,
	"snp_microcode":          number,
	"snp_snp_svn":            number,
	"snp_tee_svn":            number,
	"snp_smt_enabled":        truth,
	"snp_tsme_enabled":       truth,
	"snp_guest_abi_major":    number,
	"snp_guest_abi_minor":    number,
	"snp_single_socket":      truth,
	"snp_smt_allowed":        truth,

	"mr_td":            hex48,
	"rtmr_1":           hex48,
	"rtmr_2":           hex48,
	"xfam":             hex8,
	"tdvfkernel":       hex48,
	"tdvfkernelparams": hex48,

	"measurement":    base48,
	"snp_pcr11":      hex32,
	"tcb_bootloader": numberText,
	"tcb_microcode":  numberText,
	"tcb_snp":        numberText,
	"tcb_tee":        numberText,
	"smt_enabled":    truthText,
	"tsme_enabled":   truthText,
	"abi_major":      numberText,
	"abi_minor":      numberText,
	"single_socket":  truthText,
	"smt_allowed":    truthText,

	"tdx_pcr11": hex32,

	"tpm_pcr11":   hex32,
	"trusted_aks": key,
}

// whence says who knows what no image decides, "" for what an image does.
func whence(c Condition) string {
	azure := strings.HasPrefix(c.Claim, "az-")
	_, claim, _ := strings.Cut(c.Claim, ".")
	switch {
	case strings.HasPrefix(claim, "reported_tcb_"):
		return "a report of a guest on the host has it in REPORTED_TCB, and so has snphost show tcb"
	case strings.HasPrefix(claim, "platform_"):
		return "a report of a guest on the host has it in PLATFORM_INFO"
	case claim == "quote.body.xfam":
		return "a quote of a guest on the host has it"
	case claim == "ak_public":
		return "it is the attestation key of the guest's TPM"
	case azure && claim != "tpm.pcr11":
		return "Azure's paravisor and host do, and the evidence of a guest there has it"
	}
	return ""
}

// ParsePlatformValue reads one value of a Platform as a person types it: numbers,
// booleans and digests by what the name wants. Of a name that the policy does not
// read, true, false and whole numbers are what they look like.
func ParsePlatformValue(name, text string) (any, error) {
	if k := kindOf(name); k != "" {
		v, err := k.parse(text)
		if err != nil {
			return nil, fmt.Errorf("refvalue: %s: %w: %w", name, ErrPlatform, err)
		}
		return v, nil
	}
	if text == "true" || text == "false" {
		return text == "true", nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && strconv.FormatInt(n, 10) == text {
		return n, nil
	}
	return text, nil
}

// suggest returns the name nearest to one that is not among them, "" when none
// is near.
func suggest(name string, among []string) string {
	best, distance := "", len(name)/3+2
	for _, n := range among {
		if d := levenshtein.Distance(strings.ToLower(name), n); d < distance {
			best, distance = n, d
		}
	}
	return best
}
