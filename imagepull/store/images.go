package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/internal/strictjson"
)

const recordSchema = 1

// An Image is what image.json says of one.
type Image struct {
	Schema   int             `json:"schema"`
	Names    []string        `json:"names"` // by which it was pulled last; one whose tag moved has none
	Manifest digest.Digest   `json:"manifest"`
	Platform string          `json:"platform,omitempty"`
	ChainID  digest.Digest   `json:"chain_id"`
	DiffIDs  []digest.Digest `json:"diff_ids"` // of the layers, bottom first
	Devices  []digest.Digest `json:"devices"`  // of these, the devices of the tree, in order
	Size     int64           `json:"size"`     // of the blobs, bytes
}

func deviceIDs(p *imagepull.Pulled) []digest.Digest {
	out := []digest.Digest{}
	for _, i := range p.Devices {
		out = append(out, p.DiffIDs[i])
	}
	return out
}

// Images lists what is in the store, by name.
func (d *Dir) Images() ([]Image, error) {
	list, err := os.ReadDir(d.join(imagesDir))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var out []Image
	for _, e := range list {
		im, err := d.image(e.Name())
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		out = append(out, *im)
	}
	slices.SortFunc(out, func(a, b Image) int {
		return strings.Compare(strings.Join(a.Names, " ")+string(a.Manifest), strings.Join(b.Names, " ")+string(b.Manifest))
	})
	return out, nil
}

func (d *Dir) image(hex string) (*Image, error) {
	path := d.join(imagesDir, hex, imageFile)
	b, err := readMeta(path)
	if err != nil {
		return nil, err
	}
	im := &Image{}
	if err := strictjson.Unmarshal(b, im); err != nil {
		return nil, &DamagedError{path, err.Error()}
	}
	for _, id := range append([]digest.Digest{im.Manifest, im.ChainID}, im.DiffIDs...) {
		if id.Validate() != nil { // paths are made of it
			return nil, &DamagedError{path, fmt.Sprintf("digest %.100q", string(id))}
		}
	}
	if im.Schema != recordSchema || im.Manifest.Encoded() != hex {
		return nil, &DamagedError{path, fmt.Sprintf("schema %d of %s: want %d of %s", im.Schema, im.Manifest, recordSchema, hex)}
	}
	return im, nil
}

// publish makes the image visible, and its name that of no other.
func (s *stage) publish(manifest digest.Digest, name string) error {
	names, err := s.d.lock(context.Background(), nameLock, unix.LOCK_EX) // nobody holds it for long
	if err != nil {
		return err
	}
	defer names.Close()
	images, err := s.d.Images() // before anything is to be seen: one that is damaged is an error
	if err != nil {
		return err
	}
	if err := s.move(imagesDir, manifest); err != nil {
		return err
	}
	if err := s.rename(manifest.Encoded(), func(list []string) []string { return append(without(list, name), name) }); err != nil {
		return err
	}
	for _, im := range images {
		if im.Manifest == manifest || !slices.Contains(im.Names, name) {
			continue
		}
		if err := s.rename(im.Manifest.Encoded(), func(list []string) []string { return without(list, name) }); err != nil {
			return err
		}
	}
	return syncDirs(s.d.join(imagesDir))
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
}

