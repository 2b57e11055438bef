package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/internal/strictjson"
)

// ownerFile is locked by whoever owns a stage.
const ownerFile = "owner.lock"

// A stage is a directory of its own. Its files have the paths that they will have in
// the store.
type stage struct {
	d     *Dir
	path  string
	use   *os.File // the shared lock; nil while it is waited for
	owner *os.File

	mu    sync.Mutex
	files []*os.File // not closed by the pull
	done  bool
}

// Stage implements imagepull.Store. What dead processes left is removed first.
func (d *Dir) Stage(ctx context.Context) (_ imagepull.Stage, err error) {
	use, err := d.lock(ctx, useLock, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	s := &stage{d: d, path: d.join(stagingDir, rand.Text()), use: use}
	defer func() {
		if err != nil {
			err = errors.Join(err, use.Close())
			if s.owner != nil {
				err = errors.Join(err, s.owner.Close())
			}
		}
	}()
	begin, err := d.lock(ctx, stageLock, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer begin.Close() // frees the lock
	if err := d.sweep(); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := s.begin(); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return s, nil
}

func (s *stage) begin() (err error) {
	if err := os.Mkdir(s.path, 0o700); err != nil {
		return err
	}
	s.owner, err = os.OpenFile(filepath.Join(s.path, ownerFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = flock(s.owner, unix.LOCK_EX|unix.LOCK_NB)
	}
	return err
}

// sweep removes the stages of processes that died: those whose lock is free. The
// caller holds the lock without which none begins.
func (d *Dir) sweep() error {
	list, err := os.ReadDir(d.join(stagingDir))
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range list {
		path := d.join(stagingDir, e.Name())
		owner, err := os.OpenFile(filepath.Join(path, ownerFile), os.O_RDWR, 0)
		if err == nil {
			err = flock(owner, unix.LOCK_EX|unix.LOCK_NB)
		}
		// Without the file its owner died before it had it, or has begun to remove.
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			failed = append(failed, os.RemoveAll(path))
		}
		if owner != nil {
			owner.Close() // nothing was written
		}
	}
	return errors.Join(failed...)
}

// create makes a file of the stage.
func (s *stage) create(names ...string) (*os.File, error) {
	path := filepath.Join(append([]string{s.path}, names...)...)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s.mu.Lock()
	s.files = append(s.files, f)
	s.mu.Unlock()
	return f, nil
}

// Content implements imagepull.Stage.
func (s *stage) Content(diffID digest.Digest) (io.WriteCloser, error) {
	f, err := s.create(layersDir, diffID.Encoded(), contentFile)
	if err != nil {
		return nil, err
	}
	return &file{f: f}, nil
}

// Tree implements imagepull.Stage.
func (s *stage) Tree() (io.WriteCloser, error) {
	f, err := s.create(treesDir, erofsFile)
	if err != nil {
		return nil, err
	}
	return &file{f: f}, nil
}

// writeBehind is how many bytes are written before the disk is asked to begin, so
// that little is left to wait for when a file is synced.
const writeBehind = 8 << 20

// file is one that was asked to be on the disk when it is closed.
type file struct {
	f         *os.File
	at, asked int64
}

func (w *file) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if w.at += int64(n); w.at-w.asked >= writeBehind && err == nil {
		// Advice: a file system that does not take it syncs later.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.asked, w.at-w.asked, unix.SYNC_FILE_RANGE_WRITE)
		w.asked = w.at
	}
	return n, err
}

// Close leaves the file open: Publish syncs it.
func (w *file) Close() error { return nil }

// Publish implements imagepull.Stage. The image comes last: where it is, its layers
// and its tree are. A process that dies on the way leaves some that nobody needs yet.
func (s *stage) Publish(p *imagepull.Pulled) error {
	if err := s.finish(p); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for _, id := range p.DiffIDs {
		if err := s.move(layersDir, id); err != nil {
			return fmt.Errorf("store: %w", err)
		}
	}
	if err := s.move(treesDir, p.ChainID); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if err := syncDirs(s.d.join(layersDir), s.d.join(treesDir)); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if err := s.publish(digest.Digest(p.Digest), p.Name); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	_ = s.Discard() // the image is there; what is left of the stage goes with the next pull
	return nil
}

// finish writes what is missing in the stage and syncs all of it.
func (s *stage) finish(p *imagepull.Pulled) error {
	for i, id := range p.DiffIDs {
		if err := s.layer(id, p.Layers[i]); err != nil {
			return err
		}
	}
	if err := s.tree(p); err != nil {
		return err
	}
	if err := s.image(p); err != nil {
		return err
	}
	for _, f := range s.files {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return s.close()
}

// layer writes what a layer's tar says, where its content is in the stage.
func (s *stage) layer(id digest.Digest, l *unpack.Layer) error {
	dir := filepath.Join(s.path, layersDir, id.Encoded())
	if !exists(dir) || exists(filepath.Join(dir, layerFile)) {
		return nil
	}
	b, err := l.MarshalBinary()
	if err != nil {
		return err
	}
	return s.write(b, layersDir, id.Encoded(), layerFile)
}

func (s *stage) tree(p *imagepull.Pulled) error {
	old, dir := filepath.Join(s.path, treesDir, erofsFile), p.ChainID.Encoded()
	if !exists(old) {
		return nil
	}
	if err := os.Mkdir(filepath.Join(s.path, treesDir, dir), 0o700); err != nil {
		return err
	}
	return os.Rename(old, filepath.Join(s.path, treesDir, dir, erofsFile))
}

func (s *stage) image(p *imagepull.Pulled) error {
	r := Image{
		Schema: recordSchema, Names: []string{p.Name}, Manifest: digest.Digest(p.Digest), Platform: p.Platform,
		ChainID: p.ChainID, DiffIDs: p.DiffIDs, Devices: deviceIDs(p),
	}
	for _, l := range p.Image.Layers {
		r.Size += l.Size
	}
	b, err := strictjson.Marshal(r)
	if err != nil {
		return err
	}
	dir := r.Manifest.Encoded()
	return errors.Join(
		s.write(p.Manifest, imagesDir, dir, manifestFile), s.write(p.Raw, imagesDir, dir, configFile), s.write(b, imagesDir, dir, imageFile))
}

func (s *stage) write(b []byte, names ...string) error {
	f, err := s.create(names...)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// move gives a directory of the stage its final name. Where another process was
// quicker, its own is as good: the name says what is in it.
func (s *stage) move(kind string, id digest.Digest) error {
	from, to := filepath.Join(s.path, kind, id.Encoded()), s.d.join(kind, id.Encoded())
	if !exists(from) || exists(to) {
		return nil
	}
	if err := syncDirs(from); err != nil {
		return err
	}
	err := os.Rename(from, to)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}

func syncDirs(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// close closes the files that were written.
func (s *stage) close() error {
	var failed []error
	for _, f := range s.files {
		failed = append(failed, f.Close())
	}
	s.files = nil
	return errors.Join(failed...)
}

// Discard implements imagepull.Stage.
func (s *stage) Discard() error {
	if s.done {
		return nil
	}
	s.done = true
	// The lock goes last: until then nobody else removes what is left.
	err := errors.Join(s.close(), os.RemoveAll(s.path), s.owner.Close())
	if s.use != nil {
		err = errors.Join(err, s.use.Close())
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}
