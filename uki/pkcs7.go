package uki

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"unicode/utf16"
)

// The part of PKCS #7 1.5 (RFC 2315) that Authenticode uses: one SignedData
// with one signer, whose content is an SpcIndirectDataContent that holds the
// image's digest. Names are those of the two documents.

type contentInfo struct {
	ContentType asn1.ObjectIdentifier
	Content     asn1.RawValue `asn1:"explicit,optional,tag:0"` // Bytes is the content, with tag and length
}

type signedData struct {
	Version          int
	DigestAlgorithms []pkix.AlgorithmIdentifier `asn1:"set"`
	ContentInfo      contentInfo
	Certificates     asn1.RawValue `asn1:"optional,tag:0"`
	CRLs             asn1.RawValue `asn1:"optional,tag:1"`
	SignerInfos      []signerInfo  `asn1:"set"`
}

type signerInfo struct {
	Version                   int
	IssuerAndSerialNumber     issuerAndSerial
	DigestAlgorithm           pkix.AlgorithmIdentifier
	AuthenticatedAttributes   asn1.RawValue `asn1:"optional,tag:0"`
	DigestEncryptionAlgorithm pkix.AlgorithmIdentifier
	EncryptedDigest           []byte
	UnauthenticatedAttributes asn1.RawValue `asn1:"optional,tag:1"`
}

type issuerAndSerial struct {
	Issuer       asn1.RawValue
	SerialNumber *big.Int
}

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

type spcIndirectDataContent struct {
	Data          spcAttributeTypeAndOptionalValue
	MessageDigest digestInfo
}

type spcAttributeTypeAndOptionalValue struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue `asn1:"optional"`
}

type spcPEImageData struct {
	Flags asn1.BitString
	File  asn1.RawValue
}

type digestInfo struct {
	DigestAlgorithm pkix.AlgorithmIdentifier
	Digest          []byte
}

var (
	oidSignedData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidRSAEncryption   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256WithRSA   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidSHA256          = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidSpcIndirectData = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidSpcPEImageData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}

	sha256Algorithm = pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}
	rsaAlgorithm    = pkix.AlgorithmIdentifier{Algorithm: oidRSAEncryption, Parameters: asn1.NullRawValue}
)

// signature is a parsed Authenticode signature.
type signature struct {
	content []byte // SpcIndirectDataContent without tag and length: what messageDigest covers
	spc     spcIndirectDataContent
	signer  signerInfo
	certs   []*x509.Certificate
}

func parseSignature(der []byte) (*signature, error) {
	var outer contentInfo
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, fmt.Errorf("pkcs7: %w", err)
	}
	if !outer.ContentType.Equal(oidSignedData) {
		return nil, fmt.Errorf("pkcs7: content type %v: want signedData", outer.ContentType)
	}
	var sd signedData
	if _, err := asn1.Unmarshal(outer.Content.Bytes, &sd); err != nil {
		return nil, fmt.Errorf("pkcs7: signed data: %w", err)
	}
	if !sd.ContentInfo.ContentType.Equal(oidSpcIndirectData) {
		return nil, fmt.Errorf("pkcs7: signed content %v: want SpcIndirectData", sd.ContentInfo.ContentType)
	}
	if len(sd.SignerInfos) != 1 {
		return nil, fmt.Errorf("pkcs7: %d signers: want 1", len(sd.SignerInfos))
	}
	var content asn1.RawValue
	if _, err := asn1.Unmarshal(sd.ContentInfo.Content.Bytes, &content); err != nil {
		return nil, fmt.Errorf("pkcs7: SpcIndirectData: %w", err)
	}
	sig := &signature{content: content.Bytes, signer: sd.SignerInfos[0]}
	if _, err := asn1.Unmarshal(content.FullBytes, &sig.spc); err != nil {
		return nil, fmt.Errorf("pkcs7: SpcIndirectData: %w", err)
	}
	certs, err := x509.ParseCertificates(sd.Certificates.Bytes)
	if err != nil {
		return nil, fmt.Errorf("pkcs7: certificates: %w", err)
	}
	sig.certs = certs
	return sig, nil
}

// cert returns the signer's certificate, nil if the signature carries none.
func (sig *signature) cert() *x509.Certificate {
	i := slices.IndexFunc(sig.certs, sig.signedBy)
	if i < 0 {
		return nil
	}
	return sig.certs[i]
}

func (sig *signature) signedBy(c *x509.Certificate) bool {
	id := sig.signer.IssuerAndSerialNumber
	return bytes.Equal(id.Issuer.FullBytes, c.RawIssuer) && id.SerialNumber.Cmp(c.SerialNumber) == 0
}

