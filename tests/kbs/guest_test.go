package kbs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"

	"github.com/plinth-os/plinth/tests/swtpm"
)

// A guest is one of its own making, by swtpm and go-tpm-tools: nothing of it is the
// agent's.
type guest struct {
	t      *testing.T
	tpm    io.ReadWriteCloser
	ak     *client.Key
	log    []byte
	key    *ecdsa.PrivateKey
	cookie string
	nonce  string
}

const (
	evIPL    = 0x0d
	evAction = 0x80000007 // EV_EFI_ACTION
)

func newGuest(t *testing.T) *guest {
	t.Helper()
	g := &guest{t: t, tpm: swtpm.Start(t, "").Legacy(), log: specID()}
	t.Cleanup(func() { g.tpm.Close() })
	var err error
	if g.ak, err = client.AttestationKeyRSA(g.tpm); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.ak.Close)
	g.newKey()
	for _, e := range []struct {
		pcr  int
		kind uint32
		text string
	}{
		{0, evAction, "a firmware"}, {4, evAction, "Calling EFI Application from Boot Option"}, {4, evAction, "an application"},
		{4, evAction, "Calling EFI Application from Boot Option"}, {7, evAction, "Secure Boot"}, {9, evIPL, "the initrd"},
		{11, evIPL, ".linux"}, {11, evIPL, ".initrd"}, {11, evIPL, "leave-initrd"}, {14, evIPL, "a container"},
	} {
		g.extend(e.pcr, e.kind, e.text)
	}
	return g
}

func (g *guest) newKey() {
	g.t.Helper()
	var err error
	if g.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		g.t.Fatal(err)
	}
}

