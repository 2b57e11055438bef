// Package cas is a content-addressed store in one directory: blobs by SHA-256,
// small results by key. Any number of processes may use one store at once.
//
// Files appear by rename after sync, so a killed writer leaves nothing under a
// final name; what it leaves in tmp/ is removed by a later Open.
package cas

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A Digest is the SHA-256 digest of a blob, or a key made from digests.
type Digest [sha256.Size]byte

// A Ref names a blob and says how long it is.
type Ref struct {
	Digest Digest `json:"sha256"`
	Size   int64  `json:"size"` // bytes
}

// ErrNotFound is returned for a blob or result that the store does not hold.
var ErrNotFound = errors.New("not in the store")

// A DamagedError says that a blob's file has another content than its name says.
// The file is gone by then: whatever made the blob makes it again.
type DamagedError struct{ Want, Got Digest }

func (e *DamagedError) Error() string {
	return fmt.Sprintf("cas: blob %s: content has digest %s: removed; build again", e.Want, e.Got)
}

// Sum returns the digest of b.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short returns the first 12 hexadecimal digits, for people.
func (d Digest) Short() string { return d.String()[:12] }

// ParseDigest parses 64 lower-case hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != s {
		return d, fmt.Errorf("cas: digest %q: want 64 lower-case hexadecimal digits", s)
	}
	copy(d[:], b)
	return d, nil
}

func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}

// A Store is an open store. Its methods may be called from many goroutines.
type Store struct {
	dir   string
	sound sync.Map // by Digest: blobs that this process wrote or checked
}

const (
	blobDir    = "blobs/sha256"
	resultDir  = "results"
	tempDir    = "tmp"
	lockDir    = "locks"
	partialDir = "partial"
)

// Open opens the store in dir, creating it as needed, and removes the
// temporary files of processes that are gone.
func Open(dir string) (*Store, error) {
	for _, d := range []string{blobDir, resultDir, tempDir, lockDir, partialDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("cas: %w", err)
		}
	}
	s := &Store{dir: dir}
	return s, s.sweep()
}

// Dir returns the directory of the store.
func (s *Store) Dir() string { return s.dir }

// sweep removes temporary files that nobody holds: a live writer keeps a
// shared lock on its file, a killed one has lost it.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, tempDir))
	if err != nil {
		return fmt.Errorf("cas: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, tempDir, e.Name())
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // gone, or another user's: not ours to judge
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(path)
		}
		f.Close()
	}
	return nil
}

func (s *Store) blobPath(d Digest) string {
	h := d.String()
	return filepath.Join(s.dir, blobDir, h[:2], h)
}

// Has reports whether the store holds the blob.
func (s *Store) Has(d Digest) bool {
	_, err := os.Stat(s.blobPath(d))
	return err == nil
}

// Holds reports whether the store holds the blob with the size that r states.
func (s *Store) Holds(r Ref) bool {
	fi, err := os.Stat(s.blobPath(r.Digest))
	return err == nil && fi.Size() == r.Size
}

// Find returns a blob that is known by its digest alone.
func (s *Store) Find(d Digest) (Ref, bool) {
	fi, err := os.Stat(s.blobPath(d))
	if err != nil {
		return Ref{}, false
	}
	return Ref{Digest: d, Size: fi.Size()}, true
}

// Open opens a blob for reading, after comparing its content with the digest,
// once in a process. It fails with ErrNotFound or a *DamagedError.
func (s *Store) Open(r Ref) (*os.File, error) {
	f, err := os.Open(s.blobPath(r.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cas: blob %s: %w", r.Digest, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("cas: %w", err)
	}
	if err := s.check(f, r.Digest); err != nil {
		f.Close()
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != r.Size {
		err = fmt.Errorf("cas: blob %s: %d bytes in the store, want %d", r.Digest, fi.Size(), r.Size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// check hashes a blob's file unless this process has written or checked it.
func (s *Store) check(f *os.File, d Digest) error {
	if _, ok := s.sound.Load(d); ok {
		return nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64)); err != nil {
		return fmt.Errorf("cas: blob %s: %w", d, err)
	}
	return s.judge(d, Digest(h.Sum(nil)))
}

// judge notes that a blob is sound, or removes it.
func (s *Store) judge(want, got Digest) error {
	if got == want {
		s.sound.Store(want, true)
		return nil
	}
	return errors.Join(&DamagedError{want, got}, s.Remove(want))
}

// ReadFile returns a blob whole and checks its digest.
func (s *Store) ReadFile(d Digest) ([]byte, error) {
	b, err := os.ReadFile(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cas: blob %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("cas: %w", err)
	}
	if err := s.judge(d, Sum(b)); err != nil {
		return nil, err
	}
	return b, nil
}

// Remove takes a blob out of the store, for a caller that found it damaged.
func (s *Store) Remove(d Digest) error {
	s.sound.Delete(d)
	if err := os.Remove(s.blobPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cas: %w", err)
	}
	return nil
}

func (s *Store) resultPath(key Digest) string {
	h := key.String()
	return filepath.Join(s.dir, resultDir, h[:2], h)
}

// LoadResult returns the document saved under key, ErrNotFound without one.
func (s *Store) LoadResult(key Digest) ([]byte, error) {
	b, err := os.ReadFile(s.resultPath(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cas: result %s: %w", key, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("cas: %w", err)
	}
	body, ok := checkedResult(b)
	if !ok {
		return nil, fmt.Errorf("cas: result %s: damaged: %w", key, ErrNotFound)
	}
	return body, nil
}

// SaveResult stores a small document under key, replacing what was there. The
// file begins with the document's own digest, so that damage is noticed and
// the step simply runs again.
func (s *Store) SaveResult(key Digest, b []byte) error {
	w, err := s.Create()
	if err != nil {
		return err
	}
	defer w.Abort()
	sum := Sum(b)
	if _, err := w.Write(append([]byte(sum.String()+"\n"), b...)); err != nil {
		return err
	}
	return w.publish(s.resultPath(key))
}

func checkedResult(b []byte) ([]byte, bool) {
	head, body, ok := bytes.Cut(b, []byte("\n"))
	return body, ok && Sum(body).String() == string(head)
}

// Partial returns the path where a resumable download collects its bytes.
// The caller holds Lock(name) while it writes there.
func (s *Store) Partial(name string) string {
	return filepath.Join(s.dir, partialDir, Sum([]byte(name)).String())
}
