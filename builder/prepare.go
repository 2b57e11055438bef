package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
)

// A Workplace is where a build happens: the store, the way to the archives, the
// files beside the profile.
type Workplace struct {
	Store    *cas.Store
	Client   *source.Client
	Mirrors  source.MirrorChoice
	LockPath string    // NAME.lock
	Locked   bool      // never write the lock
	Now      time.Time // judges Valid-Until when a lock is made
	Notice   func(format string, args ...any)
}

// Spec reads or makes the lock and gathers all that decides the image. Packages
// enter a lock only when there is none yet, or through Relock.
func (w *Workplace) Spec(ctx context.Context, p *profiles.Profile, g Guest) (*Spec, error) {
	old, err := ReadLock(w.LockPath)
	if err != nil {
		return nil, err
	}
	files, err := Import(ctx, w.Client, p, old)
	if err != nil {
		return nil, err
	}
	lock, err := w.lock(ctx, p, files)
	if err != nil {
		return nil, err
	}
	records, err := ReadRecords(w.RecordPath())
	if err != nil {
		return nil, err
	}
	return &Spec{Profile: p, Lock: lock, Guest: g, Records: records}, nil
}

// LockedSpec is Spec for a caller that must read nothing but the lock.
func (w *Workplace) LockedSpec(p *profiles.Profile, g Guest) (*Spec, error) {
	lock, err := ReadLock(w.LockPath)
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, &source.LockError{Problem: w.LockPath + ": there is no lock yet"}
	}
	records, err := ReadRecords(w.RecordPath())
	if err != nil {
		return nil, err
	}
	return &Spec{Profile: p, Lock: lock, Guest: g, Records: records}, nil
}

// RecordPath is the file of platform records, beside the lock.
func (w *Workplace) RecordPath() string {
	ext := filepath.Ext(w.LockPath)
	return w.LockPath[:len(w.LockPath)-len(ext)] + ".platform.json"
}

func (w *Workplace) lock(ctx context.Context, p *profiles.Profile, files []source.File) (*source.Lock, error) {
	lock, err := ReadLock(w.LockPath)
	if err != nil {
		return nil, err
	}
	req := Request(p, files, w.Now)
	if lock == nil {
		if w.Locked {
			return nil, &source.LockError{Problem: w.LockPath + ": there is no lock yet, and --locked forbids to write one"}
		}
		return w.resolve(ctx, p, req, nil)
	}
	if !w.Locked && !slices.Equal(lock.Files, files) {
		// Local files are the user's own: a change there is no surprise, as a
		// changed package would be.
		lock.Files = files
		if err := lock.Check(req); err != nil {
			return nil, err
		}
		w.Notice("%s: local files changed; lock updated", w.LockPath)
		return lock, WriteLock(w.LockPath, lock)
	}
	return lock, lock.Check(req)
}

// Relock resolves afresh what update names (all with an empty list and all set)
// and what the profile asks for beyond the lock.
func (w *Workplace) Relock(ctx context.Context, p *profiles.Profile, update []string, all bool) (old, lock *source.Lock, err error) {
	old, err = ReadLock(w.LockPath)
	if err != nil {
		return nil, nil, err
	}
	files, err := Import(ctx, w.Client, p, keptImages(old, update, all))
	if err != nil {
		return nil, nil, err
	}
	req := Request(p, files, w.Now)
	req.Update, req.UpdateAll = packagesOf(update, files, old), all
	lock, err = w.resolve(ctx, p, req, old)
	return old, lock, err
}

// CheckLock fails when the lock does not fit the profile.
func (w *Workplace) CheckLock(ctx context.Context, p *profiles.Profile) error {
	locked := *w
	locked.Locked = true
	old, err := ReadLock(w.LockPath)
	if err != nil {
		return err
	}
	files, err := Import(ctx, w.Client, p, old)
	if err != nil {
		return err
	}
	_, err = locked.lock(ctx, p, files)
	return err
}

func (w *Workplace) resolve(ctx context.Context, p *profiles.Profile, req source.Request, prev *source.Lock) (*source.Lock, error) {
	if err := w.reach(p, req.Sources); err != nil {
		return nil, err
	}
	lock, err := w.Client.Resolve(ctx, req, prev)
	if err != nil {
		return nil, err
	}
	return lock, WriteLock(w.LockPath, lock)
}

// fetch brings locked packages into the store. Mirrors are looked for only when
// something is missing, so that a full store builds without any.
func (w *Workplace) fetch(ctx context.Context, p *profiles.Profile, pkgs []source.Package) ([]cas.Ref, error) {
	refs := make([]cas.Ref, len(pkgs))
	have := true
	for i := range pkgs {
		refs[i] = pkgs[i].Ref()
		have = have && w.Store.Holds(refs[i])
	}
	if have {
		return refs, nil
	}
	sources := Request(p, nil, w.Now).Sources
	if !w.Client.Offline {
		if err := w.reach(p, sources); err != nil {
			return nil, err
		}
	}
	return w.Client.FetchAll(ctx, sources, pkgs)
}

// reach fills in where each source is fetched from and which keys may sign it.
func (w *Workplace) reach(p *profiles.Profile, sources []source.Source) error {
	for i := range sources {
		s := &sources[i]
		if s.Dir != "" {
			continue
		}
		var err error
		if s.Mirrors, err = source.MirrorsFor(*s, w.Mirrors); err != nil {
			return err
		}
		if s.Keys, err = keyring(p.Sources[s.Name].Keyring); err != nil {
			return fmt.Errorf("sources.%s.keyring: %w", s.Name, err)
		}
	}
	return nil
}

// keyring reads the keys of a source that has its own; nil stands for the client's.
func keyring(path string) (*source.Keyring, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	k := &source.Keyring{}
	return k, k.Add(b)
}

// ReadLock returns the lock in a file, nil when there is none.
func ReadLock(path string) (*source.Lock, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := source.ParseLock(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

// WriteLock writes a lock by rename.
func WriteLock(path string, l *source.Lock) error {
	b, err := l.Marshal()
	if err != nil {
		return err
	}
	return WriteFile(path, b)
}
