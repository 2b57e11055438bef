package attester

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm-tools/client"
	pb "github.com/google/go-tpm-tools/proto/tpm"
	toolsquote "github.com/google/go-tpm-tools/quote"
	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpmutil"
	"github.com/plinth-os/plinth/evidence"
)

// sum384 is report data as a session has it by default, 48 bytes.
var sum384 = bytes.Repeat([]byte{0xa5, 0x01, 0x7f}, 16)

// TestTPM compares evidence with what tpm2-tools and arithmetic done here say.
func TestTPM(t *testing.T) {
	socket, c := softTPM(t)
	extendPCR(t, c, 11, "enter-initrd")
	a := newTPM(t, c, TPMOptions{Snapshot: logged("the log")})
	if a.TEE() != "tpm" {
		t.Errorf("TEE %q", a.TEE())
	}
	b, err := a.Evidence(t.Context(), sum384)
	if err != nil {
		t.Fatal(err)
	}
	e := decodeTPM(t, b)
	checkSignature(t, e)
	if got := string(unbase64(t, e.Log)); got != "the log" {
		t.Errorf("log %q", got)
	}
	message := unbase64(t, e.Quote.Message)
	if !bytes.Contains(message, append([]byte{0, 32}, sum384[:32]...)) || bytes.Contains(message, sum384[:33]) {
		t.Error("qualifying data is not the first 32 bytes of the report data")
	}
	var all []byte
	for i, v := range e.Quote.PCRs {
		value, err := hex.DecodeString(v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, value...)
		want := make([]byte, 32)
		if i == 11 {
			word := sha256.Sum256([]byte("enter-initrd"))
			fold := sha256.Sum256(append(want, word[:]...))
			want = fold[:]
		} else if i >= 17 && i <= 22 {
			want = bytes.Repeat([]byte{0xff}, 32) // nobody started a dynamic root of trust
		}
		if !bytes.Equal(value, want) {
			t.Errorf("PCR %d is %s, want %x", i, v, want)
		}
	}
	digest := sha256.Sum256(all)
	if !bytes.HasSuffix(message, append([]byte{0, 32}, digest[:]...)) {
		t.Error("the values are not those of the quote")
	}
	values := tool(t, socket, t.TempDir(), "tpm2_pcrread", "sha256")
	for i, v := range e.Quote.PCRs {
		if !regexp.MustCompile(fmt.Sprintf(`(?mi)^ +%d *: 0x%s$`, i, v)).MatchString(values) {
			t.Errorf("PCR %d is %s; tpm2_pcrread:\n%s", i, v, values)
		}
	}
	checkQuote(t, e, sum384[:32], "")
	checkQuote(t, e, append(bytes.Clone(sum384[:31]), 0), "nonce")
}

// checkQuote has tpm2_checkquote verify evidence.
func checkQuote(t *testing.T, e *tpmEvidence, nonce []byte, want string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	out, err := command(t, "tpm2_checkquote", "-u", write("ak", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: unbase64(t, e.AK)})),
		"-m", write("m", unbase64(t, e.Quote.Message)), "-s", write("s", unbase64(t, e.Quote.Signature)),
		"-q", hex.EncodeToString(nonce), "-g", "sha256")
	if (want == "") != (err == nil) || !strings.Contains(out, want) {
		t.Errorf("tpm2_checkquote: %v, want %q\n%s", err, want, out)
	}
}

