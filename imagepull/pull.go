package imagepull

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/plinth-os/plinth/imagepull/crypt"
	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/internal/ident"
)

// A RefusedError says that an image is not what it must be, or that the policy does
// not admit it.
type RefusedError struct {
	Name string
	Err  error
}

func (e *RefusedError) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// Pull gets an image into a store, or leaves nothing there: Prepare, then Fetch.
func (p *Puller) Pull(ctx context.Context, n policy.Name, to Store) (*Pulled, error) {
	im, err := p.Prepare(ctx, n)
	if err != nil {
		return nil, err
	}
	defer func() { _ = im.Close() }() // it was only read
	return im.Fetch(ctx, to)
}

// A Prepared image was judged, and is known but for its layers: none of them was
// fetched, and no key asked for.
type Prepared struct {
	Image
	Settings v1.Image // the configuration

	name policy.Name
	job  job // of Fetch, as it begins
}

// Prepare asks the policy and Admit, as Explain does, and reads the configuration.
// Close the image in the end; ctx has to last until then.
func (p *Puller) Prepare(ctx context.Context, n policy.Name) (*Prepared, error) {
	im, err := p.prepare(ctx, n)
	if err != nil {
		return nil, refused(ctx, n, err)
	}
	return im, nil
}

func (p *Puller) prepare(ctx context.Context, n policy.Name) (_ *Prepared, err error) {
	src, err := p.Source(ctx, n)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = src.Close() // it was only read
		}
	}()
	im, err := p.explain(ctx, src, n)
	if err != nil {
		return nil, err
	}
	if err := im.Err(); err != nil {
		return nil, err
	}
	out := &Prepared{Image: *im, name: n}
	j := &out.job
	j.p, j.src, j.pulled = p, src, &Pulled{Image: *im, Manifest: im.manifest}
	j.keep = p.Parts != "" && n.Transport == policy.Docker
	if err := j.describe(ctx); err != nil {
		return nil, err
	}
	out.Settings = j.pulled.Settings
	return out, nil
}

// Close lets go of where the image is.
func (im *Prepared) Close() error {
	if im.job.src == nil {
		return nil
	}
	return im.job.src.Close()
}

// Fetch gets the image into a store, or leaves nothing there, and may be called
// again then. First every key is unwrapped; then the layers that the store lacks are
// fetched, several at a time. All is published at once, when every digest, HMAC and
// diff ID is the right one. A layer that the store has is not fetched again,
// encrypted or not: its diff ID says what it is.
func (im *Prepared) Fetch(ctx context.Context, to Store) (*Pulled, error) {
	pulled, err := im.fetch(ctx, to)
	if err != nil {
		return nil, refused(ctx, im.name, err)
	}
	return pulled, nil
}

// refused says of an error that is of the image whose it is. Others are as they are.
func refused(ctx context.Context, n policy.Name, err error) error {
	if ctx.Err() != nil || !verdict(err) {
		return err
	}
	return &RefusedError{n.String(), err}
}

func (im *Prepared) fetch(ctx context.Context, to Store) (*Pulled, error) {
	j := im.job.again(to)
	p := j.p
	mirrors, err := p.mirrors(im.name)
	if err != nil {
		return nil, err
	}
	for {
		err := j.run(ctx)
		var (
			failed *storeError
			stale  *partError
			lied   *registry.DigestError
		)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.As(err, &failed):
			return nil, err
		case errors.As(err, &stale) && !j.anew:
			j.anew = true // once: who sends other bytes each time would be asked for ever
			p.logf("%v; fetching anew what an earlier pull began", err)
		case errors.As(err, &lied) && mirrors > 0: // the client asks the next
			p.logf("%v; trying another mirror", err)
			mirrors--
		case err != nil:
			return nil, err
		default:
			return j.pulled, nil
		}
	}
}

