package source

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/ctxio"
	"github.com/plinth-os/plinth/internal/xz"
)

// An openSource is a source whose packages are known: its Release file is
// verified and its indexes are in the catalog.
type openSource struct {
	Source
	onRequest bool
	inRelease cas.Digest // zero for a directory
	release   *Release   // nil for a directory
}

// Resolve makes a lock for req. What prev holds and req still wants is kept
// unless req updates it; prev may be nil. When prev holds everything, the network
// is not touched.
func (c *Client) Resolve(ctx context.Context, req Request, prev *Lock) (*Lock, error) {
	if err := req.check(prev); err != nil {
		return nil, err
	}
	kept := keep(prev, req)
	var sources []*openSource
	var cat *catalog
	if !req.settledBy(prev, kept) {
		var done func()
		var err error
		if sources, cat, done, err = c.openAll(ctx, req, prev); err != nil {
			return nil, err
		}
		defer done()
	}
	s, err := newSolver(req.Arch, kept, cat)
	if err != nil {
		return nil, err
	}
	nodes, err := s.solve(req.sortedWants())
	if err != nil {
		return nil, err
	}
	return makeLock(req, prev, sources, nodes), nil
}

func (req *Request) check(prev *Lock) error {
	for _, name := range req.Update {
		if prev == nil || !slices.ContainsFunc(prev.Packages, func(p Package) bool { return p.Name == name }) {
			return &ResolveError{What: "update", Problem: fmt.Sprintf("the lock has no package %q", name)}
		}
	}
	for i, s := range req.Sources {
		if slices.ContainsFunc(req.Sources[:i], func(o Source) bool { return o.Name == s.Name && o.Suite == s.Suite }) {
			return &ResolveError{What: s.label(), Problem: "is given twice"}
		}
	}
	if req.Now.IsZero() || req.Arch == "" {
		return errors.New("source: request without time or architecture")
	}
	return nil
}

func (req *Request) sortedWants() []Want {
	return slices.SortedFunc(slices.Values(req.Wants), Want.compare)
}

func (w Want) compare(o Want) int {
	return cmp.Or(cmp.Compare(w.Role, o.Role), cmp.Compare(w.Package, o.Package), cmp.Compare(w.Source, o.Source),
		cmp.Compare(w.Suite, o.Suite), boolCompare(w.Closure, o.Closure))
}

// settledBy reports whether the lock answers every want and no source changed.
func (req *Request) settledBy(prev *Lock, kept map[string]*node) bool {
	if prev == nil || len(kept) < len(prev.Packages) || len(req.Update) > 0 {
		return false
	}
	for _, w := range req.Wants {
		if !slices.Contains(prev.Wants, w) {
			return false
		}
	}
	return slices.EqualFunc(prev.Sources, lockedSources(req.Sources), LockedSource.same)
}

// openAll opens every source. The caller calls done when it needs the catalog no
// more.
func (c *Client) openAll(ctx context.Context, req Request, prev *Lock) (_ []*openSource, _ *catalog, done func(), err error) {
	var closers []io.Closer
	done = func() {
		for _, f := range closers {
			f.Close()
		}
	}
	cat := newCatalog(req.Arch)
	var sources []*openSource
	for _, src := range req.Sources {
		o := &openSource{Source: src, onRequest: src.OnRequest}
		if src.Dir != "" {
			err = openDir(ctx, o, cat)
		} else {
			var files []io.Closer
			files, err = c.openArchive(ctx, o, cat, req, prev)
			closers = append(closers, files...)
		}
		if err != nil {
			done()
			return nil, nil, nil, err
		}
		sources = append(sources, o)
	}
	return sources, cat, done, nil
}

