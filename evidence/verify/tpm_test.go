package verify

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure/eventlog"
)

// bootLog is the event log of a boot that really happened: measure/testdata.
func bootLog(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open("../../measure/testdata/boots/" + bootName + ".log.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const bootName = "sid-disk"

// bootPCRs are the registers that its guest reported.
func bootPCRs(t testing.TB) (out [24][32]byte) {
	t.Helper()
	b, err := os.ReadFile("../../measure/testdata/boots/" + bootName + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		PCRs map[string]map[string]string
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	for i := range out {
		text, ok := doc.PCRs["sha256"][big.NewInt(int64(i)).String()]
		if !ok {
			out[i] = [32]byte(resetPCR(i))
			continue
		}
		v, err := hex.DecodeString(text)
		if err != nil || len(v) != 32 {
			t.Fatalf("PCR %d: %q", i, text)
		}
		out[i] = [32]byte(v)
	}
	return out
}

// A signer stands for a TPM's attestation key.
type signer struct {
	key    crypto.Signer
	scheme tpm2.TPMAlgID
}

var signers = sync.OnceValue(func() map[string]signer {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return map[string]signer{"RSASSA": {rsaKey, tpm2.TPMAlgRSASSA}, "RSAPSS": {rsaKey, tpm2.TPMAlgRSAPSS}, "ECDSA": {ecKey, tpm2.TPMAlgECDSA}}
})

func (s signer) spki(t testing.TB) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sign makes a TPMT_SIGNATURE, in the encoding of go-tpm.
func (s signer) sign(t testing.TB, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	var opts crypto.SignerOpts = crypto.SHA256
	if s.scheme == tpm2.TPMAlgRSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	raw, err := s.key.Sign(rand.Reader, digest[:], opts)
	if err != nil {
		t.Fatal(err)
	}
	var u tpm2.TPMUSignature
	if s.scheme == tpm2.TPMAlgECDSA {
		var rs struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(raw, &rs); err != nil {
			t.Fatal(err)
		}
		u = tpm2.NewTPMUSignature(s.scheme, &tpm2.TPMSSignatureECC{Hash: tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.Bytes()}})
	} else {
		u = tpm2.NewTPMUSignature(s.scheme, &tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: raw}})
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: s.scheme, Signature: u})
}

var nonce = []byte("0123456789abcdef0123456789abcdef")

// attestOf makes what a TPM signs, in the encoding of go-tpm.
func attestOf(pcrs *[24][32]byte, change func(*tpm2.TPMSAttest, *tpm2.TPMSQuoteInfo)) []byte {
	h := sha256.New()
	for _, v := range pcrs {
		h.Write(v[:])
	}
	q := tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0xff, 0xff, 0xff}}}},
		PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
	}
	a := tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, ExtraData: tpm2.TPM2BData{Buffer: nonce},
		ClockInfo: tpm2.TPMSClockInfo{Clock: 4711, ResetCount: 3, Safe: true}, FirmwareVersion: 0x20191023}
	if change != nil {
		change(&a, &q)
	}
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &q)
	return tpm2.Marshal(a)
}

// shownBy is evidence of the recorded boot, signed by s.
func shownBy(t testing.TB, s signer) *evidence.TPM {
	t.Helper()
	e := &evidence.TPM{AKPublic: s.spki(t), EventLog: bootLog(t)}
	e.Quote.PCRs = bootPCRs(t)
	e.Quote.Message = attestOf(&e.Quote.PCRs, nil)
	e.Quote.Signature = s.sign(t, e.Quote.Message)
	return e
}

func TestTPM(t *testing.T) {
	for name, s := range signers() {
		t.Run(name, func(t *testing.T) {
			e := shownBy(t, s)
			r, st, err := TPM(e, TPMOptions{ReportData: nonce, AKs: [][]byte{s.spki(t)}})
			if err != nil {
				t.Fatal(err)
			}
			if !r.OK {
				t.Errorf("refused: %v", r.Failures())
			}
			if st.Log == nil || len(st.Log.Events) < 20 || st.PCRs != e.Quote.PCRs {
				t.Errorf("state %+v", st)
			}
		})
	}
}

