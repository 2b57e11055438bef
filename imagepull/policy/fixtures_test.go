package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// fixtures are those of containers/image, signature/fixtures. What becomes of them
// is what its own tests say: policy_eval_sigstore_test.go, policy_eval_signedby_test.go.
func fixtures(t testing.TB) string {
	return filepath.Join(testenv.Vectors(t), "guest/containers-image/signature-fixtures")
}

// dirImage reads an image as the "dir" transport stores it.
func dirImage(t testing.TB, dir, ref string) Candidate {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil && !strings.Contains(dir, "no-manifest") {
		t.Fatal(err)
	}
	name, err := ParseName("docker://" + ref)
	if err != nil {
		t.Fatal(err)
	}
	return Candidate{Name: name, Manifest: manifest, Signatures: func(k Kind) ([]Signature, error) { return dirSignatures(t, dir, k) }}
}

func dirSignatures(t testing.TB, dir string, k Kind) (out []Signature, _ error) {
	t.Helper()
	for i := 1; ; i++ {
		path := filepath.Join(dir, fmt.Sprintf("signature-%d", i))
		b, err := os.ReadFile(path)
		if err != nil {
			return out, nil
		}
		s, kind := signatureFile(t, b)
		s.Source = filepath.Base(path)
		if kind == k {
			out = append(out, s)
		}
	}
}

