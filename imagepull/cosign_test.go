package imagepull

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/internal/testenv"
)

// A signer is cosign with a key, beside a registry.
type signer struct {
	*shelf
	path string
}

// newSigner starts a registry. tests/setup builds cosign into .test/bin.
func newSigner(t *testing.T) *signer {
	t.Helper()
	s := &signer{&shelf{server: startRegistry(t), dir: t.TempDir()}, testenv.Tool("cosign")}
	if built := filepath.Join(testenv.Root(t), ".test/bin/cosign"); s.path == "" {
		s.path = built
	}
	if _, err := os.Stat(s.path); err != nil {
		testenv.Missing(t, "cosign", "not installed: see tests/setup")
	}
	write(t, filepath.Join(s.dir, "ca.crt"), s.ca)
	s.cosign(t, "generate-key-pair")
	return s
}

func (s *signer) cosign(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.path, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=", "COSIGN_YES=true", "HOME="+s.dir, "TUF_ROOT="+filepath.Join(s.dir, "tuf"), "SSL_CERT_FILE="+filepath.Join(s.dir, "ca.crt"))
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cosign %s: %v\n%s", args[0], err, b)
	}
}

func (s *signer) sign(t *testing.T, ref string, bundle bool) {
	t.Helper()
	s.cosign(t, "sign", "--key", "cosign.key", "--registry-cacert", "ca.crt", "--use-signing-config=false", "--tlog-upload=false",
		fmt.Sprintf("--new-bundle-format=%v", bundle), ref)
}