// TestTPMByGoTPMTools has another implementation verify the quote, and make the key.
func TestTPMByGoTPMTools(t *testing.T) {
	socket, c := softTPM(t)
	b, err := newTPM(t, c, TPMOptions{}).Evidence(t.Context(), sum384)
	if err != nil {
		t.Fatal(err)
	}
	e := decodeTPM(t, b)
	rw := tpmutil.NewEmulatorReadWriteCloser(socket)
	defer rw.Close()
	ak, err := client.AttestationKeyRSA(rw)
	if err != nil {
		t.Fatal(err)
	}
	defer ak.Close()
	want, err := x509.MarshalPKIXPublicKey(ak.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(unbase64(t, e.AK), want) {
		t.Errorf("key is %s, go-tpm-tools makes %x", e.AK, want)
	}
	pcrs := &pb.PCRs{Hash: pb.HashAlgo_SHA256, Pcrs: map[uint32][]byte{}}
	for i, v := range e.Quote.PCRs {
		if pcrs.Pcrs[uint32(i)], err = hex.DecodeString(v); err != nil {
			t.Fatal(err)
		}
	}
	q := &pb.Quote{Quote: unbase64(t, e.Quote.Message), RawSig: unbase64(t, e.Quote.Signature), Pcrs: pcrs}
	if err := toolsquote.Verify(q, ak.PublicKey(), sum384[:32]); err != nil {
		t.Error(err)
	}
	pcrs.Pcrs[14][0] ^= 1
	if err := toolsquote.Verify(q, ak.PublicKey(), sum384[:32]); err == nil {
		t.Error("another value of PCR 14 was accepted")
	}
}

// TestTPMKey: the key is the same over several quotes and boots, and nothing is left
// in the TPM.
func TestTPMKey(t *testing.T) {
	keys := map[string]bool{}
	dir, err := os.MkdirTemp("", "plinth-swtpm-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for range 2 {
		_, c, stop := softTPMIn(t, dir)
		defer stop()
		a, err := NewTPM(c, TPMOptions{Snapshot: logged("log")})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			b, err := a.Evidence(t.Context(), sum384)
			if err != nil {
				t.Fatal(err)
			}
			keys[decodeTPM(t, b).AK] = true
			if n := transient(t, c); n != 1 {
				t.Errorf("%d keys are loaded, want 1", n)
			}
		}
		if err := a.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
		if n := transient(t, c); n != 0 {
			t.Errorf("%d keys are loaded after Close", n)
		}
		stop()
	}
	if len(keys) != 1 {
		t.Errorf("%d different keys", len(keys))
	}
}

// transient counts the loaded objects.
func transient(t *testing.T, c transport.TPM) int {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 16}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return len(handles.Handle)
}

