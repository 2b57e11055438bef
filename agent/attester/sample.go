package attester

import (
	"context"
	"encoding/json"

	"github.com/plinth-os/plinth/evidence"
)

// sample vouches for whatever it is asked.
type sample struct{ tee, svn string }

// NewSample returns an attester that proves nothing.
func NewSample() Attester { return sample{evidence.TEESample, "1"} }

// NewSampleDevice returns a device that proves nothing. Its version is how Trustee's
// policies tell it from the guest's own.
func NewSampleDevice() Device { return sample{evidence.DeviceSample, "2"} }

func (s sample) TEE() string { return s.tee }

func (s sample) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	return (&evidence.Sample{SVN: s.svn, ReportData: reportData}).Marshal()
}
