package attester

import (
	"testing"
)

// TestSample: what Trustee's verifiers of samples decode.
func TestSample(t *testing.T) {
	for _, tt := range []struct {
		a         Attester
		tee, want string
	}{
		{NewSample(), "sample", `{"svn":"1","report_data":"AAEC"}`},
		{NewSampleDevice(), "sampledevice", `{"svn":"2","report_data":"AAEC"}`},
	} {
		b, err := tt.a.Evidence(t.Context(), []byte{0, 1, 2})
		if err != nil || string(b) != tt.want || tt.a.TEE() != tt.tee {
			t.Errorf("%s: got %s, %v, want %s", tt.a.TEE(), b, err, tt.want)
		}
	}
}
