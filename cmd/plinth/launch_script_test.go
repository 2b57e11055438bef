package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/plinth-os/plinth/measure/ovmf/ovmftest"
)

// firmware KIND FILE writes a firmware with the outsides of edk2's AmdSev or
// IntelTdx build and nothing in it.
func writeFirmware(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) != 2 {
		ts.Fatalf("usage: firmware amdsev|inteltdx FILE")
	}
	build, ok := map[string]func(string) []byte{"amdsev": ovmftest.AmdSev, "inteltdx": ovmftest.IntelTDX}[a[0]]
	if !ok {
		ts.Fatalf("firmware %s: want amdsev or inteltdx", a[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(a[1]), build("2025.02-8"), 0o644))
}

// want FILE sets DIGEST to what the file holds.
func wantDigest(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) != 1 {
		ts.Fatalf("usage: want FILE")
	}
	ts.Setenv("DIGEST", strings.TrimSpace(ts.ReadFile(a[0])))
}

// args BLOCK AUTH VCPUS FILE writes a QEMU command line with an ID block.
func writeArgs(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) != 4 {
		ts.Fatalf("usage: args BLOCK AUTH VCPUS FILE")
	}
	block, auth := strings.TrimSpace(ts.ReadFile(a[0])), strings.TrimSpace(ts.ReadFile(a[1]))
	text := "-machine q35,confidential-guest-support=a\n-cpu EPYC\n-bios fw.fd\n-smp " + a[2] +
		"\n-object sev-snp-guest,id=a,policy=0x130000,id-block=" + block + ",id-auth=" + auth + ",author-key-enabled=on\n"
	ts.Check(os.WriteFile(ts.MkAbs(a[3]), []byte(text), 0o644))
}

// key CURVE FORM FILE writes a private key as openssl ecparam (sec1) or genpkey
// (pkcs8) does.
func writeKey(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) != 3 {
		ts.Fatalf("usage: key P-384|P-256 sec1|pkcs8 FILE")
	}
	key, err := ecdsa.GenerateKey(map[string]elliptic.Curve{"P-384": elliptic.P384(), "P-256": elliptic.P256()}[a[0]], rand.Reader)
	ts.Check(err)
	var text []byte
	if a[1] == "sec1" {
		der, err := x509.MarshalECPrivateKey(key)
		ts.Check(err)
		text = pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}})
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...)
	} else {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		ts.Check(err)
		text = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	ts.Check(os.WriteFile(ts.MkAbs(a[2]), text, 0o600))
}
