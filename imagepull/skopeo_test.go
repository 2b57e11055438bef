package imagepull

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/internal/testenv"
)

// A shelf is a registry with images of every kind of signature.
type shelf struct {
	*server
	dir       string
	keys      map[string]string // path by what policies call a key
	lookaside string
	images    []string // docker://...

	skopeoPath string
	sigstore   bool // it checks sigstore signatures
}

// Every image of the shelf under policies drawn at random gets the verdict that
// skopeo gives it. Debian's skopeo checks no sigstore signatures: PLINTH_SKOPEO
// names one that does.
func TestVerdictsAgreeWithSkopeo(t *testing.T) {
	testenv.Need(t, "docker-registry", "gpg")
	skopeo := os.Getenv("PLINTH_SKOPEO")
	if skopeo == "" {
		testenv.Need(t, "skopeo")
	}
	n := 60
	if os.Getenv("PLINTH_FIDELITY") == "full" {
		n = 500
	}
	s := newShelf(t)
	s.skopeoPath, s.sigstore = cmp.Or(skopeo, testenv.Tool("skopeo")), skopeo != ""
	p := s.puller(t)
	r := mathrand.New(mathrand.NewPCG(1, 2))
	accepted := 0
	for i := range n {
		image := s.images[r.IntN(len(s.images))]
		text := s.randomPolicy(r)
		want, said := s.skopeo(t, image, text)
		got, err := explain(t, p, image, text)
		if got != want {
			t.Errorf("%d: %s under\n%s\ngot %v (%v), skopeo says %v: %s", i, image, text, got, err, want, said)
		}
		if want {
			accepted++
		}
	}
	t.Logf("%d of %d accepted", accepted, n)
	if accepted < n/10 || accepted > n*9/10 {
		t.Errorf("%d of %d pairs accepted: they say little", accepted, n)
	}
}

func explain(t *testing.T, p *Puller, image, text string) (bool, error) {
	t.Helper()
	name, err := policy.ParseName(image)
	if err != nil {
		t.Fatal(err)
	}
	if p.Policy, err = policy.Parse([]byte(text)); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	im, err := p.Explain(t.Context(), name)
	if err != nil {
		return false, err
	}
	return im.Verdict.Accepted, im.Verdict.Err()
}

func (s *shelf) skopeo(t *testing.T, image, text string) (bool, string) {
	t.Helper()
	path, out := filepath.Join(s.dir, "policy.json"), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), s.skopeoPath, "--policy", path, "--registries.d", filepath.Join(s.dir, "registries.d"),
		"copy", "--src-cert-dir", filepath.Join(s.dir, "certs"), "--remove-signatures", image, "dir:"+out)
	cmd.Env = append(os.Environ(), "GNUPGHOME="+s.dir)
	b, err := cmd.CombinedOutput()
	if err != nil && !bytes.Contains(b, []byte("Source image rejected")) {
		t.Fatalf("skopeo: %v\n%s", err, b)
	}
	return err == nil, string(b)
}

func (s *shelf) puller(t *testing.T) *Puller {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "registries.d/default.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := ParseLookaside(b)
	if err != nil {
		t.Fatal(err)
	}
	return &Puller{
		Registry: &registry.Client{Roots: s.roots}, Lookaside: l,
		Trust: policy.Trust{ReadFile: os.ReadFile, Now: time.Now()}, Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
	}
}

