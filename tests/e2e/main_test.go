// Package e2e builds and boots real images: packages from the host's mirror, QEMU,
// OVMF and swtpm. It runs the binary that "make build" leaves in bin.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinth-os/plinth/internal/testenv"
)

// shared is one store for all tests: every package is fetched once.
var shared struct {
	cache, work string
	verity      string // what the check of verityDir's image printed, "" before
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "plinth-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		shared.work = dir
		shared.cache = filepath.Join(dir, "cache")
		if c := os.Getenv("PLINTH_E2E_CACHE"); c != "" {
			shared.cache = c
		}
		return m.Run()
	}())
}

// needs skips what a plain "go test -short" or an empty machine cannot run.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and boots images")
	}
	testenv.Network(t)
	testenv.Need(t, tools...)
}

// plinthBinary returns bin/plinth, or the one that PLINTH_BIN names.
func plinthBinary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PLINTH_BIN")
	if path == "" {
		path = filepath.Join(testenv.Root(t), "bin", "plinth")
	}
	if _, err := os.Stat(path); err != nil {
		testenv.Missing(t, "bin/plinth", `run "make build" first`)
	}
	return path
}

// A result is what a command left behind.
type result struct {
	code           int
	stdout, stderr string
	elapsed        time.Duration
}

// plinth runs one command in dir with the shared store.
func plinth(t *testing.T, dir string, args ...string) result {
	t.Helper()
	return command(t, dir, nil, args...)
}

func command(t *testing.T, dir string, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, plinthBinary(t), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PLINTH_CACHE="+shared.cache, "CI=1")
	cmd.Env = append(cmd.Env, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := cmd.Run()
	r := result{stdout: out.String(), stderr: errs.String(), elapsed: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		t.Fatal(err)
	}
	return r
}

// must runs a command that has to succeed.
func must(t *testing.T, dir string, args ...string) result {
	t.Helper()
	r := plinth(t, dir, args...)
	if r.code != 0 {
		t.Fatalf("plinth %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r
}

// workdir returns an empty directory that holds the shared lock of the stock
// profile, so that all tests build from the same packages.
func workdir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	lock := filepath.Join(shared.work, "vtpm.lock")
	if _, err := os.Stat(lock); err != nil {
		must(t, shared.work, "lock", "vtpm")
	}
	b, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "vtpm.lock"), b)
	return dir
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v\n%.500s", err, text)
	}
}
