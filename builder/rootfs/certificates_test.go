package rootfs

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// authority makes a certificate of the given name, in DER or as parsed pairs.
func authority(t *testing.T, subject []byte, serial int64) string {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "?"}}
	der, err := x509.CreateCertificate(nil, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	// The name goes in by hand: the library does not write all types of strings.
	// No one checks the signature here.
	var outer struct{ TBS, Algorithm, Signature asn1.RawValue }
	var fields []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		t.Fatal(err)
	}
	if _, err := asn1.Unmarshal(outer.TBS.FullBytes, &fields); err != nil {
		t.Fatal(err)
	}
	fields[5] = asn1.RawValue{FullBytes: subject}
	tbs, err := asn1.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	outer.TBS = asn1.RawValue{FullBytes: tbs}
	if der, err = asn1.Marshal(outer); err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func subject(t *testing.T, n pkix.Name) []byte {
	t.Helper()
	b, err := asn1.Marshal(n.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rawSubject makes a name of strings of the types given by their tags.
func rawSubject(t *testing.T, values ...asn1.RawValue) []byte {
	t.Helper()
	var name []asn1.RawValue
	for i, v := range values {
		pair, err := asn1.Marshal(attribute{asn1.ObjectIdentifier{2, 5, 4, 10 + i%2}, v})
		if err != nil {
			t.Fatal(err)
		}
		name = append(name, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: pair})
	}
	b, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// authorities have all that the canonical form of a name makes a difference of.
func authorities(t *testing.T) []tree.Entry {
	plain := subject(t, pkix.Name{Country: []string{"XX"}, CommonName: "Plinth  Test ROOT "})
	var out []tree.Entry
	for i, s := range [][]byte{
		plain, plain, // one name, two certificates
		subject(t, pkix.Name{Organization: []string{"Größe", "b"}, CommonName: "ÄÖ  ü"}),
		rawSubject(t, asn1.RawValue{Tag: 20, Bytes: []byte("T\xe9l\xe9 Corp")}),
		rawSubject(t, asn1.RawValue{Tag: 30, Bytes: []byte("\x00B\x00m\x01\x52\x00P")}),
		rawSubject(t, asn1.RawValue{Tag: 28, Bytes: []byte("\x00\x00\x00U\x00\x01\xf6\x00")}),
		rawSubject(t, asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte("\tia5@EXAMPLE\v \n x ")}, asn1.RawValue{Tag: asn1.TagPrintableString, Bytes: []byte("P  p")}),
		rawSubject(t, asn1.RawValue{Tag: asn1.TagNumericString, Bytes: []byte(" 12  34 ")}, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("\u00a0x")}, asn1.RawValue{Tag: asn1.TagUTF8String}),
	} {
		out = append(out, f(fmt.Sprintf("%s/mozilla/Root %d (X), Y.crt", certsShared, i), authority(t, s, int64(i+1))))
	}
	return out
}

func TestCertificates(t *testing.T) {
	certs := authorities(t)
	certs = append(certs, f(certsLocal+"/mine.crt", strings.TrimSuffix(authority(t, subject(t, pkix.Name{CommonName: "mine"}), 9), "\n")),
		f(certsShared+"/README", "no certificate"))
	got := mustBuild(t, []Package{deb("ca", certs...)}, nil, Params{})
	var want strings.Builder
	for _, e := range certs[:len(certs)-1] {
		want.WriteString(strings.TrimSuffix(string(contentOf(t, e)), "\n") + "\n")
	}
	if content(t, got, certsBundle) != want.String() {
		t.Error("the bundle is not all certificates in order")
	}
	if e := entry(t, got.Entries, certsDir+"/Root_0_=X=__Y.pem"); e.Target != "/"+certsShared+"/mozilla/Root 0 (X), Y.crt" {
		t.Errorf("%+v", e)
	}
	links := 0
	for _, e := range got.Entries {
		if dir, base := cut(e.Path); dir == certsDir && len(base) == 10 && base[8] == '.' && e.Type() == tree.TypeSymlink {
			links++
		}
	}
	if links != 9 || len(got.Notes) > 0 {
		t.Errorf("%d links by hash, want 9; notes %v", links, got.Notes)
	}
}

