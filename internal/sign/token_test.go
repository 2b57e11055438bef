package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

const softhsm = "/usr/lib/softhsm/libsofthsm2.so"

// A hsm is a SoftHSM token "plinth" with keys in it.
type hsm struct {
	t   *testing.T
	dir string
}

const testPIN = "4711"

func newHSM(t *testing.T) *hsm {
	testenv.Need(t, "softhsm2-util", "pkcs11-tool")
	if _, err := os.Stat(softhsm); err != nil {
		testenv.Missing(t, "softhsm2-util", err.Error())
	}
	h := &hsm{t, t.TempDir()}
	conf := h.put("softhsm2.conf", "directories.tokendir = "+h.dir+"\nobjectstore.backend = file\n")
	t.Setenv("SOFTHSM2_CONF", conf)
	h.run("softhsm2-util", "--init-token", "--free", "--label", "plinth", "--pin", testPIN, "--so-pin", "0815")
	return h
}

func (h *hsm) put(name, content string) string {
	h.t.Helper()
	p := filepath.Join(h.dir, name)
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *hsm) run(tool string, args ...string) {
	h.t.Helper()
	if out, err := exec.Command(testenv.Tool(tool), args...).CombinedOutput(); err != nil {
		h.t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
}

func (h *hsm) add(label, id string, key any) {
	h.t.Helper()
	h.run("softhsm2-util", "--import", h.put(label+".pem", string(pkcs8(h.t, key))), "--token", "plinth", "--label", label, "--id", id, "--pin", testPIN)
}

func (h *hsm) open(uri string) (*Key, error) {
	return Open(context.Background(), uri, Options{PIN: testPIN, Module: softhsm})
}

// TestToken signs with a token's keys. The public halves are known without the
// token, and SignMessage has checked each signature by the key that it was given.
func TestToken(t *testing.T) {
	h := newHSM(t)
	p256, p384, rs := rfc6979(t), ecdsaKey(t, elliptic.P384()), rsaKey(t)
	h.add("first", "a0", edKey())
	h.add("p256", "01", p256)
	h.add("p384", "02", p384)
	h.add("rsa key", "fe", rs)
	pin := h.put("pin", testPIN+"\n")
	for _, row := range []struct {
		uri  string
		want crypto.Signer
		alg  *Algorithm
	}{
		{"pkcs11:token=plinth;object=p256", p256, es256},
		{"pkcs11:token=plinth;object=p384;type=private", p384, es384},
		{"PKCS11:token=plinth;object=rsa%20key", rs, ps256},
		{"pkcs11:id=%fe;token=plinth?pin-source=" + pin + "&module-path=" + softhsm, rs, ps256},
		{"pkcs11:id=%01;token=plinth;object=p256?pin-source=file:" + pin, p256, es256},
	} {
		k, err := h.open(row.uri)
		if err != nil {
			t.Errorf("%s: %v", row.uri, err)
			continue
		}
		if k.alg != row.alg || !k.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(row.want.Public()) {
			t.Errorf("%s: %s, %v", row.uri, k.alg.Name, k.Public())
		}
		message := bytes.Repeat([]byte("long message "), 1000)
		sig, err := k.SignMessage(message)
		if err != nil || !verify(row.want.Public(), row.alg, message, sig) {
			t.Errorf("%s: %x, %v", row.uri, sig, err)
		}
		if _, err := SignCOSE(message, k, CoRIMParams{}); err != nil {
			t.Errorf("%s: COSE: %v", row.uri, err)
		}
	}
	k, err := h.open("pkcs11:token=plinth;object=rsa%20key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("PKCS #1 v1.5 passes")
	}
}

func TestTokenRefuses(t *testing.T) {
	h := newHSM(t)
	const there = "pkcs11:token=plinth;object=p256"
	if _, err := h.open(there); err == nil || !strings.Contains(err.Error(), "no private key") {
		t.Errorf("an empty token: %v", err)
	}
	h.add("p256", "01", rfc6979(t))
	h.add("ed", "02", edKey())
	h.add("twin", "0a", ecdsaKey(t, elliptic.P256()))
	h.add("twin", "0b", ecdsaKey(t, elliptic.P256()))
	empty := h.put("empty", "\n")
	for name, row := range map[string]struct {
		uri        string
		o          Options
		want, hint string
	}{
		"another label": {"pkcs11:token=plinth;object=nope", Options{}, `no such key: it has `, ""},
		"another ID":    {"pkcs11:token=plinth;object=p256;id=%02", Options{}, "no such key", ""},
		"two keys":      {"pkcs11:token=plinth;object=twin", Options{}, "2 keys fit: say which by id", ""},
		"Ed25519":       {"pkcs11:token=plinth;object=ed", Options{}, "Ed25519", ""},
		"another token": {"pkcs11:token=nope;object=p256", Options{}, `No slot with token named "nope"`, "list-token-slots"},
		"wrong PIN":     {there, Options{PIN: "9999"}, "CKR_PIN_INCORRECT", "locks itself"},
		"no PIN":        {there, Options{PIN: "-"}, "no PIN", "pin-source"},
		"empty PIN":     {there + "?pin-source=" + empty, Options{}, "no PIN", "pin-source"},
		"no library":    {there + "?module-path=/nope.so", Options{}, "ailed to load pkcs11 module", "module-path"},
	} {
		o := Options{PIN: testPIN, Module: softhsm}
		if row.o.PIN != "" {
			o.PIN = strings.Trim(row.o.PIN, "-")
		}
		_, err := Open(context.Background(), row.uri, o)
		var bad *KeyError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), row.want) || !strings.Contains(bad.Hint(), row.hint) {
			t.Errorf("%s: %v, want %q and the hint %q", name, err, row.want, row.hint)
		}
	}
	if _, err := h.open(there + "?pin-source=" + filepath.Join(h.dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no PIN file: %v", err)
	}
	if k, err := h.open("pkcs11:token=plinth;object=twin;id=%0b"); err != nil {
		t.Errorf("%v, %v", k, err)
	}
}

