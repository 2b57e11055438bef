package builder

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/uki"
)

// runUKI makes image.efi and cmdline.
//
// There is no .osrel: from version 257 on the stub hands it to the kernel as
// one more initrd, and PCR 9 would no longer be the digest of the initrd.
func runUKI(ctx context.Context, w *work) error {
	stub, err := w.read("stub", "stub")
	if err != nil {
		return err
	}
	root, err := w.root()
	if err != nil {
		return err
	}
	cmdline := []byte(w.cmdline(root))
	sections, done, err := w.ukiSections(cmdline)
	if err != nil {
		return err
	}
	defer done()
	if err := w.put("cmdline", cmdline); err != nil {
		return err
	}
	err = w.write(ctx, "image.efi", func(cw *cas.Writer) error { return uki.Write(cw, stub, sections) })
	if err != nil || w.Profile.SecureBoot.Key == "" {
		return err
	}
	return w.sign(ctx)
}

func (w *work) ukiSections(cmdline []byte) (sections []uki.Section, done func(), err error) {
	var files []*os.File
	done = func() {
		for _, f := range files {
			f.Close()
		}
	}
	addBytes := func(name string, b []byte) { sections = append(sections, section(name, b)) }
	addFile := func(name, step, output string) error {
		f, size, err := w.open(step, output)
		if err != nil {
			return err
		}
		files = append(files, f)
		sections = append(sections, uki.Section{Name: name, Content: io.NewSectionReader(f, 0, size)})
		return nil
	}
	release, err := w.read("kernel", "release")
	if err == nil {
		err = addFile(".linux", "kernel", "vmlinuz")
	}
	if err == nil {
		addBytes(".cmdline", cmdline)
		addBytes(".uname", release)
		err = addFile(".initrd", "initrd", "initrd")
	}
	if err == nil && w.Profile.PCRPolicy.Key != "" {
		var policy []uki.Section
		policy, err = w.policySections(sections)
		sections = append(sections, policy...)
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return sections, done, nil
}

// sign replaces the output image.efi by its signed form.
func (w *work) sign(ctx context.Context) error {
	signer, err := w.signer(w.Profile.SecureBoot.Key, "secure_boot.cert")
	if err != nil {
		return err
	}
	unsigned := w.out["image.efi"]
	f, err := w.Store.Open(unsigned)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.write(ctx, "image.efi", func(cw *cas.Writer) error { return uki.Sign(cw, f, unsigned.Size, signer) })
}

// signer reads a private key, and its certificate from where the lock says.
func (w *work) signer(path, certKey string) (*uki.Signer, error) {
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := w.file(certKey)
	if err != nil {
		return nil, err
	}
	cert, err := w.Store.ReadFile(r.Digest)
	if err != nil {
		return nil, err
	}
	return uki.LoadSigner(key, cert)
}

// readRSAKey reads an RSA private key, PEM, PKCS #8 or PKCS #1.
func readRSAKey(path string) (*rsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", path)
	}
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	rk, ok := k.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: a %T; a signed PCR policy needs RSA", path, k)
	}
	return rk, nil
}
