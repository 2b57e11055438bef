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
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob returns a blob of a repository. Reading goes on where a connection broke,
// and gives EOF only when size and digest are those of the descriptor: a caller
// reads to the end before it believes a byte. Only sha256 is taken.
func (c *Client) Blob(ctx context.Context, ref reference.Named, d v1.Descriptor) (io.ReadCloser, error) {
	return c.Resume(ctx, ref, d, nil, 0)
}

// Resume is Blob where the first n bytes are at hand already. They are read from
// have, and hashed with the rest, which alone is asked for.
func (c *Client) Resume(ctx context.Context, ref reference.Named, d v1.Descriptor, have io.Reader, n int64) (io.ReadCloser, error) {
	if err := checkBlob(d); err != nil {
		return nil, err
	}
	if n < 0 || n > d.Size {
		return nil, fmt.Errorf("blob %s: %d bytes at hand: want at most %d", d.Digest, n, d.Size)
	}
	sources, err := c.Config.Sources(ref) // as for the manifest
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &blob{c: c, ctx: ctx, cancel: cancel, sources: c.trusted(sources, d), d: d, hash: sha256.New()}
	if n > 0 {
		b.body, b.have, b.mixed = io.NopCloser(io.LimitReader(have, n)), true, true
		return b, nil
	}
	if err := b.open(); err != nil {
		cancel()
		return nil, err
	}
	return b, nil
}

func checkBlob(d v1.Descriptor) error {
	want, ok := strings.CutPrefix(d.Digest.String(), "sha256:")
	if sum, err := hex.DecodeString(want); !ok || err != nil || len(sum) != sha256.Size {
		return fmt.Errorf("blob %.100q: want a digest of sha256", d.Digest)
	}
	if d.Size < 0 {
		return fmt.Errorf("blob %s: size %d", d.Digest, d.Size)
	}
	return nil
}

// A wrong blob is one that a source served with other bytes.
type wrong struct{ source, digest string }

// trusted leaves out the sources that have served other bytes for the blob, as long
// as there is one that has not: whoever asks anew gets it from the next.
func (c *Client) trusted(sources []Source, d v1.Descriptor) []Source {
	left := slices.DeleteFunc(slices.Clone(sources), func(s Source) bool {
		_, lied := c.wrong.Load(wrong{s.Ref.String(), d.Digest.String()})
		return lied
	})
	if len(left) == 0 {
		return sources
	}
	return left
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
	have  bool     // body is what was at hand
	mixed bool     // the blob began with that
	asked []Source // what the rest came from
	at    int64    // bytes read
	fails int      // since the last progress
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
	b.body, b.asked = resp.Body, append(b.asked, s)
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
			b.blame()
			b.done = fmt.Errorf("blob %s: more than %d bytes", b.d.Digest, b.d.Size)
		case b.at == b.d.Size && err != nil: // also a broken one: there is no more to ask for
			b.done = b.verdict()
		case b.have && err == io.EOF:
			b.have = false
			b.done = b.open()
		case b.have && err != nil:
			b.done = fmt.Errorf("blob %s: what was at hand: %w", b.d.Digest, err)
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
		b.blame()
		return &DigestError{"blob " + b.d.Digest.String(), got, b.d.Digest.String()}
	}
	return io.EOF
}

// blame remembers who sent other bytes, unless it may have been what was at hand.
func (b *blob) blame() {
	for _, s := range b.asked {
		if !b.mixed {
			b.c.wrong.Store(wrong{s.Ref.String(), b.d.Digest.String()}, true)
		}
	}
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
	if b.body == nil {
		return nil
	}
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