// TestTokenTool: arguments hold no PIN, the environment does; and a tool that
// hangs ends with the context.
func TestTokenTool(t *testing.T) {
	dir := t.TempDir()
	script := func(body string) Options {
		p := filepath.Join(dir, "tool")
		if err := os.WriteFile(p, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
		return Options{PIN: testPIN, Tool: p}
	}
	_, err := Open(context.Background(), "pkcs11:slot-id=3;object=a", script(`echo "error: $PLINTH_TOKEN_PIN | $*" >&2; exit 1`))
	if want := testPIN + " | --login --pin env:PLINTH_TOKEN_PIN --slot 3 --list-objects"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, "pkcs11:slot-id=3;object=a", script("exec sleep 20")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	t.Setenv("PATH", dir)
	if _, err := Open(context.Background(), "pkcs11:token=a;object=b", Options{PIN: "1"}); !errors.Is(err, ErrNoTool) {
		t.Errorf("%v", err)
	}
}

func TestParseURIRefuses(t *testing.T) {
	for uri, want := range map[string]string{
		"pkcs11:":                                  "no token",
		"pkcs11:token=a":                           "no key",
		"pkcs11:object=a":                          "no token",
		"pkcs11:token=a;slot-id=1;object=b":        "one of them",
		"pkcs11:token=a;object=b;serial=1":         "serial: not supported",
		"pkcs11:token=a;object=b;type=public":      `type is "public"`,
		"pkcs11:token=a;object=b;object=c":         "twice",
		"pkcs11:token=a;object":                    "want NAME=VALUE",
		"pkcs11:token=a;object=%zz":                "object: ",
		"pkcs11:token=a;object=b?pin-value=1":      "readable by every process",
		"pkcs11:token=a;object=b?pin-source=|cat":  "a command",
		"pkcs11:token=a;object=b?module-name=soft": "module-name: not supported",
	} {
		_, err := Open(context.Background(), uri, Options{PIN: "1"})
		var bad *KeyError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "?") {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
	}
}

// TestTokenCertificate: a token that holds a certificate in place of the public
// key, as smart cards do, and one that holds neither.
func TestTokenCertificate(t *testing.T) {
	h := newHSM(t)
	key := rsaKey(t)
	h.add("a", "01", key)
	tool := func(args ...string) {
		h.run("pkcs11-tool", append([]string{"--module", softhsm, "--token-label", "plinth", "--login", "--pin", testPIN}, args...)...)
	}
	tool("--delete-object", "--type", "pubkey", "--id", "01")
	if _, err := h.open("pkcs11:token=plinth;object=a"); err == nil || !strings.Contains(err.Error(), "neither public key nor certificate") {
		t.Errorf("%v", err)
	}
	tool("--write-object", h.put("c.der", string(certify(t, "c", key, nil, nil).Raw)), "--type", "cert", "--id", "01", "--label", "a")
	k, err := h.open("pkcs11:token=plinth;object=a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.SignMessage([]byte("m")); err != nil || !key.PublicKey.Equal(k.Public()) {
		t.Error(err)
	}
}

// TestPick: what the listing of another token may have.
func TestPick(t *testing.T) {
	parse := func(lines ...string) []object { return parseObjects(strings.Join(lines, "\n")) }
	key := func(label, id string) string {
		return "Private Key Object; EC\n  label:      " + label + "\n  ID:         " + id
	}
	u := &tokenURI{object: "a"}
	for name, row := range map[string]struct {
		objects []object
		want    string
	}{
		"good":       {parse(key("a", "01"), "Certificate Object; type = X.509 cert", "  label: a", "  ID: 01"), "01"},
		"colons":     {parse(key("a", "01:AB")), "01ab"},
		"no ID":      {parse("Private Key Object; RSA ", "  label:      a"), "no ID"},
		"equal IDs":  {parse(key("a", "01"), key("b", "01")), "two keys"},
		"no private": {parse("Public Key Object; RSA 2048 bits", "  label: a", "  ID: 01"), "no private key"},
	} {
		o, err := pick(row.objects, u)
		if got := o.id + fmt.Sprint(err); !strings.Contains(got, row.want) {
			t.Errorf("%s: got %s, want %s", name, got, row.want)
		}
	}
}

// TestTokenSays: what other tokens may answer, by a run that no tool makes.
func TestTokenSays(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip("crypto/rsa makes no small keys")
	}
	spki := func(pub any) string {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return string(der)
	}
	const private = "noise: before\nPrivate Key Object; RSA\n  label: a\n  ID: 01\nUsing: 7\nno colon\n"
	const public, ec, cert = private + "Public Key Object; RSA 2048 bits\n  ID: 01\n", private + "Public Key Object; EC  EC_POINT 256 bits\n  ID: 01\n", private + "Certificate Object; type = X.509 cert\n  ID: 01\n"
	for name, row := range map[string]struct{ list, object, want string }{
		"a short key":         {public, spki(&small.PublicKey), "RSA with 1024 bits"},
		"PKCS #1":             {public, string(x509.MarshalPKCS1PublicKey(&small.PublicKey)), "RSA with 1024 bits"},
		"no key":              {public, "x", "asn1"},
		"no certificate":      {cert, "x", "x509"},
		"Ed25519 certificate": {cert, string(certify(t, "c", edKey(), nil, nil).Raw), "Ed25519"},
		"public fails":        {public, "", "tool: no"},
		"certificate fails":   {cert, "", "tool: no"},
		"no parameters":       {ec, "x", "EC_PARAMS"},
		"parameters not hex":  {ec + "  EC_PARAMS: xy\n", "x", "EC_PARAMS"},
		"another curve":       {ec + "  EC_PARAMS: 06052b8104000a (OID 1.3.132.0.10)\n", "x", "curve 1.3.132.0.10"},
		"point not hex":       {ec + "  EC_PARAMS: 06082a8648ce3d030107\n  EC_POINT: xy\n", "x", "EC_POINT"},
		"point not on curve":  {ec + "  EC_PARAMS: 06082a8648ce3d030107\n  EC_POINT: 04" + strings.Repeat("01", 64) + "\n", "x", "point"},
	} {
		token := &token{func(_ []byte, args ...string) ([]byte, error) {
			switch {
			case args[0] == "--list-objects":
				return []byte(row.list), nil
			case row.object == "":
				return nil, errors.New("tool: no")
			}
			return []byte(row.object), nil
		}}
		if k, err := token.key(&tokenURI{object: "a"}); err == nil || !strings.Contains(err.Error(), row.want) || k != nil {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

// FuzzURI: what parses names a token and a key.
func FuzzURI(f *testing.F) {
	f.Add("pkcs11:token=a%20b;object=c;id=%01;type=private?pin-source=file:/pin&module-path=/lib.so")
	f.Add("pkcs11:slot-id=1;id=%ff")
	f.Fuzz(func(t *testing.T, s string) {
		if !isURI(s) {
			return
		}
		u, err := parseURI(s)
		if err == nil && ((u.token == "") == (u.slot == "") || u.object == "" && len(u.id) == 0) {
			t.Errorf("%q: %+v", s, u)
		}
	})
}

// FuzzListing: whatever a tool prints, a key that is picked is one that fits.
func FuzzListing(f *testing.F) {
	f.Add("Private Key Object; EC\n  label:      a\n  ID:         01\nPublic Key Object; EC  EC_POINT 256 bits\n  EC_POINT:   0403\n  EC_PARAMS:  06082a8648ce3d030107 (OID 1.2)\n  ID: 01\n")
	f.Fuzz(func(t *testing.T, s string) {
		objects := parseObjects(s)
		for _, o := range objects {
			_, _ = o.ecdsa()
		}
		o, err := pick(objects, &tokenURI{object: "a"})
		if err == nil && (o.label != "a" || o.id == "" || o.class != "Private Key") {
			t.Errorf("%+v", o)
		}
	})
}
