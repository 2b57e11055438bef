package verify

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// Quotes of real machines: testdata/README.md.
func TestRealQuotes(t *testing.T) {
	for _, c := range []struct {
		name   string
		now    time.Time
		second Verdict
		rtmr2  string
		failed []string
	}{
		{"tdx4.quote", time.Date(2023, 7, 1, 1, 0, 0, 0, time.UTC), OK, "8652f0caaba7e215ea442dc36a4499d8fec3362f3a0b2ca151cbe4b3e6466fe59c7368b3c2287fc7c3bf5c924eb4424e", nil},
		{"tdx5.quote", time.Date(2025, 7, 1, 1, 0, 0, 0, time.UTC), NotChecked, strings.Repeat("00", 48), []string{"MRSERVICETD"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := read(t, c.name)
			o := TDXOptions{Now: c.now}
			o.RTMR[2].Values = []Value{{must(hex.DecodeString(c.rtmr2)), ""}}
			r := must(TDX(raw, o))
			fails(t, r, c.failed...)
			v := verdicts(r)
			for _, name := range []string{"quoting enclave's vendor", nameChain, "quoting enclave's signature", "quoting enclave", "attestation key", "quote signature", "TDX module's signer", "RTMR2", "debug"} {
				if v[name] != OK {
					t.Errorf("%s: %s", name, v[name])
				}
			}
			if v["go-tdx-guest"] != c.second {
				t.Errorf("go-tdx-guest: %s", v["go-tdx-guest"])
			}
			if r.OK {
				t.Error("accepted without MRTD and RTMR 1")
			}
			o.Now = time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC)
			fails(t, must(TDX(raw, o)), append([]string{nameChain}, c.failed...)...)
		})
	}
}

// Intel's own collateral for the platform of the version 4 quote, of mid-2023. The
// quote is of an engineering platform, whose processor reaches no level in it.
func TestRealCollateral(t *testing.T) {
	raw := read(t, "tdx4.quote")
	o := TDXOptions{
		Now: time.Date(2023, 7, 1, 1, 0, 0, 0, time.UTC), Certs: must(ParseCertificates(read(t, "tcb-signing.pem"))),
		CRLs:    []*x509.RevocationList{must(ParseCRL(read(t, "pck.crl"))), must(ParseCRL(read(t, "root.crl")))},
		TCBInfo: read(t, "tcbinfo.json"), QEIdentity: read(t, "qeidentity.json"),
	}
	r := must(TDX(raw, o))
	fails(t, r, "TCB level")
	for _, name := range []string{"revocation", "TCB info", "TDX module", "QE identity", "QE level"} {
		if v := verdicts(r)[name]; v != OK {
			t.Errorf("%s: %s", name, v)
		}
	}
	for _, c := range []struct {
		change func(o *TDXOptions)
		failed []string
	}{
		{func(o *TDXOptions) { o.Now = o.Now.AddDate(0, 2, 0) }, []string{"revocation", "TCB info", "QE identity"}},
		{func(o *TDXOptions) { o.Certs = nil }, []string{"TCB info", "QE identity"}},
		{func(o *TDXOptions) { o.TCBInfo = bytes.Replace(o.TCBInfo, []byte(`"svn":5`), []byte(`"svn":0`), 1) }, []string{"TCB info"}},
		{func(o *TDXOptions) {
			o.QEIdentity = bytes.Replace(o.QEIdentity, []byte("UpToDate"), []byte("UpToDatE"), 1)
		}, []string{"TCB level", "QE identity"}},
		{func(o *TDXOptions) { o.CRLs = o.CRLs[:1] }, []string{"revocation", "TCB info", "QE identity"}},
		{func(o *TDXOptions) { o.CRLs = o.CRLs[1:] }, []string{"revocation", "TCB level"}},
	} {
		changed := o
		c.change(&changed)
		fails(t, must(TDX(raw, changed)), c.failed...)
	}
}

