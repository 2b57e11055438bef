package policy

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The extensions in which Fulcio says who vouched for the identity: sigstore/fulcio,
// docs/oid-info.md. The second is in DER, the first, older one, is the text itself.
var (
	oidIssuer    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
	oidIssuerDER = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
)

// fulcio trusts certificates that an authority issued to one identity. They live
// for minutes: the log says when they were used.
func (t *Trust) fulcio(f *Fulcio, rekor []signer) (func(*attachment) ([]signer, error), error) {
	roots, err := t.pool(f.CAPath, f.CAData)
	if err != nil {
		return nil, fmt.Errorf("fulcio: %w", err)
	}
	return func(a *attachment) ([]signer, error) {
		entry, err := a.log(rekor)
		if err != nil {
			return nil, err
		}
		if entry.time.IsZero() {
			return nil, errors.New("the log does not say when the certificate was used")
		}
		leaf, err := a.leaf(roots, x509.NewCertPool(), entry.time)
		if err != nil {
			return nil, err
		}
		if err := entry.covers(a, leaf.PublicKey); err != nil {
			return nil, err
		}
		issuer, err := issuerOf(leaf)
		if err != nil {
			return nil, err
		}
		if issuer != f.Issuer {
			return nil, fmt.Errorf("the identity is vouched for by %q: want %q", issuer, f.Issuer)
		}
		if !slices.Contains(leaf.EmailAddresses, f.Subject) {
			return nil, fmt.Errorf("the certificate is for %q: want %q", leaf.EmailAddresses, f.Subject)
		}
		return []signer{{f.Subject, leaf.PublicKey}}, nil
	}, nil
}

// issuerOf returns the provider of the identity. Where both forms are there they
// must agree.
func issuerOf(c *x509.Certificate) (string, error) {
	var found []string
	for _, e := range c.Extensions {
		switch {
		case e.Id.Equal(oidIssuer):
			found = append(found, string(e.Value))
		case e.Id.Equal(oidIssuerDER):
			var s string
			if rest, err := asn1.UnmarshalWithParams(e.Value, &s, "utf8"); err != nil || len(rest) > 0 {
				return "", errors.New("the certificate's issuer extension is malformed")
			}
			found = append(found, s)
		}
	}
	if found = slices.Compact(found); len(found) != 1 {
		return "", fmt.Errorf("the certificate names %d identity providers: want one", len(found))
	}
	return found[0], nil
}

// pki trusts certificates of one's own authorities, at this time.
func (t *Trust) pki(p *PKI) (func(*attachment) ([]signer, error), error) {
	roots, err := t.pool(p.RootsPath, p.RootsData)
	if err != nil {
		return nil, fmt.Errorf("pki: roots: %w", err)
	}
	between := x509.NewCertPool()
	if p.IntermediatesPath != "" || len(p.IntermediatesData) > 0 {
		if between, err = t.pool(p.IntermediatesPath, p.IntermediatesData); err != nil {
			return nil, fmt.Errorf("pki: intermediates: %w", err)
		}
	}
	return func(a *attachment) ([]signer, error) {
		leaf, err := a.leaf(roots, between.Clone(), t.Now)
		if err != nil {
			return nil, err
		}
		if p.Email != "" && !slices.Contains(leaf.EmailAddresses, p.Email) {
			return nil, fmt.Errorf("the certificate is for %q: want %q", leaf.EmailAddresses, p.Email)
		}
		if p.Hostname != "" {
			if err := leaf.VerifyHostname(p.Hostname); err != nil {
				return nil, err
			}
		}
		return []signer{{leaf.Subject.String(), leaf.PublicKey}}, nil
	}, nil
}

// pool reads certificates in PEM.
func (t *Trust) pool(path string, data []byte) (*x509.CertPool, error) {
	files, err := t.keys(path, nil, data, nil)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, b := range files {
		if !pool.AppendCertsFromPEM(b) {
			return nil, errors.New("no certificate in PEM")
		}
	}
	return pool, nil
}

// leaf returns the certificate that came with a signature, when it leads to a
// root at the time.
func (a *attachment) leaf(roots, between *x509.CertPool, at time.Time) (*x509.Certificate, error) {
	if a.certificate == nil {
		return nil, errors.New("no certificate with the signature")
	}
	c, err := x509.ParseCertificate(a.certificate)
	if err != nil {
		return nil, err
	}
	for _, der := range a.chain {
		if c, err := x509.ParseCertificate(der); err == nil { // what is broken leads nowhere
			between.AddCert(c)
		}
	}
	// The subject of a certificate of Fulcio is empty, its name critical: the name
	// is compared by the callers.
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, func(o asn1.ObjectIdentifier) bool {
		return o.Equal(asn1.ObjectIdentifier{2, 5, 29, 17})
	})
	_, err = c.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	})
	return c, err
}
