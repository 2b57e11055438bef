package attester

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Indices of the non-volatile memory.
const (
	nvEKCertificate = 0x01c00002 // of an RSA 2048 endorsement key, X.509 in DER: TCG EK Credential Profile 2.5, section 2.2.1.4
	nvAKCertificate = 0x01c10000 // of Google's RSA attestation key, and how that key is made:
	nvAKTemplate    = 0x01c10001 // go-tpm-tools, client/handles.go
)

// nvBuffer is what any TPM of the PC Client profile reads or writes at once, in bytes.
const nvBuffer = 512

// readNV returns what is at index, nil when there is nothing that we may read. Its size
// is bounded by the index's, which is a uint16.
func readNV(t transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	public, name, err := nvPublic(t, index)
	if err != nil || public == nil {
		return nil, err
	}
	auth := nvReader(public, name)
	if auth == nil || !public.Attributes.Written {
		return nil, nil
	}
	out := make([]byte, 0, public.DataSize)
	for len(out) < int(public.DataSize) {
		n := min(nvBuffer, int(public.DataSize)-len(out))
		rsp, err := tpm2.NVRead{
			AuthHandle: *auth,
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: name},
			Size:       uint16(n),
			Offset:     uint16(len(out)),
		}.Execute(t)
		if err != nil {
			return nil, fmt.Errorf("%#x: TPM2_NV_Read: %w", uint32(index), err)
		}
		if got := len(rsp.Data.Buffer); got != n {
			return nil, fmt.Errorf("%#x: TPM2_NV_Read: %d bytes at %d, want %d", uint32(index), got, len(out), n)
		}
		out = append(out, rsp.Data.Buffer...)
	}
	return out, nil
}

// nvPublic describes index, nil where there is none.
func nvPublic(t transport.TPM, index tpm2.TPMHandle) (*tpm2.TPMSNVPublic, tpm2.TPM2BName, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, tpm2.TPM2BName{}, nil
	}
	var public *tpm2.TPMSNVPublic
	if err == nil {
		public, err = rsp.NVPublic.Contents()
	}
	if err != nil {
		return nil, tpm2.TPM2BName{}, fmt.Errorf("%#x: TPM2_NV_ReadPublic: %w", uint32(index), err)
	}
	return public, rsp.NVName, nil
}

// nvReader is who may read index with an empty password: itself or the owner. Nil: neither.
func nvReader(public *tpm2.TPMSNVPublic, name tpm2.TPM2BName) *tpm2.AuthHandle {
	switch {
	case public.Attributes.AuthRead:
		return &tpm2.AuthHandle{Handle: public.NVIndex, Name: name, Auth: tpm2.PasswordAuth(nil)}
	case public.Attributes.OwnerRead:
		return &tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	return nil
}

// readCertificate returns the certificate at index, nil where there is none, or
// something else. Its place may be larger: what follows it is cut.
func readCertificate(t transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	b, err := readNV(t, index)
	if err != nil {
		return nil, err
	}
	s := cryptobyte.String(b)
	var out cryptobyte.String
	if !s.ReadASN1Element(&out, asn1.SEQUENCE) {
		return nil, nil
	}
	return out, nil
}

// certifies tells whether cert is about the key public, a SubjectPublicKeyInfo.
func certifies(cert, public []byte) bool {
	c, err := x509.ParseCertificate(cert)
	return err == nil && bytes.Equal(c.RawSubjectPublicKeyInfo, public)
}
