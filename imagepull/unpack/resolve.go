package unpack

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links the kernel follows on the way to a file.
const maxLinks = 40

// clean is name beneath the root, "" for the root itself. ".." counts as text
// and never leads above the root.
func clean(name string) string { return path.Clean("/" + name)[1:] }

// split is a clean name's directory and last part.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// checkName refuses what no path may be.
func (t *Tree) checkName(what, name string) error {
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%s holds a NUL", what)
	}
	return t.checkLen(what, len(name))
}

func (t *Tree) checkLen(what string, n int) error {
	if n > t.limits.PathLen {
		return &LimitError{"length of the " + what, int64(n), int64(t.limits.PathLen)}
	}
	return nil
}

// checkRoom refuses a name in d that would lie too deep.
func (t *Tree) checkRoom(d *dir, name string) error {
	if d.depth+1 > t.limits.Depth {
		return &LimitError{"depth of directories", int64(d.depth) + 1, int64(t.limits.Depth)}
	}
	n := len(name)
	if d.path != "" {
		n += len(d.path) + 1
	}
	return t.checkLen("resolved name", n)
}

// A walk follows a name from the root.
type walk struct {
	t       *Tree
	at      *dir
	missing []string // parts behind at that are no directory
	links   int
	steps   int  // parts looked at, those of link targets too
	guessed bool // a missing part was taken away again: what is made later may change the way
}

// resolve finds the directory of a clean name, following links as if the tree
// were the root. A part that is missing, or no directory, is taken as text: a
// ".." of a link takes it away again. With make, missing directories are made;
// else nil says that there is no such directory.
func (t *Tree) resolve(name string, make bool) (*dir, error) {
	if t.memo.dir != nil && t.memo.name == name {
		return t.use(t.memo.dir), nil
	}
	w := walk{t: t, at: t.root}
	if err := w.follow(name); err != nil {
		return nil, err
	}
	if len(w.missing) > 0 && !make {
		return nil, nil
	}
	for _, part := range w.missing {
		if err := w.make(part); err != nil {
			return nil, err
		}
	}
	if !w.guessed {
		t.memo = memo{name, w.at}
	}
	return w.at, nil
}

func (w *walk) follow(rest string) error {
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		if w.steps++; w.steps > 2*w.t.limits.PathLen {
			return fmt.Errorf("way to the directory: %w", unix.ELOOP)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			w.up()
			continue
		}
		target, err := w.down(part)
		if err != nil {
			return err
		}
		if target == "" {
			continue
		}
		if w.links++; w.links > maxLinks {
			return fmt.Errorf("way to the directory: %w", unix.ELOOP)
		}
		if target[0] == '/' {
			w.at, w.missing = w.t.root, nil // a link is read where nothing is missing
		}
		rest = target + "/" + rest
	}
	return nil
}

func (w *walk) up() {
	switch {
	case len(w.missing) > 0:
		w.missing, w.guessed = w.missing[:len(w.missing)-1], true
	case w.at.parent != nil:
		w.at = w.at.parent
	}
}

// down goes into part, or returns the target of the link that stands there.
func (w *walk) down(part string) (target string, err error) {
	if len(w.missing) > 0 {
		w.missing = append(w.missing, part)
		return "", nil
	}
	kid, err := w.t.open(w.at, part)
	switch {
	case err == nil:
		w.at = kid
		return "", nil
	case errors.Is(err, unix.ENOENT):
		w.missing = append(w.missing, part)
		return "", nil
	case !errors.Is(err, unix.ENOTDIR):
		return "", at2err("open directory", w.at.join(part), err)
	}
	target, err = readlink(w.at.fd, part)
	if errors.Is(err, unix.EINVAL) { // no link
		w.missing = append(w.missing, part)
		return "", nil
	}
	if err != nil {
		return "", at2err("read link", w.at.join(part), err)
	}
	return target, nil
}

func readlink(fd int, name string) (string, error) {
	buf := make([]byte, 4096) // PATH_MAX: no target is longer
	n, err := unix.Readlinkat(fd, name, buf)
	return string(buf[:max(n, 0)]), err
}

// make makes a directory that no entry has named.
func (w *walk) make(part string) error {
	t, d := w.t, w.at
	if strings.HasPrefix(part, whiteoutPrefix) {
		return fmt.Errorf("directory %q: the name is that of a whiteout", d.join(part))
	}
	if err := t.count(); err != nil {
		return err
	}
	if err := t.checkRoom(d, part); err != nil {
		return err
	}
	if err := d.touch(); err != nil {
		return at2err("stat", d.path, err)
	}
	mode := uint32(0o755)
	if d.acl {
		mode = 0o777 // the list that it inherits takes from it
	}
	err := unix.Mkdirat(d.fd, part, mode)
	if errors.Is(err, unix.EEXIST) {
		err = unix.ENOTDIR // or resolve had found it
	}
	if err != nil {
		return at2err("make directory", d.join(part), err)
	}
	kid, err := t.open(d, part)
	if err != nil {
		return at2err("open directory", d.join(part), err)
	}
	kid.touched = true // with the time 0
	w.at = kid
	if d.acl {
		return nil
	}
	if kid.setgid {
		mode |= unix.S_ISGID // of the directory above, as the kernel does
	}
	if err := unix.Fchmod(kid.fd, mode); err != nil { // whatever the umask
		return at2err("set mode", kid.path, err)
	}
	return nil
}