// mirrors is how many places there are to ask after the first.
func (p *Puller) mirrors(n policy.Name) (int, error) {
	if n.Transport != policy.Docker {
		return 0, nil
	}
	sources, err := p.Registry.Config.Sources(n.Ref)
	return len(sources) - 1, err
}

// verdict tells whether an error is of the image, and not of the network, the store
// or a file of the host.
func verdict(err error) bool {
	var (
		store *storeError
		path  *fs.PathError
	)
	return !network(err) && !errors.As(err, &store) && !errors.As(err, &path)
}

// A storeError is one of the store's.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// A job is one image on its way.
type job struct {
	p      *Puller
	src    Source
	to     Store
	pulled *Pulled
	layers []v1.Descriptor // beside pulled.DiffIDs
	forms  []form          // beside layers
	keep   bool            // what came of blobs
	anew   bool            // what an earlier pull left of them is of no use

	// Of one attempt.
	stage   Stage
	budget  *unpack.Budget
	free    int64 // bytes, before it
	needed  int64 // bytes of the blobs to be fetched
	fetched atomic.Int64
	written atomic.Int64
	mu      sync.Mutex
	parts   []*part
}

// again is a job like this one, which nobody has begun.
func (j *job) again(to Store) *job {
	pulled := *j.pulled
	return &job{p: j.p, src: j.src, to: to, pulled: &pulled, layers: j.layers, forms: j.forms, keep: j.keep}
}

// run makes one attempt.
func (j *job) run(ctx context.Context) (err error) {
	j.budget = unpack.NewBudget(j.p.Limits)
	j.needed = 0
	j.fetched.Store(0)
	j.written.Store(0)
	if j.stage, err = j.to.Stage(ctx); err != nil {
		return &storeError{err}
	}
	defer func() {
		left := j.end(err)
		switch {
		case err != nil:
			err = errors.Join(err, left)
		case left != nil: // the image is there
			j.p.logf("%v", left)
		}
	}()
	missing, err := j.missing()
	if err != nil {
		return err
	}
	if err := j.room(missing); err != nil {
		return err
	}
	if err := j.unwrap(ctx, missing); err != nil {
		return err
	}
	if err := j.fetch(ctx, missing); err != nil {
		return err
	}
	if err := j.tree(ctx); err != nil {
		return err
	}
	j.pulled.Fetched = j.fetched.Load() + j.pulled.Config.Size
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := j.stage.Publish(j.pulled); err != nil {
		return j.storeError(err)
	}
	return nil
}

// end leaves nothing behind but, where the network is to blame, what came of the
// blobs. Those that came whole are kept, too: a pull that goes on needs them.
func (j *job) end(cause error) error {
	var stale *partError
	keep := errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) || network(cause) || errors.As(cause, &stale)
	var failed []error
	for _, p := range j.parts {
		failed = append(failed, p.end(keep))
	}
	j.parts = nil
	if cause == nil && j.keep {
		for _, d := range j.layers { // a pull that was killed behind Publish left some
			failed = append(failed, dropPart(j.p.Parts, d))
		}
	}
	failed = append(failed, j.stage.Discard())
	if err := errors.Join(failed...); err != nil {
		return &storeError{err}
	}
	return nil
}

// part opens what an earlier pull left of a blob.
func (j *job) part(d v1.Descriptor) (*part, error) {
	if !j.keep {
		return nil, nil
	}
	p, err := openPart(j.p.Parts, d)
	if p != nil {
		j.mu.Lock()
		j.parts = append(j.parts, p)
		j.mu.Unlock()
		if j.anew {
			err = p.empty()
		}
	}
	return p, err
}

