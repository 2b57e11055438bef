// Package source says where bytes come from: Debian archives, directories of
// .deb files, local files. A lock names every input with its digest and the
// signed evidence for it; with a lock nothing else enters a build.
//
// The chain of trust for an archive is: pinned OpenPGP key, InRelease, digest of
// the Packages index, digest of the .deb. The mirror is trusted with nothing.
package source

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/cas"
)

// A Source is one suite of an archive, or a directory of .deb files.
type Source struct {
	Name       string   // "debian"; several sources may share a name and differ in suite
	Suite      string   // suite or codename, as in dists/SUITE; empty for a directory
	Components []string // nil means main
	Dir        string   // directory of .deb files; a relative one is the profile's business
	Mirrors    []string // base URLs, tried in order; see MirrorsFor

	Keys *Keyring // that may sign it; nil means the client's

	// OnRequest keeps the source out of the choice unless a Want names it or a
	// dependency accepts no version from elsewhere, as "NotAutomatic: yes" in
	// its Release file does.
	OnRequest bool
	// IgnoreValidUntil accepts a suite past its Valid-Until, for archives of old states.
	IgnoreValidUntil bool
}

// label names the source for messages: "debian trixie", or the name alone.
func (s Source) label() string { return strings.TrimSpace(s.Name + " " + s.Suite) }

func (s Source) components() []string {
	if len(s.Components) == 0 {
		return []string{"main"}
	}
	return s.Components
}

// A Want is a package that the profile asks for.
type Want struct {
	Role    string `json:"role"` // who asks: kernel, stub, firmware, root
	Package string `json:"package"`
	Source  string `json:"source,omitempty"` // name of the only source it may come from
	Suite   string `json:"suite,omitempty"`  // suite of the only source it may come from
	// Closure asks for everything the package depends on; Recommends are left
	// out, and so are Essential packages that nothing names. Without it only
	// dependencies built from the same source package come along, which is how
	// a meta package leads to what it stands for.
	Closure bool `json:"closure,omitempty"`
}

// A Request is what a profile asks of its sources.
type Request struct {
	Profile string // for the reader of the lock
	Arch    string // Debian's name, "amd64"
	Sources []Source
	Wants   []Want
	Files   []File    // local inputs, already hashed
	Now     time.Time // judges Valid-Until and the validity of keys

	Update    []string // packages to choose afresh although the previous lock has them
	UpdateAll bool     // choose everything afresh
}

// A Client fetches. Its methods may be called from many goroutines.
type Client struct {
	Store    *cas.Store
	Keys     *Keyring       // for sources without their own; nil means the embedded keys
	HTTP     *http.Client   // nil means one that honours http_proxy
	Offline  bool           // refuse the network
	Jobs     int            // downloads at a time; 0 means 4
	Attempts int            // rounds over the mirrors; 0 means 4
	Stall    time.Duration  // without a byte for so long an attempt has failed; 0 means 30 s
	Progress func(Progress) // called from many goroutines; nil means silence

	anyType   bool                                       // an answer may be a web page
	sleepFunc func(context.Context, time.Duration) error // for tests
}

// Progress reports a download. Done restarts when another mirror is tried.
type Progress struct {
	Name        string // of the package or index
	Done, Total int64  // bytes; Total is 0 when unknown
}
