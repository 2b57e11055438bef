package cas

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/ctxio"
)

// A Writer collects one blob in a temporary file. Write appends and hashes on
// the way; WriteAt writes anywhere, and then Commit reads the file once more.
type Writer struct {
	s      *Store
	f      *os.File
	hash   hash.Hash
	size   int64
	random bool // WriteAt was used: the running hash says nothing
	done   bool
	err    error // the first of Write and WriteAt
}

// Create starts a blob. The caller defers Abort, which does nothing after Commit.
func (s *Store) Create() (*Writer, error) {
	for {
		f, err := s.createTemp()
		if err != nil {
			return nil, fmt.Errorf("cas: %w", err)
		}
		if f != nil {
			return &Writer{s: s, f: f, hash: sha256.New()}, nil
		}
	}
}

// createTemp returns a temporary file under a shared lock, or nil when another
// process swept the file away between its creation and the lock.
func (s *Store) createTemp() (*os.File, error) {
	// The name is random because two processes may share a PID in two containers.
	path := filepath.Join(s.dir, tempDir, rand.Text())
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && st.Nlink > 0 {
		return f, nil
	}
	f.Close()
	os.Remove(path)
	return nil, err
}

func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	w.note(err)
	return n, err
}

func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	w.random = true
	n, err := w.f.WriteAt(p, off)
	w.note(err)
	return n, err
}

func (w *Writer) note(err error) {
	if w.err == nil {
		w.err = err
	}
}

// Err returns the first error of Write and WriteAt, for a caller that got it
// from a library as text alone.
func (w *Writer) Err() error { return w.err }

// File gives the temporary file itself, for a caller that truncates it or
// leaves holes; Commit then hashes the file as it stands.
func (w *Writer) File() *os.File {
	w.random = true
	return w.f
}

// Commit publishes the blob under its digest.
func (w *Writer) Commit(ctx context.Context) (Ref, error) {
	if w.random {
		if err := w.rehash(ctx); err != nil {
			return Ref{}, err
		}
	}
	var r Ref
	w.hash.Sum(r.Digest[:0])
	r.Size = w.size
	if w.s.Holds(r) {
		w.Abort()
		return r, nil
	}
	if err := w.publish(w.s.blobPath(r.Digest)); err != nil {
		return r, err
	}
	w.s.sound.Store(r.Digest, true)
	return r, nil
}

func (w *Writer) rehash(ctx context.Context) error {
	fi, err := w.f.Stat()
	if err != nil {
		return fmt.Errorf("cas: %w", err)
	}
	w.size = fi.Size()
	w.hash.Reset()
	r := ctxio.Reader(ctx, io.NewSectionReader(w.f, 0, w.size))
	if _, err := io.CopyBuffer(onlyWriter{w.hash}, r, make([]byte, 1<<20)); err != nil {
		return fmt.Errorf("cas: %w", err)
	}
	return nil
}

// publish syncs the file and renames it to path.
func (w *Writer) publish(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cas: %w", err)
	}
	// The umask of the builder must not decide who may read the store.
	if err := errors.Join(w.f.Chmod(0o644), w.f.Sync()); err != nil {
		return fmt.Errorf("cas: %w", err)
	}
	if err := os.Rename(w.f.Name(), path); err != nil {
		return fmt.Errorf("cas: %w", err)
	}
	w.done = true
	if err := w.f.Close(); err != nil {
		return fmt.Errorf("cas: %w", err)
	}
	return nil
}

// Abort gives the blob up and removes the temporary file.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	os.Remove(w.f.Name())
	w.f.Close()
}

// Put stores b.
func (s *Store) Put(b []byte) (Ref, error) {
	r := Ref{Digest: Sum(b), Size: int64(len(b))}
	if s.Holds(r) {
		return r, nil
	}
	w, err := s.Create()
	if err != nil {
		return Ref{}, err
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		return Ref{}, fmt.Errorf("cas: %w", err)
	}
	return w.Commit(context.Background())
}

// PutReader stores what r yields until EOF.
func (s *Store) PutReader(ctx context.Context, r io.Reader) (Ref, error) {
	w, err := s.Create()
	if err != nil {
		return Ref{}, err
	}
	defer w.Abort()
	if _, err := io.CopyBuffer(onlyWriter{w}, ctxio.Reader(ctx, r), make([]byte, 1<<20)); err != nil {
		return Ref{}, fmt.Errorf("cas: %w", err)
	}
	return w.Commit(ctx)
}

// onlyWriter hides ReadFrom, which would bypass the copy buffer and the hash.
type onlyWriter struct{ io.Writer }

// Lock takes the named lock, waiting until ctx ends; one process holds it at a
// time. The kernel frees it when the holder dies.
func (s *Store) Lock(ctx context.Context, name string) (unlock func(), err error) {
	path := filepath.Join(s.dir, lockDir, Sum([]byte(name)).String())
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cas: %w", err)
	}
	if err := flockContext(ctx, f); err != nil {
		f.Close()
		return nil, fmt.Errorf("cas: lock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// flockContext waits for an exclusive lock. flock cannot be interrupted from
// outside, so it polls: a waiter has seconds of another build's work ahead.
func flockContext(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if err := sleep(ctx, lockPoll); err != nil {
			return err
		}
	}
}

// RemovePartial forgets a partial download.
func (s *Store) RemovePartial(name string) error {
	if err := os.Remove(s.Partial(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cas: %w", err)
	}
	return nil
}
