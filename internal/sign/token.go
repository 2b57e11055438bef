package sign

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// A token is reached through OpenSC's pkcs11-tool: to load a PKCS #11 library,
// this program would have to be linked dynamically.
type token struct {
	run func(stdin []byte, args ...string) ([]byte, error)
}

// pinVariable hands the PIN to pkcs11-tool, which takes "env:NAME" for it.
const pinVariable = "PLINTH_TOKEN_PIN"

func openToken(ctx context.Context, name string, o Options) (*Key, error) {
	u, err := parseURI(name)
	name, _, _ = strings.Cut(name, "?") // a PIN that somebody put there stays out of messages
	if err != nil {
		return nil, &KeyError{Key: name, Err: err}
	}
	pin, err := u.pin(o.PIN)
	if errors.Is(err, errNoPIN) {
		return nil, &KeyError{Key: name, Err: err, hint: "add ?pin-source=FILE to the URI, or set PLINTH_PKCS11_PIN"}
	}
	if err != nil {
		return nil, fmt.Errorf("sign: %s: %w", name, err)
	}
	t, err := newToken(ctx, u, pin, o)
	if err != nil {
		return nil, fmt.Errorf("sign: %s: %w", name, err)
	}
	k, err := t.key(u)
	if err != nil && ctx.Err() == nil {
		return nil, &KeyError{Key: name, Err: err, hint: tokenHint(err)}
	}
	return k, err
}

func newToken(ctx context.Context, u *tokenURI, pin string, o Options) (*token, error) {
	tool := o.Tool
	if tool == "" {
		var err error
		if tool, err = exec.LookPath("pkcs11-tool"); err != nil {
			return nil, fmt.Errorf("%w: it is in the package opensc", ErrNoTool)
		}
	}
	common := []string{"--login", "--pin", "env:" + pinVariable}
	if module := cmp.Or(u.module, o.Module); module != "" {
		common = append(common, "--module", module)
	}
	if u.token != "" {
		common = append(common, "--token-label", u.token)
	} else {
		common = append(common, "--slot", u.slot)
	}
	return &token{func(stdin []byte, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, tool, slices.Concat(common, args)...)
		cmd.Env = append(os.Environ(), pinVariable+"="+pin, "LC_ALL=C")
		cmd.Stdin = bytes.NewReader(stdin)
		var out, says bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &says
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("pkcs11-tool: %s", reason(says.String(), err))
		}
		return out.Bytes(), nil
	}}, nil
}

// reason picks from what pkcs11-tool says the line that is the reason.
func reason(says string, err error) string {
	lines := strings.FieldsFunc(says, func(r rune) bool { return r == '\n' })
	for _, want := range []string{"error:", "No slot", "failed", ""} {
		for _, l := range lines {
			if strings.Contains(l, want) && l != "Aborting." {
				return strings.TrimSpace(strings.TrimPrefix(l, "error:"))
			}
		}
	}
	return err.Error()
}

func tokenHint(err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, "CKR_PIN_INCORRECT"):
		return "the token locks itself after some wrong PINs: look at the pin-source before trying again"
	case strings.Contains(text, "CKR_PIN_LOCKED"):
		return "the token's security officer can unlock it"
	case strings.Contains(text, "No slot"):
		return `"pkcs11-tool --module FILE --list-token-slots" lists the tokens of a library`
	case strings.Contains(text, "Failed to load"):
		return "name the token's library by module-path= in the URI, or by PLINTH_PKCS11_MODULE"
	}
	return ""
}

// key finds the private key that u names, and the public key to it.
func (t *token) key(u *tokenURI) (*Key, error) {
	out, err := t.run(nil, "--list-objects")
	if err != nil {
		return nil, err
	}
	objects := parseObjects(string(out))
	private, err := pick(objects, u)
	if err != nil {
		return nil, err
	}
	pub, err := t.public(objects, private.id)
	if err != nil {
		return nil, err
	}
	k, err := New(&tokenKey{t, private.id, pub})
	if err != nil {
		return nil, err
	}
	if k.alg == eddsa {
		return nil, errEdDSA
	}
	return k, nil
}

// errEdDSA: Ed25519 signs the message and not a digest of it, and pkcs11-tool (as
// of OpenSC 0.23) gives EdDSA no more than its first kilobyte.
var errEdDSA = errors.New("an Ed25519 key in a token, which pkcs11-tool lets sign only short messages: want ECDSA or RSA")

// pick returns the one private key that u names. pkcs11-tool itself signs with
// whatever key comes first when told a label, so that it is told IDs alone.
func pick(objects []object, u *tokenURI) (object, error) {
	var found []object
	var there []string
	for _, o := range objects {
		if o.class != "Private Key" {
			continue
		}
		there = append(there, fmt.Sprintf("%q (id %s)", o.label, o.id))
		if (u.object == "" || o.label == u.object) && (len(u.id) == 0 || o.id == hex.EncodeToString(u.id)) {
			found = append(found, o)
		}
	}
	switch {
	case len(there) == 0:
		return object{}, errors.New("the token has no private key")
	case len(found) == 0:
		return object{}, fmt.Errorf("the token has no such key: it has %s", strings.Join(there, ", "))
	case len(found) > 1:
		return object{}, fmt.Errorf("%d keys fit: say which by id=%%NN: the token has %s", len(found), strings.Join(there, ", "))
	case found[0].id == "":
		return object{}, fmt.Errorf("key %q has no ID to name it by", found[0].label)
	}
	for _, o := range objects {
		if o.class == "Private Key" && o.id == found[0].id && o != found[0] {
			return object{}, fmt.Errorf("two keys of the token have the ID %s", o.id)
		}
	}
	return found[0], nil
}

