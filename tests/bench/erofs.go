package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/internal/erofs"
	"github.com/plinth-os/plinth/internal/tree"
)

// A storedFile is one of a tree whose content is in the store as that of a package
// is: many files in one blob.
type storedFile struct {
	Path   string
	Blob   cas.Ref
	Offset int64
	Size   int64
	Digest cas.Digest
}

func (r *rootBench) store() string { return r.files + ".store" }
func (r *rootBench) index() string { return r.files + ".index" }

func (r *rootBench) removeFiles() {
	for _, name := range []string{r.files, r.store(), r.index()} {
		os.RemoveAll(name)
	}
}

// makeStore puts the files into a store, each directory at the top as one blob.
func (r *rootBench) makeStore() error {
	st, err := cas.Open(r.store())
	if err != nil {
		return err
	}
	tops, err := os.ReadDir(r.files)
	if err != nil {
		return err
	}
	var all []storedFile
	for _, d := range tops {
		files, err := r.storeDir(st, d.Name())
		if err != nil {
			return err
		}
		all = append(all, files...)
	}
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(r.index(), b, 0o644)
}

func (r *rootBench) storeDir(st *cas.Store, dir string) (files []storedFile, err error) {
	w, err := st.Create()
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	offset := int64(0)
	err = filepath.WalkDir(filepath.Join(r.files, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		name, err := filepath.Rel(r.files, path)
		if err != nil {
			return err
		}
		h := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, h), f) // not whole: see makeFiles
		files = append(files, storedFile{Path: name, Offset: offset, Size: n, Digest: cas.Digest(h.Sum(nil))})
		offset += n
		return err
	})
	if err != nil {
		return nil, err
	}
	ref, err := w.Commit(context.Background())
	for i := range files {
		files[i].Blob = ref
	}
	return files, err
}

// makeEROFS makes an EROFS as a build does: the content comes from a store, which
// holds each blob to its digest before it is read.
func makeEROFS(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%d arguments: want STORE INDEX OUT", len(args))
	}
	st, err := cas.Open(args[0])
	if err != nil {
		return err
	}
	b, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	var files []storedFile
	if err := json.Unmarshal(b, &files); err != nil {
		return err
	}
	var entries []tree.Entry
	for _, f := range files {
		entries = append(entries, tree.File(f.Path, 0o644, tree.Blob{Size: f.Size, Digest: f.Digest, Open: func() (io.ReadCloser, error) {
			blob, err := st.Open(f.Blob)
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{io.NewSectionReader(blob, f.Offset, f.Size), blob}, nil
		}}))
	}
	out, err := os.Create(args[2])
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(out, 1<<20)
	return errors.Join(erofs.Write(w, entries, erofs.Params{UUID: [16]byte{1}}), w.Flush(), out.Close())
}
