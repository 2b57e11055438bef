package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// now is a time at which everything that the tests make is valid.
var now = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Keys are made once: RSA takes its time.
var (
	rsaKeys = sync.OnceValue(func() [2]*rsa.PrivateKey {
		return [2]*rsa.PrivateKey{must(rsa.GenerateKey(rand.Reader, 2048)), must(rsa.GenerateKey(rand.Reader, 2048))}
	})
	p384 = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	p256 = sync.OnceValue(func() (out [6]*ecdsa.PrivateKey) {
		for i := range out {
			out[i] = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		}
		return out
	})
)

// template is a certificate that is valid at now.
func template(serial int64, name pkix.Name, ca bool) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: name, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
		BasicConstraintsValid: ca, IsCA: ca,
	}
	if ca {
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	return c
}

func certify(c, parent *x509.Certificate, public, signer any) *x509.Certificate {
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, parent, public, signer))))
}

// crl is a revocation list that is valid at now.
func crl(issuer *x509.Certificate, signer *ecdsa.PrivateKey, serials ...int64) *x509.RevocationList {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.AddDate(0, -1, 0), NextUpdate: now.AddDate(0, 1, 0)}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: now})
	}
	return must(x509.ParseRevocationList(must(x509.CreateRevocationList(rand.Reader, list, issuer, signer))))
}

// amd stands for AMD: a root, an intermediate and a processor.
type amd struct {
	line, key string // "Milan", "VCEK"
	root, ask *x509.Certificate
	ek        *x509.Certificate
}

func amdName(cn string) pkix.Name {
	return pkix.Name{
		CommonName: cn, Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
		Country: []string{"US"}, Province: []string{"CA"}, Locality: []string{"Santa Clara"},
	}
}

// chipID is that of the processor.
var chipID = func() (out [64]byte) {
	for i := range out {
		out[i] = byte(i + 1)
	}
	return out
}()

// level is its TCB as Milan and Genoa write it: bootloader 4, tee 1, snp 24,
// microcode 219.
var level = [8]byte{4, 1, 0, 0, 0, 0, 24, 219}

// newAMD makes one. change may spoil the certificate of the processor.
func newAMD(line, key string, change func(*x509.Certificate)) *amd {
	a := &amd{line: line, key: key}
	keys := rsaKeys()
	root := template(1, amdName("ARK-"+line), true)
	root.SignatureAlgorithm = x509.SHA384WithRSAPSS
	a.root = certify(root, root, keys[0].Public(), keys[0])
	name := "SEV-" + line
	if key == "VLEK" {
		name = "SEV-VLEK-" + line
	}
	ask := template(2, amdName(name), true)
	ask.SignatureAlgorithm = x509.SHA384WithRSAPSS
	a.ask = certify(ask, a.root, keys[1].Public(), keys[0])
	ek := template(0, amdName("SEV-"+key), false)
	ek.SignatureAlgorithm = x509.SHA384WithRSAPSS
	ek.ExtraExtensions = amdProfile(line, key)
	if change != nil {
		change(ek)
	}
	a.ek = certify(ek, a.ask, p384().Public(), keys[1])
	return a
}

// amdProfile makes the extensions of AMD 57230 with level and chipID.
func amdProfile(line, key string) (out []pkix.Extension) {
	add := func(value []byte, id ...int) {
		out = append(out, pkix.Extension{Id: append(slices.Clone(amdExtensions), id...), Value: value})
	}
	add(must(asn1.Marshal(0)), 1)
	product := line
	if key == "VCEK" && line != Turin {
		product += "-B1"
	}
	add(must(asn1.MarshalWithParams(product, "ia5")), 2)
	// bootloader, tee, snp, microcode; then those that are not in use
	levels := map[int]int{1: 4, 2: 1, 3: 24, 8: 219, 5: 0, 6: 0, 7: 0}
	if line == Turin {
		levels[9] = 7 // fmc
	} else {
		levels[4] = 0
	}
	for i := 1; i <= 9; i++ {
		if n, ok := levels[i]; ok {
			add(must(asn1.Marshal(n)), 3, i)
		}
	}
	switch {
	case key == "VLEK":
		add(must(asn1.MarshalWithParams("a cloud", "ia5")), 5)
	case line == Turin:
		add(chipID[:8], 4)
	default:
		add(chipID[:], 4)
	}
	return out
}

