package uki

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
)

var oidData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}

// SignDetached signs content, which the signature does not hold: PKCS #7 with the
// certificate and without attributes, as the kernel takes it for a root hash.
// Equal arguments give equal bytes.
func (s *Signer) SignDetached(content []byte) ([]byte, error) {
	if _, ok := s.Key.Public().(*rsa.PublicKey); !ok {
		return nil, fmt.Errorf("uki: sign: key type %T: want RSA", s.Key.Public())
	}
	sum := sha256.Sum256(content)
	encrypted, err := s.Key.Sign(nil, sum[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("uki: sign: %w", err)
	}
	return s.marshal(contentInfo{ContentType: oidData}, asn1.RawValue{}, encrypted)
}

// marshal writes a signature with one signer.
func (s *Signer) marshal(content contentInfo, attributes asn1.RawValue, encrypted []byte) ([]byte, error) {
	sd, err := asn1.Marshal(signedData{
		Version:          1,
		DigestAlgorithms: []pkix.AlgorithmIdentifier{sha256Algorithm},
		ContentInfo:      content,
		Certificates:     tagged(0, true, s.Cert.Raw),
		SignerInfos: []signerInfo{{
			Version:                   1,
			IssuerAndSerialNumber:     issuerAndSerial{asn1.RawValue{FullBytes: s.Cert.RawIssuer}, s.Cert.SerialNumber},
			DigestAlgorithm:           sha256Algorithm,
			AuthenticatedAttributes:   attributes,
			DigestEncryptionAlgorithm: rsaAlgorithm,
			EncryptedDigest:           encrypted,
		}},
	})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(contentInfo{oidSignedData, tagged(0, true, sd)})
}
