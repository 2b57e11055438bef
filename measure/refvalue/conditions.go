package refvalue

import (
	"maps"
	"slices"
)

// The policy that Conditions mirrors, in the repository
// github.com/confidential-containers/trustee. It may have changed since.
const (
	PolicyCommit = "78962cd416dcc8a32f9377e0066a28fe21420f69" // 2026-08-21
	PolicyPath   = "attestation-service/src/ear_token/ear_default_policy_cpu.rego"
)

// Elements of the trust vector that the policy sets: draft-ietf-rats-ar4si,
// section 2.3.
const (
	Executables   = "executables"
	Hardware      = "hardware"
	Configuration = "configuration"
)

// Elements are those that the policy sets, in the order in which a reader wants them.
var Elements = []string{Hardware, Executables, Configuration}

// Unmet is what an element of the trust vector is when no rule of the policy holds:
// 33, runtime memory has what is not recognized; 97, unrecognized hardware or firmware;
// 36, configuration that is not available.
var Unmet = map[string]int{Executables: 33, Hardware: 97, Configuration: 36}

// Affirming tells whether a verifier that sees the number in a trust vector goes
// on: 2 to 31. 0 is no assertion, 1 a fault of the verifier, 32 to 95 a warning,
// and beyond that the guest is contraindicated.
func Affirming(vector int) bool { return vector >= 2 && vector < 32 }

// How a condition compares.
const (
	In    = "in" // the reference value is a list
	Equal = "==" // it is not
)

// A Condition is one line of the policy. Those of the same Trust and Vector are
// one rule, and hold together.
type Condition struct {
	Trust     string `json:"trust"`               // element of the trust vector
	Vector    int    `json:"vector"`              // what it becomes
	Claim     string `json:"claim"`               // in the evidence: "snp.measurement"
	Op        string `json:"op"`                  // In or Equal
	Reference string `json:"reference,omitempty"` // name of the reference value; "" for a constant
	Want      any    `json:"want,omitempty"`      // the constant: string or bool
}

// Claims that are no path: a digest of one event in the CC event log.
const (
	claimKernel  = "tdx.uefi_event_logs: EV_EFI_BOOT_SERVICES_APPLICATION of File(kernel)"
	claimOptions = "tdx.uefi_event_logs: EV_EVENT_TAG LOADED_IMAGE::LoadOptions"
)

// Conditions returns those of the policy for one TEE. Rules of one element stand
// in the order in which the policy tries them.
func Conditions(tee TEE) []Condition { return slices.Clone(conditions[tee]) }

