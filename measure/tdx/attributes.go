package tdx

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Attributes are those of a trust domain, as its quote reports them: ABI
// Reference, ATTRIBUTES.
type Attributes uint64

// XFAM says which processor state a trust domain may use, in the bits of XCR0 and
// IA32_XSS: Base Specification, XFAM.
type XFAM uint64

const debug = 1 << 0

// attributeNames are the bits, by number. Linux has the same in
// arch/x86/include/asm/shared/tdx.h.
var attributeNames = map[int]string{
	0:  "DEBUG: the host can read and change the guest",
	4:  "HGS_PLUS_PROF: the host can profile the guest",
	5:  "PERF_PROF: the host can profile the guest's performance counters",
	6:  "PMT_PROF: the host can profile the guest's telemetry",
	16: "ICSSD: side channel defence off",
	27: "LASS: linear address space separation",
	28: "SEPT_VE_DISABLE: no exception on access to missing pages",
	29: "MIGRATABLE: another host can take over the guest",
	30: "PKS: supervisor protection keys",
	31: "KL: key locker",
	62: "TPA: TD provisioning agent",
	63: "PERFMON: performance counters",
}

// xfamNames are the bits, by number: Intel SDM, volume 1, section 13.1.
var xfamNames = map[int]string{
	0: "x87", 1: "SSE", 2: "AVX", 3: "MPX bounds", 4: "MPX control", 5: "AVX-512 masks", 6: "AVX-512 ZMM 0-15", 7: "AVX-512 ZMM 16-31",
	8: "processor trace", 9: "PKRU", 10: "PASID", 11: "CET user", 12: "CET supervisor", 13: "hardware duty cycling", 14: "user interrupts",
	15: "last branch records", 16: "hardware P-states", 17: "AMX configuration", 18: "AMX data", 19: "APX",
}

// ParseAttributes reads hex digits, with or without 0x, the highest bit first.
func ParseAttributes(s string) (Attributes, error) {
	n, err := parseBits("attributes", s)
	return Attributes(n), err
}

// ParseXFAM reads hex digits as ParseAttributes does.
func ParseXFAM(s string) (XFAM, error) {
	n, err := parseBits("XFAM", s)
	return XFAM(n), err
}

func parseBits(what, s string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("tdx: %s %q: want up to 16 hex digits", what, s)
	}
	return n, nil
}

// Debug tells whether the host may look into the guest: then nothing that it
// attests is worth anything.
func (a Attributes) Debug() bool { return a&debug != 0 }

// String is 0x and 16 hex digits.
func (a Attributes) String() string { return fmt.Sprintf("0x%016x", uint64(a)) }

// Describe names the bits that are set, the lowest first.
func (a Attributes) Describe() []string { return describeBits(uint64(a), attributeNames) }

// String is 0x and 16 hex digits.
func (x XFAM) String() string { return fmt.Sprintf("0x%016x", uint64(x)) }

// Describe names the bits that are set, the lowest first.
func (x XFAM) Describe() []string { return describeBits(uint64(x), xfamNames) }

func describeBits(n uint64, names map[int]string) []string {
	var out []string
	for ; n != 0; n &= n - 1 {
		bit := bits.TrailingZeros64(n)
		name, ok := names[bit]
		if !ok {
			name = fmt.Sprintf("bit %d, not known", bit)
		}
		out = append(out, name)
	}
	return out
}
