package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/internal/sign"
)

const secretLong = `A sealed secret stands where others can read it, and only an attested guest learns
what it means. It is CoCo's: a vault secret is the name of what a key broker has, an
envelope the secret itself, encrypted by a key that the broker has. Both are signed, and
guests get the public key from the broker.

Sealed secrets are values of env and the content of mounts in [[workload]], and
programs in the guest open them by the data hub's UnsealSecret.`

func newSecret(c *common) *cobra.Command {
	return group(&cobra.Command{
		Use:   "secret",
		Short: "Seal secrets for guests that a key broker attests",
		Long:  secretLong,
	}, newSecretSeal(c), newSecretKey(c), newSecretInspect(c), newSecretUnseal(c))
}

// sealFlags say what is sealed, and by whom.
type sealFlags struct {
	form       string
	kek, kekID string
	key, kid   string
	out        string
}

func newSecretSeal(c *common) *cobra.Command {
	f := &sealFlags{}
	cmd := &cobra.Command{
		Use:   "seal URI|FILE",
		Short: "Write a sealed secret",
		Long: `With --type vault, URI is what the broker has the secret under. With --type
envelope, FILE is the secret; --kek is a file with the 32 bytes of the key that wraps
it, and --kek-id what the broker has that key under. Two envelopes of one secret
differ: each has a key of its own.

--sign is an EC key on P-256, and --kid what the broker has its public half under,
which "plinth secret key" prints. Only guests of plinth open envelopes: CoCo's data hub
knows none whose key a broker has.`,
		Example: `  plinth secret seal --type vault kbs:///default/db/password --sign key.pem --kid kbs:///default/seal/public
  plinth secret seal --type envelope password.txt --kek kek.bin --kek-id kbs:///default/kek/1 --sign key.pem --kid kbs:///default/seal/public`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			text, err := c.seal(cmd.Context(), f, a[0])
			if err != nil {
				return err
			}
			return c.emit(f.out, func() ([]byte, error) { return []byte(text + "\n"), nil })
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.form, "type", "", "vault or envelope")
	fl.StringVar(&f.kek, "kek", "", "file with the key that wraps an envelope's, 32 bytes")
	fl.StringVar(&f.kekID, "kek-id", "", "URI of that key at the broker")
	fl.StringVar(&f.key, "sign", "", "private key to sign with: PEM file or pkcs11: URI (PIN: pin-source= there, or PLINTH_PKCS11_PIN)")
	fl.StringVar(&f.kid, "kid", "", "URI of its public key at the broker")
	fl.StringVarP(&f.out, "out", "o", stdoutName, "file to write, - for stdout")
	return cmd
}

func (c *common) seal(ctx context.Context, f *sealFlags, arg string) (string, error) {
	if f.key == "" || f.kid == "" {
		return "", usagef("sealed secrets are signed: give --sign and --kid")
	}
	if _, err := kbs.ParseURI(f.kid); err != nil {
		return "", usagef("--kid: %w", err)
	}
	s, err := f.secret(arg)
	if err != nil {
		return "", err
	}
	key, _, err := c.sealer(ctx, f.key)
	if err != nil {
		return "", err
	}
	text, err := s.Seal(f.kid, key.SignRaw)
	if err != nil {
		return "", usageError{err}
	}
	return text, nil
}

// secret is what the flags say, unsigned.
func (f *sealFlags) secret(arg string) (*kbs.Secret, error) {
	switch f.form {
	case kbs.SecretVault:
		if f.kek != "" || f.kekID != "" {
			return nil, usagef("--kek and --kek-id are for --type envelope: a vault secret holds none")
		}
		s, err := kbs.NewVault(arg)
		if err != nil {
			return nil, usageError{err}
		}
		return s, nil
	case kbs.SecretEnvelope:
		return f.envelope(arg)
	}
	return nil, usagef("--type is %q: want %s or %s", f.form, kbs.SecretVault, kbs.SecretEnvelope)
}

func (f *sealFlags) envelope(path string) (*kbs.Secret, error) {
	if f.kek == "" || f.kekID == "" {
		return nil, usagef("an envelope needs the key that wraps its own: give --kek and --kek-id")
	}
	secret, err := readLimited(path, maxSealedFile)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	kek, err := readLimited(f.kek, maxSecret)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	random := make([]byte, 32+12) // key and IV
	defer clear(random)
	if _, err := rand.Read(random); err != nil {
		return nil, err
	}
	s, err := kbs.NewEnvelope(secret, random[:32], random[32:], f.kekID, kek)
	if err != nil {
		return nil, usageError{err}
	}
	return s, nil
}

// maxSealedFile bounds a secret so that what it is sealed into is taken: base64 twice.
const maxSealedFile = 512 << 10

// sealer opens a key that can sign sealed secrets.
func (c *common) sealer(ctx context.Context, name string) (*sign.Key, *ecdsa.PublicKey, error) {
	k, err := c.signer(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	pub, ok := k.Public().(*ecdsa.PublicKey)
	if !ok || k.Algorithm().Name != kbs.SealedAlgorithm {
		return nil, nil, usagef("%s: the key is for %s: sealed secrets are signed by %s, EC on P-256", name, k.Algorithm().Name, kbs.SealedAlgorithm)
	}
	return k, pub, nil
}

func newSecretKey(c *common) *cobra.Command {
	return &cobra.Command{
		Use:   "key KEY",
		Short: "Print the public half of a signing key as the broker gets it",
		Long:  "Prints a JWK. The broker has it under what --kid of \"plinth secret seal\" says.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			_, pub, err := c.sealer(cmd.Context(), a[0])
			if err != nil {
				return err
			}
			jwk, err := kbs.SealedKey(pub)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.env.stdout, "%s\n", jwk)
			return err
		},
	}
}