// openArchive gets and verifies a suite's Release file and adds its indexes to
// the catalog.
func (c *Client) openArchive(ctx context.Context, o *openSource, cat *catalog, req Request, prev *Lock) ([]io.Closer, error) {
	r, err := c.fetchRelease(ctx, o.Source, req.Now, prev)
	if err != nil {
		return nil, err
	}
	o.onRequest = o.onRequest || r.onRequest
	o.release, o.inRelease = &r.Release, r.InRelease
	paths, err := r.indexPaths(o.Source, req.Arch)
	if err != nil {
		return nil, err
	}
	var files []io.Closer
	for _, path := range paths {
		f, err := c.openIndex(ctx, o.Source, r, path)
		if err != nil {
			return files, err
		}
		files = append(files, f)
		if err := cat.add(&index{f, o}, f); err != nil {
			return files, fmt.Errorf("source: %s: %s: %w", o.label(), path, err)
		}
		r.Indexes = append(r.Indexes, r.files[path])
	}
	return files, nil
}

// fetchRelease returns the Release of the first mirror whose signature, suite
// and dates are good.
func (c *Client) fetchRelease(ctx context.Context, s Source, now time.Time, prev *Lock) (*release, error) {
	keys, err := c.keysFor(s)
	if err != nil {
		return nil, err
	}
	what := s.label() + ": InRelease"
	urls, err := s.urls("dists/" + s.Suite + "/InRelease")
	if err != nil {
		return nil, err
	}
	newest := prev.newestRelease(s)
	var r *release
	err = c.fetchSmall(ctx, what, urls, maxInRelease, func(b []byte) error {
		var err error
		if r, err = readRelease(b, s, keys, now); err != nil {
			return err
		}
		if r.Date.Before(newest) {
			return &VerifyError{What: what, Stale: true,
				Problem: fmt.Sprintf("is of %s, but the lock has seen %s: the mirror went back in time", stamp(r.Date), stamp(newest))}
		}
		_, err = c.Store.Put(b)
		return err
	})
	return r, err
}

func (c *Client) keysFor(s Source) (*Keyring, error) {
	if k := cmp.Or(s.Keys, c.Keys); k != nil {
		return k, nil
	}
	return ArchiveKeys()
}

// urls returns where each mirror has a path of the archive.
func (s Source) urls(paths ...string) ([]string, error) {
	var urls []string
	for _, m := range s.Mirrors {
		u, err := url.Parse(m)
		if err != nil {
			return nil, fmt.Errorf("source: %s: mirror: %w", s.label(), err)
		}
		for _, p := range paths {
			urls = append(urls, u.JoinPath(p).String())
		}
	}
	return urls, nil
}

// openIndex returns the unpacked Packages file at path, from the store or the
// mirrors, in the smallest form that they have.
func (c *Client) openIndex(ctx context.Context, s Source, r *release, path string) (*os.File, error) {
	plain := r.files[path].ref()
	if plain.Size > maxIndex {
		return nil, fmt.Errorf("source: %s: %s: size %d: want at most %d", s.label(), path, plain.Size, maxIndex)
	}
	err := error(&NetworkError{What: s.label() + ": " + path, NotFound: true})
	for _, ext := range []string{".xz", ".gz", ""} {
		if c.Store.Holds(plain) {
			break
		}
		packed, ok := r.files[path+ext]
		if !ok {
			continue
		}
		if err = c.fetchIndex(ctx, s, r, packed, plain); err == nil {
			break
		}
		var network *NetworkError
		if !errors.As(err, &network) || !network.NotFound {
			return nil, err
		}
	}
	f, openErr := c.Store.Open(plain)
	if openErr != nil && err != nil {
		return nil, err
	}
	return f, openErr
}

const maxIndex = 1 << 30 // bytes, unpacked; Debian's largest has 60 MB

