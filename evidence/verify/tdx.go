package verify

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// TDXOptions say what a quote is checked against. A field that is nil is not
// checked, and the result says so, unless its comment says otherwise.
type TDXOptions struct {
	Now   time.Time              // at which certificates and collateral have to be valid; must be set
	Roots []*x509.Certificate    // trusted; nil: Intel's own
	Certs []*x509.Certificate    // of Intel's TCB signing; those of the processor are in the quote
	CRLs  []*x509.RevocationList // of the root and of the PCK's issuer

	TCBInfo    []byte   // Intel's, for the platform's FMSPC: JSON as the PCS sends it
	QEIdentity []byte   // Intel's, of the TD quoting enclave
	AcceptTCB  []string // statuses that are good enough; nil: UpToDate
	MinTEETCB  []byte   // 16 bytes, each compared for itself

	MRTD          Register    // without values the quote is refused
	RTMR          [4]Register // 1 and 2 hold what was booted: without values the quote is refused
	Attributes    *uint64
	XFAM          *uint64
	AllowDebug    bool
	MRConfigID    []byte // 48 bytes
	MROwner       []byte
	MROwnerConfig []byte
	MRServiceTD   []byte // nil: none
	ReportData    []byte // 64 bytes
}

// TDX checks a quote. An error means that it could not be read; whether it is to
// be believed is in the result.
func TDX(evidence []byte, o TDXOptions) (*Result, error) {
	if o.Now.IsZero() {
		return nil, errors.New("verify: quote: no time at which its certificates have to be valid")
	}
	q, err := parseQuote(evidence)
	if err != nil {
		return nil, err
	}
	var c checks
	chain := o.checkQuoter(&c, q)
	o.checkCollateral(&c, q, chain)
	o.checkSEAM(&c, q)
	o.checkTD(&c, q)
	return c.result("tdx", q.String()), nil
}

// checkSEAM checks the TDX module as far as the quote alone tells.
func (o *TDXOptions) checkSEAM(c *checks, q *quote) {
	b := &q.body
	got := fmt.Sprintf("signer %x, attributes %x", b.MRSignerSEAM[:], b.SEAMAttributes[:])
	ok := notZero(b.MRSignerSEAM[:]) < 0 && notZero(b.SEAMAttributes[:]) < 0
	c.add("TDX module's signer", got, "all zero: signed by Intel, no debug", ok).Required = true
	if o.MinTEETCB == nil {
		c.skip("TEE TCB floor", hex.EncodeToString(b.TEETCBSVN[:]), "no least TEE TCB SVN was given")
		return
	}
	ok = len(o.MinTEETCB) == len(b.TEETCBSVN)
	for i := 0; ok && i < len(o.MinTEETCB); i++ {
		ok = b.TEETCBSVN[i] >= o.MinTEETCB[i]
	}
	c.add("TEE TCB floor", hex.EncodeToString(b.TEETCBSVN[:]), "each byte at least "+hex.EncodeToString(o.MinTEETCB), ok)
}

// checkTD checks what was started and how.
func (o *TDXOptions) checkTD(c *checks, q *quote) {
	b := &q.body
	c.register("MRTD", b.MRTD[:], o.MRTD, true)
	for i, want := range o.RTMR {
		// What fills RTMR 0 depends on the machine and RTMR 3 on the guest; without
		// 1 and 2 nobody knows what runs.
		c.register(fmt.Sprintf("RTMR%d", i), b.RTMR[i][:], want, i == 1 || i == 2)
	}
	c.flags("ATTRIBUTES", b.Attributes, o.Attributes, describeAttributes, "no attributes are expected")
	o.checkDebug(c, b.Attributes)
	c.flags("XFAM", b.XFAM, o.XFAM, describeXFAM, "no XFAM is expected")
	c.equal("MRCONFIGID", b.MRConfigID[:], o.MRConfigID, "no value is expected")
	c.equal("MROWNER", b.MROwner[:], o.MROwner, "no value is expected")
	c.equal("MROWNERCONFIG", b.MROwnerConfig[:], o.MROwnerConfig, "no value is expected")
	if q.later != nil {
		want := o.MRServiceTD
		if want == nil {
			want = make([]byte, len(q.later.MRServiceTD))
		}
		// A migration TD can copy this one elsewhere.
		c.equal("MRSERVICETD", q.later.MRServiceTD[:], want, "")
	}
	c.equal("report data", b.ReportData[:], o.ReportData, "no report data is expected: a quote that was recorded earlier looks the same")
}

func (o *TDXOptions) checkDebug(c *checks, attributes uint64) {
	got := "off"
	if bad := attributes & untrusted; bad != 0 {
		got = strings.Join(bitNames(bad, attributeBits), ", ")
	}
	if o.AllowDebug {
		c.skip("debug", got, "it is allowed here")
		return
	}
	c.add("debug", got, "off", got == "off").Required = true
}
