package storage

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/internal/dm"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/verity"
)

// TestFilesAreWhatWasWritten: the data lies in the extents, the hash tree behind it
// is Format's, and cryptsetup finds the same.
func TestFilesAreWhatWasWritten(t *testing.T) {
	for _, blocks := range []int{1, 2, 63, 64, 65, 127, 128, 129, 300, 16385} {
		t.Run(fmt.Sprint(blocks), func(t *testing.T) {
			p, _, d := newTestPool(2 * (blocks + 400))
			// A first extent elsewhere, so that the file is in several.
			p.space.take(7)
			p.space.give(extent{2, 3})
			im := newImage(t, layerSpec{1, blocks})
			im.publish(t, p)
			f := p.layers[im.pulled.DiffIDs[0]].file
			data, tree := d.read(f)
			if !bytes.Equal(data, im.contents[0]) {
				t.Fatal("the data is not what was written")
			}
			want := params
			want.DataBlocks = uint64(blocks)
			var formatted sparse
			root, err := verity.Format(&formatted, bytes.NewReader(data), want)
			if err != nil || !bytes.Equal(root, f.root) || !bytes.Equal(formatted, tree) || !reflect.DeepEqual(f.params, want) {
				t.Errorf("root hash %x, want %x, %v; trees equal: %v; %+v", f.root, root, err, bytes.Equal(formatted, tree), f.params)
			}
			if uint64(len(data)+len(tree))/blockSize != total(f.extents) {
				t.Errorf("%d blocks in %+v", (len(data)+len(tree))/blockSize, f.extents)
			}
			veritysetup(t, data, tree, f)
		})
	}
}

type sparse []byte

func (s *sparse) WriteAt(b []byte, off int64) (int, error) {
	if end := int(off) + len(b); end > len(*s) {
		*s = append(*s, make([]byte, end-len(*s))...)
	}
	return copy((*s)[off:], b), nil
}

func total(extents []extent) (n uint64) {
	for _, e := range extents {
		n += e.blocks
	}
	return n
}

func veritysetup(t *testing.T, data, tree []byte, f *file) {
	t.Helper()
	if testenv.Tool("veritysetup") == "" {
		return // testenv.Need would skip what was checked
	}
	path := filepath.Join(t.TempDir(), "both")
	if err := os.WriteFile(path, append(bytes.Clone(data), tree...), 0o600); err != nil {
		t.Fatal(err)
	}
	if len(tree) == 0 {
		return // it wants a tree
	}
	out, err := exec.Command(testenv.Tool("veritysetup"), "verify", path, path, hex.EncodeToString(f.root), "--no-superblock", "--salt=-",
		"--data-blocks", fmt.Sprint(f.blocks()), "--hash-offset", fmt.Sprint(len(data))).CombinedOutput()
	if err != nil {
		t.Errorf("veritysetup: %v: %s", err, out)
	}
}

func TestLayersAndTrees(t *testing.T) {
	p, _, _ := newTestPool(4000)
	a := newImage(t, layerSpec{1, 300}, layerSpec{2, 0}, layerSpec{3, 5})
	b := newImage(t, layerSpec{1, 300}, layerSpec{4, 9})
	a.publish(t, p)
	before := freeBlocks(p)
	b.publish(t, p)
	// 9 blocks and a block of digests, 3 of the tree and a block of digests.
	if got := before - freeBlocks(p); got != 14 {
		t.Errorf("the second image took %d blocks, want 14: it shares a layer", got)
	}
	for _, im := range []*testImage{a, b} {
		for i, id := range im.pulled.DiffIDs {
			l, err := p.Layer(id)
			if err != nil || l == nil {
				t.Fatalf("layer %d: %v", i, err)
			}
			got, err := l.MarshalBinary()
			want, e := im.pulled.Layers[i].MarshalBinary()
			if err != nil || e != nil || !bytes.Equal(got, want) {
				t.Errorf("layer %d is not what was published: %v, %v", i, err, e)
			}
		}
		if there, err := p.Tree(im.pulled.ChainID); !there || err != nil {
			t.Errorf("%v, %v", there, err)
		}
	}
	other := digest.FromString("x")
	if l, err := p.Layer(other); l != nil || err != nil {
		t.Errorf("an unknown layer: %v, %v", l, err)
	}
	if there, err := p.Tree(other); there || err != nil {
		t.Errorf("an unknown tree: %v, %v", there, err)
	}
}

