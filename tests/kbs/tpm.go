package kbs

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"github.com/google/go-tpm-tools/quote"
	"github.com/google/go-tpm/legacy/tpm2"
)

// registers of a TPM, and the size of what a quote is made for.
const (
	registers      = 24
	reportDataSize = 32
)

// A tpmEvidence is what the TPM attester sends: deps/verifier/src/tpm/mod.rs. Trustee
// passes over the event log.
type tpmEvidence struct {
	Quote struct {
		Signature string   // base64 of TPMT_SIGNATURE
		Message   string   // base64 of TPMS_ATTEST
		PCRs      []string // of bank sha256, hexadecimal
	} `json:"tpm_quote"`
	AKPublic string `json:"ak_public"` // base64 of a SubjectPublicKeyInfo
	EventLog string `json:"event_log"` // base64
}

// verifyTPM checks evidence and fills in what an appraisal says of it.
func (b *Broker) verifyTPM(ap *appraisal, evidence json.RawMessage, binding, initdata []byte) error {
	var e tpmEvidence
	if err := parse(evidence, &e); err != nil {
		return fmt.Errorf("tpm: %w", err)
	}
	pcrs, err := parsePCRs(e.Quote.PCRs)
	if err != nil {
		return err
	}
	if err := b.verifyQuote(&e, pcrs, fit(binding, reportDataSize)); err != nil {
		return err
	}
	if err := b.checkAK(e.AKPublic); err != nil {
		return err
	}
	if ap.events, err = b.replay(e.EventLog, pcrs); err != nil {
		return err
	}
	if err := b.checkInitdata(initdata, pcrs[8]); err != nil {
		return err
	}
	wanted := b.wanted()
	if err := b.checkRegisters(wanted, pcrs, ap.events); err != nil {
		return err
	}
	b.accept(wanted, ap.events)
	ap.claims = map[string]any{"ak_public": e.AKPublic, "init_data": hex.EncodeToString(pcrs[8]), "report_data": hex.EncodeToString(fit(binding, reportDataSize))}
	for n, value := range pcrs {
		ap.claims[fmt.Sprintf("pcr%02d", n)] = hex.EncodeToString(value)
	}
	return nil
}

func parsePCRs(texts []string) (pcrs [][]byte, err error) {
	if len(texts) != registers {
		return nil, fmt.Errorf("tpm: %d PCRs: want %d", len(texts), registers)
	}
	for n, text := range texts {
		value, err := hex.DecodeString(text)
		if err != nil || len(value) != sha256.Size {
			return nil, fmt.Errorf("tpm: pcr%d: PCR should be %d hex characters, got %d (%v)", n, 2*sha256.Size, len(text), err)
		}
		pcrs = append(pcrs, value)
	}
	return pcrs, nil
}

// verifyQuote leaves it to go-tpm-tools to verify signature, form, what the quote is
// made for, and the digest of the registers.
func (b *Broker) verifyQuote(e *tpmEvidence, pcrs [][]byte, want []byte) error {
	message, err := decode64("message", e.Quote.Message)
	if err != nil {
		return err
	}
	signature, err := decode64("signature", e.Quote.Signature)
	if err != nil {
		return err
	}
	ak, err := parseAK(e.AKPublic)
	if err != nil {
		return err
	}
	quoted, err := tpm2.DecodeAttestationData(message)
	if err != nil || quoted.AttestedQuoteInfo == nil {
		return fmt.Errorf("tpm: message: no quote: %v", err)
	}
	if b.Off[CheckSignature] { // the rest is to be checked all the same
		if ak, signature, err = resign(message); err != nil {
			return err
		}
	}
	if b.Off[CheckTEEPubkey] {
		want = quoted.ExtraData
	}
	if string(quoted.ExtraData) != string(want) {
		return fmt.Errorf("tee-pubkey: TPM quote nonce doesn't match expected report_data: %x, want %x", quoted.ExtraData, want)
	}
	values := map[uint32][]byte{}
	for n, value := range pcrs {
		values[uint32(n)] = value
	}
	q := &tpmpb.Quote{Quote: message, RawSig: signature, Pcrs: &tpmpb.PCRs{Hash: tpmpb.HashAlgo_SHA256, Pcrs: values}}
	err = quote.Verify(q, ak, want)
	if err != nil && b.Off[CheckDigest] && strings.HasSuffix(err.Error(), "digest not matching") { // its last check
		err = nil
	}
	if err != nil {
		return fmt.Errorf("signature: TPM quote signature verification failed: %w", err)
	}
	return nil
}

func decode64(what, text string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err == nil && len(b) == 0 {
		err = errors.New("empty")
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: %s: %w", what, err)
	}
	return b, nil
}

// parseAK takes what Trustee does: a key for RSASSA.
func parseAK(text string) (*rsa.PublicKey, error) {
	der, err := decode64("ak_public", text)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("tpm: Failed to parse AK public key: %w", err)
	}
	ak, ok := key.(*rsa.PublicKey)
	if !ok || ak.Size() < 256 {
		return nil, fmt.Errorf("tpm: AK is a %T: want RSA of 2048 bits or more", key)
	}
	return ak, nil
}

// resign signs a quote by a key of the broker's own.
func resign(message []byte) (*rsa.PublicKey, []byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum256(message))
	if err != nil {
		return nil, nil, err
	}
	// TPMT_SIGNATURE: algorithm, TPMS_SIGNATURE_RSA of hash and sized bytes.
	out := []byte{0x00, 0x14, 0x00, 0x0b, byte(len(sig) >> 8), byte(len(sig))}
	return &key.PublicKey, append(out, sig...), nil
}

// checkAK is what Trustee's policy for executables wants of a TPM.
func (b *Broker) checkAK(ak string) error {
	if b.Off[CheckAK] {
		return nil
	}
	trusted, ok := b.values["trusted_aks"].([]any)
	if !ok {
		return errors.New("ak: there is no reference value trusted_aks")
	}
	for _, t := range trusted {
		if t == ak {
			return nil
		}
	}
	return fmt.Errorf("ak: %.32s... is none of %d trusted_aks", ak, len(trusted))
}
