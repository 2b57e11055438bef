package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob returns a blob of a repository. Reading goes on where a connection broke,
// and gives EOF only when size and digest are those of the descriptor: a caller
// reads to the end before it believes a byte. Only sha256 is taken.
func (c *Client) Blob(ctx context.Context, ref reference.Named, d v1.Descriptor) (io.ReadCloser, error) {
	want, ok := strings.CutPrefix(d.Digest.String(), "sha256:")
	if sum, err := hex.DecodeString(want); !ok || err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("blob %s: want a digest of sha256", d.Digest)
	}
	if d.Size < 0 {
		return nil, fmt.Errorf("blob %s: size %d", d.Digest, d.Size)
	}
	sources, err := c.Config.Sources(ref) // as for the manifest
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &blob{c: c, ctx: ctx, cancel: cancel, sources: sources, d: d, hash: sha256.New()}
	if err := b.open(); err != nil {
		cancel()
		return nil, err
	}
	return b, nil
}

// A blob is one that is being read.
type blob struct {
	c       *Client
	ctx     context.Context
	cancel  context.CancelFunc
	sources []Source // the first is asked
	d       v1.Descriptor
	hash    hash.Hash

	body  io.ReadCloser
	at    int64 // bytes read
	fails int   // since the last progress
	done  error
}

// open asks for the rest of the blob, of one source after the other.
func (b *blob) open() error {
	var failed []error
	for len(b.sources) > 0 {
		err := b.openFrom(b.sources[0])
		if err == nil {
			return nil
		}
		failed = append(failed, err)
		if b.ctx.Err() != nil {
			break
		}
		b.sources = b.sources[1:]
	}
	return fmt.Errorf("blob %s: %w", b.d.Digest, errors.Join(failed...))
}

func (b *blob) openFrom(s Source) error {
	header := http.Header{}
	if b.at > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.at))
	}
	resp, err := b.c.get(b.ctx, s, "blobs/"+b.d.Digest.String(), header)
	if err != nil {
		return err
	}
	b.body = resp.Body
	if b.at == 0 {
		return nil
	}
	if resp.StatusCode == http.StatusPartialContent {
		if want := fmt.Sprintf("bytes %d-", b.at); !strings.HasPrefix(resp.Header.Get("Content-Range"), want) {
			_ = b.body.Close() // of no use
			return fmt.Errorf("%s: Content-Range %q: want %s", where(resp.Request.URL), resp.Header.Get("Content-Range"), want)
		}
		return nil
	}
	// A registry without ranges sends all of it again.
	if _, err := io.CopyN(io.Discard, b.body, b.at); err != nil {
		return errors.Join(err, b.body.Close())
	}
	return nil
}

func (b *blob) Read(p []byte) (int, error) {
	for b.done == nil {
		n, err := b.body.Read(p)
		b.hash.Write(p[:n])
		if b.at += int64(n); n > 0 {
			b.fails = 0
		}
		switch {
		case b.at > b.d.Size:
			b.done = fmt.Errorf("blob %s: more than %d bytes", b.d.Digest, b.d.Size)
		case b.at == b.d.Size && err == io.EOF:
			b.done = b.verdict()
		case err != nil:
			b.done = b.resume(err)
		}
		if n > 0 {
			return n, nil
		}
		if len(p) == 0 {
			return 0, b.done
		}
	}
	return 0, b.done
}

func (b *blob) verdict() error {
	if got := fmt.Sprintf("sha256:%x", b.hash.Sum(nil)); got != b.d.Digest.String() {
		return &DigestError{"blob " + b.d.Digest.String(), got, b.d.Digest.String()}
	}
	return io.EOF
}

// resume asks for what is missing.
func (b *blob) resume(cause error) error {
	if cause == io.EOF {
		cause = io.ErrUnexpectedEOF
	}
	if err := b.ctx.Err(); err != nil {
		return err
	}
	if b.fails++; b.fails >= b.c.tries() {
		if len(b.sources) > 1 { // another may have the rest
			b.sources, b.fails = b.sources[1:], 0
			return b.open()
		}
		return fmt.Errorf("blob %s: %d of %d bytes: %w", b.d.Digest, b.at, b.d.Size, cause)
	}
	b.c.logf("blob %s: %d of %d bytes: %v; going on from there", b.d.Digest, b.at, b.d.Size, cause)
	_ = b.body.Close() // broken
	if err := b.c.wait(b.ctx, b.fails, cause); err != nil {
		return err
	}
	return b.open()
}

// Close ends the download.
func (b *blob) Close() error {
	b.cancel()
	return b.body.Close()
}

// A patient reader ends a connection that sends nothing for too long.
type patient struct {
	io.ReadCloser
	limit time.Duration
	stop  func() error
}

var errStalled = errors.New("nothing came for too long")

func (p *patient) Read(b []byte) (int, error) {
	t := time.AfterFunc(p.limit, func() { _ = p.stop() }) // the read fails then
	n, err := p.ReadCloser.Read(b)
	if !t.Stop() && err != nil {
		err = errStalled
	}
	return n, err
}
