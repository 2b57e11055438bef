package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-sev-guest/proto/sevsnp"
	sevverify "github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

// endorsement is what AMD certifies of the key that signs reports: AMD 57230,
// VCEK and VLEK certificates.
type endorsement struct {
	cert *x509.Certificate
	line string
	hwid []byte // of the chip; nil for a VLEK
	csp  string // the cloud that a VLEK was given to
	tcb  tcb
}

var amdExtensions = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

// splBytes says where a security patch level (the last number of its OID) stands
// in a TCB_VERSION.
func splBytes(line string) map[int]int {
	if line == Turin {
		return map[int]int{9: 0, 1: 1, 2: 2, 3: 3, 5: 4, 6: 5, 7: 6, 8: 7}
	}
	return map[int]int{1: 0, 2: 1, 4: 2, 5: 3, 6: 4, 7: 5, 3: 6, 8: 7}
}

// parseEndorsement reads a certificate of the kind that key names.
func parseEndorsement(cert *x509.Certificate, key string) (*endorsement, error) {
	e := &endorsement{cert: cert, line: issuerLine(cert, key)}
	if !slices.Contains(Lines, e.line) {
		return nil, fmt.Errorf("issuer is %q: want SEV- or SEV-VLEK- and one of %s", cert.Issuer.CommonName, strings.Join(Lines, ", "))
	}
	e.tcb.line = e.line
	levels, seen := splBytes(e.line), map[int]bool{}
	for _, x := range cert.Extensions {
		if len(x.Id) < len(amdExtensions)+1 || !x.Id[:len(amdExtensions)].Equal(amdExtensions) {
			continue
		}
		if err := e.extension(x.Id[len(amdExtensions):], x.Value, levels, seen); err != nil {
			return nil, fmt.Errorf("extension %v: %w", x.Id, err)
		}
	}
	for spl := range levels {
		if !seen[spl] {
			return nil, fmt.Errorf("extension %v.3.%d is missing", amdExtensions, spl)
		}
	}
	want := 0
	if key == "VCEK" {
		want = 64
		if e.line == Turin {
			want = 8
		}
	}
	if len(e.hwid) != want {
		return nil, fmt.Errorf("hardware ID of %d bytes: want %d", len(e.hwid), want)
	}
	return e, nil
}

// issuerLine returns the product line that a certificate's issuer names.
func issuerLine(cert *x509.Certificate, key string) string {
	prefix := "SEV-"
	if key == "VLEK" {
		prefix = "SEV-VLEK-"
	}
	line, _ := strings.CutPrefix(cert.Issuer.CommonName, prefix)
	return line
}

// extension reads one; id is the rest of its OID.
func (e *endorsement) extension(id []int, value []byte, levels map[int]int, seen map[int]bool) error {
	switch {
	case len(id) == 2 && id[0] == 3:
		i, ok := levels[id[1]]
		if !ok {
			return fmt.Errorf("a %s has no such security patch level", e.line)
		}
		var n int
		if rest, err := asn1.Unmarshal(value, &n); err != nil || len(rest) > 0 || n < 0 || n > 255 {
			return fmt.Errorf("%x: want an integer from 0 to 255", value)
		}
		seen[id[1]] = true
		e.tcb.raw[i] = byte(n)
	case len(id) == 1 && id[0] == 4:
		// AMD writes the bytes without an ASN.1 tag around them.
		e.hwid = value
		if len(value) != 8 && len(value) != 64 {
			if rest, err := asn1.Unmarshal(value, &e.hwid); err != nil || len(rest) > 0 {
				return fmt.Errorf("%x: want a hardware ID", value)
			}
		}
	case len(id) == 1 && id[0] == 5:
		if rest, err := asn1.UnmarshalWithParams(value, &e.csp, "ia5"); err != nil || len(rest) > 0 {
			return fmt.Errorf("%x: want the name of a cloud provider", value)
		}
	}
	return nil
}