// rename replaces image.json by one with other names.
func (s *stage) rename(hex string, change func([]string) []string) error {
	im, err := s.d.image(hex)
	if err != nil {
		return err
	}
	names := change(im.Names)
	if slices.Equal(names, im.Names) {
		return nil
	}
	slices.Sort(names)
	im.Names = names
	b, err := strictjson.Marshal(im)
	if err != nil {
		return err
	}
	path := filepath.Join(s.path, "names-"+hex)
	if err := writeSynced(path, b); err != nil {
		return err
	}
	if err := os.Rename(path, s.d.join(imagesDir, hex, imageFile)); err != nil {
		return err
	}
	return syncDirs(s.d.join(imagesDir, hex))
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// Removed says what was removed.
type Removed struct {
	Images []digest.Digest `json:"images"` // manifests
	Trees  int             `json:"trees"`
	Layers int             `json:"layers"`
	Parts  int             `json:"parts"`
	Bytes  int64           `json:"bytes"`
}

// ErrNoImage is the error of a name or digest that the store does not have.
var ErrNoImage = errors.New("no such image in the store")

// Remove takes a name away, or with a digest of a manifest all names of the image.
// An image without names goes, and what no other image needs of it.
func (d *Dir) Remove(ctx context.Context, what string) (*Removed, error) {
	return d.clean(ctx, func(s *stage) error {
		images, err := d.Images()
		if err != nil {
			return err
		}
		found := false
		for _, im := range images {
			byDigest := string(im.Manifest) == what
			if !byDigest && !slices.Contains(im.Names, what) {
				continue
			}
			found = true
			names := func(list []string) []string { return without(list, what) }
			if byDigest {
				names = func([]string) []string { return []string{} }
			}
			if err := s.rename(im.Manifest.Encoded(), names); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("%s: %w", what, ErrNoImage)
		}
		return nil
	})
}

// Prune removes images without names, what no image needs, and what broken pulls
// left.
func (d *Dir) Prune(ctx context.Context) (*Removed, error) {
	var parts Removed
	r, err := d.clean(ctx, func(s *stage) error {
		return s.sweepInto(&parts, partsDir, func(string) bool { return false })
	})
	if err != nil {
		return nil, err
	}
	r.Parts, r.Bytes = parts.Parts, r.Bytes+parts.Bytes
	return r, nil
}

// clean runs f while no pull goes on, then removes what cannot be reached.
func (d *Dir) clean(ctx context.Context, f func(*stage) error) (_ *Removed, err error) {
	st, err := d.Stage(ctx)
	if err != nil {
		return nil, err
	}
	s := st.(*stage)
	defer func() { err = errors.Join(err, s.Discard()) }()
	if err := s.alone(ctx); err != nil {
		return nil, err
	}
	if err := f(s); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	r := &Removed{Images: []digest.Digest{}}
	if err := s.collect(r); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return r, nil
}

// alone waits until no other stage is left.
func (s *stage) alone(ctx context.Context) error {
	err := s.use.Close() // two that wait for each other would wait for ever
	s.use = nil
	if err == nil {
		s.use, err = s.d.lock(ctx, useLock, unix.LOCK_EX)
	}
	return err
}

// collect removes what no name leads to: images first, layers last, so that none is
// ever there without what it needs.
func (s *stage) collect(r *Removed) error {
	images, err := s.d.Images()
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, im := range images {
		if len(im.Names) == 0 {
			r.Images = append(r.Images, im.Manifest)
			continue
		}
		for _, id := range append([]digest.Digest{im.Manifest, im.ChainID}, im.DiffIDs...) {
			keep[id.Encoded()] = true
		}
	}
	for _, kind := range []string{imagesDir, treesDir, layersDir} {
		if err := s.sweepInto(r, kind, func(hex string) bool { return keep[hex] }); err != nil {
			return err
		}
		if err := syncDirs(s.d.join(kind)); err != nil {
			return err
		}
	}
	return nil
}

// sweepInto moves what is not kept of a kind into the stage, with which it goes: half
// of it is never under its name.
func (s *stage) sweepInto(r *Removed, kind string, keep func(string) bool) error {
	list, err := os.ReadDir(s.d.join(kind))
	if err != nil {
		return err
	}
	for _, e := range list {
		if keep(e.Name()) {
			continue
		}
		from := s.d.join(kind, e.Name())
		n, err := size(from)
		if err != nil {
			return err
		}
		if err := os.Rename(from, filepath.Join(s.path, kind+"-"+e.Name())); err != nil {
			return err
		}
		r.Bytes += n
		switch kind {
		case treesDir:
			r.Trees++
		case layersDir:
			r.Layers++
		case partsDir:
			r.Parts++
		}
	}
	return nil
}

// size is what the files of a directory take, bytes.
func size(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err == nil {
			n += fi.Size()
		}
		return err
	})
	return n, err
}
