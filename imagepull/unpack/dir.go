package unpack

import (
	"cmp"
	"errors"
	"hash/maphash"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	openFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	cacheDirs = 256 // open directories to keep, beside those above one in use
)

// A dir is an open directory of the tree. Those above it are open as well.
type dir struct {
	parent *dir // nil: the root
	name   string
	path   string // beneath the root, links resolved; "" is the root
	depth  int
	fd     int // -1: closed
	kids   map[string]*dir

	used uint64 // when it was last asked for
	pins int    // it stays open while this is not 0

	touched bool             // times are not those on disk
	times   [2]unix.Timespec // access, modification: to be set when the work in it is done
	setgid  bool             // new entries get its group
	acl     bool             // new entries inherit an access list
	layer   int              // the last layer that brought something below it
}

func newDir(parent *dir, name string, fd int) *dir {
	d := &dir{parent: parent, name: name, path: name, fd: fd}
	if parent != nil {
		d.path, d.depth = parent.join(name), parent.depth+1
		if parent.kids == nil {
			parent.kids = make(map[string]*dir)
		}
		parent.kids[name] = d
	}
	return d
}

func (d *dir) join(name string) string {
	if d.path == "" {
		return name
	}
	return d.path + "/" + name
}

// inspect reads what the directory does to new entries.
func (d *dir) inspect() error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	d.setgid = st.Mode&unix.S_ISGID != 0
	_, err := unix.Fgetxattr(d.fd, aclDefault, nil)
	d.acl = err == nil
	return nil
}

// touch notes the times of d before something in it changes: what a layer does
// in a directory leaves no trace in the times of that directory.
func (d *dir) touch() error {
	if d.touched {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	d.times, d.touched = [2]unix.Timespec{st.Atim, st.Mtim}, true
	return nil
}

// restore sets the times of d.
func (d *dir) restore() error {
	if !d.touched {
		return nil
	}
	at, name := d.fd, "."
	if d.parent != nil {
		at, name = d.parent.fd, d.name
	}
	if err := unix.UtimesNanoAt(at, name, d.times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return at2err("set times", d.path, err)
	}
	d.touched = false
	return nil
}

// cache bounds the open directories.
type cache struct {
	open  int
	clock uint64
}

// A memo is the directory that was resolved last: entries of one directory
// stand together.
type memo struct {
	name string
	dir  *dir
}

// settle restores the times of d and of what is open below it.
func (t *Tree) settle(d *dir) error {
	for _, kid := range d.kids {
		if err := t.settle(kid); err != nil {
			return err
		}
	}
	return d.restore()
}

// drop closes d and what is open below it, as they are.
func (t *Tree) drop(d *dir) {
	for _, kid := range d.kids {
		t.drop(kid)
	}
	if d.parent != nil {
		delete(d.parent.kids, d.name)
	}
	_ = unix.Close(d.fd) // opened to read
	d.fd = -1
	t.cache.open--
}

// use notes that d is wanted now.
func (t *Tree) use(d *dir) *dir {
	t.cache.clock++
	d.used = t.cache.clock
	return d
}

// open opens the directory name in d. The error is ENOTDIR where something else
// stands there, a link too.
func (t *Tree) open(d *dir, name string) (*dir, error) {
	if kid := d.kids[name]; kid != nil {
		return t.use(kid), nil
	}
	fd, err := again(func() (int, error) { return unix.Openat(d.fd, name, openFlags, 0) })
	if err != nil {
		return nil, err
	}
	kid := newDir(d, name, fd)
	t.cache.open++
	if err := kid.inspect(); err != nil {
		return nil, err
	}
	t.use(kid)
	if t.cache.open > cacheDirs {
		return kid, t.shrink(kid)
	}
	return kid, nil
}

// shrink closes the directories that were used longest ago, down to three
// quarters, but none that keep needs.
func (t *Tree) shrink(keep *dir) error {
	var leaves []*dir
	var collect func(*dir)
	collect = func(d *dir) {
		for _, kid := range d.kids {
			collect(kid)
		}
		if len(d.kids) == 0 && d != keep && d.pins == 0 && d != t.root {
			leaves = append(leaves, d)
		}
	}
	collect(t.root)
	slices.SortFunc(leaves, func(a, b *dir) int { return cmp.Compare(a.used, b.used) })
	for _, d := range leaves {
		if t.cache.open <= cacheDirs*3/4 {
			break
		}
		if err := d.restore(); err != nil {
			return err
		}
		if t.memo.dir == d {
			t.memo = memo{}
		}
		t.drop(d)
	}
	return nil
}

// mark notes that this layer brought name in d, and with it the directories
// above.
func (t *Tree) mark(d *dir, name string) {
	t.upper[t.hash(d.path, name)] = struct{}{}
	for ; d.parent != nil && d.layer != t.layer; d = d.parent {
		d.layer = t.layer
		t.upper[t.hash(d.parent.path, d.name)] = struct{}{}
	}
}

func (t *Tree) marked(d *dir, name string) bool {
	_, ok := t.upper[t.hash(d.path, name)]
	return ok
}

// hash stands for a path in the sets of one layer: eight bytes, however long the
// path. The seed is new for every tree, so that no layer can be made to collide.
func (t *Tree) hash(dir, name string) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	_, _ = h.WriteString(dir)
	if dir != "" {
		_ = h.WriteByte('/')
	}
	_, _ = h.WriteString(name)
	return h.Sum64()
}

// eachName calls f with every name in a directory, which f may remove. It
// returns the first error of f.
func eachName(fd int, f func(name string) error) error {
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return err
	}
	buf := make([]byte, 8<<10)
	var names []string
	for {
		n, err := again(func() (int, error) { return unix.ReadDirent(fd, buf) })
		if err != nil || n <= 0 {
			return err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
	}
}

// again repeats a call that a signal broke off.
func again(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