func (a *amd) options() SNPOptions {
	return SNPOptions{Now: now, Roots: []*x509.Certificate{a.root}, Certs: []*x509.Certificate{a.ek, a.ask}}
}

// fill writes a value that no other field has.
func fill(b []byte, x byte) {
	for i := range b {
		b[i] = x
	}
}

// report makes one of version 3 and signs it. change may spoil it before.
func (a *amd) report(change func(b []byte)) []byte {
	b := make([]byte, ReportSize)
	le := binary.LittleEndian
	le.PutUint32(b[0:], 3)
	le.PutUint32(b[4:], 6)       // guest SVN
	le.PutUint64(b[8:], 0x30000) // SMT
	fill(b[0x10:0x20], 0x11)     // family ID
	fill(b[0x20:0x30], 0x12)     // image ID
	le.PutUint32(b[0x30:], 2)    // VMPL
	le.PutUint32(b[0x34:], 1)
	le.PutUint64(b[0x40:], 1)
	if a.key == "VLEK" {
		le.PutUint32(b[0x48:], 1<<2)
	}
	fill(b[0x50:0x90], 0x13)
	fill(b[0x90:0xc0], 0x14)
	fill(b[0xc0:0xe0], 0x15)
	fill(b[0xe0:0x110], 0x16)
	fill(b[0x110:0x140], 0x17)
	fill(b[0x160:0x180], 0xff)
	copy(b[0x188:], map[string]string{Milan: "\x19\x01\x01", Genoa: "\x19\x11\x01", Turin: "\x1a\x02\x00"}[a.line])
	copy(b[0x1a0:0x1e0], chipID[:])
	tcb := level
	if a.line == Turin {
		tcb = [8]byte{7, 4, 1, 24, 0, 0, 0, 219}
		clear(b[0x1a8:0x1e0])
	}
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} {
		copy(b[at:], tcb[:])
	}
	if change != nil {
		change(b)
	}
	signReport(b, p384())
	return b
}

func signReport(b []byte, key *ecdsa.PrivateKey) {
	digest := sha512.Sum384(b[:signedSize])
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		panic(err)
	}
	for i, x := range []*big.Int{r, s} { // little-endian
		part := x.FillBytes(make([]byte, 72))
		slices.Reverse(part)
		copy(b[signedSize+72*i:], part)
	}
}

// table writes certificates as a host hands them to a guest.
func table(certs ...*x509.Certificate) []byte {
	head := make([]byte, (len(certs)+1)*entrySize)
	var data []byte
	for i, c := range certs {
		e := head[i*entrySize:]
		copy(e, must(hex.DecodeString(tableGUIDs[i])))
		binary.LittleEndian.PutUint32(e[16:], uint32(len(head)+len(data)))
		binary.LittleEndian.PutUint32(e[20:], uint32(len(c.Raw)))
		data = append(data, c.Raw...)
	}
	return append(head, data...)
}

// intel stands for Intel: a root, the processor's and the TCB's certificates, and
// a quoting enclave.
type intel struct {
	root, ca, pck, signing *x509.Certificate
}

// Keys of intel by use.
const (
	keyRoot = iota
	keyCA
	keyPCK
	keySigning
	keyQuote
	keyOther
)

