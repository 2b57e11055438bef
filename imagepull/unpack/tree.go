package unpack

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// A Tree is what layers over one another make. It is used by one goroutine at a
// time. Memory is some 250 bytes for each name, beside the layers'.
type Tree struct {
	ctx    context.Context // of the pull that it is for
	limits Limits
	root   *inode
	layers []*Layer
	layer  int32 // number of the layer that is being applied, from 1

	entries, bytes int64 // so far, all layers
	steps          int64 // parts of names that were looked up, in this layer
	err            error // why the tree is no longer of use
}

// An inode is a file of any type.
type inode struct {
	mode         uint32 // type bits included
	uid, gid     uint32
	major, minor uint32
	nsec         uint32
	sec          int64
	attrs        map[string][]byte
	target       string // of a symbolic link

	size  int64
	runs  []run  // nil: all of it is data
	first uint32 // block of the content of its layer
	from  int32  // the layer of its content, from 1

	linked bool // has had a second name
	*dir        // of a directory
}

// A dir is what a directory has beside other inodes.
type dir struct {
	node    *inode
	parent  *dir // nil: the root
	name    string
	depth   int
	pathLen int // bytes
	kids    map[string]dirent
	cleared int32 // the last layer that has hidden what was here before
}

type dirent struct {
	*inode
	layer int32 // that brought the name, or last brought something below it
}

// NewTree returns a tree that is the root, which is root's, mode 0755, with the
// time 0. The limits of b hold for it; what was taken from b does not count.
func NewTree(b *Budget) *Tree {
	return &Tree{ctx: context.Background(), limits: b.limits, root: newDir(nil, "", 0o755)}
}

// Until has Apply and Write fail once ctx is done.
func (t *Tree) Until(ctx context.Context) *Tree {
	t.ctx = ctx
	return t
}

// Bounds on the time that a layer takes.
const (
	maxSteps   = 64 << 20 // parts of names, as many as Limits.Entries names of 64 parts by default
	ctxRecords = 1024     // between two looks at the context
)

func newDir(parent *dir, name string, mode uint32) *inode {
	n := &inode{mode: unix.S_IFDIR | mode}
	n.dir = &dir{node: n, parent: parent, name: name}
	if parent != nil {
		n.depth, n.pathLen = parent.depth+1, len(name)
		if parent.pathLen > 0 {
			n.pathLen += parent.pathLen + 1
		}
	}
	return n
}

// path is the directory beneath the root, "" for the root itself.
func (d *dir) path() string {
	if d.parent == nil {
		return ""
	}
	return join(d.parent.path(), d.name)
}

// Apply lays one layer over those before it. After an error the tree is half a
// layer: every method fails from then on.
func (t *Tree) Apply(l *Layer) error {
	if t.err != nil {
		return t.err
	}
	t.layers = append(t.layers, l)
	t.layer++
	if err := t.apply(l); err != nil {
		t.err = fmt.Errorf("unpack: layer %d: %w", t.layer, err)
	}
	return t.err
}

func (t *Tree) apply(l *Layer) error {
	if t.bytes = sum(t.bytes, l.stats.Bytes); t.bytes > t.limits.Bytes {
		return &LimitError{limitBytes, t.bytes, t.limits.Bytes}
	}
	var r record
	t.steps = 0
	d := decoder{b: l.records}
	for index := int64(1); d.more(); index++ {
		if err := t.ctx.Err(); err != nil && index%ctxRecords == 1 {
			return err
		}
		if err := d.next(&r); err != nil {
			return err
		}
		if err := t.count(); err != nil {
			return err
		}
		if err := t.entry(&r); err != nil {
			return &EntryError{index, r.name, err}
		}
	}
	return nil
}

// count takes one entry, or one directory that no entry names, from the limit.
func (t *Tree) count() error {
	if t.entries++; t.entries > t.limits.Entries {
		return &LimitError{limitEntries, t.entries, t.limits.Entries}
	}
	return nil
}

// entry does what one record says.
func (t *Tree) entry(r *record) error {
	if err := r.check(&t.limits); err != nil {
		return err
	}
	switch r.kind {
	case kindNothing:
		return nil
	case kindWhiteout, kindOpaque, kindNote:
		return t.whiteout(r)
	}
	if r.name == "" {
		t.root.describe(r)
		return nil
	}
	parent, base := split(r.name)
	d, err := t.resolve(parent, true)
	if err != nil {
		return err
	}
	base = strings.Clone(base) // not to keep all of the name
	if err := t.checkRoom(d, base); err != nil {
		return err
	}
	if r.kind == kindHardLink {
		err = t.hardLink(d, base, r.target)
	} else {
		t.create(d, base, r)
	}
	if err == nil {
		t.mark(d)
	}
	return err
}