// A report data of another length is fitted as Trustee does.
func TestTPMReportData(t *testing.T) {
	s := signers()["ECDSA"]
	e := shownBy(t, s)
	for name, data := range map[string][]byte{"SHA-384": append(bytes.Clone(nonce), 1, 2, 3)} {
		r, _, err := TPM(e, TPMOptions{ReportData: data, AKs: [][]byte{s.spki(t)}})
		if err != nil || !r.OK {
			t.Errorf("%s: %v, %v", name, err, r.Failures())
		}
	}
}

// Whatever is not as it was signed is refused by the check that is for it.
func TestTPMRefuses(t *testing.T) {
	s, other := signers()["RSASSA"], signers()["ECDSA"]
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	resign := func(change func(*tpm2.TPMSAttest, *tpm2.TPMSQuoteInfo)) func(*evidence.TPM, *TPMOptions) {
		return func(e *evidence.TPM, _ *TPMOptions) {
			e.Quote.Message = attestOf(&e.Quote.PCRs, change)
			e.Quote.Signature = s.sign(t, e.Quote.Message)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*evidence.TPM, *TPMOptions)
		want   []string
	}{
		{"a bit of the signature", func(e *evidence.TPM, _ *TPMOptions) { e.Quote.Signature[40] ^= 1 }, []string{"quote signature"}},
		{"a bit of the message", func(e *evidence.TPM, _ *TPMOptions) { e.Quote.Message[50] ^= 1 }, []string{"quote signature"}},
		{"another key", func(e *evidence.TPM, o *TPMOptions) { e.AKPublic = other.spki(t) }, []string{"quote signature", "attestation key trusted"}},
		{"a key that is not known", func(_ *evidence.TPM, o *TPMOptions) { o.AKs = [][]byte{other.spki(t)} }, []string{"attestation key trusted"}},
		{"no known key", func(_ *evidence.TPM, o *TPMOptions) { o.AKs = nil }, []string{"attestation key trusted (not checked)"}},
		{"a weak key", func(e *evidence.TPM, o *TPMOptions) {
			w := signer{weak, tpm2.TPMAlgRSASSA}
			e.AKPublic, e.Quote.Signature = w.spki(t), w.sign(t, e.Quote.Message)
			o.AKs = [][]byte{e.AKPublic}
		}, []string{"attestation key", "quote signature (not checked)"}},
		{"no key", func(e *evidence.TPM, o *TPMOptions) { e.AKPublic = []byte("no key") }, []string{"attestation key", "quote signature (not checked)", "attestation key trusted"}},
		{"what no TPM made", resign(func(a *tpm2.TPMSAttest, _ *tpm2.TPMSQuoteInfo) { a.Magic = 0xff544346 }), []string{"quote magic"}},
		{"what is no quote", func(e *evidence.TPM, _ *TPMOptions) {
			e.Quote.Message[5] = 0x17 // TPM_ST_ATTEST_CERTIFY
			e.Quote.Signature = s.sign(t, e.Quote.Message)
		}, []string{"quote type"}},
		{"another nonce", func(_ *evidence.TPM, o *TPMOptions) { o.ReportData = bytes.Repeat([]byte{1}, 32) }, []string{"qualifying data"}},
		{"a longer nonce", resign(func(a *tpm2.TPMSAttest, _ *tpm2.TPMSQuoteInfo) { a.ExtraData.Buffer = append(bytes.Clone(nonce), 0) }), []string{"qualifying data"}},
		{"23 registers", resign(func(_ *tpm2.TPMSAttest, q *tpm2.TPMSQuoteInfo) { q.PCRSelect.PCRSelections[0].PCRSelect[2] = 0x7f }), []string{"quote selection"}},
		{"a register too many", resign(func(_ *tpm2.TPMSAttest, q *tpm2.TPMSQuoteInfo) {
			q.PCRSelect.PCRSelections[0].PCRSelect = []byte{0xff, 0xff, 0xff, 1}
		}), []string{"quote selection"}},
		{"another bank", resign(func(_ *tpm2.TPMSAttest, q *tpm2.TPMSQuoteInfo) { q.PCRSelect.PCRSelections[0].Hash = tpm2.TPMAlgSHA1 }), []string{"quote selection"}},
		{"two banks", resign(func(_ *tpm2.TPMSAttest, q *tpm2.TPMSQuoteInfo) {
			q.PCRSelect.PCRSelections = append(q.PCRSelect.PCRSelections, q.PCRSelect.PCRSelections[0])
		}), []string{"quote selection"}},
		{"no registers", resign(func(_ *tpm2.TPMSAttest, q *tpm2.TPMSQuoteInfo) { q.PCRSelect.PCRSelections = nil }), []string{"quote selection"}},
		{"a register's value", func(e *evidence.TPM, _ *TPMOptions) { e.Quote.PCRs[4][0] ^= 1 }, []string{"register digest", "event log", "log of PCR 4"}},
		{"two registers exchanged", func(e *evidence.TPM, _ *TPMOptions) {
			p := &e.Quote.PCRs
			p[4], p[11] = p[11], p[4]
		}, []string{"register digest", "event log", "log of PCR 4", "log of PCR 11"}},
		{"a digest of the log", func(e *evidence.TPM, _ *TPMOptions) { flipDigest(t, e, 11) }, []string{"event log", "log of PCR 11"}},
		{"an event left out", func(e *evidence.TPM, _ *TPMOptions) { dropEvent(t, e, 4) }, []string{"event log", "log of PCR 4"}},
		{"an event more", func(e *evidence.TPM, _ *TPMOptions) {
			e.EventLog = appendEvent(e.EventLog, 14, sha256.Sum256([]byte("x")), "x")
		}, []string{"event log", "log of PCR 14"}},
		{"half a log", func(e *evidence.TPM, _ *TPMOptions) { e.EventLog = e.EventLog[:len(e.EventLog)/2] }, []string{"event log"}},
		{"no TCG log", func(e *evidence.TPM, _ *TPMOptions) { e.EventLog = []byte("log") }, []string{"event log"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, o := shownBy(t, s), &TPMOptions{ReportData: nonce, AKs: [][]byte{s.spki(t)}}
			tt.change(e, o)
			r, _, err := TPM(e, *o)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Failures(); r.OK || !slices.Equal(got, tt.want) {
				t.Errorf("refused by %q, want %q", got, tt.want)
			}
		})
	}
}