// TestNothingIsVisibleBeforePublish, and nothing is left after Discard.
func TestNothingIsVisibleBeforePublish(t *testing.T) {
	p, k, _ := newTestPool(2000)
	im := newImage(t, layerSpec{1, 300}, layerSpec{3, 5})
	all := freeBlocks(p)
	s, err := p.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := im.write(s, p); err != nil {
		t.Fatal(err)
	}
	if l, _ := p.Layer(im.pulled.DiffIDs[0]); l != nil || len(p.trees) > 0 || len(k.log) > 0 {
		t.Error("something is visible")
	}
	if err := p.Close(); err == nil {
		t.Error("closed while a pull is under way")
	}
	for range 2 {
		if err := s.Discard(); err != nil || freeBlocks(p) != all || len(p.layers) > 0 {
			t.Errorf("%v, %d of %d blocks are free", err, freeBlocks(p), all)
		}
	}
	if err := s.Publish(im.pulled); !errors.Is(err, errOver) {
		t.Errorf("Publish after Discard: %v", err)
	}
	if _, err := s.Content("sha256:00"); !errors.Is(err, errOver) {
		t.Errorf("Content after Discard: %v", err)
	}
	if _, err := s.Tree(); !errors.Is(err, errOver) {
		t.Errorf("Tree after Discard: %v", err)
	}
}

// TestDiscardStopsWriters that a failed pull has left open.
func TestDiscardStopsWriters(t *testing.T) {
	p, _, _ := newTestPool(2000)
	all := freeBlocks(p)
	s, err := p.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Content("sha256:00")
	if err != nil {
		t.Fatal(err)
	}
	big := random(1, 1<<20)
	if _, err := w.Write(big); err != nil || freeBlocks(p) == all {
		t.Fatal(err)
	}
	if err := s.Discard(); err != nil || freeBlocks(p) != all {
		t.Errorf("%v, %d of %d blocks are free", err, freeBlocks(p), all)
	}
	if _, err := w.Write(big); !errors.Is(err, errOver) {
		t.Errorf("Write: %v", err)
	}
	if err := w.Close(); !errors.Is(err, errOver) || freeBlocks(p) != all {
		t.Errorf("Close: %v", err)
	}
}

