// Package guestapi is how programs inside a guest ask it for secrets, tokens, evidence
// and measurements: containers by HTTP, as CoCo's api-server-rest has it (REST), and
// programs of the measured root file system by the ttRPC services of CoCo's
// attestation-agent and confidential-data-hub (Services). What the guest does for them
// is the agent's; this package says who may ask for what.
package guestapi

import (
	"context"
	"errors"

	"github.com/plinth-os/plinth/workload"
)

// A Guest does what its programs ask for. Its errors hold no secret. It bounds what one
// of them may cost, but not who asks.
type Guest interface {
	// Resource gets what the broker calls uri, a "kbs:" URI.
	Resource(ctx context.Context, uri string) ([]byte, error)
	// Evidence is the guest's own, with at most MaxRuntimeData bytes of the caller in it.
	Evidence(ctx context.Context, runtimeData []byte) ([]byte, error)
	// AdditionalEvidence is that of its devices, a JSON object by their kinds. Empty:
	// there are none.
	AdditionalEvidence(ctx context.Context, runtimeData []byte) ([]byte, error)
	// Token is {"token"}, the broker's for this guest, and with the key "tee_keypair" in
	// PEM: the private key that secrets are encrypted to.
	Token(ctx context.Context, withKey bool) ([]byte, error)
	// Measure extends the registers of workloads by an event. The log has it then, or
	// there is an error: ErrNoRegister where no register is for that.
	Measure(ctx context.Context, e workload.Event) error
	// Unseal opens a sealed secret: "sealed." and the three parts of a JWS.
	Unseal(ctx context.Context, sealed []byte) ([]byte, error)
	// UnwrapKey opens the key of an image's layer: packet is that of CoCo's key provider.
	UnwrapKey(ctx context.Context, packet []byte) ([]byte, error)
	// SecureMount opens an encrypted disk and mounts it.
	SecureMount(ctx context.Context, r MountRequest) error
	// TEE is what attests the guest, one of evidence.TEEs.
	TEE() string
	// AdditionalTEEs are the kinds of its devices that are attested.
	AdditionalTEEs() []string
}

// A MountRequest is api.SecureMountService's.
type MountRequest struct {
	VolumeType string // "block-device"
	Options    map[string]string
	Flags      []string // of the mount
	MountPoint string
}

// ErrNoRegister is what Measure returns in a guest that measures no workloads.
var ErrNoRegister = errors.New("the guest has no register for events")

// MaxRuntimeData bounds what a caller puts into evidence, in bytes: the field of SNP
// and TDX. Of a TPM it is 32 bytes, to which longer data are cut, as CoCo's attester
// does it.
const MaxRuntimeData = 64