// amdRoots returns AMD's own certificates of a product line, ASK or ASVK and ARK,
// as go-sev-guest carries them.
func amdRoots(line, key string) []*x509.Certificate {
	bundle := map[string][]byte{
		Milan + "VCEK": trust.AskArkMilanVcekBytes, Milan + "VLEK": trust.AskArkMilanVlekBytes,
		Genoa + "VCEK": trust.AskArkGenoaVcekBytes, Genoa + "VLEK": trust.AskArkGenoaVlekBytes,
		Turin + "VCEK": trust.AskArkTurinVcekBytes, Turin + "VLEK": trust.AskArkTurinVlekBytes,
	}[line+key]
	certs, err := parsePEM(bundle)
	if err != nil {
		panic(fmt.Sprintf("verify: the certificates of go-sev-guest for %s: %v", line, err))
	}
	return certs
}

// verifyChain returns the chain from the endorsement up to a root.
func (o *SNPOptions) verifyChain(e *endorsement, key string) ([]*x509.Certificate, error) {
	roots := o.Roots
	if roots == nil {
		roots = amdRoots(e.line, key)
	}
	trusted, between := pools(roots, o.Certs)
	chains, err := e.cert.Verify(x509.VerifyOptions{
		Roots: trusted, Intermediates: between, CurrentTime: o.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		// AMD has one certificate between, and it is told apart by name alone.
		if len(chain) == 3 && chain[1].Subject.CommonName == e.cert.Issuer.CommonName && chain[2].Subject.CommonName == "ARK-"+e.line {
			return chain, nil
		}
	}
	return nil, fmt.Errorf("the chain is %s: want %s and ARK-%s above", chainNames(chains[0]), e.cert.Issuer.CommonName, e.line)
}

// checkSignature checks that a certificate's key signed the report.
func checkSignature(raw []byte, cert *x509.Certificate) error {
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P384() {
		return errors.New("the certificate has no P-384 key")
	}
	return sevverify.SnpReportSignature(raw[:ReportSize], cert)
}

// goSEVGuest asks the other implementation for its opinion on chain, profile of
// the certificate and signature.
func goSEVGuest(raw []byte, e *endorsement, chain []*x509.Certificate, now time.Time) error {
	proto, err := abi.ReportToProto(raw[:ReportSize])
	if err != nil {
		return err
	}
	root := &trust.AMDRootCerts{ProductLine: e.line, ProductCerts: &trust.ProductCerts{Ask: chain[1], Asvk: chain[1], Ark: chain[2]}}
	return sevverify.SnpAttestation(
		&sevsnp.Attestation{Report: proto, CertificateChain: &sevsnp.CertificateChain{VcekCert: e.cert.Raw, VlekCert: e.cert.Raw}},
		&sevverify.Options{DisableCertFetching: true, Now: now, TrustedRoots: map[string][]*trust.AMDRootCerts{e.line: {root}}},
	)
}

// goSEVGuestReads tells why go-sev-guest 0.15.0 cannot read this evidence, ""
// when it can.
func goSEVGuestReads(r *report, e *endorsement) string {
	if e.line == Turin {
		return "go-sev-guest 0.15.0 does not know the certificates of a Turin"
	}
	if r.Version >= 3 {
		if line := kds.ProductLineFromFms(abi.FmsToCpuid1Eax(r.CPUID[0], r.CPUID[1], r.CPUID[2])); line != e.line {
			return fmt.Sprintf("go-sev-guest 0.15.0 does not know family %#x, model %#x", r.CPUID[0], r.CPUID[1])
		}
	}
	return ""
}

// revoked looks for a certificate in the list that its issuer signed.
func revoked(cert, issuer *x509.Certificate, crls []*x509.RevocationList, now time.Time) error {
	for _, crl := range crls {
		if !bytes.Equal(crl.RawIssuer, issuer.RawSubject) {
			continue
		}
		if err := crl.CheckSignatureFrom(issuer); err != nil {
			return fmt.Errorf("the list of %s: %w", issuer.Subject.CommonName, err)
		}
		if now.Before(crl.ThisUpdate) || now.After(crl.NextUpdate) {
			return fmt.Errorf("the list of %s holds from %s to %s", issuer.Subject.CommonName, date(crl.ThisUpdate), date(crl.NextUpdate))
		}
		for _, x := range crl.RevokedCertificateEntries {
			if x.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return fmt.Errorf("%s was revoked at %s", cert.Subject.CommonName, date(x.RevocationTime))
			}
		}
		return nil
	}
	return fmt.Errorf("none of the lists is of %s", issuer.Subject.CommonName)
}

func date(t time.Time) string { return t.UTC().Format(time.RFC3339) }
