// Command probe is a service of test images. Over a virtio-serial port it is asked
// for blocks of the root, and answers with their digests or with the error of
// reading them.
package main

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
// "device" says what it is on.
func answer(line string) string {
	what, number, _ := strings.Cut(line, " ")
	block, err := strconv.ParseInt(cmp.Or(number, "0"), 10, 64)
	if err != nil {
		return "error " + err.Error()
	}
	var text string
	switch what {
	case "root":
		text, err = rootBlock(block)
	case "beside":
		text, err = blockBeside(block)
	case "write":
		text, err = write()
	case "device":
		text, err = device()
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

// device names the device of "/" by number and, if the device-mapper has made it,
// by name.
func device() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return "", err
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	name, _ := os.ReadFile("/sys/dev/block/" + number + "/dm/name")
	return strings.TrimSpace(number + " " + string(name)), nil
}

// rootTable is the one that the kernel has for the root.
func rootTable(c *dm.Control) (*dm.Verity, error) {
	table, err := c.Table("plinth-root")
	if err != nil {
		return nil, err
	}
	return dm.ParseVerity(table[0].Params)
}

func rootBlock(n int64) (string, error) {
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

// blockBeside sets up a second device over the same partitions, which gives an
// error where the root's panics.
func blockBeside(n int64) (string, error) {
	c, err := dm.Open(control)
	if err != nil {
		return "", err
	}
	defer c.Close()
	v, err := rootTable(c)
	if err != nil {
		return "", err
	}
	v.Options = nil
	d, err := c.Create(second, "", []dm.Target{v.Target()})
	if err != nil {
		return "", err
	}
	text, err := readBlock(d.Path(), v.DataBlockSize, n)
	return text, errors.Join(err, c.Remove(second))
}

// readBlock reads one block past the page cache.
func readBlock(path string, size int, n int64) (string, error) {
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
