package erofs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// TestKernelReadsTimes has times that are the epoch's, before 1970, beyond 2038
// and of some nanoseconds.
func TestKernelReadsTimes(t *testing.T) {
	p := params
	p.Times = map[string]Time{
		".": {Sec: 5, Nsec: 6}, "past": {Sec: -7, Nsec: 999999999}, "future": {Sec: 1 << 33, Nsec: 1}, "dir": {},
		"link": {Sec: params.Epoch, Nsec: 1}, "same": {Sec: params.Epoch},
	}
	dir := mount(t, imageFile(t, []tree.Entry{
		file("past", []byte("1")), file("future", nil), tree.Dir("dir", 0o755), tree.Symlink("link", "past"), file("same", nil), file("other", nil),
	}, p), "")
	for _, name := range []string{".", "past", "future", "dir", "link", "same", "other"} {
		want, ok := p.Times[name]
		if !ok {
			want = Time{Sec: params.Epoch}
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		if got := (Time{st.Mtim.Sec, uint32(st.Mtim.Nsec)}); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// nodes is a tree on 60 devices, more than the first block has slots for: of one
// file a block is on each, with holes of two blocks between them.
func nodes() (root *Node, p Params, content []byte, devices [][]byte) {
	p = params
	f := &Node{Mode: tree.TypeFile | 0o640, UID: 70000, Time: Time{Sec: 9, Nsec: 8}, Chunks: Chunks{Size: BlockSize}}
	for i := range 60 {
		block := bytes.Repeat([]byte{byte(i + 1)}, BlockSize)
		p.Devices = append(p.Devices, Device{Tag: fmt.Sprintf("sha256:%064x", i)[:64], Blocks: 2})
		devices = append(devices, append(make([]byte, BlockSize), block...))
		f.Chunks.At = append(f.Chunks.At, Chunk{i, 1}, Chunk{Device: Hole}, Chunk{Device: Hole})
		content = append(append(content, block...), make([]byte, 2*BlockSize)...)
	}
	content = content[:len(content)-100]
	f.Size = int64(len(content))
	empty := &Node{Mode: tree.TypeFile | 0o600}
	hole := &Node{Mode: tree.TypeFile | 0o600, Size: 1 << 40, Chunks: Chunks{Size: 1 << 40, At: []Chunk{{Device: Hole}}}}
	long := &Node{Mode: tree.TypeFile | 0o600, Size: BlockSize + 1, Chunks: Chunks{Size: 1 << 43, At: []Chunk{{Device: 59}}}}
	sub := &Node{Mode: tree.TypeDir | 0o750, Kids: []Name{{"second", f}, {"sub", &Node{Mode: tree.TypeDir | 0o700}}}}
	root = &Node{Mode: tree.TypeDir | 0o755, Kids: []Name{
		{"z", sub}, {"first", f}, {"empty", empty}, {"hole", hole}, {"long", long}, {"link", &Node{Mode: tree.TypeSymlink | 0o777, Target: "z/second"}},
	}}
	return root, p, content, devices
}

func nodeImage(t *testing.T) (image string, devices []string, content []byte) {
	t.Helper()
	root, p, content, data := nodes()
	var b bytes.Buffer
	if err := WriteNodes(&b, root, p); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 16*BlockSize {
		t.Errorf("image of %d bytes", b.Len())
	}
	dir := t.TempDir()
	image = filepath.Join(dir, "image")
	for i, d := range append(data, b.Bytes()) {
		path := filepath.Join(dir, fmt.Sprint(i))
		if i == len(data) {
			path = image
		} else {
			devices = append(devices, path)
		}
		if err := os.WriteFile(path, d, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return image, devices, content
}

func TestFsckOfNodes(t *testing.T) {
	testenv.Need(t, "fsck.erofs")
	image, devices, _ := nodeImage(t)
	args := []string{"--extract", "-d9"}
	for _, d := range devices {
		args = append(args, "--device="+d)
	}
	// fsck reads what files hold: not a tebibyte of zeros.
	root, p, _, _ := nodes()
	root.Kids = append(root.Kids[:3:3], root.Kids[4:]...)
	var b bytes.Buffer
	if err := WriteNodes(&b, root, p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(testenv.Tool("fsck.erofs"), append(args, image)...).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("No errors found")) {
		t.Errorf("fsck.erofs: %v\n%s", err, out[max(0, len(out)-3000):])
	}
}

func TestKernelReadsNodes(t *testing.T) {
	image, devices, content := nodeImage(t)
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "only root can mount")
	}
	testenv.Need(t, "losetup")
	options := ""
	for _, d := range devices {
		out, err := exec.Command(testenv.Tool("losetup"), "-f", "--show", "-r", d).Output()
		if err != nil {
			testenv.Missing(t, "mount", err.Error())
		}
		loop := strings.TrimSpace(string(out))
		defer exec.Command(testenv.Tool("losetup"), "-d", loop).Run()
		options += ",device=" + loop
	}
	dir := mount(t, image, options)
	var st [2]syscall.Stat_t
	for i, name := range []string{"first", "z/second"} {
		path := filepath.Join(dir, name)
		if err := sameContent(path, tree.Bytes(content)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := syscall.Stat(path, &st[i]); err != nil {
			t.Fatal(err)
		}
	}
	if st[0].Ino != st[1].Ino || st[0].Nlink != 2 || st[0].Uid != 70000 || st[0].Mtim.Nsec != 8 || st[0].Mode != tree.TypeFile|0o640 {
		t.Errorf("%+v", st)
	}
	if err := sameContent(filepath.Join(dir, "long"), tree.Bytes(append(make([]byte, BlockSize), 60))); err != nil {
		t.Errorf("long: %v", err)
	}
	if err := syscall.Stat(filepath.Join(dir, "z"), &st[0]); err != nil || st[0].Nlink != 3 {
		t.Errorf("z: %v, %d links", err, st[0].Nlink)
	}
	if target, err := os.Readlink(filepath.Join(dir, "link")); err != nil || target != "z/second" {
		t.Errorf("link: %q, %v", target, err)
	}
	f, err := os.Open(filepath.Join(dir, "hole"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := bytes.Repeat([]byte{1}, 5000)
	if _, err := f.ReadAt(b, 1<<40-5000); err != nil || !bytes.Equal(b, make([]byte, 5000)) {
		t.Errorf("end of the hole: %v", err)
	}
}

func TestNodeRefusals(t *testing.T) {
	leaf := func() *Node { return &Node{Mode: tree.TypeFile} }
	dir := func(kids ...Name) *Node { return &Node{Mode: tree.TypeDir, Kids: kids} }
	twice := dir()
	loop := dir()
	loop.Kids = []Name{{"loop", loop}}
	var many []Name // over several blocks
	for i := range 1000 {
		many = append(many, Name{fmt.Sprintf("%0100d", i), leaf()})
	}
	for _, x := range []struct {
		want string
		root *Node
	}{
		{"want a directory", leaf()},
		{`"" is no name`, dir(Name{"", leaf()})},
		{`"." is no name`, dir(Name{".", leaf()})},
		{`".." is no name`, dir(Name{"..", leaf()})},
		{`"a/b" is no name`, dir(Name{"a/b", leaf()})},
		{`is no name`, dir(Name{"a\x00", leaf()})},
		{`is no name`, dir(Name{strings.Repeat("n", 256), leaf()})},
		{`"a": named twice`, dir(Name{"a", leaf()}, Name{"b", leaf()}, Name{"a", leaf()})},
		{"named twice", dir(append(many, many[500])...)},
		{"a directory with two names", dir(Name{"a", twice}, Name{"b", twice})},
		{"a directory with two names", loop},
		{"no known file type", dir(Name{"a", &Node{Mode: 0o644}})},
		{"no known file type", dir(Name{"a", &Node{Mode: tree.TypeFile | 1<<20}})},
		{"link target of 0 bytes", dir(Name{"a", &Node{Mode: tree.TypeSymlink}})},
		{"0 chunks", dir(Name{"a", &Node{Mode: tree.TypeFile, Size: 1, Chunks: Chunks{Size: BlockSize}}})},
		{"chunks of 0 bytes", dir(Name{"a", &Node{Mode: tree.TypeFile, Size: 1}})},
		{"size -1", dir(Name{"a", &Node{Mode: tree.TypeFile, Size: -1}})},
	} {
		if err := WriteNodes(&bytes.Buffer{}, x.root, params); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("error is %v, want %q", err, x.want)
		}
	}
}
