package kbs

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const secretPath, canary = "default/key/1", "canary-7d1f0c55"

// newBroker trusts g as it is now, and has a secret.
func newBroker(g *guest) *Broker {
	b := &Broker{Resources: map[string]Resource{secretPath: {Value: []byte(canary)}}, Off: map[string]bool{}}
	b.trust(g)
	return b
}

func (b *Broker) trust(g *guest) {
	g.t.Helper()
	for name, v := range g.values() {
		b.Set(name, v)
	}
}

// accepted goes the whole way and wants the secret.
func (g *guest) accepted(b *Broker, d document) {
	g.t.Helper()
	if _, refusal := g.attest(b, d); refusal != "" {
		g.t.Fatalf("refused: %s", refusal)
	}
	if secret, refusal := g.get(b, secretPath); secret != canary {
		g.t.Fatalf("secret %q, %s", secret, refusal)
	}
}

func TestRelease(t *testing.T) {
	g := newGuest(t)
	for hash, f := range map[string]func([]byte) []byte{"": hash384, "sha384": hash384, "sha256": sum256} {
		b := newBroker(g)
		b.Hash = hash
		g.auth(b)
		g.accepted(b, g.attestation(f))
		if n := len(b.Attestations()); n != 1 || !strings.Contains(string(b.Attestations()[0]), g.nonce) {
			t.Errorf("%d attestations", n)
		}
	}
}

// A session that has its token gets no other, and a token serves without a session.
func TestToken(t *testing.T) {
	g := newGuest(t)
	b := newBroker(g)
	g.auth(b)
	token, refusal := g.attest(b, g.attestation(hash384))
	if refusal != "" {
		t.Fatal(refusal)
	}
	if again, _ := g.attest(b, document{"runtime-data": map[string]any{"nonce": "", "tee-pubkey": map[string]any{}}}); again != token {
		t.Errorf("the second token of a session is another one")
	}
	claims, err := verifyToken(b.TokenKey(), token, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	evidence := dig(claims, "submods", "cpu0", "ear.veraison.annotated-evidence")
	if got, want := dig(evidence, "tpm", "pcr11"), g.values()["tpm_pcr11"].([]any)[0]; got != want {
		t.Errorf("pcr11: %v, want %v", got, want)
	}
	if got, want := dig(evidence, "runtime_data_claims", "tee-pubkey", "kty"), any("EC"); got != want {
		t.Errorf("kty: %v, want %v", got, want)
	}
	id := g.cookie
	g.cookie = ""
	if secret, refusal := g.get(b, secretPath, "Authorization", "Bearer "+token); secret != canary {
		t.Errorf("secret %q, %s", secret, refusal)
	}
	b.Change(func(b *Broker) { b.Now = func() time.Time { return time.Now().Add(10 * time.Minute) } })
	if _, refusal := g.get(b, secretPath, "Authorization", "Bearer "+token); !strings.Contains(refusal, "401 TokenVerifierError") || !strings.Contains(refusal, "expired") {
		t.Errorf("an old token: %s", refusal)
	}
	if _, refusal := g.get(b, secretPath); refusal != "401 TokenNotFound: Attestation Token not found" {
		t.Errorf("no token: %s", refusal)
	}
	g.cookie = id
	if _, refusal := g.get(b, secretPath); refusal != "401 TokenNotFound: Attestation Token not found" {
		t.Errorf("an old session: %s", refusal)
	}
}

func TestStatus(t *testing.T) {
	g := newGuest(t)
	for _, documented := range []bool{false, true} {
		b := newBroker(g)
		b.Documented = documented
		b.Resources["other/key/1"] = Resource{Registers: []string{"tpm_pcr14"}}
		b.Set("tpm_pcr14", []any{strings.Repeat("00", 32)})
		g.auth(b)
		if _, refusal := g.attest(b, g.attestation(hash384)); refusal != "" {
			t.Fatal(refusal)
		}
		forbidden, missing := "401 PolicyDeny", "401 PluginInternalError"
		if documented {
			forbidden, missing = "403 PolicyDeny", "404 PluginInternalError"
		}
		if _, refusal := g.get(b, "no/such/one"); !strings.HasPrefix(refusal, missing) {
			t.Errorf("missing: %s, want %s", refusal, missing)
		}
		if _, refusal := g.get(b, "other/key/1"); !strings.HasPrefix(refusal, forbidden) || !strings.Contains(refusal, "pcr14: 1 events, none accepted before") {
			t.Errorf("forbidden: %s, want %s", refusal, forbidden)
		}
	}
}

func TestAuthRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ body, want string }{
		"version": {strings.Replace(goodRequest, "0.4.0", "0.1.1", 1), "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.1"},
		"tee":     {strings.Replace(goodRequest, "tpm", "snp", 1), "no verifier"},
		"sample":  {strings.Replace(goodRequest, "tpm", "sample", 1), "no verifier"},
		"params":  {`{"version":"0.4.0","tee":"tpm"}`, "deserialize Request"},
		"no JSON": {"x", "deserialize Request"},
		"nothing": {"", "deserialize Request"},
		"a tail":  {goodRequest + "{}", "deserialize Request"},
	} {
		code, answer := ask(t, &Broker{}, "POST", "/kbs/v0/auth", tt.body)
		if code != 401 || !strings.Contains(answer, tt.want) || !strings.Contains(answer, "/AttestationError") {
			t.Errorf("%s: %d %s, want %s", name, code, answer, tt.want)
		}
	}
	for _, path := range []string{"attest", "resource/a/b/c"} {
		method := map[bool]string{true: "POST", false: "GET"}[path == "attest"]
		if code, answer := ask(t, &Broker{}, method, "/kbs/v0/"+path, "{}"); code != 401 {
			t.Errorf("%s without a session: %d %s", path, code, answer)
		}
	}
}