// The constant is what Intel publishes of the enclave.
func TestQuotingEnclaveConstant(t *testing.T) {
	if doc := strings.ToLower(string(read(t, "qeidentity.json"))); !strings.Contains(doc, `"mrsigner":"`+qeSigner+`"`) || !strings.Contains(doc, `"isvprodid":2,`) {
		t.Error("Intel's QE identity has another signer or product")
	}
}

// No byte in front of the certificates can change.
func TestEveryByteOfAQuote(t *testing.T) {
	step := 1
	if testing.Short() {
		step = 7
	}
	for _, name := range []string{"tdx4.quote", "tdx5.quote"} {
		raw := read(t, name)
		o := TDXOptions{Now: time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)}
		q := must(parseQuote(raw))
		o.MRTD.Values = []Value{{q.body.MRTD[:], ""}}
		for i := range o.RTMR {
			o.RTMR[i].Values = []Value{{q.body.RTMR[i][:], ""}}
		}
		if q.later != nil {
			o.MRServiceTD = q.later.MRServiceTD[:]
		}
		if r := must(TDX(raw, o)); !r.OK {
			t.Fatalf("%s itself: %q", name, r.Failures())
		}
		for i := 0; i < bytes.Index(raw, []byte(pemBegin)); i += step {
			b := bytes.Clone(raw)
			b[i] ^= 1 << (i % 8)
			if r, err := TDX(b, o); err == nil && r.OK {
				t.Errorf("%s: byte %#x: accepted", name, i)
			}
		}
	}
}

// fullTDX expects of every field what intel.quote writes.
func fullTDX(in *intel) TDXOptions {
	o := in.options()
	value := func(x byte) Register { return Register{Values: []Value{{bytes.Repeat([]byte{x}, 48), "here"}}} }
	o.MRTD = Register{Values: []Value{{bytes.Repeat([]byte{0x99}, 48), "two-pass"}, {bytes.Repeat([]byte{0x21}, 48), "single-pass"}}}
	for i := range o.RTMR {
		o.RTMR[i] = value(byte(0x25 + i))
	}
	o.Attributes, o.XFAM = number(uint64(1<<28)), number(uint64(0xe7))
	o.MRConfigID, o.MROwner, o.MROwnerConfig = bytes.Repeat([]byte{0x22}, 48), bytes.Repeat([]byte{0x23}, 48), bytes.Repeat([]byte{0x24}, 48)
	o.ReportData = bytes.Repeat([]byte{0x29}, 64)
	o.MinTEETCB = append([]byte{5, 1, 6}, make([]byte, 13)...)
	o.TCBInfo, o.QEIdentity = signed("tcbInfo", tcbInfo(), keySigning), signed("enclaveIdentity", qeIdentity(), keySigning)
	o.CRLs = []*x509.RevocationList{crl(in.root, p256()[keyRoot]), crl(in.ca, p256()[keyCA])}
	return o
}

func TestAllTDXChecks(t *testing.T) {
	in := newIntel()
	for _, version := range []int{4, 5} {
		r := must(TDX(in.quote(version, spoil{}), fullTDX(in)))
		fails(t, r)
		if !r.OK {
			t.Errorf("version %d: refused: %q", version, r.Failures())
		}
		for _, c := range r.Checks {
			if c.Verdict == NotChecked && (c.Name != "go-tdx-guest" || version == 4) {
				t.Errorf("version %d: %s: not checked: %s", version, c.Name, c.Reason)
			}
		}
		if got, want := r.find("MRTD").Reason, "single-pass"; got != want {
			t.Errorf("MRTD: got %q, want %q", got, want)
		}
	}
}

