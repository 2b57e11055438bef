package storage

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/testenv"
	fstree "github.com/plinth-os/plinth/internal/tree"
)

// modules are what a guest needs for pools, and for disks of QEMU's. The kernel asks
// for none itself: there is no modprobe.
var modules = []string{
	"virtio_pci", "virtio_blk", "loop", "erofs", "dm_mod", "dm_verity", "dm_integrity", "dm_crypt", "xts", "?sha256_ssse3", "?aesni_intel",
}

// canary is in the name, the content, a link and an attribute of a file.
const canary = "PLAINTEXT-CANARY-0d9b1f"

// guestKernels are those of PLINTH_VMLINUZ that PLINTH_MODULES has modules for.
func guestKernels(t *testing.T) map[string][]fstree.Entry {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a kernel")
	}
	testenv.Need(t, "qemu-system-x86_64", "go")
	out := map[string][]fstree.Entry{}
	for _, kernel := range filepath.SplitList(os.Getenv("PLINTH_VMLINUZ")) {
		_, release, _ := strings.Cut(filepath.Base(kernel), "-")
		for _, dir := range filepath.SplitList(os.Getenv("PLINTH_MODULES")) {
			if filepath.Base(dir) == release {
				out[kernel] = moduleFiles(t, dir)
			}
		}
	}
	if len(out) == 0 {
		testenv.Missing(t, "vmlinuz", "PLINTH_VMLINUZ and PLINTH_MODULES name no kernel with its modules")
	}
	return out
}

func moduleFiles(t *testing.T, dir string) (out []fstree.Entry) {
	t.Helper()
	index, err := initrd.IndexModules(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	closure, err := index.Closure(modules)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range closure {
		b, err := m.Content()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fstree.File(fmt.Sprintf("m/%03d-%s.ko", i, m.Name), 0o644, fstree.Bytes(b)))
	}
	return out
}

