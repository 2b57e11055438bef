package storage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/unpack"
	"github.com/plinth-os/plinth/internal/dm"
)

// fakeKernel keeps a list of what it was asked for.
type fakeKernel struct {
	mu      sync.Mutex
	log     []string
	devices map[string][]dm.Target
	minor   uint32
	fail    func(what, name string) error // nil: nothing fails
	answer  []dm.Target                   // of try
	loaded  []dm.Target                   // what check is shown
	disk    *memoryDevice
}

func newFakeKernel() *fakeKernel { return &fakeKernel{devices: map[string][]dm.Target{}} }

func (k *fakeKernel) do(what, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		if err := k.fail(what, name); err != nil {
			return fmt.Errorf("%s %s: %w", what, name, err)
		}
	}
	k.log = append(k.log, what+" "+name)
	return nil
}

func (k *fakeKernel) create(name string, table []dm.Target) (dm.Device, error) {
	if err := k.do("create", name); err != nil {
		return dm.Device{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[name] != nil {
		return dm.Device{}, unix.EBUSY
	}
	k.devices[name] = table
	k.minor++
	return dm.Device{Name: name, Major: 254, Minor: k.minor}, nil
}

func (k *fakeKernel) createWritable(name string, table []dm.Target, check func([]dm.Target) error) (dm.Device, error) {
	if check != nil {
		if err := check(k.loaded); err != nil {
			return dm.Device{}, err
		}
	}
	return k.create(name, table)
}

func (k *fakeKernel) try(name string, table []dm.Target) ([]dm.Target, error) {
	return k.answer, k.do("try", name)
}

func (k *fakeKernel) remove(name string) error {
	if err := k.do("remove", name); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[name] == nil {
		return unix.ENXIO
	}
	delete(k.devices, name)
	return nil
}

func (k *fakeKernel) open(d dm.Device) (device, error) { return k.disk, k.do("open", d.Name) }

func (k *fakeKernel) openVolume(d dm.Device) (volumeDevice, error) {
	return k.disk, k.do("open", d.Name)
}

func (k *fakeKernel) mountExt4(source, target string, flags uintptr) error {
	return k.do("mount", fmt.Sprintf("%s %s ext4 %#x", source, target, flags))
}

func (k *fakeKernel) mount(source, target, options string) error {
	return k.do("mount", source+" "+target+" "+options)
}

func (k *fakeKernel) unmount(target string) error { return k.do("unmount", target) }

// memoryDevice is a block device.
type memoryDevice struct {
	b      []byte
	err    error // of writes
	reads  error // of reads
	closed bool
}

var errUnaligned = errors.New("not whole blocks")

func (d *memoryDevice) WriteAt(b []byte, off int64) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if off%blockSize != 0 || len(b)%blockSize != 0 || off+int64(len(b)) > int64(len(d.b)) {
		return 0, errUnaligned
	}
	return copy(d.b[off:], b), nil
}

func (d *memoryDevice) ReadAt(b []byte, off int64) (int, error) {
	if d.reads != nil {
		return 0, d.reads
	}
	if off%blockSize != 0 || len(b)%blockSize != 0 || off+int64(len(b)) > int64(len(d.b)) {
		return 0, errUnaligned
	}
	return copy(b, d.b[off:]), nil
}

func (d *memoryDevice) Sync() error { return d.err }

func (d *memoryDevice) Close() error { d.closed = true; return nil }

// newTestPool is a pool of so many blocks on fakes.
func newTestPool(blocks int) (*Pool, *fakeKernel, *memoryDevice) {
	k, d := newFakeKernel(), &memoryDevice{b: make([]byte, blocks*blockSize)}
	return newPool(k, base{number: "254:0", size: int64(len(d.b)), data: d, close: d.Close}), k, d
}

// read returns the blocks of a file from the device, data and tree.
func (d *memoryDevice) read(f *file) (data, tree []byte) {
	var all []byte
	for _, e := range f.extents {
		all = append(all, d.b[e.offset():][:e.size()]...)
	}
	n := f.blocks() * blockSize
	return all[:n], all[n:]
}

// testImage is what a pull of an image with some layers hands over.
type testImage struct {
	pulled   *imagepull.Pulled
	contents [][]byte
	tree     []byte
}

// newImage makes an image whose layers have one file of so many random blocks each.
// Equal seeds give equal layers.
func newImage(t testing.TB, layers ...layerSpec) *testImage {
	t.Helper()
	im := &testImage{pulled: &imagepull.Pulled{}}
	budget := unpack.NewBudget(unpack.Limits{})
	chain := sha256.New()
	for i, l := range layers {
		var archive, content bytes.Buffer
		w := tar.NewWriter(&archive)
		body := random(l.seed, l.blocks*blockSize)
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("file-%d", l.seed), Mode: 0o644, Size: int64(len(body))})
		if _, e := w.Write(body); err == nil {
			err = e
		}
		if err = errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		id := digest.FromBytes(archive.Bytes())
		layer, err := unpack.Read(t.Context(), &archive, &content, budget)
		if err != nil {
			t.Fatal(err)
		}
		im.contents = append(im.contents, content.Bytes())
		im.pulled.DiffIDs = append(im.pulled.DiffIDs, id)
		im.pulled.Layers = append(im.pulled.Layers, layer)
		if layer.Blocks() > 0 {
			im.pulled.Devices = append(im.pulled.Devices, i)
		}
		io.WriteString(chain, id.String())
	}
	im.pulled.ChainID = digest.NewDigest(digest.SHA256, chain)
	im.tree = random(uint64(len(layers))+1000, 3*blockSize)
	return im
}

type layerSpec struct {
	seed   uint64
	blocks int
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// write writes all of an image that the pool does not have.
func (im *testImage) write(s imagepull.Stage, p *Pool) error {
	for i, id := range im.pulled.DiffIDs {
		if l, err := p.Layer(id); l != nil || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := writeAll(s.Content(id))(im.contents[i]); err != nil {
			return err
		}
	}
	if there, err := p.Tree(im.pulled.ChainID); there || err != nil {
		return err
	}
	return writeAll(s.Tree())(im.tree)
}

// writeAll writes in pieces of odd sizes, as a decompressor does.
func writeAll(w io.WriteCloser, err error) func([]byte) error {
	return func(b []byte) error {
		if err != nil {
			return err
		}
		for len(b) > 0 {
			n := min(len(b), 70001)
			if _, err := w.Write(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
		return w.Close()
	}
}

// publish pulls an image into the pool.
func (im *testImage) publish(t testing.TB, p *Pool) {
	t.Helper()
	s, err := p.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := im.write(s, p); err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(im.pulled); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(); err != nil {
		t.Fatalf("Discard after Publish: %v", err)
	}
}

func freeBlocks(p *Pool) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.space.blocks()
}
