package imagepull

import (
	"bytes"
	"crypto/x509"
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	testregistry "github.com/plinth-os/plinth/tests/registry"
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
	r := testregistry.StartOpen(t)
	return &server{host: r.Host(), ca: r.CA, roots: r.Roots(), client: r.Client()}
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