func newSecretInspect(c *common) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Print what a sealed secret says, as everybody can",
		Long: `Prints what is needed to open it, and where that is asked for. With --key, a file with
the public key as JWK, the signature is checked.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			s, _, err := readSealed(a[0])
			if err != nil {
				return err
			}
			v := sealedView{Schema: 1, Header: s.Header, Secret: s.Secret, Signature: "not checked"}
			if key != "" {
				jwk, err := readLimited(key, maxSecret)
				if err != nil {
					return err
				}
				if err := s.Verify(jwk); err != nil {
					return mismatchError{fmt.Errorf("%s: %w", a[0], err)}
				}
				v.Signature = "good"
			}
			if err := s.Check(); err != nil {
				v.Refused = err.Error()
			}
			if c.json {
				return printJSON(c.env.stdout, v)
			}
			return v.text(c.env.stdout)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file with the public key, a JWK")
	return cmd
}

// A sealedView is a sealed secret for people and as JSON.
type sealedView struct {
	Schema    int              `json:"schema"`
	Header    kbs.SealedHeader `json:"header"`
	Secret    kbs.Secret       `json:"secret"`
	Signature string           `json:"signature"`
	Refused   string           `json:"refused,omitempty"` // why guests do not take it
}

func (v *sealedView) text(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s secret %s, provider %s\n", v.Secret.Type, v.Secret.Version, v.Secret.Provider)
	switch v.Secret.Type {
	case kbs.SecretVault:
		fmt.Fprintf(&b, "name       %s\n", v.Secret.Name)
	case kbs.SecretEnvelope:
		fmt.Fprintf(&b, "key        %s\ncipher     %s, key wrapped by %s\n", v.Secret.KeyID, v.Secret.WrapType, v.Secret.Annotations[kbs.AnnotationKeyWrap])
	}
	fmt.Fprintf(&b, "signature  %s, %s, by %s\n", v.Signature, v.Header.Algorithm, v.Header.KeyID)
	if v.Refused != "" {
		fmt.Fprintf(&b, "note: guests refuse it: %s\n", v.Refused)
	}
	_, err := w.Write(b.Bytes())
	return err
}

func readSealed(path string) (*kbs.Sealed, []byte, error) {
	b, err := readLimited(path, 2*maxSecret)
	if err != nil {
		return nil, nil, err
	}
	b = bytes.TrimSpace(b)
	s, err := kbs.ParseSealed(b)
	if err != nil {
		return nil, nil, usagef("%s: %w", path, err)
	}
	return s, b, nil
}

func newSecretUnseal(c *common) *cobra.Command {
	var keys []string
	cmd := &cobra.Command{
		Use:   "unseal FILE --key URI=FILE",
		Short: "Open a sealed secret as a guest does, with files in the place of a broker",
		Long: `Checks the signature and writes the secret to stdout. Each --key is what the broker has under a
URI: the public key, a JWK; the key that wraps an envelope's; a vault's secret.`,
		Example: "  plinth secret unseal db.sealed --key kbs:///default/seal/public=public.jwk --key kbs:///default/kek/1=kek.bin",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			secret, err := unseal(cmd.Context(), a[0], keys)
			if err != nil {
				return err
			}
			defer clear(secret)
			_, err = c.env.stdout.Write(secret)
			return err
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "what the broker has, URI=FILE; repeatable")
	return cmd
}

func unseal(ctx context.Context, path string, keys []string) ([]byte, error) {
	files, err := parseKeyFiles(keys)
	if err != nil {
		return nil, err
	}
	s, text, err := readSealed(path)
	if err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	var missing error
	get := func(_ context.Context, uri string) ([]byte, error) {
		u, err := kbs.ParseURI(uri)
		if err != nil {
			return nil, err
		}
		name, ok := files[u.String()]
		if !ok {
			missing = usagef("%s is asked for: give --key %s=FILE", u, u)
			return nil, missing
		}
		b, err := readLimited(name, maxSecret)
		if err != nil {
			missing = err
		}
		return b, err
	}
	secret, err := kbs.Unseal(ctx, get, text)
	switch {
	case err != nil && errors.Is(err, missing):
		return nil, missing
	case err != nil:
		return nil, mismatchError{fmt.Errorf("%s: %w", path, err)}
	}
	return secret, nil
}

// parseKeyFiles reads the values of --key. A URI may hold "=", in its query.
func parseKeyFiles(list []string) (map[string]string, error) {
	files := map[string]string{}
	for _, text := range list {
		i := strings.LastIndexByte(text, '=')
		if i < 0 || i == len(text)-1 {
			return nil, usagef("--key is %q: want URI=FILE", text)
		}
		u, err := kbs.ParseURI(text[:i])
		if err != nil {
			return nil, usagef("--key: %w", err)
		}
		if files[u.String()] != "" {
			return nil, usagef("--key: %s is given twice", u)
		}
		files[u.String()] = text[i+1:]
	}
	return files, nil
}
