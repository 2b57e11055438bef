package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParsePublishedPolicy(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(fixtures(t), "policy.json"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.Transports["docker"]); n != 14 {
		t.Errorf("%d scopes", n)
	}
	// Key types that nobody implements parse, and reject.
	n, err := ParseName("docker://example.com/hardened-x509:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Judge(Candidate{Name: n}, Trust{}); err == nil || !strings.Contains(err.Error(), "X509Certificates: not supported") {
		t.Errorf("got %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	signed := func(s string) string { return `{"default":[` + s + `]}` }
	sig := func(s string) string { return signed(`{"type":"sigstoreSigned",` + s + `}`) }
	const ca, id = `"caPath":"/ca"`, `"oidcIssuer":"https://i.example.com","subjectEmail":"a@example.com"`
	for name, tt := range map[string]struct{ text, want string }{
		"no default":             {`{}`, "default: no requirement"},
		"empty default":          {`{"default":[]}`, "default: no requirement"},
		"empty scope":            {`{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}`, `transports.docker."a": no requirement`},
		"null":                   {`{"default":null}`, "null"},
		"null transports":        {`{"default":[{"type":"reject"}],"transports":null}`, "transports: null"},
		"unknown key":            {`{"default":[{"type":"reject"}],"extra":{}}`, "extra: unknown key"},
		"another case":           {`{"Default":[{"type":"reject"}]}`, "Default: unknown key"},
		"twice":                  {`{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}`, "duplicate key"},
		"behind it":              {signed(`{"type":"reject"}`) + "x", "data after"},
		"type":                   {signed(`{"type":"accept"}`), `type "accept"`},
		"no type":                {signed(`{}`), `type ""`},
		"key of another type":    {signed(`{"type":"reject","keyPath":"/k"}`), "keyPath: not a key of type"},
		"key type":               {signed(`{"type":"signedBy","keyType":"PGP","keyPath":"/k"}`), `keyType "PGP"`},
		"no key":                 {signed(`{"type":"signedBy","keyType":"GPGKeys"}`), "0 of keyPath"},
		"two keys":               {signed(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","keyData":"aGk="}`), "2 of keyPath"},
		"no keys":                {signed(`{"type":"signedBy","keyType":"GPGKeys","keyPaths":[]}`), "0 of keyPath"},
		"base":                   {signed(`{"type":"signedBaseLayer"}`), "no baseLayerIdentity"},
		"key and fulcio":         {sig(`"keyPath":"/k","fulcio":{` + ca + `,` + id + `},"rekorPublicKeyPath":"/r"`), "2 of keyPath"},
		"fulcio and pki":         {sig(`"fulcio":{` + ca + `,` + id + `},"pki":{"caRootsPath":"/c","subjectEmail":"a"},"rekorPublicKeyPath":"/r"`), "2 of keyPath"},
		"pki and rekor":          {sig(`"pki":{"caRootsPath":"/c","subjectEmail":"a"},"rekorPublicKeyPath":"/r"`), "pki with a rekor"},
		"fulcio without a rekor": {sig(`"fulcio":{` + ca + `,` + id + `}`), "fulcio without a rekor"},
		"two logs":               {sig(`"keyPath":"/k","rekorPublicKeyPath":"/r","rekorPublicKeyData":"aGk="`), "2 of rekorPublicKeyPath"},
		"fulcio, no ca":          {sig(`"fulcio":{` + id + `},"rekorPublicKeyPath":"/r"`), "one of caPath"},
		"fulcio, no issuer":      {sig(`"fulcio":{` + ca + `,"subjectEmail":"a"},"rekorPublicKeyPath":"/r"`), "no oidcIssuer"},
		"fulcio, no subject":     {sig(`"fulcio":{` + ca + `,"oidcIssuer":"a"},"rekorPublicKeyPath":"/r"`), "no subjectEmail"},
		"pki, no root":           {sig(`"pki":{"subjectEmail":"a"}`), "one of caRootsPath"},
		"pki, anybody":           {sig(`"pki":{"caRootsPath":"/c"}`), "want subjectEmail"},
		"pki, intermediates":     {sig(`"pki":{"caRootsPath":"/c","caIntermediatesPath":"/i","caIntermediatesData":"aGk=","subjectEmail":"a"}`), "at most one of caIntermediates"},
		"base64":                 {sig(`"keyData":"not base64"`), "illegal base64"},
		"identity":               {sig(`"keyPath":"/k","signedIdentity":{"type":"matchAll"}`), `"matchAll": unknown`},
		"identity's key":         {sig(`"keyPath":"/k","signedIdentity":{"type":"matchExact","prefix":"a"}`), "prefix: not a key of type"},
		"reference, no tag":      {sig(`"keyPath":"/k","signedIdentity":{"type":"exactReference","dockerReference":"example.com/a"}`), "want a tag"},
		"prefix":                 {sig(`"keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a/","signedPrefix":"b"}`), `prefix "a/"`},
		"scope of a directory":   {`{"default":[{"type":"reject"}],"transports":{"oci":{"a/b":[{"type":"reject"}]}}}`, "absolute path"},
		"scope of all":           {`{"default":[{"type":"reject"}],"transports":{"oci-archive":{"/":[{"type":"reject"}]}}}`, "absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Parse(make([]byte, maxPolicy+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a large file: %v", err)
	}
}

// The scopes of containers/image, signature/policy_eval_test.go.
func TestScope(t *testing.T) {
	p := &Policy{Default: []Requirement{{Type: Reject}}, Transports: map[string]map[string][]Requirement{
		Docker: {},
		OCI:    {"/images": nil, "/images/app": nil, "/images/app:1": nil},
	}}
	for _, s := range []string{
		"", "unmatched", "deep.com", "deep.com/n1", "deep.com/n1/n2", "deep.com/n1/n2/n3", "deep.com/n1/n2/n3/repo", "deep.com/n1/n2/n3/repo:tag2",
		"*.deep.com", "*.very.deep.com", "port.com:5000/app", "*.ports.com",
	} {
		p.Transports[Docker][s] = nil
	}
	const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for image, want := range map[string]string{
		"docker://deep.com/n1/n2/n3/repo:tag2":          "deep.com/n1/n2/n3/repo:tag2",
		"docker://deep.com/n1/n2/n3/repo:nottag2":       "deep.com/n1/n2/n3/repo",
		"docker://deep.com/n1/n2/n3/repo" + digest:      "deep.com/n1/n2/n3/repo",
		"docker://deep.com/n1/n2/n3/repo:tag2" + digest: "deep.com/n1/n2/n3/repo", // pulled by the digest
		"docker://deep.com/n1/n2/n3/notrepo:tag2":       "deep.com/n1/n2/n3",
		"docker://deep.com/n1/n2/notn3/repo:tag2":       "deep.com/n1/n2",
		"docker://deep.com/n1/notn2/n3/repo:tag2":       "deep.com/n1",
		"docker://deep.com/notn1/n2/n3/repo:tag2":       "deep.com",
		"docker://very.deep.com/n1/n2/n3/repo:tag2":     "*.deep.com",
		"docker://not.very.deep.com/n1/n2/n3/repo:tag2": "*.very.deep.com",
		"docker://notdeep.com/n1/n2/n3/repo:tag2":       "",
		"docker://port.com:5000/app:1":                  "port.com:5000/app",
		"docker://a.ports.com:5000/app:1":               "*.ports.com",
		"oci:/images/app:1":                             "/images/app:1",
		"oci:/images/app:2":                             "/images/app",
		"oci:/images/other":                             "/images",
	} {
		n, err := ParseName(image)
		if err != nil {
			t.Fatal(err)
		}
		if _, transport, got := p.Scope(n); got != want || transport != n.Transport {
			t.Errorf("%s: got %s %q, want %q", image, transport, got, want)
		}
	}
	for _, image := range []string{"oci:/elsewhere", "oci-archive:/images/app"} {
		n, err := ParseName(image)
		if err != nil {
			t.Fatal(err)
		}
		if list, transport, _ := p.Scope(n); transport != "" || len(list) != 1 {
			t.Errorf("%s: got %s, want the default", image, transport)
		}
	}
}

func TestIdentity(t *testing.T) {
	const a, b = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "@sha256:ffffffff89abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	remap := &Identity{Type: RemapIdentity, Prefix: "mirror.example.com/vendor", SignedPrefix: "vendor.example.com"}
	for _, tt := range []struct {
		identity     *Identity
		image, named string
		want         bool
	}{
		{nil, "h.example.com/a:1", "h.example.com/a:1", true},
		{nil, "h.example.com/a:1", "h.example.com/a:2", false},
		{nil, "h.example.com/a:1", "h.example.com/a", false},
		{nil, "h.example.com/a:1", "h.example.com/a" + a, false},
		{nil, "h.example.com/a" + a, "h.example.com/a:2", true},
		{nil, "h.example.com/a" + a, "h.example.com/a" + b, true},
		{nil, "h.example.com/a" + a, "h.example.com/b:2", false},
		{nil, "h.example.com/a" + a, "h.example.com/a", false},
		{nil, "h.example.com/a:1" + a, "h.example.com/a:1", true},
		{nil, "h.example.com/a:1" + a, "h.example.com/a:2", false},
		{&Identity{Type: MatchRepository}, "h.example.com/a" + a, "h.example.com/a", true},
		{nil, "busybox:1", "docker.io/library/busybox:1", true},
		{nil, "h.example.com/a:1", "Not A Name", false},
		{&Identity{Type: MatchExact}, "h.example.com/a" + a, "h.example.com/a:2", false},
		{&Identity{Type: MatchExact}, "h.example.com/a" + a, "h.example.com/a" + a, true},
		{&Identity{Type: MatchRepository}, "h.example.com/a:1", "h.example.com/a:2", true},
		{&Identity{Type: MatchRepository}, "h.example.com/a:1", "h.example.com/ab:1", false},
		{&Identity{Type: MatchReference, Reference: "h.example.com/a:1"}, "x.example.com/b:2", "h.example.com/a:1", true},
		{&Identity{Type: MatchReference, Reference: "h.example.com/a:1"}, "x.example.com/b:2", "h.example.com/a:2", false},
		{&Identity{Type: MatchOneRepository, Repository: "h.example.com/a"}, "x.example.com/b:2", "h.example.com/a:9", true},
		{&Identity{Type: MatchOneRepository, Repository: "h.example.com/a"}, "x.example.com/b:2", "x.example.com/b:2", false},
		{remap, "mirror.example.com/vendor/a:1", "vendor.example.com/a:1", true},
		{remap, "mirror.example.com/vendor/a:1", "mirror.example.com/vendor/a:1", false},
		{remap, "mirror.example.com/vendors/a:1", "vendor.example.coms/a:1", false},
		{remap, "mirror.example.com/vendors/a:1", "mirror.example.com/vendors/a:1", true},
	} {
		n, err := ParseName("docker://" + tt.image)
		if err != nil {
			t.Fatal(err)
		}
		if err := tt.identity.matches(n, tt.named); (err == nil) != tt.want {
			t.Errorf("%+v: %s, signed as %s: %v", tt.identity, tt.image, tt.named, err)
		}
	}
	n, _ := ParseName("oci:/dir")
	if err := (*Identity)(nil).matches(n, "h.example.com/a:1"); err == nil {
		t.Error("an image without a registry's name was matched")
	}
}

func TestNoPolicyRejects(t *testing.T) {
	n, _ := ParseName("docker://busybox")
	for _, p := range []*Policy{nil, {}} {
		v, err := p.Judge(Candidate{Name: n}, Trust{})
		if err != nil || v.Accepted || v.Err() == nil {
			t.Errorf("got %+v, %v", v, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"*.example.com":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}}}`))
	f.Add([]byte(`{"default":[{"type":"sigstoreSigned","pki":{"caRootsData":"aGk=","subjectEmail":"a"},"signedIdentity":{"type":"remapIdentity","prefix":"a","signedPrefix":"b"}}]}`))
	n, err := ParseName("docker://example.com/app:1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		if list, _, _ := p.Scope(n); len(list) == 0 {
			t.Error("no requirement for an image")
		}
	})
}
