// Package tdx computes what a TDX quote reports of how a trust domain began:
// MRTD from the firmware file, the run-time registers (RTMRs) from a list of
// events, and the pieces that only a trust domain measures, the hand-off blocks
// of the VMM and the firmware's variables.
//
// Documents: Intel TDX Module Base Specification (348549), section "Measurement
// and Attestation", and ABI Reference (348551), TDH.MEM.PAGE.ADD, TDH.MR.EXTEND
// and TD_PARAMS; TDX Virtual Firmware Design Guide (344991), sections 8 and 11;
// UEFI 2.10, section 38.4.1.
package tdx

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// Order is in which order a VMM adds the pages of a section and has their
// content measured. The TDX module takes both, and MRTD tells them apart.
type Order string

// The orders in the field.
const (
	// SinglePass adds a page, extends MRTD with its content, and goes on to the
	// next: KVM since it is upstream, and Google.
	SinglePass Order = "single-pass"
	// TwoPass adds all pages of a section, then extends MRTD with all of them:
	// KVM before it was upstream, as in Canonical's kernel with QEMU 8.2.
	TwoPass Order = "two-pass"
)

// Orders are all of them, the usual one first.
var Orders = []Order{SinglePass, TwoPass}

var qemuVersion = regexp.MustCompile(`^qemu (\d+)(?:\.(\d+))?(?:\.|$)`)

// OrderFor returns the order of a VMM as measure.Machine names it, "qemu 10.1.0"
// or "gce". It is QEMU's version that people know; what decides is KVM, whose
// interface for TDX changed with it: version 19 of KVM's patches, with which QEMU
// 8.2 was shipped, made two passes, later ones and upstream do not
// (intel-staging/qemu-tdx, issue 1; Dstack-TEE/dstack has a quote from QEMU 8.2.2
// that is of two passes). QEMU before 8.2 worked with several kernels.
func OrderFor(vmm string) (o Order, known bool) {
	if vmm == "gce" {
		return SinglePass, true
	}
	m := qemuVersion.FindStringSubmatch(vmm)
	if m == nil {
		return "", false
	}
	major, _ := strconv.Atoi(m[1]) // too long a number is the largest int
	minor, _ := strconv.Atoi(m[2])
	switch {
	case major >= 9:
		return SinglePass, true
	case major == 8 && minor == 2:
		return TwoPass, true
	}
	return "", false
}

// metadata returns what the firmware says of itself to a VMM that starts a trust
// domain with it.
func metadata(firmware []byte) (*ovmf.Metadata, error) {
	m, err := ovmf.ReadMetadata(firmware)
	if err != nil {
		return nil, fmt.Errorf("tdx: firmware: %w", err)
	}
	if len(m.TDX) == 0 {
		return nil, fmt.Errorf("tdx: firmware: %w", ErrNoMetadata)
	}
	return m, nil
}
