package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
)

// encryptFlags say for whom which layers are encrypted.
type encryptFlags struct {
	recipients []string
	layers     []int
}

func newImageEncrypt(c *common) *cobra.Command {
	f, e := &pullFlags{}, &encryptFlags{}
	cmd := &cobra.Command{
		Use:   "encrypt SRC DST --recipient KEY",
		Short: "Copy an image, its layers encrypted",
		Long: `Copies the image SRC to DST, a path where nothing is yet, and encrypts its layers as
ocicrypt does: each by a key of its own, which is wrapped for every recipient. skopeo,
containerd and the guests of confidential containers decrypt it. Of an index the image
of --platform is copied. The copy is another image: who signed SRC has not signed it.

A recipient is one of
  jwe:FILE    the owner of a private key; FILE has the public one, RSA or EC, or a
              certificate, in PEM
  provider:attestation-agent:keyid=kbs:///REPOSITORY/TYPE/TAG:keypath=FILE
              guests whose key broker has that key; FILE has its 32 bytes`,
		Example: "  plinth image encrypt docker://registry.example.com/app:1 oci-archive:app.tar --recipient jwe:public.pem",
		Args:    cobra.ExactArgs(2),
		RunE:    func(cmd *cobra.Command, a []string) error { return c.imageEncrypt(cmd.Context(), f, e, a[0], a[1]) },
	}
	f.add(cmd)
	cmd.Flags().StringArrayVar(&e.recipients, "recipient", nil, "who can decrypt it (repeatable)")
	cmd.Flags().IntSliceVar(&e.layers, "layer", nil, "only this layer: 0 is the bottom, -1 the top (repeatable; default: all)")
	return cmd
}

func (c *common) imageEncrypt(ctx context.Context, f *pullFlags, e *encryptFlags, src, dst string) error {
	to, err := e.wrappers()
	if err != nil {
		return err
	}
	at, err := policy.ParseName(absolute(dst))
	switch {
	case err != nil:
		return usageError{err}
	case at.Ref != nil:
		return usagef("%s: an image is written to oci: or oci-archive:; skopeo copies it to a registry", dst)
	case at.Digest != "":
		return usagef("%s: the digest is not known before", dst)
	}
	p, n, err := f.puller(src)
	if err != nil {
		return err
	}
	w, err := registry.Create(at.Path, at.Transport == policy.OCIArchive)
	if err != nil {
		return err
	}
	d, err := p.Encrypt(ctx, n, w, imagepull.Encryption{To: to, Layers: e.layers, Random: rand.Reader})
	if err == nil {
		err = w.Finish(d, at.Image)
	}
	if err != nil {
		return errors.Join(err, w.Discard())
	}
	return c.printEncrypted(at, d)
}

// absolute completes the path in the name of a layout, which a policy wants whole.
func absolute(ref string) string {
	for _, transport := range []string{policy.OCI, policy.OCIArchive} {
		if rest, ok := strings.CutPrefix(ref, transport+":"); ok && rest != "" {
			file, image, named := strings.Cut(rest, ":")
			if whole, err := filepath.Abs(file); err == nil && !filepath.IsAbs(file) {
				ref = transport + ":" + whole
				if named {
					ref += ":" + image
				}
			}
		}
	}
	return ref
}

func (c *common) printEncrypted(at policy.Name, d v1.Descriptor) error {
	if c.json {
		return printJSON(c.env.stdout, struct {
			Name   string `json:"name"`
			Digest string `json:"digest"`
		}{at.String(), d.Digest.String()})
	}
	_, err := fmt.Fprintf(c.env.stdout, "%s\n  manifest  %s\n", at, d.Digest)
	return err
}

func (e *encryptFlags) wrappers() (out []crypt.Wrapper, err error) {
	if len(e.recipients) == 0 {
		return nil, usagef("--recipient is needed: nobody could decrypt the image")
	}
	for _, r := range e.recipients {
		w, err := parseRecipient(r)
		if err != nil {
			return nil, usagef("--recipient %s: %w", r, err)
		}
		out = append(out, w)
	}
	return out, nil
}

const cocoProvider = "provider:attestation-agent:"

func parseRecipient(s string) (crypt.Wrapper, error) {
	if path, ok := strings.CutPrefix(s, "jwe:"); ok {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		key, err := publicKey(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return crypt.ForJWE(key), nil
	}
	if rest, ok := strings.CutPrefix(s, cocoProvider); ok {
		return parseProvider(rest)
	}
	return nil, errors.New("want jwe:FILE or " + cocoProvider + "keyid=kbs:///REPOSITORY/TYPE/TAG:keypath=FILE")
}

// parameter begins one of a provider's. A value may hold a colon, and skopeo's users
// write two colons between them.
var parameter = regexp.MustCompile(`(?:^|::?)(keyid|keypath|algorithm)=`)

func parseProvider(s string) (crypt.Wrapper, error) {
	values, at := map[string]string{}, parameter.FindAllStringSubmatchIndex(s, -1)
	for i, m := range at {
		end := len(s)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		name := s[m[2]:m[3]]
		if _, twice := values[name]; twice {
			return nil, fmt.Errorf("%s: there twice", name)
		}
		values[name] = s[m[1]:end]
	}
	algorithm, chosen := values["algorithm"]
	switch {
	case len(at) == 0 || at[0][0] != 0 || values["keyid"] == "" || values["keypath"] == "":
		return nil, errors.New("want keyid= and keypath=")
	case !strings.HasPrefix(values["keyid"], "kbs:///"):
		return nil, fmt.Errorf("keyid %q: want kbs:///REPOSITORY/TYPE/TAG", values["keyid"])
	case chosen && algorithm != "A256GCM":
		return nil, fmt.Errorf("algorithm %q: want A256GCM", algorithm)
	}
	key, err := os.ReadFile(values["keypath"])
	if err != nil {
		return nil, err
	}
	if len(key) != 32 {
		return nil, fmt.Errorf("%s: %d bytes: want a key of 32", values["keypath"], len(key))
	}
	return crypt.ForCoCo(values["keyid"], key), nil
}

func publicKey(b []byte) (crypto.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("no public key in PEM")
	}
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		return c.PublicKey, nil
	}
	return nil, fmt.Errorf("%s in PEM: want a public key", block.Type)
}