// checkRoom refuses a name in d that would lie too deep, or that no directory has.
func (t *Tree) checkRoom(d *dir, name string) error {
	if d.depth+1 > t.limits.Depth {
		return &LimitError{"depth of directories", int64(d.depth) + 1, int64(t.limits.Depth)}
	}
	if len(name) > nameMax {
		return at("make", join(d.path(), name), unix.ENAMETOOLONG)
	}
	n := len(name)
	if d.pathLen > 0 {
		n += d.pathLen + 1
	}
	return checkLen("resolved name", n, &t.limits)
}

// create makes what a record says in d. Only a directory that meets a directory
// stays.
func (t *Tree) create(d *dir, name string, r *record) {
	if r.kind == kindDir {
		n := d.kids[name].inode
		if n == nil || n.dir == nil {
			n = newDir(d, name, 0)
		}
		n.describe(r)
		t.put(d, name, n)
		return
	}
	n := &inode{
		major: r.major, minor: r.minor, target: strings.Clone(r.target),
		size: r.size, first: r.first, from: t.layer,
	}
	if len(r.runs) > 1 || len(r.runs) == 1 && r.runs[0].hole > 0 {
		n.runs = append([]run(nil), r.runs...)
	}
	n.describe(r)
	t.put(d, name, n)
}

// describe gives n owner, mode, time and attributes.
func (n *inode) describe(r *record) {
	n.mode = types[r.kind] | r.mode
	n.uid, n.gid, n.sec, n.nsec, n.attrs = r.uid, r.gid, r.sec, r.nsec, r.attrs
}

var types = map[byte]uint32{
	kindFile: unix.S_IFREG, kindDir: unix.S_IFDIR, kindSymlink: unix.S_IFLNK,
	kindChar: unix.S_IFCHR, kindBlock: unix.S_IFBLK, kindFIFO: unix.S_IFIFO,
}

func (t *Tree) put(d *dir, name string, n *inode) {
	if d.kids == nil {
		d.kids = make(map[string]dirent)
	}
	d.kids[name] = dirent{n, t.layer}
}

// mark notes that this layer brought something into d, and so into the
// directories above.
func (t *Tree) mark(d *dir) {
	for ; d.parent != nil; d = d.parent {
		e := d.parent.kids[d.name]
		if e.layer == t.layer {
			return
		}
		e.layer = t.layer
		d.parent.kids[d.name] = e
	}
}

// hardLink makes name the second name of what an earlier entry, or layer, has
// brought. A last part that is a link is linked itself. The old name goes first,
// so that a link to itself or to something inside it finds nothing.
func (t *Tree) hardLink(d *dir, name, target string) error {
	delete(d.kids, name)
	parent, base := split(target)
	from, err := t.resolve(parent, false)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	var n *inode
	if from != nil {
		n = from.kids[base].inode
	}
	switch {
	case n == nil:
		return fmt.Errorf("hard link to %q: %w", target, unix.ENOENT)
	case n.dir != nil:
		return fmt.Errorf("hard link to %q: %w", target, unix.EPERM)
	}
	n.linked = true
	t.put(d, name, n)
	return nil
}

// Devices are the layers, by their number from 0 in the order of Apply, that files
// of the tree have content in: the devices of the EROFS image, in this order.
func (t *Tree) Devices() []int {
	used := make([]bool, len(t.layers))
	t.root.each(func(n *inode) {
		if n.data() {
			used[n.from-1] = true
		}
	})
	var out []int
	for i, u := range used {
		if u {
			out = append(out, i)
		}
	}
	return out
}

// data tells whether n has content that is not zero.
func (n *inode) data() bool {
	for _, r := range n.runs {
		if r.data > 0 {
			return true
		}
	}
	return n.runs == nil && n.size > 0
}

// each calls f with every name's inode, n itself first.
func (n *inode) each(f func(*inode)) {
	f(n)
	if n.dir == nil {
		return
	}
	for _, e := range n.kids {
		e.each(f)
	}
}