// TestPublishRefuses what is not whole, and changes nothing.
func TestPublishRefuses(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(s imagepull.Stage, im *testImage)
		write func(s imagepull.Stage, im *testImage, p *Pool) error
		want  string
	}{
		"no content": {write: func(s imagepull.Stage, im *testImage, p *Pool) error {
			return errors.Join(writeAll(s.Content(im.pulled.DiffIDs[0]))(im.contents[0]), writeAll(s.Tree())(im.tree))
		}, want: "is not there"},
		"no tree": {write: func(s imagepull.Stage, im *testImage, p *Pool) error {
			return errors.Join(writeAll(s.Content(im.pulled.DiffIDs[0]))(im.contents[0]), writeAll(s.Content(im.pulled.DiffIDs[1]))(im.contents[1]))
		}, want: "no tree"},
		"content is open": {write: func(s imagepull.Stage, im *testImage, p *Pool) error {
			w, err := s.Content(im.pulled.DiffIDs[0])
			if err != nil {
				return err
			}
			_, err = w.Write(im.contents[0])
			return errors.Join(err, writeAll(s.Content(im.pulled.DiffIDs[1]))(im.contents[1]), writeAll(s.Tree())(im.tree))
		}, want: "its content is not complete"},
		"tree is open": {write: func(s imagepull.Stage, im *testImage, p *Pool) error {
			_, err := s.Tree()
			return errors.Join(err, writeAll(s.Content(im.pulled.DiffIDs[0]))(im.contents[0]), writeAll(s.Content(im.pulled.DiffIDs[1]))(im.contents[1]))
		}, want: "its tree is not complete"},
		"empty tree": {write: func(s imagepull.Stage, im *testImage, p *Pool) error { im.tree = nil; return im.write(s, p) }, want: "its tree is not complete"},
		"content is short": {write: func(s imagepull.Stage, im *testImage, p *Pool) error {
			im.contents[1] = im.contents[1][blockSize:]
			return im.write(s, p)
		}, want: "content of 4 blocks, want 5"},
		"layers are missing": {spoil: func(_ imagepull.Stage, im *testImage) { im.pulled.Layers = im.pulled.Layers[1:] }, want: "1 layers, want 2"},
		"device is none":     {spoil: func(_ imagepull.Stage, im *testImage) { im.pulled.Devices = []int{2} }, want: "device of layer 2"},
		"device without content": {spoil: func(_ imagepull.Stage, im *testImage) { im.pulled.Devices = []int{0, 2} }, write: func(s imagepull.Stage, im *testImage, p *Pool) error {
			empty := newImage(t, layerSpec{9, 0})
			im.pulled.DiffIDs, im.pulled.Layers = append(im.pulled.DiffIDs, empty.pulled.DiffIDs[0]), append(im.pulled.Layers, empty.pulled.Layers[0])
			im.contents = append(im.contents, nil)
			return im.write(s, p)
		}, want: "device of layer 2: it has no content"},
		"device before first":    {spoil: func(_ imagepull.Stage, im *testImage) { im.pulled.Devices = []int{-1} }, want: "device of layer -1"},
		"pull was given up":      {spoil: func(s imagepull.Stage, _ *testImage) { s.Discard() }, want: "is over"},
		"pool is closed already": {spoil: func(s imagepull.Stage, _ *testImage) { s.(*stage).pool.closed = true }, want: "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _, _ := newTestPool(2000)
			all := freeBlocks(p)
			im := newImage(t, layerSpec{1, 300}, layerSpec{3, 5})
			s, err := p.Stage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if x.write == nil {
				x.write = func(s imagepull.Stage, im *testImage, p *Pool) error { return im.write(s, p) }
			}
			if err := x.write(s, im, p); err != nil {
				t.Fatal(err)
			}
			if x.spoil != nil {
				x.spoil(s, im)
			}
			if err := s.Publish(im.pulled); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v, want %q", err, x.want)
			}
			if len(p.layers)+len(p.trees) > 0 {
				t.Error("something was published")
			}
			if err := s.Discard(); err != nil || freeBlocks(p) != all {
				t.Errorf("%v, %d of %d blocks are free", err, freeBlocks(p), all)
			}
		})
	}
}

func TestWritersRefuse(t *testing.T) {
	p, _, d := newTestPool(2000)
	s, err := p.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Discard()
	if err := writeAll(s.Content("sha256:00"))(make([]byte, blockSize+1)); err == nil || !strings.Contains(err.Error(), "1 bytes at the end") {
		t.Errorf("part of a block: %v", err)
	}
	if _, err := s.Content("sha256:00"); err == nil {
		t.Error("the same layer twice")
	}
	if _, err := s.Tree(); err != nil {
		t.Error(err)
	}
	if _, err := s.Tree(); err == nil {
		t.Error("a tree twice")
	}
	d.err = unix.EIO
	if err := writeAll(s.Content("sha256:01"))(make([]byte, 1<<20)); !errors.Is(err, unix.EIO) {
		t.Errorf("a disk that fails: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Stage(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a pull that was given up: %v", err)
	}
}

// TestFull: the error says how much is needed and how much there is, of the whole
// pull, and everything is given back.
func TestFull(t *testing.T) {
	for name, limit := range map[string]func() (int64, error){
		"pool":   nil,
		"memory": func() (int64, error) { return 0, nil },
	} {
		blocks := 1000
		p, _, _ := newTestPool(blocks)
		if p.base.limit = limit; limit != nil {
			blocks = 0
		}
		im := newImage(t, layerSpec{1, 600}, layerSpec{2, 600})
		s, err := p.Stage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var full *imagepull.SpaceError
		err = im.write(s, p)
		if !errors.As(err, &full) || full.Available != int64(blocks)*blockSize || full.Needed <= full.Available || full.Needed > 1200*blockSize || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v, %+v", name, err, full)
		}
		if err := s.Publish(im.pulled); err == nil {
			t.Errorf("%s: published", name)
		}
		if err := s.Discard(); err != nil || freeBlocks(p) != 1000 {
			t.Errorf("%s: %v, %d blocks free", name, err, freeBlocks(p))
		}
	}
	p, _, _ := newTestPool(1000)
	free, err := p.Free()
	if err != nil {
		t.Fatal(err)
	}
	// What Free says does fit, with its tree.
	newImage(t, layerSpec{1, int(free/blockSize) - 5}).publish(t, p)
	p.base.limit = func() (int64, error) { return 0, errors.New("no meminfo") }
	if _, err := p.Free(); err == nil {
		t.Error("no error")
	}
}

