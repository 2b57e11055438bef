package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/qemu"
)

func TestExitCode(t *testing.T) {
	missing := &fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("other"), 1},
		{context.Canceled, 1},
		{usagef("%w", missing), 2},
		{&profiles.Faults{}, 2},
		{&source.ResolveError{}, 2},
		{&profiles.UnsupportedError{}, 3},
		{hostLacksError{}, 4},
		{&qemu.MissingToolError{Err: missing}, 4},
		{&source.NetworkError{Errs: []error{syscall.ECONNREFUSED}}, 5},
		{missing, 6},
		{syscall.ENOSPC, 6},
		{&cas.DamagedError{}, 6},
		{&source.VerifyError{}, 7},
		{&source.NetworkError{Errs: []error{&source.VerifyError{}}}, 7},
		{mismatchError{missing}, 7},
		{bootError{missing}, 8},
		{&source.LockError{}, 9},
	} {
		if got := exitCode(fmt.Errorf("wrapped: %w", c.err)); got != c.want {
			t.Errorf("%T %v: got %d, want %d", c.err, c.err, got, c.want)
		}
	}
}

func TestPrintError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("two\nlines\n"), "plinth: error: two\nlines\n"},
		{fmt.Errorf("build: %w", context.Canceled), "plinth: stopped\n"},
		{fmt.Errorf("x: %w", hostLacksError{"no agent", "make build"}), "plinth: error: x: no agent\nplinth: hint: make build\n"},
		{&qemu.MissingToolError{Tool: "swtpm", Hint: "install it"}, "plinth: error: qemu: swtpm: not found\nplinth: hint: install it\n"},
	} {
		var b strings.Builder
		if printError(&b, c.err); b.String() != c.want {
			t.Errorf("got %q, want %q", b.String(), c.want)
		}
	}
}
