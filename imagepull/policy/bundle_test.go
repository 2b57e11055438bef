package policy

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/jcs"
	"github.com/plinth-os/plinth/internal/testenv"
)

// published reads a bundle of sigstore's own tests, and the log's keys beside it.
func published(t *testing.T, path, roots string) (bundle, []signer) {
	t.Helper()
	guest := filepath.Join(testenv.Vectors(t), "guest")
	b, err := os.ReadFile(filepath.Join(guest, path))
	if err != nil {
		t.Fatal(err)
	}
	var v bundle
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(filepath.Join(guest, roots)); err != nil {
		t.Fatal(err)
	}
	var r struct {
		Logs []struct {
			Key struct {
				Bytes []byte `json:"rawBytes"`
			} `json:"publicKey"`
		} `json:"tlogs"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	var logs []signer
	for _, l := range r.Logs {
		k, err := x509.ParsePKIXPublicKey(l.Key.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		logs = append(logs, signer{"log", k})
	}
	return v, logs
}

// Entries of public logs: promise, proof, checkpoint and body are checked, each.
func TestPublishedLogEntries(t *testing.T) {
	for _, tt := range []struct {
		bundle, roots, kind string
		seconds             int64
	}{
		{"cosign/oci-attestation.sigstore.json", "cosign/trusted_root_pgi.json", dsseEntry, 1740770291},
		{"sigstore-go/bundles/sigstore.js@2.0.0-provenance.sigstore.json", "sigstore-go/trusted-roots/public-good.json", intotoEntry, 1692374735},
		{"sigstore-go/bundles/othername.sigstore.json", "sigstore-go/trusted-roots/scaffolding.json", hashedRekord, 1720811189},
	} {
		t.Run(tt.bundle, func(t *testing.T) {
			_, logs := published(t, tt.bundle, tt.roots)
			entry := func() *transparency {
				b, _ := published(t, tt.bundle, tt.roots)
				return &b.Material.Entries[0]
			}
			e, err := entry().check(logs)
			if err != nil || e.kind != tt.kind || e.time.Unix() != tt.seconds {
				t.Fatalf("%+v, %v", e, err)
			}
			other := []signer{{"another", &newKey(t).PublicKey}}
			for name, change := range map[string]func(e *transparency, logs *[]signer){
				"another log":         func(_ *transparency, logs *[]signer) { *logs = other },
				"later":               func(e *transparency, _ *[]signer) { e.Time++ },
				"another index":       func(e *transparency, _ *[]signer) { e.Index++ },
				"promise":             func(e *transparency, _ *[]signer) { e.Promise.Timestamp[20] ^= 1 },
				"no promise, no time": func(e *transparency, _ *[]signer) { e.Promise = nil },
				"neither":             func(e *transparency, _ *[]signer) { e.Promise, e.Proof = nil, nil },
				"place in the tree":   func(e *transparency, _ *[]signer) { e.Proof.Index ^= 1 },
				"behind the tree":     func(e *transparency, _ *[]signer) { e.Proof.Index = e.Proof.Size },
				"sibling":             func(e *transparency, _ *[]signer) { e.Proof.Hashes[0][0] ^= 1 },
				"fewer siblings":      func(e *transparency, _ *[]signer) { e.Proof.Hashes = e.Proof.Hashes[1:] },
				"more siblings":       func(e *transparency, _ *[]signer) { e.Proof.Hashes = append(e.Proof.Hashes, make([]byte, 32)) },
				"root":                func(e *transparency, _ *[]signer) { e.Proof.Root[0] ^= 1 },
				"checkpoint": func(e *transparency, _ *[]signer) {
					e.Proof.Checkpoint.Note = strings.Replace(e.Proof.Checkpoint.Note, "rekor", "rekox", 1)
				},
				"unsigned": func(e *transparency, _ *[]signer) {
					e.Proof.Checkpoint.Note, _, _ = strings.Cut(e.Proof.Checkpoint.Note, "— ")
				},
				"kind": func(e *transparency, _ *[]signer) { e.Kind.Version = "0.0.9" },
				"body": func(e *transparency, _ *[]signer) { e.Promise = nil; e.Body = append(e.Body, ' ') },
			} {
				e, keys := entry(), logs
				change(e, &keys)
				got, err := e.check(keys)
				switch {
				case name == "no promise, no time":
					if err != nil || !got.time.IsZero() {
						t.Errorf("%s: %+v, %v", name, got, err)
					}
				case err == nil:
					t.Errorf("%s: accepted", name)
				}
			}
		})
	}
}

// Bundles of sigstore's own tests that sign no image of ours: what cosign attests
// verifies whole but is no signature, the others are of other forms.
func TestPublishedBundles(t *testing.T) {
	for path, want := range map[string]string{
		"sigstore-go/bundles/dsse-2sigs.sigstore.json":          "unknown key", // of version 0.1
		"sigstore-go/bundles/dsse.sigstore.json":                "unknown key",
		"sigstore-go/bundles/othername.sigstore.json":           "no envelope",
		"sigstore-go/bundles/public-key-validity.sigstore.json": "no envelope",
		"cosign/oci-attestation.sigstore.json":                  "",
	} {
		b, err := os.ReadFile(filepath.Join(testenv.Vectors(t), "guest", path))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseBundle(b); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	b, logs := published(t, "cosign/oci-attestation.sigstore.json", "cosign/trusted_root_pgi.json")
	a, err := b.attachment()
	if err != nil {
		t.Fatal(err)
	}
	e, err := a.log(logs)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(a.certificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.covers(a, leaf.PublicKey); err != nil {
		t.Error(err)
	}
	if err := verifySHA256(leaf.PublicKey, a.signed, a.signature); err != nil {
		t.Error(err)
	}
	if _, err := a.says(); err == nil || !strings.Contains(err.Error(), "not a signature of an image") {
		t.Errorf("got %v", err)
	}
}

// A notary makes bundles: it has a key, an authority and a log.
type notary struct {
	t              *testing.T
	key, root, log *ecdsa.PrivateKey
	rootCert       *x509.Certificate
	now            time.Time

	// What differs from a good bundle.
	payloadType string
	statement   func(map[string]any)
	leaf        func(*x509.Certificate)
	entry       func(*transparency)
	bundle      func(*bundle)
}

func newNotary(t *testing.T) *notary {
	n := &notary{t: t, key: newKey(t), root: newKey(t), log: newKey(t), now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: n.now.Add(-time.Hour), NotAfter: n.now.Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &n.root.PublicKey, n.root)
	if err != nil {
		t.Fatal(err)
	}
	if n.rootCert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return n
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyPEM(t *testing.T, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func (n *notary) sign(k *ecdsa.PrivateKey, b []byte) []byte {
	n.t.Helper()
	h := sha256.Sum256(b)
	sig, err := ecdsa.SignASN1(rand.Reader, k, h[:])
	if err != nil {
		n.t.Fatal(err)
	}
	return sig
}

func (n *notary) json(v any) []byte {
	n.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		n.t.Fatal(err)
	}
	return b
}

// certificate is one of ten minutes, as Fulcio issues them.
func (n *notary) certificate() []byte {
	n.t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: n.now.Add(-5 * time.Minute), NotAfter: n.now.Add(5 * time.Minute),
		EmailAddresses: []string{"maker@example.com"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{{Id: oidIssuer, Value: []byte("https://login.example.com")}},
	}
	if n.leaf != nil {
		n.leaf(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, n.rootCert, &n.key.PublicKey, n.root)
	if err != nil {
		n.t.Fatal(err)
	}
	return der
}

// make signs a manifest. With a log, promise and proof are of a tree of two.
func (n *notary) make(manifest []byte, certified, promise, proof bool) []byte {
	n.t.Helper()
	statement := map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": signPredicate, "predicate": map[string]any{},
		"subject": []any{map[string]any{"digest": map[string]any{"sha256": hex.EncodeToString(sum(manifest))}}},
	}
	if n.statement != nil {
		n.statement(statement)
	}
	e := &envelope{Payload: n.json(statement), Type: cmp.Or(n.payloadType, statementMIME)}
	e.Signatures = append(e.Signatures, struct {
		Sig   []byte `json:"sig"`
		KeyID string `json:"keyid"`
	}{n.sign(n.key, e.encoding()), ""})
	b := &bundle{MediaType: BundleMIME, Envelope: e}
	verifier := keyPEM(n.t, n.key)
	if certified {
		der := n.certificate()
		verifier = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		b.Material.Certificate = &struct {
			Bytes []byte `json:"rawBytes"`
		}{der}
	}
	if promise || proof {
		b.Material.Entries = []transparency{n.logged(e, verifier, promise, proof)}
	}
	if n.bundle != nil {
		n.bundle(b)
	}
	return n.json(b)
}

func sum(b []byte) []byte { h := sha256.Sum256(b); return h[:] }

func (n *notary) logged(e *envelope, verifier []byte, promise, proof bool) transparency {
	var spec dsseSpec
	spec.Envelope, spec.Payload = logDigest{"sha256", "0"}, logDigest{"sha256", hex.EncodeToString(sum(e.Payload))}
	spec.Signatures = append(spec.Signatures, struct {
		Signature []byte `json:"signature"`
		Verifier  []byte `json:"verifier"`
	}{e.Signatures[0].Sig, verifier})
	t := transparency{Index: 7, Time: number(n.now.Unix()), Body: n.json(map[string]any{"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})}
	t.Kind.Kind, t.Kind.Version, t.Log.ID = "dsse", "0.0.1", sum([]byte("log"))
	if n.entry != nil {
		n.entry(&t)
	}
	if promise {
		signed, err := jcs.Marshal(&logPayload{base64.StdEncoding.EncodeToString(t.Body), int64(t.Time), hex.EncodeToString(t.Log.ID), int64(t.Index)})
		if err != nil {
			n.t.Fatal(err)
		}
		t.Promise = &struct {
			Timestamp []byte `json:"signedEntryTimestamp"`
		}{n.sign(n.log, signed)}
	}
	if proof {
		other := sum([]byte("other"))
		root := sum(bytes.Join([][]byte{{1}, other, sum(append([]byte{0}, t.Body...))}, nil))
		p := &inclusion{Index: 1, Size: 2, Root: root, Hashes: [][]byte{other}}
		text := fmt.Sprintf("log.example.com\n2\n%s\n", base64.StdEncoding.EncodeToString(root))
		p.Checkpoint.Note = text + "\n— log.example.com " + base64.StdEncoding.EncodeToString(append([]byte("hint"), n.sign(n.log, []byte(text))...)) + "\n"
		t.Proof = p
	}
	return t
}

// judged is what a policy says of a manifest with a bundle beside it.
func (n *notary) judged(requirement, scope string, manifest, bundle []byte) error {
	n.t.Helper()
	for name, data := range map[string][]byte{
		"KEY": keyPEM(n.t, n.key), "LOG": keyPEM(n.t, n.log), "OTHER": keyPEM(n.t, newKey(n.t)), "CA": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: n.rootCert.Raw}),
	} {
		requirement = strings.ReplaceAll(requirement, "$"+name, base64.StdEncoding.EncodeToString(data))
	}
	p, err := Parse([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"` + scope + `":[` + requirement + `]}}}`))
	if err != nil {
		n.t.Fatal(err)
	}
	name, err := ParseName("docker://registry.example.com/team/app:1")
	if err != nil {
		n.t.Fatal(err)
	}
	v, err := p.Judge(Candidate{Name: name, Manifest: manifest, Signatures: func(Kind) ([]Signature, error) {
		return []Signature{{Source: "bundle", MIMEType: BundleMIME, Payload: bundle}}, nil
	}}, Trust{ReadFile: os.ReadFile, Now: n.now})
	if err != nil {
		n.t.Fatal(err)
	}
	return v.Err()
}

