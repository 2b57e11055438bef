package verify

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// A quote is, in this order: header, from version 5 on a descriptor of the body,
// body, the length of the rest, and the rest: signature and attestation key of
// the quoting enclave, and a report of that enclave with the PCK certificates
// that vouch for it. Intel TDX DCAP Quoting Library API, A.3 and A.4. All
// little-endian.
const (
	quoteHeaderSize = 48
	quoteBodySize   = 584 // of TDX 1.0; 1.5 appends 64 bytes
	quoteBody15Size = 648
	enclaveSize     = 384
	ecdsaSize       = 64 // r and s, or x and y, of P-256, big-endian
	maxChain        = 64 << 10
)

// quoteHeader is signed.
type quoteHeader struct {
	Version  uint16 // 4 or 5
	KeyType  uint16 // 2: ECDSA P-256
	TEE      uint32 // 0x81: TDX
	_        [4]byte
	QEVendor [16]byte
	UserData [20]byte
}

// quoteBody is signed.
type quoteBody struct {
	TEETCBSVN      [16]byte
	MRSEAM         [48]byte // the TDX module
	MRSignerSEAM   [48]byte // zero: Intel
	SEAMAttributes [8]byte
	Attributes     uint64
	XFAM           uint64
	MRTD           [48]byte
	MRConfigID     [48]byte
	MROwner        [48]byte
	MROwnerConfig  [48]byte
	RTMR           [4][48]byte
	ReportData     [64]byte
}

// quoteBody15 follows in a TDX 1.5 body.
type quoteBody15 struct {
	TEETCBSVN2  [16]byte // of the TDX module that runs now, if it was updated
	MRServiceTD [48]byte // a TD that may migrate this one; zero: none
}

// enclave is an SGX report, that of the quoting enclave.
type enclave struct {
	CPUSVN     [16]byte
	MiscSelect [4]byte
	_          [28]byte
	Attributes [16]byte
	MREnclave  [32]byte
	_          [32]byte
	MRSigner   [32]byte
	_          [96]byte
	ProdID     uint16
	SVN        uint16
	_          [60]byte
	ReportData [64]byte
}

type quote struct {
	header quoteHeader
	body   quoteBody
	later  *quoteBody15 // nil: TDX 1.0
	qe     enclave

	raw       []byte // without what is behind it
	signed    []byte // by key
	signature []byte
	key       []byte // the attestation key, made by the quoting enclave
	qeRaw     []byte // signed by the PCK
	qeSig     []byte
	qeAuth    []byte // the quoting enclave vouches for key and this
	chain     []*x509.Certificate
}

const objectQuote = "quote"

// cut is a cursor over a quote.
type cut struct {
	b  []byte
	at int
}

func (c *cut) take(n int, what string) ([]byte, error) {
	if n < 0 || n > len(c.b)-c.at {
		return nil, malformed(objectQuote, c.at, "%s: %d bytes: %d are left", what, n, len(c.b)-c.at)
	}
	out := c.b[c.at : c.at+n : c.at+n]
	c.at += n
	return out, nil
}

func (c *cut) decode(v any, what string) error {
	b, err := c.take(binary.Size(v), what)
	if err != nil {
		return err
	}
	if _, err := binary.Decode(b, binary.LittleEndian, v); err != nil {
		return malformed(objectQuote, c.at-len(b), "%s: %v", what, err)
	}
	return nil
}

// parseQuote reads a quote. Behind it only zero bytes may follow, as in a buffer
// of fixed size.
func parseQuote(b []byte) (*quote, error) {
	q, c := &quote{}, &cut{b: b}
	if err := q.parseHeader(c); err != nil {
		return nil, err
	}
	if err := q.parseBody(c); err != nil {
		return nil, err
	}
	q.signed = b[:c.at]
	var size uint32
	if err := c.decode(&size, "length of the signature data"); err != nil {
		return nil, err
	}
	start := c.at
	data, err := c.take(int(size), "signature data")
	if err != nil {
		return nil, err
	}
	q.raw = b[:c.at]
	if i := notZero(b[c.at:]); i >= 0 {
		return nil, malformed(objectQuote, c.at+i, "byte %#x behind the quote: want nothing, or zeros", b[c.at+i])
	}
	return q, q.parseSignature(&cut{b: b[:start+len(data)], at: start})
}

func (q *quote) parseHeader(c *cut) error {
	if err := c.decode(&q.header, "header"); err != nil {
		return err
	}
	switch h := q.header; {
	case h.Version != 4 && h.Version != 5:
		return malformed(objectQuote, 0, "version %d: want 4 or 5", h.Version)
	case h.KeyType != 2:
		return malformed(objectQuote, 2, "attestation key type %d: want 2, ECDSA P-256", h.KeyType)
	case h.TEE != 0x81:
		return malformed(objectQuote, 4, "TEE type %#x: want 0x81, TDX", h.TEE)
	}
	return nil
}

