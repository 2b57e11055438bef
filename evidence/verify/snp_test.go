package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

// verdicts collects the outcome by name.
func verdicts(r *Result) map[string]Verdict {
	out := map[string]Verdict{}
	for _, c := range r.Checks {
		out[c.Name] = c.Verdict
	}
	return out
}

func (r *Result) find(name string) *Check {
	for i := range r.Checks {
		if r.Checks[i].Name == name {
			return &r.Checks[i]
		}
	}
	return &Check{}
}

// fails checks that exactly these checks failed.
func fails(t *testing.T, r *Result, want ...string) {
	t.Helper()
	var got []string
	for _, c := range r.Checks {
		if c.Verdict == Failed {
			got = append(got, c.Name)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("failed: got %q, want %q", got, want)
		for _, c := range r.Checks {
			t.Logf("%s: %s: got %s, want %s: %s", c.Verdict, c.Name, c.Got, c.Want, c.Reason)
		}
	}
	if r.OK && len(want) > 0 {
		t.Error("accepted")
	}
}

// Reports of real machines and their certificates: testdata/README.md.
func TestRealReports(t *testing.T) {
	for _, c := range []struct {
		report, cert, product string
		failed                []string
		second                Verdict
	}{
		{"milan.report", "milan.vcek.der", Milan, []string{"debug"}, OK}, // its guest was launched with debugging
		{"milan-vlek.report", "milan-vlek.vlek.der", Milan, nil, OK},
		{"genoa.report", "genoa.vcek.pem", Genoa, nil, OK},
	} {
		t.Run(c.report, func(t *testing.T) {
			raw := read(t, c.report)
			certs, err := ParseCertificates(read(t, c.cert))
			if err != nil {
				t.Fatal(err)
			}
			o := SNPOptions{
				Now: time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC), Certs: certs, Product: c.product,
				Measurement: Register{Values: []Value{{raw[0x90:0xc0], "as it was"}}},
			}
			r, err := SNP(raw, o)
			if err != nil {
				t.Fatal(err)
			}
			fails(t, r, c.failed...)
			v := verdicts(r)
			for _, name := range []string{nameChain, nameSignature, "product", "TCB of the certificate", "measurement", "migration agent"} {
				if v[name] != OK {
					t.Errorf("%s: %s", name, v[name])
				}
			}
			if v[nameSecond] != c.second {
				t.Errorf("go-sev-guest: %s", v[nameSecond])
			}
			o.Now = time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
			if r, err = SNP(raw, o); err != nil {
				t.Fatal(err)
			}
			fails(t, r, append([]string{nameChain}, c.failed...)...)
			o.Certs = nil
			if r, err = SNP(raw, o); err != nil {
				t.Fatal(err)
			}
			fails(t, r, c.failed...)
			if r.OK {
				t.Error("accepted without a certificate")
			}
		})
	}
}

// No single bit of what AMD's key signed, or of the signature, can change.
func TestEveryBitOfAReport(t *testing.T) {
	raw := read(t, "genoa.report")
	certs := must(ParseCertificates(read(t, "genoa.vcek.pem")))
	o := SNPOptions{Now: time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC), Certs: certs}
	o.Measurement.Values = []Value{{raw[0x90:0xc0], ""}}
	if r := must(SNP(raw, o)); !r.OK {
		t.Fatalf("the report itself: %q", r.Failures())
	}
	step := 1
	if testing.Short() {
		step = 7
	}
	for i := 0; i < ReportSize; i += step {
		b := bytes.Clone(raw)
		b[i] ^= 1 << (i % 8)
		r, err := SNP(b, o)
		if err == nil && (r.OK || r.find(nameSignature).Verdict == OK) {
			t.Errorf("byte %#x: accepted", i)
		}
	}
}

// The one certificate of a Turin that is public has no report beside it.
func TestRealTurinCertificate(t *testing.T) {
	cert := must(ParseCertificates(read(t, "turin.vcek.der")))[0]
	e, err := parseEndorsement(cert, "VCEK")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.tcb.String(), "fmc=0,bootloader=0,tee=0,snp=0,microcode=9"; got != want {
		t.Errorf("TCB: got %s, want %s", got, want)
	}
	o := SNPOptions{Now: time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)}
	chain, err := o.verifyChain(e, "VCEK")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := chainNames(chain), "SEV-VCEK <- SEV-Turin <- ARK-Turin"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func number[T any](v T) *T { return &v }

