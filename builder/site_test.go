package builder

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// today judges nothing here: packages from a folder carry no dates.
var today = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// A site is a folder with a profile and packages, and a workplace there.
type site struct {
	*Workplace
	t       *testing.T
	dir     string
	notices []string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	st, err := cas.Open(filepath.Join(s.dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	if err := synthetic.Write(filepath.Join(s.dir, "debs")); err != nil {
		t.Fatal(err)
	}
	s.Workplace = &Workplace{
		Store: st, Client: &source.Client{Store: st}, LockPath: filepath.Join(s.dir, "tiny.lock"), Now: today,
		Notice: func(format string, args ...any) { s.notices = append(s.notices, fmt.Sprintf(format, args...)) },
	}
	return s
}

// write makes a file beside the profile and returns its path.
func (s *site) write(name string, b []byte) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// profile reads the synthetic profile with text behind it and values set.
func (s *site) profile(text string, set ...string) *profiles.Profile {
	s.t.Helper()
	path := s.write("tiny.toml", []byte(synthetic.Profile+text))
	p, err := profiles.Load(profiles.Host, path, profiles.Options{Set: set})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// spec prepares a build with a guest of two short programs.
func (s *site) spec(p *profiles.Profile) *Spec {
	s.t.Helper()
	var g Guest
	var err error
	if g.Agent, err = s.Store.Put([]byte("agent")); err != nil {
		s.t.Fatal(err)
	}
	if g.Shell, err = s.Store.Put([]byte("shell")); err != nil {
		s.t.Fatal(err)
	}
	spec, err := s.Spec(context.Background(), p, g)
	if err != nil {
		s.t.Fatal(err)
	}
	return spec
}

// run builds p and returns the outputs by step.
func (s *site) run(p *profiles.Profile, o Options) (map[string]Outputs, error) {
	s.t.Helper()
	plan, err := NewPlan(s.spec(p))
	if err != nil {
		s.t.Fatal(err)
	}
	o.Store, o.Workplace = s.Store, s.Workplace
	return Run(context.Background(), plan, o)
}

// output returns a step's output.
func (s *site) output(results map[string]Outputs, step, name string) []byte {
	s.t.Helper()
	b, err := s.Store.ReadFile(results[step][name].Digest)
	if err != nil {
		s.t.Fatalf("%s %s: %v", step, name, err)
	}
	return b
}

// keyPair writes NAME.key and NAME.pem.
func (s *site) keyPair(name string) *x509.Certificate {
	s.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: today, NotAfter: today.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	s.write(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert
}

// inStore reports whether a blob of the store contains text.
func (s *site) inStore(text []byte) bool {
	s.t.Helper()
	found := false
	err := filepath.WalkDir(filepath.Join(s.Store.Dir(), "blobs"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, text)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got error %v, want %q", err, text)
	}
}