// An attack is refused by one check, and by that alone: without the check it works.
type attack struct {
	name, check string
	want        string // in the refusal
	make        func(t *testing.T, g *guest, b *Broker) document
}

func attacks() []attack {
	return []attack{
		{"a signature of somebody else's", CheckSignature, "signature: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			_, sig, err := resign(raw(t, d.quote()["message"]))
			if err != nil {
				t.Fatal(err)
			}
			d.quote()["signature"] = base64.StdEncoding.EncodeToString(sig)
			return d
		}},
		{"a clock turned back", CheckSignature, "signature: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			message := raw(t, d.quote()["message"])
			message[len(message)-60] ^= 1 // in clockInfo and firmwareVersion, before 10 bytes of selection and 34 of digest
			d.quote()["message"] = base64.StdEncoding.EncodeToString(message)
			return d
		}},
		{"an attestation of another session", CheckNonce, "nonce: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			g.auth(b)
			return d
		}},
		{"an old quote for a new nonce", CheckTEEPubkey, "tee-pubkey: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			g.auth(b)
			d.at("runtime-data")["nonce"] = g.nonce
			return d
		}},
		{"another key for the secret", CheckTEEPubkey, "tee-pubkey: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			g.newKey()
			d["runtime-data"] = g.attestation(hash384)["runtime-data"]
			return d
		}},
		{"additional evidence that nobody quoted", CheckTEEPubkey, "tee-pubkey: ", func(t *testing.T, g *guest, b *Broker) document {
			b.Change(func(b *Broker) { b.Sample = true })
			d := g.attestation(hash384)
			d.at("tee-evidence")["additional_evidence"] = `{"sampledevice":{"svn":"1","report_data":""}}`
			return d
		}},
		{"another hash than the selected one", CheckTEEPubkey, "tee-pubkey: ", func(t *testing.T, g *guest, b *Broker) document {
			return g.attestation(sum256)
		}},
		{"a value that is not the quote's", CheckDigest, "signature: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			digest := sha256.Sum256([]byte("made up"))
			value := sha256.Sum256(append(make([]byte, 32), digest[:]...))
			d.quote()["pcrs"].([]any)[15] = hex.EncodeToString(value[:])
			d.evidence()["event_log"] = base64.StdEncoding.EncodeToString(append(g.log, record(15, evIPL, digest, "made up")...))
			b.Set("tpm_pcr15", []any{hex.EncodeToString(value[:])})
			return d
		}},
		{"a log without its last event", CheckLog, "log: pcr8: extended", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			last := record(8, evIPL, [32]byte{}, "initdata")
			d.evidence()["event_log"] = base64.StdEncoding.EncodeToString(g.log[:len(g.log)-len(last)])
			return d
		}},
		{"a log with an event that was not", CheckLog, "log: pcr9: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			d.evidence()["event_log"] = base64.StdEncoding.EncodeToString(append(g.log, record(9, evIPL, sha256.Sum256(nil), "")...))
			return d
		}},
		{"a log with another digest", CheckLog, "log: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			log := raw(t, d.evidence()["event_log"])
			log[len(specID())+14] ^= 1
			d.evidence()["event_log"] = base64.StdEncoding.EncodeToString(log)
			return d
		}},
		{"no log", CheckLog, "log: tpm: event_log: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			delete(d.evidence(), "event_log")
			return d
		}},
		{"another machine", CheckAK, "ak: ", func(t *testing.T, g *guest, b *Broker) document {
			b.Set("trusted_aks", []any{newGuest(t).spki()})
			return g.attestation(hash384)
		}},
		{"initdata of another", CheckInitdata, "initdata: ", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			d["init-data"] = map[string]any{"format": "toml", "body": initdataText + "\n"}
			return d
		}},
		{"initdata by sha384", CheckInitdata, "initdata: a digest of 48 bytes", func(t *testing.T, g *guest, b *Broker) document {
			d := g.attestation(hash384)
			d["init-data"] = map[string]any{"format": "toml", "body": strings.Replace(initdataText, "sha256", "sha384", 1)}
			return d
		}},
	}
}

