package source

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/plinth-os/plinth/internal/cas"
)

// ReadControl returns the files of the control archive of a .deb in the store,
// by name: "control", and scripts such as "postinst".
func ReadControl(ctx context.Context, st *cas.Store, deb cas.Ref) (map[string][]byte, error) {
	f, err := st.Open(deb)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	files := map[string][]byte{}
	err = eachControl(ctx, f, deb.Size, func(name string, content io.Reader) (more bool, err error) {
		files[name], err = io.ReadAll(content)
		return true, err
	})
	if err == nil && files[controlFile] == nil {
		err = errNoControl
	}
	if err != nil {
		return nil, fmt.Errorf("source: package %s: %w", deb.Digest.Short(), err)
	}
	return files, nil
}

// controlFile says what a package is, in the control archive.
const controlFile = "control"

var errNoControl = fmt.Errorf("control archive without a file %s", controlFile)

// readControl returns the control file of a .deb.
func readControl(ctx context.Context, r io.ReaderAt, size int64) (control []byte, err error) {
	err = eachControl(ctx, r, size, func(name string, content io.Reader) (bool, error) {
		if name == controlFile {
			control, err = io.ReadAll(content)
		}
		return control == nil, err
	})
	if err == nil && control == nil {
		err = errNoControl
	}
	return control, err
}

// eachControl calls visit for the regular files of the control archive, while it
// wants more.
func eachControl(ctx context.Context, r io.ReaderAt, size int64, visit func(name string, content io.Reader) (more bool, err error)) error {
	d, err := readDeb(r, size)
	if err != nil {
		return err
	}
	var buf growing
	if _, err := d.control.expand(ctx, &buf, maxControl); err != nil {
		return fmt.Errorf("%s: %w", d.control.name, err)
	}
	t := tar.NewReader(bytes.NewReader(buf))
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d.control.name, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name, err := memberPath(h.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", d.control.name, err)
		}
		if more, err := visit(name, t); err != nil || !more {
			return err
		}
	}
}
