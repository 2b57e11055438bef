// Package registry starts Debian's docker-registry for tests: over TLS, with a
// certificate of its own authority, and for those who know a password.
package registry

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/plinth-os/plinth/internal/testenv"
)

// GuestHost is the address by which guests reach the host under QEMU's user
// networking; the certificate has it besides 127.0.0.1.
const GuestHost = "10.0.2.2"

// A Server is one that runs until the test ends.
type Server struct {
	Port           string
	User, Password string // "": everybody may pull and push
	CA             []byte // PEM
	Data           string // directory where it keeps what is pushed
	dir            string
}

// Start starts one that wants a password.
func Start(t testing.TB) *Server {
	t.Helper()
	return start(t, &Server{User: "user", Password: rand.Text()})
}

// StartOpen starts one that wants none.
func StartOpen(t testing.TB) *Server {
	t.Helper()
	return start(t, &Server{})
}

func start(t testing.TB, s *Server) *Server {
	t.Helper()
	testenv.Need(t, "docker-registry")
	dir, err := os.MkdirTemp("", "plinth-registry-") // a test's own folder may have characters that a configuration cannot
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.Data, s.dir = filepath.Join(dir, "data"), dir
	for range 5 { // another program may take the port that was free
		if err = s.start(t); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

// start starts the registry at a port that is free now.
func (s *Server) start(t testing.TB) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	s.configure(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), testenv.Tool("docker-registry"), "serve", filepath.Join(s.dir, "config.yml"))
	var log bytes.Buffer // to be read when the program is over
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed with the context
		close(over)
	}()
	if err := s.wait(over); err != nil {
		_ = cmd.Process.Kill()
		<-over
		return fmt.Errorf("docker-registry: %w\n%s", err, &log)
	}
	t.Cleanup(func() { <-over })
	return nil
}

// Host is where the registry is for programs of this machine.
func (s *Server) Host() string { return "127.0.0.1:" + s.Port }

// Guest is where it is for a guest.
func (s *Server) Guest() string { return GuestHost + ":" + s.Port }

// AuthFile is an auth.json with the password, if there is one, for both names.
func (s *Server) AuthFile() []byte {
	if s.User == "" {
		return []byte("{}")
	}
	auth := map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(s.User + ":" + s.Password))}
	b, _ := json.Marshal(map[string]any{"auths": map[string]any{s.Host(): auth, s.Guest(): auth}}) // strings alone
	return b
}

// Roots have the registry's certificate.
func (s *Server) Roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA)
	return roots
}

// Client trusts it.
func (s *Server) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Roots()}}, Timeout: 20 * time.Second}
}

// CertDir is a directory as skopeo's --dest-cert-dir wants it.
func (s *Server) CertDir() string { return filepath.Join(s.dir, "certs") }

// Push copies what skopeo calls source ("oci:/dir:name") to a repository and tag.
func (s *Server) Push(t testing.TB, source, to string) {
	t.Helper()
	testenv.Need(t, "skopeo")
	args := []string{"copy", "--insecure-policy", "--quiet", "--dest-cert-dir", s.CertDir()}
	if s.User != "" {
		args = append(args, "--dest-creds", s.User+":"+s.Password)
	}
	args = append(args, source, "docker://"+s.Host()+"/"+to)
	if out, err := exec.CommandContext(t.Context(), testenv.Tool("skopeo"), args...).CombinedOutput(); err != nil {
		t.Fatalf("skopeo copy %s: %v\n%s", source, err, out)
	}
}

func (s *Server) configure(t testing.TB) {
	t.Helper()
	key, cert := Certificate(t)
	s.CA = cert
	hash, err := bcrypt.GenerateFromPassword([]byte(s.Password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	auth := ""
	if s.User != "" {
		auth = "auth: {htpasswd: {realm: test, path: DIR/htpasswd}}\n"
	}
	for name, b := range map[string][]byte{
		"tls.key": key, "tls.crt": cert, "certs/ca.crt": cert,
		"htpasswd": fmt.Appendf(nil, "%s:%s\n", s.User, hash),
		"config.yml": []byte(strings.NewReplacer("DIR", s.dir, "ADDR", s.Host()).Replace(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: DIR/data}}
http: {addr: "ADDR", tls: {certificate: DIR/tls.crt, key: DIR/tls.key}}
` + auth)),
	} {
		path := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// wait waits until the registry answers, or is over.
func (s *Server) wait(over <-chan struct{}) error {
	client := s.Client()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get("https://" + s.Host() + "/v2/")
		if err == nil {
			return resp.Body.Close()
		}
		select {
		case <-over:
			return err
		default:
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// Certificate makes a key and a certificate that is its own authority, for a server
// that this machine and its guests reach.
func Certificate(t testing.TB) (key, cert []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a server for tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(GuestHost)},
		IsCA:        true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
