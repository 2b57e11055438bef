package main

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/measure"
)

// TestExpectHostData: a report is held to the HOSTDATA that the document says.
func TestExpectHostData(t *testing.T) {
	want := strings.Repeat("0a", 32)
	for _, said := range []string{"", want} {
		m := &measure.Measurements{
			Values: []measure.Value{{Platform: measure.PlatformSNP, Register: "launch_digest", Bank: "sha384", Value: strings.Repeat("0b", 48)}},
			SNP:    &measure.SNPFacts{Policy: "0x30000", HostData: said},
		}
		var o verify.SNPOptions
		if err := expectSNP(&o, m); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(o.HostData); got != said {
			t.Errorf("got %q, want %q", got, said)
		}
	}
}
