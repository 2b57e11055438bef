package evidence

import (
	"errors"
	"fmt"
)

// DigestSize is the size of a register of the bank sha256, in bytes.
const DigestSize = 32

// TPMReportData is the size of a quote's qualifying data, in bytes: Trustee cuts and
// fills a Binding to it.
const TPMReportData = 32

// TPM is the evidence of a TPM 2.0: Trustee's kind "tpm", and besides what a verifier
// needs to say why a register is what it is. Trustee leaves that out.
type TPM struct {
	Quote    TPMQuote
	AKPublic []byte // SubjectPublicKeyInfo, DER: what Quote is signed by

	// EventLog is the firmware's TCG2 log, and behind it a TCG_PCR_EVENT2 for each
	// extend of the guest, in order: it leads to all registers of the quote.
	EventLog      []byte
	EKCertificate []byte // X.509, DER; nil where the TPM has none
	AKCertificate []byte
}

// A TPMQuote is a quote over PCR 0 to 23 of the bank sha256.
type TPMQuote struct {
	Signature []byte // TPMT_SIGNATURE
	Message   []byte // TPMS_ATTEST: what is signed
	PCRs      [Registers][DigestSize]byte
}

type tpmWire struct {
	AK     base64Text   `json:"ak_public"`
	Quote  tpmQuoteWire `json:"tpm_quote"`
	Log    base64Text   `json:"event_log,omitempty"`
	EKCert base64Text   `json:"ek_certificate,omitempty"`
	AKCert base64Text   `json:"ak_certificate,omitempty"`
}

type tpmQuoteWire struct {
	Message   base64Text `json:"message"`
	PCRs      []hexText  `json:"pcrs"`
	Signature base64Text `json:"signature"`
}

// Marshal writes the evidence.
func (t *TPM) Marshal() ([]byte, error) {
	w := tpmWire{AK: t.AKPublic, Log: t.EventLog, EKCert: t.EKCertificate, AKCert: t.AKCertificate,
		Quote: tpmQuoteWire{Message: t.Quote.Message, Signature: t.Quote.Signature, PCRs: pcrTexts(&t.Quote.PCRs)}}
	return marshal("tpm", &w)
}

func pcrTexts(pcrs *[Registers][DigestSize]byte) []hexText {
	out := make([]hexText, len(pcrs))
	for i := range pcrs {
		out[i] = pcrs[i][:]
	}
	return out
}

// ParseTPM decodes the evidence of a TPM.
func ParseTPM(primary []byte) (*TPM, error) {
	var w tpmWire
	if err := parse("tpm", primary, MaxEvidence, &w); err != nil {
		return nil, err
	}
	t := &TPM{AKPublic: w.AK, EventLog: w.Log, EKCertificate: w.EKCert, AKCertificate: w.AKCert,
		Quote: TPMQuote{Signature: w.Quote.Signature, Message: w.Quote.Message}}
	if err := parsePCRs("tpm", w.Quote.PCRs, &t.Quote.PCRs); err != nil {
		return nil, err
	}
	switch {
	case len(t.AKPublic) == 0:
		return nil, errors.New("evidence: tpm: no ak_public")
	case len(t.Quote.Message) == 0 || len(t.Quote.Signature) == 0:
		return nil, errors.New("evidence: tpm: tpm_quote: want message and signature")
	case len(t.EventLog) > MaxEventLog:
		return nil, fmt.Errorf("evidence: tpm: event_log: %d bytes, want at most %d", len(t.EventLog), MaxEventLog)
	}
	return t, nil
}

func parsePCRs[T ~[]byte](what string, in []T, to *[Registers][DigestSize]byte) error {
	if len(in) != len(to) {
		return fmt.Errorf("evidence: %s: %d PCRs, want %d", what, len(in), len(to))
	}
	for i, v := range in {
		if len(v) != DigestSize {
			return fmt.Errorf("evidence: %s: PCR %d: %d bytes, want %d", what, i, len(v), DigestSize)
		}
		to[i] = [DigestSize]byte(v)
	}
	return nil
}
