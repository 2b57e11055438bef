package imagepull

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/internal/readahead"
)

// A wanted layer is one that the store does not have.
type wanted struct {
	number int // from 1, of the image's layers
	desc   v1.Descriptor
	diffID digest.Digest
	form   form
	key    *crypt.Key // of an encrypted one
}

// A DiffIDError is of a layer whose tar is not the one that the image's
// configuration names.
type DiffIDError struct{ Got, Want digest.Digest }

func (e *DiffIDError) Error() string { return fmt.Sprintf("diff ID is %s: want %s", e.Got, e.Want) }

// A partError is of a layer that began with what an earlier pull left, and is not
// what it must be: the part may be to blame.
type partError struct{ err error }

func (e *partError) Error() string { return e.err.Error() }
func (e *partError) Unwrap() error { return e.err }

// layer fetches one, takes it out of encryption and compression and leaves its
// content in the stage. What it returns is proven: size, digest, HMAC, diff ID.
func (j *job) layer(ctx context.Context, w wanted) (*unpack.Layer, error) {
	l, err := j.readLayer(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("layer %d: %s: %w", w.number, w.desc.Digest, err)
	}
	return l, nil
}

func (j *job) readLayer(ctx context.Context, w wanted) (*unpack.Layer, error) {
	part, err := j.part(w.desc)
	if err != nil {
		return nil, j.storeError(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	have, n := part.had()
	in := &incoming{had: n, part: part, cancel: cancel, logf: j.p.logf, fetched: &j.fetched}
	blob, err := j.src.Blob(ctx, w.desc, have, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = blob.Close() }() // all was read, or an error is known
	in.r = blob
	return j.unpackLayer(ctx, w, in)
}

func (j *job) unpackLayer(ctx context.Context, w wanted, in *incoming) (*unpack.Layer, error) {
	content, err := j.stage.Content(w.diffID)
	if err != nil {
		return nil, j.storeError(err)
	}
	out := &outgoing{w: content, written: &j.written}
	layer, err := w.unpack(ctx, in, out, j.budget)
	err = errors.Join(err, out.fail(content.Close()))
	switch {
	case err == nil:
		return layer, nil
	case out.err != nil:
		return nil, j.storeError(out.err)
	case network(err) || ctx.Err() != nil || in.part == nil:
		return nil, err
	}
	in.part.bad = true
	if in.had > 0 {
		err = &partError{err}
	}
	return nil, err
}

// aheadSize is how much is read at a time while what was read is being worked on,
// bytes: taking a layer out of its connection and out of its compression keep two
// processors busy. Half of it is handed on: what is slow to come is not waited for.
const aheadSize = 128 << 10

// unpack reads the layer to its end.
func (w wanted) unpack(ctx context.Context, in *incoming, out *outgoing, b *unpack.Budget) (*unpack.Layer, error) {
	var plain io.Reader = in
	if w.key != nil {
		var err error
		if plain, err = w.key.Decrypt(in); err != nil {
			return nil, err
		}
	}
	a := readahead.New(plain, aheadSize, aheadSize/2)
	defer a.Stop()
	layer, err := w.readTar(ctx, in, a, out, b)
	switch {
	case err == nil:
	case isLimit(err) || ctx.Err() != nil || out.err != nil:
		in.cancel() // nobody waits for the rest
	default:
		// Where the blob is not the one that was asked for, this is why.
		if _, end := io.Copy(io.Discard, a); end != nil {
			err = end
		}
	}
	return layer, err
}

func (w wanted) readTar(ctx context.Context, in *incoming, r io.Reader, out io.Writer, b *unpack.Budget) (*unpack.Layer, error) {
	z, err := w.form.unpacked(r)
	if err != nil {
		return nil, err
	}
	defer z.Close() // it holds memory only
	tar := &hashed{r: z, hash: sha256.New(), blob: in}
	layer, err := unpack.Read(ctx, tar, out, b)
	if err != nil {
		return nil, err
	}
	// A blob that did not end has proven nothing.
	if n, err := io.Copy(io.Discard, r); err != nil || n > 0 {
		return nil, errors.Join(err, fmt.Errorf("%d bytes behind the end of the compressed layer", n))
	}
	if got := digest.NewDigest(digest.SHA256, tar.hash); got != w.diffID {
		return nil, &DiffIDError{got, w.diffID}
	}
	return layer, nil
}

func isLimit(err error) bool {
	var limit *unpack.LimitError
	return errors.As(err, &limit)
}

// A FetchError is of bytes that did not come; of bytes that came and are wrong, it is
// none.
type FetchError struct{ Err error }

func (e *FetchError) Error() string { return e.Err.Error() }
func (e *FetchError) Unwrap() error { return e.Err }

// network tells whether an error is one of the way to the image, or of the registry:
// a later pull may have more luck.
func network(err error) bool {
	var (
		fetch   *FetchError
		status  *registry.StatusError
		request *url.Error
	)
	if errors.As(err, &status) && status.Status == http.StatusRequestedRangeNotSatisfiable {
		return false // the blob is smaller than the manifest says
	}
	return errors.As(err, &fetch) || errors.As(err, &status) || errors.As(err, &request)
}

// incoming is a blob on its way. What is new of it is kept for the next pull, should
// this one break.
type incoming struct {
	r       io.Reader
	had     int64 // bytes that are not new
	part    *part // nil: nothing is kept
	cancel  func()
	logf    func(string, ...any)
	fetched *atomic.Int64 // of the whole image

	at atomic.Int64
}

func (in *incoming) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	at := in.at.Add(int64(n)) - int64(n)
	if skip := max(in.had-at, 0); skip < int64(n) {
		in.fetched.Add(int64(n) - skip)
		in.keep(p[skip:n])
	}
	return n, err
}

func (in *incoming) keep(b []byte) {
	if in.part == nil || in.part.bad {
		return
	}
	if err := in.part.add(b); err != nil {
		in.logf("%v; what comes of the layer is not kept", err)
		in.part.bad = true
	}
}

// hashed is the tar, on its way to be unpacked.
type hashed struct {
	r    io.Reader
	hash hash.Hash
	blob *incoming
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	return n, err
}

// CompressedBytes implements unpack.Compressed.
func (h *hashed) CompressedBytes() int64 { return h.blob.at.Load() }

// outgoing is a layer's content on its way into the stage.
type outgoing struct {
	w       io.Writer
	written *atomic.Int64 // of the whole image
	err     error
}

func (o *outgoing) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	o.written.Add(int64(n))
	return n, o.fail(err)
}

func (o *outgoing) fail(err error) error {
	if o.err == nil {
		o.err = err
	}
	return err
}
