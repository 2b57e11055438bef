package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"
)

// MaxCollateral bounds what Intel signs about a platform, in bytes of JSON.
const MaxCollateral = 1 << 20

// signedJSON returns the member of a document that Intel signed, after checking
// the signature: Intel PCS API v4, TCB info and enclave identity. The signature
// is over the bytes of the member as they stand there.
func (o *TDXOptions) signedJSON(doc []byte, member string) (json.RawMessage, error) {
	if len(doc) > MaxCollateral {
		return nil, fmt.Errorf("%d bytes: want at most %d", len(doc), MaxCollateral)
	}
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(doc, &outer); err != nil {
		return nil, err
	}
	var text string
	if err := json.Unmarshal(outer["signature"], &text); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	signature, err := hex.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	err = fmt.Errorf("no certificate %q was given", signingName)
	for _, cert := range o.Certs {
		if cert.Subject.CommonName != signingName {
			continue
		}
		if err = o.signedBy(cert, outer[member], signature); err == nil {
			return outer[member], nil
		}
	}
	return nil, err
}

func (o *TDXOptions) signedBy(cert *x509.Certificate, message, signature []byte) error {
	chain, err := o.chainOf(cert, nil)
	if err != nil {
		return err
	}
	if len(chain) != 2 || chain[1].Subject.CommonName != rootName {
		return fmt.Errorf("the chain is %s: want %s <- %s", chainNames(chain), signingName, rootName)
	}
	if o.CRLs != nil {
		if err := revoked(cert, chain[1], o.CRLs, o.Now); err != nil {
			return err
		}
	}
	return verifyP256(cert.PublicKey, message, signature)
}

func (o *TDXOptions) inTime(issued, next time.Time) error {
	if o.Now.Before(issued) || o.Now.After(next) {
		return fmt.Errorf("it holds from %s to %s", date(issued), date(next))
	}
	return nil
}

// checkCollateral checks what Intel says of this platform today.
func (o *TDXOptions) checkCollateral(c *checks, q *quote, chain []*x509.Certificate) {
	o.checkRevoked(c, chain)
	if o.TCBInfo == nil {
		const reason = "no TCB info of Intel was given: the platform may be out of date"
		c.skip("TCB info", "", reason)
		c.skip("TCB level", "", reason)
		c.skip("TDX module", "", reason)
	} else {
		o.checkTCBInfo(c, q)
	}
	if o.QEIdentity == nil {
		const reason = "no identity of the quoting enclave was given: it may be out of date"
		c.skip("QE identity", "", reason)
		c.skip("QE level", "", reason)
	} else {
		o.checkQEIdentity(c, q)
	}
}

func (o *TDXOptions) checkRevoked(c *checks, chain []*x509.Certificate) {
	const name = "revocation"
	switch {
	case o.CRLs == nil:
		c.skip(name, "", "no revocation list was given")
	case chain == nil:
		c.skip(name, "", "there is no chain to look up")
	default:
		err := revoked(chain[0], chain[1], o.CRLs, o.Now)
		if err == nil {
			err = revoked(chain[1], chain[2], o.CRLs, o.Now)
		}
		c.fault(name, chainNames(chain[:2]), "not revoked", err)
	}
}

// tcbInfo returns the TCB info, if it is Intel's, of today and of this platform.
func (o *TDXOptions) tcbInfo(pck *pcs.PckExtensions) (*pcs.TcbInfo, error) {
	raw, err := o.signedJSON(o.TCBInfo, "tcbInfo")
	if err != nil {
		return nil, err
	}
	var info pcs.TcbInfo
	if err := json.Unmarshal(raw, &info); err != nil {
		return nil, err
	}
	switch {
	case info.ID != "TDX" || info.Version != 3:
		return nil, fmt.Errorf("it is of %q, version %d: want TDX, 3", info.ID, info.Version)
	case !strings.EqualFold(info.Fmspc, pck.FMSPC):
		return nil, fmt.Errorf("it is of FMSPC %s: the platform has %s", info.Fmspc, pck.FMSPC)
	case !strings.EqualFold(info.PceID, pck.PCEID):
		return nil, fmt.Errorf("it is of PCE %s: the platform has %s", info.PceID, pck.PCEID)
	}
	return &info, o.inTime(info.IssueDate, info.NextUpdate)
}

