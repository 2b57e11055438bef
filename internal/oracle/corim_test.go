package oracle

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/veraison/go-cose"

	keys "github.com/plinth-os/plinth/internal/sign"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/refvalue"
)

// corimSets are sets of every TEE and of every kind of value.
func corimSets() []*refvalue.Set {
	hex := func(n int, b byte) any { return strings.Repeat(fmt.Sprintf("%02x", b), n) }
	expires := time.Unix(1767225600, 0)
	return []*refvalue.Set{
		{TEE: refvalue.SNP, Values: []refvalue.Value{{Name: "snp_launch_measurement", Any: []any{hex(48, 1), hex(48, 2), hex(48, 3)}}, {Name: "snp_smt_allowed", Any: []any{true}}}},
		{TEE: refvalue.TDX, Expires: expires, Values: []refvalue.Value{
			{Name: "mr_td", Any: []any{hex(48, 4)}}, {Name: "rtmr_1", Any: []any{hex(48, 5)}}, {Name: "rtmr_2", Any: []any{hex(48, 6)}},
			{Name: "tdvfkernel", Scalar: true, Any: []any{hex(48, 7)}}, {Name: "xfam", Any: []any{hex(8, 8)}}}},
		{TEE: refvalue.AzSNP, Values: []refvalue.Value{{Name: "snp_pcr11", Any: []any{hex(32, 9)}}}},
		{TEE: refvalue.AzTDX, Expires: expires, Values: []refvalue.Value{{Name: "tdx_pcr11", Any: []any{hex(32, 10)}}}},
		{TEE: refvalue.TPM, Values: []refvalue.Value{{Name: "tpm_pcr11", Any: []any{hex(32, 11), hex(32, 12)}}}},
	}
}

func signers(t *testing.T) map[string]crypto.Signer {
	t.Helper()
	out := map[string]crypto.Signer{"EdDSA": ed25519.NewKeyFromSeed(make([]byte, 32))}
	for name, c := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = k
	}
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	out["PS256"] = k
	return out
}

func signed(t *testing.T, payload []byte, s crypto.Signer, chain ...*x509.Certificate) []byte {
	t.Helper()
	k, err := keys.New(s)
	if err != nil {
		t.Fatal(err)
	}
	b, err := keys.SignCOSE(payload, k, keys.CoRIMParams{Signer: "somebody", NotAfter: 1767225600, Chain: chain})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCOSE verifies our signatures with veraison's go-cose, and that one changed
// byte of any part is noticed.
func TestCOSE(t *testing.T) {
	payload, err := corimSets()[1].CoRIM(refvalue.CoRIMParams{})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range signers(t) {
		b := signed(t, payload, s)
		if err := coseVerify(b, s.Public()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for at := 4; at < len(b); at += 7 {
			bad := bytes.Clone(b)
			bad[at] ^= 1
			if err := coseVerify(bad, s.Public()); err == nil {
				t.Errorf("%s: byte %#x may change", name, at)
			}
		}
		c, err := refvalue.ParseCoRIM(b)
		if err != nil || !c.Signed || len(c.RVPS()) != 5 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func coseVerify(b []byte, pub crypto.PublicKey) error {
	m := cose.NewSign1Message()
	if err := m.UnmarshalCBOR(b); err != nil {
		return err
	}
	alg, err := m.Headers.Protected.Algorithm()
	if err != nil {
		return err
	}
	v, err := cose.NewVerifier(alg, pub)
	if err != nil {
		return err
	}
	return m.Verify(nil, v)
}

// TestVeraison reads our CoRIMs, signed and not, with veraison's library, built
// from the checkout that PLINTH_CORIM names.
func TestVeraison(t *testing.T) {
	read := veraison(t)
	key := signers(t)["ES384"]
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	pub := filepath.Join(t.TempDir(), "pub.pem")
	if err := os.WriteFile(pub, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	root := certificate(t, "root", key, nil)
	chain := []*x509.Certificate{certificate(t, "leaf", key, root), root}
	for _, s := range corimSets() {
		b, err := s.CoRIM(refvalue.CoRIMParams{Entity: "somebody"})
		if err != nil {
			t.Fatal(err)
		}
		ours, err := refvalue.ParseCoRIM(b)
		if err != nil {
			t.Fatal(err)
		}
		compareCoRIM(t, s, ours, read(b))
		for n := range len(chain) + 1 {
			r := read(signed(t, b, key, chain[:n]...), pub)
			if r.Signer != "somebody" || len(r.Chain) != n || (n > 1 && r.Chain[1] != "root") {
				t.Errorf("%s: signed by %q, %v", s.TEE, r.Signer, r.Chain)
			}
			compareCoRIM(t, s, ours, r)
		}
	}
}

// certificate is one of key, signed by it too.
func certificate(t *testing.T, name string, key crypto.Signer, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c
}

// theirs is what testdata/corim prints.
type theirs struct {
	ID, Tag, Signer string
	Chain           []string
	NotAfter        int64
	Names           []string
	Values          [][]string
}

func compareCoRIM(t *testing.T, s *refvalue.Set, ours *refvalue.CoRIM, r theirs) {
	t.Helper()
	if r.ID != ours.ID || r.Tag != ours.Tags[0].ID || r.NotAfter != ours.NotAfter {
		t.Errorf("%s: %+v, ours %+v", s.TEE, r, ours)
	}
	var want theirs
	for _, v := range ours.RVPS() {
		list, ok := v.Value.([]string)
		if !ok {
			list = []string{v.Value.(string)}
		}
		want.Names, want.Values = append(want.Names, v.Name), append(want.Values, list)
	}
	if fmt.Sprint(r.Names, r.Values) != fmt.Sprint(want.Names, want.Values) {
		t.Errorf("%s: %v %v, ours %v %v", s.TEE, r.Names, r.Values, want.Names, want.Values)
	}
	names, err := s.CoRIMNames()
	if err != nil {
		t.Fatal(err)
	}
	in := 0
	for _, n := range names {
		if n.RVPS != "" && in < len(r.Names) {
			if n.RVPS != r.Names[in] {
				t.Errorf("%s: we call it %s, it is %s", n.Name, n.RVPS, r.Names[in])
			}
			in++
		}
	}
}

// veraison builds testdata/corim within the checkout, which it does not change.
func veraison(t *testing.T) func(corim []byte, args ...string) theirs {
	t.Helper()
	checkout := os.Getenv("PLINTH_CORIM")
	if checkout == "" {
		testenv.Missing(t, "corim", "PLINTH_CORIM names no checkout of veraison/corim")
	}
	source, err := filepath.Abs("testdata/corim/main.go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay, _ := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(checkout, "plinth-oracle", "main.go"): source}})
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "read")
	cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", program, "./plinth-oracle")
	cmd.Dir = checkout
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return func(corim []byte, args ...string) (r theirs) {
		t.Helper()
		name := filepath.Join(dir, "corim")
		if err := os.WriteFile(name, corim, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(program, append([]string{name}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("veraison's library: %v\n%s", err, out)
		}
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return r
	}
}
