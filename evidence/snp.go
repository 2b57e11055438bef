package evidence

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// SNPReportSize is the size of an SNP attestation report, in bytes.
const SNPReportSize = 0x4a0

// SNP is the evidence of an SNP guest: the report's bytes, as the processor signed them.
// On the wire its fields are apart, in the form that the Rust crate sev gives them.
type SNP struct {
	Report []byte    // SNPReportSize bytes; AMD 56860, ATTESTATION_REPORT
	Certs  []SNPCert // those the host gave, in its order; nil for none
}

// An SNPCert is an entry of the table that an extended guest request returns.
type SNPCert struct {
	Type string // "VCEK", "VLEK", "ASK", "ARK", "CRL", or a GUID
	Data []byte // X.509, DER
}

// certTypes are the types of entries by their GUIDs: AMD 56421, guest request.
var certTypes = map[string]string{
	"63da758d-e664-4564-adc5-f4b93be8accd": "VCEK",
	"a8074bc2-a25a-483e-aae6-39c045a0b8a1": "VLEK",
	"4ab7b379-bbac-4fe4-a02f-05aef327c782": "ASK",
	"c0b406a4-a803-4952-9743-3fb6014cd0ae": "ARK",
	"92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "CRL",
}

// Bounds on a table of certificates.
const (
	maxCerts     = 16
	maxCertTable = 256 << 10 // bytes
	certEntry    = 24        // GUID, offset and length; little-endian
)

// NewSNP takes a report and the table of certificates that came with it, which may be
// empty.
func NewSNP(report, table []byte) (*SNP, error) {
	if len(report) != SNPReportSize {
		return nil, fmt.Errorf("evidence: snp: report of %d bytes, want %d", len(report), SNPReportSize)
	}
	certs, err := parseCertTable(table)
	if err != nil {
		return nil, fmt.Errorf("evidence: snp: certificate table: %w", err)
	}
	return &SNP{Report: report, Certs: certs}, nil
}

func parseCertTable(b []byte) (out []SNPCert, err error) {
	if len(b) > maxCertTable {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(b), maxCertTable)
	}
	for at := 0; ; at += certEntry {
		if !slices.ContainsFunc(b[at:], func(c byte) bool { return c != 0 }) {
			return out, nil // an empty table, or the end of one that fills its pages
		}
		if len(b)-at < certEntry || len(out) > maxCerts {
			return nil, fmt.Errorf("no end after %d entries", at/certEntry)
		}
		e := b[at:][:certEntry]
		offset, length := int64(binary.LittleEndian.Uint32(e[16:])), int64(binary.LittleEndian.Uint32(e[20:]))
		if [certEntry]byte(e) == [certEntry]byte{} {
			return out, nil
		}
		if offset+length > int64(len(b)) {
			return nil, fmt.Errorf("entry %d: offset %d, length %d: the table has %d bytes", at/certEntry, offset, length, len(b))
		}
		guid := guidText([16]byte(e))
		kind := certTypes[guid]
		if kind == "" {
			kind = guid
		}
		if length > 0 {
			out = append(out, SNPCert{kind, b[offset:][:length:length]})
		}
	}
}

// guidText writes a GUID whose bytes are stored as RFC 4122 writes them.
func guidText(g [16]byte) string {
	s := hex.EncodeToString(g[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Table is the table of certificates, as the host would hand it out; nil for none.
func (s *SNP) Table() ([]byte, error) {
	if s.Certs == nil {
		return nil, nil
	}
	at := certEntry * (len(s.Certs) + 1)
	head, data := []byte{}, []byte{}
	for _, c := range s.Certs {
		guid, err := c.guid()
		if err != nil {
			return nil, err
		}
		head = append(head, guid[:]...)
		head = binary.LittleEndian.AppendUint32(head, uint32(at+len(data)))
		head = binary.LittleEndian.AppendUint32(head, uint32(len(c.Data)))
		data = append(data, c.Data...)
	}
	return append(append(head, make([]byte, certEntry)...), data...), nil
}

func (c *SNPCert) guid() (out [16]byte, err error) {
	text := c.Type
	for guid, kind := range certTypes {
		if kind == c.Type {
			text = guid
		}
	}
	b, err := hex.DecodeString(removeDashes(text))
	if err != nil || len(b) != len(out) || guidText([16]byte(b)) != text {
		return out, fmt.Errorf("evidence: snp: certificate of type %.40q: want a known one or a GUID", c.Type)
	}
	return [16]byte(b), nil
}

func removeDashes(s string) string {
	return string(slices.DeleteFunc([]byte(s), func(c byte) bool { return c == '-' }))
}

type snpWire struct {
	Report snpReportWire  `json:"attestation_report"`
	Certs  *[]snpCertWire `json:"cert_chain"`
}

// snpCertWire is CertTableEntry of crate sev: the type is text, or {"OTHER": GUID}.
type snpCertWire struct {
	Type json.RawMessage `json:"cert_type"`
	Data numbers         `json:"data"`
}

const otherCert = "OTHER"

func (c *SNPCert) wire() (w snpCertWire, err error) {
	if _, err := c.guid(); err != nil {
		return w, err
	}
	var kind any = c.Type
	if len(c.Type) == 36 { // a GUID
		kind = map[string]string{otherCert: c.Type}
	}
	w.Data = c.Data
	w.Type, err = json.Marshal(kind)
	return w, err
}

func (w *snpCertWire) cert() (SNPCert, error) {
	c := SNPCert{Data: w.Data}
	other := map[string]string{}
	if json.Unmarshal(w.Type, &c.Type) != nil {
		if json.Unmarshal(w.Type, &other) != nil || len(other) != 1 || other[otherCert] == "" {
			return c, errors.New("evidence: snp: cert_type: want text, or a GUID")
		}
		c.Type = other[otherCert]
	}
	_, err := c.guid()
	return c, err
}

// Marshal writes the evidence. It refuses a report with a field that the form has no
// place for: whoever read it would see another one, and the signature were wrong.
func (s *SNP) Marshal() ([]byte, error) {
	var w snpWire
	if err := w.Report.read(s.Report); err != nil {
		return nil, err
	}
	if s.Certs != nil {
		certs := make([]snpCertWire, len(s.Certs))
		for i := range s.Certs {
			var err error
			if certs[i], err = s.Certs[i].wire(); err != nil {
				return nil, err
			}
		}
		w.Certs = &certs
	}
	return marshal("snp", &w)
}

// ParseSNP decodes the evidence of an SNP guest and puts the report together again.
func ParseSNP(primary []byte) (*SNP, error) {
	w := snpWire{Report: newSNPReport()}
	if err := parse("snp", primary, MaxEvidence, &w); err != nil {
		return nil, err
	}
	s := &SNP{}
	var err error
	if s.Report, err = w.Report.bytes(); err != nil {
		return nil, err
	}
	if w.Certs == nil {
		return s, nil
	}
	if len(*w.Certs) > maxCerts {
		return nil, fmt.Errorf("evidence: snp: %d certificates, want at most %d", len(*w.Certs), maxCerts)
	}
	s.Certs = []SNPCert{}
	for _, c := range *w.Certs {
		cert, err := c.cert()
		if err != nil {
			return nil, err
		}
		s.Certs = append(s.Certs, cert)
	}
	return s, nil
}