// fetchIndex fetches one form of an index and unpacks it into the store.
func (c *Client) fetchIndex(ctx context.Context, s Source, r *release, packed File, plain cas.Ref) error {
	paths := []string{"dists/" + s.Suite + "/" + packed.Path}
	if r.byHash {
		dir := packed.Path[:strings.LastIndex(packed.Path, "/")]
		paths = append([]string{"dists/" + s.Suite + "/" + dir + "/by-hash/SHA256/" + packed.SHA256.String()}, paths...)
	}
	urls, err := s.urls(paths...)
	if err != nil {
		return err
	}
	what := s.label() + ": " + packed.Path
	if err := c.fetchBlob(ctx, what, urls, packed.ref()); err != nil {
		return err
	}
	if packed.ref() == plain {
		return nil
	}
	f, err := c.Store.Open(packed.ref())
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := c.Store.Create()
	if err != nil {
		return err
	}
	defer w.Abort()
	a := debArchive{packed.Path, io.NewSectionReader(f, 0, packed.Size)}
	_, err = a.expand(ctx, w.File(), plain.Size)
	if errors.As(err, new(*xz.LimitError)) {
		return &VerifyError{What: what, Problem: err.Error()}
	}
	if err != nil {
		return fmt.Errorf("source: %s: %w", what, err)
	}
	got, err := w.Commit(ctx)
	if err != nil {
		return err
	}
	if got != plain {
		return &VerifyError{What: what, Problem: fmt.Sprintf("unpacks to sha256 %s, Release says %s", got.Digest, plain.Digest)}
	}
	return c.Store.Remove(packed.SHA256)
}

func (f File) ref() cas.Ref { return cas.Ref{Digest: f.SHA256, Size: f.Size} }

// openDir reads the .deb files of a directory and adds an index of them, made
// from their control files, to the catalog.
func openDir(ctx context.Context, o *openSource, cat *catalog) error {
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		return fmt.Errorf("source: %s: %w", o.label(), err)
	}
	var packages bytes.Buffer
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".deb" {
			continue
		}
		control, ref, err := readDebFile(ctx, filepath.Join(o.Dir, e.Name()))
		if err != nil {
			return fmt.Errorf("source: %s: %s: %w", o.label(), e.Name(), err)
		}
		fmt.Fprintf(&packages, "%s\nFilename: %s\nSize: %d\nSHA256: %s\n\n", bytes.TrimSpace(control), e.Name(), ref.Size, ref.Digest)
	}
	r := bytes.NewReader(packages.Bytes())
	return cat.add(&index{r, o}, r)
}

// readDebFile hashes a .deb and returns its control file, which must be one
// stanza.
func readDebFile(ctx context.Context, path string) ([]byte, cas.Ref, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, cas.Ref{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, ctxio.Reader(ctx, f))
	if err != nil {
		return nil, cas.Ref{}, err
	}
	control, err := readControl(ctx, f, n)
	if err == nil && len(slices.Collect(paragraphs(bytes.TrimSpace(control)))) != 1 {
		err = errors.New("control file is not one paragraph")
	}
	return control, cas.Ref{Digest: cas.Digest(h.Sum(nil)), Size: n}, err
}

// makeLock writes down what was chosen, and the evidence for it.
func makeLock(req Request, prev *Lock, opened []*openSource, nodes []*node) *Lock {
	l := &Lock{Schema: lockSchema, Profile: req.Profile, Arch: req.Arch, Wants: append([]Want{}, req.sortedWants()...),
		Sources: lockedSources(req.Sources), Packages: []Package{}, Files: append([]File{}, req.Files...)}
	for _, n := range nodes {
		p := n.Package
		p.Why = slices.SortedFunc(maps.Keys(n.why), compareWhy)
		l.Packages = append(l.Packages, p)
	}
	for i := range l.Sources {
		s := &l.Sources[i]
		s.Releases = prev.releases(req.Sources[i])
		if opened != nil && opened[i].release != nil {
			s.Releases = append(s.Releases, *opened[i].release)
		}
		s.Releases = l.usedReleases(s.Releases)
	}
	l.sort()
	return l
}

// compareWhy puts roles before dependencies.
func compareWhy(a, b string) int {
	return cmp.Or(boolCompare(strings.HasPrefix(a, dependencyOf), strings.HasPrefix(b, dependencyOf)), cmp.Compare(a, b))
}
