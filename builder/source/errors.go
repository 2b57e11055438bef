package source

import (
	"errors"
	"fmt"
	"strings"
)

// The errors that a command tells apart. Each has a Hint where a person can do
// something about it. Anything else that comes out of this package is input or
// output that failed on this machine.

// A NetworkError says that no mirror gave a file; exit code 5.
type NetworkError struct {
	What     string  // "linux-image-cloud-amd64 6.12.107-1"
	Errs     []error // the last failure of each URL, in order
	Offline  bool    // the network was not to be used
	NotFound bool    // every mirror answered, and none has the file
	Pinned   bool    // the profile names the address: there is no mirror
}

func (e *NetworkError) Error() string {
	switch {
	case e.Offline:
		return fmt.Sprintf("source: %s: not in the store, and offline", e.What)
	case len(e.Errs) == 0:
		return fmt.Sprintf("source: %s: no mirror is known", e.What)
	}
	return fmt.Sprintf("source: %s: %s", e.What, joined(e.Errs))
}

func (e *NetworkError) Unwrap() []error { return e.Errs }

// Hint says what to do.
func (e *NetworkError) Hint() string {
	if e.Offline && e.Pinned {
		return "run the same command once without --offline"
	}
	if e.Pinned {
		return `check the address in the profile; a registry that asks for a password takes what "docker login" left`
	}
	if e.Offline {
		return `run the same command once without --offline, or name a source with dir = "FOLDER" that holds the .deb file`
	}
	return "name another mirror with --mirror URL, PLINTH_MIRROR or the profile's mirror key"
}

// A VerifyError says that bytes, a date or a signature are not what they must be;
// exit code 7.
type VerifyError struct {
	What    string // the object
	Problem string // got and want
	Stale   bool   // rightly signed, but out of date
	Pinned  bool   // the digest is one that the profile gives
}

func (e *VerifyError) Error() string { return "source: " + e.What + ": " + e.Problem }

// Hint says what to do.
func (e *VerifyError) Hint() string {
	if e.Pinned {
		return "if this is the content that is meant, write its digest into the profile"
	}
	if e.Stale {
		return "try another mirror and check this machine's clock; for an archive of old states set check_valid_until = false"
	}
	return "the mirror, or something on the way to it, changed the file: try another mirror"
}

// A LockError says that the lock does not fit the profile or the archive any more;
// exit code 9.
type LockError struct {
	Problem string
	Diffs   []string // one line each, with + and - for what the profile has more and less
}

func (e *LockError) Error() string {
	return strings.Join(append([]string{"source: lock: " + e.Problem}, e.Diffs...), "\n  ")
}

// Hint says what to do.
func (e *LockError) Hint() string {
	return `run "plinth lock --update" and review the diff of the lock`
}

// A ResolveError says that what the profile asks for cannot be had from its
// sources; exit code 2.
type ResolveError struct {
	What    string
	Problem string
	Similar []string // names that do exist
}

func (e *ResolveError) Error() string {
	s := "source: " + e.What + ": " + e.Problem
	if len(e.Similar) > 0 {
		s += "; did you mean " + strings.Join(e.Similar, ", ") + "?"
	}
	return s
}

// joined puts errors on one line, equal ones once.
func joined(errs []error) string {
	var parts []string
	for line := range strings.Lines(errors.Join(errs...).Error()) {
		if line = strings.TrimSpace(line); len(parts) == 0 || parts[len(parts)-1] != line {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}
