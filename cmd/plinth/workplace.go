package main

import (
	"os"
	"path/filepath"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// loadProfile reads the profile that a command names and says which was taken.
func (c *common) loadProfile(name string, r *reporter) (*profiles.Profile, error) {
	p, err := profiles.Load(profiles.Host, name, profiles.Options{Set: c.set, SourceDateEpoch: c.env.getenv("SOURCE_DATE_EPOCH")})
	if err != nil {
		return nil, err
	}
	r.notice("profile %s: %s", p.Name, p.Origin)
	return p, nil
}

func (c *common) store() (*cas.Store, error) {
	dir, err := c.env.cacheDir(c.cache)
	if err != nil {
		return nil, err
	}
	return cas.Open(dir)
}

// workplaceOf reads the profile that a command names and gathers what a build of
// it needs around it.
func (c *common) workplaceOf(name string) (*builder.Workplace, *profiles.Profile, error) {
	r, err := c.newReporter()
	if err != nil {
		return nil, nil, err
	}
	p, err := c.loadProfile(name, r)
	if err != nil {
		return nil, nil, err
	}
	st, err := c.store()
	if err != nil {
		return nil, nil, err
	}
	w, err := c.workplace(p, st, r)
	return w, p, err
}

// workplace gathers what a build of p needs around it.
func (c *common) workplace(p *profiles.Profile, st *cas.Store, r *reporter) (*builder.Workplace, error) {
	keys, err := c.keyring()
	if err != nil {
		return nil, err
	}
	host, err := source.HostApt("/")
	if err != nil {
		return nil, err
	}
	mirrors := source.MirrorChoice{Flags: c.mirrors, Env: c.env.getenv("PLINTH_MIRROR"), Host: host}
	if _, err := source.MirrorsFor(source.Source{}, mirrors); err != nil {
		return nil, usageError{err}
	}
	return &builder.Workplace{
		Store: st,
		Client: &source.Client{
			Store: st, Keys: keys, Offline: c.offline, Jobs: c.jobs,
			Progress: func(p source.Progress) {
				r.event(builder.Event{Step: "fetch", State: "progress", Message: p.Name, Bytes: p.Done, Total: p.Total})
			},
		},
		Mirrors:  mirrors,
		LockPath: c.lockPath(p),
		Locked:   c.locked,
		Now:      c.env.now(),
		Notice:   r.notice,
	}, nil
}

// keyring is the embedded keys and those of --keyring: for every source that
// names none of its own.
func (c *common) keyring() (*source.Keyring, error) {
	keys, err := source.ArchiveKeys()
	if err != nil {
		return nil, err
	}
	for _, f := range c.keyrings {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		if err := keys.Add(b); err != nil {
			return nil, usagef("%s: %w", f, err)
		}
	}
	return keys, nil
}

// lockPath: --lock, else the working directory for a profile that comes with
// plinth, else beside the profile's file.
func (c *common) lockPath(p *profiles.Profile) string {
	switch {
	case c.lock != "":
		return c.lock
	case p.Stock:
		return p.Name + ".lock"
	}
	return filepath.Join(p.Dir, p.Name+".lock")
}

// outDir: --out, else out/NAME.
func (c *common) outDir(p *profiles.Profile) string {
	if c.out != "" {
		return c.out
	}
	return filepath.Join("out", p.Name)
}
