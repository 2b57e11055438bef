package main

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/strictjson"
	"github.com/plinth-os/plinth/measure"
)

// shown is what --evidence names: the evidence of a TEE, and what it came with.
type shown struct {
	tee     string
	primary []byte
	whole   *evidence.Attestation // nil: the evidence alone

	reportData []byte             // that the evidence has to hold; nil: not known
	given      *initdata.Document // that the guest says it was given, or has to have been; nil for none
	expected   bool               // given is that of --initdata
	checks     []verify.Check     // of what is around the evidence
}

// isAttestation tells a whole attestation from the evidence of a TEE.
func isAttestation(b []byte) bool {
	keys := map[string]json.RawMessage{}
	return strictjson.Unmarshal(b, &keys) == nil && keys["tee-evidence"] != nil
}

// readShown reads --evidence and what is to be held to it.
func (f *evidenceFlags) readShown() (*shown, error) {
	b, err := readAtMost(f.evidence, evidence.MaxEvidence)
	if err != nil {
		return nil, err
	}
	s := &shown{primary: b}
	if isAttestation(b) {
		if s.whole, err = evidence.ParseAttestation(b); err != nil {
			return nil, mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
		}
		s.primary = s.whole.TEEEvidence.Primary
	}
	if s.tee, err = evidence.Detect(s.primary); err != nil {
		return nil, mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
	}
	if err := f.applies(s.tee); err != nil {
		return nil, err
	}
	if s.reportData, err = shortHex("report-data", f.reportData, 64); err != nil {
		return nil, err
	}
	if s.whole != nil {
		if f.reportData != "" {
			return nil, usagef("--report-data does not apply to a whole attestation, which says what its evidence is bound to: give --nonce")
		}
		if err := s.checkWhole(f); err != nil {
			return nil, mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
		}
	} else if f.nonce != "" {
		return nil, usagef("--nonce does not apply to the evidence of a TEE alone, which does not say for which key it is: give --report-data, or a whole attestation")
	}
	return s, s.readInitdata(f)
}

// shortHex reads at most size bytes in hex; nil without a flag.
func shortHex(flag, text string, size int) ([]byte, error) {
	n := min(len(strings.TrimPrefix(text, "0x"))/2, size)
	return hexFlag(flag, text, n, false)
}

// applies refuses flags that are for another platform.
func (f *evidenceFlags) applies(tee string) error {
	for _, g := range f.given {
		kind, name, _ := strings.Cut(g, " ")
		snp, tdx := tee == evidence.TEESNP || tee == evidence.TEEAzSNP, tee == evidence.TEETDX || tee == evidence.TEEAzTDX
		if kind == kindReport && !snp || kind == kindQuote && !tdx {
			return usagef("--%s does not apply to evidence of the kind %s", name, tee)
		}
	}
	azure := tee == evidence.TEEAzSNP || tee == evidence.TEEAzTDX
	for _, n := range f.pcrs {
		if n < 0 || n >= evidence.Registers {
			return usagef("--pcrs: %d: want registers from 0 to %d", n, evidence.Registers-1)
		}
	}
	switch {
	case len(f.pcrs) > 0 && tee != evidence.TEETPM && !azure:
		return usagef("--pcrs does not apply to evidence of the kind %s", tee)
	case len(f.aks) > 0 && tee != evidence.TEETPM:
		return usagef("--ak does not apply to evidence of the kind %s", tee)
	case f.measurement != "" && !azure:
		return usagef("--measurement does not apply to evidence of the kind %s", tee)
	}
	return nil
}

// plain is text of the evidence for a terminal.
func plain(s string) string {
	if q := fmt.Sprintf("%.200q", s); q != `"`+s+`"` {
		return q
	}
	return s
}

// bindingHashes are what a broker may have selected, the likeliest first. An attestation
// does not say which.
var bindingHashes = []crypto.Hash{crypto.SHA384, crypto.SHA256, crypto.SHA512}

// checkWhole checks what an attestation is bound to: the nonce, the key, the devices.
func (s *shown) checkWhole(f *evidenceFlags) error {
	run := s.whole.RuntimeData
	if f.nonce == "" {
		s.skip("nonce", plain(run.Nonce), "no nonce is expected: an attestation that was recorded earlier looks the same")
	} else {
		s.add("nonce", plain(run.Nonce), f.nonce, run.Nonce == f.nonce, "")
	}
	key, err := describeJWK(run.TEEPubKey)
	s.add("tee-pubkey", key, "a key that secrets are encrypted to", err == nil, errText(err))
	devices, err := s.whole.TEEEvidence.Devices()
	if err != nil {
		return err
	}
	for _, kind := range slices.Sorted(maps.Keys(devices)) {
		s.skip("device "+plain(kind), "", "evidence of devices is bound, and not looked at")
	}
	return s.bind()
}

