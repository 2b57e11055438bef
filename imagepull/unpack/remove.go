package unpack

import (
	"errors"

	"golang.org/x/sys/unix"
)

// remove removes name from d and, of a directory, all that is in it. It is no
// error where there is nothing.
func (t *Tree) remove(d *dir, name string) error {
	if err := d.touch(); err != nil {
		return at2err("stat", d.path, err)
	}
	if kid := d.kids[name]; kid != nil {
		t.drop(kid)
	}
	t.memo = memo{} // its way may have led through name
	if err := removeAll(d.fd, name); err != nil {
		return at2err("remove", d.join(name), err)
	}
	return nil
}

// removeAll calls itself as deep as the tree is: Limits.Depth.
func removeAll(at int, name string) error {
	err := unix.Unlinkat(at, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) { // POSIX has EPERM for directories
		return err
	}
	derr := unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	switch {
	case derr == nil, errors.Is(derr, unix.ENOENT):
		return nil
	case errors.Is(derr, unix.ENOTDIR):
		return err
	case !errors.Is(derr, unix.ENOTEMPTY) && !errors.Is(derr, unix.EEXIST):
		return derr
	}
	if err := empty(at, name); err != nil {
		return err
	}
	return unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
}

func empty(at int, name string) error {
	fd, err := again(func() (int, error) { return unix.Openat(at, name, openFlags, 0) })
	if err != nil {
		return err
	}
	err = eachName(fd, func(name string) error { return removeAll(fd, name) })
	return errors.Join(err, unix.Close(fd))
}