var conditions = map[TEE][]Condition{
	SNP: slices.Concat(
		rule(Executables, 3,
			in("snp.measurement", "snp_launch_measurement")),
		rule(Hardware, 2,
			in("snp.reported_tcb_bootloader", "snp_bootloader"),
			in("snp.reported_tcb_microcode", "snp_microcode"),
			in("snp.reported_tcb_snp", "snp_snp_svn"),
			in("snp.reported_tcb_tee", "snp_tee_svn")),
		rule(Configuration, 2,
			constant("snp.policy_debug_allowed", false),
			constant("snp.policy_migrate_ma", false),
			equal("snp.platform_smt_enabled", "snp_smt_enabled"),
			equal("snp.platform_tsme_enabled", "snp_tsme_enabled"),
			equal("snp.policy_abi_major", "snp_guest_abi_major"),
			equal("snp.policy_abi_minor", "snp_guest_abi_minor"),
			equal("snp.policy_single_socket", "snp_single_socket"),
			equal("snp.policy_smt_allowed", "snp_smt_allowed")),
		rule(Configuration, 3,
			constant("snp.policy_debug_allowed", false),
			constant("snp.policy_migrate_ma", false)),
	),
	TDX: slices.Concat(
		rule(Executables, 3,
			in("tdx.quote.body.rtmr_1", "rtmr_1"),
			in("tdx.quote.body.rtmr_2", "rtmr_2"),
			equal(claimKernel, "tdvfkernel"),
			equal(claimOptions, "tdvfkernelparams")),
		rule(Executables, 4,
			in("tdx.quote.body.rtmr_1", "rtmr_1"),
			in("tdx.quote.body.rtmr_2", "rtmr_2")),
		rule(Hardware, 2,
			constant("tdx.quote.header.tee_type", teeTypeTDX),
			constant("tdx.quote.header.vendor_id", vendorIntel),
			in("tdx.quote.body.mr_td", "mr_td"),
			constant("tdx.tcb_status", "UpToDate"),
			constant("tdx.collateral_expiration_status", "0")),
		rule(Configuration, 2,
			constant("tdx.td_attributes.debug", false),
			in("tdx.quote.body.xfam", "xfam")),
	),
	AzSNP: slices.Concat(
		rule(Executables, 3,
			in("az-snp-vtpm.measurement", "measurement"),
			in("az-snp-vtpm.tpm.pcr11", "snp_pcr11")),
		rule(Hardware, 2,
			in("az-snp-vtpm.reported_tcb_bootloader", "tcb_bootloader"),
			in("az-snp-vtpm.reported_tcb_microcode", "tcb_microcode"),
			in("az-snp-vtpm.reported_tcb_snp", "tcb_snp"),
			in("az-snp-vtpm.reported_tcb_tee", "tcb_tee")),
		rule(Configuration, 2,
			in("az-snp-vtpm.platform_smt_enabled", "smt_enabled"),
			in("az-snp-vtpm.platform_tsme_enabled", "tsme_enabled"),
			in("az-snp-vtpm.policy_abi_major", "abi_major"),
			in("az-snp-vtpm.policy_abi_minor", "abi_minor"),
			in("az-snp-vtpm.policy_single_socket", "single_socket"),
			in("az-snp-vtpm.policy_smt_allowed", "smt_allowed")),
	),
	AzTDX: slices.Concat(
		rule(Executables, 3,
			in("az-tdx-vtpm.tpm.pcr11", "tdx_pcr11")),
		rule(Hardware, 2,
			constant("az-tdx-vtpm.quote.header.tee_type", teeTypeTDX),
			constant("az-tdx-vtpm.quote.header.vendor_id", vendorIntel),
			in("az-tdx-vtpm.quote.body.mr_td", "mr_td"),
			constant("az-tdx-vtpm.tcb_status", "UpToDate")),
		rule(Configuration, 2,
			in("az-tdx-vtpm.quote.body.xfam", "xfam")),
	),
	TPM: rule(Executables, 3,
		in("tpm.pcr11", "tpm_pcr11"),
		in("tpm.ak_public", "trusted_aks")),
}

// Constants of a TDX quote's header.
const (
	teeTypeTDX  = "81000000"
	vendorIntel = "939a7233f79c4ca9940a0db3957f0607" // Intel's QE
)

// given are elements that the policy sets for any evidence of a TEE.
var given = map[TEE]map[string]int{
	TPM: {Hardware: 2, Configuration: 0},
}

func rule(trust string, vector int, conditions ...Condition) []Condition {
	for i := range conditions {
		conditions[i].Trust, conditions[i].Vector = trust, vector
	}
	return conditions
}

func in(claim, name string) Condition { return Condition{Claim: claim, Op: In, Reference: name} }

func equal(claim, name string) Condition { return Condition{Claim: claim, Op: Equal, Reference: name} }

func constant(claim string, want any) Condition {
	return Condition{Claim: claim, Op: Equal, Want: want}
}

// Names returns the reference values that the policy reads for a TEE, sorted.
func Names(tee TEE) []string {
	seen := map[string]bool{}
	for _, c := range conditions[tee] {
		if c.Reference != "" {
			seen[c.Reference] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// scalar tells whether the policy compares a reference value with ==. A name that
// it does not read is taken to be a list.
func scalar(tee TEE, name string) bool {
	return slices.ContainsFunc(conditions[tee], func(c Condition) bool { return c.Reference == name && c.Op == Equal })
}