func TestTDXFields(t *testing.T) {
	in := newIntel()
	flip := func(at int) func([]byte) { return func(b []byte) { b[at] ^= 1 } }
	const second = "go-tdx-guest"
	for _, c := range []struct {
		name   string
		spoil  spoil
		failed []string // of version 4; version 5 has no second opinion
	}{
		{"vendor", spoil{header: flip(12)}, []string{"quoting enclave's vendor"}},
		{"TEE TCB SVN", spoil{body: func(b []byte) { b[2] = 5 }}, []string{"TCB level", "TEE TCB floor"}},
		{"module's SVN", spoil{body: func(b []byte) { b[0] = 4 }}, []string{"TDX module", "TEE TCB floor"}},
		{"another module", spoil{body: func(b []byte) { b[1] = 2 }}, []string{"TDX module"}},
		{"MRSIGNERSEAM", spoil{body: flip(0x40)}, []string{"TDX module", "TDX module's signer"}},
		{"SEAMATTRIBUTES", spoil{body: flip(0x70)}, []string{"TDX module", "TDX module's signer"}},
		{"ATTRIBUTES", spoil{body: func(b []byte) { b[0x7b] |= 0x20 }}, []string{"ATTRIBUTES"}},
		{"debug", spoil{body: flip(0x78)}, []string{"ATTRIBUTES", "debug"}},
		{"profiling", spoil{body: func(b []byte) { b[0x78] |= 0x20 }}, []string{"ATTRIBUTES", "debug"}},
		{"XFAM", spoil{body: flip(0x82)}, []string{"XFAM"}},
		{"MRTD", spoil{body: flip(0xb7)}, []string{"MRTD"}},
		{"MRCONFIGID", spoil{body: flip(0xb8)}, []string{"MRCONFIGID"}},
		{"MROWNER", spoil{body: flip(0xe8)}, []string{"MROWNER"}},
		{"MROWNERCONFIG", spoil{body: flip(0x147)}, []string{"MROWNERCONFIG"}},
		{"RTMR 0", spoil{body: flip(0x148)}, []string{"RTMR0"}},
		{"RTMR 1", spoil{body: flip(0x178)}, []string{"RTMR1"}},
		{"RTMR 2", spoil{body: flip(0x1a8)}, []string{"RTMR2"}},
		{"RTMR 3", spoil{body: flip(0x207)}, []string{"RTMR3"}},
		{"report data", spoil{body: flip(0x247)}, []string{"report data"}},
		{"the enclave's signer", spoil{qe: flip(0x80)}, []string{"quoting enclave", "QE identity"}},
		{"the enclave's product", spoil{qe: flip(0x100)}, []string{"quoting enclave", "QE identity"}},
		{"the enclave's debug bit", spoil{qe: func(b []byte) { b[0x30] |= 2 }}, []string{"quoting enclave", "QE identity"}},
		{"the enclave's MISCSELECT", spoil{qe: flip(0x10)}, []string{"QE identity"}},
		{"the enclave's version", spoil{qe: func(b []byte) { b[0x102] = 3 }}, []string{"QE level"}},
		{"the enclave vouches for another key", spoil{qe: flip(0x140)}, []string{"attestation key", second}},
		{"the enclave's data", spoil{auth: []byte("other")}, []string{"attestation key", second}},
		{"the enclave's report is signed by another key", spoil{pckSigns: keyOther}, []string{"quoting enclave's signature", second}},
		{"the quote is signed by another key", spoil{quoteSigns: keyOther}, []string{"quote signature", second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fails(t, must(TDX(in.quote(4, c.spoil), fullTDX(in))), c.failed...)
			later := slices.DeleteFunc(slices.Clone(c.failed), func(s string) bool { return s == second })
			fails(t, must(TDX(in.quote(5, c.spoil), fullTDX(in))), later...)
		})
	}
	t.Run("MRSERVICETD", func(t *testing.T) {
		b := in.quote(5, spoil{body: flip(quoteBody15Size - 1)})
		fails(t, must(TDX(b, fullTDX(in))), "MRSERVICETD")
		o := fullTDX(in)
		o.MRServiceTD = append(make([]byte, 47), 1)
		fails(t, must(TDX(b, o)))
	})
}

