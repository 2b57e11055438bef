package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"golang.org/x/sys/unix"
)

// An item is one entry of a layer that a test writes.
type item struct {
	tar.Header
	body string
}

var day = time.Unix(1700000000, 123456789)

func newItem(flag byte, name string, mode int64) item {
	return item{Header: tar.Header{
		Typeflag: flag, Name: name, Mode: mode, ModTime: day, Format: tar.FormatPAX, Uid: os.Geteuid(), Gid: os.Getegid(),
	}}
}

func file(name, body string) item {
	i := newItem(tar.TypeReg, name, 0o644)
	i.body, i.Size = body, int64(len(body))
	return i
}

func directory(name string) item { return newItem(tar.TypeDir, name, 0o755) }

func link(flag byte, name, target string) item {
	i := newItem(flag, name, 0o777)
	i.Linkname = target
	return i
}

func symlink(name, target string) item  { return link(tar.TypeSymlink, name, target) }
func hardlink(name, target string) item { return link(tar.TypeLink, name, target) }

func node(flag byte, name string, major, minor int64) item {
	i := newItem(flag, name, 0o600)
	i.Devmajor, i.Devminor = major, minor
	return i
}

func (i item) owned(uid, gid int) item { i.Uid, i.Gid = uid, gid; return i }
func (i item) perm(mode int64) item    { i.Mode = mode; return i }
func (i item) at(sec, nsec int64) item { i.ModTime = time.Unix(sec, nsec); return i }
func (i item) format(f tar.Format) item {
	i.Format = f
	i.ModTime = i.ModTime.Truncate(time.Second)
	return i
}
func (i item) attr(name, value string) item { return i.record(xattrRecord+name, value) }
func (i item) record(key, value string) item {
	records := maps.Clone(i.PAXRecords)
	if records == nil {
		records = map[string]string{}
	}
	records[key] = value
	i.PAXRecords = records
	return i
}

// pack writes a layer.
func pack(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		h := i.Header
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", i.Name, err)
		}
		if _, err := io.WriteString(w, i.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// made is a tree and what its files are on.
type made struct {
	tree    *Tree
	content [][]byte
}

// apply reads layers and lays them over one another. Each goes through its binary
// form.
func apply(l Limits, layers ...[]byte) (*made, error) {
	b := NewBudget(l)
	m := &made{tree: NewTree(b)}
	for _, layer := range layers {
		var content bytes.Buffer
		read, err := Read(context.Background(), bytes.NewReader(layer), &content, b)
		if err != nil {
			return nil, err
		}
		if content.Len() != int(read.Blocks())*BlockSize {
			return nil, fmt.Errorf("content of %d bytes, %d blocks", content.Len(), read.Blocks())
		}
		if read, err = there(read); err != nil {
			return nil, err
		}
		if err := m.tree.Apply(read); err != nil {
			return nil, err
		}
		m.content = append(m.content, content.Bytes())
	}
	return m, nil
}

// there writes a layer down and reads it.
func there(l *Layer) (*Layer, error) {
	b, err := l.MarshalBinary()
	if err != nil {
		return nil, err
	}
	out := &Layer{}
	if err := out.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("of its own making: %v", err)
	}
	if c, err := out.MarshalBinary(); err != nil || !bytes.Equal(b, c) || out.Stats() != l.Stats() || out.Blocks() != l.Blocks() {
		return nil, fmt.Errorf("a layer changes on its way: %v", err)
	}
	return out, nil
}