// TestTPMHandle: whose key is taken, and which are refused. All are made by tpm2-tools.
func TestTPMHandle(t *testing.T) {
	const attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign"
	for _, tt := range []struct {
		name, algorithm, attributes string
		at                          string // handle of the key
		ask                         uint32
		want                        string // error, or whose key: "its", "ours"
	}{
		{"CoCo's", "rsa2048:rsassa-sha256:null", attributes + "|restricted", "0x81010002", 0, "its"},
		{"CoCo's with PSS", "rsa2048:rsapss-sha256:null", attributes + "|restricted", "0x81010002", 0, "ours"},
		{"CoCo's with SHA-384", "rsa2048:rsassa-sha384:null", attributes + "|restricted", "0x81010002", 0, "ours"},
		{"configured with PSS", "rsa2048:rsapss-sha256:null", attributes + "|restricted", "0x81010055", 0x81010055, "its"},
		{"configured", "rsa2048:rsassa-sha256:null", attributes + "|restricted", "0x81010055", 0x81010055, "its"},
		{"configured, elliptic curve", "ecc256:ecdsa-sha256:null", attributes + "|restricted", "0x81010055", 0x81010055, "its"},
		{"configured, SHA-384", "ecc384:ecdsa-sha384:null", attributes + "|restricted", "0x81010055", 0x81010055, "its"},
		{"CoCo's is an elliptic curve", "ecc256:ecdsa-sha256:null", attributes + "|restricted", "0x81010002", 0, "ours"},
		{"CoCo's signs anything", "rsa2048:rsassa-sha256:null", attributes, "0x81010002", 0, "ours"},
		{"configured signs anything", "rsa2048:rsassa-sha256:null", attributes, "0x81010055", 0x81010055, "0x81010055: it is no restricted signing key"},
		{"configured for storage", "rsa2048:null:aes128cfb", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt", "0x81010055", 0x81010055, "no restricted signing key"},
		{"configured is not there", "rsa2048:rsassa-sha256:null", attributes + "|restricted", "0x81010002", 0x81010055, "0x81010055: TPM2_ReadPublic"},
		{"others do not matter", "rsa2048:rsassa-sha256:null", attributes + "|restricted", "0x81010055", 0, "ours"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket, c := softTPM(t)
			dir := t.TempDir()
			tool(t, socket, dir, "tpm2_createprimary", "-C", "e", "-G", tt.algorithm, "-a", tt.attributes, "-c", "key.ctx")
			tool(t, socket, dir, "tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", tt.at)
			tool(t, socket, dir, "tpm2_readpublic", "-c", tt.at, "-f", "pem", "-o", "key.pem")
			tool(t, socket, dir, "tpm2_flushcontext", "-t")
			a := newTPM(t, c, TPMOptions{AKHandle: tt.ask})
			b, err := a.Evidence(t.Context(), sum384)
			if tt.want != "its" && tt.want != "ours" {
				wantError(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			e := decodeTPM(t, b)
			text, err := os.ReadFile(filepath.Join(dir, "key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(text)
			if its := bytes.Equal(unbase64(t, e.AK), block.Bytes); its != (tt.want == "its") {
				t.Errorf("evidence is by the key at %s: %v", tt.at, its)
			}
			want := 0
			if tt.want == "ours" {
				want = 1
			}
			if n := transient(t, c); n != want {
				t.Errorf("%d keys are loaded, want %d", n, want)
			}
			switch { // tpm2_checkquote takes neither PSS nor SHA-384
			case tt.want == "its" && strings.Contains(tt.algorithm, "rsapss"):
				checkPSS(t, e)
			case tt.want == "ours" || strings.Contains(tt.algorithm, "sha256"):
				checkQuote(t, e, sum384[:32], "")
			}
		})
	}
}

// TestQuoteScheme: a key without a scheme gets the one that Trustee takes.
func TestQuoteScheme(t *testing.T) {
	template := akTemplate
	template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048, Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}})
	for _, tt := range []struct {
		key  tpm2.TPMTPublic
		want tpm2.TPMAlgID
	}{{akTemplate, tpm2.TPMAlgNull}, {template, tpm2.TPMAlgRSASSA}} {
		s, usual, err := quoteScheme(&tt.key)
		if err != nil || s.Scheme != tt.want || !usual {
			t.Errorf("scheme %#x, %v, want %#x", s.Scheme, err, tt.want)
		}
	}
}

// TestTPMCertificates: what is in the non-volatile memory, as others write it there.
func TestTPMCertificates(t *testing.T) {
	socket, c := softTPM(t)
	dir := t.TempDir()
	ak, err := makeKey(c, tpm2.TPMRHOwner, tpm2.New2B(akTemplate))
	if err != nil {
		t.Fatal(err)
	}
	if err := ak.flush(c); err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ekCert, otherCert, akCert := certificate(t, &other.PublicKey), certificate(t, &other.PublicKey), certificateFor(t, ak.public)
	for _, tt := range []struct {
		name, attributes string
		index            uint32
		content          []byte
		ek, ak           []byte
	}{
		{"EK", "ownerwrite|ownerread|authread", nvEKCertificate, ekCert, ekCert, nil},
		{"EK for the owner alone", "ownerwrite|ownerread", nvEKCertificate, ekCert, ekCert, nil},
		{"EK with zeros behind it", "ownerwrite|authread", nvEKCertificate, append(bytes.Clone(ekCert), make([]byte, 600)...), ekCert, nil},
		{"EK that is no certificate", "ownerwrite|authread", nvEKCertificate, bytes.Repeat([]byte{0xff}, 700), nil, nil},
		{"EK for the policy's friends", "ownerwrite|policyread", nvEKCertificate, ekCert, nil, nil},
		{"EK that was never written", "ownerwrite|authread", nvEKCertificate, nil, nil, nil},
		{"AK", "ownerwrite|authread", nvAKCertificate, akCert, nil, akCert},
		{"AK of another key", "ownerwrite|authread", nvAKCertificate, otherCert, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(dir, "content")
			if err := os.WriteFile(file, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			index := fmt.Sprintf("%#x", tt.index)
			tool(t, socket, dir, "tpm2_nvdefine", index, "-C", "o", "-s", fmt.Sprint(max(len(tt.content), 16)), "-a", tt.attributes)
			defer tool(t, socket, dir, "tpm2_nvundefine", index, "-C", "o")
			if tt.content != nil {
				tool(t, socket, dir, "tpm2_nvwrite", index, "-C", "o", "-i", file)
			}
			a := newTPM(t, c, TPMOptions{})
			b, err := a.Evidence(t.Context(), sum384)
			if err != nil {
				t.Fatal(err)
			}
			e := decodeTPM(t, b)
			if !bytes.Equal(unbase64(t, e.EKCert), tt.ek) || !bytes.Equal(unbase64(t, e.AKCert), tt.ak) {
				t.Errorf("EK certificate %.20q, AK certificate %.20q", e.EKCert, e.AKCert)
			}
		})
	}
}

func certificate(t *testing.T, pub *rsa.PublicKey) []byte {
	t.Helper()
	issuer, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<32, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, issuer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func certificateFor(t *testing.T, spki []byte) []byte {
	t.Helper()
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		t.Fatal(err)
	}
	return certificate(t, pub.(*rsa.PublicKey))
}

// TestTPMGoogle: where Google's cloud keeps a template, its key is used, the same as
// go-tpm-tools make of it.
func TestTPMGoogle(t *testing.T) {
	socket, c := softTPM(t)
	rw := tpmutil.NewEmulatorReadWriteCloser(socket)
	defer rw.Close()
	template := client.AKTemplateRSA()
	template.RSAParameters.ModulusRaw = bytes.Repeat([]byte{7}, 256) // another key than without
	b, err := template.Encode()
	if err != nil {
		t.Fatal(err)
	}
	attributes := legacy.AttrOwnerWrite | legacy.AttrAuthRead | legacy.AttrOwnerRead
	if err := legacy.NVDefineSpace(rw, legacy.HandleOwner, nvAKTemplate, "", "", nil, attributes, uint16(len(b))); err != nil {
		t.Fatal(err)
	}
	if err := legacy.NVWrite(rw, legacy.HandleOwner, nvAKTemplate, "", b, 0); err != nil {
		t.Fatal(err)
	}
	out, err := newTPM(t, c, TPMOptions{}).Evidence(t.Context(), sum384)
	if err != nil {
		t.Fatal(err)
	}
	key, err := client.EndorsementKeyFromNvIndex(rw, client.GceAKTemplateNVIndexRSA)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	want, err := x509.MarshalPKIXPublicKey(key.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if e := decodeTPM(t, out); !bytes.Equal(unbase64(t, e.AK), want) {
		t.Errorf("key is %s, go-tpm-tools make %x", e.AK, want)
	}
}

// meddler runs before each quote: somebody else uses the TPM.
type meddler struct {
	transport.TPM
	before func()
}

const ccQuote = 0x158

func (m *meddler) Send(in []byte) ([]byte, error) {
	if len(in) > 10 && in[8] == ccQuote>>8 && in[9] == ccQuote&0xff {
		m.before()
	}
	return m.TPM.Send(in)
}

// TestTPMRace: an extend between reading and quoting is noticed, and read again.
func TestTPMRace(t *testing.T) {
	_, c := softTPM(t)
	left := 0
	m := &meddler{c, func() {
		if left > 0 {
			left--
			extendPCR(t, c, 15, "somebody else")
		}
	}}
	a := newTPM(t, m, TPMOptions{})
	for _, tt := range []struct {
		extends int
		want    string
	}{{0, ""}, {1, ""}, {quoteAttempts - 1, ""}, {quoteAttempts, "somebody else extends them"}} {
		left = tt.extends
		b, err := a.Evidence(t.Context(), sum384)
		wantError(t, err, tt.want)
		if err != nil {
			continue
		}
		e := decodeTPM(t, b)
		var all []byte
		for _, v := range e.Quote.PCRs {
			value, _ := hex.DecodeString(v)
			all = append(all, value...)
		}
		if digest := sha256.Sum256(all); !bytes.HasSuffix(unbase64(t, e.Quote.Message), digest[:]) {
			t.Errorf("%d extends: the values are not those of the quote", tt.extends)
		}
	}
}

// TestTPMSnapshot: what the agent extends waits for the quote, so that the log has
// neither more nor fewer events than the registers.
func TestTPMSnapshot(t *testing.T) {
	_, c := softTPM(t)
	var mu sync.Mutex
	var log []byte
	measure := func() {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, 'x')
		extendPCR(t, c, 16, "x")
	}
	a := newTPM(t, c, TPMOptions{Snapshot: func(read func([]byte) error) error {
		mu.Lock()
		defer mu.Unlock()
		return read(log)
	}})
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			measure()
			time.Sleep(time.Millisecond)
		}
	})
	seen := map[int]bool{}
	for range 20 {
		b, err := a.Evidence(t.Context(), sum384)
		if err != nil {
			t.Fatal(err)
		}
		e := decodeTPM(t, b)
		value := make([]byte, 32)
		n := len(unbase64(t, e.Log))
		for range n {
			d := sha256.Sum256([]byte("x"))
			f := sha256.Sum256(append(value, d[:]...))
			value = f[:]
		}
		if e.Quote.PCRs[16] != hex.EncodeToString(value) {
			t.Fatalf("PCR 16 is %s after %d events, want %x", e.Quote.PCRs[16], n, value)
		}
		seen[n] = true
	}
	stop.Store(true)
	wg.Wait()
	if len(seen) < 3 {
		t.Errorf("the log had %d lengths: nothing was measured meanwhile", len(seen))
	}
}