func (o *TDXOptions) checkTCBInfo(c *checks, q *quote) {
	pck, err := pcs.PckCertificateExtensions(q.chain[0])
	var info *pcs.TcbInfo
	if err == nil {
		info, err = o.tcbInfo(pck)
	}
	got := ""
	if info != nil {
		got = fmt.Sprintf("FMSPC %s, evaluation %d, issued %s", info.Fmspc, info.TcbEvaluationDataNumber, date(info.IssueDate))
	}
	c.fault("TCB info", got, "signed by Intel, of this platform, valid at "+date(o.Now), err)
	if err != nil {
		c.skip("TCB level", "", "there is no TCB info to go by")
		c.skip("TDX module", "", "there is no TCB info to go by")
		return
	}
	level, err := platformLevel(info, pck, q.body.TEETCBSVN)
	o.checkLevel(c, "TCB level", level, err)
	o.checkModule(c, info, q)
}

// checkLevel checks the status of a level. Intel lists them from the newest, and
// the first that the platform reaches is its own.
func (o *TDXOptions) checkLevel(c *checks, name string, level *pcs.TcbLevel, err error) {
	accepted := o.AcceptTCB
	if accepted == nil {
		accepted = []string{string(pcs.TcbComponentStatusUpToDate)}
	}
	want := strings.Join(accepted, " or ")
	if err != nil {
		c.fault(name, "", want, err)
		return
	}
	status := string(level.TcbStatus)
	x := c.add(name, fmt.Sprintf("%s, of %s", status, level.TcbDate), want, slices.Contains(accepted, status))
	x.Reason = strings.Join(level.AdvisoryIDs, ", ")
}

// platformLevel returns the level that processor, PCE and TDX module reach.
func platformLevel(info *pcs.TcbInfo, pck *pcs.PckExtensions, tee [16]byte) (*pcs.TcbLevel, error) {
	skip := 0
	if tee[1] > 0 { // the module has its own levels: the first two bytes are its
		skip = 2
	}
	for i := range info.TcbLevels {
		l := &info.TcbLevels[i]
		if reaches(pck.TCB.CPUSvnComponents, l.Tcb.SgxTcbcomponents, 0) && pck.TCB.PCESvn >= l.Tcb.Pcesvn && reaches(tee[:], l.Tcb.TdxTcbcomponents, skip) {
			return l, nil
		}
	}
	return nil, errors.New("the platform reaches no level that Intel supports")
}

// reaches tells whether each number is at least that of the level.
func reaches(got []byte, level []pcs.TcbComponent, skip int) bool {
	if len(got) != len(level) {
		return false
	}
	for i := skip; i < len(got); i++ {
		if got[i] < level[i].Svn {
			return false
		}
	}
	return true
}

