package unpack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// An EntryError says which entry of the layer was refused or could not be made.
type EntryError struct {
	Index int64  // from 1
	Name  string // as the layer has it
	Err   error
}

func (e *EntryError) Error() string {
	name := e.Name
	if len(name) > 256 {
		name = name[:256] + "..."
	}
	return fmt.Sprintf("entry %d: %q: %v", e.Index, name, e.Err)
}

func (e *EntryError) Unwrap() error { return e.Err }

// A LimitError says which of Limits an image exceeds.
type LimitError struct {
	What      string
	Got, Most int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("limit: %s: %d, want at most %d", e.What, e.Got, e.Most)
}

// A SpaceError says that the file system is full.
type SpaceError struct {
	Needed    int64 // bytes of the entry that found no room
	Available int64 // bytes
	Inodes    uint64
	Err       error // what the kernel said; nil where it was not asked
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("no space: %d bytes needed, %d bytes and %d inodes available", e.Needed, e.Available, e.Inodes)
}

func (e *SpaceError) Unwrap() error { return e.Err }

// explain adds the sizes to an error of a full file system.
func (t *Tree) explain(err error, needed int64) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	available, inodes, serr := t.space()
	if serr != nil {
		return err
	}
	return &SpaceError{needed, available, inodes, err}
}

func (t *Tree) space() (bytes int64, inodes uint64, err error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(t.root.fd, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Bavail) * s.Bsize, s.Ffree, nil
}