const (
	byKey    = `{"type":"sigstoreSigned","keyData":"$KEY"}`
	byLog    = `{"type":"sigstoreSigned","keyData":"$KEY","rekorPublicKeyData":"$LOG"}`
	byFulcio = `{"type":"sigstoreSigned","fulcio":{"caData":"$CA","oidcIssuer":"https://login.example.com","subjectEmail":"maker@example.com"},"rekorPublicKeyData":"$LOG"}`
	byPKI    = `{"type":"sigstoreSigned","pki":{"caRootsData":"$CA","subjectEmail":"maker@example.com"}}`
	team     = "registry.example.com/team"
)

func TestBundles(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2}`)
	withIdentity := func(requirement, identity string) string {
		return strings.TrimSuffix(requirement, "}") + `,"signedIdentity":` + identity + `}`
	}
	for _, tt := range []struct {
		name, requirement, scope  string
		certified, promise, proof bool
		change                    func(n *notary)
		why                       string // "": accepted
	}{
		{"key", byKey, team, false, false, false, nil, ""},
		{"key, rule for the image", byKey, team + "/app:1", false, false, false, nil, ""},
		{"key, another subject", byKey, team, false, false, false, func(n *notary) {
			n.statement = func(s map[string]any) {
				s["subject"] = []any{map[string]any{"digest": map[string]any{"sha256": strings.Repeat("0", 64)}}}
			}
		}, "signature is for manifest"},
		{"key, one of the subjects", byKey, team, false, false, false, func(n *notary) {
			n.statement = func(s map[string]any) {
				s["subject"] = append([]any{map[string]any{"name": "x", "digest": map[string]any{"sha512": "00"}}}, s["subject"].([]any)...)
			}
		}, ""},
		{"key, no subject", byKey, team, false, false, false, func(n *notary) { n.statement = func(s map[string]any) { s["subject"] = []any{} } }, "0 subjects"},
		{"key, an attestation", byKey, team, false, false, false, func(n *notary) {
			n.statement = func(s map[string]any) { s["predicateType"] = "https://slsa.dev/provenance/v1" }
		}, "not a signature of an image"},
		{"key, no statement", byKey, team, false, false, false, func(n *notary) { n.statement = func(s map[string]any) { s["_type"] = "x" } }, `type "x"`},
		{"key, another payload type", byKey, team, false, false, false, func(n *notary) { n.payloadType = "application/json" }, "payload of type"},
		{"key, another key", strings.ReplaceAll(byKey, "KEY", "OTHER"), team, false, false, false, nil, "no trusted key"},
		{"key, changed payload", byKey, team, false, false, false, func(n *notary) { n.bundle = func(b *bundle) { b.Envelope.Payload = append(b.Envelope.Payload, ' ') } }, "no trusted key"},
		{"key, changed type", byKey, team, false, false, false, func(n *notary) { n.bundle = func(b *bundle) { b.Envelope.Type = "text/plain" } }, "no trusted key"},
		{"key, two signatures", byKey, team, false, false, false, func(n *notary) {
			n.bundle = func(b *bundle) { b.Envelope.Signatures = append(b.Envelope.Signatures, b.Envelope.Signatures[0]) }
		}, "2 signatures"},
		{"key, an older bundle", byKey, team, false, false, false, func(n *notary) {
			n.bundle = func(b *bundle) { b.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.2" }
		}, "media type"},

		{"no scope", byKey, "", false, false, false, nil, "names no image: want a rule"},
		{"repository asked for", withIdentity(byKey, `{"type":"matchRepository"}`), team + "/app", false, false, false, nil, ""},
		{"repository asked for, wider rule", withIdentity(byKey, `{"type":"matchRepository"}`), team, false, false, false, nil, "want a rule for registry.example.com/team/app"},
		{"exact name asked for", withIdentity(byKey, `{"type":"matchExact"}`), team, false, false, false, nil, "want one that does"},
		{"another name asked for", withIdentity(byKey, `{"type":"exactRepository","dockerRepository":"registry.example.com/team/app"}`), team, false, false, false, nil, "want one that does"},

		{"log, promise", byLog, team, false, true, false, nil, ""},
		{"log, proof", byLog, team, false, false, true, nil, ""},
		{"log, both", byLog, team, false, true, true, nil, ""},
		{"log, two entries", byLog, team, false, true, false, func(n *notary) {
			n.bundle = func(b *bundle) { b.Material.Entries = append(b.Material.Entries, b.Material.Entries[0]) }
		}, "2 entries of logs: want at most one"},
		{"log, no entry", byLog, team, false, false, false, nil, "no entry"},
		{"log, another log", strings.ReplaceAll(byLog, "$LOG", "$OTHER"), team, false, true, false, nil, "no trusted log"},
		{"log, another log's proof", strings.ReplaceAll(byLog, "$LOG", "$OTHER"), team, false, false, true, nil, "no trusted log"},
		{"log, entry of another signature", byLog, team, false, true, false, func(n *notary) {
			n.bundle = func(b *bundle) { b.Envelope.Signatures[0].Sig = n.sign(n.key, b.Envelope.encoding()) }
		}, "another signature"},
		{"log, entry of another payload", byLog, team, false, true, false, func(n *notary) {
			n.entry = func(e *transparency) {
				e.Body = bytes.Replace(e.Body, []byte(`"payloadHash":{"algorithm":"sha256","value":"`), []byte(`"payloadHash":{"algorithm":"sha256","value":"0`), 1)
			}
		}, "another payload"},
		{"log, entry by another hash", byLog, team, false, true, false, func(n *notary) {
			n.entry = func(e *transparency) {
				e.Body = bytes.Replace(e.Body, []byte(`"payloadHash":{"algorithm":"sha256"`), []byte(`"payloadHash":{"algorithm":"sha512"`), 1)
			}
		}, "want sha256"},
		{"log, entry of another kind", byLog, team, false, true, false, func(n *notary) {
			n.entry = func(e *transparency) {
				e.Body = bytes.Replace(e.Body, []byte(`"kind":"dsse"`), []byte(`"kind":"rpm"`), 1)
			}
		}, `log entry: "rpm `},
		{"log, entry by another key", byLog, team, false, true, false, func(n *notary) { n.bundle = func(*bundle) { n.key = newKey(n.t) } }, "another key"},

		{"log, checkpoint of another root", byLog, team, false, false, true, func(n *notary) {
			n.bundle = func(b *bundle) {
				e := &b.Material.Entries[0]
				e.Proof.Hashes[0] = sum([]byte("mine"))
				e.Proof.Root = node(e.Proof.Hashes[0], sum(append([]byte{0}, e.Body...)))
			}
		}, "another tree"},
		{"log, checkpoint of another size", byLog, team, false, false, true, func(n *notary) {
			n.bundle = func(b *bundle) { b.Material.Entries[0].Proof.Index, b.Material.Entries[0].Proof.Size = 2, 3 }
		}, "another tree"},

		{"fulcio", byFulcio, team, true, true, false, nil, ""},
		{"fulcio, both", byFulcio, team, true, true, true, nil, ""},
		{"fulcio, nobody vouches for the time", byFulcio, team, true, false, true, nil, "does not say when"},
		{"fulcio, no entry", byFulcio, team, true, false, false, nil, "no entry"},
		{"fulcio, no certificate", byFulcio, team, false, true, false, nil, "no certificate"},
		{"fulcio, after its time", byFulcio, team, true, true, false, func(n *notary) { n.entry = func(e *transparency) { e.Time += 3600 } }, "expired"},
		{"fulcio, before its time", byFulcio, team, true, true, false, func(n *notary) { n.entry = func(e *transparency) { e.Time -= 600 } }, "not yet valid"},
		{"fulcio, another subject", byFulcio, team, true, true, false, func(n *notary) {
			n.leaf = func(c *x509.Certificate) { c.EmailAddresses = []string{"other@example.com"} }
		}, "certificate is for"},
		{"fulcio, another issuer", strings.ReplaceAll(byFulcio, "login.", "other."), team, true, true, false, nil, "vouched for by"},
		{"fulcio, another use", byFulcio, team, true, true, false, func(n *notary) {
			n.leaf = func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
		}, "key usage"},
		{"fulcio, another authority", byFulcio, team, true, true, false, func(n *notary) { n.bundle = func(*bundle) { n.rootCert = newNotary(n.t).rootCert } }, "unknown authority"},

		{"pki", byPKI, team, true, false, false, nil, ""},
		{"pki, no certificate", byPKI, team, false, false, false, nil, "no certificate"},
		{"pki, expired", byPKI, team, true, false, false, func(n *notary) {
			n.leaf = func(c *x509.Certificate) { c.NotAfter = n.now.Add(-time.Minute) }
		}, "expired"},
		{"pki, another subject", byPKI, team, true, false, false, func(n *notary) { n.leaf = func(c *x509.Certificate) { c.EmailAddresses = nil } }, "certificate is for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNotary(t)
			if tt.change != nil {
				tt.change(n)
			}
			b := n.make(manifest, tt.certified, tt.promise, tt.proof)
			err := n.judged(tt.requirement, tt.scope, manifest, b)
			if (err == nil) != (tt.why == "") || err != nil && !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, want %q", err, tt.why)
			}
		})
	}
}

