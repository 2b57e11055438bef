package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/plinth-os/plinth/builder"
	"github.com/plinth-os/plinth/builder/source"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/registry"
	"github.com/plinth-os/plinth/imagepull/store"
	"github.com/plinth-os/plinth/initdata"
	"github.com/plinth-os/plinth/internal/cas"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/qemu"
)

// Exit codes, as the help text of the root command lists them.
const (
	exitOK          = 0
	exitOther       = 1
	exitUsage       = 2
	exitUnsupported = 3
	exitHost        = 4
	exitNetwork     = 5
	exitIO          = 6
	exitMismatch    = 7
	exitBoot        = 8
	exitLock        = 9
)

// mismatchError: something is not what it must be; exit code 7.
type mismatchError struct{ err error }

func (e mismatchError) Error() string { return e.err.Error() }
func (e mismatchError) Unwrap() error { return e.err }

// bootError: the guest did not come up; exit code 8.
type bootError struct{ err error }

func (e bootError) Error() string { return e.err.Error() }
func (e bootError) Unwrap() error { return e.err }

func exitCode(err error) int {
	var (
		usage    usageError
		faults   *profiles.Faults
		resolve  *source.ResolveError
		host     hostLacksError
		tool     *qemu.MissingToolError
		network  *source.NetworkError
		verify   *source.VerifyError
		lock     *source.LockError
		mismatch mismatchError
		boot     bootError
		path     *fs.PathError
		link     *os.LinkError
		errno    syscall.Errno
		damaged  *cas.DamagedError
		value    *builder.ValueError
		status   *registry.StatusError
		digest   *registry.DigestError
		request  *url.Error
		refused  *imagepull.RefusedError
		fetch    *imagepull.FetchError
		space    *imagepull.SpaceError
		store    *store.DamagedError
	)
	switch {
	case errors.Is(err, profiles.ErrUnsupported), errors.Is(err, initdata.ErrAlgorithm):
		return exitUnsupported
	case errors.As(err, &usage), errors.As(err, &faults), errors.As(err, &resolve), errors.As(err, &value):
		return exitUsage
	case errors.As(err, &host), errors.As(err, &tool):
		return exitHost
	case errors.As(err, &verify), errors.As(err, &mismatch), errors.As(err, &digest), errors.As(err, &refused), errors.Is(err, registry.ErrBlocked):
		return exitMismatch
	case errors.As(err, &lock):
		return exitLock
	case errors.As(err, &network), errors.As(err, &status), errors.As(err, &request), errors.As(err, &fetch):
		return exitNetwork
	case errors.As(err, &boot):
		return exitBoot
	case errors.As(err, &path), errors.As(err, &link), errors.As(err, &errno), errors.As(err, &damaged), errors.As(err, &space), errors.As(err, &store):
		return exitIO
	}
	return exitOther
}

// hinter is an error that knows what to do next.
type hinter interface{ Hint() string }

func printError(w io.Writer, err error) {
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(w, "plinth: stopped")
		return
	}
	fmt.Fprintf(w, "plinth: error: %s\n", strings.TrimRight(err.Error(), "\n"))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(w, "plinth: hint: %s\n", hint)
	}
}

// hintOf returns what err says to do next, "" when it says nothing.
func hintOf(err error) string {
	var h hinter
	if errors.As(err, &h) {
		return h.Hint()
	}
	var tool *qemu.MissingToolError
	if errors.As(err, &tool) {
		return tool.Hint
	}
	return ""
}
