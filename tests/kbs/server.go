package kbs

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/plinth-os/plinth/tests/registry"
)

// A Server has a broker behind TLS until the test ends.
type Server struct {
	Port string
	CA   []byte // PEM
}

// Serve lets b answer at a port of this machine, with a certificate of its own
// authority.
func Serve(t testing.TB, b *Broker) *Server {
	t.Helper()
	key, cert := registry.Certificate(t)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(b)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // a client that gives up is no news
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return &Server{Port: strconv.Itoa(s.Listener.Addr().(*net.TCPAddr).Port), CA: cert}
}

// URL is where the broker is for programs of this machine.
func (s *Server) URL() string { return "https://127.0.0.1:" + s.Port }

// Guest is where it is for a guest.
func (s *Server) Guest() string { return "https://" + registry.GuestHost + ":" + s.Port }

// Roots have the server's certificate.
func (s *Server) Roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA)
	return roots
}

// Client trusts it.
func (s *Server) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Roots()}}}
}