// missing asks the store for the layers. One that an image has twice is fetched
// once.
func (j *job) missing() (out []wanted, err error) {
	j.pulled.Layers = make([]*unpack.Layer, len(j.layers))
	seen := map[digest.Digest]bool{}
	for i, id := range j.pulled.DiffIDs {
		if j.pulled.Layers[i], err = j.to.Layer(id); err != nil {
			return nil, &storeError{err}
		}
		if j.pulled.Layers[i] != nil || seen[id] {
			continue
		}
		seen[id] = true
		j.needed += j.layers[i].Size
		out = append(out, wanted{number: i + 1, desc: j.layers[i], diffID: id, form: j.forms[i]})
	}
	return out, nil
}

// room refuses what does not fit even if nothing is larger than its blob.
func (j *job) room(missing []wanted) (err error) {
	if j.free, err = j.to.Free(); err != nil {
		return &storeError{err}
	}
	if len(missing) > 0 && j.needed > j.free {
		return &storeError{&SpaceError{Needed: j.needed, Available: j.free}}
	}
	return nil
}

// storeError adds the sizes to the error of a store that is full: what is there and
// what is still to come take more than there was.
func (j *job) storeError(err error) error {
	var space *SpaceError
	if full(err) && !errors.As(err, &space) {
		err = &SpaceError{max(j.written.Load()+j.needed-j.fetched.Load(), j.free+1), j.free, err}
	}
	return &storeError{err}
}

// unwrap gets the keys of all layers before a byte of one is fetched.
func (j *job) unwrap(ctx context.Context, missing []wanted) (err error) {
	for i, w := range missing {
		if !w.form.encrypted {
			continue
		}
		if missing[i].key, err = crypt.Open(ctx, w.desc.Annotations, j.p.Unwrappers...); err != nil {
			return fmt.Errorf("layer %d: %s: %w", w.number, w.desc.Digest, err)
		}
	}
	return nil
}

// fetch gets the layers, the largest first, so that no processor waits long for the
// last.
func (j *job) fetch(ctx context.Context, missing []wanted) error {
	slices.SortStableFunc(missing, func(a, b wanted) int { return int(min(max(b.desc.Size-a.desc.Size, -1), 1)) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(j.p.parallel())
	for _, w := range missing {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			l, err := j.layer(ctx, w)
			for i, id := range j.pulled.DiffIDs {
				if id == w.diffID {
					j.pulled.Layers[i] = l // each by one goroutine
				}
			}
			return err
		})
	}
	return g.Wait()
}

// parallel bounds the memory: a layer on its way takes up to 12 MiB, where it is
// zstd's.
func (p *Puller) parallel() int {
	if p.Parallel > 0 {
		return p.Parallel
	}
	return min(max(runtime.GOMAXPROCS(0), 2), 4)
}

// tree puts the layers above one another.
func (j *job) tree(ctx context.Context) error {
	t := unpack.NewTree(j.budget).Until(ctx)
	for _, l := range j.pulled.Layers {
		if err := t.Apply(l); err != nil {
			return err
		}
	}
	j.pulled.Devices = t.Devices()
	there, err := j.to.Tree(j.pulled.ChainID)
	if err != nil {
		return &storeError{err}
	}
	if there {
		return nil
	}
	w, err := j.stage.Tree()
	if err != nil {
		return j.storeError(err)
	}
	out := &outgoing{w: w, written: &j.written}
	buf := bufio.NewWriterSize(out, 1<<20)
	err = errors.Join(j.write(t, buf), out.fail(w.Close()))
	if out.err != nil {
		return j.storeError(out.err)
	}
	return err
}

// write makes the EROFS. Equal layers give equal bytes.
func (j *job) write(t *unpack.Tree, w *bufio.Writer) error {
	var tags []string
	for _, i := range j.pulled.Devices {
		tags = append(tags, j.pulled.DiffIDs[i].Encoded())
	}
	if err := t.Write(w, ident.UUID("plinth", "container image", []byte(j.pulled.ChainID)), tags); err != nil {
		return err
	}
	return w.Flush()
}

func (p *Puller) logf(format string, args ...any) {
	if p.Log != nil {
		p.Log(format, args...)
	}
}
