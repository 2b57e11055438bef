package unpack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/internal/testenv"
)

// mount has the kernel of this machine mount the tree's EROFS image, with the
// contents of the layers on loop devices.
func (m *made) mount(t testing.TB, base string) (dir string, ok bool) {
	t.Helper()
	image, dir := filepath.Join(base, "root.erofs"), filepath.Join(base, "mounted")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, m.image(t), 0o600); err != nil {
		t.Fatal(err)
	}
	var options []string
	for _, i := range m.tree.Devices() {
		path := filepath.Join(base, fmt.Sprintf("content-%d", i))
		if err := os.WriteFile(path, m.content[i], 0o600); err != nil {
			t.Fatal(err)
		}
		device, file, err := loop(path)
		if err != nil {
			testenv.Missing(t, "loop", err.Error())
		}
		defer file.Close()
		options = append(options, "device="+device)
	}
	device, file, err := loop(image)
	if err != nil {
		testenv.Missing(t, "loop", err.Error())
	}
	defer file.Close()
	if err := unix.Mount(device, dir, "erofs", unix.MS_RDONLY, strings.Join(options, ",")); err != nil {
		if errors.Is(err, unix.ENODEV) {
			testenv.Missing(t, "mount", err.Error())
		}
		t.Errorf("mount: %v", err)
		return "", false
	}
	return dir, true
}

// image is the tree's EROFS image.
func (m *made) image(t testing.TB) []byte {
	t.Helper()
	var tags []string
	for _, i := range m.tree.Devices() {
		tags = append(tags, fmt.Sprintf("layer %d", i))
	}
	var b bytes.Buffer
	if err := m.tree.Write(&b, [16]byte{1}, tags); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// loop makes a loop device of a file, which goes when nothing uses it any more.
func loop(path string) (device string, file *os.File, err error) {
	backing, err := os.Open(path)
	if err != nil {
		return "", nil, err
	}
	defer backing.Close()
	control, err := os.Open("/dev/loop-control")
	if err != nil {
		return "", nil, err
	}
	defer control.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", nil, err
		}
		device = fmt.Sprintf("/dev/loop%d", n)
		if file, err = os.Open(device); err != nil {
			return "", nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(file.Fd()), &config)
		if err == nil {
			return device, file, nil
		}
		file.Close()
		if !errors.Is(err, unix.EBUSY) { // another one was quicker
			return "", nil, err
		}
	}
	return "", nil, unix.EBUSY
}
