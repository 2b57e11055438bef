package qemu

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
)

const runDirPattern = "plinth-qemu-*"

// A runDir holds the files of one run: the TPM's state, the guest's copy of
// the firmware variables. It is locked as long as this process lives, so that
// a later run can tell what a killed one has left.
type runDir struct {
	path string // absolute
	lock *os.File
}

// newRunDir makes a directory below the system's temporary one, after
// removing those whose process is dead.
func newRunDir() (*runDir, error) {
	sweep()
	tmp, err := filepath.Abs(os.TempDir())
	if err != nil {
		return nil, err
	}
	for {
		path, err := os.MkdirTemp(tmp, runDirPattern)
		if err != nil {
			return nil, err
		}
		lock, err := lockDir(path, syscall.LOCK_EX)
		if err != nil {
			os.Remove(path)
			return nil, err
		}
		// Another run's sweep may have come between the two calls.
		if sameFile(lock, path) {
			return &runDir{path, lock}, nil
		}
		lock.Close()
	}
}

func (d *runDir) file(name string) string { return filepath.Join(d.path, name) }

func (d *runDir) remove() error {
	defer d.lock.Close()
	return os.RemoveAll(d.path)
}

// sweep removes this user's run directories that nobody holds.
func sweep() {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), runDirPattern)) // fails on a bad pattern only
	for _, path := range old {
		fi, err := os.Lstat(path)
		if err != nil || !fi.IsDir() || fi.Sys().(*syscall.Stat_t).Uid != uint32(os.Getuid()) {
			continue
		}
		if lock, err := lockDir(path, syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			os.RemoveAll(path) // what cannot be removed now is tried by the next run
			lock.Close()
		}
	}
}

func lockDir(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	return f, nil
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// copyFile copies the file at from to a new file, which is the owner's alone.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
