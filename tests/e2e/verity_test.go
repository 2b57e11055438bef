package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinth-os/plinth/evidence"
	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/verity"
)

// checkRoot compares what the guest says of its root with the command line.
func (img *verityImage) checkRoot(t *testing.T, r *evidence.Report) {
	t.Helper()
	if r.Root != "verity" {
		t.Fatalf("the root is %q", r.Root)
	}
	got, v := parseTable(t, r), img.root
	want := dm.Verity{
		Format: v.Format, Data: got.Data, Hash: got.Hash, DataBlockSize: v.DataBlockSize, HashBlockSize: v.HashBlockSize, DataBlocks: v.DataBlocks,
		HashStart: v.HashStart, Algorithm: string(v.Algorithm), RootHash: v.RootHash, Salt: v.Salt, Options: []string{v.OnCorruption.Option()},
	}
	target := want.Target()
	if line := fmt.Sprintf("0 %d verity %s", target.Length, target.Params); r.RootTable != line || got.Data == got.Hash {
		t.Errorf("the root's table is %q, want %q", r.RootTable, line)
	}
}

// parseTable reads "START LENGTH verity PARAMETERS".
func parseTable(t *testing.T, r *evidence.Report) *dm.Verity {
	t.Helper()
	words := strings.SplitN(r.RootTable, " ", 4)
	v, err := dm.ParseVerity(words[len(words)-1])
	if err != nil {
		t.Fatalf("%q: %v", r.RootTable, err)
	}
	return v
}

// TestVerityRoot boots hand-made images of several kinds: what the guest says of
// its root is what the command line says.
func TestVerityRoot(t *testing.T) {
	stock := stockRecipe()
	other := stockRecipe()
	other.overlay, other.onCorruption = true, verity.Restart
	other.params = verity.Params{Algorithm: verity.SHA512, DataBlockSize: 1024, HashBlockSize: 2048, Salt: []byte("s"), Format: 0}
	unsalted := stockRecipe()
	unsalted.params.Salt, unsalted.params.DataBlockSize, unsalted.params.HashBlockSize = nil, 4096, 512
	for _, c := range []struct {
		name   string
		recipe recipe
		write  string // what comes of writing to the root
	}{
		{"stock", stock, "EROFS"},
		{"overlay, restart, SHA-512, format 0", other, "read x"},
		{"no salt, small hash blocks", unsalted, "EROFS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := c.recipe.make(t)
			g := img.boot(t)
			g.mustReport(t)
			img.checkRoot(t, g.report)
			where, device := "device", g.report.RootDevice
			if c.recipe.overlay {
				if got := g.ask(t, "device"); got != device || !strings.HasPrefix(got, "0:") {
					t.Errorf("/ is on %q, want %q of no device", got, device)
				}
				where, device = "lower", g.report.RootLower
			}
			if got := g.ask(t, where); got != device+" plinth-root" {
				t.Errorf("%s: %q, want %q", where, got, device)
			}
			if got := g.ask(t, "initramfs"); got != "left:" {
				t.Errorf("initramfs: %q", got)
			}
			if got := g.ask(t, "write"); got != c.write {
				t.Errorf("a write to the root: %q, want %q", got, c.write)
			}
			if a, b := g.ask(t, "root 0"), g.ask(t, "beside 0"); a != b || len(a) != 64 {
				t.Errorf("block 0 is %q, and %q beside the root", a, b)
			}
		})
	}
}

// TestVerityZeroedHashes: without its tree a root is not taken; with the tree's top
// alone the kernel stops.
func TestVerityZeroedHashes(t *testing.T) {
	img := stockRecipe().make(t)
	size := img.root.TreeSize() + int64(img.root.HashBlockSize)
	top := img.hash + int64(img.root.HashBlockSize)
	for _, c := range []struct {
		name     string
		from, to int64 // on the disk
		want     string
	}{
		{"below the top", top + int64(img.root.HashBlockSize), img.hash + size, corrupted},
		{"all", img.hash, img.hash + size, refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			img.edit(t, func(d *os.File) error {
				_, err := d.WriteAt(make([]byte, c.to-c.from), c.from)
				return err
			})
			img.boot(t).mustEnd(t, c.want)
		})
	}
}