// TestTPMConcurrent: several ask at once, and each gets an answer to its question.
func TestTPMConcurrent(t *testing.T) {
	_, c := softTPM(t)
	a := newTPM(t, c, TPMOptions{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			nonce := bytes.Repeat([]byte{byte(i + 1)}, 32)
			b, err := a.Evidence(t.Context(), nonce)
			if err != nil {
				t.Error(err)
				return
			}
			if e, err := evidence.ParseTPM(b); err != nil || !bytes.Contains(e.Quote.Message, nonce) {
				t.Errorf("question %d: %v, or another answer", i, err)
			}
		})
	}
	wg.Wait()
}

func TestTPMErrors(t *testing.T) {
	if _, err := NewTPM(nil, TPMOptions{Snapshot: logged("")}); err == nil {
		t.Error("without a TPM: no error")
	}
	if _, err := NewTPM(rawTPM(nil), TPMOptions{}); err == nil {
		t.Error("without a log: no error")
	}
	_, c := softTPM(t)
	a := newTPM(t, c, TPMOptions{Snapshot: func(func([]byte) error) error { return errors.New("log is open") }})
	_, err := a.Evidence(t.Context(), sum384)
	wantError(t, err, "attester: tpm: log is open")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = newTPM(t, c, TPMOptions{}).Evidence(ctx, sum384)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestTPMCost: evidence is a small part of the 150 ms of CPU time in which a guest has
// to have its secret.
func TestTPMCost(t *testing.T) {
	_, c := softTPM(t)
	log := bytes.Repeat([]byte{7}, 64<<10) // as large as that of a PC's firmware
	a := newTPM(t, c, TPMOptions{Snapshot: logged(string(log))})
	first := cost(t, a)
	again := cost(t, a)
	t.Logf("CPU time: %v with the key, %v without", first, again)
	if first > 40*time.Millisecond {
		t.Errorf("CPU time %v, want at most 40 ms (20 ms on a quiet machine)", first)
	}
}

func cost(t *testing.T, a Attester) time.Duration {
	t.Helper()
	before := cpu(t)
	if _, err := a.Evidence(t.Context(), sum384); err != nil {
		t.Fatal(err)
	}
	return cpu(t) - before
}

func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// slowTPM counts who is inside.
type slowTPM struct{ inside, most atomic.Int32 }

func (s *slowTPM) Send([]byte) ([]byte, error) {
	if n := s.inside.Add(1); n > s.most.Load() {
		s.most.Store(n)
	}
	time.Sleep(time.Millisecond)
	s.inside.Add(-1)
	return nil, nil
}

func TestShared(t *testing.T) {
	s := new(slowTPM)
	c := Shared(s)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { _, _ = c.Send(nil) })
	}
	wg.Wait()
	if n := s.most.Load(); n != 1 {
		t.Errorf("%d commands at once", n)
	}
}
