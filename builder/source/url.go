package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/plinth-os/plinth/internal/cas"
)

// maxPinned bounds what a profile names by its digest alone, bytes.
const maxPinned = 16 << 30

// FetchURL brings the file at an address into the store. It must have the digest,
// and a file that the store has by it is asked of nobody.
func (c *Client) FetchURL(ctx context.Context, url string, digest cas.Digest) (cas.Ref, error) {
	ref, err := c.fetchPinned(ctx, redacted(url), url, digest)
	return ref, pinned(err)
}

// fetchPinned is fetchBlob for a file whose size the server says.
func (c *Client) fetchPinned(ctx context.Context, what, url string, digest cas.Digest) (cas.Ref, error) {
	if ref, ok := c.Store.Find(digest); ok {
		return ref, nil
	}
	if !c.anyType { // the digest tells whether it is what was meant, not the type
		inner := *c
		inner.anyType = true
		return inner.fetchPinned(ctx, what, url, digest)
	}
	want := cas.Ref{Digest: digest, Size: -1}
	urls := []string{url}
	err := c.tryMirrors(ctx, what, urls, func(ctx context.Context, url string) error {
		r, err := c.get(ctx, url, 0)
		if err == nil {
			want.Size = r.size
			r.close()
		}
		return err
	})
	switch {
	case err != nil:
		return cas.Ref{}, err
	case want.Size > maxPinned:
		return cas.Ref{}, tooLong(what)
	case want.Size >= 0:
		return want, c.fetchBlob(ctx, what, urls, want)
	}
	var got cas.Ref
	err = c.tryMirrors(ctx, what, urls, func(ctx context.Context, url string) error {
		got, err = c.stream(ctx, what, url, digest)
		return err
	})
	return got, err
}

// stream fetches a file of unknown size in one piece.
func (c *Client) stream(ctx context.Context, what, url string, digest cas.Digest) (cas.Ref, error) {
	r, err := c.get(ctx, url, 0)
	if err != nil {
		return cas.Ref{}, err
	}
	defer r.close()
	limited := &limitedReader{r: r.body, left: maxPinned, err: tooLong(what)}
	ref, err := c.Store.PutReader(ctx, newVerifier(limited, cas.Ref{Digest: digest, Size: -1}, what))
	if errors.As(err, new(*VerifyError)) {
		err = useless{err}
	}
	return ref, err
}

func tooLong(what string) error {
	return &VerifyError{What: what, Problem: fmt.Sprintf("more than %d bytes", int64(maxPinned))}
}

// limitedReader fails behind a number of bytes.
type limitedReader struct {
	r    io.Reader
	left int64
	err  error
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return n, l.err
	}
	return n, err
}

// PutFile brings a file of this machine into the store. It must have the digest;
// nil stands for any.
func PutFile(ctx context.Context, st *cas.Store, path string, digest *cas.Digest) (cas.Ref, error) {
	f, err := os.Open(path)
	if err != nil {
		return cas.Ref{}, err
	}
	defer f.Close() // read only: nothing is lost
	fi, err := f.Stat()
	if err != nil {
		return cas.Ref{}, err
	}
	if !fi.Mode().IsRegular() {
		return cas.Ref{}, fmt.Errorf("%s: not a regular file", path)
	}
	if digest == nil {
		return st.PutReader(ctx, f)
	}
	return putPinned(ctx, st, f, path, *digest)
}

// putPinned stores what a profile names by its digest.
func putPinned(ctx context.Context, st *cas.Store, r io.Reader, what string, digest cas.Digest) (cas.Ref, error) {
	ref, err := st.PutReader(ctx, newVerifier(r, cas.Ref{Digest: digest, Size: -1}, what))
	return ref, pinned(err)
}

// pinned marks an error as one over an address or a digest of the profile.
func pinned(err error) error {
	var network *NetworkError
	if errors.As(err, &network) {
		network.Pinned = true
	}
	var verify *VerifyError
	if errors.As(err, &verify) {
		verify.Pinned = true
	}
	return err
}
