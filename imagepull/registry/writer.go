package registry

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// A Writer writes a layout with one image, a directory or a tar. Nothing is under
// its path before Finish. Equal blobs give equal bytes.
type Writer struct {
	path, dir string // dir is where it grows
	tar       bool
}

// Create begins a layout at a path where nothing is yet.
func Create(path string, asTar bool) (*Writer, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return nil, err
	}
	w := &Writer{path, dir, asTar}
	if err := os.MkdirAll(filepath.Join(dir, v1.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return nil, errors.Join(err, w.Discard())
	}
	return w, nil
}

// Discard removes what was not finished. It does nothing after Finish.
func (w *Writer) Discard() error {
	if w.dir == "" {
		return nil
	}
	return os.RemoveAll(w.dir)
}

// Blob stores what write writes, and returns its descriptor.
func (w *Writer) Blob(mediaType string, write func(io.Writer) error) (d v1.Descriptor, err error) {
	f, err := os.CreateTemp(w.dir, "blob-")
	if err != nil {
		return d, err
	}
	h, n := sha256.New(), &counter{}
	err = write(io.MultiWriter(f, h, n))
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil && !w.tar { // of a tar it is a copy that counts
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return d, err
	}
	d = v1.Descriptor{MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, h), Size: n.n}
	return d, os.Rename(f.Name(), filepath.Join(w.dir, blobPath(d)))
}

// JSON stores a document.
func (w *Writer) JSON(mediaType string, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return w.Blob(mediaType, func(to io.Writer) error { _, err := to.Write(b); return err })
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// Finish names the image, which may have no name, and puts all of it under its path.
func (w *Writer) Finish(image v1.Descriptor, name string) error {
	if name != "" {
		image.Annotations = map[string]string{v1.AnnotationRefName: name}
	}
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{image}}
	index.SchemaVersion = 2
	for file, v := range map[string]any{v1.ImageLayoutFile: v1.ImageLayout{Version: v1.ImageLayoutVersion}, v1.ImageIndexFile: index} {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := writeSynced(filepath.Join(w.dir, file), b); err != nil {
			return err
		}
	}
	if w.tar {
		return w.pack()
	}
	if err := os.Chmod(w.dir, 0o755); err != nil { // MkdirTemp's is the user's alone
		return err
	}
	if err := syncDirs(filepath.Join(w.dir, v1.ImageBlobsDir, "sha256"), filepath.Join(w.dir, v1.ImageBlobsDir), w.dir); err != nil {
		return err
	}
	if err := w.publish(w.dir); err != nil {
		return err
	}
	w.dir = ""
	return syncDirs(filepath.Dir(w.path))
}

// publish renames what is complete. What came under the path meanwhile is somebody
// else's.
func (w *Writer) publish(from string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, w.path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) { // a file system that cannot
		return os.Rename(from, w.path)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: w.path, Err: err}
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDirs(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// pack makes the tar of the directory, and removes that.
func (w *Writer) pack() (err error) {
	f, err := os.CreateTemp(filepath.Dir(w.path), "."+filepath.Base(w.path)+"-")
	if err != nil {
		return err
	}
	t := tar.NewWriter(f)
	err = w.members(t)
	if err == nil {
		err = t.Close()
	}
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = w.publish(f.Name())
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	defer func() { w.dir = "" }()
	return errors.Join(w.Discard(), syncDirs(filepath.Dir(w.path)))
}

// members writes what there is, in the order of the names, with nothing in the
// headers but name and size.
func (w *Writer) members(t *tar.Writer) error {
	blobs := filepath.Join(v1.ImageBlobsDir, "sha256")
	list, err := os.ReadDir(filepath.Join(w.dir, blobs))
	if err != nil {
		return err
	}
	names := []string{v1.ImageLayoutFile, v1.ImageIndexFile}
	for _, e := range list {
		names = append(names, filepath.Join(blobs, e.Name()))
	}
	slices.Sort(names)
	for _, name := range names {
		if err := addFile(t, w.dir, name); err != nil {
			return err
		}
	}
	return nil
}

func addFile(t *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: fi.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(t, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
