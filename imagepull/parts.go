package imagepull

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// A part is what has come of a blob so far, in a file of its own. The bytes are
// written as they come, so that not even SIGKILL makes the next pull read them
// again. They are believed when all of the blob has its digest.
type part struct {
	f    *os.File
	have int64 // bytes that an earlier pull left
	size int64 // bytes of the file
	bad  bool  // of no use to the next pull
}

// openPart returns the part of a blob, nil where another process writes it now:
// then this pull reads all of the blob and keeps none of it.
func openPart(dir string, d v1.Descriptor) (*part, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("parts: %w", err)
	}
	return openPartFile(dir, d, os.O_CREATE)
}

// dropPart removes what a pull left of a blob that nobody needs any more.
func dropPart(dir string, d v1.Descriptor) error {
	p, err := openPartFile(dir, d, 0)
	if p == nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return p.end(false)
}

func openPartFile(dir string, d v1.Descriptor, flag int) (*part, error) {
	f, err := os.OpenFile(filepath.Join(dir, d.Digest.Encoded()), os.O_RDWR|unix.O_NOFOLLOW|flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("parts: %w", err)
	}
	p, err := lockPart(f, d.Size)
	if p == nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

func lockPart(f *os.File, size int64) (*part, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	} else if err != nil {
		return nil, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Whoever had the lock may have removed the file meanwhile.
	there, err := os.Lstat(f.Name())
	if err != nil || !os.SameFile(mine, there) {
		return nil, nil
	}
	if mine.Size() <= size {
		return &part{f: f, have: mine.Size(), size: mine.Size()}, nil
	}
	p := &part{f: f}
	if err := p.empty(); err != nil { // of no blob of this size
		return nil, err
	}
	return p, nil
}

// empty forgets what an earlier pull left.
func (p *part) empty() error {
	p.have, p.size = 0, 0
	return p.f.Truncate(0)
}

// had reads what an earlier pull left.
func (p *part) had() (io.Reader, int64) {
	if p == nil || p.have == 0 {
		return nil, 0
	}
	return io.NewSectionReader(p.f, 0, p.have), p.have
}

// add appends bytes that follow those at the file's end.
func (p *part) add(b []byte) error {
	n, err := p.f.WriteAt(b, p.size)
	p.size += int64(n)
	return err
}

// end keeps the part for the next pull, or removes it.
func (p *part) end(keep bool) error {
	var err error
	if !keep || p.bad || p.size == 0 {
		err = os.Remove(p.f.Name()) // while it is locked: see lockPart
	}
	return errors.Join(err, p.f.Close())
}