// signatureFile reads one file of the transport.
func signatureFile(t testing.TB, b []byte) (Signature, Kind) {
	t.Helper()
	rest, ok := bytes.CutPrefix(b, []byte("\x00sigstore-json\n"))
	if !ok {
		return Signature{Payload: b}, Simple
	}
	var v struct {
		MIMEType    string            `json:"mimeType"`
		Payload     []byte            `json:"payload"`
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(rest, &v); err != nil {
		t.Fatal(err)
	}
	return Signature{MIMEType: v.MIMEType, Payload: v.Payload, Annotations: v.Annotations}, Sigstore
}

// judge holds a fixture to one requirement; ${F} in it is the fixtures' folder.
func judge(t *testing.T, c Candidate, requirement string) (*Verdict, error) {
	t.Helper()
	text := strings.ReplaceAll(requirement, "${F}", fixtures(t))
	p, err := Parse([]byte(`{"default": [` + text + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return p.Judge(c, Trust{ReadFile: os.ReadFile, Now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)})
}

const (
	single    = "192.168.64.2:5000/cosign-signed-single-sample"
	testing1  = "testing/manifest:latest"
	repo      = `"signedIdentity":{"type":"matchRepository"}`
	exact     = `"signedIdentity":{"type":"matchExact"}`
	oneKey    = `{"type":"sigstoreSigned","keyPath":"${F}/cosign.pub",` + repo + `}`
	twoKeys   = `{"type":"sigstoreSigned","keyPaths":["${F}/cosign2.pub","${F}/cosign.pub"],` + repo + `}`
	rekorKey  = `{"type":"sigstoreSigned","keyPath":"${F}/cosign2.pub","rekorPublicKeyPath":"${F}/rekor.pub",` + repo + `}`
	fulcioKey = `{"type":"sigstoreSigned","fulcio":{"caPath":"${F}/fulcio_v1.crt.pem","oidcIssuer":"https://github.com/login/oauth","subjectEmail":"%s"},"rekorPublicKeyPath":"${F}/rekor.pub",` + repo + `}`
	pkiBoth   = `{"type":"sigstoreSigned","pki":{"caRootsPath":"${F}/pki_root_crts.pem","caIntermediatesPath":"${F}/pki_intermediate_crts.pem","subjectEmail":"qiwan@redhat.com","subjectHostname":"myhost.example.com"},` + repo + `}`
	pkiRoots  = `{"type":"sigstoreSigned","pki":{"caRootsPath":"${F}/pki_root_crts.pem","subjectEmail":"%s","subjectHostname":"%s"},` + repo + `}`
	gpg       = `{"type":"signedBy","keyType":"GPGKeys","keyPath":"${F}/public-key.gpg",` + exact + `}`
)

func TestFixtures(t *testing.T) {
	for _, tt := range []struct {
		name, dir, ref, requirement string
		accept                      bool
		why                         string
	}{
		{"key", "cosign-valid", single, oneKey, true, ""},
		{"one of two keys", "cosign-valid", single, twoKeys, true, ""},
		{"another repository", "cosign-valid", "testing/manifest:notlatest", oneKey, false, "signature is for"},
		{"no tag in cosign's payload", "cosign-valid", single, strings.ReplaceAll(oneKey, "matchRepository", "matchExact"), false, "signature is for"},
		{"the default identity wants the tag", "cosign-valid", single, `{"type":"sigstoreSigned","keyPath":"${F}/cosign.pub"}`, false, "signature is for"},
		{"two good signatures", "cosign-valid-2", single, oneKey, true, ""},
		{"a bad one, then a good one", "cosign-mixed", single, oneKey, true, ""},
		{"modified manifest", "cosign-modified-manifest", single, oneKey, false, "signature is for manifest"},
		{"another key", "cosign-valid", single, `{"type":"sigstoreSigned","keyPath":"${F}/cosign2.pub",` + repo + `}`, false, "no trusted key"},
		{"an attachment that is no signature", "cosign-other-attachment", testing1, oneKey, false, "not a signature"},
		{"unsigned", "unsigned", testing1, oneKey, false, "no sigstore signature"},
		{"only GPG", "valid", testing1, oneKey, false, "no sigstore signature"},
		{"a tag in the payload", "cosign-valid-with-tag", "192.168.64.2:5000/skopeo-signed:tag", strings.ReplaceAll(oneKey, "matchRepository", "matchExact"), true, ""},
		{"another tag", "cosign-valid-with-tag", "192.168.64.2:5000/skopeo-signed:othertag", strings.ReplaceAll(oneKey, "matchRepository", "matchExact"), false, "signature is for"},
		{"key and log", "cosign-key-rekor-valid", "192.168.64.2:5000/cosign-signed/key-1", rekorKey, true, ""},
		{"another log", "cosign-key-rekor-valid", "192.168.64.2:5000/cosign-signed/key-1", strings.ReplaceAll(rekorKey, "/rekor.pub", "/cosign.pub"), false, "no trusted log"},
		{"not logged", "cosign-valid", single, strings.ReplaceAll(rekorKey, "cosign2.pub", "cosign.pub"), false, "no entry"},
		{"fulcio", "cosign-fulcio-rekor-valid", "192.168.64.2:5000/cosign-signed/fulcio-rekor-1", fmt.Sprintf(fulcioKey, "mitr@redhat.com"), true, ""},
		{"fulcio, another subject", "cosign-fulcio-rekor-valid", "192.168.64.2:5000/cosign-signed/fulcio-rekor-1", fmt.Sprintf(fulcioKey, "this-does-not-match@example.com"), false, "certificate is for"},
		{"pki", "cosign-pki-valid", "localhost:5000/test", pkiBoth, true, ""},
		{"pki, chain with the signature", "cosign-pki-valid", "localhost:5000/test", fmt.Sprintf(pkiRoots, "qiwan@redhat.com", "myhost.example.com"), true, ""},
		{"pki, another email", "cosign-pki-valid", "localhost:5000/test", fmt.Sprintf(pkiRoots, "other@example.com", "myhost.example.com"), false, "certificate is for"},
		{"pki, another host", "cosign-pki-valid", "localhost:5000/test", fmt.Sprintf(pkiRoots, "qiwan@redhat.com", "other.example.com"), false, "not other.example.com"},
		{"GPG", "valid", testing1, gpg, true, ""},
		{"GPG, another tag", "valid", "testing/manifest:notlatest", gpg, false, "signature is for"},
		{"GPG, two", "valid-2", testing1, gpg, true, ""},
		{"GPG, mixed", "mixed", testing1, gpg, true, ""},
		{"GPG, unsigned", "unsigned", testing1, gpg, false, "no simple signing signature"},
		{"GPG, modified manifest", "modified-manifest", testing1, gpg, false, "signature is for manifest"},
		{"GPG, subkey", "valid-subkey", testing1, strings.ReplaceAll(gpg, "public-key.gpg", "public-key-with-subkey.gpg"), true, ""},
		{"GPG, revoked subkey", "valid-subkey", testing1, strings.ReplaceAll(gpg, "public-key.gpg", "public-key-with-revoked-subkey.gpg"), false, ""},
		{"GPG, another key", "valid", testing1, strings.ReplaceAll(gpg, "public-key.gpg", "public-key-2.gpg"), false, "not in the keyring"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, err := judge(t, dirImage(t, filepath.Join(fixtures(t), "dir-img-"+tt.dir), tt.ref), tt.requirement)
			if err != nil {
				t.Fatal(err)
			}
			if v.Accepted != tt.accept {
				t.Fatalf("accepted %v: %+v", v.Accepted, v.Requirements)
			}
			if err := v.Err(); err != nil && !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, want %q", err, tt.why)
			}
		})
	}
}