// newShelf fills a registry: images that nobody signed, that one or the other key
// signed, under their own name, another tag, another repository.
func newShelf(t *testing.T) *shelf {
	s := &shelf{server: startRegistry(t), dir: t.TempDir(), keys: map[string]string{}}
	s.lookaside = filepath.Join(s.dir, "lookaside")
	for _, d := range []string{"certs", "registries.d"} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(s.dir, "certs/ca.crt"), s.ca)
	write(t, filepath.Join(s.dir, "registries.d/default.yaml"), []byte("default-docker:\n  lookaside: file://"+s.lookaside+"\n  use-sigstore-attachments: true\n"))
	var cosign []*ecdsa.PrivateKey
	for i, user := range []string{"one", "two"} {
		s.keys["gpg-"+user] = s.gpgKey(t, user)
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cosign = append(cosign, k)
		s.keys["cosign-"+user] = filepath.Join(s.dir, "cosign-"+user+".pub")
		write(t, s.keys["cosign-"+user], publicPEM(t, &cosign[i].PublicKey))
	}
	for _, name := range []string{"team/app:1", "team/app:2", "team/deep/tool:1", "other:1"} {
		for _, signed := range []string{"unsigned", "own", "bare", "tag", "repository", "both"} {
			repo := strings.Replace(name, ":", "-"+signed+":", 1)
			digest := s.push(t, repo, name+signed)
			at, names := s.host+"/"+repo, []string{}
			switch signed {
			case "own":
				names = []string{at}
			case "bare": // as cosign writes it
				names = []string{s.host + "/" + strings.Split(repo, ":")[0]}
			case "tag":
				names = []string{at + "9"}
			case "repository":
				names = []string{s.host + "/elsewhere:1"}
			case "both":
				names = []string{s.host + "/elsewhere:1", at}
			}
			var sigs []attached
			for i, as := range names {
				user := []string{"one", "two"}[i]
				s.signSimple(t, repo, digest, as, user, i+1)
				sigs = append(sigs, signCosign(t, digest, as, cosign[i]))
			}
			if sigs != nil {
				s.attach(t, repo, digest, sigs)
			}
			s.images = append(s.images, "docker://"+at, "docker://"+s.host+"/"+strings.Split(repo, ":")[0]+"@"+digest)
		}
	}
	return s
}

// randomPolicy draws rules for some scopes.
func (s *shelf) randomPolicy(r *mathrand.Rand) string {
	scopes := map[string][]string{}
	for _, scope := range []string{"", s.host, s.host + "/team", s.host + "/team/deep", s.host + "/team/app-own", s.host + "/team/app-both", s.host + "/team/app-both:1", s.host + "/other-own:1"} {
		if r.IntN(3) == 0 {
			scopes[scope] = s.requirements(r)
		}
	}
	var parts []string
	for scope, list := range scopes {
		parts = append(parts, fmt.Sprintf("%q:[%s]", scope, strings.Join(list, ",")))
	}
	return fmt.Sprintf(`{"default":[%s],"transports":{"docker":{%s}}}`, strings.Join(s.requirements(r), ","), strings.Join(parts, ","))
}

func (s *shelf) requirements(r *mathrand.Rand) (out []string) {
	for range 1 + r.IntN(2) {
		user := []string{"one", "two"}[r.IntN(2)]
		identity := []string{
			``, `,"signedIdentity":{"type":"matchExact"}`, `,"signedIdentity":{"type":"matchRepository"}`, `,"signedIdentity":{"type":"matchRepoDigestOrExact"}`,
			fmt.Sprintf(`,"signedIdentity":{"type":"exactRepository","dockerRepository":"%s/elsewhere"}`, s.host),
			fmt.Sprintf(`,"signedIdentity":{"type":"exactReference","dockerReference":"%s/elsewhere:1"}`, s.host),
			fmt.Sprintf(`,"signedIdentity":{"type":"remapIdentity","prefix":"%s/team","signedPrefix":"%s/team"}`, s.host, s.host),
		}[r.IntN(7)]
		kinds := []string{
			`{"type":"insecureAcceptAnything"}`,
			`{"type":"reject"}`,
			fmt.Sprintf(`{"type":"signedBy","keyType":"GPGKeys","keyPath":%q%s}`, s.keys["gpg-"+user], identity),
			fmt.Sprintf(`{"type":"signedBy","keyType":"GPGKeys","keyPath":%q%s}`, s.keys["gpg-"+user], identity),
			fmt.Sprintf(`{"type":"sigstoreSigned","keyPath":%q%s}`, s.keys["cosign-"+user], identity),
			fmt.Sprintf(`{"type":"sigstoreSigned","keyPath":%q%s}`, s.keys["cosign-"+user], identity),
		}
		if !s.sigstore {
			kinds = kinds[:4]
		}
		out = append(out, kinds[r.IntN(len(kinds))])
	}
	return out
}

