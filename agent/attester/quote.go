package attester

import (
	"bytes"
	"context"
	"crypto"
	_ "crypto/sha256" // of quotes
	_ "crypto/sha512" // of quotes by keys whose scheme says so
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/plinth-os/plinth/evidence"
)

// registers are PCR 0 to 23 of bank sha256.
type registers = [evidence.Registers][evidence.DigestSize]byte

// A quote is a TPM's word about its registers.
type quote struct {
	signature tpm2.TPMTSignature
	message   []byte // TPMS_ATTEST: what is signed
	pcrs      registers
}

// quoteAttempts bounds how often registers are read again because somebody else
// extended one before they were quoted.
const quoteAttempts = 5

// takeQuote quotes all registers by k. Their values are those of the quote: a digest
// alone is signed, and nobody could name the register that differs.
func takeQuote(ctx context.Context, t transport.TPM, k *key, nonce []byte) (*quote, error) {
	for range quoteAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		pcrs, err := readPCRs(t)
		if err != nil {
			return nil, fmt.Errorf("TPM2_PCR_Read: %w", err)
		}
		q, digest, err := quoteOnce(t, k, nonce)
		if err != nil {
			return nil, fmt.Errorf("TPM2_Quote: %w", err)
		}
		h, err := signatureHash(&q.signature)
		if err != nil {
			return nil, fmt.Errorf("TPM2_Quote: %w", err)
		}
		if bytes.Equal(digest, digestOf(h, &pcrs)) {
			q.pcrs = pcrs
			return q, nil
		}
	}
	return nil, fmt.Errorf("registers are not those of the quote, %d times: somebody else extends them", quoteAttempts)
}

// quoteOnce returns a quote without values, and the digest of the registers it is about.
func quoteOnce(t transport.TPM, k *key, nonce []byte) (*quote, []byte, error) {
	rsp, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		InScheme:       k.scheme,
		PCRSelect:      selection(everyPCR),
	}.Execute(t)
	if err != nil {
		return nil, nil, err
	}
	a, err := rsp.Quoted.Contents()
	if err != nil {
		return nil, nil, err
	}
	info, err := a.Attested.Quote()
	if err != nil || a.Magic != tpm2.TPMGeneratedValue {
		return nil, nil, fmt.Errorf("statement %#x of type %#x: want a quote", uint32(a.Magic), uint16(a.Type))
	}
	if !bytes.Equal(a.ExtraData.Buffer, nonce) {
		return nil, nil, errors.New("the answer is to another question")
	}
	return &quote{signature: rsp.Signature, message: rsp.Quoted.Bytes()}, info.PCRDigest.Buffer, nil
}

// signatureHash is also the hash of the digest of registers: TPM 2.0 Library, Part 3,
// section 18.4.
func signatureHash(s *tpm2.TPMTSignature) (crypto.Hash, error) {
	var alg tpm2.TPMIAlgHash
	switch s.SigAlg {
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS:
		r, err := rsaSignature(s)
		if err != nil {
			return 0, err
		}
		alg = r.Hash
	case tpm2.TPMAlgECDSA:
		e, err := s.Signature.ECDSA()
		if err != nil {
			return 0, err
		}
		alg = e.Hash
	default:
		return 0, fmt.Errorf("signature by algorithm %#x: want RSASSA, RSAPSS or ECDSA", uint16(s.SigAlg))
	}
	h, err := alg.Hash()
	if err == nil && !h.Available() {
		err = fmt.Errorf("hash %#x", uint16(alg))
	}
	return h, err
}

func rsaSignature(s *tpm2.TPMTSignature) (*tpm2.TPMSSignatureRSA, error) {
	if s.SigAlg == tpm2.TPMAlgRSAPSS {
		return s.Signature.RSAPSS()
	}
	return s.Signature.RSASSA()
}

func digestOf(h crypto.Hash, pcrs *registers) []byte {
	d := h.New()
	for _, v := range pcrs {
		d.Write(v[:])
	}
	return d.Sum(nil)
}

// everyPCR selects PCR 0 to 23, a bit each from the lowest of the first byte on: TPM 2.0
// Library, Part 2, section 10.6.1.
var everyPCR = [evidence.Registers / 8]byte{0xff, 0xff, 0xff}

func selection(bits [evidence.Registers / 8]byte) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bits[:]}}}
}

// readPCRs asks for what is still missing until nothing is: a TPM answers with as many
// registers as fit, eight or fewer.
func readPCRs(t transport.TPM) (out registers, err error) {
	for missing := everyPCR; missing != [3]byte{}; {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(missing)}.Execute(t)
		if err != nil {
			return out, err
		}
		if err := takeValues(&out, &missing, rsp); err != nil {
			return out, err
		}
	}
	return out, nil
}

// takeValues moves the registers of an answer from missing to out: at least one.
func takeValues(out *registers, missing *[evidence.Registers / 8]byte, rsp *tpm2.PCRReadResponse) error {
	sels, values := rsp.PCRSelectionOut.PCRSelections, rsp.PCRValues.Digests
	if len(sels) != 1 || sels[0].Hash != tpm2.TPMAlgSHA256 {
		return errors.New("the answer is about other registers: bank sha256 may not be active")
	}
	n := 0
	for i, b := range sels[0].PCRSelect {
		if b == 0 {
			continue
		}
		if i >= len(missing) || b&^missing[i] != 0 {
			return errors.New("the answer has registers that were not asked for")
		}
		missing[i] &^= b
		for bit := range 8 {
			if b>>bit&1 == 0 {
				continue
			}
			if n == len(values) || len(values[n].Buffer) != evidence.DigestSize {
				return fmt.Errorf("PCR %d has no value of %d bytes", 8*i+bit, evidence.DigestSize)
			}
			out[8*i+bit] = [evidence.DigestSize]byte(values[n].Buffer)
			n++
		}
	}
	if n == 0 || n != len(values) {
		return fmt.Errorf("%d values for %d registers", len(values), n)
	}
	return nil
}