// Single signatures over one manifest: containers/image, signature/mechanism_test.go.
func TestSimpleSignatures(t *testing.T) {
	for file, accept := range map[string]bool{
		"image.signature": true, "subkey.signature": true, "no-optional-fields.signature": true,
		"subkey.signature-v3": false, // the format of PGP 2.6
		"corrupt.signature":   false, "corrupt.signature-v3": false, "invalid-blob.signature": false, "invalid-blob.signature-v3": false,
		"unknown-key.signature": false, "unknown-key.signature-v3": false, "expired.signature": false, "unsigned-literal.signature": false,
		"unsigned-encrypted.signature": false, "subkey-revoked.signature": false, "subkey-revoked.signature-v3": false, "invalid-reference.signature": false,
	} {
		t.Run(file, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(fixtures(t), file))
			if err != nil {
				t.Fatal(err)
			}
			keys := []string{"public-key.gpg", "public-key-2.gpg", "public-key-with-subkey.gpg"}
			if strings.Contains(file, "revoked") {
				keys = []string{"public-key-with-revoked-subkey.gpg"}
			}
			var list []string
			for _, k := range keys {
				list = append(list, fmt.Sprintf("%q", filepath.Join(fixtures(t), k)))
			}
			c := dirImage(t, filepath.Join(fixtures(t), "dir-img-valid"), testing1)
			c.Signatures = func(Kind) ([]Signature, error) { return []Signature{{Payload: b}}, nil }
			v, err := judge(t, c, `{"type":"signedBy","keyType":"GPGKeys","keyPaths":[`+strings.Join(list, ",")+`],`+repo+`}`)
			if err != nil {
				t.Fatal(err)
			}
			if v.Accepted != accept {
				t.Errorf("accepted %v: %+v", v.Accepted, v.Requirements)
			}
		})
	}
}