// verify checks that the signature is cert's over an image with the SHA-256
// Authenticode digest given.
func (sig *signature) verify(digest []byte, cert *x509.Certificate) error {
	if !sig.signedBy(cert) {
		return fmt.Errorf("signed by another certificate than %q", cert.Subject)
	}
	if alg := sig.spc.MessageDigest.DigestAlgorithm.Algorithm; !alg.Equal(oidSHA256) {
		return fmt.Errorf("image digest algorithm %v: want SHA-256", alg)
	}
	if got := sig.spc.MessageDigest.Digest; !bytes.Equal(got, digest) {
		return fmt.Errorf("image digest is %x: signed %x", digest, got)
	}
	sum := sha256.Sum256(sig.content)
	if err := sig.checkAttributes(sum[:]); err != nil {
		return err
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("certificate %q: key type %T: want RSA", cert.Subject, cert.PublicKey)
	}
	s := sig.signer
	if alg := s.DigestEncryptionAlgorithm.Algorithm; !s.DigestAlgorithm.Algorithm.Equal(oidSHA256) ||
		!alg.Equal(oidRSAEncryption) && !alg.Equal(oidSHA256WithRSA) {
		return fmt.Errorf("signature algorithm %v with %v: want RSA with SHA-256", alg, s.DigestAlgorithm.Algorithm)
	}
	hashed := sha256.Sum256(asSet(s.AuthenticatedAttributes.FullBytes))
	return rsa.VerifyPKCS1v15(key, crypto.SHA256, hashed[:], s.EncryptedDigest)
}

func (sig *signature) checkAttributes(messageDigest []byte) error {
	found := 0
	for rest := sig.signer.AuthenticatedAttributes.Bytes; len(rest) > 0; {
		var a attribute
		var err error
		if rest, err = asn1.Unmarshal(rest, &a); err != nil {
			return fmt.Errorf("attributes: %w", err)
		}
		var want any
		switch {
		case a.Type.Equal(oidContentType):
			want = oidSpcIndirectData
		case a.Type.Equal(oidMessageDigest):
			want = messageDigest
		default:
			continue
		}
		der, err := asn1.Marshal(want)
		if err != nil {
			return err
		}
		if len(a.Values) != 1 || !bytes.Equal(a.Values[0].FullBytes, der) {
			return fmt.Errorf("attribute %v does not match the signed content", a.Type)
		}
		found++
	}
	if found != 2 {
		return errors.New("attributes: want content type and message digest once each")
	}
	return nil
}

// asSet gives the attributes the tag under which they are signed: SET OF, not
// the [0] under which they are stored (RFC 2315, section 9.3).
func asSet(der []byte) []byte {
	der = bytes.Clone(der)
	if len(der) > 0 {
		der[0] = asn1.TagSet | 0x20
	}
	return der
}

// marshalSignature signs an image's SHA-256 Authenticode digest. It adds no
// signing time, and PKCS #1 v1.5 has no randomness: equal arguments give equal
// bytes.
func marshalSignature(digest []byte, s *Signer) ([]byte, error) {
	if _, ok := s.Key.Public().(*rsa.PublicKey); !ok {
		return nil, fmt.Errorf("uki: sign: key type %T: want RSA", s.Key.Public())
	}
	spc, err := marshalSpc(digest)
	if err != nil {
		return nil, err
	}
	var content asn1.RawValue
	if _, err := asn1.Unmarshal(spc, &content); err != nil {
		return nil, err
	}
	attributes, err := marshalAttributes(content.Bytes)
	if err != nil {
		return nil, err
	}
	hashed := sha256.Sum256(asSet(attributes.FullBytes))
	encrypted, err := s.Key.Sign(nil, hashed[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("uki: sign: %w", err)
	}
	return s.marshal(contentInfo{oidSpcIndirectData, tagged(0, true, spc)}, attributes, encrypted)
}

// marshalSpc encodes what is signed. The file name is the constant that the
// Authenticode document prescribes.
func marshalSpc(digest []byte) ([]byte, error) {
	var name []byte
	for _, c := range utf16.Encode([]rune("<<<Obsolete>>>")) {
		name = append(name, byte(c>>8), byte(c)) // BMPString is big-endian
	}
	unicode, err := asn1.Marshal(tagged(0, false, name)) // SpcString.unicode
	if err != nil {
		return nil, err
	}
	file, err := asn1.Marshal(tagged(2, true, unicode)) // SpcLink.file
	if err != nil {
		return nil, err
	}
	data, err := asn1.Marshal(spcPEImageData{File: tagged(0, true, file)})
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(spcIndirectDataContent{
		Data:          spcAttributeTypeAndOptionalValue{oidSpcPEImageData, asn1.RawValue{FullBytes: data}},
		MessageDigest: digestInfo{sha256Algorithm, digest},
	})
}

// marshalAttributes encodes the signed attributes under their stored tag, [0].
func marshalAttributes(content []byte) (asn1.RawValue, error) {
	contentType, err := asn1.Marshal(oidSpcIndirectData)
	if err != nil {
		return asn1.RawValue{}, err
	}
	sum := sha256.Sum256(content)
	messageDigest, err := asn1.Marshal(sum[:])
	if err != nil {
		return asn1.RawValue{}, err
	}
	der, err := asn1.MarshalWithParams([]attribute{
		{oidContentType, []asn1.RawValue{{FullBytes: contentType}}},
		{oidMessageDigest, []asn1.RawValue{{FullBytes: messageDigest}}},
	}, "set,tag:0")
	return asn1.RawValue{FullBytes: der}, err
}

func tagged(tag int, compound bool, content []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: compound, Bytes: content}
}
