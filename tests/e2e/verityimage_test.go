package e2e

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/builder/disk"
	"github.com/plinth-os/plinth/initrd"
	"github.com/plinth-os/plinth/internal/erofs"
	"github.com/plinth-os/plinth/internal/gpt"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/internal/tree"
	"github.com/plinth-os/plinth/qemu"
	"github.com/plinth-os/plinth/verity"
)

// A verityImage is a guest with a verity root on its disk.
type verityImage struct {
	machine  qemu.Machine
	cmdline  string
	patience time.Duration // with a boot; 0: 3 minutes
	root     *verity.Root
	table    *gpt.Table
	data     int64 // where the partitions begin on the disk, bytes
	hash     int64
}

// openVerity looks at the disk of a machine whose command line is known.
func openVerity(t *testing.T, m qemu.Machine, cmdline string) *verityImage {
	t.Helper()
	img := &verityImage{machine: m, cmdline: cmdline}
	for _, w := range strings.Fields(cmdline) {
		if value, ok := strings.CutPrefix(w, verity.Argument+"="); ok {
			var err error
			if img.root, err = verity.ParseRoot(value); err != nil {
				t.Fatal(err)
			}
		}
	}
	if img.root == nil {
		t.Fatalf("no verity root in %q", cmdline)
	}
	f, err := os.Open(m.Disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if img.table, err = gpt.Read(f, fi.Size()); err != nil {
		t.Fatal(err)
	}
	dataID, hashID := img.root.PartitionIDs()
	for _, p := range img.table.Partitions {
		switch p.ID {
		case gpt.FromUUID(dataID):
			img.data = int64(p.First) * int64(img.table.SectorSize)
		case gpt.FromUUID(hashID):
			img.hash = int64(p.First) * int64(img.table.SectorSize)
		}
	}
	if img.data == 0 || img.hash == 0 {
		t.Fatalf("the disk has %+v, the root hash is %x", img.table.Partitions, img.root.RootHash)
	}
	return img
}

// A recipe is an image that is put together by hand, without packages. Firmware,
// kernel and modules are the machine's; QEMU is given kernel and initrd.
type recipe struct {
	overlay      bool
	onCorruption verity.OnCorruption
	params       verity.Params // algorithm, block sizes and salt
	content      []byte        // of the file /content
}

func stockRecipe() recipe {
	return recipe{onCorruption: verity.Panic, content: []byte("x"), params: verity.Params{
		Algorithm: verity.SHA256, DataBlockSize: 4096, HashBlockSize: 4096, Salt: bytes.Repeat([]byte{0x5a}, 32), Format: 1,
	}}
}

// noise is the same for the same seed.
func noise(seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// program builds a static one of this checkout.
func program(t *testing.T, pkg string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	build.Dir = testenv.Root(t)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	return read(t, out)
}

// make puts the image together in an empty directory.
func (r recipe) make(t *testing.T) *verityImage {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a kernel")
	}
	testenv.Need(t, append([]string{"go"}, bootTools...)...)
	dir := t.TempDir()
	agent := tree.Bytes(program(t, "./cmd/plinth-agent"))
	root := r.disk(t, filepath.Join(dir, "disk"), []tree.Entry{
		tree.Dir("proc", 0o755), tree.Dir("sys", 0o755), tree.Dir("dev", 0o755), tree.Dir("run", 0o755), tree.Dir("tmp", 0o755),
		tree.File("usr/lib/plinth/agent", 0o755, agent),
		tree.File("usr/bin/probe", 0o755, tree.Bytes(program(t, "./tests/e2e/testdata/probe"))),
		tree.File("content", 0o644, tree.Bytes(r.content)),
	})
	cmdline := "lockdown=integrity oops=panic panic=-1 console=ttyS0 " + verity.Argument + "=" + root.String()
	m := qemu.Machine{
		TPM: true, ReportPort: config.ReportPort, Append: cmdline,
		Disk: filepath.Join(dir, "disk"), Initrd: filepath.Join(dir, "initrd"), Kernel: testKernel(t),
	}
	m.Firmware, m.Vars = testFirmware(t)
	writeTo(t, m.Initrd, func(f *os.File) error {
		entries, err := r.initrd(t, agent, cmdline)
		if err != nil {
			return err
		}
		return initrd.Write(f, nil, entries, initrd.Params{Compression: "zstd"})
	})
	return openVerity(t, m, cmdline)
}

// disk writes a disk with the root and its tree.
func (r recipe) disk(t *testing.T, path string, entries []tree.Entry) *verity.Root {
	t.Helper()
	id := [16]byte{1}
	var data bytes.Buffer
	if err := erofs.Write(&data, entries, erofs.Params{UUID: id}); err != nil {
		t.Fatal(err)
	}
	root := &verity.Root{Params: r.params, HashStart: 1, OnCorruption: r.onCorruption}
	root.DataBlocks = uint64(data.Len() / root.DataBlockSize)
	head, err := (&verity.Superblock{UUID: id, Params: root.Params}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	hash := make(buffer, int64(root.HashBlockSize)+root.TreeSize())
	copy(hash, head)
	if root.RootHash, err = verity.Format(hash[root.HashBlockSize:], bytes.NewReader(data.Bytes()), root.Params); err != nil {
		t.Fatal(err)
	}
	dataID, hashID := root.PartitionIDs()
	writeTo(t, path, func(f *os.File) error {
		return disk.Write(f, disk.Disk{ID: gpt.FromUUID([16]byte{2}), Partitions: []disk.Partition{
			{Type: disk.TypeRoot, ID: gpt.FromUUID(dataID), Name: "root", Attributes: disk.AttrReadOnly, Size: int64(data.Len()), Content: put(data.Bytes())},
			{Type: disk.TypeRootVerity, ID: gpt.FromUUID(hashID), Name: "verity", Attributes: disk.AttrReadOnly, Size: int64(len(hash)), Content: put(hash)},
		}})
	})
	return root
}

func put(b []byte) func(io.WriterAt) error {
	return func(w io.WriterAt) error {
		_, err := w.WriteAt(b, 0)
		return err
	}
}

type buffer []byte

func (b buffer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)-len(p)) {
		return 0, errors.New("write outside the buffer")
	}
	return copy(b[off:], p), nil
}