func (q *quote) parseBody(c *cut) error {
	size := uint32(quoteBodySize)
	if q.header.Version == 5 {
		var d struct {
			Type uint16 // 2: TDX 1.0, 3: TDX 1.5
			Size uint32
		}
		if err := c.decode(&d, "body descriptor"); err != nil {
			return err
		}
		want := map[uint16]uint32{2: quoteBodySize, 3: quoteBody15Size}[d.Type]
		if want == 0 || d.Size != want {
			return malformed(objectQuote, c.at-6, "body of type %d and %d bytes: want 2 and %d, or 3 and %d", d.Type, d.Size, quoteBodySize, quoteBody15Size)
		}
		size = d.Size
	}
	if err := c.decode(&q.body, "body"); err != nil {
		return err
	}
	if size == quoteBodySize {
		return nil
	}
	q.later = &quoteBody15{}
	return c.decode(q.later, "body of TDX 1.5")
}

// Kinds of certification data.
const (
	certifiedByPCK = 5 // PCK certificates in PEM
	certifiedByQE  = 6 // a report of the quoting enclave, and what certifies it
)

// certification reads a kind and a length, which has to be that of the rest.
func (c *cut) certification(want uint16, what string) error {
	var d struct {
		Type uint16
		Size uint32
	}
	at := c.at
	if err := c.decode(&d, what); err != nil {
		return err
	}
	if d.Type != want {
		return malformed(objectQuote, at, "%s: type %d: want %d", what, d.Type, want)
	}
	if left := len(c.b) - c.at; int64(d.Size) != int64(left) {
		return malformed(objectQuote, at+2, "%s: %d bytes: %d are left", what, d.Size, left)
	}
	return nil
}

func (q *quote) parseSignature(c *cut) (err error) {
	if q.signature, err = c.take(ecdsaSize, "signature"); err != nil {
		return err
	}
	if q.key, err = c.take(ecdsaSize, "attestation key"); err != nil {
		return err
	}
	if err := c.certification(certifiedByQE, "certification data"); err != nil {
		return err
	}
	start := c.at
	if err := c.decode(&q.qe, "report of the quoting enclave"); err != nil {
		return err
	}
	q.qeRaw = c.b[start:c.at]
	if q.qeSig, err = c.take(ecdsaSize, "signature of the quoting enclave's report"); err != nil {
		return err
	}
	var size uint16
	if err := c.decode(&size, "length of the quoting enclave's data"); err != nil {
		return err
	}
	if q.qeAuth, err = c.take(int(size), "quoting enclave's data"); err != nil {
		return err
	}
	if err := c.certification(certifiedByPCK, "PCK certificates"); err != nil {
		return err
	}
	if len(c.b)-c.at > maxChain {
		return malformed(objectQuote, c.at, "PCK certificates: %d bytes: want at most %d", len(c.b)-c.at, maxChain)
	}
	if q.chain, err = parsePEM(c.b[c.at:]); err != nil {
		return malformed(objectQuote, c.at, "PCK certificates: %v", err)
	}
	return nil
}

// attributeBits are those of TD attributes: Intel TDX Module Base Architecture
// Specification, ATTRIBUTES.
var attributeBits = map[int]string{
	0: "DEBUG", 4: "HGS_PLUS_PROF", 5: "PERF_PROF", 6: "PMT_PROF", 16: "ICSSD", 27: "LASS", 28: "SEPT_VE_DISABLE",
	29: "MIGRATABLE", 30: "PKS", 31: "KL", 62: "TPA", 63: "PERFMON",
}

// untrusted are the attributes of which any makes a TD untrusted: the TUD group.
const untrusted = 0xff

func describeAttributes(v uint64) string { return orNone(bitNames(v, attributeBits)) }

// xfamBits are those of XFAM, as of XCR0 and IA32_XSS.
var xfamBits = map[int]string{
	0: "X87", 1: "SSE", 2: "AVX", 5: "AVX512 masks", 6: "AVX512 high ZMM", 7: "AVX512 high 16 ZMM", 8: "PT", 9: "PK",
	10: "ENQCMD", 11: "CET user", 12: "CET supervisor", 13: "HDC", 14: "UINTR", 15: "LBR", 16: "HWP", 17: "AMX tile config", 18: "AMX tile data", 19: "APX",
}

func describeXFAM(v uint64) string { return orNone(bitNames(v, xfamBits)) }

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// intelQE is the vendor of the quoting enclave, as a GUID.
var intelQE = [16]byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}

func (q *quote) String() string {
	module := "1.0"
	if q.later != nil {
		module = "1.5"
	}
	return fmt.Sprintf("quote version %d, TDX %s, TEE TCB SVN %s", q.header.Version, module, hex.EncodeToString(q.body.TEETCBSVN[:]))
}