const initdataText = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"[token_configs]\\n\"\nkey = \"value\"\n"

func raw(t *testing.T, text any) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text.(string))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAttacks(t *testing.T) {
	g := newGuest(t)
	g.extendDigest(8, evIPL, sha256.Sum256([]byte(initdataText)), "initdata")
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			for _, off := range []bool{false, true} {
				b := newBroker(g)
				b.Log = t.Logf
				g.auth(b)
				good := g.attestation(hash384)
				good["init-data"] = map[string]any{"format": "toml", "body": initdataText}
				g.accepted(b, good)
				g.auth(b)
				d := a.make(t, g, b)
				if off {
					b.Change(func(b *Broker) { b.Off[a.check] = true })
					g.accepted(b, d)
					continue
				}
				if _, refusal := g.attest(b, d); !strings.Contains(refusal, a.want) {
					t.Errorf("got %q, want %q", refusal, a.want)
				}
				if secret, refusal := g.get(b, secretPath); secret != "" || !strings.HasPrefix(refusal, "401 ") {
					t.Errorf("then: secret %q, %s", secret, refusal)
				}
				for check := range map[string]bool{CheckSignature: true, CheckNonce: true, CheckTEEPubkey: true, CheckDigest: true, CheckLog: true, CheckAK: true, CheckInitdata: true} {
					if check != a.check {
						b.Change(func(b *Broker) { b.Off[check] = true })
					}
				}
				if _, refusal := g.attest(b, d); !strings.Contains(refusal, a.want) {
					t.Errorf("with every other check off: got %q, want %q", refusal, a.want)
				}
			}
		})
	}
}

// Each register that can be extended, with one event more than in evidence that was
// accepted.
func TestRegisters(t *testing.T) {
	g := newGuest(t)
	for pcr := range registers {
		if 17 <= pcr && pcr <= 22 { // not from locality 0
			continue
		}
		name := fmt.Sprintf("pcr%d", pcr)
		t.Run(name, func(t *testing.T) {
			b := newBroker(g)
			g.auth(b)
			g.accepted(b, g.attestation(hash384))
			before := strings.Count(string(g.log), "an evil word")
			g.extend(pcr, evIPL, fmt.Sprintf("an evil word %d", before))
			g.auth(b)
			d := g.attestation(hash384)
			_, refusal := g.attest(b, d)
			if want := fmt.Sprintf("failed: %s: event ", name); !strings.Contains(refusal, want) {
				t.Errorf("got %q, want %q", refusal, want)
			}
			if want := fmt.Sprintf("EV_IPL \"an evil word %d\": got %x, accepted none", before, sha256.Sum256(fmt.Appendf(nil, "an evil word %d", before))); !strings.Contains(refusal, want) {
				t.Errorf("got %q, want %q", refusal, want)
			}
			if strings.Contains(refusal, ";") {
				t.Errorf("another register too: %q", refusal)
			}
			b.Change(func(b *Broker) { b.Off[name] = true })
			g.accepted(b, d)

			// The same register, wanted by the resource alone.
			b = newBroker(g)
			g.auth(b)
			g.accepted(b, g.attestation(hash384))
			b.Change(func(b *Broker) {
				b.Resources[secretPath] = Resource{Value: []byte(canary), Registers: []string{nameOf(pcr)}}
			})
			b.Set(nameOf(pcr), []any{strings.Repeat("11", 32)})
			g.auth(b)
			if _, refusal := g.attest(b, g.attestation(hash384)); refusal != "" {
				t.Fatalf("a register that a resource wants for itself: %s", refusal)
			}
			if secret, refusal := g.get(b, secretPath); secret != "" || !strings.Contains(refusal, name+": the same events as accepted: ") {
				t.Errorf("secret %q, %s", secret, refusal)
			}
			b.Change(func(b *Broker) { b.Off[name] = true })
			if secret, refusal := g.get(b, secretPath); secret != canary {
				t.Errorf("secret %q, %s", secret, refusal)
			}
		})
	}
}

