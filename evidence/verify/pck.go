package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	tdxverify "github.com/google/go-tdx-guest/verify"
)

// intelRoot is the Intel SGX Root CA, which signs for TDX as well; SHA-256 of the
// certificate 44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3.
//
//go:embed intel-sgx-root.pem
var intelRoot []byte

const (
	rootName    = "Intel SGX Root CA"
	pckName     = "Intel SGX PCK Certificate"
	signingName = "Intel SGX TCB Signing"
)

var pckIssuers = []string{"Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"}

// trusted returns the roots and what stands below them.
func (o *TDXOptions) trusted() []*x509.Certificate {
	if o.Roots != nil {
		return o.Roots
	}
	certs, err := parsePEM(intelRoot)
	if err != nil {
		panic(fmt.Sprintf("verify: the embedded root: %v", err))
	}
	return certs
}

// chainOf returns the chain from a certificate to a root; others may stand
// between.
func (o *TDXOptions) chainOf(cert *x509.Certificate, others []*x509.Certificate) ([]*x509.Certificate, error) {
	trusted, between := pools(o.trusted(), others)
	chains, err := cert.Verify(x509.VerifyOptions{
		Roots: trusted, Intermediates: between, CurrentTime: o.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, err
	}
	return chains[0], nil
}

// pckChain returns the chain of the processor's certificate.
func (o *TDXOptions) pckChain(q *quote) ([]*x509.Certificate, error) {
	leaf := q.chain[0]
	if leaf.Subject.CommonName != pckName {
		return nil, fmt.Errorf("the first certificate is %q: want %q", leaf.Subject.CommonName, pckName)
	}
	chain, err := o.chainOf(leaf, q.chain[1:])
	if err != nil {
		return nil, err
	}
	if len(chain) != 3 || !slices.Contains(pckIssuers, chain[1].Subject.CommonName) || chain[2].Subject.CommonName != rootName {
		return nil, fmt.Errorf("the chain is %s: want %s and %s above", chainNames(chain), strings.Join(pckIssuers, " or "), rootName)
	}
	return chain, nil
}

// verifyP256 checks a signature of r and s, 32 bytes each, big-endian, over the
// SHA-256 of a message.
func verifyP256(key any, message, signature []byte) error {
	pub, ok := key.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return errors.New("the key is not of P-256")
	}
	if len(signature) != ecdsaSize {
		return fmt.Errorf("a signature of %d bytes: want %d", len(signature), ecdsaSize)
	}
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	digest := sha256.Sum256(message)
	if !ecdsa.Verify(pub, digest[:], r, s) {
		return errors.New("the signature is not of this key and these bytes")
	}
	return nil
}

// boundKey is what the quoting enclave puts into its report data to vouch for the
// attestation key.
func (q *quote) boundKey() []byte {
	digest := sha256.Sum256(append(slices.Clone(q.key), q.qeAuth...))
	return append(digest[:], make([]byte, len(q.qe.ReportData)-len(digest))...)
}

func (q *quote) checkSignature() error {
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
	if err != nil {
		return fmt.Errorf("attestation key: %w", err)
	}
	return verifyP256(key, q.signed, q.signature)
}

// The TD quoting enclave of Intel: its signer and its product number. Any enclave
// with the right to it can ask for a PCK signature, so the chain alone does not
// say that a quoting enclave wrote the quote.
const (
	qeSigner  = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	qeProduct = 2
	qeDebug   = 2 // bit of the first byte of an enclave's attributes
)

func (q *quote) enclaveName() string {
	debug := ""
	if q.qe.Attributes[0]&qeDebug != 0 {
		debug = ", debug"
	}
	return fmt.Sprintf("signer %x, product %d%s", q.qe.MRSigner[:], q.qe.ProdID, debug)
}

// checkQuoter checks everything between the root and the body of the quote.
func (o *TDXOptions) checkQuoter(c *checks, q *quote) []*x509.Certificate {
	c.add("quoting enclave's vendor", hex.EncodeToString(q.header.QEVendor[:]), hex.EncodeToString(intelQE[:]), q.header.QEVendor == intelQE)
	want := "a root of Intel, valid at " + date(o.Now)
	if o.Roots != nil {
		want = "a given root, valid at " + date(o.Now)
	}
	chain, err := o.pckChain(q)
	got := chainNames(q.chain[:1])
	if chain != nil {
		got = chainNames(chain)
	}
	c.fault(nameChain, got, want, err).Required = true
	c.fault("quoting enclave's signature", "by "+q.chain[0].Subject.CommonName, "by "+pckName, verifyP256(q.chain[0].PublicKey, q.qeRaw, q.qeSig)).Required = true
	wantQE := fmt.Sprintf("signer %s, product %d", qeSigner, qeProduct)
	c.add("quoting enclave", q.enclaveName(), wantQE, q.enclaveName() == wantQE).Required = true
	c.equal("attestation key", q.boundKey(), q.qe.ReportData[:], "").Required = true
	c.fault("quote signature", "by the attestation key", "by the attestation key", q.checkSignature()).Required = true
	o.checkSecond(c, q, chain)
	return chain
}

// checkSecond asks the other implementation.
func (o *TDXOptions) checkSecond(c *checks, q *quote, chain []*x509.Certificate) {
	const name = "go-tdx-guest"
	switch {
	case q.header.Version != 4:
		c.skip(name, "", "go-tdx-guest 0.3.2 reads quotes of version 4 alone")
	case chain == nil:
		c.skip(name, "", "there is no chain to show it")
	case chain[1].Subject.CommonName != pckIssuers[0]:
		c.skip(name, "", "go-tdx-guest 0.3.2 knows no "+chain[1].Subject.CommonName)
	default:
		roots, _ := pools(o.trusted(), nil)
		now := tdxverify.TimeSet{PckCertChain: o.Now, TcbInfo: o.Now, QeIdentity: o.Now, PckCrl: o.Now, RootCaCrl: o.Now}
		err := tdxverify.RawTdxQuote(bytes.Clone(q.raw), &tdxverify.Options{Now: &now, TrustedRoots: roots})
		c.fault(name, "chain, quoting enclave's report, signatures", "all accepted", err)
	}
}
