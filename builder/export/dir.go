// Package export writes an image out of the store: artefacts under their
// names, with a manifest and digests beside them.
package export

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/internal/cas"
)

// Names of the files that describe the others.
const (
	ManifestName   = "manifest.json"
	SumsName       = "SHA256SUMS"
	ProvenanceName = "provenance.json"
)

// A Provenance says who built, where and when: the one file of an image that
// two equal builds do not share, and so not in SHA256SUMS.
type Provenance struct {
	Schema  int    `json:"schema"`
	Plinth  string `json:"plinth"`
	Profile string `json:"profile"` // where the profile came from
	Host    string `json:"host"`
	Time    string `json:"time"` // RFC 3339
}

// Dir writes the artefacts of m, m itself, SHA256SUMS and provenance into dir.
// A file that is there with the right content stays untouched; the others
// appear by rename. SHA256SUMS goes first and comes last, so that a directory
// that has one is whole. Of several processes with one store, one writes into a
// directory at a time.
func Dir(ctx context.Context, st *cas.Store, m *builder.Manifest, p Provenance, dir string) error {
	unlock, err := lockDir(ctx, st, dir)
	if err != nil {
		return err
	}
	defer unlock()
	files, sums, err := contents(st, m)
	if err != nil {
		return err
	}
	if err := tidy(dir, sums, m); err != nil {
		return err
	}
	for _, f := range files {
		if err := place(ctx, st, f.Ref, filepath.Join(dir, f.Name)); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	prov, err := p.marshal()
	if err != nil {
		return err
	}
	if err := builder.WriteFile(filepath.Join(dir, ProvenanceName), prov); err != nil {
		return err
	}
	return builder.WriteFile(filepath.Join(dir, SumsName), sums)
}

// lockDir makes dir and keeps other builds out of it.
func lockDir(ctx context.Context, st *cas.Store, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return st.Lock(ctx, "export "+abs)
}

// contents lists the files of the directory, and what SHA256SUMS says of them.
func contents(st *cas.Store, m *builder.Manifest) (files []builder.Artefact, sums []byte, err error) {
	manifest, err := m.Marshal()
	if err != nil {
		return nil, nil, err
	}
	r, err := st.Put(manifest)
	if err != nil {
		return nil, nil, err
	}
	files = append(append(files, m.Artefacts...), builder.Artefact{Name: ManifestName, Ref: r})
	return files, sumsFile(files), nil
}

// tidy removes SHA256SUMS if it says something else than sums, what a killed
// process left half-written, and disks in forms that this image is not written in:
// they are of another one.
func tidy(dir string, sums []byte, m *builder.Manifest) error {
	path := filepath.Join(dir, SumsName)
	old, err := os.ReadFile(path)
	changed := err != nil || !bytes.Equal(old, sums)
	if changed {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		isForm := changed && slices.ContainsFunc(builder.Forms, func(f builder.Form) bool { return f.File == e.Name() })
		listed := slices.ContainsFunc(m.Artefacts, func(a builder.Artefact) bool { return a.Name == e.Name() })
		if !builder.IsTemp(e.Name()) && (!isForm || listed) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// marshal writes the JSON form.
func (p Provenance) marshal() ([]byte, error) {
	b, err := json.MarshalIndent(p, "", "  ")
	return append(b, '\n'), err
}

// sumsFile is what sha256sum -c reads, sorted by name.
func sumsFile(files []builder.Artefact) []byte {
	files = append([]builder.Artefact{}, files...)
	sort.Slice(files, func(i, j int) bool { return files[i].Name < files[j].Name })
	var b bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&b, "%s  %s\n", f.Digest, f.Name)
	}
	return b.Bytes()
}

// place puts a blob at path, unless the same bytes are there already.
func place(ctx context.Context, st *cas.Store, r cas.Ref, path string) error {
	if same, err := holds(ctx, path, r); err != nil || same {
		return err
	}
	src, err := st.Open(r)
	if err != nil {
		return err
	}
	defer src.Close()
	return builder.ReplaceFile(path, func(dst *os.File) error { return copyFile(ctx, dst, src, r.Size) })
}

// holds reports whether the file at path is the blob.
func holds(ctx context.Context, path string, r cas.Ref) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != r.Size {
		return false, err
	}
	h := sha256.New()
	if err := copyContext(ctx, h, f); err != nil {
		return false, err
	}
	return cas.Digest(h.Sum(nil)) == r.Digest, nil
}
