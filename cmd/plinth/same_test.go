package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// rootProfiles are those of an image with its root in either place.
var rootProfiles = map[string]string{
	"initrd": synthetic.Profile,
	"verity": strings.Replace(synthetic.Profile, `kind     = "initrd"`, `kind     = "verity"`, 1),
}

// surroundings are those of a build.
type surroundings struct {
	dir     string
	profile string
	now     time.Time
}

// newSurroundings makes a folder with the synthetic packages, which fill puts into its folder
// debs in the given order. It is on a tmpfs, which lists what came last first.
func newSurroundings(t *testing.T, profile string, names []string, fill func(from, to string) error) *surroundings {
	t.Helper()
	source := t.TempDir()
	if err := synthetic.Write(source); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "plinth-same-")
	if err != nil {
		testenv.Missing(t, "tmpfs", err.Error())
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "debs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := fill(filepath.Join(source, name), filepath.Join(dir, "debs", name)); err != nil {
			t.Fatal(err)
		}
	}
	return &surroundings{dir, profile, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// build returns the text of a file of the output.
func (s *surroundings) build(t *testing.T, name string) string {
	t.Helper()
	writeFile(t, filepath.Join(s.dir, "tiny.toml"), s.profile)
	writeFile(t, filepath.Join(s.dir, "agent"), "the guest's first program\n")
	t.Chdir(s.dir)
	var stderr strings.Builder
	e := &env{stdout: &stderr, stderr: &stderr, getenv: func(string) string { return "" }, now: func() time.Time { return s.now }}
	args := []string{"build", "./tiny.toml", "--agent", "agent", "--cache-dir", filepath.Join(s.dir, "store")}
	if code := run(context.Background(), args, e); code != exitOK {
		t.Fatalf("exit %d\n%s", code, stderr.String())
	}
	b, err := os.ReadFile(filepath.Join(s.dir, "out", "tiny", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// debNames are the files of the synthetic packages, sorted.
func debNames() (names []string) {
	for name := range synthetic.Packages() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestSameBytesWhateverClockAndDirectoryOrder builds twice from equal folders
// that the file system lists in opposite order, a century apart.
func TestSameBytesWhateverClockAndDirectoryOrder(t *testing.T) {
	for kind, profile := range rootProfiles {
		t.Run(kind, func(t *testing.T) {
			names := debNames()
			forward := newSurroundings(t, profile, names, copyFile)
			slices.Reverse(names)
			backward := newSurroundings(t, profile, names, copyFile)
			backward.now = time.Date(2101, 1, 1, 0, 0, 0, 0, time.UTC)
			if a, b := listed(t, forward.dir+"/debs"), listed(t, backward.dir+"/debs"); slices.Equal(a, b) {
				t.Fatalf("both folders list as %q: this test shows nothing here", a)
			}
			same(t, forward, backward, "SHA256SUMS")
		})
	}
}

// same compares a file of two builds.
func same(t *testing.T, a, b *surroundings, name string) {
	t.Helper()
	if x, y := a.build(t, name), b.build(t, name); x != y || x == "" {
		t.Errorf("%s differs:\n%s\n%s", name, x, y)
	}
}

// TestSameBytesWhateverFilesAreMadeOf builds from packages that share their blocks
// with other files, and lie in a store that does.
func TestSameBytesWhateverFilesAreMadeOf(t *testing.T) {
	profile := rootProfiles["verity"]
	plain := newSurroundings(t, profile, debNames(), copyFile)
	for name, fill := range map[string]func(from, to string) error{
		"hard links": func(from, to string) error {
			other := filepath.Join(filepath.Dir(to), "..", "other-"+filepath.Base(to))
			if err := copyFile(from, other); err != nil {
				return err
			}
			return os.Link(other, to)
		},
		"symbolic links": func(from, to string) error { return os.Symlink(from, to) },
		// Shared blocks where the file system has such.
		"reflinks": func(from, to string) error {
			return exec.Command("cp", "--reflink=auto", from, to).Run()
		},
	} {
		t.Run(name, func(t *testing.T) { same(t, plain, newSurroundings(t, profile, debNames(), fill), "SHA256SUMS") })
	}
	t.Run("store", func(t *testing.T) {
		linked := newSurroundings(t, profile, debNames(), copyFile)
		plain.build(t, "SHA256SUMS")
		if err := os.Mkdir(filepath.Join(linked.dir, "store"), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", "-al", plain.dir+"/store/blobs", linked.dir+"/store/blobs").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		same(t, plain, linked, "SHA256SUMS")
	})
}

// TestSameRootWhateverOrder: names in a package and packages in the profile may
// come in any order. What says which packages they were differs, the root does not.
func TestSameRootWhateverOrder(t *testing.T) {
	two := func(a, b string) string {
		return strings.Replace(rootProfiles["verity"], `packages = ["motd"]`, fmt.Sprintf("packages = [%q, %q]", a, b), 1)
	}
	plain := newSurroundings(t, two("motd", "motd-text"), debNames(), copyFile)
	names := debNames()
	slices.Reverse(names)
	t.Run("in the profile", func(t *testing.T) {
		same(t, plain, newSurroundings(t, two("motd-text", "motd"), names, copyFile), "image.raw")
	})
	t.Run("in packages", func(t *testing.T) {
		changed := 0
		repacked := newSurroundings(t, plain.profile, names, func(from, to string) error {
			b, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			r := repack(t, b)
			if !bytes.Equal(b, r) {
				changed++
			}
			return os.WriteFile(to, r, 0o644)
		})
		if changed == 0 {
			t.Fatal("no package is another one: this test shows nothing")
		}
		same(t, plain, repacked, "image.raw")
	})
}

// repack turns the order of the data in a package around. deb(5)
func repack(t *testing.T, deb []byte) []byte {
	t.Helper()
	const header = 60 // of a member of the archive
	out := bytes.Clone(deb[:8])
	for at := 8; at < len(deb); {
		head := deb[at:][:header]
		size, err := strconv.Atoi(strings.TrimSpace(string(head[48:58])))
		if err != nil {
			t.Fatal(err)
		}
		body := deb[at+header:][:size]
		at += header + size + size%2
		if strings.HasPrefix(string(head), "data.tar.gz") {
			body = reverse(t, body)
		}
		out = fmt.Appendf(out, "%s%-10d%s%s", head[:48], len(body), head[58:], body)
		if len(body)%2 == 1 {
			out = append(out, '\n')
		}
	}
	return out
}

// reverse turns the order of the names in a compressed tar file around.
func reverse(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	type member struct {
		head *tar.Header
		body []byte
	}
	var all []member
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, member{h, body})
	}
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	w := tar.NewWriter(zw)
	for _, m := range slices.Backward(all) {
		if err := w.WriteHeader(m.head); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
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
