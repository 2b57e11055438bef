package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// SNPOptions say what a report is checked against. A field that is nil is not
// checked, and the result says so, unless its comment says otherwise.
type SNPOptions struct {
	Now   time.Time              // at which certificates have to be valid; must be set
	Certs []*x509.Certificate    // VCEK or VLEK, besides those behind the report
	Roots []*x509.Certificate    // trusted, with what stands below them; nil: AMD's own
	CRLs  []*x509.RevocationList // AMD's, by product line

	Product     string   // one of Lines; "": whatever the report and its certificate agree on
	Measurement Register // without values the report is refused
	Policy      *uint64
	AllowDebug  bool
	HostData    []byte // 32 bytes
	ReportData  []byte // 64 bytes
	VMPL        *uint32
	MinTCB      Floor   // for the TCB reported and the one at launch
	MinGuestSVN *uint32 // with an ID block

	FamilyID, ImageID            []byte // 16 bytes, with an ID block
	IDKeyDigest, AuthorKeyDigest []byte // 48 bytes
}

// SNP checks a report, with or without a table of certificates behind it. An
// error means that it could not be read; whether it is to be believed is in the
// result.
func SNP(evidence []byte, o SNPOptions) (*Result, error) {
	if o.Now.IsZero() {
		return nil, errors.New("verify: report: no time at which its certificates have to be valid")
	}
	r, err := parseReport(evidence)
	if err != nil {
		return nil, err
	}
	raw := evidence[:ReportSize]
	if table := evidence[ReportSize:]; notZero(table) >= 0 {
		certs, err := parseTable(table, ReportSize)
		if err != nil {
			return nil, err
		}
		o.Certs = append(slices.Clip(o.Certs), certs...)
	}
	var c checks
	e := o.checkEndorsement(&c, r, raw)
	line := r.line()
	if line == "" && e != nil {
		line = e.line
	}
	o.checkChip(&c, r, e)
	o.checkTCB(&c, r, e, line)
	o.checkGuest(&c, r)
	return c.result("snp", fmt.Sprintf("report version %d, signed by %s, product %s", r.Version, r.signer(), orUnknown(line))), nil
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

const (
	nameChain     = "certificate chain"
	nameSignature = "report signature"
	nameSecond    = "go-sev-guest"
)

// checkEndorsement checks who signed. It returns nil when there is no certificate
// that can be read.
func (o *SNPOptions) checkEndorsement(c *checks, r *report, raw []byte) *endorsement {
	key := r.signer()
	if r.signingKey() == signedByNone {
		c.add(nameSignature, key, "VCEK or VLEK", false).Reason = "anyone can write a report that is not signed"
		return nil
	}
	cert := endorsementCert(o.Certs, key, raw)
	if cert == nil {
		reason := fmt.Sprintf("no %s certificate was given", key)
		c.skip(nameChain, "", reason).Required = true
		c.skip(nameSignature, "", reason).Required = true
		return nil
	}
	want := "a root of AMD, valid at " + date(o.Now)
	if o.Roots != nil {
		want = "a given root, valid at " + date(o.Now)
	}
	e, err := parseEndorsement(cert, key)
	var chain []*x509.Certificate
	if err == nil {
		chain, err = o.verifyChain(e, key)
	}
	got := chainNames(append([]*x509.Certificate{cert}, tail(chain)...))
	c.fault(nameChain, got, want, err).Required = true
	c.fault(nameSignature, "by "+cert.Subject.CommonName, "by "+cert.Subject.CommonName, checkSignature(raw, cert)).Required = true
	o.checkSecond(c, r, raw, e, chain)
	o.checkRevoked(c, chain)
	return e
}

func tail(chain []*x509.Certificate) []*x509.Certificate {
	if len(chain) == 0 {
		return nil
	}
	return chain[1:]
}

// endorsementCert picks the certificate of the key that signed; when several have
// the right name, one whose key it is.
func endorsementCert(certs []*x509.Certificate, key string, raw []byte) (picked *x509.Certificate) {
	for _, cert := range certs {
		if cert.Subject.CommonName != "SEV-"+key {
			continue
		}
		if picked == nil {
			picked = cert
		}
		if checkSignature(raw, cert) == nil {
			return cert
		}
	}
	return picked
}

func (o *SNPOptions) checkSecond(c *checks, r *report, raw []byte, e *endorsement, chain []*x509.Certificate) {
	switch {
	case chain == nil:
		c.skip(nameSecond, "", "there is no chain to show it")
	case goSEVGuestReads(r, e) != "":
		c.skip(nameSecond, "", goSEVGuestReads(r, e))
	default:
		c.fault(nameSecond, "chain, certificate profile, signature", "all accepted", goSEVGuest(raw, e, chain, o.Now))
	}
}

// checkRevoked looks for the intermediate certificate. AMD revokes no VCEK: a
// higher TCB has another key.
func (o *SNPOptions) checkRevoked(c *checks, chain []*x509.Certificate) {
	const name = "revocation"
	switch {
	case o.CRLs == nil:
		c.skip(name, "", "no revocation list was given")
	case chain == nil:
		c.skip(name, "", "there is no chain to look up")
	default:
		c.fault(name, chain[1].Subject.CommonName, "not revoked", revoked(chain[1], chain[2], o.CRLs, o.Now))
	}
}

// checkChip checks that certificate and report speak of the same processor.
func (o *SNPOptions) checkChip(c *checks, r *report, e *endorsement) {
	o.checkProduct(c, r, e)
	const name = "chip ID"
	text := hex.EncodeToString(r.ChipID[:])
	switch {
	case e == nil:
		c.skip(name, text, "there is no certificate to compare it with")
	case e.hwid == nil:
		c.skip(name, text, "a VLEK is not of one chip")
	case notZero(r.ChipID[:]) < 0:
		c.skip(name, text, "the host masks it")
	default:
		want := make([]byte, len(r.ChipID)) // that of a Turin fills the first 8 bytes
		copy(want, e.hwid)
		c.equal(name, r.ChipID[:], want, "")
	}
}

func (o *SNPOptions) checkProduct(c *checks, r *report, e *endorsement) {
	const name = "product"
	said, certified := r.line(), ""
	if e != nil {
		certified = e.line
	}
	switch {
	case said != "" && certified != "" && said != certified:
		c.add(name, said, certified, false).Reason = "the certificate is of another product"
	case o.Product != "" && said+certified == "":
		c.skip(name, "", "neither a certificate nor the report names one").Required = true
	case o.Product != "":
		got := said
		if got == "" {
			got = certified
		}
		c.add(name, got, o.Product, got == o.Product)
	case said != "" && certified != "":
		c.add(name, said, certified, true).Reason = "report and certificate agree"
	default:
		c.skip(name, orUnknown(said+certified), "no product is expected, and only one of report and certificate names it")
	}
}

// checkTCB checks the versions of firmware and microcode.
func (o *SNPOptions) checkTCB(c *checks, r *report, e *endorsement, line string) {
	reported := tcb{line, r.ReportedTCB}
	if e == nil {
		c.skip("TCB of the certificate", reported.String(), "there is no certificate to compare it with")
	} else {
		// Another TCB has another VCEK; a VLEK is loaded for one TCB.
		c.add("TCB of the certificate", reported.String(), e.tcb.String(), reported.raw == e.tcb.raw)
	}
	for _, x := range []struct {
		name string
		raw  [8]byte
	}{{"TCB floor (reported)", r.ReportedTCB}, {"TCB floor (at launch)", r.LaunchTCB}} {
		t := tcb{line, x.raw}
		switch {
		case o.MinTCB == nil:
			c.skip(x.name, t.String(), "no least TCB was given")
		case line == "":
			c.skip(x.name, t.String(), "the product is not known").Required = true
		default:
			c.fault(x.name, t.String(), o.MinTCB.String(), o.MinTCB.above(t))
		}
	}
}

// checkGuest checks what launched the guest and what it asked to be signed.
func (o *SNPOptions) checkGuest(c *checks, r *report) {
	c.register("measurement", r.Measurement[:], o.Measurement, true)
	o.checkPolicy(c, r)
	c.equal("host data", r.HostData[:], o.HostData, "no host data is expected")
	c.equal("report data", r.ReportData[:], o.ReportData, "no report data is expected: a report that was recorded earlier looks the same")
	if o.VMPL == nil {
		c.skip("VMPL", fmt.Sprint(r.VMPL), "no VMPL is expected")
	} else {
		c.add("VMPL", fmt.Sprint(r.VMPL), fmt.Sprint(*o.VMPL), r.VMPL == *o.VMPL)
	}
	o.checkIDBlock(c, r)
	c.skip("platform", fmt.Sprintf("%#x (%s)", r.PlatformInfo, strings.Join(bitNames(r.PlatformInfo, platformBits), ", ")), "nothing is expected of it")
}

func (o *SNPOptions) checkPolicy(c *checks, r *report) {
	c.flags("policy", r.Policy, o.Policy, describePolicy, "no policy is expected")
	debug := "off"
	if r.Policy&policyDebug != 0 {
		debug = "allowed"
	}
	if o.AllowDebug {
		c.skip("debug", debug, "it is allowed here")
	} else {
		c.add("debug", debug, "off", debug == "off").Required = true
	}
	agent := "none"
	if r.Policy&policyMigration != 0 || notOnes(r.ReportIDMA[:]) {
		agent = hex.EncodeToString(r.ReportIDMA[:])
	}
	// An agent that is not itself attested can copy the guest elsewhere.
	c.add("migration agent", agent, "none", agent == "none")
}

func notOnes(b []byte) bool { return !bytes.Equal(b, bytes.Repeat([]byte{0xff}, len(b))) }

const noIDBlock = "nothing is expected of an ID block"

func (o *SNPOptions) checkIDBlock(c *checks, r *report) {
	if o.MinGuestSVN == nil {
		c.skip("guest SVN", fmt.Sprint(r.GuestSVN), noIDBlock)
	} else {
		c.add("guest SVN", fmt.Sprint(r.GuestSVN), fmt.Sprintf("at least %d", *o.MinGuestSVN), r.GuestSVN >= *o.MinGuestSVN)
	}
	c.equal("family ID", r.FamilyID[:], o.FamilyID, noIDBlock)
	c.equal("image ID", r.ImageID[:], o.ImageID, noIDBlock)
	c.equal("ID key digest", r.IDKeyDigest[:], o.IDKeyDigest, noIDBlock)
	c.equal("author key digest", r.AuthorKeyDigest[:], o.AuthorKeyDigest, noIDBlock)
}