// bind computes what the evidence has to hold.
func (s *shown) bind() error {
	field, err := verify.ReportData(s.primary)
	if err != nil {
		return err
	}
	for _, h := range bindingHashes {
		b, err := evidence.Binding(h, s.whole.RuntimeData.Nonce, s.whole.RuntimeData.TEEPubKey, &s.whole.TEEEvidence.Additional)
		if err != nil {
			return err
		}
		same := bytes.Equal(evidence.Fit(b, len(field)), field) && len(field) >= min(len(b), evidence.TPMReportData)
		if same || s.reportData == nil {
			s.reportData = b
		}
		if same {
			return nil
		}
	}
	return nil
}

// readInitdata reads --initdata, and what the attestation says of it.
func (s *shown) readInitdata(f *evidenceFlags) error {
	var body []byte
	if s.whole != nil && s.whole.InitData != nil {
		if format := s.whole.InitData.Format; format != evidence.FormatTOML {
			s.add("initdata", "format "+fmt.Sprintf("%.20q", format), "format "+evidence.FormatTOML, false, "")
			return nil
		}
		body = []byte(s.whole.InitData.Body)
	}
	raw := body
	if f.initdata != "" {
		b, err := readBounded(f.initdata)
		if err != nil {
			return err
		}
		if raw, _, err = initdata.Decode(b); err != nil {
			return usagef("--initdata %s: %w", f.initdata, err)
		}
		s.expected = true
		if s.whole != nil {
			s.add("initdata", fmt.Sprintf("%d bytes", len(body)), "that of "+f.initdata, bytes.Equal(body, raw), "")
		}
	}
	if raw == nil {
		return nil
	}
	doc, err := initdata.Parse(raw)
	switch {
	case err != nil && s.expected:
		return usagef("--initdata %s: %w", f.initdata, err)
	case err != nil:
		return mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
	}
	if _, err := doc.Extend(); err != nil && s.expected && s.tee != evidence.TEESNP && s.tee != evidence.TEETDX {
		return usagef("--initdata %s: %w", f.initdata, err)
	}
	s.given = doc
	return nil
}

func (s *shown) add(name, got, want string, ok bool, reason string) {
	v := verify.Failed
	if ok {
		v = verify.OK
	}
	s.checks = append(s.checks, verify.Check{Name: name, Verdict: v, Got: got, Want: want, Reason: reason})
}

func (s *shown) skip(name, got, reason string) *verify.Check {
	s.checks = append(s.checks, verify.Check{Name: name, Verdict: verify.NotChecked, Got: got, Reason: reason})
	return &s.checks[len(s.checks)-1]
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// verifyShown checks what a broker is shown and prints each check and each register.
func (c *common) verifyShown(f *evidenceFlags) error {
	m, dir, err := f.expected()
	if err != nil {
		return err
	}
	now, err := f.time(c.env.now)
	if err != nil {
		return err
	}
	s, err := f.readShown()
	if err != nil {
		return err
	}
	r, registers, err := f.verifyTEE(s, m, now)
	var bad *verify.MalformedError
	switch {
	case errors.As(err, &bad):
		return mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
	case err != nil:
		return err
	}
	registers.only(f.pcrs)
	wrong := registers.failures()
	if registers != nil {
		registers.Passed = len(wrong) == 0
	}
	r.Checks = append(s.checks, r.Checks...)
	failures := append(r.Failures(), wrong...)
	r.OK = len(failures) == 0
	if err := c.printShown(f.evidence, r, registers); err != nil || r.OK {
		return err
	}
	return mismatchError{&evidenceError{name: f.evidence, failures: failures, hint: cmp.Or(f.hint(r, m, dir), registers.hint())}}
}

// verifyTEE checks the evidence by itself, and the registers in it against m.
func (f *evidenceFlags) verifyTEE(s *shown, m *measure.Measurements, now time.Time) (*verify.Result, *registerReport, error) {
	switch s.tee {
	case evidence.TEETPM:
		return f.verifyTPM(s, m, now)
	case evidence.TEESNP:
		r, err := f.verifySNP(s, m, now)
		return r, nil, err
	case evidence.TEETDX:
		return f.verifyTDX(s, m, now)
	case evidence.TEEAzSNP, evidence.TEEAzTDX:
		return f.verifyAzure(s, m, now)
	}
	return nil, nil, mismatchError{fmt.Errorf("%s: evidence of the kind %s proves nothing: anyone can write it", f.evidence, s.tee)}
}

func (f *evidenceFlags) verifyTPM(s *shown, m *measure.Measurements, now time.Time) (*verify.Result, *registerReport, error) {
	e, err := evidence.ParseTPM(s.primary)
	if err != nil {
		return nil, nil, mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
	}
	o, err := f.tpmOptions(s, now)
	if err != nil {
		return nil, nil, err
	}
	r, state, err := verify.TPM(e, *o)
	if err != nil {
		return nil, nil, err
	}
	registers, err := checkRegisters(m, state, s)
	return r, registers, err
}

func (f *evidenceFlags) tpmOptions(s *shown, now time.Time) (*verify.TPMOptions, error) {
	v, err := f.vouchers()
	if err != nil {
		return nil, err
	}
	if len(f.crls) > 0 {
		return nil, usagef("--crl does not apply to evidence of the kind %s", s.tee)
	}
	o := &verify.TPMOptions{Now: now, ReportData: s.reportData, Roots: v.roots, Certs: v.certs}
	for _, path := range f.aks {
		b, err := readBounded(path)
		if err != nil {
			return nil, err
		}
		key, err := readPublicKey(b)
		if err != nil {
			return nil, usagef("--ak %s: %w", path, err)
		}
		o.AKs = append(o.AKs, key)
	}
	return o, nil
}

// readPublicKey reads a public key, or that of a certificate: PEM, DER, or its base64 as
// brokers have it. It returns the SubjectPublicKeyInfo as evidence has it.
func readPublicKey(b []byte) ([]byte, error) {
	if block, rest := pem.Decode(b); block != nil {
		if block.Type != "PUBLIC KEY" && block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, fmt.Errorf("PEM of %q: want one PUBLIC KEY or CERTIFICATE", block.Type)
		}
		b = block.Bytes
	} else if der, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(b))); err == nil {
		b = der
	}
	key, err := x509.ParsePKIXPublicKey(b)
	if err != nil {
		cert, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, errors.New("neither a public key nor a certificate, PEM or DER")
		}
		key = cert.PublicKey
	}
	return x509.MarshalPKIXPublicKey(key)
}