// TestSubjectHashAsOpenSSL asks openssl for the hash of every kind of name.
func TestSubjectHashAsOpenSSL(t *testing.T) {
	if testing.Short() {
		t.Skip("runs openssl")
	}
	testenv.Need(t, "openssl")
	dir := t.TempDir()
	for i, e := range authorities(t) {
		text := contentOf(t, e)
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
		want, err := exec.Command("openssl", "x509", "-noout", "-subject_hash", "-in", name).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, want)
		}
		block, _ := pem.Decode(text)
		got, err := subjectHash(block.Bytes)
		if err != nil || fmt.Sprintf("%08x\n", got) != string(want) {
			t.Errorf("%d: %08x, %v; openssl says %s", i, got, err, want)
		}
	}
}

func TestCertificatesChosen(t *testing.T) {
	certs := authorities(t)[:3]
	name := func(i int) string { return strings.TrimPrefix(certs[i].Path, certsShared+"/") }
	conf := "# comment\n\n!" + name(0) + "\n" + name(2) + "\nmozilla/gone.crt\n"
	got := mustBuild(t, []Package{deb("ca", certs...)}, []tree.Entry{f(certsConf, conf)}, Params{})
	if content(t, got, certsBundle) != string(contentOf(t, certs[2])) {
		t.Error("the bundle is not what ca-certificates.conf says")
	}
	if !noted(got, "lists gone.crt, which is not there") || len(got.Notes) != 1 {
		t.Errorf("notes %v", got.Notes)
	}
	got = mustBuild(t, []Package{deb("ca", certs...)}, []tree.Entry{f(certsConf, ""), f(certsBundle, "own")}, Params{})
	if content(t, got, certsBundle) != "own" || has(got.Entries, certsDir+"/Root_0_=X=__Y.pem") {
		t.Error("an empty configuration trusts something")
	}
}

func TestCertificatesOdd(t *testing.T) {
	one := authority(t, subject(t, pkix.Name{CommonName: "one"}), 1)
	entries := []tree.Entry{f(certsLocal+"/a.crt", one), f(certsLocal+"/b.crt", one), f(certsLocal+"/both.crt", one+one), f(certsLocal+"/text.crt", "hello\n"),
		tree.Symlink(certsLocal+"/gone.crt", "nowhere"), tree.Symlink(certsLocal+"/up", "..")}
	got := mustBuild(t, nil, entries, Params{})
	if n := strings.Count(content(t, got, certsBundle), "BEGIN"); n != 4 {
		t.Errorf("%d certificates in the bundle, want 4", n)
	}
	block, _ := pem.Decode([]byte(one))
	h, err := subjectHash(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if entry(t, got.Entries, fmt.Sprintf("%s/%08x.0", certsDir, h)).Target != "a.pem" || has(got.Entries, fmt.Sprintf("%s/%08x.1", certsDir, h)) {
		t.Error("not one link for one certificate")
	}
	if !noted(got, "text.pem: no PEM certificate") {
		t.Errorf("notes %v", got.Notes)
	}
	block.Bytes[4] ^= 0xff
	got = mustBuild(t, nil, []tree.Entry{f(certsLocal+"/a.crt", string(pem.EncodeToMemory(block)))}, Params{})
	if !noted(got, "a.pem: not found by the hash of its name: asn1") {
		t.Errorf("notes %v", got.Notes)
	}
}

func FuzzCanonicalSet(f *testing.F) {
	f.Add([]byte("\x30\x09\x06\x03\x55\x04\x0a\x0c\x02Ab"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := canonicalSet(b)
		if err != nil {
			return
		}
		var set asn1.RawValue
		if rest, err := asn1.Unmarshal(x, &set); err != nil || len(rest) > 0 {
			t.Fatalf("%x: %v", x, err)
		}
		if y, err := canonicalSet(set.Bytes); err != nil || !bytes.Equal(x, y) {
			t.Errorf("canonical %x, again %x: %v", x, y, err)
		}
	})
}
