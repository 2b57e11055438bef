package verify

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// TPMOptions say what a quote is checked against. A field that is nil is not
// checked, and the result says so.
type TPMOptions struct {
	Now        time.Time           // at which certificates have to be valid; must be set with Roots
	ReportData []byte              // as evidence.Binding gives it, of any length; fitted to the field
	AKs        [][]byte            // SubjectPublicKeyInfo, DER: attestation keys that are trusted
	Roots      []*x509.Certificate // of makers of TPMs, with what stands below them
	Certs      []*x509.Certificate // AK and EK certificates, and what is between, besides those in the evidence
}

// TPMState is what a quote says of the machine. Nothing of it is to be believed before
// the result says that it is.
type TPMState struct {
	PCRs [evidence.Registers][evidence.DigestSize]byte // of bank sha256
	Log  *eventlog.Log                                 // of firmware and guest; nil without one that can be read
	AK   []byte                                        // SubjectPublicKeyInfo, DER
}

// TPM checks the evidence of a TPM by itself: that the quote was signed by a key that is
// trusted, and that the registers and the log are those of the quote. Whether they are
// the right ones is for a comparison with what was predicted. An error means that the
// quote could not be read.
func TPM(e *evidence.TPM, o TPMOptions) (*Result, *TPMState, error) {
	sig, err := parseTPMSignature(e.Quote.Signature)
	if err != nil {
		return nil, nil, err
	}
	q := &tpmEvidence{e: e, o: o, sig: sig, state: &TPMState{PCRs: e.Quote.PCRs, AK: e.AKPublic}}
	if q.attest, err = parseAttest(e.Quote.Message); err != nil {
		return nil, nil, err
	}
	q.checkKey()
	if q.checkQuote(evidence.Fit(o.ReportData, evidence.TPMReportData)) {
		q.checkLog(e.EventLog)
	}
	q.checkTrust()
	q.showMachine()
	return q.c.result("tpm", fmt.Sprintf("quote of a TPM, signed by %s (%s)", q.keyText, sig)), q.state, nil
}

// tpmEvidence is evidence while it is checked.
type tpmEvidence struct {
	e       *evidence.TPM
	o       TPMOptions
	c       checks
	sig     *tpmSignature
	attest  *tpmAttest
	key     crypto.PublicKey // nil: cannot be used
	keyText string
	state   *TPMState
}

// checkKey checks that the attestation key is one that a signature means anything of.
func (q *tpmEvidence) checkKey() {
	key, text, err := attestationKey(q.e.AKPublic)
	q.keyText = orUnknown(text)
	q.c.fault("attestation key", q.keyText, fmt.Sprintf("at least RSA of %d bits, ECDSA of 256", minRSABits), err).Required = true
	if err == nil {
		q.key = key
	}
}

// checkQuote checks what was signed, and tells whether it is a quote at all.
func (q *tpmEvidence) checkQuote(reportData []byte) bool {
	const signature = "quote signature"
	if q.key == nil {
		q.c.skip(signature, q.sig.String(), "there is no key to check it by").Required = true
	} else {
		q.c.fault(signature, q.sig.String(), "by the attestation key", q.sig.verify(q.key, q.e.Quote.Message)).Required = true
	}
	a := q.attest
	q.c.add("quote magic", fmt.Sprintf("%#x", a.magic), fmt.Sprintf("%#x", uint32(tpmGenerated)), a.magic == tpmGenerated).Required = true
	q.c.add("quote type", fmt.Sprintf("%#x", a.kind), fmt.Sprintf("%#x", tpmQuoteTag), a.kind == tpmQuoteTag).Required = true
	if a.kind != tpmQuoteTag {
		return false
	}
	if q.o.ReportData == nil {
		reportData = nil
	}
	q.c.equal("qualifying data", a.extra, reportData, "no report data is expected: a quote that was recorded earlier looks the same")
	q.c.add("quote selection", a.selected(), fmt.Sprintf("bank %#x: ffffff", tpmSHA256), a.all()).Required = true
	q.checkRegisters()
	return true
}

// checkRegisters holds the registers that are shown to the digest that was signed. It is
// by the hash of the signature: TPM 2.0 Library, part 3, 18.4.1, TPM2_Quote.
func (q *tpmEvidence) checkRegisters() {
	d := tpmHashes[q.sig.hash].New()
	for _, v := range q.e.Quote.PCRs {
		d.Write(v[:])
	}
	x := q.c.equal("register digest", d.Sum(nil), q.attest.digest, "")
	x.Required = true
	if x.Verdict == Failed {
		x.Reason = "the registers that are shown are not those of the quote"
	}
}

// registerIMA is extended by the kernel, which no firmware's log has.
const registerIMA = 10

// checkLog replays the log to each register.
func (q *tpmEvidence) checkLog(log []byte) {
	const name = "event log"
	if len(log) == 0 {
		q.c.skip(name, "", "the evidence has none: nothing says why a register is what it is")
		return
	}
	l, err := eventlog.Parse(log)
	if err == nil && (l.CC || l.Legacy) {
		err = errors.New("of the SHA-1 form, which has no digests of bank sha256")
	}
	var values map[int][]byte
	if err == nil {
		values, err = l.Replay(eventlog.SHA256)
	}
	if err != nil {
		q.c.fault(name, fmt.Sprintf("%d bytes", len(log)), "a TCG log with bank sha256", err).Required = true
		return
	}
	l.Describe()
	q.state.Log = l
	var bad []Check
	for i := range q.e.Quote.PCRs {
		if x := q.checkReplay(l, i, values[i]); x != nil {
			bad = append(bad, *x)
		}
	}
	failed := slices.ContainsFunc(bad, func(x Check) bool { return x.Verdict == Failed })
	q.c.add(name, fmt.Sprintf("%d events", len(l.Events)), "leads to each register", !failed).Required = true
	q.c = append(q.c, bad...)
	for _, f := range l.Inconsistent() {
		q.c.skip("event text", f.String(), "the log contradicts itself there: digests are right, names may be wrong")
	}
}

