package kbs

import "testing"

// One attestation and one secret, the broker's work included, without a TPM's.
func BenchmarkResource(b *testing.B) {
	_, c := newFake(b)
	for b.Loop() {
		ask(b, c)
		c.drop(c.current)
	}
}