// buildGuest builds the program that is the guest's /init.
func buildGuest(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "guest")
	build := exec.Command("go", "build", "-o", program, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// bootGuest runs a guest until it ends and returns its console. At each line "guest:
// step NAME" steps is called; the guest waits.
func bootGuest(t *testing.T, kernel string, files []fstree.Entry, test string, disks []*hostDisk, step func(name string)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "initrd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(initrd.Write(f, nil, files, initrd.Params{Compression: "none", Epoch: 1767225600}), f.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // a minute or two on an idle host
	defer cancel()
	// Without cx16: see package initrd's TestBoot.
	args := []string{"-accel", "tcg", "-cpu", "max,-cx16", "-m", "768", "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-initrd", path, "-append", "console=ttyS0 panic=-1 plinth.test=" + test}
	for _, d := range disks {
		args = append(args, "-drive", d.arg())
	}
	c := exec.CommandContext(ctx, testenv.Tool("qemu-system-x86_64"), args...)
	in, err1 := c.StdinPipe()
	out, err2 := c.StdoutPipe()
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := errors.Join(err1, err2, c.Start()); err != nil {
		t.Fatal(err)
	}
	var console strings.Builder
	for s := bufio.NewScanner(out); s.Scan(); {
		line := strings.TrimRight(s.Text(), "\r")
		console.WriteString(line + "\n")
		if _, name, ok := strings.Cut(line, "guest: step "); ok && step != nil {
			step(name)
			io.WriteString(in, "\n")
		}
	}
	if err := c.Wait(); err != nil {
		t.Errorf("qemu: %v: %s", err, &stderr)
	}
	return console.String()
}

// layerFiles are tars for the guest, in order: an image with all that a tree can
// have, and a real package where there is one.
func layerFiles(t *testing.T) [][]byte {
	t.Helper()
	when := time.Unix(1700000000, 123456789)
	var lower, upper bytes.Buffer
	w := tar.NewWriter(&lower)
	add := func(h tar.Header, body []byte) {
		t.Helper()
		h.Size, h.ModTime, h.Format = int64(len(body)), when.Add(time.Duration(len(body))), tar.FormatPAX
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "opaque/", "gone/", "many/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/big", Mode: 0o4755, Uid: 3}, random(1, 3<<20))
	add(tar.Header{Typeflag: tar.TypeLink, Name: "bin/other", Linkname: "bin/big"}, nil)
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/link-" + canary, Linkname: canary, Mode: 0o777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/" + canary, Mode: 0o600, Gid: 70000,
		PAXRecords: map[string]string{"SCHILY.xattr.user.note": canary}}, bytes.Repeat([]byte(canary), 20000))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/capable", Mode: 0o755,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}, []byte("x"))
	add(tar.Header{Typeflag: tar.TypeChar, Name: "etc/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, nil)
	add(tar.Header{Typeflag: tar.TypeFifo, Name: "etc/fifo", Mode: 0o622}, nil)
	for i := range 400 {
		add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("many/%03d", i), Mode: 0o644}, random(uint64(i), i*37))
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "opaque/old", Mode: 0o644}, []byte("old"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "gone/x", Mode: 0o644}, []byte("gone"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = tar.NewWriter(&upper)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "opaque/.wh..wh..opq"}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "opaque/new", Mode: 0o644}, random(7, 5000))
	add(tar.Header{Typeflag: tar.TypeReg, Name: ".wh.gone"}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "many/007", Mode: 0o400}, []byte("replaced"))
	add(tar.Header{Typeflag: tar.TypeLink, Name: "upper-link", Linkname: "bin/big"}, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := [][]byte{lower.Bytes()}
	if debs := packages(); len(debs) > 0 {
		b, err := exec.Command(testenv.Tool("dpkg-deb"), "--fsys-tarfile", debs[0]).Output()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return append(out, upper.Bytes())
}

func packages() (out []string) {
	if testenv.Tool("dpkg-deb") == "" {
		return nil
	}
	for _, pattern := range strings.Fields(os.Getenv("DEBS")) {
		names, _ := filepath.Glob(pattern) // a bad pattern finds none
		out = append(out, names...)
	}
	return out
}

// extracted is what the guest's program says of a tree of layers that this host has
// made in a directory.
func extracted(t *testing.T, program string, layers ...[]byte) string {
	t.Helper()
	if os.Getuid() != 0 {
		testenv.Missing(t, "root", "only root can make a tree with owners and devices")
	}
	budget := unpack.NewBudget(unpack.Limits{})
	made := unpack.NewTree(budget)
	var contents []io.ReaderAt
	for _, b := range layers {
		var content bytes.Buffer
		l, err := unpack.Read(t.Context(), bytes.NewReader(b), &content, budget)
		if err != nil {
			t.Fatal(err)
		}
		if err := made.Apply(l); err != nil {
			t.Fatal(err)
		}
		contents = append(contents, bytes.NewReader(content.Bytes()))
	}
	dir := t.TempDir()
	if err := made.Extract(t.Context(), dir, contents); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, "walk", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestBootStore keeps images in guests, in memory and on disks of a host that then
// changes them.
func TestBootStore(t *testing.T) {
	kernels := guestKernels(t)
	program := buildGuest(t)
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	layers := layerFiles(t)
	a, b := oneFile(t, "file", random(100, 2<<20)), oneFile(t, "file", random(200, 2<<20))
	files := []fstree.Entry{
		fstree.File("init", 0o755, fstree.Bytes(body)), fstree.CharDev("dev/console", 0o600, 5, 1),
		fstree.File("a/0.tar", 0o644, fstree.Bytes(a)), fstree.File("b/0.tar", 0o644, fstree.Bytes(b)),
	}
	for i, l := range layers {
		files = append(files, fstree.File(fmt.Sprintf("layers/%d.tar", i), 0o644, fstree.Bytes(l)))
	}
	want := []string{"guest: before: " + extracted(t, program, a), "guest: after: " + extracted(t, program, a), "guest: second: " + extracted(t, program, b)}
	for _, name := range []string{"memory", "vda", "vdb"} {
		whole := extracted(t, program, layers...)
		second := append(layers[:len(layers):len(layers)], oneFile(t, "more", []byte(name)))
		want = append(want, "guest: "+name+": image 0: "+whole, "guest: "+name+": image 1: "+extracted(t, program, second...), "guest: "+name+": image 2: "+whole,
			"guest: "+name+": full: true, no space: ", "guest: "+name+": closed, devices [], <nil>")
	}
	var before [][]byte // the first disk of each boot so far
	for kernel, modules := range kernels {
		t.Run(filepath.Base(kernel), func(t *testing.T) {
			h := &hostileHost{t: t, disks: []*hostDisk{newHostDisk(t, 24<<20, nil), newHostDisk(t, 24<<20, nil)}}
			console := bootGuest(t, kernel, append(files[:len(files):len(files)], modules...), "store", h.disks, h.step)
			for _, line := range append(want, "guest: flipped: error read /mnt/file: input/output error", "Kernel panic - not syncing: dm-verity device corrupted") {
				if !strings.Contains(console, line) {
					t.Errorf("the console does not say %q", line)
				}
			}
			for _, line := range []string{"guest: error", "guest: replayed", "guest: done"} {
				if strings.Contains(console, line) {
					t.Errorf("the console says %q", line)
				}
			}
			h.check(before)
			before = append(before, h.first)
			for _, m := range regexp.MustCompile(`guest: \S+: \d+ bytes for .*`).FindAllString(console, -1) {
				t.Log(m)
			}
			if t.Failed() {
				t.Log(console)
			}
		})
	}
}

func oneFile(t *testing.T, name string, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))})
	if err == nil {
		_, err = w.Write(body)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// hostileHost changes the first disk when the guest says that it can.
type hostileHost struct {
	t             *testing.T
	disks         []*hostDisk
	first, second []byte // the disks when images had come and gone
	flip          int
	kept          []byte
}

func (h *hostileHost) step(name string) {
	switch name {
	case "empty":
		h.first, h.second = h.disks[0].snapshot(), h.disks[1].snapshot()
	case "flip":
		h.flip = middle(h.first, h.disks[0].snapshot())
		h.disks[0].b[h.flip] ^= 0x10
	case "unflip":
		h.disks[0].b[h.flip] ^= 0x10
	case "keep":
		h.kept = h.disks[0].snapshot()
	case "replay":
		now := h.disks[0].snapshot()
		if bytes.Equal(now[h.flip&^4095:][:4096], h.kept[h.flip&^4095:][:4096]) {
			h.t.Error("the second image is not where the first was: nothing is replayed")
		}
		h.disks[0].restore(h.kept)
	}
}

// middle is the middle of the longest run of blocks in which two disks differ.
func middle(a, b []byte) (at int) {
	longest, run := 0, 0
	for off := 0; off < len(a); off += blockSize {
		if bytes.Equal(a[off:off+blockSize], b[off:off+blockSize]) {
			run = 0
			continue
		}
		if run++; run > longest {
			longest, at = run, off-run/2*blockSize
		}
	}
	return at
}

// journalEnd is where dm-integrity's empty journal ends, which is the same for
// everybody: behind the superblock of 8 sectors, 1,024 sectors have room for three
// sections of 264.
const journalEnd = (8 + 3*264) * 512

// check looks for plaintext, and for ciphertext that is the same on two disks: the
// same images went onto all of them.
func (h *hostileHost) check(before [][]byte) {
	if h.first == nil {
		h.t.Error("the guest did not come to its disks")
		return
	}
	for _, disk := range [][]byte{h.first, h.second, h.kept} {
		if bytes.Contains(disk, []byte(canary)) {
			h.t.Error("plaintext is on the disk")
		}
	}
	zeros := make([]byte, blockSize)
	for i, other := range append(before, h.second) {
		same, written := 0, 0
		if bytes.Equal(h.first[:blockSize], other[:blockSize]) {
			h.t.Errorf("disk %d: the same superblock", i)
		}
		for off := journalEnd; off < len(h.first); off += blockSize {
			b := h.first[off:][:blockSize]
			if bytes.Equal(b, zeros) {
				continue
			}
			written++
			if bytes.Equal(b, other[off:][:blockSize]) {
				same++
			}
		}
		if same > 0 || written < 4000 {
			h.t.Errorf("disk %d: %d of %d blocks hold the same", i, same, written)
		}
	}
}

// superblock is dm-integrity's, for a device of this package's table: Linux,
// drivers/md/dm-integrity.c, struct superblock.
func superblock(version byte, flags uint32, mac byte) []byte {
	b := make([]byte, blockSize)
	le := binary.LittleEndian
	copy(b, "integrt\x00")
	b[8] = version
	b[9] = 15                    // log2 of the interleaved sectors
	le.PutUint16(b[10:], 32)     // tag size
	le.PutUint32(b[12:], 3)      // journal sections
	le.PutUint64(b[16:], 100000) // sectors of data
	le.PutUint32(b[24:], flags)
	b[28] = 3 // log2 of the sectors of a block
	for i := 480; i < 512; i++ {
		b[i] = mac
	}
	return b
}

// Flags of struct superblock.
const (
	haveJournalMAC = 1 << 0
	recalculating  = 1 << 1
	dirtyBitmap    = 1 << 2
	fixedHMAC      = 1 << 4
)

// TestBootRefused: a host that puts a superblock of its own in the place of the
// zeros, and foreign content, which nobody looks at.
func TestBootRefused(t *testing.T) {
	kernels := guestKernels(t)
	body, err := os.ReadFile(buildGuest(t))
	if err != nil {
		t.Fatal(err)
	}
	files := []fstree.Entry{fstree.File("init", 0o755, fstree.Bytes(body)), fstree.CharDev("dev/console", 0o600, 5, 1)}
	const lacks = "dm-integrity: the superblock is not the one that was to be written: it lacks fix_hmac"
	refusals := []struct {
		fake []byte
		size int
		want string
	}{
		{superblock(1, haveJournalMAC, 0), 32 << 20, lacks},
		{superblock(3, haveJournalMAC|dirtyBitmap, 0), 32 << 20, lacks},
		{superblock(2, haveJournalMAC|recalculating, 0), 32 << 20, "dm: load table: "},
		{superblock(5, haveJournalMAC|fixedHMAC, 0x5a), 32 << 20, "dm: load table: plinth-disk-integrity: invalid or incomplete"},
		{bytes.Repeat([]byte("LUKS\xba\xbe\x00\x02"), 512), 32 << 20, "dm: load table: plinth-disk-integrity: invalid argument"},
		{nil, 8 << 20, "8388608 bytes, want at least 16777216"},
	}
	for kernel, modules := range kernels {
		t.Run(filepath.Base(kernel), func(t *testing.T) {
			var disks []*hostDisk
			var want []string
			for i, x := range refusals {
				disks = append(disks, newHostDisk(t, x.size, x.fake))
				want = append(want, fmt.Sprintf("guest: /dev/vd%c: refused: storage: /dev/vd%c: %s", 'a'+i, 'a'+i, x.want))
			}
			foreign := newHostDisk(t, 32<<20, nil)
			copy(foreign.b, random(1, 32<<20))
			copy(foreign.b, superblock(5, haveJournalMAC|fixedHMAC, 0x5a))
			disks = append(disks, foreign)
			want = append(want, fmt.Sprintf("guest: /dev/vd%c: refused: <nil>", 'a'+len(refusals)), "guest: done", "superblock mac")
			console := bootGuest(t, kernel, append(files[:len(files):len(files)], modules...), "refused", disks, nil)
			for _, line := range want {
				if !strings.Contains(console, line) {
					t.Errorf("the console does not say %q", line)
				}
			}
			if t.Failed() {
				t.Log(console)
			}
		})
	}
}