// bindInitdata says what the field of a platform has to hold that binds initdata: what
// --initdata makes it, unless a flag says it, else what is wanted already. Of what came with
// the evidence, which the host chose, it only says whether that is it.
func (s *shown) bindInitdata(p initdata.Platform, flag string, want *[]byte) error {
	if s.given == nil {
		return nil
	}
	b, err := s.given.Bind(p)
	switch {
	case err != nil:
		return mismatchError{err}
	case s.expected && flag == "":
		*want = b.Value
	case *want != nil:
		s.add("initdata", hex.EncodeToString(b.Value), hex.EncodeToString(*want), bytes.Equal(b.Value, *want), "")
	default:
		*want = b.Value
		s.skip("initdata", fmt.Sprintf("%d bytes", len(s.given.Raw)), "it came with the evidence, and nothing here says that it is the right one: give --initdata").Required = true
	}
	return nil
}

func (f *evidenceFlags) verifySNP(s *shown, m *measure.Measurements, now time.Time) (*verify.Result, error) {
	e, err := evidence.ParseSNP(s.primary)
	if err != nil {
		return nil, mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
	}
	o, err := f.snpOptions(m)
	if err != nil {
		return nil, err
	}
	o.Now = now
	if s.reportData != nil {
		o.ReportData = evidence.Fit(s.reportData, 64)
	}
	if err := s.bindInitdata(initdata.SNP, f.hostData, &o.HostData); err != nil {
		return nil, err
	}
	return verify.SNPEvidence(e, *o)
}

func (f *evidenceFlags) verifyTDX(s *shown, m *measure.Measurements, now time.Time) (*verify.Result, *registerReport, error) {
	e, err := evidence.ParseTDX(s.primary)
	if err != nil {
		return nil, nil, mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
	}
	o, err := f.tdxOptions(m)
	if err != nil {
		return nil, nil, err
	}
	o.Now = now
	if s.reportData != nil {
		o.ReportData = evidence.Fit(s.reportData, 64)
	}
	if err := s.bindInitdata(initdata.TDX, f.configID, &o.MRConfigID); err != nil {
		return nil, nil, err
	}
	r, log, err := verify.TDXEvidence(e, *o)
	if err != nil {
		return nil, nil, err
	}
	return r, explainRTMRs(m, r, log), nil
}

func (f *evidenceFlags) verifyAzure(s *shown, m *measure.Measurements, now time.Time) (*verify.Result, *registerReport, error) {
	e, err := evidence.ParseAzure(s.primary)
	if err != nil {
		return nil, nil, mismatchError{fmt.Errorf("%s: %w", f.evidence, err)}
	}
	var o verify.AzureOptions
	o.TPM = verify.TPMOptions{Now: now, ReportData: s.reportData}
	paravisor := verify.Register{Reason: "give the launch digest or MRTD of Azure's paravisor with --measurement"}
	digest, err := hexFlag("measurement", f.measurement, 48, false)
	if err != nil {
		return nil, nil, err
	}
	if digest != nil {
		paravisor = verify.Register{Values: []verify.Value{{Digest: digest, Name: "of Azure's paravisor"}}}
	}
	if e.TDQuote == nil {
		snp, err := f.snpOptions(nil)
		if err != nil {
			return nil, nil, err
		}
		o.SNP, o.SNP.Now, o.SNP.Measurement = *snp, now, paravisor
	} else {
		tdx, err := f.tdxOptions(nil)
		if err != nil {
			return nil, nil, err
		}
		o.TDX, o.TDX.Now, o.TDX.MRTD = *tdx, now, paravisor
	}
	r, state, err := verify.Azure(e, o)
	if err != nil {
		return nil, nil, err
	}
	registers, err := checkRegisters(m, state, s)
	return r, registers, err
}
