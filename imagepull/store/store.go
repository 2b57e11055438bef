// Package store keeps images in a directory of a host:
//
//	layers/HEX/content   the files of a layer, in blocks of 4096 bytes; HEX: diff ID
//	layers/HEX/layer     what the layer's tar says besides
//	trees/HEX/root.erofs the tree of a chain of layers; HEX: chain ID
//	images/HEX/          manifest.json, config.json as they came, image.json; HEX: manifest
//	parts/HEX            what broken pulls left of a blob; HEX: the blob
//	staging/NAME/        a pull that goes on, or whose process died
//
// What is under its final name is whole, was synced before it got there, and never
// changes; image.json alone, which holds the names, is replaced. Several processes
// use a store at a time: a pull holds a shared lock, and whoever removes something
// waits for the pulls to end.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/unpack"
)

// The names in the directory.
const (
	layersDir  = "layers"
	treesDir   = "trees"
	imagesDir  = "images"
	partsDir   = "parts"
	stagingDir = "staging"

	useLock   = "lock"         // shared: a pull; exclusive: something is removed
	stageLock = "staging.lock" // exclusive, for a moment: stages begin, or their owners are looked for
	nameLock  = "names.lock"   // exclusive, for a moment: names move
)

// The names of files below.
const (
	contentFile  = "content"
	layerFile    = "layer"
	erofsFile    = "root.erofs"
	manifestFile = "manifest.json"
	configFile   = "config.json"
	imageFile    = "image.json"
)

// maxMeta bounds the files besides contents and trees, bytes.
const maxMeta = 256 << 20

// A Dir is a store in a directory. It implements imagepull.Store.
type Dir struct{ path string }

// Open takes a directory as a store, and makes it where it is missing. What is in it
// is nobody's to read but its owner's: images come encrypted, and lie there plain.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, name := range []string{"", layersDir, treesDir, imagesDir, partsDir, stagingDir} {
		if err := os.MkdirAll(filepath.Join(path, name), 0o700); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	return &Dir{path}, nil
}

// Parts is the directory for imagepull.Puller.Parts.
func (d *Dir) Parts() string { return d.join(partsDir) }

func (d *Dir) join(names ...string) string {
	return filepath.Join(append([]string{d.path}, names...)...)
}

// Layer implements imagepull.Store.
func (d *Dir) Layer(diffID digest.Digest) (*unpack.Layer, error) {
	b, err := readMeta(d.join(layersDir, diffID.Encoded(), layerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	l := &unpack.Layer{}
	if err := l.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("store: %s: %w", d.join(layersDir, diffID.Encoded()), err)
	}
	content := d.Content(diffID)
	fi, err := os.Stat(content)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if want := int64(l.Blocks()) * unpack.BlockSize; fi.Size() != want {
		return nil, &DamagedError{content, fmt.Sprintf("%d bytes: want %d", fi.Size(), want)}
	}
	return l, nil
}

// A DamagedError is of a file that was changed after it was published.
type DamagedError struct{ Path, Problem string }

func (e *DamagedError) Error() string { return "store: " + e.Path + ": " + e.Problem }

// Hint says what to do.
func (e *DamagedError) Hint() string {
	return "remove " + filepath.Dir(e.Path) + ", and the images that need it, and pull again"
}

// readMeta reads a file that was written by whoever could write to the store.
func readMeta(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMeta+1))
	if err == nil && len(b) > maxMeta {
		return nil, &DamagedError{path, fmt.Sprintf("more than %d bytes", maxMeta)}
	}
	return b, err
}

// Tree implements imagepull.Store.
func (d *Dir) Tree(chainID digest.Digest) (bool, error) {
	_, err := os.Stat(d.Root(chainID))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	return true, nil
}

// Root is the path of a tree's EROFS image.
func (d *Dir) Root(chainID digest.Digest) string {
	return d.join(treesDir, chainID.Encoded(), erofsFile)
}

// Content is the path of a layer's content.
func (d *Dir) Content(diffID digest.Digest) string {
	return d.join(layersDir, diffID.Encoded(), contentFile)
}

// Free implements imagepull.Store.
func (d *Dir) Free() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(d.path, &s); err != nil {
		return 0, fmt.Errorf("store: %w", &fs.PathError{Op: "statfs", Path: d.path, Err: err})
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// Extract makes the tree of an image in an empty directory. Nothing is removed
// meanwhile.
func (d *Dir) Extract(ctx context.Context, p *imagepull.Pulled, dir string, l unpack.Limits) (err error) {
	use, err := d.lock(ctx, useLock, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer use.Close() // frees the lock
	t := unpack.NewTree(unpack.NewBudget(l)).Until(ctx)
	var contents []io.ReaderAt
	for i, layer := range p.Layers {
		if err := t.Apply(layer); err != nil {
			return err
		}
		f, err := os.Open(d.Content(p.DiffIDs[i]))
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		defer f.Close()
		contents = append(contents, f)
	}
	return t.Extract(ctx, dir, contents)
}

// lock takes a lock of the store, waiting until ctx ends. The kernel frees it when
// its holder dies.
func (d *Dir) lock(ctx context.Context, name string, how int) (*os.File, error) {
	f, err := os.OpenFile(d.join(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for {
		err := flock(f, how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("store: %w", err), f.Close())
		}
		select { // flock itself could not be stopped
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func flock(f *os.File, how int) error {
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	return nil
}
