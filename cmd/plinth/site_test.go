package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/testenv"
	"github.com/plinth-os/plinth/tests/synthetic"
)

// A site is a folder to build in: a profile, its lock and its packages, and what
// a build that nothing disturbs makes of them.
type site struct {
	t       *testing.T
	dir     string
	profile string
	name    string
	blobs   []string          // paths in a store: the locked packages
	want    map[string]string // SHA256SUMS: digests by name
	steps   []string          // in the order of the pipeline
	elapsed time.Duration     // of a build with the packages there
}

// syntheticSite builds in a moment and needs nothing.
func syntheticSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	if err := synthetic.Write(filepath.Join(dir, "debs")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "tiny.toml"), synthetic.Profile)
	return newSite(t, dir, "./tiny.toml", "tiny")
}

// realSite is the stock profile with what the mirror has today.
func realSite(t *testing.T) *site {
	t.Helper()
	testenv.Network(t)
	return newSite(t, t.TempDir(), "vtpm", "vtpm")
}

// newSite builds once and keeps the packages.
func newSite(t *testing.T, dir, profile, name string) *site {
	t.Helper()
	s := &site{t: t, dir: dir, profile: profile, name: name}
	writeFile(t, filepath.Join(dir, "agent"), "the guest's first program\n")
	first := filepath.Join(dir, "first")
	s.mustBuild(first, "first-out")
	s.plan(first)
	var err error
	if s.want, err = readSums(filepath.Join(dir, "first-out")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, name+".lock"))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := source.ParseLock(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range lock.Packages {
		hex := p.SHA256.String()
		s.blobs = append(s.blobs, filepath.Join("blobs", "sha256", hex[:2], hex))
	}
	start := time.Now()
	s.mustBuild(s.store(), "timed")
	s.elapsed = time.Since(start)
	return s
}

// plan learns the names of the steps.
func (s *site) plan(store string) {
	s.t.Helper()
	cmd := exec.Command("plinth", "plan", s.profile, "--agent", "agent", "--cache-dir", store, "--json")
	cmd.Dir = s.dir
	b, err := cmd.Output()
	if err != nil {
		s.t.Fatal(err)
	}
	var rows []struct{ Step string }
	if err := json.Unmarshal(b, &rows); err != nil {
		s.t.Fatal(err)
	}
	for _, r := range rows {
		s.steps = append(s.steps, r.Step)
	}
}

// store makes a store that holds the packages and no result of a step.
func (s *site) store() string {
	s.t.Helper()
	return s.link(filepath.Join(s.dir, "first"), s.blobs)
}

// clone makes a store that holds the same as another.
func (s *site) clone(store string) string {
	s.t.Helper()
	var names []string
	for _, path := range files(s.t, store) {
		names = append(names, strings.TrimPrefix(path, store+"/"))
	}
	return s.link(store, names)
}

// link makes a store of files of another; plinth never writes into one of these.
func (s *site) link(from string, names []string) string {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "store-")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Link(filepath.Join(from, name), filepath.Join(dir, name)); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

// command is a build into the folder out, with a store.
func (s *site) command(program, store, out string, more ...string) *exec.Cmd {
	args := append([]string{"build", s.profile, "--agent", "agent", "--cache-dir", store, "-o", out, "--progress", "json"}, more...)
	cmd := exec.Command(program, args...)
	cmd.Dir = s.dir
	return cmd
}

// build runs one to its end.
func (s *site) build(program, store, out string, more ...string) (code int, stderr string) {
	s.t.Helper()
	cmd := s.command(program, store, out, more...)
	var b strings.Builder
	cmd.Stderr = &b
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

func (s *site) mustBuild(store, out string, more ...string) {
	s.t.Helper()
	if code, stderr := s.build("plinth", store, out, more...); code != 0 {
		s.t.Fatalf("exit %d\n%s", code, stderr)
	}
}

// right checks that a build gave what the undisturbed one gave, and left nothing
// else behind.
func (s *site) right(store, out string) {
	s.t.Helper()
	s.mustBuild(store, out)
	got, err := readSums(filepath.Join(s.dir, out))
	if err != nil {
		s.t.Fatal(err)
	}
	for name, want := range s.want {
		if got[name] != want {
			s.t.Errorf("the next build: %s: sha256 is %s, want %s", name, got[name], want)
		}
	}
	s.noneHalfWritten(store, out)
	for _, path := range files(s.t, filepath.Join(s.dir, out)) {
		if builder.IsTemp(filepath.Base(path)) {
			s.t.Errorf("left behind: %s", path)
		}
	}
	if left := files(s.t, filepath.Join(store, "tmp")); len(left) > 0 {
		s.t.Errorf("left behind: %q", left)
	}
}

// noneHalfWritten checks every file that has its final name.
func (s *site) noneHalfWritten(store, out string) {
	s.t.Helper()
	for _, path := range files(s.t, filepath.Join(store, "blobs")) {
		if got := digestOf(s.t, path); got != filepath.Base(path) {
			s.t.Errorf("blob %s has digest %s", path, got)
		}
	}
	for _, path := range files(s.t, filepath.Join(store, "results")) {
		b, err := os.ReadFile(path)
		if err != nil {
			s.t.Fatal(err)
		}
		if head, body, _ := bytes.Cut(b, []byte("\n")); fmt.Sprintf("%x", sha256.Sum256(body)) != string(head) {
			s.t.Errorf("result %s is damaged", path)
		}
	}
	for _, path := range files(s.t, filepath.Join(s.dir, out)) {
		name := filepath.Base(path)
		if want, ok := s.want[name]; ok && digestOf(s.t, path) != want {
			s.t.Errorf("%s is half-written", path)
		}
	}
}

// files lists the regular files below dir; none when there is no dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			out = append(out, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	d, err := fileDigest(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// forget removes what a build made.
func (s *site) forget(store, out string) {
	s.t.Helper()
	for _, dir := range []string{store, filepath.Join(s.dir, out)} {
		if err := os.RemoveAll(dir); err != nil {
			s.t.Fatal(err)
		}
	}
}
