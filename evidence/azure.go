package evidence

import (
	"errors"
	"fmt"
)

// AzureVersion is that of the evidence we write: since it, the report data is in the
// runtime data of the HCL report as well as in the quote.
const AzureVersion = 2

// Azure is the evidence of a guest behind Azure's paravisor (OpenHCL): a quote of its
// vTPM, and a hardware report that vouches for the vTPM's attestation key.
type Azure struct {
	Version   uint32 // 1 or 2
	Quote     AzureQuote
	HCLReport []byte // as the vTPM keeps it: header, hardware report, runtime data
	VCEK      []byte // X.509, DER; of an SNP guest
	TDQuote   []byte // of a trust domain
}

// An AzureQuote is a quote over PCR 0 to 23 of the bank sha256.
type AzureQuote struct {
	Signature []byte // RSASSA with SHA-256, as a number; not a TPMT_SIGNATURE
	Message   []byte // TPMS_ATTEST
	PCRs      [Registers][DigestSize]byte
}

type azureWire struct {
	Version   uint32         `json:"version"`
	Quote     azureQuoteWire `json:"tpm_quote"`
	HCLReport urlText        `json:"hcl_report"`
	VCEK      *urlText       `json:"vcek,omitempty"`
	TDQuote   *urlText       `json:"td_quote,omitempty"`
}

type azureQuoteWire struct {
	Signature hexText   `json:"signature"`
	Message   hexText   `json:"message"`
	PCRs      []hexText `json:"pcrs"`
}

// TEE is TEEAzSNP or TEEAzTDX.
func (a *Azure) TEE() string {
	if a.TDQuote != nil {
		return TEEAzTDX
	}
	return TEEAzSNP
}

// Marshal writes the evidence.
func (a *Azure) Marshal() ([]byte, error) {
	if (a.VCEK == nil) == (a.TDQuote == nil) {
		return nil, errors.New("evidence: azure: want a VCEK or a TD quote")
	}
	w := azureWire{Version: a.Version, HCLReport: a.HCLReport, VCEK: (*urlText)(&a.VCEK),
		Quote: azureQuoteWire{a.Quote.Signature, a.Quote.Message, pcrTexts(&a.Quote.PCRs)}}
	if a.TDQuote != nil {
		w.VCEK, w.TDQuote = nil, (*urlText)(&a.TDQuote)
	}
	return marshal("azure", &w)
}

// ParseAzure decodes the evidence of either kind. The form without a version, which no
// client has written since 2025, is refused.
func ParseAzure(primary []byte) (*Azure, error) {
	var w azureWire
	if err := parse("azure", primary, MaxEvidence, &w); err != nil {
		return nil, err
	}
	if w.Version < 1 || w.Version > AzureVersion {
		return nil, fmt.Errorf("evidence: azure: version %d: want 1 or %d", w.Version, AzureVersion)
	}
	a := &Azure{Version: w.Version, HCLReport: w.HCLReport, Quote: AzureQuote{Signature: w.Quote.Signature, Message: w.Quote.Message}}
	if w.VCEK != nil {
		a.VCEK = *w.VCEK
	}
	if w.TDQuote != nil {
		a.TDQuote = *w.TDQuote
	}
	switch {
	case (w.VCEK == nil) == (w.TDQuote == nil):
		return nil, errors.New("evidence: azure: want vcek or td_quote")
	case len(a.VCEK)+len(a.TDQuote) == 0 || len(a.HCLReport) == 0:
		return nil, errors.New("evidence: azure: empty report or certificate")
	}
	return a, parsePCRs("azure", w.Quote.PCRs, &a.Quote.PCRs)
}