// specID begins a log with bank sha256 alone: TCG PC Client Platform Firmware Profile,
// section 10.4.5.1.
func specID() []byte {
	data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	data = append(data, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0) // one algorithm, sha256 of 32 bytes; no vendor information
	b := binary.LittleEndian.AppendUint32(nil, 0)
	b = binary.LittleEndian.AppendUint32(b, 3) // EV_NO_ACTION
	b = append(b, make([]byte, 20)...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// record is TCG_PCR_EVENT2.
func record(pcr int, kind uint32, digest [32]byte, data string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(pcr))
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = append(b, 1, 0, 0, 0, 0x0b, 0)
	b = append(b, digest[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// extend extends a register with a text and logs that.
func (g *guest) extend(pcr int, kind uint32, text string) {
	g.t.Helper()
	g.extendDigest(pcr, kind, sha256.Sum256([]byte(text)), text)
}

func (g *guest) extendDigest(pcr int, kind uint32, digest [32]byte, text string) {
	g.t.Helper()
	if err := tpm2.PCRExtend(g.tpm, tpmutil.Handle(pcr), tpm2.AlgSHA256, digest[:], ""); err != nil {
		g.t.Fatal(err)
	}
	g.log = append(g.log, record(pcr, kind, digest, text)...)
}

func (g *guest) spki() string {
	g.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(g.ak.PublicKey())
	if err != nil {
		g.t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

// values are reference values that the guest agrees with now, of every register.
func (g *guest) values() map[string]any {
	g.t.Helper()
	pcrs, err := client.ReadPCRs(g.tpm, client.FullPcrSel(tpm2.AlgSHA256))
	if err != nil {
		g.t.Fatal(err)
	}
	values := map[string]any{"trusted_aks": []any{g.spki()}}
	for n, v := range pcrs.GetPcrs() {
		values[fmt.Sprintf("tpm_pcr%02d", n)] = []any{hex.EncodeToString(v)}
	}
	return values
}

// A document is an attestation that a test bends before it is sent.
type document map[string]any

func (d document) at(path ...string) map[string]any {
	v := map[string]any(d)
	for _, key := range path {
		v = v[key].(map[string]any)
	}
	return v
}

func (d document) quote() map[string]any {
	return d.at("tee-evidence", "primary_evidence", "tpm_quote")
}
func (d document) evidence() map[string]any { return d.at("tee-evidence", "primary_evidence") }

// hash384 is the hash of runtime data where the challenge selects none.
func hash384(b []byte) []byte { s := sha512.Sum384(b); return s[:] }

// attestation is what the guest answers to a challenge. The canonical form is written
// by hand: keys in order, no space.
func (g *guest) attestation(hash func([]byte) []byte) document {
	g.t.Helper()
	x, y := base64.RawURLEncoding.EncodeToString(g.key.X.FillBytes(make([]byte, 32))), base64.RawURLEncoding.EncodeToString(g.key.Y.FillBytes(make([]byte, 32)))
	jcs := fmt.Sprintf(`{"additional-evidence":"","nonce":"%s","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"%s","y":"%s"}}`, g.nonce, x, y)
	q, err := g.ak.Quote(client.FullPcrSel(tpm2.AlgSHA256), append(hash([]byte(jcs)), make([]byte, 32)...)[:32])
	if err != nil {
		g.t.Fatal(err)
	}
	pcrs := make([]any, 24)
	for n, v := range q.GetPcrs().GetPcrs() {
		pcrs[n] = hex.EncodeToString(v)
	}
	return document{
		"init-data":    nil,
		"runtime-data": map[string]any{"nonce": g.nonce, "tee-pubkey": map[string]any{"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": x, "y": y}},
		"tee-evidence": map[string]any{"additional_evidence": "", "primary_evidence": map[string]any{
			"ak_public": g.spki(), "event_log": base64.StdEncoding.EncodeToString(g.log),
			"tpm_quote": map[string]any{"pcrs": pcrs,
				"signature": base64.StdEncoding.EncodeToString(q.GetRawSig()), "message": base64.StdEncoding.EncodeToString(q.GetQuote())},
		}},
	}
}

// do makes a request; what is no text is sent as JSON.
func (g *guest) do(b *Broker, method, path string, body any, header ...string) *http.Response {
	g.t.Helper()
	content, err := json.Marshal(body)
	if err != nil {
		g.t.Fatal(err)
	}
	if text, ok := body.(string); ok {
		content = []byte(text)
	}
	r := httptest.NewRequest(method, "/kbs/v0/"+path, bytes.NewReader(content))
	if g.cookie != "" {
		r.AddCookie(&http.Cookie{Name: cookieName, Value: g.cookie})
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	for _, c := range w.Result().Cookies() {
		g.cookie = c.Value
	}
	return w.Result()
}

const goodRequest = `{"version":"0.4.0","tee":"tpm","extra-params":{"supported-hash-algorithms":["sha384","sha256","sha512"]}}`

// auth begins a session and keeps its nonce.
func (g *guest) auth(b *Broker) {
	g.t.Helper()
	g.cookie = ""
	var challenge struct{ Nonce string }
	read(g.t, g.do(b, "POST", "auth", goodRequest), 200, &challenge)
	if raw, err := base64.StdEncoding.DecodeString(challenge.Nonce); err != nil || len(raw) != 32 {
		g.t.Fatalf("nonce %q: %v", challenge.Nonce, err)
	}
	g.nonce = challenge.Nonce
}

// attest sends an attestation and returns the token, or the reason why there is none.
func (g *guest) attest(b *Broker, d document) (token, refusal string) {
	g.t.Helper()
	var answer struct{ Token, Type, Detail string }
	resp := g.do(b, "POST", "attest", d)
	read(g.t, resp, resp.StatusCode, &answer)
	switch {
	case resp.StatusCode == 401 && strings.HasSuffix(answer.Type, "/AttestationError") && answer.Detail != "":
		return "", answer.Detail
	case resp.StatusCode == 200 && strings.Count(answer.Token, ".") == 2:
		return answer.Token, ""
	}
	g.t.Fatalf("%d: %+v", resp.StatusCode, answer)
	return "", ""
}

// get asks for a resource and decrypts it.
func (g *guest) get(b *Broker, path string, header ...string) (secret, refusal string) {
	g.t.Helper()
	resp := g.do(b, "GET", "resource/"+path, "", header...)
	if resp.StatusCode != 200 {
		var e struct{ Type, Detail string }
		read(g.t, resp, resp.StatusCode, &e)
		return "", fmt.Sprintf("%d %s: %s", resp.StatusCode, strings.TrimPrefix(e.Type, problem), e.Detail)
	}
	var text json.RawMessage
	read(g.t, resp, 200, &text)
	secret, err := decrypt(text, g.key)
	if err != nil {
		return "", err.Error()
	}
	return secret, ""
}

func decrypt(jwe []byte, key any) (string, error) {
	alg := jose.ECDH_ES_A256KW
	if _, ok := key.(*rsa.PrivateKey); ok {
		alg = jose.RSA_OAEP_256
	}
	e, err := jose.ParseEncryptedJSON(string(jwe), []jose.KeyAlgorithm{alg}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return "", err
	}
	b, err := e.Decrypt(key)
	return string(b), err
}

func read(t *testing.T, resp *http.Response, status int, v any) {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Fatalf("status %d, want %d: %s", resp.StatusCode, status, b)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
}
