package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/export"
	"github.com/plinth-os/plinth/internal/sign"
	"github.com/plinth-os/plinth/measure/refvalue"
)

// signFlags are for the forms that are signed.
type signFlags struct {
	key, cert, signer string
}

func (f *signFlags) addSign(s *pflag.FlagSet) {
	s.StringVar(&f.key, "sign", "", "private key to sign with: PEM file or pkcs11: URI (PIN: pin-source= there, or PLINTH_PKCS11_PIN)")
}

func (f *signFlags) addCert(s *pflag.FlagSet) {
	s.StringVar(&f.cert, "cert", "", "certificates of the key, PEM, its own first, to stand in the signature")
	s.StringVar(&f.signer, "signer", "", "name of who signs (default: the certificate's subject, else the key's digest)")
}

// signer opens a key.
func (c *common) signer(ctx context.Context, name string) (*sign.Key, error) {
	k, err := sign.Open(ctx, name, sign.Options{PIN: c.env.getenv("PLINTH_PKCS11_PIN"), Module: c.env.getenv("PLINTH_PKCS11_MODULE")})
	var bad *sign.KeyError
	switch {
	case errors.As(err, &bad):
		return nil, usageError{err}
	case errors.Is(err, sign.ErrNoTool):
		return nil, hostLacksError{err.Error(), "install opensc, or give a key in a PEM file"}
	}
	return k, err
}

// corimEnd is the name's ending of the signed form, which lies beside the other.
const corimEnd = ".cose"

// writeCoRIM writes the unsigned form, which RVPS reads, and the signed one beside
// it. Only one fits on stdout.
func writeCoRIM(ctx context.Context, c *common, f *exportFlags, v *valueSet) error {
	if err := c.remarkCoRIM(v.Set); err != nil {
		return err
	}
	plain, err := v.CoRIM(refvalue.CoRIMParams{})
	if errors.Is(err, refvalue.ErrNothing) {
		err = unsupportedError{err}
	}
	if err != nil {
		return err
	}
	if f.key == "" {
		if f.cert != "" || f.signer != "" {
			return usagef("--cert and --signer say something of a signature: give --sign")
		}
		if err := removeSigned(f.out + corimEnd); err != nil {
			return err
		}
		return c.emit(f.out, func() ([]byte, error) { return plain, nil })
	}
	signed, err := c.signCoRIM(ctx, &f.signFlags, v.Set, plain)
	if err != nil {
		return err
	}
	if f.out == stdoutName {
		return c.emit(f.out, func() ([]byte, error) { return signed, nil })
	}
	if err := c.emit(f.out, func() ([]byte, error) { return plain, nil }); err != nil {
		return err
	}
	return c.emit(f.out+corimEnd, func() ([]byte, error) { return signed, nil })
}

func (c *common) signCoRIM(ctx context.Context, f *signFlags, s *refvalue.Set, plain []byte) ([]byte, error) {
	key, err := c.signer(ctx, f.key)
	if err != nil {
		return nil, err
	}
	p := sign.CoRIMParams{Signer: f.signer}
	if !s.Expires.IsZero() {
		p.NotAfter = s.Expires.Unix()
	}
	if f.cert != "" {
		if p.Chain, err = readChain(f.cert, key); err != nil {
			return nil, err
		}
	}
	return sign.SignCOSE(plain, key, p)
}

func readChain(path string, key *sign.Key) ([]*x509.Certificate, error) {
	b, err := readLimited(path, maxSecret)
	if err != nil {
		return nil, err
	}
	chain, err := sign.ParseChain(b, key)
	if err != nil {
		return nil, usageError{fmt.Errorf("--cert %s: %w", path, err)}
	}
	return chain, nil
}

// remarkCoRIM says on stderr what RVPS will call the values: not what the default
// policy does.
func (c *common) remarkCoRIM(s *refvalue.Set) error {
	names, err := s.CoRIMNames()
	if err != nil || c.quiet {
		return err
	}
	for _, n := range names {
		if n.Why != "" {
			fmt.Fprintf(c.env.stderr, "plinth: not in the CoRIM: %s: %s\n", n.Name, n.Why)
			continue
		}
		fmt.Fprintf(c.env.stderr, "plinth: %s is %s to RVPS, which the policy has to ask for\n", n.Name, n.RVPS)
	}
	return nil
}

// exportInToto writes the statements of one image into a directory and, signed,
// the bundle of envelopes.
func (c *common) exportInToto(ctx context.Context, dir string, f *exportFlags) error {
	m, ms, err := readPredicted(dir)
	if err != nil {
		return err
	}
	if f.report != "" {
		if err := matchReport(f.report, m, ms); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	measured, made, err := export.Statements(m, ms, version())
	if err != nil {
		return err
	}
	var bundle []byte
	if f.key != "" {
		if bundle, err = c.envelopes(ctx, f.key, measured, made); err != nil {
			return err
		}
	}
	if f.out == stdoutName {
		if bundle == nil {
			bundle, err = lines(measured, made)
		}
		if err != nil {
			return err
		}
		_, err = c.env.stdout.Write(bundle)
		return err
	}
	for _, file := range []struct {
		name string
		b    []byte
	}{{export.StatementName, measured}, {export.ProvenanceStatementName, made}, {export.BundleName, bundle}} {
		path := filepath.Join(cmp.Or(f.out, dir), file.name)
		if file.b == nil {
			if err := removeSigned(path); err != nil {
				return err
			}
			continue
		}
		if err := builder.WriteFile(path, file.b); err != nil {
			return err
		}
		if err := c.written(path); err != nil {
			return err
		}
	}
	return nil
}

// removeSigned removes what an earlier call signed: it is not of what stands beside
// it from now on.
func removeSigned(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// envelopes signs each statement; an envelope is a line.
func (c *common) envelopes(ctx context.Context, name string, statements ...[]byte) ([]byte, error) {
	key, err := c.signer(ctx, name)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, s := range statements {
		e, err := sign.DSSE(sign.InTotoPayload, s, key)
		if err != nil {
			return nil, err
		}
		b.Write(e)
	}
	return b.Bytes(), nil
}

// lines puts each document on a line of its own.
func lines(documents ...[]byte) ([]byte, error) {
	var b bytes.Buffer
	for _, d := range documents {
		if err := json.Compact(&b, d); err != nil {
			return nil, err
		}
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}
