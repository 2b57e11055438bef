package evidence

import (
	"errors"
	"fmt"
)

// TDX is the evidence of a trust domain.
type TDX struct {
	Quote      []byte
	CCEventLog []byte // of the ACPI table CCEL, and behind it the guest's own events; nil without one
}

type tdxWire struct {
	Log   *base64Text `json:"cc_eventlog"`
	Quote base64Text  `json:"quote"`
}

// Marshal writes the evidence.
func (t *TDX) Marshal() ([]byte, error) {
	w := tdxWire{Quote: t.Quote}
	if t.CCEventLog != nil {
		w.Log = (*base64Text)(&t.CCEventLog)
	}
	return marshal("tdx", &w)
}

// ParseTDX decodes the evidence of a trust domain. The quote is not looked at.
func ParseTDX(primary []byte) (*TDX, error) {
	var w tdxWire
	if err := parse("tdx", primary, MaxEvidence, &w); err != nil {
		return nil, err
	}
	t := &TDX{Quote: w.Quote}
	if w.Log != nil {
		t.CCEventLog = *w.Log
	}
	switch {
	case len(t.Quote) == 0:
		return nil, errors.New("evidence: tdx: no quote")
	case len(t.CCEventLog) > MaxEventLog:
		return nil, fmt.Errorf("evidence: tdx: cc_eventlog: %d bytes, want at most %d", len(t.CCEventLog), MaxEventLog)
	}
	return t, nil
}

// Sample is evidence that proves nothing: of the kinds "sample" and "sampledevice".
type Sample struct {
	SVN        string
	ReportData []byte
}

type sampleWire struct {
	SVN        string     `json:"svn"`
	ReportData base64Text `json:"report_data"`
}

// Marshal writes the evidence.
func (s *Sample) Marshal() ([]byte, error) {
	return marshal("sample", &sampleWire{s.SVN, s.ReportData})
}

// ParseSample decodes it.
func ParseSample(primary []byte) (*Sample, error) {
	var w sampleWire
	if err := parse("sample", primary, MaxEvidence, &w); err != nil {
		return nil, err
	}
	return &Sample{w.SVN, w.ReportData}, nil
}