// gpgKey makes a key and returns its public half.
func (s *shelf) gpgKey(t *testing.T, user string) string {
	t.Helper()
	path := filepath.Join(s.dir, "gpg-"+user+".gpg")
	s.gpg(t, "", "--quick-generate-key", user, "ed25519", "sign", "never")
	s.gpg(t, "", "--output", path, "--export", user)
	return path
}

func (s *shelf) gpg(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool("gpg"), append([]string{"--homedir", s.dir, "--batch", "--yes", "--passphrase", "", "--pinentry-mode", "loopback"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gpg: %v\n%s", err, out)
	}
}

func payload(digest, name, kind string) string {
	return fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, name, digest, kind)
}

func (s *shelf) signSimple(t *testing.T, repo, digest, name, user string, i int) {
	t.Helper()
	path, _, _ := strings.Cut(repo, ":")
	dir := filepath.Join(s.lookaside, path+"@"+strings.Replace(digest, ":", "=", 1))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(payload(digest, name, "atomic container signature"), `"optional":null`, `"optional":{"creator":"test","timestamp":1700000000}`, 1)
	s.gpg(t, text, "--local-user", user, "--output", filepath.Join(dir, fmt.Sprintf("signature-%d", i)), "--sign")
}

// attached is a signature as cosign attaches it.
type attached struct {
	payload   []byte
	signature string
}

func signCosign(t *testing.T, digest, name string, k *ecdsa.PrivateKey) attached {
	t.Helper()
	text := []byte(payload(digest, name, "cosign container image signature"))
	h := sha256.Sum256(text)
	sig, err := ecdsa.SignASN1(rand.Reader, k, h[:])
	if err != nil {
		t.Fatal(err)
	}
	return attached{text, base64.StdEncoding.EncodeToString(sig)}
}

func (s *shelf) attach(t *testing.T, repo, digest string, sigs []attached) {
	t.Helper()
	path, _, _ := strings.Cut(repo, ":")
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: s.putBlob(t, path, []byte("{}"), v1.MediaTypeImageConfig)}
	m.SchemaVersion = 2
	for _, a := range sigs {
		d := s.putBlob(t, path, a.payload, "application/vnd.dev.cosign.simplesigning.v1+json")
		d.Annotations = map[string]string{"dev.cosignproject.cosign/signature": a.signature}
		m.Layers = append(m.Layers, d)
	}
	s.putManifest(t, path, strings.Replace(digest, ":", "-", 1)+".sig", m)
}

// push stores a small image and returns its digest.
func (s *shelf) push(t *testing.T, name, content string) string {
	t.Helper()
	path, tag, _ := strings.Cut(name, ":")
	m := v1.Manifest{
		MediaType: v1.MediaTypeImageManifest,
		Config:    s.putBlob(t, path, []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["`+digestOf([]byte(content))+`"]}}`), v1.MediaTypeImageConfig),
		Layers:    []v1.Descriptor{s.putBlob(t, path, []byte(content), v1.MediaTypeImageLayer)},
	}
	m.SchemaVersion = 2
	return s.putManifest(t, path, tag, m)
}

func (s *shelf) putManifest(t *testing.T, path, tag string, m v1.Manifest) string {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, "/v2/"+path+"/manifests/"+tag, b, m.MediaType)
	return digestOf(b)
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func publicPEM(t *testing.T, k *ecdsa.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
