package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/plinth-os/plinth/internal/cas"
)

const defaultJobs = 4

// Fetch brings one locked package into the store. sources are the profile's;
// without its source a package can only come from the store.
func (c *Client) Fetch(ctx context.Context, sources []Source, p Package) (cas.Ref, error) {
	ref := p.Ref()
	if c.Store.Holds(ref) {
		return ref, nil
	}
	what := p.Name + " " + p.Version
	var src Source
	for _, s := range sources {
		if p.from(s) {
			src = s
		}
	}
	if src.Dir != "" {
		return ref, c.fetchFile(ctx, what, filepath.Join(src.Dir, filepath.FromSlash(p.Filename)), ref)
	}
	urls, err := src.urls(p.Filename)
	if err != nil {
		return ref, err
	}
	err = c.fetchBlob(ctx, what, urls, ref)
	var network *NetworkError
	if errors.As(err, &network) && network.NotFound {
		return ref, &LockError{Problem: fmt.Sprintf("names %s, which no mirror of %s has any more", what, src.label())}
	}
	return ref, err
}

// fetchFile takes a package from a directory of .deb files.
func (c *Client) fetchFile(ctx context.Context, what, path string, want cas.Ref) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return &LockError{Problem: fmt.Sprintf("names %s, but there is no %s", what, path)}
	}
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer f.Close()
	return c.adopt(ctx, path, f, want)
}

// FetchAll fetches packages, several at a time. The result is in their order.
func (c *Client) FetchAll(ctx context.Context, sources []Source, ps []Package) ([]cas.Ref, error) {
	refs := make([]cas.Ref, len(ps))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(or(c.Jobs, defaultJobs))
	for i, p := range ps {
		g.Go(func() (err error) {
			refs[i], err = c.Fetch(ctx, sources, p)
			return err
		})
	}
	return refs, g.Wait()
}