func TestTDXChain(t *testing.T) {
	in, k := newIntel(), p256()
	const second = "go-tdx-guest"
	renamed := func(change func(c *intel)) []byte {
		other := *in
		change(&other)
		return other.quote(4, spoil{})
	}
	var rootCA *x509.Certificate
	name := func(cn string, ca bool) *x509.Certificate { return template(9, amdName(cn), ca) }
	for _, c := range []struct {
		name   string
		quote  []byte
		option func(o *TDXOptions)
		failed []string
	}{
		{"Intel's own root", in.quote(4, spoil{}), func(o *TDXOptions) { o.Roots = nil }, []string{nameChain, "TCB info", "QE identity"}},
		{"after its time", in.quote(4, spoil{}), func(o *TDXOptions) { o.Now = now.AddDate(2, 0, 0) }, []string{nameChain, "TCB info", "QE identity"}},
		{"no intermediate", renamed(func(c *intel) { c.ca = c.root }), nil, []string{nameChain}},
		{"another name than PCK", renamed(func(c *intel) {
			c.pck = certify(name("Intel SGX TCB Signing", false), in.ca, k[keyPCK].Public(), k[keyCA])
		}), nil, []string{nameChain, "TCB info"}},
		{"below the root at once", renamed(func(c *intel) {
			c.pck = certify(name(pckName, false), in.root, k[keyPCK].Public(), k[keyRoot])
		}), nil, []string{nameChain, "TCB info"}},
		{"an intermediate of another name", renamed(func(c *intel) {
			c.ca = certify(name("Intel SGX PCK Other CA", true), in.root, k[keyCA].Public(), k[keyRoot])
			pck := *in.pck
			pck.ExtraExtensions = []pkix.Extension{sgxExtension()}
			c.pck = certify(&pck, c.ca, k[keyPCK].Public(), k[keyCA])
		}), nil, []string{nameChain}},
		{"a root with the name of an intermediate", renamed(func(c *intel) {
			ca := name(pckIssuers[0], true)
			c.ca = certify(ca, ca, k[keyCA].Public(), k[keyCA])
			c.root = c.ca
			c.pck = certify(template(3, amdName(pckName), false), c.ca, k[keyPCK].Public(), k[keyCA])
			rootCA = c.ca
		}), func(o *TDXOptions) { o.Roots, o.TCBInfo = append(o.Roots, rootCA), nil }, []string{nameChain}},
		{"the PCK is revoked", in.quote(4, spoil{}), func(o *TDXOptions) { o.CRLs[1] = crl(in.ca, k[keyCA], 3) }, []string{"revocation"}},
		{"its issuer is revoked", in.quote(4, spoil{}), func(o *TDXOptions) { o.CRLs[0] = crl(in.root, k[keyRoot], 2) }, []string{"revocation"}},
		{"TCB signing is revoked", in.quote(4, spoil{}), func(o *TDXOptions) { o.CRLs[0] = crl(in.root, k[keyRoot], 4) }, []string{"TCB info", "QE identity"}},
		{"only go-tdx-guest objects", renamed(func(c *intel) {
			pck := template(3, in.pck.Subject, false)
			pck.ExtraExtensions = []pkix.Extension{sgxExtension()}
			c.pck = certify(pck, in.ca, k[keyPCK].Public(), k[keyCA])
		}), func(o *TDXOptions) { o.TCBInfo = nil }, []string{second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := fullTDX(in)
			if c.option != nil {
				c.option(&o)
			}
			fails(t, must(TDX(c.quote, o)), c.failed...)
		})
	}
}

