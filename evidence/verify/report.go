package verify

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// ReportSize is the size of an SNP report in bytes. What follows it is a table of
// certificates, as an extended guest request returns it.
const ReportSize = 0x4a0

// signedSize is how much of a report is signed: all before the signature.
const signedSize = 0x2a0

// report is an SNP attestation report; little-endian; AMD 56860, ATTESTATION_REPORT.
type report struct {
	Version         uint32 // 2 to 5
	GuestSVN        uint32
	Policy          uint64
	FamilyID        [16]byte
	ImageID         [16]byte
	VMPL            uint32
	SignatureAlgo   uint32 // 1: ECDSA P-384 with SHA-384
	CurrentTCB      [8]byte
	PlatformInfo    uint64
	SignerInfo      uint32 // bit 0 author key, bit 1 chip key masked, bits 2-4 signing key
	_               [4]byte
	ReportData      [64]byte
	Measurement     [48]byte
	HostData        [32]byte
	IDKeyDigest     [48]byte
	AuthorKeyDigest [48]byte
	ReportID        [32]byte
	ReportIDMA      [32]byte // of the migration agent; all ones for none
	ReportedTCB     [8]byte
	CPUID           [3]byte // family, model, stepping; from version 3
	_               [21]byte
	ChipID          [64]byte
	CommittedTCB    [8]byte
	Current         [3]byte // build, minor, major of the firmware
	_               [1]byte
	Committed       [3]byte
	_               [1]byte
	LaunchTCB       [8]byte
	LaunchMIT       uint64 // mitigations; from version 5
	CurrentMIT      uint64
	_               [152]byte
	Signature       [512]byte
}

// Keys that sign a report.
const (
	signedByVCEK = 0
	signedByVLEK = 1
	signedByNone = 7
)

func (r *report) signingKey() uint32 { return r.SignerInfo >> 2 & 7 }

// reserved lists the bytes that must be zero in a version, as offset and end.
func reserved(version uint32) [][2]int {
	out := [][2]int{{0x4c, 0x50}, {0x188, 0x1a0}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x1f8, 0x2a0}, {0x330, ReportSize}}
	if version >= 3 {
		out[1][0] = 0x18b
	}
	if version >= 5 {
		out[4][0] = 0x208
	}
	return out
}

// parseReport reads the first ReportSize bytes of b.
func parseReport(b []byte) (*report, error) {
	const object = "report"
	if len(b) < ReportSize {
		return nil, malformed(object, len(b), "it ends after %d bytes: want %d", len(b), ReportSize)
	}
	var r report
	if _, err := binary.Decode(b[:ReportSize], binary.LittleEndian, &r); err != nil {
		return nil, malformed(object, 0, "%v", err)
	}
	if r.Version < 2 || r.Version > 5 {
		return nil, malformed(object, 0, "version %d: want 2 to 5", r.Version)
	}
	// Bit 17 is reserved and one; a bit that no document names may weaken the guest.
	if r.Policy>>17&1 != 1 || r.Policy>>26 != 0 {
		return nil, malformed(object, 8, "policy %#x: want bit 17 set and none above bit 25", r.Policy)
	}
	if r.SignatureAlgo != 1 {
		return nil, malformed(object, 0x34, "signature algorithm %d: want 1, ECDSA P-384 with SHA-384", r.SignatureAlgo)
	}
	if k := r.signingKey(); r.SignerInfo>>5 != 0 || k > signedByVLEK && k != signedByNone {
		return nil, malformed(object, 0x48, "signer info %#x: want signing key 0, 1 or 7 and no bit above 4", r.SignerInfo)
	}
	for _, x := range reserved(r.Version) {
		if i := notZero(b[x[0]:x[1]]); i >= 0 {
			return nil, malformed(object, x[0]+i, "reserved byte %#x: want 0", b[x[0]+i])
		}
	}
	return &r, nil
}

var keyNames = map[uint32]string{signedByVCEK: "VCEK", signedByVLEK: "VLEK", signedByNone: "no key"}

func (r *report) signer() string { return keyNames[r.signingKey()] }

// line is the product line of the processor, whose root signs: AMD 57230, by
// family and model. It is "" before version 3, which does not say, and for one
// that this package does not know.
func (r *report) line() string {
	family, model := r.CPUID[0], r.CPUID[1]
	switch {
	case r.Version < 3:
		return ""
	case family == 0x19 && model <= 0x0f:
		return Milan
	case family == 0x19 && (model>>4 == 0x1 || model>>4 == 0xa):
		return Genoa
	case family == 0x1a && model <= 0x11:
		return Turin
	}
	return ""
}

const (
	policyMigration = 1 << 18
	policyDebug     = 1 << 19
)

// policyBits are the bits of a guest policy: AMD 56860, guest policy structure.
// Bit 17 is always one and says nothing.
var policyBits = map[int]string{
	16: "SMT allowed", 18: "migration agent allowed", 19: "debug allowed", 20: "single socket", 21: "CXL allowed",
	22: "AES-256-XTS required", 23: "RAPL off required", 24: "ciphertext hiding required", 25: "page swap off",
}

func describePolicy(p uint64) string {
	names := bitNames(p&^(1<<17)>>16<<16, policyBits)
	return strings.Join(append([]string{fmt.Sprintf("ABI %d.%d", p>>8&0xff, p&0xff)}, names...), ", ")
}

// platformBits are those of PLATFORM_INFO.
var platformBits = map[int]string{
	0: "SMT", 1: "TSME", 2: "ECC", 3: "RAPL off", 4: "ciphertext hiding", 5: "alias check complete", 7: "TIO",
}
