package verify

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// AzureOptions say what the evidence of a guest behind Azure's paravisor is checked
// against. The hardware report is the paravisor's: it vouches for the vTPM, whose
// registers are the guest's.
type AzureOptions struct {
	TPM TPMOptions // ReportData is taken as it is, and AKs are those that the report vouches for
	SNP SNPOptions // Measurement is the paravisor's; ReportData and VMPL are set here
	TDX TDXOptions // MRTD is the paravisor's; ReportData and RTMR are set here
}

// hclHeader begins an HCL report; little-endian; Microsoft, openhcl, igvm_attest, "attest
// report".
type hclHeader struct {
	Signature   [4]byte // "HCLA"
	Version     uint32  // 1, or 2 of trust domains
	Size        uint32  // of header, hardware report and runtime data
	RequestType uint32  // 2: of a vTPM's attestation key
	Status      uint32
	_           [12]byte
}

const (
	hclHeaderSize = 32
	hclReportSize = 1184 // that of an SNP report; a TDREPORT is shorter
)

// hclRuntime begins the runtime data.
type hclRuntime struct {
	Size       uint32 // with this header
	Version    uint32
	ReportType uint32 // hclSNP or hclTDX
	HashType   uint32 // 1: SHA-256
	DataSize   uint32 // of the JSON that follows
}

const (
	hclRuntimeSize = 20
	hclSNP         = 2
	hclTDX         = 4
	hclSHA256      = 1
	maxHCL         = 64 << 10 // bytes
)

// hcl is an HCL report.
type hcl struct {
	report   []byte // of the hardware
	kind     uint32
	data     []byte // JSON, as it was hashed
	ak       *rsa.PublicKey
	userData []byte
}

const objectHCL = "HCL report"

// parseHCL reads an HCL report. Behind it only zeros may follow: the vTPM keeps it in an
// area of fixed size.
func parseHCL(b []byte) (*hcl, error) {
	const dataAt = hclHeaderSize + hclReportSize
	if len(b) < dataAt+hclRuntimeSize || len(b) > maxHCL {
		return nil, malformed(objectHCL, len(b), "%d bytes: want %d to %d", len(b), dataAt+hclRuntimeSize, maxHCL)
	}
	var head hclHeader
	var run hclRuntime
	_, err := binary.Decode(b, binary.LittleEndian, &head)
	if err == nil {
		_, err = binary.Decode(b[dataAt:], binary.LittleEndian, &run)
	}
	at := dataAt + hclRuntimeSize
	switch {
	case err != nil:
		return nil, malformed(objectHCL, 0, "%v", err)
	case string(head.Signature[:]) != "HCLA":
		return nil, malformed(objectHCL, 0, "signature %q: want \"HCLA\"", head.Signature)
	case run.ReportType != hclSNP && run.ReportType != hclTDX:
		return nil, malformed(objectHCL, dataAt+8, "report of type %d: want %d, SNP, or %d, TDX", run.ReportType, hclSNP, hclTDX)
	case run.HashType != hclSHA256:
		return nil, malformed(objectHCL, dataAt+12, "hash of type %d: want %d, SHA-256", run.HashType, hclSHA256)
	case int64(run.DataSize) > int64(len(b)-at) || run.Size != run.DataSize+hclRuntimeSize || head.Size != run.Size+dataAt:
		return nil, malformed(objectHCL, dataAt, "runtime data of %d bytes in %d, report of %d: %d are there", run.DataSize, run.Size, head.Size, len(b))
	case notZero(b[at+int(run.DataSize):]) >= 0:
		return nil, malformed(objectHCL, at+int(run.DataSize), "bytes behind it: want nothing, or zeros")
	}
	h := &hcl{report: b[hclHeaderSize:dataAt], kind: run.ReportType, data: b[at:][:run.DataSize]}
	if err := h.parseData(); err != nil {
		return nil, malformed(objectHCL, at, "runtime data: %v", err)
	}
	return h, nil
}

// hclAKName is what the runtime data calls the vTPM's attestation key.
const hclAKName = "HCLAkPub"

// parseData reads what is needed of the runtime data. It may have keys that nobody knows,
// but none twice.
func (h *hcl) parseData() error {
	top := map[string]json.RawMessage{}
	if err := strictjson.Unmarshal(h.data, &top); err != nil {
		return err
	}
	var user string
	if raw := top["user-data"]; raw != nil {
		if err := json.Unmarshal(raw, &user); err != nil {
			return errors.New("user-data: want text")
		}
	}
	var err error
	if h.userData, err = hex.DecodeString(user); err != nil {
		return errors.New("user-data: want hexadecimal")
	}
	var keys []map[string]json.RawMessage
	if err := strictjson.Unmarshal(top["keys"], &keys); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	for _, k := range keys {
		if text(k["kid"]) != hclAKName {
			continue
		}
		if h.ak != nil {
			return fmt.Errorf("keys: %s: twice", hclAKName)
		}
		if h.ak, err = rsaJWK(k); err != nil {
			return fmt.Errorf("keys: %s: %w", hclAKName, err)
		}
	}
	if h.ak == nil {
		return fmt.Errorf("keys: no %s", hclAKName)
	}
	return nil
}