// full expects of every field what amd.report writes.
func full(a *amd) SNPOptions {
	o := a.options()
	o.Product = a.line
	o.Measurement = Register{Values: []Value{
		{bytes.Repeat([]byte{0x99}, 48), "1 vCPU, EPYC-v4"}, {bytes.Repeat([]byte{0x14}, 48), "2 vCPUs, EPYC-v4"},
		{bytes.Repeat([]byte{0x14}, 48), "2 vCPUs, EPYC"},
	}}
	o.Policy = number(uint64(0x30000))
	o.HostData = bytes.Repeat([]byte{0x15}, 32)
	o.ReportData = bytes.Repeat([]byte{0x13}, 64)
	o.VMPL = number(uint32(2))
	o.MinTCB = Floor{"bootloader": 4, "tee": 1, "snp": 24, "microcode": 219}
	o.MinGuestSVN = number(uint32(6))
	o.FamilyID, o.ImageID = bytes.Repeat([]byte{0x11}, 16), bytes.Repeat([]byte{0x12}, 16)
	o.IDKeyDigest, o.AuthorKeyDigest = bytes.Repeat([]byte{0x16}, 48), bytes.Repeat([]byte{0x17}, 48)
	return o
}

// Every line and kind of key, with everything expected: nothing fails, and only
// what has a reason is left out.
func TestAllSNPChecks(t *testing.T) {
	for _, line := range Lines {
		for _, key := range []string{"VCEK", "VLEK"} {
			a := newAMD(line, key, nil)
			o := full(a)
			r := must(SNP(a.report(nil), o))
			fails(t, r)
			if !r.OK {
				t.Errorf("%s, %s: refused: %q", line, key, r.Failures())
			}
			var left []string
			for _, c := range r.Checks {
				if c.Verdict == NotChecked {
					left = append(left, c.Name)
				}
			}
			want := []string{"revocation", "platform"}
			if key == "VLEK" {
				want = []string{"revocation", "chip ID", "platform"}
			}
			if line == Turin {
				want = append([]string{nameSecond}, want...)
			}
			if !slices.Equal(left, want) {
				t.Errorf("%s, %s: not checked: got %q, want %q", line, key, left, want)
			}
			if got, want := r.find("measurement").Reason, "2 vCPUs, EPYC-v4; 2 vCPUs, EPYC"; got != want {
				t.Errorf("measurement: got %q, want %q", got, want)
			}
		}
	}
}

// Each field that is otherwise, properly signed, fails the check that names it
// and no other.
func TestSNPFields(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	flip := func(at int) func([]byte) { return func(b []byte) { b[at] ^= 1 } }
	for _, c := range []struct {
		name   string
		change func(b []byte)
		option func(o *SNPOptions)
		failed []string
	}{
		{"guest SVN", flip(6), nil, nil},
		{"lower guest SVN", func(b []byte) { b[4] = 5 }, nil, []string{"guest SVN"}},
		{"policy: ABI", flip(8), nil, []string{"policy"}},
		{"policy: debug", func(b []byte) { b[10] |= 8 }, nil, []string{"policy", "debug"}},
		{"policy: migration", func(b []byte) { b[10] |= 4 }, nil, []string{"policy", "migration agent"}},
		{"a migration agent", flip(0x160), nil, []string{"migration agent"}},
		{"debug, policy not known", func(b []byte) { b[10] |= 8 }, func(o *SNPOptions) { o.Policy = nil }, []string{"debug"}},
		{"family ID", flip(0x10), nil, []string{"family ID"}},
		{"image ID", flip(0x2f), nil, []string{"image ID"}},
		{"VMPL", func(b []byte) { b[0x30] = 0 }, nil, []string{"VMPL"}},
		{"report data", flip(0x8f), nil, []string{"report data"}},
		{"measurement", flip(0x90), nil, []string{"measurement"}},
		{"host data", flip(0xdf), nil, []string{"host data"}},
		{"ID key digest", flip(0xe0), nil, []string{"ID key digest"}},
		{"author key digest", flip(0x13f), nil, []string{"author key digest"}},
		{"chip ID", flip(0x1df), nil, []string{"chip ID"}},
		{"another line", func(b []byte) { b[0x189] = 0x11 }, nil, []string{"product"}},
		{"another line, any accepted", func(b []byte) { b[0x189] = 0x11 }, func(o *SNPOptions) { o.Product = "" }, []string{"product"}},
		{"reported TCB", func(b []byte) { b[0x186] = 23 }, nil, []string{"TCB of the certificate", "TCB floor (reported)"}},
		{"reported TCB, higher", func(b []byte) { b[0x187] = 220 }, nil, []string{"TCB of the certificate"}},
		{"TCB at launch", func(b []byte) { b[0x1f0] = 3 }, nil, []string{"TCB floor (at launch)"}},
		{"floor: bootloader", nil, func(o *SNPOptions) { o.MinTCB["bootloader"] = 5 }, []string{"TCB floor (reported)", "TCB floor (at launch)"}},
		{"floor: a part of another line", nil, func(o *SNPOptions) { o.MinTCB["fmc"] = 0 }, []string{"TCB floor (reported)", "TCB floor (at launch)"}},
		{"product", nil, func(o *SNPOptions) { o.Product = Genoa }, []string{"product"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := full(a)
			if c.option != nil {
				c.option(&o)
			}
			fails(t, must(SNP(a.report(c.change), o)), c.failed...)
		})
	}
}

