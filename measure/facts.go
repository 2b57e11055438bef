package measure

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Input is one file, or text, that values were computed from.
type Input struct {
	Name   string `json:"name"` // "firmware", "kernel", "initrd", "cmdline", "uki", "disk", ...
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"` // bytes
}

// SNPFacts are what an attestation report shows of an SNP guest besides the
// launch digest, and what the digest was computed for.
type SNPFacts struct {
	Policy        string        `json:"policy"`         // 64 bits, "0x30000": SEV Secure Nested Paging Firmware ABI (56860), table 9
	GuestFeatures string        `json:"guest_features"` // SEV_FEATURES of the VMSA, "0x1": APM volume 2, table B-4
	VMM           string        `json:"vmm"`            // "qemu", "gce", "ec2"
	Era           string        `json:"era"`            // of host kernels, by the way they fill the VMSA
	FamilyID      string        `json:"family_id"`      // 16 bytes in hex, or ""
	ImageID       string        `json:"image_id"`       // the same
	GuestSVN      uint32        `json:"guest_svn"`
	HostData      string        `json:"host_data,omitempty"`     // 32 bytes in hex, of the initdata; "": not said
	KernelHashes  *KernelHashes `json:"kernel_hashes,omitempty"` // nil: the firmware alone is measured
}

// KernelHashes are the SHA-256 digests that QEMU puts into the table of a direct
// boot, in hex. That of the command line is over its bytes and a NUL; those of
// what is not there are over no bytes.
type KernelHashes struct {
	Kernel  string `json:"kernel"`
	Initrd  string `json:"initrd"`
	Cmdline string `json:"cmdline"`
}

// TDXFacts are what a quote of a trust domain shows besides MRTD and the RTMRs;
// "" is what is not known beforehand. Intel TDX Module ABI, TDREPORT's TDINFO.
type TDXFacts struct {
	Attributes    string `json:"attributes"` // 64 bits, "0x10000000"
	XFAM          string `json:"xfam"`       // 64 bits
	MRConfigID    string `json:"mr_config_id"`
	MROwner       string `json:"mr_owner"`
	MROwnerConfig string `json:"mr_owner_config"`
}

// checkFacts holds what stands beside the values to its form.
func (m *Measurements) checkFacts() error {
	for i, in := range m.Inputs {
		if in.Name == "" || in.Size < 0 || slices.ContainsFunc(m.Inputs[:i], func(o Input) bool { return o.Name == in.Name }) {
			return fmt.Errorf("input %d: %q, %d bytes: want a name of its own and a size", i, in.Name, in.Size)
		}
		if err := checkHex("input "+in.Name, in.SHA256, 32); err != nil {
			return err
		}
	}
	if m.SNP != nil {
		if err := m.SNP.check(); err != nil {
			return fmt.Errorf("snp: %w", err)
		}
	}
	if m.TDX != nil {
		if err := m.TDX.check(); err != nil {
			return fmt.Errorf("tdx: %w", err)
		}
	}
	return nil
}

func (f *SNPFacts) check() error {
	err := errors.Join(
		checkBits("policy", f.Policy),
		checkBits("guest_features", f.GuestFeatures),
		optional(f.FamilyID, checkHex("family_id", f.FamilyID, 16)),
		optional(f.ImageID, checkHex("image_id", f.ImageID, 16)),
		optional(f.HostData, checkHex("host_data", f.HostData, 32)),
	)
	if h := f.KernelHashes; h != nil {
		err = errors.Join(err,
			checkHex("kernel_hashes.kernel", h.Kernel, 32),
			checkHex("kernel_hashes.initrd", h.Initrd, 32),
			checkHex("kernel_hashes.cmdline", h.Cmdline, 32),
		)
	}
	return err
}

func (f *TDXFacts) check() error {
	return errors.Join(
		optional(f.Attributes, checkBits("attributes", f.Attributes)),
		optional(f.XFAM, checkBits("xfam", f.XFAM)),
		optional(f.MRConfigID, checkHex("mr_config_id", f.MRConfigID, 48)),
		optional(f.MROwner, checkHex("mr_owner", f.MROwner, 48)),
		optional(f.MROwnerConfig, checkHex("mr_owner_config", f.MROwnerConfig, 48)),
	)
}

// optional drops the error about a text that is not there.
func optional(text string, err error) error {
	if text == "" {
		return nil
	}
	return err
}

// Bits writes 64 bits as SNPFacts and TDXFacts have them.
func Bits(v uint64) string { return "0x" + strconv.FormatUint(v, 16) }

// ParseBits reads what Bits wrote.
func ParseBits(s string) (uint64, error) {
	digits, ok := strings.CutPrefix(s, "0x")
	v, err := strconv.ParseUint(digits, 16, 64)
	if !ok || err != nil || Bits(v) != s {
		return 0, fmt.Errorf("measure: %q: want 0x and at most 16 lower-case hexadecimal digits", s)
	}
	return v, nil
}

func checkBits(name, s string) error {
	if _, err := ParseBits(s); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// checkHex refuses what is not n bytes in lower-case hex.
func checkHex(name, s string, n int) error {
	if b, err := hex.DecodeString(s); err != nil || len(b) != n || s != strings.ToLower(s) {
		return fmt.Errorf("%s: %q: want %d bytes in lower-case hex", name, s, n)
	}
	return nil
}
