package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// TestSameBytesWhateverClockAndDirectoryOrder builds twice from equal folders
// that the file system lists in opposite order, a century apart.
func TestSameBytesWhateverClockAndDirectoryOrder(t *testing.T) {
	source := t.TempDir()
	if err := synthetic.Write(source); err != nil {
		t.Fatal(err)
	}
	names := listed(t, source)
	slices.Sort(names)
	forward, order := buildAt(t, source, names, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC))
	slices.Reverse(names)
	backward, other := buildAt(t, source, names, time.Date(2101, 1, 1, 0, 0, 0, 0, time.UTC))
	if slices.Equal(order, other) {
		t.Fatalf("both folders list as %q: this test shows nothing here", order)
	}
	if forward != backward {
		t.Errorf("two builds differ:\n%s\n%s", forward, backward)
	}
}

// buildAt copies packages in the order of names to a tmpfs, which lists what came
// last first, and builds from them with the clock at now. It returns SHA256SUMS,
// and how the file system lists the packages.
func buildAt(t *testing.T, source string, names []string, now time.Time) (sums string, order []string) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "plinth-order-")
	if err != nil {
		testenv.Missing(t, "tmpfs", err.Error())
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	debs := filepath.Join(dir, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(debs, name), string(b))
	}
	writeFile(t, filepath.Join(dir, "tiny.toml"), synthetic.Profile)
	writeFile(t, filepath.Join(dir, "agent"), "the guest's first program\n")
	t.Chdir(dir)
	var stderr strings.Builder
	e := &env{stdout: &stderr, stderr: &stderr, getenv: func(string) string { return "" }, now: func() time.Time { return now }}
	args := []string{"build", "./tiny.toml", "--agent", "agent", "--cache-dir", filepath.Join(dir, "store")}
	if code := run(context.Background(), args, e); code != exitOK {
		t.Fatalf("exit %d\n%s", code, stderr.String())
	}
	b, err := os.ReadFile(filepath.Join(dir, "out", "tiny", "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b), listed(t, debs)
}

// listed returns the names in a folder in the order of the file system.
func listed(t *testing.T, dir string) []string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return names
}
