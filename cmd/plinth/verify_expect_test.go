package main

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/measure"
)

// A register that workloads are measured into is never expected as it was before
// them: a guest that shows that has not measured what it runs.
func TestRegisterOfWorkloads(t *testing.T) {
	before := measure.Value{Platform: measure.PlatformTDX, Register: "rtmr3", Bank: "sha384", Provenance: measure.Predicted, Value: strings.Repeat("00", 48)}
	after := before
	after.Phase, after.Value = measure.PhaseWorkloads, strings.Repeat("0a", 48)
	volatile := after
	volatile.Provenance, volatile.Value, volatile.Reason = measure.Volatile, "", "a tag"
	for _, tt := range []struct {
		values       []measure.Value
		want, reason string
	}{
		{[]measure.Value{before}, before.Value, ""},
		{[]measure.Value{before, after}, after.Value, ""},
		{[]measure.Value{before, volatile}, "", "a tag"},
	} {
		got, found := register(&measure.Measurements{Values: tt.values}, measure.PlatformTDX, "rtmr3")
		digest := ""
		for _, v := range got.Values {
			digest += hex.EncodeToString(v.Digest)
		}
		if !found || digest != tt.want || got.Reason != tt.reason {
			t.Errorf("%+v: got %q, %q, want %q, %q", tt.values, digest, got.Reason, tt.want, tt.reason)
		}
	}
}
