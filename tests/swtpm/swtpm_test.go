package swtpm

import (
	"bytes"
	"path/filepath"
	"testing"
)

// A state keeps its keys from start to start, and another one has others.
func TestKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tpm")
	ak, ek := AK(t, dir), EK(t, dir)
	if again := AK(t, dir); !bytes.Equal(ak, again) {
		t.Errorf("attestation key: %x, then %x", ak, again)
	}
	if bytes.Equal(ak, ek) {
		t.Errorf("attestation and endorsement key are one: %x", ak)
	}
	if other := AK(t, filepath.Join(t.TempDir(), "tpm")); bytes.Equal(ak, other) {
		t.Errorf("another state has the same attestation key: %x", other)
	}
}