// edit changes the events of a log.
func edit(t *testing.T, e *evidence.TPM, change func(*eventlog.Log)) {
	t.Helper()
	l, err := eventlog.Parse(e.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	change(l)
	if e.EventLog, err = l.Marshal(); err != nil {
		t.Fatal(err)
	}
}

func flipDigest(t *testing.T, e *evidence.TPM, register int) {
	edit(t, e, func(l *eventlog.Log) {
		for i := range l.Events {
			if l.Events[i].Register == register {
				l.Events[i].Digest(eventlog.SHA256)[0] ^= 1
				return
			}
		}
	})
}

func dropEvent(t *testing.T, e *evidence.TPM, register int) {
	edit(t, e, func(l *eventlog.Log) {
		i := slices.IndexFunc(l.Events, func(e eventlog.Event) bool { return e.Register == register })
		l.Events = slices.Delete(l.Events, i, i+1)
	})
}

// appendEvent adds a record as the guest's agent does: bank sha256 alone.
func appendEvent(log []byte, pcr uint32, digest [32]byte, text string) []byte {
	b := binary.LittleEndian.AppendUint32(bytes.Clone(log), pcr)
	b = binary.LittleEndian.AppendUint32(b, 0xd)
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint16(b, 0xb)
	b = append(b, digest[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// What the guest extended itself is behind the firmware's log, in bank sha256 alone.
func TestTPMGuestEvents(t *testing.T) {
	s := signers()["ECDSA"]
	e := shownBy(t, s)
	d := sha256.Sum256([]byte("enter-initrd"))
	e.EventLog = appendEvent(e.EventLog, 11, d, "enter-initrd")
	e.Quote.PCRs[11] = sha256.Sum256(append(e.Quote.PCRs[11][:], d[:]...))
	e.Quote.Message = attestOf(&e.Quote.PCRs, nil)
	e.Quote.Signature = s.sign(t, e.Quote.Message)
	r, st, err := TPM(e, TPMOptions{ReportData: nonce, AKs: [][]byte{s.spki(t)}})
	if err != nil || !r.OK {
		t.Fatalf("%v, %v", err, r.Failures())
	}
	if last := st.Log.Events[len(st.Log.Events)-1]; last.Name != "enter-initrd" {
		t.Errorf("last event is %q", last.Name)
	}
}

// Without a log the registers are still those of the quote.
func TestTPMNoLog(t *testing.T) {
	s := signers()["ECDSA"]
	e := shownBy(t, s)
	e.EventLog = nil
	r, st, err := TPM(e, TPMOptions{ReportData: nonce, AKs: [][]byte{s.spki(t)}})
	if err != nil || !r.OK || st.Log != nil {
		t.Errorf("%v, %v, log %v", err, r.Failures(), st.Log)
	}
}

// IMA's register has no events in a firmware's log.
func TestTPMIMA(t *testing.T) {
	s := signers()["ECDSA"]
	e := shownBy(t, s)
	e.Quote.PCRs[10] = sha256.Sum256([]byte("ima"))
	e.Quote.Message = attestOf(&e.Quote.PCRs, nil)
	e.Quote.Signature = s.sign(t, e.Quote.Message)
	r, _, err := TPM(e, TPMOptions{ReportData: nonce, AKs: [][]byte{s.spki(t)}})
	if err != nil || !r.OK {
		t.Fatalf("%v, %v", err, r.Failures())
	}
	i := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Name == "log of PCR 10" })
	if i < 0 || r.Checks[i].Verdict != NotChecked {
		t.Error("nothing says that PCR 10 is not accounted for")
	}
}

// No structure is read that is cut anywhere, or has bytes behind it.
func TestTPMTruncated(t *testing.T) {
	s := signers()["RSASSA"]
	e := shownBy(t, s)
	for what, field := range map[string]*[]byte{"message": &e.Quote.Message, "signature": &e.Quote.Signature} {
		whole := *field
		for i := range len(whole) + 1 {
			if *field = whole[:i]; i == len(whole) {
				*field = append(bytes.Clone(whole), 0)
			}
			var bad *MalformedError
			if _, _, err := TPM(e, TPMOptions{}); !errors.As(err, &bad) {
				t.Errorf("%s of %d bytes: %v", what, len(*field), err)
			}
		}
		*field = whole
	}
}

func TestTPMSignatureForms(t *testing.T) {
	sig := func(change func([]byte)) []byte {
		b := signers()["RSASSA"].sign(t, []byte("m"))
		change(b)
		return b
	}
	for _, tt := range []struct {
		name, want string
		in         []byte
	}{
		{"HMAC", "scheme 0x5", sig(func(b []byte) { b[1] = 5 })},
		{"SHA-1", "hash 0x4", sig(func(b []byte) { b[3] = 4 })},
		{"longer than any key", "want at most 1024", sig(func(b []byte) { b[4] = 4; b[5] = 1 })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseTPMSignature(tt.in)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	// The scheme has to be one of the key.
	s, err := parseTPMSignature(signers()["ECDSA"].sign(t, []byte("m")))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.verify(signers()["RSASSA"].key.Public(), []byte("m")); err == nil {
		t.Error("an ECDSA signature is taken for RSA's")
	}
}

// Certificates: that of the attestation key vouches for it, an EK's does not.
func TestTPMCertificates(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	caKey := signers()["ECDSA"].key
	ca := certified(t, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TPM maker"}, IsCA: true, BasicConstraintsValid: true}, nil, caKey.Public(), caKey, now)
	s := signers()["RSASSA"]
	// The name of a TPM's certificate is empty, and a critical extension has it.
	name := []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: []byte{0x30, 0x04, 0xa4, 0x02, 0x30, 0x00}}}
	leaf := certified(t, &x509.Certificate{SerialNumber: big.NewInt(2), ExtraExtensions: name}, ca, s.key.Public(), caKey, now)
	foreign := certified(t, &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "other"}}, ca, caKey.Public(), caKey, now)
	roots := []*x509.Certificate{ca}
	for _, tt := range []struct {
		name   string
		change func(*evidence.TPM, *TPMOptions)
		want   []string
	}{
		{"in the evidence", func(e *evidence.TPM, o *TPMOptions) { e.AKCertificate = leaf.Raw }, nil},
		{"given", func(e *evidence.TPM, o *TPMOptions) { o.Certs = []*x509.Certificate{foreign, leaf} }, nil},
		{"of another key", func(e *evidence.TPM, o *TPMOptions) { e.AKCertificate = foreign.Raw }, []string{"AK certificate", "attestation key trusted (not checked)"}},
		{"expired", func(e *evidence.TPM, o *TPMOptions) { e.AKCertificate = leaf.Raw; o.Now = now.AddDate(2, 0, 0) }, []string{"AK certificate", "attestation key trusted (not checked)"}},
		{"of another maker", func(e *evidence.TPM, o *TPMOptions) {
			e.AKCertificate = leaf.Raw
			o.Roots = []*x509.Certificate{leaf}
		}, []string{"AK certificate", "attestation key trusted (not checked)"}},
		{"no root", func(e *evidence.TPM, o *TPMOptions) { e.AKCertificate = leaf.Raw; o.Roots = nil }, []string{"attestation key trusted (not checked)"}},
		{"no time", func(e *evidence.TPM, o *TPMOptions) { e.AKCertificate = leaf.Raw; o.Now = time.Time{} }, []string{"AK certificate", "attestation key trusted (not checked)"}},
		{"no certificate", func(e *evidence.TPM, o *TPMOptions) { e.AKCertificate = []byte("none") }, []string{"AK certificate", "attestation key trusted (not checked)"}},
		{"an EK's alone", func(e *evidence.TPM, o *TPMOptions) { e.EKCertificate = foreign.Raw }, []string{"attestation key trusted (not checked)"}},
		{"a false EK's beside a known key", func(e *evidence.TPM, o *TPMOptions) {
			e.EKCertificate, o.AKs = []byte("none"), [][]byte{e.AKPublic}
		}, []string{"EK certificate"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, o := shownBy(t, s), &TPMOptions{Now: now, ReportData: nonce, Roots: roots}
			tt.change(e, o)
			r, _, err := TPM(e, *o)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Failures(); r.OK != (tt.want == nil) || !slices.Equal(got, tt.want) {
				t.Errorf("refused by %q, want %q", got, tt.want)
			}
		})
	}
}

func certified(t *testing.T, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer, now time.Time) *x509.Certificate {
	t.Helper()
	tmpl.NotBefore, tmpl.NotAfter = now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0)
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// The evidence of Trustee's tests: a real TPM's.
func TestTPMFixture(t *testing.T) {
	b, err := os.ReadFile(testenv.Vectors(t) + "/guest/trustee/evidence/tpm_evidence.json")
	if err != nil {
		t.Fatal(err)
	}
	e, err := evidence.ParseTPM(b)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := TPM(e, TPMOptions{AKs: [][]byte{e.AKPublic}})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK {
		t.Errorf("refused: %v", r.Failures())
	}
	for _, c := range r.Checks {
		t.Log(c.Verdict, c.Name, c.Got)
	}
	e.Quote.PCRs[23][0] ^= 1
	if r, _, err := TPM(e, TPMOptions{AKs: [][]byte{e.AKPublic}}); err != nil || r.OK {
		t.Errorf("another register is taken: %v", err)
	}
}

// FuzzTPMQuote: what is taken is what go-tpm reads, too.
func FuzzTPMQuote(f *testing.F) {
	var pcrs [24][32]byte
	f.Add(attestOf(&pcrs, nil), signers()["RSASSA"].sign(f, nil))
	f.Add(attestOf(&pcrs, nil), signers()["ECDSA"].sign(f, nil))
	f.Fuzz(func(t *testing.T, message, signature []byte) {
		_, _ = parseTPMSignature(signature)
		a, err := parseAttest(message)
		if err != nil || a.magic != tpmGenerated || a.kind != tpmQuoteTag {
			return
		}
		theirs, err := tpm2.Unmarshal[tpm2.TPMSAttest](message)
		if err != nil {
			return // it is stricter on what the numbers may be
		}
		q, err := theirs.Attested.Quote()
		if err != nil || !bytes.Equal(q.PCRDigest.Buffer, a.digest) || !bytes.Equal(theirs.ExtraData.Buffer, a.extra) || len(q.PCRSelect.PCRSelections) != len(a.selections) {
			t.Fatalf("%x: read as %+v, by go-tpm as %+v (%v)", message, a, theirs, err)
		}
	})
}