func TestByScope(t *testing.T) {
	image, dir := mustName(t, "docker://registry.example.com/team/app:1"), mustName(t, "oci:/images/app")
	for _, tt := range []struct {
		kind  string // "": no identity
		name  Name
		scope string
		ok    bool
	}{
		{"", image, team, true}, {"", image, "*.example.com", true}, {"", image, "", false}, {"", dir, "/images", true}, {"", dir, "", false},
		{MatchRepoOrDigest, image, team, true}, {MatchRepoOrDigest, image, "", false},
		{MatchRepository, image, team + "/app", true}, {MatchRepository, image, team + "/app:1", true}, {MatchRepository, image, team, false},
		{MatchRepository, image, team + "/application", false}, {MatchRepository, dir, "/images/app", false},
		{MatchExact, image, team + "/app:1", false}, {MatchReference, image, team, false}, {MatchOneRepository, image, team, false}, {RemapIdentity, image, team, false},
	} {
		var i *Identity
		if tt.kind != "" {
			i = &Identity{Type: tt.kind}
		}
		if err := i.byScope(tt.name, tt.scope); (err == nil) != tt.ok {
			t.Errorf("%q, %s, rule for %q: %v", tt.kind, tt.name, tt.scope, err)
		}
	}
}

func mustName(t *testing.T, s string) Name {
	t.Helper()
	n, err := ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A name in a layout may have a digest; it is the end of the name, and whole.
func TestNamesWithDigest(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for text, want := range map[string]Name{
		"oci:/dir@" + digest:                 {Transport: OCI, Path: "/dir", Digest: digest},
		"oci-archive:/a.tar:app:1@" + digest: {Transport: OCIArchive, Path: "/a.tar", Image: "app:1", Digest: digest},
		"oci:/dir:app":                       {Transport: OCI, Path: "/dir", Image: "app"},
		"oci:/dir@" + digest[:70]:            {Transport: OCI, Path: "/dir@sha256", Image: digest[7:70]},
	} {
		got := mustName(t, text)
		if got != want || got.String() != text {
			t.Errorf("%s: got %+v, %s", text, got, got)
		}
	}
}

// RFC 9162 trees of every small size, made the other way round: by their definition.
func TestInclusion(t *testing.T) {
	var leaves [][]byte
	for size := 1; size <= 20; size++ {
		leaves = append(leaves, sum([]byte{0, byte(size)}))
		root := treeHash(leaves)
		for i := range leaves {
			p := &inclusion{Index: number(i), Size: number(size), Root: root, Hashes: treePath(i, leaves)}
			got, err := p.rootOf([32]byte(leaves[i]))
			if err != nil || !bytes.Equal(got, root) {
				t.Errorf("leaf %d of %d: %x, %v", i, size, got, err)
			}
			for at := -1; at <= size; at++ {
				p.Index = number(at)
				if got, err := p.rootOf([32]byte(leaves[i])); at != i && err == nil && bytes.Equal(got, root) {
					t.Errorf("leaf %d of %d is at %d, too", i, size, at)
				}
			}
		}
	}
}

// treeHash is MTH of RFC 9162, section 2.1.1; treePath is PATH of section 2.1.3.1.
func treeHash(d [][]byte) []byte {
	if len(d) == 1 {
		return d[0]
	}
	k := split(len(d))
	return sum(bytes.Join([][]byte{{1}, treeHash(d[:k]), treeHash(d[k:])}, nil))
}

func treePath(m int, d [][]byte) [][]byte {
	if len(d) == 1 {
		return nil
	}
	k := split(len(d))
	if m < k {
		return append(treePath(m, d[:k]), treeHash(d[k:]))
	}
	return append(treePath(m-k, d[k:]), treeHash(d[:k]))
}

func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

func FuzzBundle(f *testing.F) {
	n := newNotary(&testing.T{})
	f.Add(n.make([]byte("manifest"), true, true, true))
	f.Add(n.make([]byte("manifest"), false, false, false))
	k := newKey(&testing.T{})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseBundle(b)
		if err != nil {
			return
		}
		if _, err := a.log([]signer{{"another", &k.PublicKey}}); err == nil {
			t.Error("a log that signed nothing vouches for it")
		}
		_, _ = a.says() // no panic
	})
}
