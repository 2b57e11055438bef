package snp

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Policy is what the owner lets the host do with the guest: 56860, guest policy.
// The launch digest does not cover it; the report and the ID block state it.
type Policy uint64

const (
	PolicySMT              Policy = 1 << 16 // the host may have SMT on
	policyReserved         Policy = 1 << 17 // must be 1
	PolicyMigrate          Policy = 1 << 18 // a migration agent may be associated
	PolicyDebug            Policy = 1 << 19 // the host may read and write the guest's memory
	PolicySingleSocket     Policy = 1 << 20 // the guest may run on one socket only
	PolicyCXL              Policy = 1 << 21 // CXL devices and memory may be there
	PolicyAES256XTS        Policy = 1 << 22 // memory encryption must be AES-256-XTS
	PolicyNoRAPL           Policy = 1 << 23 // power measurement must be off
	PolicyCiphertextHiding Policy = 1 << 24 // the host must not see ciphertext of the DRAM
	PolicyNoPageSwap       Policy = 1 << 25 // the host must not move or swap out pages

	policyKnown Policy = 1<<26 - 1
)

// DefaultPolicy is what QEMU has unless told otherwise: SMT, no debugging.
const DefaultPolicy = PolicySMT | policyReserved

// ABI is the least version of the firmware ABI that the guest runs on.
func (p Policy) ABI() (major, minor uint8) { return uint8(p >> 8), uint8(p) }

// Debug tells whether the host may read the guest's memory. Such a guest has no
// secrets.
func (p Policy) Debug() bool { return p&PolicyDebug != 0 }

// Check refuses reserved bits of a wrong value, as the processor does.
func (p Policy) Check() error {
	if p&policyReserved == 0 {
		return fmt.Errorf("snp: policy %#x: bit 17 is 0: it is reserved and must be 1", uint64(p))
	}
	if unknown := p &^ policyKnown; unknown != 0 {
		return fmt.Errorf("snp: policy %#x: bits %#x: they are reserved and must be 0", uint64(p), uint64(unknown))
	}
	return nil
}

// ParsePolicy takes the number in hexadecimal (0x30000) or decimal.
func ParsePolicy(s string) (Policy, error) {
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("snp: policy %q: want a number of 64 bits, as 0x30000", s)
	}
	if err := Policy(n).Check(); err != nil {
		return 0, err
	}
	return Policy(n), nil
}

func (p Policy) String() string { return fmt.Sprintf("%#x", uint64(p)) }

// Describe says in words what every bit means, whether it is set or not.
func (p Policy) Describe() []string {
	major, minor := p.ABI()
	out := []string{fmt.Sprintf("firmware ABI at least %d.%d", major, minor)}
	for _, row := range []struct {
		bit     Policy
		set, no string
	}{
		{PolicySMT, "SMT allowed", "SMT refused"},
		{PolicyMigrate, "migration agent allowed", "migration agent refused"},
		{PolicyDebug, "debugging allowed: the host can read the guest", "debugging refused"},
		{PolicySingleSocket, "one socket only", "any number of sockets"},
		{PolicyCXL, "CXL allowed", "CXL refused"},
		{PolicyAES256XTS, "AES-256-XTS required", "AES-128-XEX or AES-256-XTS"},
		{PolicyNoRAPL, "RAPL must be off", "RAPL allowed"},
		{PolicyCiphertextHiding, "ciphertext hiding required", "ciphertext hiding not required"},
		{PolicyNoPageSwap, "page move and swap refused", "page move and swap allowed"},
	} {
		if p&row.bit != 0 {
			out = append(out, row.set)
		} else {
			out = append(out, row.no)
		}
	}
	if err := p.Check(); err != nil {
		out = append(out, "invalid: "+strings.TrimPrefix(err.Error(), "snp: "))
	}
	return out
}

// HostData is what the host adds to a guest at launch and the report repeats:
// often the digest of a configuration. The launch digest does not cover it.
type HostData [32]byte

// ParseHostData takes hexadecimal or, as QEMU's host-data=, base64.
func ParseHostData(s string) (HostData, error) {
	var h HostData
	b, err := hex.DecodeString(s)
	if err != nil || len(s) != hex.EncodedLen(len(h)) {
		if b, err = base64.StdEncoding.Strict().DecodeString(s); err != nil || strings.ContainsAny(s, "\r\n") {
			return h, fmt.Errorf("snp: host data %q: want %d bytes in hexadecimal or base64", s, len(h))
		}
	}
	if len(b) != len(h) {
		return h, fmt.Errorf("snp: host data: %d bytes: want %d", len(b), len(h))
	}
	return HostData(b), nil
}

func (h HostData) String() string { return hex.EncodeToString(h[:]) }
