package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	dirFlags  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fileFlags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// Extract makes the tree in dir, which is empty and becomes the root; content is
// that of the applied layers, beside them, nil where Devices does not name one.
// It needs the right to change owners. After an error, half a tree is there.
// Nothing is synced.
//
// Every system call names one part of a path beneath an open directory and
// follows no link, but for that of a further name of a file: its first name is a
// path of directories that were made here.
func (t *Tree) Extract(ctx context.Context, dir string, content []io.ReaderAt) error {
	if t.err != nil {
		return t.err
	}
	if len(content) != len(t.layers) {
		return fmt.Errorf("unpack: contents of %d layers, want %d", len(content), len(t.layers))
	}
	fd, err := unix.Open(dir, dirFlags&^unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("unpack: %s: %w", dir, err)
	}
	x := &extractor{
		ctx: ctx, content: content, root: fd, first: make(map[*inode]string), buf: make([]byte, 1<<20),
		super: os.Geteuid() == 0 && os.Getegid() == 0,
	}
	err = x.prepare()
	if err == nil {
		err = x.directory(fd, "", t.root)
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("unpack: %s: %w", dir, err)
	}
	return nil
}

type extractor struct {
	ctx     context.Context // of the Extract that it is for
	content []io.ReaderAt
	root    int
	first   map[*inode]string // the path of an inode that may have more names
	buf     []byte
	super   bool // owner of new files is 0:0 without asking
}

// prepare takes from the root what new entries would inherit.
func (x *extractor) prepare() error {
	names := 0
	if err := eachName(x.root, func(string) { names++ }); err != nil {
		return err
	}
	if names > 0 {
		return fmt.Errorf("%d names in it: want none", names)
	}
	if err := unix.Fchmod(x.root, 0o700); err != nil {
		return err
	}
	return clearAttributes(x.root)
}

// directory fills an open directory and then describes it.
func (x *extractor) directory(fd int, path string, n *inode) error {
	for _, name := range slices.Sorted(maps.Keys(n.kids)) {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		if err := x.entry(fd, path, name, n.kids[name].inode); err != nil {
			return err
		}
	}
	if err := x.describe(fd, n); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

func (x *extractor) entry(parent int, dir, name string, n *inode) error {
	path := join(dir, name)
	if n.linked {
		if first, ok := x.first[n]; ok {
			return wrap("make link", path, unix.Linkat(x.root, first, parent, name, 0))
		}
		x.first[n] = path
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return x.subdirectory(parent, path, name, n)
	case unix.S_IFREG:
		return wrap("make file", path, x.file(parent, name, n))
	case unix.S_IFLNK:
		if err := unix.Symlinkat(n.target, parent, name); err != nil {
			return wrap("make link", path, err)
		}
	default:
		dev := unix.Mkdev(n.major, n.minor)
		if err := unix.Mknodat(parent, name, n.mode&unix.S_IFMT|0o600, int(dev)); err != nil {
			return wrap("make node", path, err)
		}
	}
	return wrap("make", path, x.describeAt(parent, name, n))
}

func wrap(what, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %w", what, path, err)
}

func (x *extractor) subdirectory(parent int, path, name string, n *inode) error {
	if err := unix.Mkdirat(parent, name, 0o700); err != nil {
		return wrap("make directory", path, err)
	}
	fd, err := again(func() (int, error) { return unix.Openat(parent, name, dirFlags, 0) })
	if err != nil {
		return wrap("open directory", path, err)
	}
	return errors.Join(x.directory(fd, path, n), unix.Close(fd))
}

func (x *extractor) file(parent int, name string, n *inode) error {
	fd, err := again(func() (int, error) { return unix.Openat(parent, name, fileFlags, 0o600) })
	if err != nil {
		return err
	}
	err = x.fill(fd, n)
	if err == nil {
		err = x.describe(fd, n)
	}
	return errors.Join(err, unix.Close(fd))
}

// fill writes the data of a file, and leaves out its holes.
func (x *extractor) fill(fd int, n *inode) error {
	runs := n.runs
	if runs == nil {
		runs = []run{{0, uint32(blockCount(n.size))}}
	}
	from, to := int64(n.first)*BlockSize, int64(0)
	for _, r := range runs {
		to += int64(r.hole) * BlockSize
		size := min(int64(r.data)*BlockSize, n.size-to)
		if err := x.copy(fd, to, n.from, from, size); err != nil {
			return err
		}
		from, to = from+int64(r.data)*BlockSize, to+size
	}
	if runs[len(runs)-1].data > 0 || n.size == 0 {
		return nil
	}
	return unix.Ftruncate(fd, n.size)
}

func (x *extractor) copy(fd int, to int64, layer int32, from, size int64) error {
	for size > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		b := x.buf[:min(int64(len(x.buf)), size)]
		if err := readAt(x.content[layer-1], b, from); err != nil {
			return fmt.Errorf("content of layer %d: offset %#x: %w", layer, from, err)
		}
		for done := 0; done < len(b); {
			n, err := again(func() (int, error) { return unix.Pwrite(fd, b[done:], to+int64(done)) })
			if err == nil && n == 0 {
				err = io.ErrShortWrite
			}
			if err != nil {
				return err
			}
			done += n
		}
		k := int64(len(b))
		from, to, size = from+k, to+k, size-k
	}
	return nil
}

