// Command probe is a service of test images. Over a virtio-serial port it is asked
// for blocks of the root, and answers with their digests or with the error of
// reading them.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/plinth-os/plinth/internal/dm"
	"golang.org/x/sys/unix"
)

const (
	portName = "org.plinth.test"
	control  = "/dev/mapper/control"
	second   = "probe" // a device beside the root's
)

func main() {
	port, err := openPort()
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
	for lines := bufio.NewReader(patient{port}); ; {
		line, err := lines.ReadString('\n')
		if err == nil {
			_, err = fmt.Fprintln(port, answer(strings.TrimSpace(line)))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "probe:", err)
			os.Exit(1)
		}
	}
}

// patient waits at an end of the port's data, which it has while the host is not
// connected.
type patient struct{ *os.File }

func (p patient) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// openPort waits for the port, which may come after the agent.
func openPort() (*os.File, error) {
	for range 500 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if b, _ := os.ReadFile(name); strings.TrimSpace(string(b)) == portName {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, errors.New("no port " + portName)
}

// answer does what a line asks for: "root N" reads block N of the root's own
// device, whose first bad block ends the guest, and "beside N" that of a device
// with the same table that only gives errors. "write" tries to change the root,
// "device" says what it is on, "lower" what the root below an overlay is on.
// "initramfs" lists what is left of the first root. "signed HEX" sets up such a
// device with a signature of its root hash.
func answer(line string) string {
	what, argument, _ := strings.Cut(line, " ")
	var text string
	var err error
	switch what {
	case "root":
		text, err = rootBlock(argument)
	case "beside":
		text, err = blockBeside(argument)
	case "signed":
		text, err = signed(argument)
	case "write":
		text, err = write()
	case "device":
		text, err = device("/")
	case "lower":
		text, err = device("/run/plinth/lower")
	case "initramfs":
		text, err = initramfs()
	default:
		err = errors.New("unknown command")
	}
	switch {
	case errors.Is(err, unix.EIO):
		return "EIO"
	case errors.Is(err, unix.EROFS):
		return "EROFS"
	case err != nil:
		return "error " + err.Error()
	}
	return text
}

func write() (string, error) {
	if err := os.WriteFile("/written", []byte("x"), 0o600); err != nil {
		return "", err
	}
	b, err := os.ReadFile("/written")
	return "read " + string(b), err
}

// device names the device of a directory by number and, if the device-mapper has
// made it, by name.
func device(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", err
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	name, _ := os.ReadFile("/sys/dev/block/" + number + "/dm/name")
	return strings.TrimSpace(number + " " + string(name)), nil
}

// initramfs takes off, in a name space of its own, what is mounted over the first
// root. To enter a name space anew is to have its root for one's own:
// Linux, fs/namespace.c, mntns_install.
func initramfs() (string, error) {
	done := make(chan error)
	var names []os.DirEntry
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				return err
			}
			space, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", unix.Gettid()))
			if err != nil {
				return err
			}
			defer space.Close()
			if err := unix.Unmount("/", unix.MNT_DETACH); err != nil {
				return err
			}
			if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNS); err != nil {
				return err
			}
			names, err = os.ReadDir("/")
			return err
		}()
	}()
	err := <-done
	text := "left:"
	for _, n := range names {
		text += " " + n.Name()
	}
	return text, err
}

// rootTable is the one that the kernel has for the root.
func rootTable(c *dm.Control) (*dm.Verity, error) {
	table, err := c.Table("plinth-root")
	if err != nil {
		return nil, err
	}
	return dm.ParseVerity(table[0].Params)
}

func rootBlock(n string) (string, error) {
	c, err := dm.Open(control)
	if err != nil {
		return "", err
	}
	defer c.Close()
	v, err := rootTable(c)
	if err != nil {
		return "", err
	}
	// The root is the first device that was made.
	return readBlock("/dev/dm-0", v.DataBlockSize, n)
}

// blockBeside reads from a device that gives an error where the root's panics.
func blockBeside(n string) (string, error) {
	return beside(nil, func(path string, size int) (string, error) { return readBlock(path, size, n) })
}

// signed lets the kernel check a signature of the root hash, which it takes from a
// key ring: Linux, Documentation, device-mapper/verity.rst, root_hash_sig_key_desc.
func signed(text string) (string, error) {
	sig, err := hex.DecodeString(text)
	if err != nil {
		return "", err
	}
	// That of the user: others belong to one thread.
	if _, err := unix.AddKey("user", second, sig, unix.KEY_SPEC_USER_KEYRING); err != nil {
		return "", err
	}
	return beside([]string{"root_hash_sig_key_desc", second}, func(string, int) (string, error) { return "taken", nil })
}

// beside sets up a second device over the same partitions, with options of its own.
func beside(options []string, use func(path string, blockSize int) (string, error)) (string, error) {
	c, err := dm.Open(control)
	if err != nil {
		return "", err
	}
	defer c.Close()
	v, err := rootTable(c)
	if err != nil {
		return "", err
	}
	v.Options = options
	d, err := c.Create(second, "", []dm.Target{v.Target()})
	if err != nil {
		return "", err
	}
	text, err := use(d.Path(), v.DataBlockSize)
	return text, errors.Join(err, c.Remove(second))
}

// readBlock reads one block past the page cache.
func readBlock(path string, size int, number string) (string, error) {
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const align = 4096
	b := make([]byte, size+align)
	b = b[align-int(uintptr(unsafe.Pointer(&b[0]))%align):][:size]
	if _, err := f.ReadAt(b, n*int64(size)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(b)), nil
}
