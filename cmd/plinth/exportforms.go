package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/plinth-os/plinth/builder"
)

func writeRVPS(_ context.Context, c *common, f *exportFlags, v *valueSet) error {
	return c.emit(f.out, v.RVPS)
}

func writeSample(_ context.Context, c *common, f *exportFlags, v *valueSet) error {
	return c.emit(f.out, v.Sample)
}

func writeObject(_ context.Context, c *common, f *exportFlags, v *valueSet) error {
	if v.Expires.IsZero() {
		return usagef("--to k8s needs --expires: RVPS stores with each value how long it holds")
	}
	return c.emit(f.out, func() ([]byte, error) {
		b, err := f.object.Marshal(v.Set)
		if err != nil {
			return nil, usageError{err}
		}
		return b, nil
	})
}

// emit writes a document to a file or to stdout.
func (c *common) emit(out string, document func() ([]byte, error)) error {
	b, err := document()
	if err != nil {
		return err
	}
	if out == stdoutName {
		_, err := c.env.stdout.Write(b)
		return err
	}
	if err := builder.WriteFile(out, b); err != nil {
		return err
	}
	return c.written(out)
}

// stdoutName is -o for stdout.
const stdoutName = "-"

// openListed opens an artefact after a look at its digest: what is exported is
// what was built.
func openListed(dir string, m *builder.Manifest, name string) (*os.File, int64, error) {
	path := filepath.Join(dir, name)
	got, err := fileDigest(path)
	if err != nil {
		return nil, 0, err
	}
	if want := m.Artefact(name).Digest.String(); got != want {
		return nil, 0, mismatchError{fmt.Errorf("%s: sha256 is %s, want %s", path, got, want)}
	}
	return openSized(path)
}

// written prints the digest of a file and its path, as sha256sum does.
func (c *common) written(path string) error {
	digest, err := fileDigest(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.env.stdout, "%s  %s\n", digest, path)
	return err
}