// The event is named by which a register went another way, whether it is in the
// middle, missing or new.
func TestDifference(t *testing.T) {
	word := func(words ...string) (list []event) {
		for _, w := range words {
			list = append(list, event{"EV_IPL", w, sum256([]byte(w))})
		}
		return list
	}
	b := &Broker{accepted: map[int][][]event{11: {word("a", "b", "c"), word("a", "b", "c", "d"), word("x")}}}
	for name, tt := range map[string]struct {
		got  []event
		want string
	}{
		"middle":  {word("a", "B", "c"), fmt.Sprintf(`event 1 EV_IPL "B": got %x, accepted EV_IPL "b" %x`, sum256([]byte("B")), sum256([]byte("b")))},
		"first":   {word("y"), fmt.Sprintf(`event 0 EV_IPL "y": got %x, accepted EV_IPL "x" %x`, sum256([]byte("y")), sum256([]byte("x")))},
		"missing": {word("a", "b"), fmt.Sprintf(`event 2: got none, accepted EV_IPL "c" %x`, sum256([]byte("c")))},
		"one more": {word("a", "b", "c", "d", "e"),
			fmt.Sprintf(`event 4 EV_IPL "e": got %x, accepted none`, sum256([]byte("e")))},
		"equal": {word("a", "b", "c"), "the same events as accepted"},
	} {
		if got := b.difference(11, tt.got); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
	if got := b.difference(4, word("a")); got != "1 events, none accepted before" {
		t.Error(got)
	}
}

func TestReadable(t *testing.T) {
	for data, want := range map[string]string{
		"word": "word", "word\x00": "word", ".\x00i\x00n\x00\x00\x00": ".in", "\x01\x02": "", "": "",
		"LEAA\x05\x00\x00\x00a b c": "a b c", "LEAA": "LEAA", strings.Repeat("a", 500): strings.Repeat("a", 160), "\xff\xfe\x00": "",
	} {
		if got := readable([]byte(data)); got != want {
			t.Errorf("%q: got %q, want %q", data, got, want)
		}
	}
}

// Without values to compare with, nothing is released: Trustee's policy for
// executables wants these two.
func TestNoValues(t *testing.T) {
	g := newGuest(t)
	for name, want := range map[string]string{"trusted_aks": "ak: there is no reference value trusted_aks", "tpm_pcr11": "pcr11: there is no reference value tpm_pcr11"} {
		values := g.values()
		delete(values, name)
		b := &Broker{values: values}
		g.auth(b)
		if _, refusal := g.attest(b, g.attestation(hash384)); !strings.Contains(refusal, want) {
			t.Errorf("without %s: %q", name, refusal)
		}
	}
}

// A token that another key has signed, which is the one in its header.
func TestTokenKey(t *testing.T) {
	g := newGuest(t)
	b := newBroker(g)
	g.newKey()
	jwk, err := jwkOf(g.key)
	if err != nil {
		t.Fatal(err)
	}
	jwk["alg"] = "ECDH-ES+A256KW"
	token, err := signToken(mustKey(), map[string]any{"exp": time.Now().Add(time.Hour).Unix(), "submods": map[string]any{"cpu0": map[string]any{
		"ear.veraison.annotated-evidence": map[string]any{"runtime_data_claims": map[string]any{"tee-pubkey": jwk}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if secret, refusal := g.get(b, secretPath, "Authorization", "Bearer "+token); secret != "" || !strings.Contains(refusal, "token-key: ES256: bad signature") {
		t.Errorf("secret %q, %s", secret, refusal)
	}
	b.Change(func(b *Broker) { b.Off[CheckTokenKey] = true })
	if secret, refusal := g.get(b, secretPath, "Authorization", "Bearer "+token); secret != canary {
		t.Errorf("unchecked: secret %q, %s", secret, refusal)
	}
}

// Whatever is cut or left out of evidence, it is refused and nothing breaks.
func TestTruncated(t *testing.T) {
	g := newGuest(t)
	b := newBroker(g)
	g.auth(b)
	for _, field := range []string{"message", "signature", "event_log", "ak_public"} {
		whole := func() (document, map[string]any) {
			d := g.attestation(hash384)
			if field == "message" || field == "signature" {
				return d, d.quote()
			}
			return d, d.evidence()
		}
		d, object := whole()
		bytes := raw(t, object[field])
		step := max(1, len(bytes)/40)
		for n := 0; n < len(bytes); n += step {
			object[field] = base64.StdEncoding.EncodeToString(bytes[:n])
			if token, _ := g.attest(b, d); token != "" {
				t.Fatalf("%s: the first %d of %d bytes: accepted", field, n, len(bytes))
			}
			bent := append([]byte{}, bytes...)
			bent[n] ^= 0x81
			object[field] = base64.StdEncoding.EncodeToString(bent)
			if token, _ := g.attest(b, d); token != "" && field != "event_log" { // whose texts are nobody's
				t.Fatalf("%s: byte %d: accepted", field, n)
			} else if token != "" {
				g.auth(b)
				d, object = whole()
			}
		}
		for _, v := range []any{nil, "", "!", 7, []any{}} {
			object[field] = v
			if token, _ := g.attest(b, d); token != "" {
				t.Fatalf("%s: %v: accepted", field, v)
			}
		}
	}
	whole, err := json.Marshal(g.attestation(hash384))
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole); n += 97 {
		if resp := g.do(b, "POST", "attest", string(whole[:n])); resp.StatusCode != 401 {
			t.Fatalf("the first %d of %d bytes of the document: %d", n, len(whole), resp.StatusCode)
		}
	}
	d := g.attestation(hash384)
	for _, list := range [][]any{nil, {"00"}, d.quote()["pcrs"].([]any)[:23], append(d.quote()["pcrs"].([]any), strings.Repeat("00", 32))} {
		d.quote()["pcrs"] = list
		if token, _ := g.attest(b, d); token != "" {
			t.Fatalf("%d registers: accepted", len(list))
		}
	}
}

func TestSample(t *testing.T) {
	g := newGuest(t)
	b := &Broker{Sample: true, Resources: map[string]Resource{secretPath: {Value: []byte(canary)}}}
	g.cookie = ""
	var challenge struct{ Nonce string }
	read(t, g.do(b, "POST", "auth", strings.Replace(goodRequest, "tpm", "sample", 1)), 200, &challenge)
	g.nonce = challenge.Nonce
	d := g.attestation(hash384)
	jwk := d.at("runtime-data")["tee-pubkey"].(map[string]any)
	jcs := fmt.Sprintf(`{"nonce":"%s","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"%s","y":"%s"}}`, g.nonce, jwk["x"], jwk["y"])
	device := fmt.Sprintf(`{"sampledevice":{"svn":"1","report_data":"%s"}}`, base64.StdEncoding.EncodeToString(hash384([]byte(jcs))))
	quoted, err := json.Marshal(device)
	if err != nil {
		t.Fatal(err)
	}
	jcs = strings.Replace(jcs, "{", `{"additional-evidence":`+string(quoted)+`,`, 1)
	for _, additional := range []string{"", `{"nvidia":{}}`, device} {
		d["tee-evidence"] = map[string]any{"additional_evidence": additional,
			"primary_evidence": map[string]any{"svn": "1", "report_data": base64.StdEncoding.EncodeToString(hash384([]byte(jcs)))}}
		if _, refusal := g.attest(b, d); (refusal == "") != (additional == device) {
			t.Fatalf("additional evidence %q: %q", additional, refusal)
		}
	}
	if secret, refusal := g.get(b, secretPath); secret != canary {
		t.Errorf("secret %q, %s", secret, refusal)
	}
}

// Keys for secrets in every form that KBS takes, and some that it does not.
func TestKeys(t *testing.T) {
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for alg, want := range map[string]bool{"RSA-OAEP-256": true, "RSA1_5": false, "RSA-OAEP": false, "": false} {
		text, err := encrypt(&jose.JSONWebKey{Key: r.Public(), Algorithm: alg}, []byte(canary))
		if (err == nil) != want {
			t.Errorf("%s: %v", alg, err)
		}
		if !want {
			continue
		}
		if got, err := decrypt([]byte(text), r); got != canary {
			t.Errorf("%s: %q, %v", alg, got, err)
		}
	}
}

// Tamper sees every step and may change what the broker sees.
func TestTamper(t *testing.T) {
	g := newGuest(t)
	b := newBroker(g)
	seen := map[string]int{}
	b.Tamper = func(step string, body []byte) []byte {
		seen[step]++
		return []byte(strings.Replace(string(body), `"init-data":null`, `"init-data":{"format":"toml","body":"version = \"0.1.0\"\nalgorithm = \"sha256\"\n"}`, 1))
	}
	g.auth(b)
	if _, refusal := g.attest(b, g.attestation(hash384)); !strings.Contains(refusal, "initdata: TPM PCR[8]") {
		t.Error(refusal)
	}
	g.get(b, secretPath)
	if !maps.Equal(seen, map[string]int{StepAuth: 1, StepAttest: 1, StepResource: 1}) {
		t.Errorf("steps: %v", seen)
	}
}
