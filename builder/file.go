package builder

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// tempMark is in the name of every file that ReplaceFile renames.
const tempMark = ".plinth-tmp-"

// IsTemp reports whether a file of that name is one that ReplaceFile was about
// to rename. A killed process may leave one.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, ".") && strings.Contains(name, tempMark)
}

// ReplaceFile replaces the file at path by what fill writes, by rename after
// sync: a killed process leaves the old file or the new one. The mode is 0644
// whatever the umask.
func ReplaceFile(path string, fill func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+tempMark+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(fill(f), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// WriteFile is ReplaceFile with the bytes b.
func WriteFile(path string, b []byte) error {
	return ReplaceFile(path, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}