// explain judges an image by a policy that trusts cosign's key, for a scope.
func (s *signer) explain(t *testing.T, image, scope, identity string) (*Image, error) {
	t.Helper()
	n, err := policy.ParseName(image)
	if err != nil {
		t.Fatal(err)
	}
	rule := fmt.Sprintf(`{"type":"sigstoreSigned","keyPath":%q%s}`, filepath.Join(s.dir, "cosign.pub"), identity)
	text := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{%q:{%q:[%s]}}}`, n.Transport, scope, rule)
	p := &Puller{
		Registry: &registry.Client{Roots: s.roots}, Platform: v1.Platform{OS: "linux", Architecture: "amd64"},
		Trust: policy.Trust{ReadFile: os.ReadFile, Now: time.Now()},
	}
	if p.Policy, err = policy.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	im, err := p.Explain(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return im, im.Err()
}

const byRepository = `,"signedIdentity":{"type":"matchRepository"}`

// What cosign signs verifies here, in its old form and as a bundle; a manifest that
// it did not sign does not, nor a signature that was changed.
func TestCosignSigns(t *testing.T) {
	s := newSigner(t)
	for _, bundle := range []bool{false, true} {
		t.Run(fmt.Sprintf("bundle %v", bundle), func(t *testing.T) {
			repo := fmt.Sprintf("team/app%v", bundle)
			digest, other := s.push(t, repo+":1", "one"), s.push(t, repo+":2", "two")
			at := s.host + "/" + repo
			s.sign(t, at+"@"+digest, bundle)
			for _, tt := range []struct {
				name, image, scope, identity string
				why                          string // "": accepted
			}{
				{"by digest", at + "@" + digest, at, byRepository, ""},
				{"by tag", at + ":1", at, byRepository, ""},
				{"registry's rule", at + ":1", s.host, map[bool]string{false: byRepository}[bundle], ""},
				{"another manifest", at + "@" + other, at, byRepository, "no sigstore signature"},
				{"exactly a name", at + ":1", at, `,"signedIdentity":{"type":"exactReference","dockerReference":"` + s.host + `/elsewhere:1"}`, "signature"},
			} {
				t.Run(tt.name, func(t *testing.T) { s.check(t, "docker://"+tt.image, tt.scope, tt.identity, tt.why) })
			}
		})
	}
	t.Run("changed", func(t *testing.T) { changedBundle(t, s) })
	t.Run("changed, old form", func(t *testing.T) { changedAttachment(t, s) })
}

// changedAttachment puts cosign's signature beside another image, and changes it.
func changedAttachment(t *testing.T, s *signer) {
	signed, other := s.push(t, "old:1", "signed"), s.push(t, "old:2", "other")
	s.sign(t, s.host+"/old@"+signed, false)
	src := &remote{&registry.Client{Roots: s.roots}, mustParse(t, "docker://"+s.host+"/old@"+signed).Ref}
	sigs, err := cosigned(t.Context(), src, signed)
	if err != nil || len(sigs) != 1 {
		t.Fatal(len(sigs), err)
	}
	good := attached{payload: sigs[0].Payload, signature: sigs[0].Annotations["dev.cosignproject.cosign/signature"]}
	renamed := good
	renamed.payload = bytes.ReplaceAll(good.payload, []byte(signed), []byte(other))
	for _, tt := range []struct {
		sig attached
		why string
	}{{good, "signature is for manifest " + signed}, {renamed, "no trusted key"}} {
		s.attach(t, "old", other, []attached{tt.sig})
		s.check(t, "docker://"+s.host+"/old:2", s.host, byRepository, tt.why)
	}
}

func (s *signer) check(t *testing.T, image, scope, identity, why string) {
	t.Helper()
	im, err := s.explain(t, image, scope, identity)
	switch {
	case why == "" && (err != nil || im.Kind != PlainSigned):
		t.Errorf("%s: %s, %v", image, im.Kind, err)
	case why != "" && (err == nil || !strings.Contains(err.Error(), why)):
		t.Errorf("%s: got %v, want %q", image, err, why)
	}
}

// changedBundle puts bundles beside an image that are those of another image, with
// another subject, or with another payload.
func changedBundle(t *testing.T, s *signer) {
	signed := s.push(t, "from:1", "signed")
	s.sign(t, s.host+"/from@"+signed, true)
	src := &remote{&registry.Client{Roots: s.roots}, mustParse(t, "docker://"+s.host+"/from@"+signed).Ref}
	sigs, err := bundles(t.Context(), src, signed)
	if err != nil || len(sigs) != 1 {
		t.Fatal(len(sigs), err)
	}
	for i, tt := range []struct {
		name   string
		change func(bundle []byte, digest string) []byte
		why    string
	}{
		{"of another manifest", func(b []byte, _ string) []byte { return b }, "signature is for manifest " + signed},
		{"with another payload", func(b []byte, d string) []byte { return replaceSubject(t, b, signed, d) }, "no trusted key"},
		{"with another signature", func(b []byte, _ string) []byte { return flipSignature(t, b) }, "no trusted key"},
		{"that is none", func([]byte, string) []byte { return []byte("{}") }, "media type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			repo := fmt.Sprintf("to%d", i)
			digest := s.push(t, repo+":1", repo)
			s.refer(t, repo, digest, tt.change(sigs[0].Payload, digest))
			s.check(t, "docker://"+s.host+"/"+repo+":1", s.host+"/"+repo, "", tt.why)
		})
	}
	t.Run("moved with its image", func(t *testing.T) { // its key may sign for the scope
		s.push(t, "team/copy:1", "signed")
		s.refer(t, "team/copy", signed, sigs[0].Payload)
		s.check(t, "docker://"+s.host+"/team/copy:1", s.host+"/team", "", "")
		s.check(t, "docker://"+s.host+"/team/copy:1", s.host+"/team", byRepository, "names no image")
		s.check(t, "docker://"+s.host+"/team/copy:1", "", "", "names no image")
	})
}

func mustParse(t *testing.T, name string) policy.Name {
	t.Helper()
	n, err := policy.ParseName(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// refer stores a bundle as a referrer, by the fallback tag.
func (s *shelf) refer(t *testing.T, repo, digest string, bundle []byte) {
	t.Helper()
	m := v1.Manifest{
		MediaType: v1.MediaTypeImageManifest, ArtifactType: policy.BundleMIME,
		Config:  s.putBlob(t, repo, []byte("{}"), v1.MediaTypeEmptyJSON),
		Layers:  []v1.Descriptor{s.putBlob(t, repo, bundle, policy.BundleMIME)},
		Subject: &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: godigest.Digest(digest), Size: 2},
	}
	m.SchemaVersion = 2
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, "/v2/"+repo+"/manifests/"+digestOf(b), b, m.MediaType)
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{
		MediaType: m.MediaType, ArtifactType: policy.BundleMIME, Digest: godigest.FromBytes(b), Size: int64(len(b)),
	}}}
	index.SchemaVersion = 2
	if b, err = json.Marshal(index); err != nil {
		t.Fatal(err)
	}
	s.put(t, "/v2/"+repo+"/manifests/"+strings.Replace(digest, ":", "-", 1), b, index.MediaType)
}

type object = map[string]any

// changeEnvelope rewrites the envelope of a bundle.
func changeEnvelope(t *testing.T, bundle []byte, change func(envelope object)) []byte {
	t.Helper()
	var v object
	if err := json.Unmarshal(bundle, &v); err != nil {
		t.Fatal(err)
	}
	change(v["dsseEnvelope"].(object))
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func replaceSubject(t *testing.T, bundle []byte, from, to string) []byte {
	return changeEnvelope(t, bundle, func(e object) {
		payload := unbase64(t, e["payload"].(string))
		e["payload"] = bytes.ReplaceAll(payload, []byte(from[7:]), []byte(to[7:]))
	})
}

func flipSignature(t *testing.T, bundle []byte) []byte {
	return changeEnvelope(t, bundle, func(e object) {
		sig := e["signatures"].([]any)[0].(object)
		b := unbase64(t, sig["sig"].(string))
		b[len(b)-1] ^= 1
		sig["sig"] = b
	})
}

// A layout that cosign or skopeo wrote has its signatures in it.
func TestCosignSaves(t *testing.T) {
	s := newSigner(t)
	digest := s.push(t, "app:1", "saved")
	s.sign(t, s.host+"/app@"+digest, false)
	s.cosign(t, "save", "--dir", "saved", "--registry-cacert", "ca.crt", s.host+"/app:1")
	dir := filepath.Join(s.dir, "saved")
	identity := fmt.Sprintf(`,"signedIdentity":{"type":"exactRepository","dockerRepository":"%s/app"}`, s.host)
	s.check(t, "oci:"+dir, dir, identity, "")
	s.check(t, "oci:"+dir+"@"+digest, dir, identity, "")
	s.check(t, "oci:"+dir, dir, "", "no registry's name")
	file := filepath.Join(s.dir, "saved.tar")
	if b, err := exec.CommandContext(t.Context(), "tar", "-cf", file, "-C", dir, ".").CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, b)
	}
	s.check(t, "oci-archive:"+file, file, identity, "")
}

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
