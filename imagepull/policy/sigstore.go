package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
)

// What cosign calls an attachment and its parts: cosign, specs/SIGNATURE_SPEC.md.
const (
	CosignMIME        = "application/vnd.dev.cosign.simplesigning.v1+json"
	cosignSignature   = "dev.cosignproject.cosign/signature"
	cosignCertificate = "dev.sigstore.cosign/certificate"
	cosignChain       = "dev.sigstore.cosign/chain"
	cosignBundle      = "dev.sigstore.cosign/bundle"
)

// newSigstore opens the keys or authorities of sigstoreSigned.
func newSigstore(r *Requirement, t *Trust) (verifier, error) {
	rekor, err := t.publicKeys(r.RekorPath, r.RekorPaths, r.RekorData, r.RekorDatas)
	if err != nil {
		return nil, fmt.Errorf("rekor: %w", err)
	}
	var signers func(*attachment) ([]signer, error)
	switch {
	case r.Fulcio != nil:
		signers, err = t.fulcio(r.Fulcio, rekor)
	case r.PKI != nil:
		signers, err = t.pki(r.PKI)
	default:
		signers, err = t.keyed(r, rekor)
	}
	if err != nil {
		return nil, err
	}
	return func(s Signature) (*claim, string, error) {
		a, err := parseSigstore(s)
		if err != nil {
			return nil, "", err
		}
		trusted, err := signers(a)
		if err != nil {
			return nil, "", err
		}
		for _, k := range trusted {
			if verifySHA256(k.key, a.signed, a.signature) == nil {
				c, err := a.says()
				return c, k.name, err
			}
		}
		return nil, "", errors.New("the signature is by no trusted key")
	}, nil
}

// An attachment is a signature of sigstore's, in whatever form it came.
type attachment struct {
	signed      []byte // what the signature is over
	payload     []byte // what a log has the digest of
	signature   []byte
	certificate []byte   // of who signed, DER; nil: none
	chain       [][]byte // of that, DER
	log         func(logs []signer) (*logEntry, error)
	says        func() (*claim, error) // for when the signature fits
}

func parseSigstore(s Signature) (*attachment, error) {
	switch s.MIMEType {
	case CosignMIME:
		return parseCosign(s)
	case BundleMIME:
		return parseBundle(s.Payload)
	}
	return nil, fmt.Errorf("media type %q: not a signature", s.MIMEType)
}

// parseCosign reads an attachment: cosign, specs/SIGNATURE_SPEC.md.
func parseCosign(s Signature) (*attachment, error) {
	if len(s.Payload) > maxPayload {
		return nil, fmt.Errorf("%d bytes signed: want at most %d", len(s.Payload), maxPayload)
	}
	sig, err := base64.StdEncoding.DecodeString(s.Annotations[cosignSignature])
	if err != nil || len(sig) == 0 {
		return nil, fmt.Errorf("annotation %s: want a signature in base64", cosignSignature)
	}
	a := &attachment{
		signed: s.Payload, payload: s.Payload, signature: sig, chain: certificates(s.Annotations[cosignChain]),
		log:  func(logs []signer) (*logEntry, error) { return promised(s.Annotations[cosignBundle], logs) },
		says: func() (*claim, error) { return parsePayload(s.Payload, cosignType) },
	}
	if leaf := certificates(s.Annotations[cosignCertificate]); leaf != nil {
		a.certificate = leaf[0]
	}
	return a, nil
}

// certificates reads PEM.
func certificates(text string) (out [][]byte) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, block.Bytes)
		}
	}
}

// A signer is a public key that is trusted, and how people call it.
type signer struct {
	name string
	key  crypto.PublicKey
}

// keyed trusts keys. With a log, one of them must have been used as the log says.
func (t *Trust) keyed(r *Requirement, rekor []signer) (func(*attachment) ([]signer, error), error) {
	keys, err := t.publicKeys(r.KeyPath, r.KeyPaths, r.KeyData, r.KeyDatas)
	if err != nil {
		return nil, err
	}
	return func(a *attachment) ([]signer, error) {
		if len(rekor) == 0 {
			return keys, nil
		}
		entry, err := a.log(rekor)
		if err != nil {
			return nil, err
		}
		var refused []error
		for _, k := range keys {
			if err = entry.covers(a, k.key); err == nil {
				return []signer{k}, nil
			}
			refused = append(refused, err)
		}
		return nil, errors.Join(refused...)
	}, nil
}

// publicKeys reads keys in PEM.
func (t *Trust) publicKeys(path string, paths []string, data []byte, datas [][]byte) (out []signer, err error) {
	files, err := t.keys(path, paths, data, datas)
	if err != nil {
		return nil, err
	}
	for _, b := range files {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 && !isSpace(rest) {
			return nil, errors.New("want one public key in PEM")
		}
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, signer{fmt.Sprintf("key sha256:%x", sha256.Sum256(block.Bytes)), k})
	}
	return out, nil
}

func isSpace(b []byte) bool {
	for _, c := range b {
		if c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return false
		}
	}
	return true
}

var errSignature = errors.New("the signature does not fit")

// verifySHA256 checks a signature over the SHA-256 of what was signed; Ed25519
// signs the whole.
func verifySHA256(key crypto.PublicKey, signed, sig []byte) error {
	h := sha256.Sum256(signed)
	ok := false
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, h[:], sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, h[:], sig) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, signed, sig)
	}
	if !ok {
		return errSignature
	}
	return nil
}
