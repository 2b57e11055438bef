package uki

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/internal/pe/petest"
)

func inspect(b []byte) (*Info, error) { return Inspect(bytes.NewReader(b), int64(len(b))) }

func TestInspect(t *testing.T) {
	s := testSigner(t)
	given := contents()
	given[".uname"] = "6.12.0\n"
	image := sign(t, build(t, roomy("257.13-1").Bytes(), sections(given)), s)
	info, err := inspect(image)
	if err != nil {
		t.Fatal(err)
	}
	if info.Kind != "uki" || info.Machine != "amd64" || !info.NXCompat || info.Size != int64(len(image)) {
		t.Errorf("kind %s, machine %s, NX %v, size %d", info.Kind, info.Machine, info.NXCompat, info.Size)
	}
	if info.Stub == nil || info.Stub.Full != "257.13-1" || !info.StubKnown {
		t.Errorf("stub %+v, known %v", info.Stub, info.StubKnown)
	}
	if got := strings.Join(info.MeasuredOrder, " "); got != ".linux .osrel .cmdline .initrd .ucode .splash .dtb .uname .sbat .pcrpkey .profile" {
		t.Errorf("measured order %s", got)
	}
	if info.Uname != "6.12.0" || info.Cmdline != "console=ttyS0" || info.OSRelease != "ID=test" {
		t.Errorf("uname %q, cmdline %q, osrel %q", info.Uname, info.Cmdline, info.OSRelease)
	}
	for _, section := range info.Sections {
		want, ok := given[section.Name]
		sum := sha256.Sum256([]byte(want))
		if ok && section.Name != ".sbat" && (section.SHA256 != hex.EncodeToString(sum[:]) || section.Size != uint32(len(want))) {
			t.Errorf("section %+v: want %d bytes with digest %x", section, len(want), sum)
		}
	}
	sum := sha256.Sum256(s.Cert.Raw)
	if want := []SignerInfo{{"CN=test signer,O=plinth", hex.EncodeToString(sum[:])}}; !reflect.DeepEqual(info.Signers, want) {
		t.Errorf("signers %v: want %v", info.Signers, want)
	}
	a, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	var back Info
	if err := json.Unmarshal(a, &back); err != nil || !reflect.DeepEqual(*info, back) {
		t.Errorf("JSON does not come back: %v", err)
	}
}

func TestInspectKinds(t *testing.T) {
	newer := roomy("999")
	for _, row := range []struct {
		name  string
		image []byte
		kind  string
		stub  bool
		known bool
	}{
		{"stub", petest.Stub("252.39").Bytes(), "stub", true, true},
		{"stub from the future", newer.Bytes(), "stub", true, false},
		{"kernel", petest.Kernel().Bytes(), "kernel", false, false},
		{"another image", petest.Image{PE32: true, Machine: 0x14c}.Bytes(), "efi", false, false},
		{"another stub", petest.Image{Sections: []petest.Section{{Name: ".sdmagic", Data: []byte("mine")}}}.Bytes(), "efi", false, false},
	} {
		info, err := inspect(row.image)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if info.Kind != row.kind || (info.Stub != nil) != row.stub || info.StubKnown != row.known {
			t.Errorf("%s: kind %s, stub %v, known %v", row.name, info.Kind, info.Stub, info.StubKnown)
		}
	}
}

func TestInspectText(t *testing.T) {
	for _, row := range []struct{ name, content, want string }{
		{"text", "a b\n\x00", "a b"},
		{"not UTF-8", "a\xff", ""},
		{"long", strings.Repeat("x", maxText+1), ""},
		{"just fits", strings.Repeat("x", maxText), strings.Repeat("x", maxText)},
	} {
		image := build(t, roomy("257").Bytes(), sections(map[string]string{".linux": contents()[".linux"], ".cmdline": row.content}))
		info, err := inspect(image)
		if err != nil || info.Cmdline != row.want {
			t.Errorf("%s: %.40q, %v: want %.40q", row.name, info.Cmdline, err, row.want)
		}
	}
}

func TestInspectErrors(t *testing.T) {
	if _, err := inspect([]byte("text")); err == nil || !strings.Contains(err.Error(), "not a PE image") {
		t.Errorf("text: error %v", err)
	}
	s := testSigner(t)
	signed := sign(t, unsigned(t), s)
	f := parse(t, signed)
	signed[f.CertTable.Offset+8] ^= 1
	if _, err := inspect(signed); err == nil || !strings.Contains(err.Error(), "signature 0") {
		t.Errorf("broken signature: error %v", err)
	}
	signed[f.CertTable.Offset+8] ^= 1
	// The first copy of the name in the signature is in the certificate.
	name := bytes.Index(signed[f.CertTable.Offset:], s.Cert.RawIssuer) + bytes.Index(s.Cert.RawIssuer, []byte("test signer"))
	signed[int(f.CertTable.Offset)+name] = 'T'
	if _, err := inspect(signed); err == nil || !strings.Contains(err.Error(), "no certificate of its signer") {
		t.Errorf("signer without certificate: error %v", err)
	}
}

// FuzzInspect reads hostile images. What is reported of the digest must not
// depend on the certificate table.
func FuzzInspect(f *testing.F) {
	image := build(f, roomy("257.13").Bytes(), sections(map[string]string{".linux": contents()[".linux"], ".cmdline": "x"}))
	f.Add(image)
	f.Add(sign(f, image, testSigner(f)))
	f.Add(petest.Stub("262.1").Bytes())
	f.Add(petest.Kernel().Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := inspect(b)
		if err != nil {
			return
		}
		if len(info.Sections) > len(b) || len(info.Cmdline) > maxText {
			t.Errorf("%d sections, %d bytes of command line", len(info.Sections), len(info.Cmdline))
		}
		if _, err := json.Marshal(info); err != nil {
			t.Error(err)
		}
	})
}