func mustApply(t testing.TB, layers ...[]byte) *made {
	t.Helper()
	m, err := apply(Limits{}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// extract makes the tree in a directory.
func (m *made) extract(dir string) error {
	var content []io.ReaderAt
	for _, c := range m.content {
		content = append(content, bytes.NewReader(c))
	}
	return m.tree.Extract(context.Background(), dir, content)
}

// read is the content of a file.
func (m *made) read(n *inode) []byte {
	out := make([]byte, n.size)
	runs := n.runs
	if runs == nil {
		runs = []run{{0, uint32(blockCount(n.size))}}
	}
	at, from := 0, int(n.first)*BlockSize
	for _, r := range runs {
		at += int(r.hole) * BlockSize
		k := min(int(r.data)*BlockSize, len(out)-at)
		if k > 0 {
			copy(out[at:at+k], m.content[n.from-1][from:from+k])
		}
		at, from = at+k, from+k
	}
	return out
}

// show is the tree as snapshot would read it from a directory.
func (m *made) show() map[string]shown {
	out, first, links := map[string]shown{}, map[*inode]string{}, map[*inode]uint64{}
	m.tree.root.each(func(n *inode) {
		links[n]++
		if n.dir != nil {
			links[n]++
			if n.parent != nil {
				links[n.parent.node]++
			}
		}
	})
	var walk func(path string, n *inode)
	walk = func(path string, n *inode) {
		s := shown{Mode: n.mode, UID: n.uid, GID: n.gid, Links: links[n], Time: stamp(n.sec, int64(n.nsec)), Target: n.target}
		if n.major|n.minor != 0 {
			s.Rdev = unix.Mkdev(n.major, n.minor)
		}
		for name, value := range n.attrs {
			if s.Attrs == nil {
				s.Attrs = map[string]string{}
			}
			s.Attrs[name] = string(value)
		}
		if n.mode&unix.S_IFMT == unix.S_IFREG {
			sum := sha256.Sum256(m.read(n))
			s.Size, s.Digest = n.size, hex.EncodeToString(sum[:8])
		}
		if n.dir == nil {
			if first[n] == "" {
				first[n] = path
			}
			s.First = first[n]
		}
		out[path] = s
		if n.dir == nil {
			return
		}
		for _, name := range slices.Sorted(maps.Keys(n.kids)) {
			walk(filepath.Join(path, name), n.kids[name].inode)
		}
	}
	walk(".", m.tree.root)
	return out
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Missing(t, "root", "owners, devices and attributes need it")
	}
}

// shown is what a tree says of one name.
type shown struct {
	Mode, UID, GID uint32
	Links          uint64
	Rdev           uint64
	Size           int64
	Time           string
	Attrs          map[string]string
	Target         string
	Digest         string
	First          string // the first name of the same inode
}

// snapshot reads a tree, by name beneath dir.
func snapshot(t testing.TB, dir string) map[string]shown {
	t.Helper()
	out := map[string]shown{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		n := shown{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Links: uint64(st.Nlink), Rdev: st.Rdev, Time: stamp(st.Mtim.Sec, st.Mtim.Nsec)}
		if n.Attrs, err = readAttrs(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			n.Size, n.Digest = st.Size, hex.EncodeToString(sum[:8])
		case unix.S_IFLNK:
			if n.Target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		if !e.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			n.First = first[st.Ino]
		}
		out[rel] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readAttrs(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil || n == 0 {
		return nil, err
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, err
		}
		out[name] = string(value[:n])
	}
	return out, nil
}

// compare names every difference between two trees. umoci makes a directory that
// no layer names without a time, and so lets it, and the one that it is made in,
// have that of unpacking. There the time is 0 here, or what some directory of
// the layers has.
func compare(got, want map[string]shown, now func(time string) bool, said map[string]bool) []string {
	var out []string
	names := maps.Clone(got)
	maps.Copy(names, want)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		g, okg := got[name]
		w, okw := want[name]
		switch {
		case !okg:
			out = append(out, fmt.Sprintf("%s: missing, want %+v", name, w))
			continue
		case !okw:
			out = append(out, fmt.Sprintf("%s: not wanted: %+v", name, g))
			continue
		}
		if g.Mode&unix.S_IFMT == unix.S_IFDIR && now(w.Time) && (g.Time == stamp(0, 0) || said[g.Time]) {
			w.Time = g.Time
		}
		if fmt.Sprint(g) != fmt.Sprint(w) {
			out = append(out, fmt.Sprintf("%s:\n got  %+v\n want %+v", name, g, w))
		}
	}
	return out
}

func stamp(sec, nsec int64) string { return fmt.Sprintf("%d.%09d", sec, nsec) }

// since says whether a time lies between started and now.
func since(started time.Time) func(string) bool {
	return func(text string) bool {
		var sec, nsec int64
		_, err := fmt.Sscanf(text, "%d.%d", &sec, &nsec)
		return err == nil && sec >= started.Unix()-1 && sec <= time.Now().Unix()+1 // a clock may be set
	}
}

// directoryTimes are the times of the directories that layers name.
func directoryTimes(t testing.TB, layers ...[]byte) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, layer := range layers {
		r := tar.NewReader(bytes.NewReader(layer))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeDir {
				out[stamp(h.ModTime.Unix(), int64(h.ModTime.Nanosecond()))] = true
			}
		}
	}
	return out
}

