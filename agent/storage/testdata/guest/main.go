// Command guest is the /init of a guest in a test: it keeps images in pools and says
// what it finds. As "guest walk DIR" on a host it says what a directory holds.
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/agent/storage"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/unpack"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "walk" {
		fmt.Println(walk(os.Args[2]))
		return
	}
	if err := run(); err != nil {
		fmt.Println("guest: error:", err)
	}
	fmt.Println("guest: done")
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // with -no-reboot QEMU ends
	select {}
}

func run() error {
	for _, m := range []struct{ fstype, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := errors.Join(os.MkdirAll(m.at, 0o755), unix.Mount(m.fstype, m.at, m.fstype, 0, "")); err != nil {
			return fmt.Errorf("%s: %w", m.at, err)
		}
	}
	modules, err := filepath.Glob("/m/*.ko")
	if err != nil {
		return err
	}
	for _, path := range modules { // in load order
		if err := load(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	switch {
	case strings.Contains(string(b), "plinth.test=store"):
		return store()
	case strings.Contains(string(b), "plinth.test=refused"):
		return refused()
	case strings.Contains(string(b), "plinth.test=make-volumes"):
		return makeVolumes()
	case strings.Contains(string(b), "plinth.test=use-volumes"):
		return useVolumes()
	}
	return fmt.Errorf("command line %q names no test", b)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// refused tries disks that are not what the agent has written.
func refused() error {
	disks, err := filepath.Glob("/dev/vd?")
	if err != nil {
		return err
	}
	for _, d := range disks {
		p, err := storage.Disk(context.Background(), d)
		fmt.Printf("guest: %s: refused: %v\n", d, err)
		if err == nil {
			if err := p.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// store goes through the life of a pool: in memory, on two disks, and on the first
// again with a host that interferes.
func store() error {
	for _, x := range []struct {
		name string
		open func() (*storage.Pool, error)
	}{
		{"memory", func() (*storage.Pool, error) { return storage.Memory(24 << 20) }},
		{"vda", func() (*storage.Pool, error) { return storage.Disk(context.Background(), "/dev/vda") }},
		{"vdb", func() (*storage.Pool, error) { return storage.Disk(context.Background(), "/dev/vdb") }},
	} {
		p, err := x.open()
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		if err := life(x.name, p); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
	}
	return hostile()
}

// life publishes two images that share layers, fills the pool up, and empties it.
func life(name string, p *storage.Pool) error {
	free, err := p.Free()
	if err != nil {
		return err
	}
	whole, err := pull(p, "/layers", nil)
	if err != nil {
		return err
	}
	left, err := p.Free()
	if err != nil {
		return err
	}
	shared, err := pull(p, "/layers", []byte(name))
	if err != nil {
		return err
	}
	after, err := p.Free()
	if err != nil {
		return err
	}
	fmt.Printf("guest: %s: %d bytes for the first image, %d for the second\n", name, free-left, left-after)
	for i, id := range []digest.Digest{whole, shared, whole} {
		if err := mount(p, id, fmt.Sprintf("/mnt%d", i)); err != nil {
			return err
		}
		fmt.Printf("guest: %s: image %d: %s\n", name, i, walk(fmt.Sprintf("/mnt%d", i)))
	}
	if err := os.WriteFile("/mnt0/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("write: %v", err)
	}
	if err := fill(name, p); err != nil {
		return err
	}
	if n, err := p.Collect(nil); n != 0 || err != nil {
		return fmt.Errorf("collected %d bytes of mounted images, %v", n, err)
	}
	for i := range 3 {
		if err := p.Unmount(fmt.Sprintf("/mnt%d", i)); err != nil {
			return err
		}
	}
	if _, err := p.Collect(nil); err != nil {
		return err
	}
	again, err := p.Free()
	if err != nil {
		return err
	}
	if name != "memory" && again != free || again < free-8<<20 { // other things take memory too
		return fmt.Errorf("%d bytes free at the end, %d at the beginning", again, free)
	}
	if err := p.Close(); err != nil {
		return err
	}
	left2, err := filepath.Glob("/sys/block/dm-*")
	fmt.Printf("guest: %s: closed, devices %v, %v\n", name, left2, err)
	return nil
}

// fill writes until nothing more fits.
func fill(name string, p *storage.Pool) error {
	s, err := p.Stage(context.Background())
	if err != nil {
		return err
	}
	w, err := s.Content(digest.FromString("full"))
	if err != nil {
		return err
	}
	for b := make([]byte, 1<<20); err == nil; {
		_, err = w.Write(b)
	}
	var full *imagepull.SpaceError
	fmt.Printf("guest: %s: full: %v, %v\n", name, errors.As(err, &full) && full.Needed > full.Available, err)
	return s.Discard()
}

// oneFile is a layer.
func oneFile(name string, body []byte) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))})
	if err == nil {
		_, err = w.Write(body)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		panic(err) // nothing here can fail
	}
	return &b
}

// pull publishes the layers of a directory, and a layer with one more file.
func pull(p *storage.Pool, dir string, more []byte) (digest.Digest, error) {
	names, err := filepath.Glob(dir + "/*.tar")
	if err != nil {
		return "", err
	}
	s, err := p.Stage(context.Background())
	if err != nil {
		return "", err
	}
	budget := unpack.NewBudget(unpack.Limits{})
	pulled := &imagepull.Pulled{}
	tree := unpack.NewTree(budget)
	add := func(open func() io.Reader) error {
		sum := sha256.New()
		if _, err := io.Copy(sum, open()); err != nil {
			return err
		}
		id := digest.NewDigest(digest.SHA256, sum)
		l, err := p.Layer(id)
		if err != nil {
			return err
		}
		if l == nil {
			w, err := s.Content(id)
			if err != nil {
				return err
			}
			if l, err = unpack.Read(context.Background(), open(), w, budget); err != nil {
				return err
			}
			if err := w.Close(); err != nil {
				return err
			}
		}
		pulled.DiffIDs, pulled.Layers = append(pulled.DiffIDs, id), append(pulled.Layers, l)
		return tree.Apply(l)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if err := add(func() io.Reader { return strings.NewReader(string(b)) }); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	if more != nil {
		if err := add(func() io.Reader { return oneFile("more", more) }); err != nil {
			return "", err
		}
	}
	chain := sha256.New()
	for _, id := range pulled.DiffIDs {
		io.WriteString(chain, id.String())
	}
	pulled.ChainID = digest.NewDigest(digest.SHA256, chain)
	pulled.Devices = tree.Devices()
	w, err := s.Tree()
	if err != nil {
		return "", err
	}
	var tags []string
	for _, i := range pulled.Devices {
		tags = append(tags, pulled.DiffIDs[i].Encoded())
	}
	if err := errors.Join(tree.Write(w, [16]byte{1}, tags), w.Close()); err != nil {
		return "", err
	}
	return pulled.ChainID, s.Publish(pulled)
}

func mount(p *storage.Pool, id digest.Digest, at string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return p.Mount(id, at)
}

// hostile has the host change the disk of a mounted image.
func hostile() error {
	p, err := storage.Disk(context.Background(), "/dev/vda")
	if err != nil {
		return err
	}
	step("empty")
	a, err := pull(p, "/a", nil)
	if err != nil {
		return err
	}
	if err := mount(p, a, "/mnt"); err != nil {
		return err
	}
	fmt.Println("guest: before:", walk("/mnt"))
	forget()
	step("flip")
	fmt.Println("guest: flipped:", walk("/mnt"))
	forget()
	step("unflip")
	fmt.Println("guest: after:", walk("/mnt"))
	forget()
	step("keep")
	if err := p.Unmount("/mnt"); err != nil {
		return err
	}
	if _, err := p.Collect(nil); err != nil {
		return err
	}
	b, err := pull(p, "/b", nil) // in the same blocks
	if err != nil {
		return err
	}
	if err := mount(p, b, "/mnt"); err != nil {
		return err
	}
	fmt.Println("guest: second:", walk("/mnt"))
	forget()
	time.Sleep(bufioPeriod)
	step("replay")
	fmt.Println("guest: replayed:", walk("/mnt"))
	return nil
}

// bufioPeriod is longer than what passes before the kernel gives tags up that were
// not used for max_age_seconds: Linux, drivers/md/dm-bufio.c,
// DM_BUFIO_WORK_TIMER_SECS.
const bufioPeriod = 33 * time.Second

// step waits until the host has done something.
func step(what string) {
	fmt.Println("guest: step", what)
	bufio.NewReader(os.Stdin).ReadString('\n')
}

// forget has the kernel read everything anew: pages, and the tags that dm-integrity
// keeps.
func forget() {
	if d, err := os.OpenFile("/dev/dm-1", os.O_RDWR, 0); err == nil {
		d.Sync() // tags are written no later
		d.Close()
	}
	unix.Sync()
	for file, value := range map[string]string{"retain_bytes": "0", "max_age_seconds": "1"} {
		if err := os.WriteFile("/sys/module/dm_bufio/parameters/"+file, []byte(value), 0o644); err != nil {
			fmt.Println("guest: error:", err)
		}
	}
	for range 3 {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o644); err != nil {
			fmt.Println("guest: error:", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// walk digests a tree: names, types, owners, modes, times, devices, links, attributes
// and content. Of what cannot be read it is the error.
func walk(dir string) string {
	sum := sha256.New()
	inodes := map[uint64]int{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		first, ok := inodes[st.Ino]
		if !ok {
			first = len(inodes)
			inodes[st.Ino] = first
		}
		size, links := st.Size, uint64(st.Nlink)
		if d.IsDir() { // file systems differ in these
			size, links = 0, 0
		}
		mtim := st.Mtim
		if path == dir {
			mtim = unix.Timespec{}
		}
		attributes, err := xattrs(path)
		if err != nil {
			return err
		}
		target, _ := os.Readlink(path)
		fmt.Fprintf(sum, "%q %o %d:%d %d.%d %x %d #%d %d %q %q\n", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, mtim.Sec, mtim.Nsec, st.Rdev, links, first, size, target, attributes)
		if !d.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(sum, f)
		return err
	})
	if err != nil {
		return "error " + err.Error()
	}
	return fmt.Sprintf("%x of %d", sum.Sum(nil), len(inodes))
}

func xattrs(path string) (out []string, err error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%s=%x", name, v[:n]))
	}
	sort.Strings(out)
	return out, nil
}