// An object is one of pkcs11-tool's listing.
type object struct{ class, kind, label, id, point, params string }

// parseObjects reads the listing: a line "Public Key Object; EC ..." for each
// object, then indented lines of "name: value".
func parseObjects(listing string) []object {
	var out []object
	for line := range strings.Lines(listing) {
		line = strings.TrimRight(line, "\r\n")
		if class, kind, ok := strings.Cut(line, " Object; "); ok && !strings.HasPrefix(line, " ") {
			kind, _, _ = strings.Cut(kind, " ")
			out = append(out, object{class: class, kind: kind})
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || len(out) == 0 || !strings.HasPrefix(line, "  ") {
			continue
		}
		o := &out[len(out)-1]
		switch value = strings.TrimSpace(value); strings.TrimSpace(name) {
		case "label":
			o.label = value
		case "ID":
			o.id = strings.ToLower(strings.ReplaceAll(value, ":", ""))
		case "EC_POINT":
			o.point = value
		case "EC_PARAMS":
			o.params, _, _ = strings.Cut(value, " ")
		}
	}
	return out
}

// public returns the public key with that ID: of the public key object, else of
// the certificate.
func (t *token) public(objects []object, id string) (crypto.PublicKey, error) {
	find := func(class string) *object {
		for i, o := range objects {
			if o.class == class && o.id == id {
				return &objects[i]
			}
		}
		return nil
	}
	if o := find("Public Key"); o != nil {
		switch {
		case o.kind == "EC":
			return o.ecdsa()
		case strings.HasPrefix(o.kind, "EC_EDWARDS"):
			return nil, errEdDSA
		}
		der, err := t.run(nil, "--read-object", "--type", "pubkey", "--id", id)
		if err != nil {
			return nil, err
		}
		if pub, err := x509.ParsePKIXPublicKey(der); err == nil {
			return pub, nil
		}
		return x509.ParsePKCS1PublicKey(der)
	}
	if find("Certificate") == nil {
		return nil, fmt.Errorf("the token has neither public key nor certificate with the ID %s, and a private key does not say its public half", id)
	}
	der, err := t.run(nil, "--read-object", "--type", "cert", "--id", id)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return c.PublicKey, nil
}

var curves = map[string]elliptic.Curve{
	"1.2.840.10045.3.1.7": elliptic.P256(),
	"1.3.132.0.34":        elliptic.P384(),
	"1.3.132.0.35":        elliptic.P521(),
}

// ecdsa reads an EC public key from the listing: pkcs11-tool 0.23 cannot write one
// on P-384 as a file.
func (o *object) ecdsa() (crypto.PublicKey, error) {
	params, err := hex.DecodeString(o.params)
	if err != nil {
		return nil, fmt.Errorf("EC_PARAMS %q: %w", o.params, err)
	}
	var oid asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(params, &oid); err != nil {
		return nil, fmt.Errorf("EC_PARAMS %q: %w", o.params, err)
	}
	curve := curves[oid.String()]
	if curve == nil {
		return nil, fmt.Errorf("ECDSA on curve %s: want P-256, P-384 or P-521", oid)
	}
	point, err := hex.DecodeString(o.point)
	if err != nil {
		return nil, fmt.Errorf("EC_POINT %q: %w", o.point, err)
	}
	var inner []byte // PKCS #11 2.40: the point is within an OCTET STRING
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	return ecdsa.ParseUncompressedPublicKey(curve, point)
}

// A tokenKey signs by pkcs11-tool.
type tokenKey struct {
	token *token
	id    string
	pub   crypto.PublicKey
}

func (k *tokenKey) Public() crypto.PublicKey { return k.pub }

// Sign takes digests alone. The token has its own randomness.
func (k *tokenKey) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	switch pub := k.pub.(type) {
	case *ecdsa.PublicKey:
		raw, err := k.token.run(digest, "--sign", "--mechanism", "ECDSA", "--signature-format", "rs", "--id", k.id)
		if err != nil {
			return nil, err
		}
		return asn1ECDSA(pub, raw)
	case *rsa.PublicKey:
		if p, ok := o.(*rsa.PSSOptions); !ok || p.Hash != crypto.SHA256 || len(digest) != p.Hash.Size() {
			return nil, errors.New("a token's RSA key signs by PSS with SHA-256 alone")
		}
		return k.token.run(digest, "--sign", "--mechanism", "RSA-PKCS-PSS", "--hash-algorithm", "SHA256",
			"--mgf", "MGF1-SHA256", "--salt-len", "32", "--id", k.id)
	}
	return nil, fmt.Errorf("%T: cannot sign", k.pub)
}