// Collateral that says something else, signed or not.
func TestTDXCollateral(t *testing.T) {
	in := newIntel()
	tcb := func(change func(o object)) []byte {
		o := tcbInfo()
		change(o)
		return signed("tcbInfo", o, keySigning)
	}
	qe := func(change func(o object)) []byte {
		o := qeIdentity()
		change(o)
		return signed("enclaveIdentity", o, keySigning)
	}
	set := func(key string, v any) func(object) { return func(o object) { o[key] = v } }
	levels := func(o object, key string) []object { return o[key].([]object) }
	for _, c := range []struct {
		name    string
		tcb, qe []byte
		option  func(o *TDXOptions)
		failed  []string
	}{
		{"TCB info of another signer", signed("tcbInfo", tcbInfo(), keyOther), nil, nil, []string{"TCB info"}},
		{"TCB info of SGX", tcb(set("id", "SGX")), nil, nil, []string{"TCB info"}},
		{"TCB info of a later version", tcb(set("version", 4)), nil, nil, []string{"TCB info"}},
		{"TCB info of another platform", tcb(set("fmspc", "001122334455")), nil, nil, []string{"TCB info"}},
		{"TCB info of another PCE", tcb(set("pceId", "0001")), nil, nil, []string{"TCB info"}},
		{"TCB info out of date", tcb(set("nextUpdate", now.AddDate(0, 0, -1))), nil, nil, []string{"TCB info"}},
		{"TCB info not valid yet", tcb(set("issueDate", now.AddDate(0, 0, 1))), nil, nil, []string{"TCB info"}},
		{"no document", []byte("{}"), []byte("[]"), nil, []string{"TCB info", "QE identity"}},
		{"too much", append(signed("tcbInfo", tcbInfo(), keySigning), bytes.Repeat([]byte{' '}, MaxCollateral)...), nil, nil, []string{"TCB info"}},
		{"the processor needs a newer level", tcb(func(o object) { levels(o, "tcbLevels")[0]["tcb"].(object)["sgxtcbcomponents"] = components(6) }), nil, nil, []string{"TCB level"}},
		{"the PCE needs a newer level", tcb(func(o object) { levels(o, "tcbLevels")[0]["tcb"].(object)["pcesvn"] = 12 }), nil, nil, []string{"TCB level"}},
		{"TDX needs a newer level", tcb(func(o object) { levels(o, "tcbLevels")[0]["tcb"].(object)["tdxtcbcomponents"] = components(7) }), nil, nil, []string{"TCB level"}},
		{"the first two of TDX are the module's", tcb(func(o object) {
			tdx := components(0)
			tdx[0]["svn"], tdx[1]["svn"] = 200, 200
			levels(o, "tcbLevels")[0]["tcb"].(object)["tdxtcbcomponents"] = tdx
		}), nil, nil, nil},
		{"too few components", tcb(func(o object) {
			for _, l := range levels(o, "tcbLevels") {
				l["tcb"].(object)["sgxtcbcomponents"] = components(0)[1:]
			}
		}), nil, nil, []string{"TCB level"}},
		{"hardening needed", tcb(func(o object) { levels(o, "tcbLevels")[0]["tcbStatus"] = "SWHardeningNeeded" }), nil, nil, []string{"TCB level"}},
		{"hardening needed and accepted", tcb(func(o object) { levels(o, "tcbLevels")[0]["tcbStatus"] = "SWHardeningNeeded" }), nil,
			func(o *TDXOptions) { o.AcceptTCB = []string{"UpToDate", "SWHardeningNeeded"} }, nil},
		{"a module of another signer", tcb(func(o object) { levels(o, "tdxModuleIdentities")[0]["mrsigner"] = strings.Repeat("11", 48) }), nil, nil, []string{"TDX module"}},
		{"a module of another attribute", tcb(func(o object) { levels(o, "tdxModuleIdentities")[0]["attributes"] = "0100000000000000" }), nil, nil, []string{"TDX module"}},
		{"QE identity of another signer", nil, signed("enclaveIdentity", qeIdentity(), keyOther), nil, []string{"QE identity"}},
		{"QE identity of an SGX enclave", nil, qe(set("id", "QE")), nil, []string{"QE identity"}},
		{"QE identity of another version", nil, qe(set("version", 3)), nil, []string{"QE identity"}},
		{"QE identity out of date", nil, qe(set("nextUpdate", now.AddDate(0, 0, -1))), nil, []string{"QE identity"}},
		{"QE identity: signer", nil, qe(set("mrsigner", strings.Repeat("11", 32))), nil, []string{"QE identity"}},
		{"QE identity: product", nil, qe(set("isvprodid", 1)), nil, []string{"QE identity"}},
		{"QE identity: MISCSELECT", nil, qe(set("miscselect", "01000000")), nil, []string{"QE identity"}},
		{"QE identity: a short mask", nil, qe(set("miscselectMask", "FFFF")), nil, []string{"QE identity"}},
		{"QE identity: attributes", nil, qe(set("attributes", "01000000000000000000000000000000")), nil, []string{"QE identity"}},
		{"QE identity: a newer level", nil, qe(func(o object) { levels(o, "tcbLevels")[0]["tcb"] = object{"isvsvn": 5} }), nil, []string{"QE level"}},
		{"TCB signing not below the root", nil, nil, func(o *TDXOptions) {
			o.Certs = []*x509.Certificate{certify(template(4, amdName(signingName), false), in.ca, p256()[keySigning].Public(), p256()[keyCA])}
		}, []string{"TCB info", "QE identity"}},
		{"signed by one who signs processors", nil, nil, func(o *TDXOptions) {
			o.Certs = []*x509.Certificate{certify(template(4, amdName(pckIssuers[0]), false), in.root, p256()[keySigning].Public(), p256()[keyRoot])}
		}, []string{"TCB info", "QE identity"}},
		{"TCB signing is itself a root", nil, nil, func(o *TDXOptions) {
			c := template(4, amdName(signingName), true)
			self := certify(c, c, p256()[keySigning].Public(), p256()[keySigning])
			o.Certs, o.Roots = []*x509.Certificate{self}, append(o.Roots, self)
		}, []string{"TCB info", "QE identity"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := fullTDX(in)
			if c.tcb != nil {
				o.TCBInfo = c.tcb
			}
			if c.qe != nil {
				o.QEIdentity = c.qe
			}
			if c.option != nil {
				c.option(&o)
			}
			fails(t, must(TDX(in.quote(4, spoil{}), o)), c.failed...)
		})
	}
}

