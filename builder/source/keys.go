package source

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

//go:embed keys/*.asc
var archiveKeys embed.FS

// A Keyring holds the OpenPGP keys that may sign an archive. It is read-only
// once a Client uses it.
type Keyring struct {
	keys openpgp.EntityList
}

// ArchiveKeys returns the embedded keys of the Debian archive; keys/README.md
// says where they come from.
func ArchiveKeys() (*Keyring, error) {
	files, err := archiveKeys.ReadDir("keys")
	if err != nil {
		return nil, err
	}
	var k Keyring
	for _, f := range files {
		b, err := archiveKeys.ReadFile("keys/" + f.Name())
		if err == nil {
			err = k.Add(b)
		}
		if err != nil {
			return nil, fmt.Errorf("source: embedded key %s: %w", f.Name(), err)
		}
	}
	return &k, nil
}

// Add adds the keys of a keyring file, armored or binary.
func (k *Keyring) Add(b []byte) error {
	read := openpgp.ReadKeyRing
	if bytes.Contains(b, []byte("-----BEGIN PGP")) {
		read = openpgp.ReadArmoredKeyRing
	}
	keys, err := read(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("source: keyring: %w", err)
	}
	k.keys = append(k.keys, keys...)
	return nil
}

// Fingerprints returns the fingerprints of the primary keys, sorted.
func (k *Keyring) Fingerprints() []string {
	var fprs []string
	for _, e := range k.keys {
		fprs = append(fprs, fmt.Sprintf("%X", e.PrimaryKey.Fingerprint))
	}
	slices.Sort(fprs)
	return slices.Compact(fprs)
}

const maxSignatures = 16

// verify returns the text of a clear-signed message (RFC 9580, section 7) and the
// fingerprints of the primary keys whose signatures are good at the time now;
// one is enough. Text outside of the signature is refused.
func (k *Keyring) verify(message []byte, now time.Time) (text []byte, signers []string, err error) {
	if !bytes.HasPrefix(message, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return nil, nil, errors.New("not a clear-signed message")
	}
	block, rest := clearsign.Decode(message)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, nil, errors.New("malformed clear-signed message")
	}
	var problems []error
	packets := packet.NewReader(block.ArmoredSignature.Body)
	for range maxSignatures {
		p, err := packets.Next()
		if err == io.EOF {
			break
		}
		sig, ok := p.(*packet.Signature)
		if err != nil || !ok {
			return nil, nil, errors.New("malformed signature")
		}
		signer, err := k.check(block.Bytes, sig, now)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		signers = append(signers, signer)
	}
	if len(signers) == 0 {
		return nil, nil, errors.Join(append(problems, fmt.Errorf("no good signature by a pinned key at %s", stamp(now)))...)
	}
	slices.Sort(signers)
	return block.Plaintext, slices.Compact(signers), nil
}

// check verifies one signature. openpgp stops at the first whose key it knows,
// but any good one counts here and all are reported.
func (k *Keyring) check(signed []byte, sig *packet.Signature, now time.Time) (string, error) {
	issuer := "an unnamed key"
	if sig.IssuerKeyId != nil {
		issuer = fmt.Sprintf("key %X", *sig.IssuerKeyId)
	}
	var one bytes.Buffer
	if err := sig.Serialize(&one); err != nil {
		return "", fmt.Errorf("signature by %s: %w", issuer, err)
	}
	conf := &packet.Config{Time: func() time.Time { return now }}
	_, signer, err := openpgp.VerifyDetachedSignature(k.keys, bytes.NewReader(signed), &one, conf)
	if err != nil {
		return "", fmt.Errorf("signature by %s: %w", issuer, err)
	}
	return fmt.Sprintf("%X", signer.PrimaryKey.Fingerprint), nil
}