// checkReplay compares a register with what the log leads to; nil when they agree.
func (q *tpmEvidence) checkReplay(l *eventlog.Log, register int, replayed []byte) *Check {
	got := q.e.Quote.PCRs[register][:]
	if replayed == nil {
		replayed = resetPCR(register)
	}
	if bytes.Equal(got, replayed) {
		return nil
	}
	var c checks
	name := fmt.Sprintf("log of PCR %d", register)
	reason := lastEvent(l, register)
	if register == registerIMA && reason == noEvent {
		return c.skip(name, hex.EncodeToString(got), "the kernel extends it (IMA) and no firmware's log has that")
	}
	x := c.add(name, hex.EncodeToString(got), hex.EncodeToString(replayed), false)
	x.Required, x.Reason = true, reason
	return x
}

// resetPCR is what a register without events holds: ones in those of a dynamic launch.
// TCG PC Client Platform TPM Profile 1.05, section 4.6.2.
func resetPCR(register int) []byte {
	v := make([]byte, evidence.DigestSize)
	if register >= 17 && register <= 22 {
		for i := range v {
			v[i] = 0xff
		}
	}
	return v
}

// checkTrust checks whether the attestation key is that of a TPM: by being known, or by a
// certificate. An EK certificate alone does not tell: who made the AK only a challenge
// that the TPM has to decrypt (TPM2_ActivateCredential) can show.
func (q *tpmEvidence) checkTrust() {
	const name = "attestation key trusted"
	digest := func(spki []byte) string { d := sha256.Sum256(spki); return "SPKI sha256:" + hex.EncodeToString(d[:]) }
	got := digest(q.e.AKPublic)
	certified := q.checkCertificate("AK certificate", q.e.AKCertificate, true)
	q.checkCertificate("EK certificate", q.e.EKCertificate, false)
	known := slices.ContainsFunc(q.o.AKs, func(b []byte) bool { return bytes.Equal(b, q.e.AKPublic) })
	switch {
	case len(q.o.AKs) > 0:
		want := digest(q.o.AKs[0])
		if n := len(q.o.AKs); n > 1 {
			want = fmt.Sprintf("one of %d keys", n)
		}
		q.c.add(name, got, want, known).Required = true
	case certified:
		q.c.add(name, got, got, true).Reason = "it has a certificate"
	default:
		q.c.skip(name, got, "no key is expected: anyone can make one, and sign with it").Required = true
	}
}

// checkCertificate checks a certificate of the evidence, or else of those given, and tells
// whether it vouches for the attestation key.
func (q *tpmEvidence) checkCertificate(name string, der []byte, ofAK bool) bool {
	cert, err := q.certificate(der, ofAK)
	switch {
	case err != nil:
		q.c.fault(name, fmt.Sprintf("%d bytes", len(der)), "X.509", err)
		return false
	case cert == nil:
		q.c.skip(name, "", "there is none")
		return false
	case ofAK && !bytes.Equal(cert.RawSubjectPublicKeyInfo, q.e.AKPublic):
		q.c.add(name, certName(cert), "of the attestation key", false).Reason = "it is of another key"
		return false
	case q.o.Roots == nil:
		q.c.skip(name, certName(cert), "no root is given to check it by")
		return false
	}
	err = q.o.chain(cert)
	x := q.c.fault(name, certName(cert), "a given root, valid at "+date(q.o.Now), err)
	if err == nil && !ofAK {
		x.Reason = "which TPM it is of only a challenge can show"
	}
	return err == nil && ofAK
}

// certificate is that of the evidence, or the one of those given that is of the
// attestation key.
func (q *tpmEvidence) certificate(der []byte, ofAK bool) (*x509.Certificate, error) {
	if der != nil {
		return parseCertificate(der)
	}
	for _, c := range q.o.Certs {
		if ofAK && bytes.Equal(c.RawSubjectPublicKeyInfo, q.e.AKPublic) {
			return c, nil
		}
	}
	return nil, nil
}

func certName(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return c.Subject.CommonName
	}
	return fmt.Sprintf("serial %x, issued by %s", c.SerialNumber, c.Issuer)
}

// chain checks a certificate of a TPM's key. Its subject may stand in a critical
// alternative name of a kind that crypto/x509 does not read: TCG EK Credential Profile
// 2.5, section 3.2.9.
func (o *TPMOptions) chain(cert *x509.Certificate) error {
	if o.Now.IsZero() {
		return errors.New("no time at which it has to be valid")
	}
	leaf := *cert
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(slices.Clone(cert.UnhandledCriticalExtensions), func(oid asn1.ObjectIdentifier) bool {
		return oid.Equal(asn1.ObjectIdentifier{2, 5, 29, 17})
	})
	trusted, between := pools(o.Roots, o.Certs)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: trusted, Intermediates: between, CurrentTime: o.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// showMachine shows what nobody expects anything of.
func (q *tpmEvidence) showMachine() {
	if q.attest.kind != tpmQuoteTag {
		return
	}
	q.c.skip("clock", q.attest.clock.String(), "nothing is expected of it")
	q.c.skip("TPM firmware", firmwareText(q.attest.firmware), "nothing is expected of it")
}