// What lies between the report and the root.
func TestSNPChain(t *testing.T) {
	good := newAMD(Milan, "VCEK", nil)
	other := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	resign := func(a *amd, change func(c *x509.Certificate), public any, key *rsa.PrivateKey) *x509.Certificate {
		c := template(0, amdName("SEV-VCEK"), false)
		c.SignatureAlgorithm, c.ExtraExtensions = x509.SHA384WithRSAPSS, amdProfile(a.line, a.key)
		if change != nil {
			change(c)
		}
		parent := *a.ask
		parent.PublicKey = key.Public() // CreateCertificate looks whether they fit
		return certify(c, &parent, public, key)
	}
	for _, c := range []struct {
		name   string
		option func(o *SNPOptions)
		failed []string
	}{
		{"before its time", func(o *SNPOptions) { o.Now = now.AddDate(-2, 0, 0) }, []string{nameChain}},
		{"after its time", func(o *SNPOptions) { o.Now = now.AddDate(2, 0, 0) }, []string{nameChain}},
		{"AMD's own roots", func(o *SNPOptions) { o.Roots = nil }, []string{nameChain}},
		{"no intermediate", func(o *SNPOptions) { o.Certs = o.Certs[:1] }, []string{nameChain}},
		{"the root is only given as a certificate", func(o *SNPOptions) { o.Roots, o.Certs = nil, append(o.Certs, good.root) }, []string{nameChain}},
		{"signed by another intermediate", func(o *SNPOptions) {
			o.Certs[0] = resign(good, nil, p384().Public(), must(rsa.GenerateKey(rand.Reader, 2048)))
		}, []string{nameChain}},
		{"another key", func(o *SNPOptions) { o.Certs[0] = resign(good, nil, other.Public(), rsaKeys()[1]) }, []string{nameSignature, nameSecond}},
		{"a key of another curve", func(o *SNPOptions) {
			o.Certs[0] = resign(good, nil, p256()[0].Public(), rsaKeys()[1])
		}, []string{nameSignature, nameSecond}},
		{"not AMD's profile", func(o *SNPOptions) {
			o.Certs[0] = resign(good, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = nil }, p384().Public(), rsaKeys()[1])
		}, []string{nameSecond}},
		{"a level is missing", func(o *SNPOptions) {
			o.Certs[0] = resign(good, func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[3:] }, p384().Public(), rsaKeys()[1])
		}, []string{nameChain}},
		{"no hardware ID", func(o *SNPOptions) {
			o.Certs[0] = resign(good, func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[:10] }, p384().Public(), rsaKeys()[1])
		}, []string{nameChain}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := full(good)
			c.option(&o)
			b := good.report(nil)
			if c.name == "a key of another curve" { // which did sign
				signReport(b, p256()[0])
			}
			fails(t, must(SNP(b, o)), c.failed...)
		})
	}
}

// A root and intermediate of the right keys but another name are another line's.
func TestSNPChainNames(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	keys := rsaKeys()
	root := template(1, amdName("ARK-Genoa"), true)
	root.SignatureAlgorithm = x509.SHA384WithRSAPSS
	wrong := certify(root, root, keys[0].Public(), keys[0])
	ask := template(2, amdName("SEV-Milan"), true)
	ask.SignatureAlgorithm = x509.SHA384WithRSAPSS
	o := full(a)
	o.Roots = []*x509.Certificate{wrong}
	o.Certs = []*x509.Certificate{a.ek, certify(ask, wrong, keys[1].Public(), keys[0])}
	fails(t, must(SNP(a.report(nil), o)), nameChain)
}

