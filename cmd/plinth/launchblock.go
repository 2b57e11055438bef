package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/snp"
)

// blockFlags are those of the ID block, which says what digest a guest must have,
// and of what an attestation report shows of it.
type blockFlags struct {
	idKey, authorKey, familyID, imageID, policyText string
	blockOut, authOut                               string
	svn                                             uint32

	policy        snp.Policy
	family, image [16]byte
	notes         []string
	given         *snp.IDBlock // that a QEMU command line has
}

func (b *blockFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&b.blockOut, "id-block-out", "", "write the ID block to this file, in base64")
	fl.StringVar(&b.authOut, "id-auth-out", "", "write the ID block's signature to this file, in base64")
	fl.StringVar(&b.idKey, "id-key", "", "P-384 key, PEM, that signs the ID block")
	fl.StringVar(&b.authorKey, "author-key", "", "P-384 key, PEM, that signs --id-key; QEMU needs author-key-enabled=on then")
	fl.StringVar(&b.familyID, "family-id", "", "16 bytes in hex that the report shows")
	fl.StringVar(&b.imageID, "image-id", "", "16 bytes in hex that the report shows")
	fl.Uint32Var(&b.svn, "guest-svn", 0, "security version that the report shows")
	fl.StringVar(&b.policyText, "policy", snp.DefaultPolicy.String(), "policy of the guest")
}

// check parses the flags.
func (b *blockFlags) check(f *launchFlags) (err error) {
	if b.policy, err = snp.ParsePolicy(b.policyText); err != nil {
		return usagef("--policy: %w", err)
	}
	for _, id := range []struct {
		flag, text string
		to         *[16]byte
	}{{"family-id", b.familyID, &b.family}, {"image-id", b.imageID, &b.image}} {
		raw, err := hex.DecodeString(strings.ReplaceAll(id.text, "-", ""))
		if err != nil || (id.text != "" && len(raw) != len(id.to)) {
			return usagef("--%s is %q: want %d bytes in hex", id.flag, id.text, len(id.to))
		}
		copy(id.to[:], raw)
	}
	switch {
	case b.authOut != "" && b.idKey == "":
		return usagef("--id-auth-out needs --id-key")
	case b.idKey != "" && b.authOut == "":
		return usagef("--id-key goes with --id-auth-out")
	case b.authorKey != "" && b.idKey == "":
		return usagef("--author-key goes with --id-key")
	case b.wanted() && len(f.vcpus)*max(len(f.types), 1) > 1:
		return usagef("an ID block is for one digest: give one --vcpus and one --vcpu-type")
	}
	return nil
}

func (b *blockFlags) wanted() bool { return b.blockOut != "" || b.authOut != "" }

// load reads the keys.
func (b *blockFlags) load(l *launch) (err error) {
	for i, path := range []string{b.idKey, b.authorKey} {
		if path == "" {
			continue
		}
		if l.keys[i], err = readECKey(path); err != nil {
			return err
		}
	}
	return nil
}

// readECKey reads a P-384 key from a PEM file, as openssl ecparam or genpkey
// writes it.
func readECKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, usagef("%s: no private key in PEM", path)
		}
		key, err := parseECKey(block)
		switch {
		case err != nil:
			return nil, usagef("%s: %w", path, err)
		case key == nil: // openssl ecparam puts the curve's parameters first
			continue
		case key.Curve != elliptic.P384():
			return nil, usagef("%s: curve %s: want P-384", path, key.Curve.Params().Name)
		}
		return key, nil
	}
}

// parseECKey returns nil for a block that holds no private key.
func parseECKey(block *pem.Block) (*ecdsa.PrivateKey, error) {
	switch block.Type {
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		ec, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("a %T: want an ECDSA key", key)
		}
		return ec, nil
	case "ENCRYPTED PRIVATE KEY":
		return nil, fmt.Errorf("the key is encrypted: decrypt it first, as with openssl pkey")
	}
	return nil, nil
}

// write makes the ID block for the one value, and its signature.
func (b *blockFlags) write(l *launch, m *measure.Measurements) error {
	if !b.wanted() {
		return nil
	}
	digest, err := hex.DecodeString(m.Values[0].Value)
	if err != nil {
		return err
	}
	block := &snp.IDBlock{Digest: [48]byte(digest), FamilyID: b.family, ImageID: b.image, SVN: b.svn, Policy: b.policy}
	raw := block.Marshal()
	if b.blockOut != "" {
		if err := writeBase64(b.blockOut, raw[:]); err != nil {
			return err
		}
	}
	if b.authOut == "" {
		return nil
	}
	auth, err := snp.SignIDBlock(block, l.keys[0], l.keys[1])
	if err != nil {
		return err
	}
	for i, name := range []string{"ID key", "author key"} {
		if l.keys[i] != nil {
			m.Notes = append(m.Notes, fmt.Sprintf("digest of the %s, as the report shows it: %x", name, snp.KeyDigest(&l.keys[i].PublicKey)))
		}
	}
	return writeBase64(b.authOut, auth)
}

// writeBase64 writes a line that QEMU takes as a property.
func writeBase64(path string, b []byte) error {
	return builder.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(b)+"\n"))
}

// verify compares with the ID block of a QEMU command line: with another digest
// in it, the processor refuses to start the guest.
func (b *blockFlags) verify(m *measure.Measurements) error {
	if b.given == nil {
		return nil
	}
	want := hex.EncodeToString(b.given.Digest[:])
	for _, v := range m.Values {
		if v.Value == want {
			return nil
		}
	}
	return mismatchError{fmt.Errorf("the ID block of the command line is for another digest, %s: the guest would not start", want)}
}