// TestVerityRollback gives a guest the disk of its older version.
func TestVerityRollback(t *testing.T) {
	r := stockRecipe()
	img := r.make(t)
	r.content = []byte("y")
	older := r.make(t)
	if bytes.Equal(img.root.RootHash, older.root.RootHash) {
		t.Fatal("the two are one")
	}
	current := img.machine.Disk
	t.Run("its disk", func(t *testing.T) {
		img.machine.Disk = older.machine.Disk
		img.boot(t).mustEnd(t, refused)
	})
	img.machine.Disk = current
	t.Run("its data under the tree", func(t *testing.T) {
		img.edit(t, func(d *os.File) error { return img.take(d, older, older.data, img.data, img.root.DataSize()) })
		img.boot(t).mustEnd(t, corrupted)
	})
	t.Run("its data and tree", func(t *testing.T) {
		img.edit(t, func(d *os.File) error { return img.take(d, older, older.hash, img.hash, 1<<20) })
		img.boot(t).mustEnd(t, refused)
	})
}

// TestVerityTwoDisks: of two disks with the root's name the first is another one.
func TestVerityTwoDisks(t *testing.T) {
	r := stockRecipe()
	img := r.make(t)
	r.content = []byte("y")
	older := r.make(t)
	good := filepath.Join(t.TempDir(), "good")
	write(t, good, read(t, img.machine.Disk))
	img.edit(t, func(d *os.File) error {
		return errors.Join(img.take(d, older, older.data, img.data, img.root.DataSize()), img.take(d, older, older.hash, img.hash, 1<<20))
	})
	g := img.boot(t, "-blockdev", "driver=raw,node-name=second,read-only=on,file.driver=file,file.filename="+good,
		"-device", "virtio-blk-pci,drive=second,addr=05.0")
	g.mustReport(t)
	img.checkRoot(t, g.report)
	if v := parseTable(t, g.report); v.Data != "254:17" || v.Hash != "254:18" {
		t.Errorf("the root is on %s and %s, want those of the second disk", v.Data, v.Hash)
	}
}

// TestVerityDamagedFirstDisk: the first of two disks has the root's name and the
// top of its tree, and damage below. Alone, it ends the guest.
func TestVerityDamagedFirstDisk(t *testing.T) {
	img := stockRecipe().make(t)
	good := filepath.Join(t.TempDir(), "good")
	write(t, good, read(t, img.machine.Disk))
	img.edit(t, func(d *os.File) error {
		_, err := d.WriteAt(noise(3, img.root.DataBlockSize), img.data) // the superblock of EROFS is in it
		return err
	})
	t.Run("alone", func(t *testing.T) { img.boot(t).mustEnd(t, corrupted) })
	t.Run("beside a whole one", func(t *testing.T) {
		g := img.boot(t, "-blockdev", "driver=raw,node-name=second,read-only=on,file.driver=file,file.filename="+good,
			"-device", "virtio-blk-pci,drive=second,addr=05.0")
		g.mustReport(t)
		img.checkRoot(t, g.report)
		if v := parseTable(t, g.report); v.Data != "254:17" || v.Hash != "254:18" {
			t.Errorf("the root is on %s and %s, want those of the second disk", v.Data, v.Hash)
		}
		if text := g.vm.ConsoleTail(); !strings.Contains(text, "data block 0 is corrupt") {
			t.Errorf("the console does not say why\n%s", text)
		}
	})
}

// edit changes the disk.
func (img *verityImage) edit(t *testing.T, change func(*os.File) error) {
	t.Helper()
	f, err := os.OpenFile(img.machine.Disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(change(f), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// take copies size bytes of another image's disk to d.
func (img *verityImage) take(d *os.File, other *verityImage, from, to, size int64) error {
	f, err := os.Open(other.machine.Disk)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.NewOffsetWriter(d, to), io.NewSectionReader(f, from, size))
	return err
}