// initrd lists what comes before the root is there.
func (r recipe) initrd(t *testing.T, agent tree.Blob, cmdline string) ([]tree.Entry, error) {
	index, err := initrd.IndexModules(os.DirFS(testModules(t)))
	if err != nil {
		return nil, err
	}
	modules, err := index.Closure([]string{"virtio_pci", "virtio_blk", "virtio_console", "dm_verity", "erofs", "overlay", "?sha512_generic"})
	if err != nil {
		return nil, err
	}
	entries := []tree.Entry{
		tree.CharDev("dev/console", 0o600, 5, 1), tree.CharDev("dev/null", 0o666, 1, 3),
		tree.Dir("proc", 0o755), tree.Dir("sys", 0o755), tree.Dir("run", 0o755), tree.Dir("tmp", 0o755),
		tree.File("init", 0o755, agent),
	}
	c := &config.Config{
		Schema: config.Schema, Cmdline: cmdline, Overlay: r.overlay, Phases: config.Phases,
		Services: []config.Service{{Name: "probe", Exec: []string{"/usr/bin/probe"}}},
	}
	for _, m := range modules {
		body, err := m.Content()
		if err != nil {
			return nil, err
		}
		path := "usr/lib/plinth/modules/" + m.Name + ".ko"
		entries = append(entries, tree.File(path, 0o644, tree.Bytes(body)))
		c.Modules = append(c.Modules, config.Module{Path: "/" + path, Params: m.Params})
	}
	b, err := c.Marshal()
	return append(entries, tree.File(strings.TrimPrefix(config.Path, "/"), 0o644, tree.Bytes(b))), err
}

func testKernel(t *testing.T) string {
	t.Helper()
	kernels := filepath.SplitList(os.Getenv("PLINTH_VMLINUZ"))
	if len(kernels) == 0 {
		testenv.Missing(t, "vmlinuz", "PLINTH_VMLINUZ names no kernel")
	}
	return kernels[0]
}

func testModules(t *testing.T) string {
	t.Helper()
	dirs := filepath.SplitList(os.Getenv("PLINTH_MODULES"))
	if len(dirs) == 0 {
		testenv.Missing(t, "modules", "PLINTH_MODULES names no directory")
	}
	return dirs[0]
}

func testFirmware(t *testing.T) (code, vars string) {
	t.Helper()
	code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	for _, path := range []string{code, vars} {
		if _, err := os.Stat(path); err != nil {
			testenv.Missing(t, "ovmf", err.Error())
		}
	}
	return code, vars
}

func writeTo(t *testing.T, path string, fill func(*os.File) error) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fill(f), f.Close()); err != nil {
		t.Fatal(err)
	}
}
