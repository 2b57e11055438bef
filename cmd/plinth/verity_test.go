package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const verityUUID = "01234567-89ab-cdef-0123-456789abcdef"

// verityCommand runs plinth verity and returns what it prints.
func verityCommand(ctx context.Context, args ...string) (out string, code int) {
	var text strings.Builder
	e := &env{stdout: &text, stderr: &text, getenv: func(string) string { return "" }, now: time.Now}
	code = run(ctx, append([]string{"verity"}, args...), e)
	return text.String(), code
}

// TestVerityFormatLeavesNothingHalf: a run that fails, or is told to end, leaves no
// new file, and of an old one the superblock as it was.
func TestVerityFormatLeavesNothingHalf(t *testing.T) {
	over := func(t *testing.T) context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return ctx
	}
	for _, tt := range []struct {
		name string
		ctx  func(*testing.T) context.Context
		args []string
		want string
	}{
		{"interrupted", over, nil, "stopped"},
		{"without UUID", (*testing.T).Context, []string{"--uuid", "x"}, "--uuid"},
		{"more than there is", (*testing.T).Context, []string{"--data-blocks", "4000"}, "less than --data-blocks"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			data, fresh, old := filepath.Join(dir, "data"), filepath.Join(dir, "fresh"), filepath.Join(dir, "old")
			writeFile(t, data, strings.Repeat("0123456789abcdef", 300*256))
			before := strings.Repeat("old ", 3000)
			writeFile(t, old, before)
			for _, hash := range []string{fresh, old} {
				out, code := verityCommand(tt.ctx(t), append([]string{"format", data, hash, "--uuid", verityUUID}, tt.args...)...)
				if code == exitOK || !strings.Contains(out, tt.want) {
					t.Errorf("exit %d, want %q in\n%s", code, tt.want, out)
				}
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
				t.Errorf("%v, %v: want data and old", names, err)
			}
			if b, err := os.ReadFile(old); err != nil || string(b) != before {
				t.Errorf("the old file is another one, %v", err)
			}
		})
	}
}

// TestVerityFormatInPlace: what a file holds beside the tree stays.
func TestVerityFormatInPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	data := strings.Repeat("0123456789abcdef", 3*256)
	writeFile(t, file, data+strings.Repeat("x", 20000))
	out, code := verityCommand(t.Context(), "format", file, file, "--uuid", verityUUID, "--data-blocks", "3", "--hash-offset", "12288")
	if code != exitOK {
		t.Fatalf("exit %d\n%s", code, out)
	}
	b, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(b), data+"verity\x00\x00") || !strings.HasSuffix(string(b), "xxxx") || len(b) != len(data)+20000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if out, code := verityCommand(t.Context(), "format", file, file, "--uuid", verityUUID, "--data-blocks", "3"); code != exitUsage || !strings.Contains(out, "would overwrite it") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// A tree without a superblock has no UUID.
func TestVerityFormatUUID(t *testing.T) {
	dir := t.TempDir()
	data, hash := filepath.Join(dir, "data"), filepath.Join(dir, "hash")
	writeFile(t, data, strings.Repeat("0123456789abcdef", 256))
	for _, tt := range []struct {
		args []string
		want bool
	}{
		{[]string{"--uuid", verityUUID}, true},
		{[]string{"--no-superblock"}, false},
		{[]string{"--no-superblock", "--json"}, false},
		{[]string{"--uuid", verityUUID, "--json"}, true},
	} {
		out, code := verityCommand(t.Context(), append([]string{"format", data, hash}, tt.args...)...)
		if code != exitOK || strings.Contains(strings.ToLower(out), "uuid") != tt.want {
			t.Errorf("%q: exit %d\n%s", tt.args, code, out)
		}
	}
}