func TestSNPRevocation(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	list := func(change func(l *x509.RevocationList), key *rsa.PrivateKey) *x509.RevocationList {
		l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.AddDate(0, -1, 0), NextUpdate: now.AddDate(0, 1, 0), SignatureAlgorithm: x509.SHA384WithRSAPSS}
		change(l)
		issuer := *a.root
		issuer.PublicKey = key.Public()
		return must(x509.ParseRevocationList(must(x509.CreateRevocationList(rand.Reader, l, &issuer, key))))
	}
	revokes := func(serial int64) func(l *x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: now}}
		}
	}
	keys := rsaKeys()
	for _, c := range []struct {
		name, reason string
		crl          *x509.RevocationList
	}{
		{"another serial", "", list(revokes(7), keys[0])},
		{"the intermediate", "SEV-Milan was revoked", list(revokes(2), keys[0])},
		{"another signer", "the list of ARK-Milan: ", list(revokes(7), keys[1])},
		{"out of date", "holds from", list(func(l *x509.RevocationList) { l.NextUpdate = now.AddDate(0, 0, -1) }, keys[0])},
		{"another issuer", "none of the lists is of ARK-Milan", crl(newIntel().root, p256()[keyRoot])},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := full(a)
			o.CRLs = []*x509.RevocationList{c.crl}
			r := must(SNP(a.report(nil), o))
			x := r.find("revocation")
			if (x.Verdict == OK) != (c.reason == "") || !strings.Contains(x.Reason, c.reason) {
				t.Errorf("got %s, %q; want %q", x.Verdict, x.Reason, c.reason)
			}
			if r.OK != (c.reason == "") {
				t.Errorf("accepted: %v", r.OK)
			}
		})
	}
}

// Without what is required a report is refused, though nothing failed.
func TestSNPRequired(t *testing.T) {
	a := newAMD(Genoa, "VCEK", nil)
	unsigned := []string{"certificate chain (not checked)", "report signature (not checked)"}
	for name, c := range map[string]struct {
		change func(o *SNPOptions)
		want   []string
	}{
		"no certificate":   {func(o *SNPOptions) { o.Certs = nil }, unsigned},
		"no measurement":   {func(o *SNPOptions) { o.Measurement = Register{Reason: "it is volatile"} }, []string{"measurement (not checked)"}},
		"only of VLEK":     {func(o *SNPOptions) { o.Certs = []*x509.Certificate{newAMD(Genoa, "VLEK", nil).ek} }, unsigned},
		"only the issuers": {func(o *SNPOptions) { o.Certs = o.Certs[1:] }, unsigned},
	} {
		o := full(a)
		c.change(&o)
		r := must(SNP(a.report(nil), o))
		fails(t, r)
		if got := r.Failures(); r.OK || !slices.Equal(got, c.want) {
			t.Errorf("%s: accepted %v; got %q, want %q", name, r.OK, got, c.want)
		}
	}
}

// A report that no key signed is refused even if its signature field says
// otherwise.
func TestUnsignedReport(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	o := full(a)
	r := must(SNP(a.report(func(b []byte) { b[0x48] = 7 << 2 }), o))
	fails(t, r, nameSignature)
}

// A debug report is accepted only when asked, and says so.
func TestAllowDebug(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	o := full(a)
	o.AllowDebug, o.Policy = true, nil
	r := must(SNP(a.report(func(b []byte) { b[10] |= 8 }), o))
	fails(t, r)
	if x := r.find("debug"); !r.OK || x.Verdict != NotChecked || x.Got != "allowed" {
		t.Errorf("accepted %v, debug %+v", r.OK, x)
	}
}

// The certificates may stand behind the report, in a page that zeros fill up.
func TestExtendedReport(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	o := full(a)
	o.Certs = nil
	b := append(a.report(nil), table(a.ek, a.ek, a.ask, a.root)...)
	r := must(SNP(append(b, make([]byte, 4096)...), o))
	fails(t, r)
	if !r.OK {
		t.Errorf("refused: %q", r.Failures())
	}
	// A root in the table is not a root.
	o.Roots = nil
	fails(t, must(SNP(b, o)), nameChain)
}