// A layout is an OCI image layout of uncompressed layers, as the image
// specification has it, written here by hand.
type layout struct{ dir string }

func newLayout(t testing.TB, dir string, layers ...[]byte) layout {
	t.Helper()
	l := layout{dir}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	put := func(kind string, data []byte) descriptor {
		sum := sha256.Sum256(data)
		l.write(t, filepath.Join("blobs", "sha256", hex.EncodeToString(sum[:])), data)
		return descriptor{kind, "sha256:" + hex.EncodeToString(sum[:]), len(data), nil}
	}
	object := func(kind string, v any) descriptor {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return put(kind, data)
	}
	descs, diffs := []descriptor{}, []string{}
	for _, layer := range layers {
		d := put("application/vnd.oci.image.layer.v1.tar", layer)
		descs, diffs = append(descs, d), append(diffs, d.Digest)
	}
	config := object("application/vnd.oci.image.config.v1+json", map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	manifest := object("application/vnd.oci.image.manifest.v1+json", map[string]any{"schemaVersion": 2, "config": config, "layers": descs})
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	if err != nil {
		t.Fatal(err)
	}
	l.write(t, "index.json", index)
	l.write(t, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return l
}

func (l layout) write(t testing.TB, name string, data []byte) {
	t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// hasUmoci tells whether a test compares with umoci; a sub-test says so where it does
// not.
func hasUmoci(t *testing.T) (ok bool) {
	t.Run("umoci", func(t *testing.T) {
		if testing.Short() {
			t.Skip("runs umoci")
		}
		needRoot(t)
		testenv.Need(t, "umoci")
		ok = true
	})
	return ok
}

// umoci unpacks layers by umoci and returns the tree.
func umoci(t testing.TB, dir string, layers ...[]byte) (root string, err error) {
	t.Helper()
	image := filepath.Join(dir, "image")
	newLayout(t, image, layers...)
	bundle := filepath.Join(dir, "bundle")
	cmd := exec.Command(testenv.Tool("umoci"), "unpack", "--image", image+":latest", bundle)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("umoci: %w: %s", err, out)
	}
	return filepath.Join(bundle, "rootfs"), nil
}

// scratch is where trees are quick to make: memory, where it takes attributes.
var scratch = sync.OnceValue(func() string {
	const shm = "/dev/shm"
	f, err := os.CreateTemp(shm, "unpack-")
	if err != nil {
		return ""
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if unix.Fsetxattr(int(f.Fd()), "user.a", []byte("a"), 0) != nil {
		return ""
	}
	return shm
})

// sameAsUmoci unpacks layers both ways and compares verdict and tree: in memory,
// as extracted, and as the kernel mounts it. It returns the tree, nil where both
// refuse the layers.
func sameAsUmoci(t testing.TB, layers ...[]byte) map[string]shown {
	t.Helper()
	base, err := os.MkdirTemp(scratch(), "unpack-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	started := time.Now()
	m, gotErr := apply(Limits{}, layers...)
	root, wantErr := umoci(t, base, layers...)
	if (gotErr == nil) != (wantErr == nil) {
		t.Errorf("verdicts differ: got %v, want %v", gotErr, wantErr)
	}
	if gotErr != nil || wantErr != nil {
		return nil
	}
	mine := filepath.Join(base, "mine")
	if err := os.Mkdir(mine, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.extract(mine); err != nil {
		t.Error(err)
		return nil
	}
	got, want, said := m.show(), snapshot(t, root), directoryTimes(t, layers...)
	for what, tree := range map[string]map[string]shown{"memory": got, "extracted": snapshot(t, mine)} {
		for _, d := range compare(tree, want, since(started), said) {
			t.Errorf("%s: %s", what, d)
		}
	}
	if dir, ok := m.mount(t, base); ok {
		for _, d := range compare(snapshot(t, dir), want, since(started), said) {
			t.Errorf("mounted: %s", d)
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil { // a process that is being started may have a file open
			t.Error(err)
		}
	}
	return got
}