// checkModule checks who signed the TDX module and, from 1.5 on, its own level.
func (o *TDXOptions) checkModule(c *checks, info *pcs.TcbInfo, q *quote) {
	const name = "TDX module"
	b := &q.body
	signer, attributes, mask := info.TdxModule.Mrsigner.Bytes, info.TdxModule.Attributes.Bytes, info.TdxModule.AttributesMask.Bytes
	var levels []pcs.TcbLevel
	id := fmt.Sprintf("TDX_%02x", b.TEETCBSVN[1])
	if b.TEETCBSVN[1] > 0 {
		i := slices.IndexFunc(info.TdxModuleIdentities, func(m pcs.TdxModuleIdentity) bool { return m.ID == id })
		if i < 0 {
			c.add(name, id, "one of those that the TCB info names", false)
			return
		}
		m := &info.TdxModuleIdentities[i]
		signer, attributes, mask, levels = m.Mrsigner.Bytes, m.Attributes.Bytes, m.AttributesMask.Bytes, m.TcbLevels
	}
	got := fmt.Sprintf("signer %x, attributes %x", b.MRSignerSEAM[:], b.SEAMAttributes[:])
	want := fmt.Sprintf("signer %x, attributes %x under mask %x", signer, attributes, mask)
	if !bytes.Equal(signer, b.MRSignerSEAM[:]) || !masked(b.SEAMAttributes[:], mask, attributes) {
		c.add(name, got, want, false)
		return
	}
	if levels == nil {
		c.add(name, got, want, true)
		return
	}
	level, err := svnLevel(levels, uint32(b.TEETCBSVN[0]))
	o.checkLevel(c, name, level, err)
}

// masked tells whether value has the wanted bits where mask has ones.
func masked(value, mask, want []byte) bool {
	if len(mask) != len(value) || len(want) != len(value) {
		return false
	}
	for i := range value {
		if value[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}

// svnLevel returns the first level that a security version number reaches.
func svnLevel(levels []pcs.TcbLevel, svn uint32) (*pcs.TcbLevel, error) {
	for i := range levels {
		if levels[i].Tcb.Isvsvn <= svn {
			return &levels[i], nil
		}
	}
	return nil, fmt.Errorf("version %d reaches no level that Intel supports", svn)
}

func (o *TDXOptions) checkQEIdentity(c *checks, q *quote) {
	id, err := o.qeIdentity()
	if err == nil {
		err = matchQE(id, &q.qe)
	}
	c.fault("QE identity", q.enclaveName(), "signed by Intel, of this enclave, valid at "+date(o.Now), err)
	if err != nil {
		c.skip("QE level", fmt.Sprint(q.qe.SVN), "there is no QE identity to go by")
		return
	}
	level, err := svnLevel(id.TcbLevels, uint32(q.qe.SVN))
	o.checkLevel(c, "QE level", level, err)
}

func (o *TDXOptions) qeIdentity() (*pcs.EnclaveIdentity, error) {
	raw, err := o.signedJSON(o.QEIdentity, "enclaveIdentity")
	if err != nil {
		return nil, err
	}
	var id pcs.EnclaveIdentity
	if err := json.Unmarshal(raw, &id); err != nil {
		return nil, err
	}
	if id.ID != "TD_QE" || id.Version != 2 {
		return nil, fmt.Errorf("it is of %q, version %d: want TD_QE, 2", id.ID, id.Version)
	}
	return &id, o.inTime(id.IssueDate, id.NextUpdate)
}

func matchQE(id *pcs.EnclaveIdentity, qe *enclave) error {
	switch {
	case !bytes.Equal(id.Mrsigner.Bytes, qe.MRSigner[:]):
		return fmt.Errorf("the enclave's signer is %x: want %x", qe.MRSigner[:], id.Mrsigner.Bytes)
	case id.IsvProdID != qe.ProdID:
		return fmt.Errorf("the enclave's product is %d: want %d", qe.ProdID, id.IsvProdID)
	case !masked(qe.MiscSelect[:], id.MiscselectMask.Bytes, id.Miscselect.Bytes):
		return fmt.Errorf("the enclave's MISCSELECT is %x: want %x under mask %x", qe.MiscSelect[:], id.Miscselect.Bytes, id.MiscselectMask.Bytes)
	case !masked(qe.Attributes[:], id.AttributesMask.Bytes, id.Attributes.Bytes):
		return fmt.Errorf("the enclave's attributes are %x: want %x under mask %x", qe.Attributes[:], id.Attributes.Bytes, id.AttributesMask.Bytes)
	}
	return nil
}
