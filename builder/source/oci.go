package source

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/ctxio"
)

// blobPath is where an image layout has a blob: OCI Image Layout Specification,
// "Blobs".
func blobPath(digest cas.Digest) string { return "blobs/sha256/" + digest.String() }

// PutLayout brings a blob of an OCI image layout into the store. The layout is a
// directory or a tar archive of one. Nothing of it is believed but the bytes that
// have the digest.
func PutLayout(ctx context.Context, st *cas.Store, layout string, digest cas.Digest) (cas.Ref, error) {
	fi, err := os.Stat(layout)
	if err != nil {
		return cas.Ref{}, err
	}
	if fi.IsDir() {
		file := filepath.Join(layout, filepath.FromSlash(blobPath(digest)))
		ref, err := PutFile(ctx, st, file, &digest)
		if errors.Is(err, os.ErrNotExist) {
			return ref, noBlob(layout, digest)
		}
		return ref, err
	}
	f, err := os.Open(layout)
	if err != nil {
		return cas.Ref{}, err
	}
	defer f.Close() // read only: nothing is lost
	return putFromArchive(ctx, st, f, layout, digest)
}

// putFromArchive looks for the blob in a layout in the form of a tar archive.
func putFromArchive(ctx context.Context, st *cas.Store, r io.Reader, layout string, digest cas.Digest) (cas.Ref, error) {
	t := tar.NewReader(ctxio.Reader(ctx, r))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return cas.Ref{}, noBlob(layout, digest)
		}
		if err != nil {
			return cas.Ref{}, fmt.Errorf("%s: want a directory or a tar archive: %w", layout, err)
		}
		if h.Typeflag == tar.TypeReg && path.Clean(h.Name) == blobPath(digest) {
			// What is sparse can be far longer than the archive.
			what := layout + ": " + blobPath(digest)
			return putPinned(ctx, st, &limitedReader{r: t, left: maxPinned, err: tooLong(what)}, what, digest)
		}
	}
}

func noBlob(layout string, digest cas.Digest) error {
	return &VerifyError{What: layout, Problem: "has no " + blobPath(digest), Pinned: true}
}

// FetchBlob brings a blob of a repository into the store: OCI Distribution
// Specification, "Pulling blobs". The repository is HOST/NAME; credentials are
// those of the user's configuration of docker or podman. Only this machine itself
// is asked over HTTP.
func (c *Client) FetchBlob(ctx context.Context, repository string, digest cas.Digest) (cas.Ref, error) {
	what := repository + "@sha256:" + digest.String()
	if ref, ok := c.Store.Find(digest); ok {
		return ref, nil
	}
	repo, err := name.NewRepository(repository, name.StrictValidation)
	if err != nil {
		return cas.Ref{}, fmt.Errorf("source: %s: %w", repository, err)
	}
	blob := url.URL{Scheme: "https", Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/blobs/sha256:" + digest.String()}
	if loopback(blob.Hostname()) {
		blob.Scheme = "http"
	}
	var login http.RoundTripper
	err = c.tryMirrors(ctx, what, []string{blob.String()}, func(ctx context.Context, _ string) error {
		login, err = c.login(ctx, repo)
		return err
	})
	if err != nil {
		return cas.Ref{}, pinned(err)
	}
	inner := *c
	inner.HTTP = &http.Client{Transport: login}
	ref, err := inner.fetchPinned(ctx, what, blob.String(), digest)
	return ref, pinned(err)
}

// login returns a way to a registry that shows what it asks for: nothing, a
// password, or a token.
func (c *Client) login(ctx context.Context, repo name.Repository) (http.RoundTripper, error) {
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return nil, fmt.Errorf("source: credentials for %s: %w", repo.RegistryStr(), err)
	}
	base := c.http().Transport
	if base == nil {
		base = http.DefaultTransport
	}
	ctx, cancel := context.WithTimeout(ctx, or(c.Stall, defaultStall))
	defer cancel()
	login, err := transport.NewWithContext(ctx, repo.Registry, auth, &safeTransport{base}, []string{repo.Scope(transport.PullScope)})
	var answer *transport.Error
	switch {
	case err == nil:
		return login, nil
	case errors.As(err, &answer) && !answer.Temporary():
		return nil, useless{err}
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, ctx.Err()
	}
	return nil, temporary{error: err}
}

// loopback tells whether a host is this machine.
func loopback(host string) bool { return host == "localhost" || net.ParseIP(host).IsLoopback() }

// A safeTransport asks nobody but this machine without encryption. The library
// would ask hosts with a private address, too, and show them credentials.
type safeTransport struct{ inner http.RoundTripper }

func (s *safeTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !loopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("%s: want https", req.URL.Redacted())
	}
	return s.inner.RoundTrip(req)
}