func TestMalformedReport(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	whole := append(a.report(nil), table(a.ek)...)
	put := func(at int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	set := func(at int) func(b []byte) []byte { return func(b []byte) []byte { b[at] = 0x80; return b } }
	for _, c := range []struct {
		change func(b []byte) []byte
		want   string
	}{
		{func(b []byte) []byte { return nil }, "report: offset 0x0: it ends after 0 bytes: want 1184"},
		{func(b []byte) []byte { return b[:ReportSize-1] }, "report: offset 0x49f: it ends after 1183 bytes: want 1184"},
		{put(0, 1), "report: offset 0x0: version 1: want 2 to 5"},
		{put(0, 6), "report: offset 0x0: version 6: want 2 to 5"},
		{put(8, 0x10000), "report: offset 0x8: policy 0x10000: want bit 17 set"},
		{put(8, 0x4020000), "report: offset 0x8: policy 0x4020000"},
		{put(0x34, 2), "report: offset 0x34: signature algorithm 2: want 1"},
		{put(0x48, 2<<2), "report: offset 0x48: signer info 0x8: want signing key 0, 1 or 7"},
		{put(0x48, 1<<5), "report: offset 0x48: signer info 0x20"},
		{set(0x4f), "report: offset 0x4f: reserved byte 0x80: want 0"},
		{set(0x18b), "report: offset 0x18b: reserved byte"},
		{set(0x1eb), "report: offset 0x1eb: reserved byte"},
		{set(0x1ef), "report: offset 0x1ef: reserved byte"},
		{set(0x1f8), "report: offset 0x1f8: reserved byte"},
		{set(0x29f), "report: offset 0x29f: reserved byte"},
		{set(0x330), "report: offset 0x330: reserved byte"},
		{func(b []byte) []byte { b[0] = 2; return b }, "report: offset 0x188: reserved byte 0x19: want 0"},
		{put(ReportSize+16, 0xffffff00), "certificate table: offset 0x4a0: entry 0: offset 4294967040, length"},
		{put(ReportSize+20, 0xffffffff), "certificate table: offset 0x4a0: entry 0"},
		{put(ReportSize+20, 7), "certificate table: offset 0x4d0: entry 0: "},
		{func(b []byte) []byte { return b[:ReportSize+entrySize] }, "certificate table: offset 0x4a0: entry 0"},
		{func(b []byte) []byte { return append(b[:ReportSize], bytes.Repeat([]byte{0, 0, 0, 1}, 6*40)...) }, "certificate table: offset 0x4a0: entry 0: offset 16777216"},
	} {
		_, err := SNP(c.change(bytes.Clone(whole)), full(a))
		if err == nil || !strings.Contains(err.Error(), "verify: "+c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	if _, err := SNP(whole, SNPOptions{}); err == nil || !strings.Contains(err.Error(), "no time") {
		t.Errorf("without a time: got %v", err)
	}
}

// Versions 2 and 5 differ in what is reserved.
func TestReportVersions(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	r := must(SNP(a.report(func(b []byte) { b[0] = 5; b[0x1f8] = 1; b[0x207] = 1 }), full(a)))
	fails(t, r)
	if _, err := SNP(a.report(func(b []byte) { b[0] = 5; b[0x208] = 1 }), full(a)); err == nil {
		t.Error("version 5: reserved byte 0x208: accepted")
	}
	r = must(SNP(a.report(func(b []byte) { b[0] = 2; clear(b[0x188:0x18b]) }), full(a)))
	fails(t, r)
	if x := r.find("product"); x.Verdict != OK || x.Got != Milan {
		t.Errorf("version 2: product %+v", x)
	}
}

func TestTableEntries(t *testing.T) {
	a := newAMD(Milan, "VCEK", nil)
	one := table(a.ek)
	unknown := bytes.Clone(one)
	unknown[0] ^= 1
	if certs, err := ParseCertificates(unknown); err != nil || len(certs) != 0 {
		t.Errorf("an entry of another kind: %d certificates, %v", len(certs), err)
	}
	if _, err := ParseCertificates(bytes.Repeat(one[:entrySize], 100)); err == nil {
		t.Error("a table without an end: accepted")
	}
	many := append(bytes.Repeat(unknown[:entrySize], maxEntries), make([]byte, 4096)...)
	if _, err := ParseCertificates(many); err == nil || !strings.Contains(err.Error(), "no end after 16 entries") {
		t.Errorf("got %v", err)
	}
	big := bytes.Repeat([]byte{0x30}, maxCertificate+1)
	if _, err := ParseCertificates(big); err == nil || !strings.Contains(err.Error(), "want at most 4096") {
		t.Errorf("got %v", err)
	}
}
