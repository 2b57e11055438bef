package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
)

// parseDigests reads digests of size bytes, in hex or base64.
func parseDigests(texts []string, size int) (out []string, err error) {
	for _, s := range texts {
		s = strings.TrimSpace(s)
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != size {
			b, err = base64.StdEncoding.DecodeString(s)
		}
		if err != nil || len(b) != size {
			return nil, usagef("--expect is %q: want %d bytes in hex or base64", s, size)
		}
		if d := hex.EncodeToString(b); !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	return out, nil
}

// expectedError: no value is the digest that was expected. Close are the inputs
// that would give it.
type expectedError struct {
	digest string
	close  []snp.Candidate
	search bool // whether there is a way to search for them
}

func (e *expectedError) Error() string {
	lines := []string{"no value is the expected " + e.digest}
	for _, c := range e.close {
		lines = append(lines, "  it is the digest with "+strings.Join(changedFlags(c), " "))
	}
	if e.search && len(e.close) == 0 {
		lines = append(lines, "  nor is it with another host kernel, other features, or another number or type of processors:",
			"  the firmware, the kernel, the initrd or the command line is another")
	}
	return strings.Join(lines, "\n")
}

// changedFlags writes what a candidate changes as the flags that say so.
func changedFlags(c snp.Candidate) (out []string) {
	for _, what := range c.Changed {
		switch what {
		case "host-kernel era":
			out = append(out, "--host-era "+c.Era.Name)
		case "features":
			out = append(out, fmt.Sprintf("--guest-features %#x (%s)", c.Features, strings.Join(snp.FeatureNames(c.Features), ", ")))
		case "vCPUs":
			out = append(out, fmt.Sprintf("--vcpus %d", c.Count))
		case "vCPU type":
			out = append(out, typeFlag(c.Signature))
		case "kernel hashes":
			out = append(out, "kernel-hashes=off, so without --kernel")
		case "VMM":
			out = append(out, "--vmm-type "+string(c.VMM))
		case "product":
			out = append(out, "--product "+c.Product)
		default:
			out = append(out, what)
		}
	}
	return out
}

// typeFlag names the processors by the shortest name with their signature.
func typeFlag(signature uint32) string {
	for _, c := range snp.CPUs {
		if c.Signature == signature {
			return "--vcpu-type " + c.Name
		}
	}
	return fmt.Sprintf("--vcpu-sig %#x", signature)
}

// expectation compares the values with what --expect names.
func (f *launchFlags) expectation(l *launch, m *measure.Measurements, expected []string) error {
	for _, digest := range expected {
		if slices.ContainsFunc(m.Values, func(v measure.Value) bool { return v.Value == digest }) {
			continue
		}
		e := &expectedError{digest: digest, search: l.snp != nil}
		if l.snp == nil {
			return mismatchError{e}
		}
		b, err := hex.DecodeString(digest)
		if err != nil {
			return err
		}
		v := snp.VCPUs{Count: f.vcpus[0], Signature: l.processors[0].signature, Features: l.features}
		if e.close, err = l.snp.Candidates([48]byte(b), v); err != nil {
			return err
		}
		return mismatchError{e}
	}
	return nil
}