// A level below the chain of which Intel says nothing.
func TestTDXOutOfDate(t *testing.T) {
	in := newIntel()
	o := fullTDX(in)
	o.MinTEETCB = nil
	r := must(TDX(in.quote(4, spoil{body: func(b []byte) { b[2] = 0 }}), o))
	fails(t, r, "TCB level")
	if got := r.find("TCB level").Got; !strings.Contains(got, "OutOfDate") {
		t.Errorf("TCB level: got %q", got)
	}
	// A TDX module before 1.5 has no level of its own.
	r = must(TDX(in.quote(4, spoil{body: func(b []byte) { b[1] = 0 }}), o))
	fails(t, r)
}

func TestTDXRequired(t *testing.T) {
	in := newIntel()
	for name, change := range map[string]func(o *TDXOptions){
		"MRTD (not checked)":  func(o *TDXOptions) { o.MRTD = Register{} },
		"RTMR1 (not checked)": func(o *TDXOptions) { o.RTMR[1] = Register{} },
		"RTMR2 (not checked)": func(o *TDXOptions) { o.RTMR[2] = Register{Reason: "a boot secret"} },
	} {
		o := fullTDX(in)
		change(&o)
		if r := must(TDX(in.quote(4, spoil{}), o)); r.OK || !slices.Equal(r.Failures(), []string{name}) {
			t.Errorf("%s: accepted %v, failures %q", name, r.OK, r.Failures())
		}
	}
	o := fullTDX(in)
	o.RTMR[0], o.RTMR[3], o.TCBInfo, o.QEIdentity, o.CRLs = Register{}, Register{}, nil, nil, nil
	r := must(TDX(in.quote(4, spoil{}), o))
	fails(t, r)
	if !r.OK {
		t.Errorf("without RTMR 0 and 3 and collateral: refused: %q", r.Failures())
	}
	o.AllowDebug, o.Attributes = true, nil
	if r := must(TDX(in.quote(4, spoil{body: func(b []byte) { b[0x78] |= 1 }}), o)); !r.OK || r.find("debug").Got != "DEBUG" {
		t.Errorf("debug allowed: %q, %+v", r.Failures(), r.find("debug"))
	}
}