func newIntel() *intel {
	name := func(cn string) pkix.Name {
		return pkix.Name{CommonName: cn, Organization: []string{"Intel Corporation"}}
	}
	k, in := p256(), &intel{}
	root := template(1, name(rootName), true)
	in.root = certify(root, root, k[keyRoot].Public(), k[keyRoot])
	in.ca = certify(template(2, name(pckIssuers[0]), true), in.root, k[keyCA].Public(), k[keyRoot])
	pck := template(3, name(pckName), false)
	pck.KeyUsage = x509.KeyUsageDigitalSignature
	pck.SubjectKeyId = []byte{1}
	pck.BasicConstraintsValid = true
	pck.CRLDistributionPoints = []string{"https://example.com/crl"}
	pck.ExtraExtensions = []pkix.Extension{sgxExtension()}
	in.pck = certify(pck, in.ca, k[keyPCK].Public(), k[keyCA])
	in.signing = certify(template(4, name(signingName), false), in.root, k[keySigning].Public(), k[keyRoot])
	return in
}

// sgxExtension is that of a PCK certificate: FMSPC 00112233aabb, PCE 0000, every
// component of the CPU's SVN 5, PCE SVN 11.
func sgxExtension() pkix.Extension {
	type pair struct {
		ID    asn1.ObjectIdentifier
		Value any
	}
	oid := func(id ...int) asn1.ObjectIdentifier {
		return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, id...)
	}
	raw := func(v any) asn1.RawValue { return asn1.RawValue{FullBytes: must(asn1.Marshal(v))} }
	var parts []asn1.RawValue
	for i := 1; i <= 16; i++ {
		parts = append(parts, raw(pair{oid(2, i), 5}))
	}
	parts = append(parts, raw(pair{oid(2, 17), 11}), raw(pair{oid(2, 18), make([]byte, 16)}))
	all := []asn1.RawValue{
		raw(pair{oid(1), make([]byte, 16)}),
		raw(struct {
			ID    asn1.ObjectIdentifier
			Value []asn1.RawValue
		}{oid(2), parts}),
		raw(pair{oid(3), []byte{0, 0}}),
		raw(pair{oid(4), []byte{0, 0x11, 0x22, 0x33, 0xaa, 0xbb}}),
		raw(pair{oid(5), asn1.Enumerated(0)}),
	}
	return pkix.Extension{Id: oid(), Value: must(asn1.Marshal(all))}
}

