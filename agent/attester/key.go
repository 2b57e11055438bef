package attester

import (
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// cocoAK is where CoCo's attestation agent looks for the key: guest-components,
// attestation-agent/attester/src/tpm/utils.rs.
const cocoAK = 0x81010002

// A key signs quotes.
type key struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public []byte             // SubjectPublicKeyInfo, DER
	scheme tpm2.TPMTSigScheme // what a quote asks for: TPM_ALG_NULL where the key has its own
	usual  bool               // it signs by RSASSA with SHA-256: Trustee takes nothing else
	made   bool               // it is ours, and goes with us
}

// akTemplate is that of go-tpm-tools' AKTemplateRSA, of which its AttestationKeyRSA is
// made: whoever asks the TPM with those tools knows the key.
var akTemplate = tpm2.TPMTPublic{
	Type:    tpm2.TPMAlgRSA,
	NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true,
	},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		Scheme: tpm2.TPMTRSAScheme{
			Scheme:  tpm2.TPMAlgRSASSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
		KeyBits: 2048,
	}),
	Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
}

// findKey returns the key at handle or, where that is 0, CoCo's, Google's, or one made
// for the purpose, in this order. What is made is the same after each boot, as long as
// nobody clears the TPM.
func findKey(t transport.TPM, handle uint32) (*key, error) {
	if handle != 0 {
		return readKey(t, tpm2.TPMHandle(handle))
	}
	k, err := readKey(t, cocoAK)
	switch {
	case err == nil && k.usual:
		return k, nil
	case err == nil || errors.Is(err, tpm2.TPMRCHandle) || errors.As(err, new(unfitError)):
	default:
		return nil, err
	}
	template, err := readNV(t, nvAKTemplate)
	switch {
	case err != nil:
		return nil, err
	case template != nil:
		return makeKey(t, tpm2.TPMRHEndorsement, tpm2.BytesAs2B[tpm2.TPMTPublic](template))
	}
	return makeKey(t, tpm2.TPMRHOwner, tpm2.New2B(akTemplate))
}

// readKey looks at a key that somebody else made.
func readKey(t transport.TPM, handle tpm2.TPMHandle) (*key, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("%#x: TPM2_ReadPublic: %w", uint32(handle), err)
	}
	k, err := newKey(handle, rsp.Name, rsp.OutPublic)
	if err != nil {
		return nil, fmt.Errorf("%#x: %w", uint32(handle), err)
	}
	return k, nil
}

func makeKey(t transport.TPM, hierarchy tpm2.TPMHandle, template tpm2.TPM2BPublic) (*key, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      template,
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("TPM2_CreatePrimary: %w", err)
	}
	k, err := newKey(rsp.ObjectHandle, rsp.Name, rsp.OutPublic)
	if err != nil {
		return nil, errors.Join(err, flush(t, rsp.ObjectHandle))
	}
	k.made = true
	return k, nil
}

// An unfitError says why a key must not sign quotes.
type unfitError struct{ reason string }

func (e unfitError) Error() string { return e.reason }

// minRSA is the smallest RSA key, in bits. Elliptic curves are at least as strong.
const minRSA = 2048

// newKey refuses a key that a verifier could not believe: one that also signs what
// never was in the TPM, or that exists outside of it.
func newKey(handle tpm2.TPMHandle, name tpm2.TPM2BName, public tpm2.TPM2BPublic) (*key, error) {
	p, err := public.Contents()
	if err != nil {
		return nil, err
	}
	a := p.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.SensitiveDataOrigin {
		return nil, unfitError{"it is no restricted signing key that the TPM made and keeps"}
	}
	scheme, usual, err := quoteScheme(p)
	if err != nil {
		return nil, err
	}
	pub, err := tpm2.Pub(*p)
	if err != nil {
		return nil, err
	}
	if r, ok := pub.(*rsa.PublicKey); ok && r.N.BitLen() < minRSA {
		return nil, unfitError{fmt.Sprintf("RSA key of %d bits, want at least %d", r.N.BitLen(), minRSA)}
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	return &key{handle: handle, name: name, public: der, scheme: scheme, usual: usual}, err
}

// quoteScheme is TPM_ALG_NULL for a key that has a scheme, else what Trustee takes
// (RSA) or the usual one (elliptic curves).
func quoteScheme(p *tpm2.TPMTPublic) (scheme tpm2.TPMTSigScheme, usual bool, err error) {
	none := tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}
	sha256 := &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}
	switch p.Type {
	case tpm2.TPMAlgRSA:
		d, err := p.Parameters.RSADetail()
		if err != nil || d.Scheme.Scheme != tpm2.TPMAlgNull {
			return none, err == nil && isUsual(&d.Scheme), err
		}
		return tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, sha256)}, true, nil
	case tpm2.TPMAlgECC:
		d, err := p.Parameters.ECCDetail()
		if err != nil || d.Scheme.Scheme != tpm2.TPMAlgNull {
			return none, false, err
		}
		return tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, sha256)}, false, nil
	}
	return none, false, unfitError{fmt.Sprintf("key of algorithm %#x: want RSA or an elliptic curve", uint16(p.Type))}
}

func isUsual(s *tpm2.TPMTRSAScheme) bool {
	if s.Scheme != tpm2.TPMAlgRSASSA {
		return false
	}
	d, err := s.Details.RSASSA()
	return err == nil && d.HashAlg == tpm2.TPMAlgSHA256
}

// flush removes k from the TPM if it is ours.
func (k *key) flush(t transport.TPM) error {
	if !k.made {
		return nil
	}
	return flush(t, k.handle)
}

func flush(t transport.TPM, handle tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(t); err != nil {
		return fmt.Errorf("TPM2_FlushContext: %w", err)
	}
	return nil
}