func TestMalformedQuote(t *testing.T) {
	in := newIntel()
	for _, version := range []int{4, 5} {
		whole := in.quote(version, spoil{})
		body := quoteHeaderSize + quoteBodySize
		if version == 5 {
			body = quoteHeaderSize + 6 + quoteBody15Size
		}
		sig := body + 4
		cert := sig + 2*ecdsaSize
		auth := cert + 6 + enclaveSize + ecdsaSize
		pck := auth + 2 + 32
		put16 := func(at int, v uint16) func(b []byte) []byte {
			return func(b []byte) []byte { binary.LittleEndian.PutUint16(b[at:], v); return b }
		}
		put32 := func(at int, v uint32) func(b []byte) []byte {
			return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
		}
		rows := map[string]func(b []byte) []byte{
			"offset 0x0: header: 48 bytes: 0 are left":                                  func([]byte) []byte { return nil },
			"offset 0x0: version 3: want 4 or 5":                                        put16(0, 3),
			"offset 0x2: attestation key type 3: want 2":                                put16(2, 3),
			"offset 0x4: TEE type 0x0: want 0x81":                                       put32(4, 0),
			"length of the signature data: 4 bytes: 3 are left":                         func(b []byte) []byte { return b[:body+3] },
			"signature data: 4294967295 bytes":                                          put32(body, 1<<32-1),
			"signature: 64 bytes: 1 are left":                                           func(b []byte) []byte { return put32(body, 1)(b[:sig+1]) },
			"certification data: type 5: want 6":                                        put16(cert, 5),
			"certification data: 4294967295 bytes":                                      put32(cert+2, 1<<32-1),
			"quoting enclave's data: 65535 bytes":                                       put16(auth, 1<<16-1),
			"PCK certificates: type 4: want 5":                                          put16(pck, 4),
			"PCK certificates: 4294967295 bytes":                                        put32(pck+2, 1<<32-1),
			"PCK certificates: verify: PEM: no certificate in it":                       func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("BEGIN"), []byte("begin")) },
			"byte 0x1 behind the quote: want nothing, or zeros":                         func(b []byte) []byte { return append(b, 0, 1) },
			"PCK certificates: verify: PEM: certificate 1: x509: malformed certificate": func(b []byte) []byte { return bytes.Replace(b, []byte("-----\nMI"), []byte("-----\nAA"), 1) },
		}
		if version == 5 {
			maps.Copy(rows, map[string]func(b []byte) []byte{
				"offset 0x30: body of type 1 and 648 bytes: want 2 and 584, or 3 and 648": put16(48, 1),
				"offset 0x30: body of type 2 and 648 bytes":                               put16(48, 2),
				"offset 0x30: body of type 3 and 4294967295 bytes":                        put32(50, 1<<32-1),
				"body of TDX 1.5: 64 bytes: 63 are left":                                  func(b []byte) []byte { return b[:body-1] },
				"body: 584 bytes: 0 are left":                                             func(b []byte) []byte { return b[:54] },
			})
		}
		for want, change := range rows {
			if _, err := TDX(change(bytes.Clone(whole)), fullTDX(in)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("version %d: got %v, want %s", version, err, want)
			}
		}
		if r := must(TDX(append(bytes.Clone(whole), make([]byte, 100)...), fullTDX(in))); !r.OK {
			t.Errorf("version %d with zeros behind it: %q", version, r.Failures())
		}
		for i := range whole { // at every length
			if _, err := TDX(whole[:i], fullTDX(in)); err == nil {
				t.Fatalf("version %d cut to %d bytes: accepted", version, i)
			}
		}
	}
	if _, err := TDX(in.quote(4, spoil{}), TDXOptions{}); err == nil || !strings.Contains(err.Error(), "no time") {
		t.Errorf("without a time: got %v", err)
	}
}

// A version 5 quote may have the body of TDX 1.0.
func TestQuote5WithBody10(t *testing.T) {
	in := newIntel()
	b := in.quote(4, spoil{})
	head := append(bytes.Clone(b[:quoteHeaderSize]), 2, 0)
	head[0] = 5
	head = append(binary.LittleEndian.AppendUint32(head, quoteBodySize), b[quoteHeaderSize:]...)
	r := must(TDX(head, fullTDX(in)))
	fails(t, r, "quote signature") // other bytes are signed
	if r.find("MRSERVICETD").Name != "" {
		t.Error("MRSERVICETD of a body that has none")
	}
}