func readAt(r io.ReaderAt, b []byte, off int64) error {
	if r == nil {
		return errors.New("it is not there")
	}
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// describe finishes an open file or directory: the owner before the mode, as a
// change of owner takes setuid away, and before the attributes, as it takes
// capabilities away. An access list says of the permissions what the mode says.
func (x *extractor) describe(fd int, n *inode) error {
	if !x.super || n.uid != 0 || n.gid != 0 || n.dir != nil && n.parent == nil {
		if err := unix.Fchown(fd, int(n.uid), int(n.gid)); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", n.uid, n.gid, err)
		}
	}
	if err := unix.Fchmod(fd, n.mode&permissions); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	if err := setAttributes(n.attrs, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
		return err
	}
	return setTimes(fd, "", unix.AT_EMPTY_PATH, n)
}

// describeAt finishes a link or node, which is not opened: opening a device is an
// act.
func (x *extractor) describeAt(parent int, name string, n *inode) error {
	if !x.super || n.uid != 0 || n.gid != 0 {
		if err := unix.Fchownat(parent, name, int(n.uid), int(n.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", n.uid, n.gid, err)
		}
	}
	if n.mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(parent, name, n.mode&permissions, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	// The kernel has had no call for long that sets an attribute beside an open
	// directory, but it shows the directory under a path. Only the last part is the
	// layer's, and that is not followed.
	at := fmt.Sprintf("/proc/self/fd/%d/%s", parent, name)
	if err := setAttributes(n.attrs, func(name string, value []byte) error { return unix.Lsetxattr(at, name, value, 0) }); err != nil {
		return err
	}
	return setTimes(parent, name, unix.AT_SYMLINK_NOFOLLOW, n)
}

func setTimes(fd int, name string, flags int, n *inode) error {
	ts := unix.Timespec{Sec: n.sec, Nsec: int64(n.nsec)}
	if err := unix.UtimesNanoAt(fd, name, []unix.Timespec{ts, ts}, flags); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func setAttributes(attrs map[string][]byte, set func(name string, value []byte) error) error {
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		if err := set(name, attrs[name]); err != nil {
			return fmt.Errorf("set attribute %q: %w", name, err)
		}
	}
	return nil
}

// clearAttributes removes what dropped does not leave to the machine.
func clearAttributes(fd int) error {
	n, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil
	}
	list := make([]byte, max(n, 0))
	if err == nil {
		n, err = unix.Flistxattr(fd, list)
	}
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if dropped(name) {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil {
			return fmt.Errorf("remove attribute %q: %w", name, err)
		}
	}
	return nil
}

// eachName calls f with every name in a directory.
func eachName(fd int, f func(name string)) error {
	buf := make([]byte, 8<<10)
	var names []string
	for {
		n, err := again(func() (int, error) { return unix.ReadDirent(fd, buf) })
		if err != nil || n <= 0 {
			return err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			f(name)
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