// What a signature comes with, changed. The outcomes are those of containers/image,
// signature/policy_eval_sigstore_test.go.
func TestChangedAnnotations(t *testing.T) {
	other, _ := signatureFile(t, readFixture(t, "dir-img-cosign-key-rekor-valid/signature-1"))
	flip := func(key string) func(map[string]string) {
		return func(a map[string]string) {
			b := []byte(a[key])
			b[strings.Index(a[key], "Timestamp")+20] ^= 1
			a[key] = string(b)
		}
	}
	drop := func(key string) func(map[string]string) { return func(a map[string]string) { delete(a, key) } }
	pki := fmt.Sprintf(pkiRoots, "qiwan@redhat.com", "myhost.example.com")
	const fulcioRef, logRef, pkiRef = "192.168.64.2:5000/cosign-signed/fulcio-rekor-1", "192.168.64.2:5000/cosign-signed/key-1", "localhost:5000/test"
	for _, tt := range []struct {
		name, dir, ref, requirement string
		change                      func(map[string]string)
		accept                      bool
		why                         string
	}{
		{"no signature", "cosign-valid", single, oneKey, drop(cosignSignature), false, "want a signature"},
		{"no log entry", "cosign-key-rekor-valid", logRef, rekorKey, drop(cosignBundle), false, "no entry"},
		{"changed promise", "cosign-key-rekor-valid", logRef, rekorKey, flip(cosignBundle), false, ""},
		{"another signature's promise", "cosign-valid", single, strings.ReplaceAll(rekorKey, `"keyPath":"${F}/cosign2.pub"`, `"keyPaths":["${F}/cosign.pub","${F}/cosign2.pub"]`),
			func(a map[string]string) { a[cosignBundle] = other.Annotations[cosignBundle] }, false, "log's entry is of another"},
		{"fulcio, no log entry", "cosign-fulcio-rekor-valid", fulcioRef, fmt.Sprintf(fulcioKey, "mitr@redhat.com"), drop(cosignBundle), false, "no entry"},
		{"fulcio, changed promise", "cosign-fulcio-rekor-valid", fulcioRef, fmt.Sprintf(fulcioKey, "mitr@redhat.com"), flip(cosignBundle), false, ""},
		{"fulcio, no certificate", "cosign-fulcio-rekor-valid", fulcioRef, fmt.Sprintf(fulcioKey, "mitr@redhat.com"), drop(cosignCertificate), false, "no certificate"},
		{"fulcio, no chain", "cosign-fulcio-rekor-valid", fulcioRef, fmt.Sprintf(fulcioKey, "mitr@redhat.com"), drop(cosignChain), false, "unknown authority"},
		{"fulcio, another log", "cosign-fulcio-rekor-valid", fulcioRef, strings.ReplaceAll(fmt.Sprintf(fulcioKey, "mitr@redhat.com"), "/rekor.pub", "/cosign.pub"), nil, false, "no trusted log"},
		{"fulcio, another issuer", "cosign-fulcio-rekor-valid", fulcioRef, strings.ReplaceAll(fmt.Sprintf(fulcioKey, "mitr@redhat.com"), "github.com", "gitlab.com"), nil, false, "vouched for by"},
		{"pki, no certificate", "cosign-pki-valid", pkiRef, pkiBoth, drop(cosignCertificate), false, "no certificate"},
		{"pki, no chain but intermediates", "cosign-pki-valid", pkiRef, pkiBoth, drop(cosignChain), true, ""},
		{"pki, no chain", "cosign-pki-valid", pkiRef, pki, drop(cosignChain), false, "unknown authority"},
		{"pki, another root", "cosign-pki-valid", pkiRef, strings.ReplaceAll(pkiBoth, "pki_root_crts.pem", "fulcio_v1.crt.pem"), nil, false, "unknown authority"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dirImage(t, filepath.Join(fixtures(t), "dir-img-"+tt.dir), tt.ref)
			all, err := c.Signatures(Sigstore)
			if err != nil || len(all) == 0 {
				t.Fatal(err, len(all))
			}
			if tt.change != nil {
				tt.change(all[0].Annotations)
			}
			c.Signatures = func(Kind) ([]Signature, error) { return all[:1], nil }
			v, err := judge(t, c, tt.requirement)
			if err != nil {
				t.Fatal(err)
			}
			if v.Accepted != tt.accept {
				t.Fatalf("accepted %v: %+v", v.Accepted, v.Requirements)
			}
			if err := v.Err(); err != nil && !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, want %q", err, tt.why)
			}
		})
	}
}

func readFixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
