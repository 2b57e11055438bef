package imagepull_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plinth-os/plinth/imagepull/store"
)

// mountTmpfs mounts a file system of a size until the test ends.
func mountTmpfs(t *testing.T, dir, size string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// waitPart waits until a part of so many bytes is there.
func waitPart(t *testing.T, st *store.Dir, size int64) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		list, _ := os.ReadDir(st.Parts()) // tried again
		for _, e := range list {
			if fi, err := os.Stat(filepath.Join(st.Parts(), e.Name())); err == nil && fi.Size() >= size {
				return
			}
		}
	}
	t.Errorf("no part of %d bytes", size)
}
