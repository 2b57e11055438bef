package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestDecode(t *testing.T) {
	raw := []byte{5, 0, 2, 0, 0xfb, 0xff, 0xfe, 0x3e, 0x3f, 0}
	for _, c := range []string{
		string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), "  05 00 02\n00 fbfffe3e3f00\r\n",
		base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw), base64.URLEncoding.EncodeToString(raw) + "\n",
	} {
		if got, err := Decode([]byte(c)); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%q: got %x, %v", c, got, err)
		}
	}
	for _, c := range []string{"A", "AAAAA", "A=AA", "-----BEGIN A-----\nAAAA\n-----END A-----\n"} {
		if got, err := Decode([]byte(c)); err == nil {
			t.Errorf("%q: got %x", c, got)
		}
	}
}

func TestParseCertificateForms(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	for name, b := range map[string][]byte{"DER": a.ek.Raw, "table": table(a.ek), "PEM": read(t, "genoa.vcek.pem")} {
		if certs, err := ParseCertificates(b); err != nil || len(certs) != 1 || certs[0].Subject.CommonName != "SEV-VCEK" {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
	}
	for _, c := range []struct{ in, want string }{
		{"", "no end after 0 entries"},
		{"\x30\x03abc", "verify: certificate: x509: "},
		{pemBegin, "no certificate in it"},
		{strings.Repeat("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 1), "PEM: certificate 1: "},
		{strings.Repeat(string(read(t, "genoa.vcek.pem")), maxEntries+1), "more than 16 certificates"},
	} {
		if _, err := ParseCertificates([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	if _, err := ParseCRL([]byte("none")); err == nil {
		t.Error("no revocation list: accepted")
	}
}

func TestParseFloor(t *testing.T) {
	f, err := ParseFloor("microcode=219,bootloader=4")
	if err != nil || !reflect.DeepEqual(f, Floor{"bootloader": 4, "microcode": 219}) {
		t.Errorf("got %v, %v", f, err)
	}
	if got, want := f.String(), "bootloader>=4,microcode>=219"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, s := range []string{"", "snp", "snp=", "snp=256", "snp=-1", "SNP=1", "ucode=1", "snp=1,snp=2", "snp=1,"} {
		if f, err := ParseFloor(s); err == nil {
			t.Errorf("%q: got %v", s, f)
		}
	}
}

// Large evidence costs no more than its size.
func TestHostileSize(t *testing.T) {
	const size = 4 << 20
	quoteHead := read(t, "tdx4.quote")
	a := newAMD(Milan, "VCEK", nil)
	inputs := map[string][]byte{
		"zeros behind a report":      append(a.report(nil), make([]byte, size)...),
		"a table without an end":     append(a.report(nil), bytes.Repeat([]byte{0, 0, 0, 1, 0, 0, 0, 0}, size/8)...),
		"PEM that never ends":        append(bytes.Clone(quoteHead[:len(quoteHead)-10]), bytes.Repeat([]byte(pemBegin), size/11)...),
		"zeros behind a quote":       append(bytes.Clone(quoteHead), make([]byte, size)...),
		"certificates":               bytes.Repeat([]byte("-----BEGIN CERTIFICATE-----\n"), size/28),
		"a table of one certificate": append(bytes.Repeat(table(a.ek)[:entrySize], 1000), make([]byte, size)...),
	}
	for name, b := range inputs {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		start := time.Now()
		SNP(b, SNPOptions{Now: now})
		TDX(b, TDXOptions{Now: now})
		ParseCertificates(b)
		elapsed := time.Since(start)
		runtime.ReadMemStats(&after)
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(4*len(b)+1<<20); got > most {
			t.Errorf("%s: %d bytes allocated for %d: want at most %d", name, got, len(b), most)
		}
		if elapsed > 10*time.Second {
			t.Errorf("%s: %s for %d bytes", name, elapsed, len(b))
		}
	}
}

// Whatever arrives: no panic, and nothing that no key signed is accepted.
func FuzzSNP(f *testing.F) {
	a := newAMD(Milan, "VCEK", nil)
	o := full(a)
	o.Certs = nil
	f.Add(a.report(nil))
	f.Add(append(a.report(nil), table(a.ek, a.ek, a.ask)...))
	for _, name := range []string{"milan.report", "milan-vlek.report", "genoa.report"} {
		f.Add(read(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := SNP(b, o)
		if err != nil {
			return
		}
		if r.OK && checkSignature(b, a.ek) != nil {
			t.Error("accepted, but not signed")
		}
	})
}

func FuzzTDX(f *testing.F) {
	in := newIntel()
	o := fullTDX(in)
	f.Add(in.quote(4, spoil{}))
	f.Add(in.quote(5, spoil{}))
	f.Add(read(f, "tdx4.quote"))
	f.Add(read(f, "tdx5.quote"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := TDX(b, o)
		if err != nil || !r.OK {
			return
		}
		q := must(parseQuote(b))
		if !bytes.Equal(q.chain[0].Raw, in.pck.Raw) || q.checkSignature() != nil {
			t.Error("accepted, but not signed")
		}
	})
}

func FuzzParseCertificates(f *testing.F) {
	a := newAMD(Milan, "VCEK", nil)
	f.Add(table(a.ek, a.ask))
	f.Add(a.ek.Raw)
	f.Add(read(f, "genoa.vcek.pem"))
	f.Add(read(f, "turin.vcek.der"))
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := ParseCertificates(b)
		if err != nil && certs != nil {
			t.Error("certificates and an error")
		}
		for _, c := range certs {
			parseEndorsement(c, "VCEK")
			parseEndorsement(c, "VLEK")
		}
		Decode(b)
		ParseCRL(b)
	})
}

// Collateral is trusted only once its signature holds, but Intel's key may sign
// anything: what is signed here is whatever arrives.
func FuzzCollateral(f *testing.F) {
	in := newIntel()
	quote := in.quote(4, spoil{})
	f.Add(must(json.Marshal(tcbInfo())), must(json.Marshal(qeIdentity())), true)
	f.Add(read(f, "tcbinfo.json"), read(f, "qeidentity.json"), false)
	f.Fuzz(func(t *testing.T, tcb, qe []byte, sign bool) {
		o := fullTDX(in)
		o.TCBInfo, o.QEIdentity = tcb, qe
		if sign {
			o.TCBInfo = signedBytes("tcbInfo", bytes.TrimSpace(tcb), keySigning)
			o.QEIdentity = signedBytes("enclaveIdentity", bytes.TrimSpace(qe), keySigning)
		}
		r, err := TDX(quote, o)
		if err != nil {
			t.Fatal(err)
		}
		if !sign && (r.find("TCB info").Verdict == OK || r.find("QE identity").Verdict == OK) {
			t.Error("accepted, but not signed")
		}
	})
}