// text decodes JSON text; "" for what is none.
func text(raw json.RawMessage) (s string) {
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

func rsaJWK(k map[string]json.RawMessage) (*rsa.PublicKey, error) {
	n, err := base64.RawURLEncoding.DecodeString(text(k["n"]))
	if err != nil || text(k["kty"]) != "RSA" || len(n) > maxRSA {
		return nil, errors.New("want an RSA key")
	}
	e, err := base64.RawURLEncoding.DecodeString(text(k["e"]))
	if err != nil || len(e) == 0 || len(e) > 4 {
		return nil, errors.New("want an RSA key's exponent")
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}, nil
}

// Azure checks the evidence of a guest behind Azure's paravisor: the quote of its vTPM,
// that the hardware report vouches for the vTPM's key, and the report. An error means that
// it could not be read.
func Azure(e *evidence.Azure, o AzureOptions) (*Result, *TPMState, error) {
	h, err := parseHCL(e.HCLReport)
	if err != nil {
		return nil, nil, err
	}
	if want := map[bool]uint32{true: hclSNP, false: hclTDX}[e.TDQuote == nil]; h.kind != want {
		return nil, nil, malformed(objectHCL, hclHeaderSize+hclReportSize+8, "report of type %d: want %d", h.kind, want)
	}
	spki, err := x509.MarshalPKIXPublicKey(h.ak)
	if err != nil {
		return nil, nil, malformed(objectHCL, 0, "attestation key: %v", err)
	}
	q := &tpmEvidence{e: &evidence.TPM{AKPublic: spki}, o: o.TPM, state: &TPMState{PCRs: e.Quote.PCRs, AK: spki}}
	q.e.Quote = evidence.TPMQuote{Message: e.Quote.Message, PCRs: e.Quote.PCRs}
	q.sig = &tpmSignature{scheme: tpmRSASSA, hash: tpmSHA256, rsa: e.Quote.Signature}
	if q.attest, err = parseAttest(e.Quote.Message); err != nil {
		return nil, nil, err
	}
	q.checkKey()
	q.checkQuote(o.TPM.ReportData)
	q.showMachine()
	h.checkUserData(&q.c, e.Version, o.TPM.ReportData)
	inner, err := o.hardware(e, h, &q.c)
	if err != nil {
		return nil, nil, err
	}
	q.c = append(q.c, inner.Checks...)
	return q.c.result(e.TEE(), "quote of a vTPM behind Azure's paravisor, "+inner.Evidence), q.state, nil
}

// checkUserData holds what the guest gave to be reported to the report data.
func (h *hcl) checkUserData(c *checks, version uint32, reportData []byte) {
	const name = "user data"
	switch {
	case version < evidence.AzureVersion:
		c.skip(name, hex.EncodeToString(h.userData), "evidence of version 1 has the report data in the quote alone")
	case reportData == nil:
		c.skip(name, hex.EncodeToString(h.userData), "no report data is expected")
	default:
		c.equal(name, h.userData, evidence.Fit(reportData, max(len(h.userData), len(reportData))), "")
	}
}

// hardware checks the hardware's report, and that it is over the runtime data.
func (o *AzureOptions) hardware(e *evidence.Azure, h *hcl, c *checks) (*Result, error) {
	digest := sha256.Sum256(h.data)
	const name = "runtime data"
	if e.TDQuote == nil {
		r, err := parseReport(h.report)
		if err != nil {
			return nil, err
		}
		c.equal(name, r.ReportData[:], evidence.Fit(digest[:], 64), "").Required = true
		cert, err := parseCertificate(e.VCEK)
		if err != nil {
			return nil, malformed("VCEK", 0, "%v", err)
		}
		vmpl := uint32(0) // the paravisor's; the guest is above it
		s := o.SNP
		s.VMPL, s.ReportData, s.Certs = &vmpl, evidence.Fit(digest[:], 64), append(slices.Clip(s.Certs), cert)
		return SNP(h.report, s)
	}
	quote, err := parseQuote(e.TDQuote)
	if err != nil {
		return nil, err
	}
	c.equal(name, quote.body.ReportData[:], evidence.Fit(digest[:], 64), "").Required = true
	t := o.TDX
	t.ReportData = evidence.Fit(digest[:], 64)
	for i := range t.RTMR { // nobody extends them: the guest's registers are those of the vTPM
		t.RTMR[i] = Register{Values: []Value{{Digest: make([]byte, len(quote.body.RTMR[i]))}}}
	}
	return TDX(e.TDQuote, t)
}
