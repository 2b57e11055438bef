package erofs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
)

// mount mounts an image by the kernel of this machine and returns where.
func mount(t *testing.T, image string, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "only root can mount")
	}
	testenv.Need(t, "mount")
	dir := t.TempDir()
	out, err := exec.Command(testenv.Tool("mount"), "-t", "erofs", "-o", "loop,ro"+options, image, dir).CombinedOutput()
	if err != nil {
		testenv.Missing(t, "mount", fmt.Sprintf("%v: %s", err, out))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestKernelReadsTheTree mounts the image and walks it.
func TestKernelReadsTheTree(t *testing.T) {
	want, err := tree.Normalize(odd())
	if err != nil {
		t.Fatal(err)
	}
	dir := mount(t, imageFile(t, want, params), "")
	seen := 0
	err = filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { seen++; return nil })
	if err != nil || seen != len(want) {
		t.Errorf("%d entries, %v, want %d", seen, err, len(want))
	}
	links := map[string]uint64{}
	for i := range want {
		if e := &want[i]; e.Link != "" {
			links[e.Link]++
		} else if e.Type() == tree.TypeDir {
			links[e.Path]++
			if e.Path != "." {
				links[filepath.Dir(e.Path)]++
			}
		}
	}
	for i := range want {
		e := &want[i]
		source := e
		if e.Link != "" {
			source = find(want, e.Link)
		}
		if err := same(filepath.Join(dir, e.Path), source, links[source.Path]+1); err != nil {
			t.Errorf("%s: %v", e.Path, err)
		}
	}
}

func find(entries []tree.Entry, path string) *tree.Entry {
	for i := range entries {
		if entries[i].Path == path {
			return &entries[i]
		}
	}
	return nil
}

// same compares what the kernel shows with an entry.
func same(path string, e *tree.Entry, links uint64) error {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err
	}
	switch {
	case st.Mode != e.Mode:
		return fmt.Errorf("mode is %#o, want %#o", st.Mode, e.Mode)
	case st.Uid != e.UID || st.Gid != e.GID:
		return fmt.Errorf("owner is %d:%d, want %d:%d", st.Uid, st.Gid, e.UID, e.GID)
	case uint64(st.Nlink) != links:
		return fmt.Errorf("%d links, want %d", st.Nlink, links)
	case st.Mtim.Sec != params.Epoch || st.Mtim.Nsec != 0:
		return fmt.Errorf("time is %d.%d, want %d", st.Mtim.Sec, st.Mtim.Nsec, params.Epoch)
	}
	if err := sameXattrs(path, e.Xattrs); err != nil {
		return err
	}
	switch e.Type() {
	case tree.TypeFile:
		return sameContent(path, e.Content)
	case tree.TypeSymlink:
		if got, err := os.Readlink(path); err != nil || got != e.Target {
			return fmt.Errorf("link target is %.80q, %v", got, err)
		}
	case tree.TypeCharDev, tree.TypeBlkDev:
		if got := unix.Mkdev(e.Major, e.Minor); st.Rdev != got {
			return fmt.Errorf("device is %#x, want %#x", st.Rdev, got)
		}
	}
	return nil
}

func sameXattrs(path string, want map[string][]byte) error {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return err
	}
	names := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
	if len(names) != len(want) {
		return fmt.Errorf("attributes %q, want %d", names, len(want))
	}
	for name, value := range want {
		n, err := unix.Lgetxattr(path, name, b)
		if err != nil || !bytes.Equal(b[:n], value) {
			return fmt.Errorf("attribute %s is %x, %v, want %x", name, b[:max(n, 0)], err, value)
		}
	}
	return nil
}

func sameContent(path string, want tree.Blob) error {
	r, err := want.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	a, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("content differs: %d bytes, want %d", len(b), len(a))
	}
	return nil
}

// TestKernelReadsChunksOutside mounts an image with a second one, in which the
// content of a file lies in pieces and out of order.
func TestKernelReadsChunksOutside(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 5*8192/16)
	content = append(content[:len(content):len(content)], "the end"...)
	for i := range content {
		content[i] += byte(i >> 13)
	}
	const chunk = 8192
	order := []uint32{4, 0, 5, 2, 1, 3}
	blob := make([]byte, 6*chunk)
	p := params
	p.Devices = []Device{{Tag: "sha256:other", Blocks: uint32(len(blob) / BlockSize)}}
	c := Chunks{Size: chunk}
	for i, at := range order {
		copy(blob[at*chunk:(at+1)*chunk], content[i*chunk:min((i+1)*chunk, len(content))])
		c.At = append(c.At, Chunk{Device: 0, Block: at * chunk / BlockSize})
	}
	p.Outside = map[string]Chunks{"outside": c}
	e := file("outside", content)
	e.Xattrs = map[string][]byte{"user.a": []byte("b")}
	entries := []tree.Entry{file("inside", []byte("here")), e}
	device := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(device, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	image := imageFile(t, entries, p)
	if fi, err := os.Stat(image); err != nil || fi.Size() > 3*BlockSize {
		t.Errorf("%v, %v: the content is in the image", fi.Size(), err)
	}
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "only root can mount")
	}
	testenv.Need(t, "losetup")
	out, err := exec.Command(testenv.Tool("losetup"), "-f", "--show", device).Output()
	if err != nil {
		testenv.Missing(t, "mount", err.Error())
	}
	loop := strings.TrimSpace(string(out))
	defer exec.Command(testenv.Tool("losetup"), "-d", loop).Run()
	dir := mount(t, image, ",device="+loop)
	for _, e := range entries {
		if err := sameContent(filepath.Join(dir, e.Path), e.Content); err != nil {
			t.Errorf("%s: %v", e.Path, err)
		}
	}
}
