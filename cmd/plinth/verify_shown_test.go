package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/evidence/verify"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/measure/eventlog"
	"github.com/plinth-os/plinth/workload"
)

// A stage is a guest whose evidence is made here: the firmware's log of a boot that
// really happened, what an agent extends, and a key in the place of a TPM's.
type stage struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	log  []byte
	pcrs [24][32]byte
}

const stageBoot = "../../measure/testdata/boots/sid-disk.log.gz"

func newStage(t *testing.T) *stage {
	t.Helper()
	f, err := os.Open(stageBoot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, dir: t.TempDir()}
	if s.log, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	s.replay()
	s.write("ak.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: s.spki()}))
	return s
}

func (s *stage) write(name string, b []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *stage) spki() []byte {
	b, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// replay sets the registers to what the log leads to.
func (s *stage) replay() {
	s.t.Helper()
	l, err := eventlog.Parse(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	values, err := l.Replay(eventlog.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range s.pcrs {
		s.pcrs[i] = [32]byte{}
		if i >= 17 && i <= 22 {
			s.pcrs[i] = [32]byte(bytes.Repeat([]byte{0xff}, 32))
		}
		if v := values[i]; v != nil {
			s.pcrs[i] = [32]byte(v)
		}
	}
}

// extend does what an agent does with a word.
func (s *stage) extend(pcr uint32, digest []byte, word string) {
	b := binary.LittleEndian.AppendUint32(s.log, pcr)
	b = binary.LittleEndian.AppendUint32(b, 0xd) // EV_IPL
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = append(binary.LittleEndian.AppendUint16(b, 0xb), digest...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(word)))
	s.log = append(b, word...)
	s.replay()
}

func (s *stage) phase(words ...string) {
	for _, w := range words {
		d := sha256.Sum256([]byte(w))
		s.extend(11, d[:], w)
	}
}

func (s *stage) event(e workload.Event) {
	s.log = append(s.log, e.Record(14, crypto.SHA256)...)
	s.replay()
}

// evidence signs the registers.
func (s *stage) evidence(reportData []byte) *evidence.TPM {
	s.t.Helper()
	h := sha256.New()
	for _, v := range s.pcrs {
		h.Write(v[:])
	}
	a := tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, ExtraData: tpm2.TPM2BData{Buffer: evidence.Fit(reportData, 32)}}
	a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0xff, 0xff, 0xff}}}},
		PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
	})
	message := tpm2.Marshal(a)
	digest := sha256.Sum256(message)
	raw, err := s.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		s.t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(raw, &rs); err != nil {
		s.t.Fatal(err)
	}
	sig := tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
		Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.Bytes()}})})
	return &evidence.TPM{AKPublic: s.spki(), EventLog: s.log, Quote: evidence.TPMQuote{Message: message, Signature: sig, PCRs: s.pcrs}}
}

// shown writes the evidence.
func (s *stage) shown() string {
	s.t.Helper()
	b, err := s.evidence(nil).Marshal()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.write("evidence.json", b)
}

const stageNonce = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// whole writes an attestation, changed after the evidence was made for it.
func (s *stage) whole(h crypto.Hash, body string, change func(*evidence.Attestation)) string {
	s.t.Helper()
	p, err := s.key.ECDH()
	if err != nil {
		s.t.Fatal(err)
	}
	point := p.PublicKey().Bytes()
	b64 := base64.RawURLEncoding.EncodeToString
	jwk := json.RawMessage(fmt.Sprintf(`{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":%q,"y":%q}`, b64(point[1:33]), b64(point[33:])))
	a := &evidence.Attestation{RuntimeData: evidence.RuntimeData{Nonce: stageNonce, TEEPubKey: jwk}}
	if body != "" {
		a.InitData = &evidence.InitData{Format: evidence.FormatTOML, Body: body}
	}
	data, err := evidence.Binding(h, stageNonce, jwk, &a.TEEEvidence.Additional)
	if err != nil {
		s.t.Fatal(err)
	}
	if a.TEEEvidence.Primary, err = s.evidence(data).Marshal(); err != nil {
		s.t.Fatal(err)
	}
	if change != nil {
		change(a)
	}
	b, err := a.Marshal()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.write("attestation.json", b)
}