func sign256(key *ecdsa.PrivateKey, message []byte) []byte {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		panic(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// spoil changes parts of a quote before they are signed.
type spoil struct {
	header, body, qe func(b []byte)
	pckSigns         int // key, keyPCK by default
	quoteSigns       int // keyQuote by default
	auth             []byte
}

// quote makes one and signs it; body is 584 or 648 bytes, for version 4 or 5.
func (in *intel) quote(version int, s spoil) []byte {
	k, le := p256(), binary.LittleEndian
	if s.pckSigns == 0 {
		s.pckSigns = keyPCK
	}
	if s.quoteSigns == 0 {
		s.quoteSigns = keyQuote
	}
	b := make([]byte, quoteHeaderSize)
	le.PutUint16(b, uint16(version))
	le.PutUint16(b[2:], 2)
	le.PutUint32(b[4:], 0x81)
	copy(b[12:], intelQE[:])
	if s.header != nil {
		s.header(b)
	}
	body := make([]byte, quoteBodySize)
	if version == 5 {
		body = make([]byte, quoteBody15Size)
		b = le.AppendUint32(le.AppendUint16(b, 3), quoteBody15Size)
	}
	copy(body, []byte{5, 1, 6, 0})
	le.PutUint64(body[0x78:], 1<<28)
	le.PutUint64(body[0x80:], 0xe7)
	for i, at := range []int{0x88, 0xb8, 0xe8, 0x118, 0x148, 0x178, 0x1a8, 0x1d8} { // MRTD, 3 configured, RTMRs
		fill(body[at:at+48], byte(0x21+i))
	}
	fill(body[0x208:0x248], 0x29)
	if s.body != nil {
		s.body(body)
	}
	b = append(b, body...)
	pub := must(k[keyQuote].PublicKey.Bytes())[1:]
	sig := append(sign256(k[s.quoteSigns], b), pub...)
	cert := in.certification(pub, s)
	sig = append(le.AppendUint32(le.AppendUint16(sig, certifiedByQE), uint32(len(cert))), cert...)
	return append(le.AppendUint32(b, uint32(len(sig))), sig...)
}

// certification is the quoting enclave's report with its signature and chain.
func (in *intel) certification(pub []byte, s spoil) []byte {
	le := binary.LittleEndian
	auth := []byte("thirty-two bytes of its own data")
	qe := make([]byte, enclaveSize)
	copy(qe[0x80:], must(hex.DecodeString(qeSigner)))
	le.PutUint16(qe[0x100:], qeProduct)
	le.PutUint16(qe[0x102:], 4)
	digest := sha256.Sum256(append(slices.Clone(pub), auth...))
	copy(qe[0x140:], digest[:])
	if s.qe != nil {
		s.qe(qe)
	}
	if s.auth != nil {
		auth = s.auth
	}
	out := append(slices.Clone(qe), sign256(p256()[s.pckSigns], qe)...)
	out = append(le.AppendUint16(out, uint16(len(auth))), auth...)
	var chain []byte
	for _, c := range []*x509.Certificate{in.pck, in.ca, in.root} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return append(le.AppendUint32(le.AppendUint16(out, certifiedByPCK), uint32(len(chain))), chain...)
}

func (in *intel) options() TDXOptions {
	return TDXOptions{Now: now, Roots: []*x509.Certificate{in.root}, Certs: []*x509.Certificate{in.signing}}
}

// signed wraps a document as the PCS does.
func signed(member string, v any, key int) []byte {
	return signedBytes(member, must(json.Marshal(v)), key)
}

func signedBytes(member string, body []byte, key int) []byte {
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, member, body, sign256(p256()[key], body))
}

type object = map[string]any

func components(n int) (out []object) {
	for range 16 {
		out = append(out, object{"svn": n})
	}
	return out
}

// tcbInfo is what Intel says of the platform: two levels, of which the newer asks
// for components of 5 and PCE 11, and a module 1 with two levels.
func tcbInfo() object {
	status := func(tcb object, s string) object {
		return object{"tcb": tcb, "tcbDate": "2026-02-11T00:00:00Z", "tcbStatus": s, "advisoryIDs": []string{"INTEL-SA-1"}}
	}
	zero48, zero8, ones8 := hex.EncodeToString(make([]byte, 48)), "0000000000000000", "FFFFFFFFFFFFFFFF"
	tdx := components(0)
	tdx[2]["svn"] = 6
	return object{
		"id": "TDX", "version": 3, "issueDate": now.AddDate(0, 0, -5), "nextUpdate": now.AddDate(0, 0, 25),
		"fmspc": "00112233AABB", "pceId": "0000",
		"tdxModule": object{"mrsigner": zero48, "attributes": zero8, "attributesMask": ones8},
		"tdxModuleIdentities": []object{{"id": "TDX_01", "mrsigner": zero48, "attributes": zero8, "attributesMask": ones8, "tcbLevels": []object{
			status(object{"isvsvn": 5}, "UpToDate"), status(object{"isvsvn": 2}, "OutOfDate"),
		}}},
		"tcbLevels": []object{
			status(object{"sgxtcbcomponents": components(5), "pcesvn": 11, "tdxtcbcomponents": tdx}, "UpToDate"),
			status(object{"sgxtcbcomponents": components(2), "pcesvn": 5, "tdxtcbcomponents": components(0)}, "OutOfDate"),
		},
	}
}

func qeIdentity() object {
	return object{
		"id": "TD_QE", "version": 2, "issueDate": now.AddDate(0, 0, -5), "nextUpdate": now.AddDate(0, 0, 25),
		"miscselect": "00000000", "miscselectMask": "FFFFFFFF", "mrsigner": qeSigner, "isvprodid": 2,
		"attributes": "00000000000000000000000000000000", "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
		"tcbLevels": []object{
			{"tcb": object{"isvsvn": 4}, "tcbDate": "2026-02-11T00:00:00Z", "tcbStatus": "UpToDate"},
			{"tcb": object{"isvsvn": 1}, "tcbDate": "2021-02-11T00:00:00Z", "tcbStatus": "OutOfDate"},
		},
	}
}