// TestMount: one pair of devices for each file that the tree needs, in its order,
// shared between images and gone with the last.
func TestMount(t *testing.T) {
	p, k, _ := newTestPool(4000)
	a := newImage(t, layerSpec{1, 300}, layerSpec{2, 0}, layerSpec{3, 5})
	b := newImage(t, layerSpec{1, 300}, layerSpec{4, 9})
	a.publish(t, p)
	b.publish(t, p)
	if err := p.Mount(a.pulled.ChainID, "/a"); err != nil {
		t.Fatal(err)
	}
	wantLog := []string{
		"create plinth-blocks-0", "create plinth-image-0", "create plinth-blocks-1", "create plinth-image-1", "create plinth-blocks-2", "create plinth-image-2",
		"mount /dev/dm-2 /a device=/dev/dm-4,device=/dev/dm-6",
	}
	if !reflect.DeepEqual(k.log, wantLog) {
		t.Errorf("%q\nwant %q", k.log, wantLog)
	}
	f := p.layers[a.pulled.DiffIDs[0]].file
	want := fmt.Sprintf("1 254:3 254:3 4096 4096 300 300 sha256 %x - 1 panic_on_corruption", f.root)
	if got := k.devices["plinth-image-1"]; len(got) != 1 || got[0].Params != want || got[0].Length != 2400 {
		t.Errorf("%+v\nwant %s", got, want)
	}
	if got, want := k.devices["plinth-blocks-1"][0], (dm.Linear{Device: "254:0", Offset: f.extents[0].start * 8}.Target(0, f.extents[0].blocks*8)); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	k.log = nil
	if err := errors.Join(p.Mount(b.pulled.ChainID, "/b"), p.Mount(b.pulled.ChainID, "/c")); err != nil {
		t.Fatal(err)
	}
	wantLog = []string{
		"create plinth-blocks-3", "create plinth-image-3", "create plinth-blocks-4", "create plinth-image-4",
		"mount /dev/dm-8 /b device=/dev/dm-4,device=/dev/dm-10", "mount /dev/dm-8 /c device=/dev/dm-4,device=/dev/dm-10",
	}
	if !reflect.DeepEqual(k.log, wantLog) {
		t.Errorf("%q\nwant %q", k.log, wantLog)
	}
	for target, id := range map[string]digest.Digest{"/a": b.pulled.ChainID, "/d": digest.FromString("x")} {
		if err := p.Mount(id, target); err == nil {
			t.Errorf("%s on %s: mounted", id, target)
		}
	}
	if err := p.Close(); err == nil {
		t.Error("closed while images are mounted")
	}
	k.log = nil
	if err := errors.Join(p.Unmount("/b"), p.Unmount("/a")); err != nil {
		t.Fatal(err)
	}
	wantLog = []string{
		"unmount /b", "unmount /a", "remove plinth-image-2", "remove plinth-blocks-2", "remove plinth-image-0", "remove plinth-blocks-0",
	}
	if !reflect.DeepEqual(k.log, wantLog) {
		t.Errorf("%q\nwant %q", k.log, wantLog)
	}
	if err := p.Unmount("/a"); err == nil {
		t.Error("unmounted twice")
	}
	if err := p.Unmount("/c"); err != nil || len(k.devices) != 0 {
		t.Errorf("%v, devices %v", err, k.devices)
	}
	if err := p.Mount(a.pulled.ChainID, "/a"); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestMountFails at every step in turn, and leaves no device behind.
func TestMountFails(t *testing.T) {
	p, k, _ := newTestPool(2000)
	im := newImage(t, layerSpec{1, 30}, layerSpec{3, 5})
	im.publish(t, p)
	for step := range 7 {
		n := 0
		k.fail = func(what, _ string) error {
			if what == "remove" {
				return nil
			}
			if n++; n == step+1 {
				return unix.EINVAL
			}
			return nil
		}
		if err := p.Mount(im.pulled.ChainID, "/a"); !errors.Is(err, unix.EINVAL) || len(k.devices) != 0 || len(p.mounts) != 0 {
			t.Errorf("step %d: %v, devices %v, mounts %v", step, err, k.devices, p.mounts)
		}
	}
	k.fail = nil
	if err := p.Mount(im.pulled.ChainID, "/a"); err != nil {
		t.Error(err)
	}
}

func TestCollect(t *testing.T) {
	p, k, _ := newTestPool(4000)
	var dropped int64
	p.base.drop = func(_, n int64) error { dropped += n; return nil }
	all := freeBlocks(p)
	a := newImage(t, layerSpec{1, 300}, layerSpec{3, 5})
	b := newImage(t, layerSpec{1, 300}, layerSpec{4, 9})
	a.publish(t, p)
	b.publish(t, p)
	s, err := p.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n, err := p.Collect(nil); n != 0 || err != nil {
		t.Errorf("during a pull: %d, %v", n, err)
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	// The tree of a and its second layer: 3+1 and 5+1 blocks.
	if n, err := p.Collect([]digest.Digest{b.pulled.ChainID}); n != 10*blockSize || err != nil || dropped != n {
		t.Errorf("%d bytes, %v, dropped %d", n, err, dropped)
	}
	if there, _ := p.Tree(a.pulled.ChainID); there {
		t.Error("the tree is there")
	}
	if err := p.Mount(b.pulled.ChainID, "/b"); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Collect(nil); n != 0 || err != nil {
		t.Errorf("a mounted image: %d, %v", n, err)
	}
	// Somebody else still holds the file system.
	k.fail = func(what, name string) error {
		if what == "remove" {
			return unix.EPERM
		}
		return nil
	}
	if err := p.Unmount("/b"); !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
	if n, err := p.Collect(nil); n != 0 || !errors.Is(err, unix.EPERM) {
		t.Errorf("a device that stays: %d, %v", n, err)
	}
	k.fail = nil
	if n, err := p.Collect(nil); n == 0 || err != nil || freeBlocks(p) != all || len(k.devices) != 0 {
		t.Errorf("%d bytes, %v, %d of %d blocks are free, devices %v", n, err, freeBlocks(p), all, k.devices)
	}
	a.publish(t, p)
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if _, err := p.Stage(t.Context()); err == nil {
		t.Error("a pull into a closed pool")
	}
	if err := p.Mount(a.pulled.ChainID, "/a"); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

// TestAtOnce pulls overlapping images from many goroutines.
func TestAtOnce(t *testing.T) {
	p, _, d := newTestPool(40000)
	all := freeBlocks(p)
	var images []*testImage
	for i := range uint64(12) {
		images = append(images, newImage(t, layerSpec{1, 400}, layerSpec{2 + i%4, 50}, layerSpec{10 + i%6, int(i % 6)}))
	}
	var wg sync.WaitGroup
	for i, im := range images {
		wg.Go(func() {
			s, err := p.Stage(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if err := im.write(s, p); err != nil {
				t.Error(err)
			}
			if i%5 != 4 {
				if err := s.Publish(im.pulled); err != nil {
					t.Error(err)
				}
			}
			if err := s.Discard(); err != nil {
				t.Error(err)
			}
			if _, err := p.Collect(nil); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, im := range images {
		for j, id := range im.pulled.DiffIDs {
			if l := p.layers[id]; l != nil {
				if data, _ := d.read(l.file); !bytes.Equal(data, im.contents[j]) {
					t.Errorf("image %d, layer %d: not what was written", i, j)
				}
			}
		}
	}
	if _, err := p.Collect(nil); err != nil || freeBlocks(p) != all {
		t.Errorf("%v, %d of %d blocks are free", err, freeBlocks(p), all)
	}
}
