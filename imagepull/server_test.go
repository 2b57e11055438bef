package imagepull

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/internal/testenv"
)

// A server is Debian's docker-registry, with a certificate of its own authority.
type server struct {
	host   string // 127.0.0.1:port
	ca     []byte // PEM
	roots  *x509.CertPool
	client *http.Client
}

func startRegistry(t *testing.T) *server {
	t.Helper()
	testenv.Need(t, "docker-registry")
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{host: l.Addr().String(), roots: x509.NewCertPool()}
	key, cert := certificate(t)
	s.ca = cert
	s.roots.AppendCertsFromPEM(cert)
	write(t, filepath.Join(dir, "tls.key"), key)
	write(t, filepath.Join(dir, "tls.crt"), cert)
	write(t, filepath.Join(dir, "config.yml"), fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %[1]s/data}}
http: {addr: %[2]q, tls: {certificate: %[1]s/tls.crt, key: %[1]s/tls.key}}
`, dir, s.host))
	s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}}, Timeout: 20 * time.Second}
	if err := l.Close(); err != nil { // the registry takes the port that was free
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), testenv.Tool("docker-registry"), "serve", filepath.Join(dir, "config.yml"))
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // it was killed with the context
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := s.client.Get("https://" + s.host + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry: %v\n%s", err, log.String())
		}
	}
}

// certificate makes a key and a certificate for this host that is its own authority.
func certificate(t *testing.T) (key, cert []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// putBlob uploads a blob: Distribution Specification, "POST then PUT".
func (s *server) putBlob(t *testing.T, repo string, b []byte, mediaType string) v1.Descriptor {
	t.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	resp := s.do(t, http.MethodPost, "https://"+s.host+"/v2/"+repo+"/blobs/uploads/", nil, "", http.StatusAccepted)
	s.do(t, http.MethodPut, resp.Header.Get("Location")+"&digest="+d.Digest.String(), b, "application/octet-stream", http.StatusCreated)
	return d
}

func (s *server) put(t *testing.T, path string, b []byte, mediaType string) {
	t.Helper()
	s.do(t, http.MethodPut, "https://"+s.host+path, b, mediaType, http.StatusCreated)
}

func (s *server) do(t *testing.T, method, url string, b []byte, mediaType string, want int) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body) // for the message
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	return resp
}
