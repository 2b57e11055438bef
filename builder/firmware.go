package builder

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/plinth-os/plinth/measure/ovmf"
)

// KeyOwner is the SignatureOwner GUID of the keys that plinth enrolls. It only
// tells a reader who put them there.
const KeyOwner = "0f8a6f5e-6d3c-4c0b-9a53-706c696e7468"

// runFirmware makes code and vars, or code alone where the platform's firmware is
// one file, with the keys in the variables that the profile asks for;
// generic.code and generic.vars.
func runFirmware(ctx context.Context, w *work) error {
	p := w.Profile.Firmware
	if err := w.part(ctx, "code", "firmware.code_file", p.CodeFile != "", roleFirmware, p.Code); err != nil {
		return err
	}
	store := "code"
	if !w.Profile.Combined() {
		store = "vars"
		if err := w.part(ctx, "vars", "firmware.vars_file", p.VarsFile != "", roleFirmware, p.Vars); err != nil {
			return err
		}
	}
	if w.Profile.SecureBoot.SetupMode {
		if err := w.setupMode(store); err != nil {
			return err
		}
	}
	if w.Profile.SecureBoot.Enroll {
		if err := w.enroll(store); err != nil {
			return err
		}
	}
	if w.Profile.HasGeneric() {
		if err := w.generic(ctx); err != nil {
			return err
		}
	}
	return w.unpackFirmware()
}

// generic makes the firmware for hosts without the platform's hardware. What is
// enrolled in the one is enrolled in the other, so that the stub, which asks
// whether Secure Boot is on, measures the same under both.
func (w *work) generic(ctx context.Context) error {
	p := w.Profile.Firmware.Generic
	if err := w.part(ctx, "generic.code", "firmware.generic.code_file", p.CodeFile != "", roleGeneric, p.Code); err != nil {
		return err
	}
	if err := w.part(ctx, "generic.vars", "firmware.generic.vars_file", p.VarsFile != "", roleGeneric, p.Vars); err != nil {
		return err
	}
	if !w.Profile.SecureBoot.Enroll {
		return nil
	}
	code, err := w.Store.ReadFile(w.out["generic.code"].Digest)
	if err != nil {
		return err
	}
	f, err := CachedFirmware(w.Store, code)
	if err != nil {
		return err
	}
	if !f.SecureBoot {
		return errors.New("firmware.generic: a build without Secure Boot, which secure_boot.enroll turns on: want one with it, usr/share/OVMF/OVMF_CODE_4M.secboot.fd in Debian")
	}
	return w.enroll("generic.vars")
}

// setupMode replaces an output, a variable store or what begins with one, by the
// same without keys.
func (w *work) setupMode(output string) error {
	flash, err := w.Store.ReadFile(w.out[output].Digest)
	if err != nil {
		return err
	}
	b, err := ovmf.SetupMode(flash)
	if err != nil {
		return fmt.Errorf("secure_boot.setup_mode: %w", err)
	}
	return w.put(output, b)
}

// enroll replaces an output, a variable store or what begins with one, by the
// same with the profile's keys in it.
func (w *work) enroll(output string) error {
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
	vars, err := w.Store.ReadFile(w.out[output].Digest)
	if err != nil {
		return err
	}
	b, err := ovmf.Enroll(vars, keys)
	if err != nil {
		return err
	}
	return w.put(output, b)
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