// document predicts what the stage's log has by now, by register, in phases as a real one.
func (s *stage) document(change func(*measure.Measurements)) string {
	s.t.Helper()
	l, err := eventlog.Parse(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	l.Describe()
	return s.predict(l.Events, change)
}

// values predicts the registers, whatever extended them.
func (s *stage) values() string { s.t.Helper(); return s.predict(nil, nil) }

func (s *stage) predict(events []eventlog.Event, change func(*measure.Measurements)) string {
	s.t.Helper()
	shape := measure.Shape{Type: "q35", VCPUs: 1, MemoryMiB: 1024}
	m := &measure.Measurements{Schema: 1, Profile: "p", Machine: shape, Machines: []measure.Shape{shape}, Notes: []string{}}
	for i := range s.pcrs {
		v := measure.Value{Platform: measure.PlatformTPM, Register: fmt.Sprintf("pcr%d", i), Bank: "sha256", Provenance: measure.Predicted,
			Value: hex.EncodeToString(s.pcrs[i][:]), Events: []measure.EventRef{}}
		for _, e := range events {
			if e.Register == i && e.Type != eventlog.NoAction {
				v.Events = append(v.Events, measure.EventRef{Name: e.Name, Type: e.Type.String(), Digest: hex.EncodeToString(e.Digest(eventlog.SHA256)), Source: "test"})
			}
		}
		m.Values = append(m.Values, v)
	}
	if change != nil {
		change(m)
	}
	b, err := m.Marshal()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.write("measurements.json", b)
}

// then adds a value of a register behind the one that is there.
func then(m *measure.Measurements, register, phase, source string, events ...measure.EventRef) {
	i := slices.IndexFunc(m.Values, func(v measure.Value) bool { return v.Register == register })
	v := m.Values[i]
	v.Phase = phase
	for _, e := range events {
		e.Source, e.Unlogged = source, true
		v = afterEvent(v, e)
	}
	m.Values = slices.Insert(m.Values, i+1, v)
}

var phaseWords = []string{"enter-initrd", "leave-initrd", "sysinit", "ready"}

func phaseRefs() (out []measure.EventRef) {
	for _, w := range phaseWords {
		d := sha256.Sum256([]byte(w))
		out = append(out, measure.EventRef{Name: "phase " + w, Type: "EV_IPL", Digest: hex.EncodeToString(d[:])})
	}
	return out
}

var stageEvents = []workload.Event{
	{Domain: workload.DomainPlinth, Operation: workload.OpPolicy, Content: `{"policy":"sha256:00"}`},
	{Domain: workload.DomainPlinth, Operation: workload.OpWorkload, Content: `{"name":"db"}`},
	{Domain: workload.DomainPlinth, Operation: workload.OpSeparator, Content: `{"workloads":1}`},
}

func eventRefs() (out []measure.EventRef) {
	for _, e := range stageEvents {
		out = append(out, measure.EventRef{Name: e.Operation, Type: "EV_EVENT_TAG", Digest: hex.EncodeToString(e.Digest(crypto.SHA256))})
	}
	return out
}

const stageInitdata = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"aa.toml\" = \"x = 1\\n\"\n"

func initdataDigest(t *testing.T, raw string) []byte {
	t.Helper()
	d, err := initdata.Parse([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Extend()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// verifyCLI runs the command.
func (s *stage) verify(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	e := hostEnv()
	e.stdout, e.stderr = &out, &errs
	code = run(context.Background(), append([]string{"verify"}, args...), e)
	return code, out.String(), errs.String()
}

func (s *stage) ak() string { return filepath.Join(s.dir, "ak.pem") }

// full is a document with all that a guest extends.
func (s *stage) full() string {
	return s.document(func(m *measure.Measurements) {
		then(m, "pcr11", strings.Join(phaseWords, ":"), "phases, by the guest", phaseRefs()...)
		then(m, "pcr14", measure.PhaseWorkloads, "workloads, by the guest", eventRefs()...)
		then(m, "pcr8", measure.PhaseInitdata, initdataAlways, measure.EventRef{Name: "initdata", Type: "EV_IPL", Digest: hex.EncodeToString(initdataDigest(s.t, stageInitdata))})
	})
}

// A guest is accepted wherever it is between its boot and its workloads, and refused where
// it went another way, with the register and the event.
func TestVerifyEvidence(t *testing.T) {
	given := func(s *stage) { s.extend(8, initdataDigest(t, stageInitdata), "initdata") }
	for _, tt := range []struct {
		name string
		do   func(*stage)
		want []string // in stderr; nil: accepted
		says []string // in stdout
	}{
		{"before its first phase", func(s *stage) {}, nil, []string{`match +pcr11\n`}},
		{"in the initrd", func(s *stage) { s.phase(phaseWords[:1]...) }, nil, nil},
		{"before its containers", func(s *stage) { s.phase(phaseWords[:2]...) }, nil, []string{"pcr11  after enter-initrd:leave-initrd"}},
		{"with all its workloads", func(s *stage) {
			s.phase(phaseWords...)
			for _, e := range stageEvents {
				s.event(e)
			}
		}, nil, []string{"pcr14  after workloads", "pcr11  after enter-initrd:leave-initrd:sysinit:ready"}},
		{"with events of containers", func(s *stage) {
			for _, e := range append(slices.Clone(stageEvents), workload.Event{Domain: "app", Operation: "Start", Content: "x"}) {
				s.event(e)
			}
		}, nil, []string{"not predicted  pcr14", "then extended by containers: attestation agent", "app Start x"}},
		{"another first phase", func(s *stage) { s.phase("enter-Initrd") }, []string{"pcr11 (changed: phase enter-initrd"}, []string{"now enter-Initrd", "mismatch"}},
		{"a phase left out", func(s *stage) { s.phase(phaseWords[0], phaseWords[2]) }, []string{"pcr11 ("}, nil},
		{"a phase too many", func(s *stage) { s.phase(append(slices.Clone(phaseWords), "more")...) }, []string{"pcr11 (extra: more)"}, nil},
		{"another workload", func(s *stage) {
			for i, e := range stageEvents {
				if i == 1 {
					e.Content = `{"name":"dB"}`
				}
				s.event(e)
			}
		}, []string{"pcr14 (changed: Workload"}, []string{`now attestation agent .*dB`}},
		{"another workload, and events of containers", func(s *stage) {
			for i, e := range append(slices.Clone(stageEvents), workload.Event{Domain: "app", Operation: "Start", Content: "x"}) {
				if i == 0 {
					e.Content = "{}"
				}
				s.event(e)
			}
		}, []string{"pcr14 (changed: Policy"}, nil},
		{"half its workloads", func(s *stage) { s.event(stageEvents[0]) }, []string{"pcr14 (missing: Workload"}, nil},
		{"another register", func(s *stage) { s.extend(12, make([]byte, 32), "argument") }, []string{"pcr12 (extra: argument)"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			m := s.full()
			given(s)
			tt.do(s)
			code, out, errs := s.verify("--evidence", s.shown(), "--against", m, "--ak", s.ak())
			if want := map[bool]int{true: 0, false: 7}[tt.want == nil]; code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
			for _, w := range tt.want {
				if !strings.Contains(errs, w) {
					t.Errorf("stderr has no %q", w)
				}
			}
			if strings.Count(errs, "pcr") > len(tt.want)+strings.Count(errs, "hint") {
				t.Errorf("more registers than %q", tt.want)
			}
			for _, w := range tt.says {
				if !matches(w, out) {
					t.Errorf("stdout has no %q", w)
				}
			}
			if t.Failed() {
				t.Logf("%s%s", out, errs)
			}
		})
	}
}

func matches(pattern, s string) bool { return regexp.MustCompile(pattern).MatchString(s) }

// A register that is named has to be known, not only not wrong.
func TestVerifyNeeded(t *testing.T) {
	s := newStage(t)
	m := s.full()
	s.extend(8, initdataDigest(t, stageInitdata), "initdata")
	for _, e := range append(slices.Clone(stageEvents), workload.Event{Domain: "app", Operation: "Start", Content: "x"}) {
		s.event(e)
	}
	for pcrs, want := range map[string]string{"8,11": "", "8,14": "refused: pcr14 (not predicted)\n"} {
		code, out, errs := s.verify("--evidence", s.shown(), "--against", m, "--ak", s.ak(), "--pcrs", pcrs)
		if (code == 0) != (want == "") || !strings.Contains(errs, want) {
			t.Errorf("--pcrs %s: exit code %d\n%s%s", pcrs, code, out, errs)
		}
	}
}

// A byte of the firmware's part is named by its event.
func TestVerifyEvidenceFirmware(t *testing.T) {
	s := newStage(t)
	m := s.full()
	s.extend(8, initdataDigest(t, stageInitdata), "initdata")
	l, err := eventlog.Parse(s.log)
	if err != nil {
		t.Fatal(err)
	}
	l.Describe()
	i := slices.IndexFunc(l.Events, func(e eventlog.Event) bool { return e.Register == 11 && e.Name == "section .initrd" })
	if i < 0 {
		t.Fatal("the log has no .initrd")
	}
	l.Events[i].Digest(eventlog.SHA256)[0] ^= 1
	if s.log, err = l.Marshal(); err != nil {
		t.Fatal(err)
	}
	s.replay()
	code, out, errs := s.verify("--evidence", s.shown(), "--against", m, "--ak", s.ak())
	if code != 7 || !strings.Contains(errs, "refused: pcr11 (changed: section .initrd (test))") || !matches(`section .initrd \(test\): got [0-9a-f]{64}, want [0-9a-f]{64}`, out) {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	code, out, _ = s.verify("--evidence", filepath.Join(s.dir, "evidence.json"), "--against", m, "--ak", s.ak(), "--json")
	var doc struct {
		OK        bool `json:"ok"`
		Platform  string
		Registers *measure.CheckResult
	}
	if err := json.Unmarshal([]byte(out), &doc); code != 7 || err != nil || doc.OK || doc.Platform != "tpm" || doc.Registers == nil || doc.Registers.Passed || len(doc.Registers.Registers) != 24 {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
}

// A certificate of the evidence is anybody's: its name does not reach the terminal as it is.
func TestVerifyHostileName(t *testing.T) {
	s := newStage(t)
	e := s.evidence(nil)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "\x1b[2J\r\nok  quote signature"}}
	var err error
	if e.EKCertificate, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, s.key.Public(), s.key); err != nil {
		t.Fatal(err)
	}
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	_, out, _ := s.verify("--evidence", s.write("evidence.json", b), "--against", s.document(nil), "--ak", s.ak())
	if strings.ContainsAny(out, "\x1b\r") || !matches(`EK certificate .*[^\n]\n +ok  quote signature`, out) {
		t.Errorf("%q", out)
	}
}

// Without a log a register is compared by its value.
func TestVerifyEvidenceNoLog(t *testing.T) {
	s := newStage(t)
	m := s.full()
	s.extend(8, initdataDigest(t, stageInitdata), "initdata")
	s.phase(phaseWords[:3]...)
	write := func() string {
		e := s.evidence(nil)
		e.EventLog = nil
		b, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return s.write("evidence.json", b)
	}
	if code, out, errs := s.verify("--evidence", write(), "--against", m, "--ak", s.ak()); code != 0 {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	s.extend(4, make([]byte, 32), "image")
	if code, out, errs := s.verify("--evidence", write(), "--against", m, "--ak", s.ak()); code != 7 || !strings.Contains(errs, "refused: pcr4\n") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

// A whole attestation: nonce, key, initdata and what the hash of the binding may be.
func TestVerifyAttestation(t *testing.T) {
	other := strings.Replace(stageInitdata, "x = 1", "x = 2", 1)
	for _, tt := range []struct {
		name   string
		hash   crypto.Hash
		body   string // of the attestation
		done   string // what the guest extended
		change func(*evidence.Attestation)
		args   []string
		want   string // in stderr; "": accepted
		says   string
	}{
		{"SHA-384", crypto.SHA384, stageInitdata, stageInitdata, nil, nil, "", `ok +nonce +AAEC`},
		{"SHA-256", crypto.SHA256, stageInitdata, stageInitdata, nil, nil, "", `EC "P-256", "ECDH-ES\+A256KW", thumbprint`},
		{"SHA-512", crypto.SHA512, stageInitdata, stageInitdata, nil, nil, "", ``},
		{"another nonce", crypto.SHA384, stageInitdata, stageInitdata, func(a *evidence.Attestation) { a.RuntimeData.Nonce = "bm9uY2U=" }, nil, "nonce, qualifying data", ""},
		{"another key", crypto.SHA384, stageInitdata, stageInitdata, func(a *evidence.Attestation) {
			a.RuntimeData.TEEPubKey = json.RawMessage(strings.Replace(string(a.RuntimeData.TEEPubKey), "ECDH-ES+A256KW", "ECDH-ES+A256Kw", 1))
		}, nil, "qualifying data", ""},
		{"no point", crypto.SHA384, stageInitdata, stageInitdata, func(a *evidence.Attestation) {
			a.RuntimeData.TEEPubKey = json.RawMessage(`{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}`)
		}, nil, "tee-pubkey, qualifying data", ""},
		{"a device more", crypto.SHA384, stageInitdata, stageInitdata, func(a *evidence.Attestation) { a.TEEEvidence.Additional = `{"sampledevice":{}}` }, nil, "qualifying data", "not checked +device sampledevice"},
		{"initdata swapped", crypto.SHA384, other, stageInitdata, nil, nil, "initdata\n", "match +pcr8"},
		{"initdata swapped, none expected", crypto.SHA384, stageInitdata, other, nil, []string{"--initdata="}, "pcr8 (changed: initdata", ""},
		{"other initdata", crypto.SHA384, other, other, nil, nil, "initdata, pcr8 (changed: initdata", ""},
		{"no initdata", crypto.SHA384, "", "", nil, nil, "initdata, pcr8 (missing: initdata", ""},
		{"initdata of another form", crypto.SHA384, stageInitdata, stageInitdata, func(a *evidence.Attestation) { a.InitData.Format = "json" }, []string{"--initdata="}, "initdata", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			m := s.full()
			if tt.done != "" {
				s.extend(8, initdataDigest(t, tt.done), "initdata")
			}
			args := []string{"--evidence", s.whole(tt.hash, tt.body, tt.change), "--against", m, "--ak", s.ak(), "--nonce", stageNonce, "--initdata", s.write("initdata.toml", []byte(stageInitdata))}
			code, out, errs := s.verify(append(args, tt.args...)...)
			if ok := tt.want == ""; ok != (code == 0) || !ok && (code != 7 || !strings.Contains(errs, "refused: "+tt.want)) || !matches(tt.says, out) {
				t.Errorf("exit code %d, want %q, %q\n%s%s", code, tt.want, tt.says, out, errs)
			}
		})
	}
}

// An agent that always extends the register by its initdata left none out.
func TestVerifyInitdataRequired(t *testing.T) {
	s := newStage(t)
	m := s.full()
	code, out, errs := s.verify("--evidence", s.shown(), "--against", m, "--ak", s.ak())
	if code != 7 || !strings.Contains(errs, "refused: pcr8 (missing: initdata") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	maybe := s.document(func(m *measure.Measurements) {
		then(m, "pcr8", measure.PhaseInitdata, "initdata, by the guest", measure.EventRef{Name: "initdata", Type: "EV_IPL", Digest: hex.EncodeToString(initdataDigest(t, stageInitdata))})
	})
	if code, out, errs = s.verify("--evidence", s.shown(), "--against", maybe, "--ak", s.ak()); code != 0 {
		t.Errorf("given none, and free to: exit code %d\n%s%s", code, out, errs)
	}
}

// A register of a trust domain that differs is explained by the event.
func TestExplainRTMR(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest/trustee/eventlog/CCEL_data_ovmf"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.ParseCC(b)
	if err != nil {
		t.Fatal(err)
	}
	l.Describe()
	m := &measure.Measurements{}
	v := measure.Value{Platform: measure.PlatformTDX, Register: "rtmr1", Bank: "sha384"}
	for _, e := range l.Events {
		if e.Register == 2 && e.Type != eventlog.NoAction {
			v.Events = append(v.Events, measure.EventRef{Name: e.Name, Type: e.Type.String(), Digest: hex.EncodeToString(e.Digest(eventlog.SHA384))})
		}
	}
	if len(v.Events) < 2 {
		t.Fatalf("%d events", len(v.Events))
	}
	v.Events[1].Digest = strings.Repeat("00", 48)
	m.Values = []measure.Value{v}
	r := explainRTMRs(m, &verify.Result{Checks: []verify.Check{{Name: "RTMR1", Verdict: verify.Failed}, {Name: "RTMR2", Verdict: verify.OK}}}, l)
	if want := "rtmr1 (changed: " + v.Events[1].Name + ")"; len(r.failures()) != 1 || r.failures()[0] != want {
		t.Errorf("got %q, want %q", r.failures(), want)
	}
}

// What came with the evidence is nobody's word that it is right: it opens neither a
// register that the document leaves alone, nor one that it does not know.
func TestVerifyUnknownInitdata(t *testing.T) {
	unknown := func(m *measure.Measurements) {
		then(m, "pcr8", measure.PhaseInitdata, initdataAlways, measure.EventRef{Name: "initdata", Type: "EV_IPL"})
	}
	for _, tt := range []struct {
		name     string
		document func(*measure.Measurements)
		done     []byte // what the guest extended
		body     string // what came with the evidence
		args     []string
		want     string // in stderr; "": accepted
		says     string
	}{
		{"a guest that does not look", nil, initdataDigest(t, stageInitdata), stageInitdata, nil, "refused: pcr8 (extra: initdata)", ""},
		{"not known", unknown, initdataDigest(t, stageInitdata), stageInitdata, nil, "refused: pcr8 (not predicted)\nplinth: hint: give the initdata", `the initdata that came with the evidence`},
		{"not known, and held back", unknown, initdataDigest(t, stageInitdata), "", nil, "refused: pcr8 (not predicted)", ""},
		{"not known, and of a longer digest", unknown, initdataDigest(t, stageInitdata), strings.Replace(stageInitdata, "sha256", "sha384", 1), nil, "refused: pcr8 (not predicted)", ""},
		{"not known, and another", unknown, make([]byte, 32), stageInitdata, nil, "refused: pcr8 (changed: initdata", ""},
		{"not looked for", unknown, nil, "", nil, "refused: pcr8 (missing: initdata", ""},
		{"given none", unknown, workload.NoInitdata(), "", nil, "", `match +pcr8 +after initdata`},
		{"of no account", unknown, initdataDigest(t, stageInitdata), stageInitdata, []string{"--pcrs", "4,11"}, "", `not predicted +pcr8`},
		{"expected", unknown, initdataDigest(t, stageInitdata), stageInitdata, []string{"--initdata", "given"}, "", `match +pcr8 +after initdata`},
		{"expected, and none given", unknown, workload.NoInitdata(), "", []string{"--initdata", "given"}, "refused: initdata, pcr8 (changed: initdata", ""},
		{"expected, of a longer digest", unknown, initdataDigest(t, stageInitdata), "", []string{"--initdata", "long"}, `algorithm "sha384"`, ""},
		{"report data", unknown, workload.NoInitdata(), "", []string{"--report-data", "00"}, "--report-data does not apply to a whole attestation", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			m := s.document(tt.document)
			t.Chdir(s.dir)
			s.write("given", []byte(stageInitdata))
			s.write("long", []byte(strings.Replace(stageInitdata, "sha256", "sha384", 1)))
			if tt.done != nil {
				s.extend(8, tt.done, "initdata")
			}
			code, out, errs := s.verify(append([]string{"--evidence", s.whole(crypto.SHA384, tt.body, nil), "--against", m, "--ak", s.ak()}, tt.args...)...)
			if (code == 0) != (tt.want == "") || !strings.Contains(errs, tt.want) || !matches(tt.says, out) {
				t.Errorf("exit code %d, want %q, %q\n%s%s", code, tt.want, tt.says, out, errs)
			}
		})
	}
}

// Nor what a field of the hardware's report has to hold.
func TestBindInitdata(t *testing.T) {
	doc, err := initdata.Parse([]byte(stageInitdata))
	if err != nil {
		t.Fatal(err)
	}
	right, other := doc.Digest(), bytes.Repeat([]byte{1}, 32)
	for _, tt := range []struct {
		name       string
		expected   bool
		flag       string
		known      []byte
		want       []byte
		refused    []string
		noDocument bool
	}{
		{name: "pinned", known: right, want: right},
		{name: "another is pinned", known: other, want: other, refused: []string{"initdata"}},
		{name: "not known", want: right, refused: []string{"initdata (not checked)"}},
		{name: "expected", expected: true, known: other, want: right},
		{name: "expected, and by a flag", expected: true, flag: "01", known: other, want: other, refused: []string{"initdata"}},
		{name: "none", noDocument: true, known: other, want: other},
	} {
		s := &shown{given: doc, expected: tt.expected}
		if tt.noDocument {
			s.given = nil
		}
		got := tt.known
		if err := s.bindInitdata(initdata.SNP, tt.flag, &got); err != nil {
			t.Fatal(err)
		}
		if r := (&verify.Result{Checks: s.checks}); !bytes.Equal(got, tt.want) || !slices.Equal(r.Failures(), tt.refused) {
			t.Errorf("%s: %x, refused by %q; want %x, %q", tt.name, got, r.Failures(), tt.want, tt.refused)
		}
	}
}

// Behind another firmware the registers of the image count, and that which says what was
// booted.
func TestOtherFirmware(t *testing.T) {
	s := newStage(t)
	path := s.document(nil)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := measure.ParseMeasurements(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		changed []int
		pcrs    []int
		want    []string
	}{
		{nil, nil, nil},
		{[]int{0, 7}, nil, nil},
		{[]int{4}, nil, []string{"pcr4 (not checked)"}},
		{[]int{4}, []int{8, 9, 11}, nil},
		{[]int{9}, nil, []string{"pcr9"}},
		{[]int{15}, nil, []string{"pcr15"}},
	} {
		st := &verify.TPMState{PCRs: s.pcrs} // Azure's evidence has no log
		for _, n := range tt.changed {
			st.PCRs[n][0] ^= 1
		}
		r, err := checkRegisters(m, st, &shown{tee: evidence.TEEAzSNP})
		if err != nil {
			t.Fatal(err)
		}
		r.only(tt.pcrs)
		if got := r.failures(); !slices.Equal(got, tt.want) {
			t.Errorf("%v changed, --pcrs %v: refused by %q, want %q", tt.changed, tt.pcrs, got, tt.want)
		}
		if len(tt.changed) > 0 && tt.changed[0] == 4 && tt.pcrs == nil && !strings.Contains(r.hint(), "--pcrs") {
			t.Errorf("hint %q", r.hint())
		}
	}
	m.Values = slices.DeleteFunc(m.Values, func(v measure.Value) bool { return v.Register == "pcr13" })
	r, err := checkRegisters(m, &verify.TPMState{PCRs: s.pcrs}, &shown{tee: evidence.TEETPM})
	if err != nil || !slices.Equal(r.failures(), []string{"pcr13"}) {
		t.Errorf("a register that the document does not have: %v, refused by %q", err, r.failures())
	}
}

// Recorded evidence of Azure, against a document of the registers in it.
func TestVerifyAzure(t *testing.T) {
	for _, name := range []string{"az-snp-vtpm/evidence-v2.json", "az-tdx-vtpm/evidence-v1.json"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(testenv.Vectors(t), "guest/trustee/evidence", name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			e, err := evidence.ParseAzure(b)
			if err != nil {
				t.Fatal(err)
			}
			s := newStage(t)
			s.log, s.pcrs = nil, e.Quote.PCRs
			m := s.values()
			paravisor := e.HCLReport[0x20+0x90:][:48]
			if e.TDQuote != nil {
				paravisor = e.TDQuote[0x30+0x88:][:48]
			}
			args := []string{"--evidence", path, "--against", m, "--now", "2025-12-01", "--measurement", hex.EncodeToString(paravisor)}
			if code, out, errs := s.verify(args...); code != 0 {
				t.Errorf("exit code %d\n%s%s", code, out, errs)
			}
			if code, out, errs := s.verify(args[:6]...); code != 7 || !strings.Contains(errs, "(not checked)") {
				t.Errorf("no paravisor: exit code %d\n%s%s", code, out, errs)
			}
			s.pcrs[11][0] ^= 1
			s.values()
			if code, out, errs := s.verify(args...); code != 7 || !strings.Contains(errs, "refused: pcr11\n") {
				t.Errorf("another register: exit code %d\n%s%s", code, out, errs)
			}
		})
	}
}
