package builder

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// KeyOwner is the SignatureOwner GUID of the keys that plinth enrolls. It only
// tells a reader who put them there.
const KeyOwner = "0f8a6f5e-6d3c-4c0b-9a53-706c696e7468"

// runFirmware makes code, vars (with keys enrolled where the profile asks) and
// volumes, the digests of what the firmware unpacks and measures.
func runFirmware(ctx context.Context, w *work) error {
	p := w.Profile.Firmware
	if err := w.part(ctx, "code", "firmware.code_file", p.CodeFile != "", roleFirmware, p.Code); err != nil {
		return err
	}
	if err := w.part(ctx, "vars", "firmware.vars_file", p.VarsFile != "", roleFirmware, p.Vars); err != nil {
		return err
	}
	if w.Profile.SecureBoot.Enroll {
		if err := w.enroll(); err != nil {
			return err
		}
	}
	return w.firmwareFacts()
}

// enroll replaces the output vars by one with the profile's keys in it.
func (w *work) enroll() error {
	owner, err := ovmf.ParseGUID(KeyOwner)
	if err != nil {
		return err
	}
	keys := ovmf.Keys{Owner: owner, Epoch: w.Profile.Epoch}
	own, err := w.certs("secure_boot.cert", 0)
	if err != nil {
		return err
	}
	list := func(key string, n int) ([][]byte, error) {
		if n == 0 {
			return own, nil
		}
		return w.certs(key, n)
	}
	sb := w.Profile.SecureBoot
	pk := own
	if sb.PK != "" {
		if pk, err = w.certs("secure_boot.pk", 0); err != nil {
			return err
		}
	}
	keys.PK = pk[0]
	if keys.KEK, err = list("secure_boot.kek", len(sb.KEK)); err != nil {
		return err
	}
	if keys.DB, err = list("secure_boot.db", len(sb.DB)); err != nil {
		return err
	}
	vars, err := w.Store.ReadFile(w.out["vars"].Digest)
	if err != nil {
		return err
	}
	b, err := ovmf.Enroll(vars, keys)
	if err != nil {
		return err
	}
	return w.put("vars", b)
}

// certs returns locked certificates, DER: the file called key, or the n
// elements of the list called key.
func (w *work) certs(key string, n int) ([][]byte, error) {
	names := []string{key}
	if n > 0 {
		names = nil
		for i := range n {
			names = append(names, fmt.Sprintf("%s[%d]", key, i))
		}
	}
	var out [][]byte
	for _, name := range names {
		r, err := w.file(name)
		if err != nil {
			return nil, err
		}
		b, err := w.Store.ReadFile(r.Digest)
		if err != nil {
			return nil, err
		}
		der, err := CertificateDER(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, der)
	}
	return out, nil
}

// CertificateDER returns one certificate, given in PEM or DER, as DER.
func CertificateDER(b []byte) ([]byte, error) {
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	if _, err := x509.ParseCertificate(b); err != nil {
		return nil, fmt.Errorf("no certificate: %w", err)
	}
	return b, nil
}
